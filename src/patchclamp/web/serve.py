"""From options to a listening process."""

from __future__ import annotations

import os
import secrets
import socket
import threading
import webbrowser
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from patchclamp.errors import FileError, SpecError
from patchclamp.evidence.store import Store
from patchclamp.tasks.files import ATTACHED, DEFAULT_MODEL
from patchclamp.web.guard import LOOPBACK

FIRST_PORT = 8765
TRIED_PORTS = 20
SHARE_OF_MEMORY = 0.9


def serve(
    models: tuple[str, ...] = (), port: int | None = None, host: str = "127.0.0.1", token: str | None = None,
    files: Path | None = None, browser: bool = True, say: Callable[[str], None] = print,
) -> None:
    """Serve the workbench until it is interrupted. `port` None takes the first free one. SpecError if others than this
    machine could reach it and no `token` is given, or the port is taken."""
    if host not in LOOPBACK and not token:
        raise SpecError(f"--host {host} lets other machines in; give --token TEXT, which they then need, or leave "
                        "--host out")
    if token is not None and len(token) < 8:
        raise SpecError("--token is what keeps others out; give at least 8 characters")
    import uvicorn

    from patchclamp.web.app import make_app
    from patchclamp.web.bench import Workbench

    refs = tuple(_absolute(ref) for ref in models) or (DEFAULT_MODEL,)
    if os.environ.get("OPENAI_API_KEY") and not os.environ.get("OPENAI_BASE_URL"):
        del os.environ["OPENAI_API_KEY"]  # a question's address names an endpoint, and anyone may write an address
        say("OPENAI_API_KEY is not used here unless OPENAI_BASE_URL says which endpoint it is for")
    listening = listen(host, port)
    bench = Workbench(Store(Store().folder.absolute()), files.expanduser().absolute() if files else None, refs)
    _move_to(bench.files)
    limit_memory()
    address = f"http://{_written(host)}:{listening.getsockname()[1]}/" + (f"?token={token}" if token else "")
    say(f"patchclamp workbench: {address}  (Ctrl-C ends it; files: {bench.files})")
    app = make_app(bench, secrets.token_urlsafe(24), token)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False, server_header=False,
                                           timeout_graceful_shutdown=2))
    threading.Timer(0.3, bench.start).start()  # the first page does not wait for torch
    if browser:
        threading.Timer(0.5, lambda: webbrowser.open(address)).start()
    with listening:
        server.run(sockets=[listening])


def listen(host: str, port: int | None) -> socket.socket:
    """A listening socket: on `port`, or the first free one from 8765 on. SpecError if there is none."""
    if port is not None and not 0 <= port <= 65535:
        raise SpecError(f"a port is a number from 0 to 65535; got {port}")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    problem: OSError | None = None
    for number in [port] if port is not None else range(FIRST_PORT, FIRST_PORT + TRIED_PORTS):
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((host, number))
        except OSError as error:
            listening.close()
            problem = error
            continue
        listening.listen(256)
        return listening
    raise SpecError(f"cannot listen on {host}, port {port or FIRST_PORT}: {problem.strerror if problem else ''}; "
                    "give another --port, or 0 for any free one")


def limit_memory() -> None:
    """Let an allocation that this machine cannot serve fail in the job that asks, before the system ends us."""
    with suppress(ImportError, ValueError, OSError):
        import resource

        most = int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * SHARE_OF_MEMORY)
        resource.setrlimit(resource.RLIMIT_DATA, (most, resource.getrlimit(resource.RLIMIT_DATA)[1]))


def _move_to(folder: Path) -> None:
    """Make `folder` the current one: a plain name in a question is a file there."""
    try:
        os.chdir(folder)
    except OSError as error:
        raise FileError(f"the workbench's folder {folder} cannot be used: {error.strerror}") from error


def _absolute(ref: str) -> str:
    """A model's reference that holds once the current folder is another."""
    parts = ref.split(ATTACHED)
    return ATTACHED.join(str(Path(p).expanduser().absolute()) if Path(p).expanduser().exists() else p for p in parts)


def _written(host: str) -> str:
    return f"[{host}]" if ":" in host else host
