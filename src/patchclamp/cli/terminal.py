"""What the user sees: results on standard output, all else (progress, library noise) on standard error."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from io import UnsupportedOperation
from itertools import groupby
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pydantic_core import to_json
from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.style import Style
from rich.table import Table
from rich.text import Text

from patchclamp.evidence.passage import Passage, colour

if TYPE_CHECKING:
    import pandas

T = TypeVar("T")

ROWS = 40
"""Longer tables are shown by their first and last rows."""
CELL = 48
"""Longer texts in a table end in an ellipsis."""
PIPE_WIDTH = 160
"""Width of a table that goes to a file or another program."""
FAINT = 0.05
"""Shades below this are not shown."""
QUIET_SECONDS = 10.0
"""Without a terminal, how often progress is written."""


class NoReaderError(Exception):
    """Standard output is a pipe that nobody reads any more, as in `patchclamp … | head`."""


@contextmanager
def standard_output_kept_clean() -> Iterator[None]:
    """Inside, what is written to standard output goes to standard error, also by libraries not in Python."""
    outside = sys.stdout
    try:
        descriptor = outside.fileno()
        error = sys.stderr.fileno()
    except (AttributeError, OSError, UnsupportedOperation):  # replaced by a test or a notebook
        descriptor = error = -1
    outside.flush()
    kept = os.dup(descriptor) if descriptor >= 0 else -1
    sys.stdout = sys.stderr
    try:
        if kept >= 0:
            os.dup2(error, descriptor)
        yield
    finally:
        sys.stdout = outside
        if kept >= 0:
            os.dup2(kept, descriptor)
            os.close(kept)


def say(*parts: Any) -> None:
    """Print for a person, on standard output: texts as they are, tables as wide as they may be."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=PIPE_WIDTH)
    with console.capture() as captured:
        for part in parts:
            if isinstance(part, str):
                console.print(Text(part), soft_wrap=True)
            else:
                console.print(part)
    with suppress(AttributeError):  # a stream that was replaced
        sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    _write("\n".join(line.rstrip() for line in captured.get().split("\n")))


def say_json(text: str) -> None:
    """Print one JSON text, in UTF-8 whatever the terminal's encoding."""
    with suppress(AttributeError):
        sys.stdout.reconfigure(encoding="utf-8", errors="strict")  # type: ignore[union-attr]
    _write(text.rstrip("\n") + "\n")


def _write(text: str) -> None:
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError as error:
        # What is still buffered must not raise again when the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise NoReaderError from error


def as_json_text(value: Any) -> str:
    """Strict JSON of pydantic models and plain values: NaN and infinity become null."""
    return to_json(value, inf_nan_mode="null").decode()


def note(message: str) -> None:
    """Print a message on standard error."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(Text(message))


def complain(message: str) -> None:
    """Print an error on standard error."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(Text.assemble(("error: ", "bold red"), message))


def as_table(frame: pandas.DataFrame, width: int | None = None) -> tuple[Table, str]:
    """A table of `frame` that fits the terminal, and a sentence about what was left out ("" if nothing).

    Columns are kept from the left while they fit, rows from both ends."""
    if width is None:
        console = Console()
        width = console.width if console.is_terminal else PIPE_WIDTH
    shown = frame if len(frame) <= ROWS else frame.iloc[[*range(ROWS // 2), *range(len(frame) - ROWS // 2, len(frame))]]
    columns = [[str(name), *map(cell, shown.iloc[:, i])] for i, name in enumerate(frame.columns)]
    kept = _fitting([max(map(cell_len, column)) for column in columns], width)
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column, dtype in zip(columns[:kept], frame.dtypes, strict=False):
        justify: Literal["left", "right"] = "right" if dtype.kind in "iuf" else "left"
        table.add_column(Text(column[0]), justify=justify, no_wrap=True, overflow="ellipsis")
    for i, row in enumerate(zip(*(column[1:] for column in columns[:kept]), strict=True)):
        if len(shown) < len(frame) and i == ROWS // 2:
            table.add_row(*["⋮"] * kept)
        table.add_row(*map(Text, row))
    missing = []
    if len(shown) < len(frame):
        missing.append(f"{len(frame) - len(shown)} of {len(frame)} rows")
    if kept < len(columns):
        missing.append("the columns " + ", ".join(column[0] for column in columns[kept:]))
    return table, f"Not shown: {' and '.join(missing)}; --json prints everything." if missing else ""


def _fitting(widths: Sequence[int], available: int) -> int:
    """How many columns of these widths fit, at least one."""
    total = 0
    for count, width in enumerate(widths):
        total += width + 2
        if total - 2 > available and count:
            return count
    return len(widths)


def as_lines(passages: Iterable[Passage]) -> list[Text]:
    """Passages under their headings, one a paragraph, tokens on a background of their colour; the token it is about
    stands in «», for where there are no colours."""
    lines = []
    for group, some in groupby(passages, key=lambda passage: passage.group):
        own = list(some)
        lines += [Text(), Text(group, style="bold")]
        wide = max(cell_len(passage.label) for passage in own)
        lines += [_line(passage, wide) for passage in own]
    return [*lines, Text()]


def _line(passage: Passage, wide: int) -> Text:
    line = Text(passage.label + " " * (wide - cell_len(passage.label) + 2))
    for index, (word, shade) in enumerate(zip(passage.words, passage.shades, strict=True)):
        red, green, blue = colour(shade)
        style = Style(color="black", bgcolor=f"rgb({red},{green},{blue})") if abs(shade) > FAINT else Style()
        blank = word[: len(word) - len(word.lstrip(" "))]
        line.append(f"{blank}«{word.lstrip(' ')}»" if index == passage.at else word, style)
    return line


def cell(value: Any) -> str:
    """A value in a table: four digits of a float, blanks and control characters made visible."""
    if value is None:
        return ""
    if isinstance(value, float):  # numpy's float64 is one
        return "" if value != value else f"{value:.4g}"
    text = value if isinstance(value, str) else str(value)
    if text != text.strip() or not text.isprintable():
        text = json.dumps(text, ensure_ascii=False)
    return text if len(text) <= CELL else text[: CELL - 1] + "…"


class TerminalProgress:
    """Progress on standard error: bars on a terminal, elsewhere a line every ten seconds. Fits the `Progress`
    protocol of `patchclamp.evidence.method`; use it in a `with`, which removes the bars at the end."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._bars: Progress | None = None

    def __enter__(self) -> TerminalProgress:
        if self._console.is_terminal:
            self._bars = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                console=self._console,
                transient=True,
            )
            self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._bars:
            self._bars.stop()

    def track(self, items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
        """Yield `items`, showing how many have been taken."""
        if total is None:
            with suppress(TypeError):
                total = len(items)  # type: ignore[arg-type]
        if self._bars:
            task = self._bars.add_task(description, total=total)
            try:
                yield from self._bars.track(items, total=total, task_id=task)
            finally:
                self._bars.remove_task(task)
        else:
            yield from _lines(items, description, total)


def _lines(items: Iterable[T], description: str, total: int | None) -> Iterator[T]:
    said = time.monotonic()
    for done, item in enumerate(items):
        if time.monotonic() - said >= QUIET_SECONDS:
            said = time.monotonic()
            note(f"{description}: {done}" + (f" of {total}" if total is not None else ""))
        yield item
