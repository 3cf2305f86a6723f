"""All commands together, and what becomes of an error."""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated

from cyclopts import App, CycloptsError, Parameter

from patchclamp.cli.line import DEBUG, arrange
from patchclamp.cli.models import models
from patchclamp.cli.runs import runs
from patchclamp.cli.serve import serve
from patchclamp.cli.terminal import (
    NoReaderError,
    as_json_text,
    complain,
    note,
    say,
    say_json,
    standard_output_kept_clean,
)
from patchclamp.cli.tour import tour
from patchclamp.errors import InputError, PatchclampError, SpecError
from patchclamp.evidence.rank import rank

DEBUG_VARIABLE = "PATCHCLAMP_DEBUG"
FIRST_SPEAKS_SECONDS = 30.0
FAILED, WRONG_INPUT, INTERRUPTED, NO_READER = 1, 2, 130, 141

METHODS = "Methods"
HELP = "Record, intervene, compare with a control, conclude: experiments on the inside of a language model."


def execute(tokens: Sequence[str]) -> int:
    """Run one command line and return its exit code.

    Errors are one line on standard error; the traceback comes with `--debug` or PATCHCLAMP_DEBUG=1."""
    try:
        refuse_bytes(tokens)
        app = build_app(tokens)
        app(arrange(app, tokens), print_error=False, exit_on_error=False, result_action="return_value")
    except KeyboardInterrupt:
        note("Interrupted.")
        return INTERRUPTED
    except NoReaderError:
        return NO_READER
    except CycloptsError as error:
        let_the_first_speak()
        complain(str(error))
        note(f"See {' '.join(['patchclamp', *(error.command_chain or ())])} --help.")
        return WRONG_INPUT
    except Exception as error:
        return _failed(error, tokens)
    return 0


def _failed(error: Exception, tokens: Sequence[str]) -> int:
    """Say what went wrong in one line; whose fault it is decides the exit code."""
    if isinstance(error, InputError):
        let_the_first_speak()
    if DEBUG in tokens or os.environ.get(DEBUG_VARIABLE, "0") not in ("", "0"):
        traceback.print_exception(error)
    if isinstance(error, PatchclampError):
        complain(str(error))
        return WRONG_INPUT if isinstance(error, InputError) else FAILED
    message = " ".join(str(error).split())
    complain(f"{type(error).__name__}{': ' if message else ''}{message[:500]}")
    note(f"That was not foreseen; {DEBUG} or {DEBUG_VARIABLE}=1 prints the traceback.")
    return FAILED


def let_the_first_speak() -> None:
    """What is wrong with the input is wrong in every process that torchrun started: the first says so, and torchrun
    ends the others meanwhile. One that is still there speaks for itself."""
    if rank():
        time.sleep(FIRST_SPEAKS_SECONDS)


def refuse_bytes(tokens: Sequence[str]) -> None:
    """Raise SpecError for an argument that is not UTF-8.

    Python carries its bytes as surrogates, which no tokenizer and no JSON takes."""
    for token in tokens:
        try:
            token.encode()
        except UnicodeEncodeError as error:
            raise SpecError(f"the argument {token!r} is not UTF-8 (character {error.start})") from error


def build_app(tokens: Sequence[str]) -> App:
    """The application for one command line: every method by name and summary, the one asked for with its
    options."""
    app = App(
        name="patchclamp",
        help=HELP,
        version=_version,
        suppress_keyboard_interrupt=False,
        help_epilogue=f"`patchclamp methods` says what each method asks. {DEBUG} prints a traceback.",
    )
    app.command(models)
    app.command(runs)
    app.command(tour)
    app.command(serve)
    app.command(list_methods, name="methods")
    words = [token for token in tokens if token != DEBUG]
    if words[:1] not in (["models"], ["runs"], ["methods"], ["tour"], ["serve"], ["--version"]):
        add_methods(app, words)
    return app


def add_methods(app: App, words: Sequence[str]) -> None:
    """Add a command for each method; the one that begins the line is complete, the others are names."""
    from patchclamp.cli.catalog import summaries

    listed = summaries()
    asked = _longest(words, lambda name: name in listed)
    if asked is None and len(words) > 1 and not words[1].startswith("-"):
        # Perhaps registered by other means than the decorator; what remains unknown is for cyclopts to say.
        from patchclamp.evidence.method import methods

        listed |= {name: method.summary for name, method in methods().items()}
        asked = _longest(words, lambda name: name in listed)
    for name, summary in listed.items():
        group = _group(app, name, listed)
        if name == asked:
            from patchclamp.cli.build import build_command
            from patchclamp.cli.run import run_method
            from patchclamp.evidence.method import get_method

            with standard_output_kept_clean():
                method = get_method(name)
            group.command(build_command(method, run_method))
        else:
            group.command(App(name=name.rsplit(".", 1)[-1], help=summary, group=METHODS))


def _group(app: App, name: str, listed: Iterable[str]) -> App:
    """The command under which the method called `name` stands: for `lens.logit` it is `lens`."""
    prefix = ""
    for part in name.split(".")[:-1]:
        prefix += f"{part}."
        if part not in app:
            inside = ", ".join(other.removeprefix(prefix) for other in listed if other.startswith(prefix))
            app.command(App(name=part, help=f"Methods: {inside}", group=METHODS))
        app = app[part]
    return app


def _longest(words: Sequence[str], known: Callable[[str], bool]) -> str | None:
    """The name that the most words at the line's beginning make."""
    names = (".".join(words[:n]) for n in range(len(words), 0, -1))
    return next(filter(known, names), None)


def list_methods(
    *,
    as_json: Annotated[
        bool,
        Parameter(
            name="--json",
            negative=(),
            show_default=False,
            help="Print names, summaries and the JSON schema of each spec.",
        ),
    ] = False,
) -> None:
    """List the methods: the questions that can be asked of a model."""
    from rich.table import Table

    with standard_output_kept_clean():
        from patchclamp.evidence.method import methods

        known = methods()
    if as_json:
        rows = [(m.name, m.summary, m.spec.model_json_schema()) for m in known.values()]
        say_json(as_json_text([dict(zip(("name", "summary", "schema"), row, strict=True)) for row in rows]))
        return
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for method in known.values():
        table.add_row(method.name.replace(".", " "), method.summary)
    say(table)


def _version() -> str:
    try:
        return version("patchclamp")
    except PackageNotFoundError:
        return "not installed"
