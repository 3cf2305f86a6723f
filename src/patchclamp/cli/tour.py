"""`patchclamp tour`: the guided tour, with its report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from patchclamp.cli.terminal import TerminalProgress, note, say, standard_output_kept_clean


def tour(
    *,
    out: Annotated[Path, Parameter(help="The folder for the report and its records.")] = Path("tour"),
    only: Annotated[
        str,
        Parameter(help="Numbers of the stops to run, e.g. 2,3,7: a shorter tour. A stop may need the files of others."),
    ] = "",
) -> None:
    """Put the lecture's claims to the test on the embedded models and write one report."""
    with standard_output_kept_clean(), TerminalProgress() as progress:
        from patchclamp.tour import take

        path = take(out.absolute(), progress, note, only=_numbers(only))
    say(f"Report: {path}")


def _numbers(text: str) -> list[int]:
    """Whole numbers with commas between them. SpecError otherwise."""
    from patchclamp.errors import SpecError

    try:
        return [int(number) for number in text.split(",")] if text else []
    except ValueError as error:
        raise SpecError(f"--only takes numbers of stops with commas between them, e.g. 2,3,7; got {text!r}") from error
