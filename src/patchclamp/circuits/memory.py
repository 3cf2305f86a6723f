"""Work in as large parts as memory allows."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TypeVar

import torch

from patchclamp.errors import RunError

T = TypeVar("T")


class Parts:
    """Runs work in parts; where a part does not fit into memory it is halved, which is said once, and later parts are
    as small."""

    def __init__(self) -> None:
        self.share = 1.0
        """Of the size that was planned."""

    def run(self, n: int, at_once: int, work: Callable[[slice], T]) -> list[T]:
        """What `work` gives for slices of so many things, `at_once` in each. RunError if one alone does not fit."""
        found: list[T] = []
        done = 0
        while done < n:
            size = max(1, int(at_once * self.share))
            try:
                found.append(work(slice(done, min(n, done + size))))
            except (MemoryError, RuntimeError) as error:  # torch's allocator on the CPU raises a plain RuntimeError
                if not is_out_of_memory(error):
                    raise
                if size == 1:
                    raise RunError("one run alone does not fit in memory: give shorter or fewer prompts") from error
                if self.share == 1:
                    warnings.warn(f"{size} runs at once do not fit in memory: going on with {size // 2}", stacklevel=2)
                self.share = (size // 2) / at_once
            else:
                done += size
        return found


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)
