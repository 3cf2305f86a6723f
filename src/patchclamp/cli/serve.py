"""`patchclamp serve`: the workbench."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from patchclamp.cli.terminal import note


def serve(
    *,
    model: Annotated[
        tuple[str, ...],
        Parameter(help="A model to offer: an embedded one, a Hugging Face id or a folder; several times for several. "
                  "The first is loaded at once."),
    ] = (),
    port: Annotated[int | None, Parameter(help="The port; by default the first free one from 8765 on; 0: any.")] = None,
    host: Annotated[
        str, Parameter(help="The address to listen on. Other machines get in only with --token.")
    ] = "127.0.0.1",
    token: Annotated[
        str | None, Parameter(help="What a browser has to give once, where others can reach the server.")
    ] = None,
    files: Annotated[
        Path | None,
        Parameter(help="The folder that questions may read and write; by default one in the store of records."),
    ] = None,
    browser: Annotated[bool, Parameter(help="Open a browser.")] = True,
) -> None:
    """Open the workbench: a page for every question, on this machine alone."""
    from patchclamp.web.serve import serve as run

    run(model, port, host, token, files, browser, note)
