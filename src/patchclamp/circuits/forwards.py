"""Modules that do something else for a while."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any


@contextmanager
def with_forwards(modules: Sequence[Any], make: Callable[[Any], Callable[..., Any]]) -> Iterator[None]:
    """For the time of a pass, modules whose forward is what `make` gives for each; what a library that spreads devices
    has put there comes back."""
    own = [vars(module).get("forward") for module in modules]
    try:
        for module in modules:
            module.forward = make(module)
        yield
    finally:
        for module, forward in zip(modules, own, strict=True):
            if forward is not None:
                module.forward = forward
            elif "forward" in vars(module):
                del module.forward
