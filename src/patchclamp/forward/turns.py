"""A lock that threads get in the order in which they asked: whoever asks once is not kept waiting by one who asks again
and again, as a run in a loop does."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

POLL_SECONDS = 0.2
_check: ContextVar[Callable[[], None] | None] = ContextVar("whether to go on", default=None)


@contextmanager
def interrupted_by(check: Callable[[], None]) -> Iterator[None]:
    """Inside, `check` is called before every pass of a model and every generated token; what it raises ends them."""
    token = _check.set(check)
    try:
        yield
    finally:
        _check.reset(token)


def may_go_on() -> None:
    """Raise what the innermost `interrupted_by` has to raise."""
    if (check := _check.get()) is not None:
        check()


class Turns:
    """Re-entrant; use it in a `with`."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._owner: int | None = None
        self._depth = 0
        self._waiting: deque[tuple[int, threading.Event]] = deque()

    def __enter__(self) -> None:
        may_go_on()
        me, mine = threading.get_ident(), threading.Event()
        with self._guard:
            if self._owner in (me, None):
                self._owner, self._depth = me, self._depth + 1
                return
            self._waiting.append((me, mine))
        try:
            while not mine.wait(POLL_SECONDS):
                may_go_on()
        except BaseException:  # Ctrl-C or an interruption while it waits
            with self._guard:
                is_mine = (me, mine) not in self._waiting
                if not is_mine:
                    self._waiting.remove((me, mine))
            if is_mine:
                self.__exit__()
            raise

    def __exit__(self, *_: object) -> None:
        with self._guard:
            self._depth -= 1
            if self._depth:
                return
            self._owner = None
            if self._waiting:
                self._owner, event = self._waiting.popleft()
                self._depth = 1
                event.set()
