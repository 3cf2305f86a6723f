"""What a method's command does: load the model, run, store the record, show it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from patchclamp.cli.build import RunOptions
from patchclamp.cli.terminal import (
    TerminalProgress,
    as_lines,
    as_table,
    note,
    say,
    say_json,
    standard_output_kept_clean,
)
from patchclamp.errors import FileError, RunError, SpecError
from patchclamp.evidence.method import load_language_model
from patchclamp.evidence.rank import local_rank, rank, world_size

if TYPE_CHECKING:
    from patchclamp.evidence.method import Loader, Method, Spec
    from patchclamp.evidence.record import Record


def run_method(method: Method, spec: Spec, options: RunOptions) -> None:
    """Run `method` as the common options say and print the record.

    What is wrong with the options is said before the model is loaded, the record is stored before anything
    else is written, and shown even if it cannot be stored, so that no finished run is lost. Of several processes that
    torchrun started the first one does all this; the others run, and say nothing."""
    check_places(options)
    if rank():
        with standard_output_kept_clean():
            method.run(load_model(options, method.load), spec)
        return
    with standard_output_kept_clean(), TerminalProgress() as progress:
        record = method.run(load_model(options, method.load), spec, progress)
        stored, failure = store(record, options)
        for path in filter(None, (options.html, options.png)) if failure is None else ():
            save_chart(record, path, stored)
    if options.as_json:
        say_json(record.to_json())
    else:
        show(record)
    if failure is not None:
        raise failure
    tell = note if options.as_json else say
    for path in filter(None, (options.html, options.png)):
        tell(f"Chart: {path}")
    if stored:
        tell(f"Record {record.id}: {stored}")


def load_model(options: RunOptions, load: Loader = load_language_model) -> Any:
    """The model the options name; which kind is `load`'s to say."""
    own = f"cuda:{local_rank()}" if options.device == "cuda" and world_size() > 1 else options.device
    place = {"device_map": "auto"} if own == "auto" else {"device": own}
    return load(options.model, dtype=options.dtype, trust_remote_code=options.trust_remote_code, **place)


def store(record: Record, options: RunOptions) -> tuple[Path | None, RunError | None]:
    """Write the record where the options say: its place, if they name one, and what kept it from being written.

    The error is for after the result was shown: a run that is done must not be lost to a full disk."""
    from patchclamp.evidence.store import Store

    if options.no_record:
        return None, None
    try:
        return (record.save(options.out / "record.json") if options.out else Store().save(record)), None
    except RunError as error:
        return None, error


def save_chart(record: Record, path: Path, stored: Path | None) -> None:
    """Write the chart to `path`; a failure says where the run's record is all the same."""
    try:
        record.save(path)
    except RunError as error:
        kept = f"; the run itself is stored in {stored}" if stored else ""
        raise RunError(f"{error}{kept}") from error


def show(record: Record) -> None:
    """Print the result's table, if it has one, and the verdict's sentence."""
    from patchclamp.evidence.method import Result

    if type(record.result).table is not Result.table:
        table, left_out = as_table(record.table())
        say(table)
        if left_out:
            say(left_out)
    if passages := record.result.passages():
        say(*as_lines(passages))
    if record.verdict:
        say(f"{record.verdict.outcome.capitalize()}: {record.verdict.reason}")


def check_places(options: RunOptions) -> None:
    """Raise InputError for an output that cannot be written, while that costs no run."""
    from patchclamp.evidence.store import check_folder

    if options.out and options.no_record:
        raise SpecError("--out says where the record goes and --no-record that there is none; leave one out")
    for option, path, suffixes in (("--html", options.html, (".html",)), ("--png", options.png, (".png", ".svg"))):
        if path is None:
            continue
        if path.suffix.lower() not in suffixes:
            raise FileError(f"{option} {path}: the file's name has to end in {' or '.join(suffixes)}")
        if path.is_dir():
            raise FileError(f"{option} {path} is a folder; give a file in it")
        check_folder(option, path.absolute().parent)
    if options.out:
        check_folder("--out", options.out.absolute())
    elif not options.no_record:
        from patchclamp.evidence.store import FOLDER_VARIABLE, default_folder

        where = f"the store of records ({FOLDER_VARIABLE}; --no-record does without)"
        check_folder(where, default_folder().absolute())
