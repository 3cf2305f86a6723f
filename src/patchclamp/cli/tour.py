"""`patchclamp tour`: the guided tour, with its report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from patchclamp.cli.terminal import TerminalProgress, note, say, standard_output_kept_clean


def tour(
    *,
    out: Annotated[Path, Parameter(help="The folder for the report and its records.")] = Path("tour"),
    only: Annotated[tuple[int, ...], Parameter(help="Numbers of the stops to run, for a shorter tour; each by itself "
                                               "needs the files of those before it.", negative="", consume_multiple=True)] = (),
) -> None:
    """Put the lecture's claims to the test on the embedded models and write one report."""
    with standard_output_kept_clean(), TerminalProgress() as progress:
        from patchclamp.tour import take

        path = take(out.absolute(), progress, note, only=only)
    say(f"Report: {path}")
