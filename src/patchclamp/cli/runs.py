"""`patchclamp runs`: the stored records."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from patchclamp.cli.terminal import (
    TerminalProgress,
    as_json_text,
    as_table,
    note,
    say,
    say_json,
    standard_output_kept_clean,
)
from patchclamp.errors import FileError

if TYPE_CHECKING:
    from patchclamp.evidence.record import Record

runs = App(name="runs", help="The stored records of earlier runs: list, show, replay, export, delete.")

Id = Annotated[str, Parameter(help="The record's id or its first digits; or the folder or file of a record.")]
Json = Annotated[bool, Parameter(name="--json", negative=(), help="Print JSON.", show_default=False)]


@runs.command(name="list")
def list_runs(*, as_json: Json = False) -> None:
    """List the stored records, newest first."""
    import pandas

    from patchclamp.evidence.store import Store

    store = Store()
    found = store.list()
    if as_json:
        say_json(as_json_text(found))
        return
    if not found:
        say(f"No records in {store.folder} yet.")
        return
    rows = [
        {
            "id": summary.id,
            "method": summary.method,
            "model": summary.model,
            "started": summary.started.astimezone().strftime("%Y-%m-%d %H:%M") if summary.started else None,
            "outcome": summary.problem or summary.outcome,
        }
        for summary in found
    ]
    table, left_out = as_table(pandas.DataFrame(rows))
    say(table)
    if left_out:
        say(left_out)


@runs.command
def show(name: Id, /, *, as_json: Json = False) -> None:
    """Print a record: its table, its verdict and where it came from."""
    from patchclamp.cli import run

    with standard_output_kept_clean():
        record = find(name)
    if as_json:
        say_json(record.to_json())
        return
    run.show(record)
    provenance = record.provenance
    say(
        f"{record.method} on {provenance.name} ({provenance.dtype}, {provenance.device}), "
        f"{provenance.started.astimezone():%Y-%m-%d %H:%M}, {provenance.duration:.1f} s, record {record.id}"
    )
    say(f"spec: {record.spec.model_dump_json()}")


@runs.command
def replay(
    name: Id,
    /,
    *,
    model: Annotated[str | None, Parameter(help="Another model than the record's.")] = None,
    device: Annotated[str | None, Parameter(help="Another device than the record's.")] = None,
    trust_remote_code: Annotated[
        bool,
        Parameter(negative=(), show_default=False, help="Run the Python code that comes with the model."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Run a record again and say whether the numbers are the same, or what differs."""
    from patchclamp.cli import run
    from patchclamp.cli.build import RunOptions
    from patchclamp.evidence import store
    from patchclamp.evidence.method import get_method

    with standard_output_kept_clean(), TerminalProgress() as progress:
        record = find(name)
        then = record.provenance
        options = RunOptions.model_validate(
            {
                "model": model or then.model,
                "device": device or then.device,
                "dtype": then.dtype,
                "trust_remote_code": trust_remote_code,
            }
        )
        replayed = store.replay(record, run.load_model(options, get_method(record.method).load), progress)
    if as_json:
        say_json(as_json_text(replayed))
        return
    say(replayed.sentence)
    for line in (*replayed.differences[:20], *replayed.environment):
        say(f"  {line}")
    if len(replayed.differences) > 20:
        say(f"  and {len(replayed.differences) - 20} more; --json lists all")


@runs.command
def export(
    name: Id,
    file: Annotated[
        Path,
        Parameter(
            help="What to write: a .zip of everything, or the record as .json, .html, .ipynb, .png, .svg, .csv or "
            ".parquet."
        ),
    ],
    /,
) -> None:
    """Write a record to a file."""
    from patchclamp.evidence.store import Store

    with standard_output_kept_clean():
        if _is_place(name) and file.suffix.lower() != ".zip":
            written = find(name).save(file)
        else:
            written = Store().export(name, file)
    note(f"Written: {written}")


@runs.command
def delete(name: Annotated[str, Parameter(help="The record's id or its first digits.")], /) -> None:
    """Remove a record from the store, for good."""
    from patchclamp.evidence.store import Store

    store = Store()
    found = store.find(name).name
    store.delete(found)
    note(f"Deleted record {found}.")


def _is_place(name: str) -> bool:
    """Whether a record is meant by its place on disk: an id has neither a separator nor a suffix."""
    return name.endswith(".json") or "/" in name or "\\" in name


def find(name: str) -> Record:
    """The record with this id, or at this place (what `--out` wrote).

    Raises FileError if there is nothing to read there, otherwise what `Store.get` raises."""
    from patchclamp.evidence.record import Record
    from patchclamp.evidence.store import FILE, Store

    if not _is_place(name):
        return Store().get(name)
    path = Path(name).expanduser()
    path = path / FILE if path.is_dir() else path
    try:
        content = path.read_bytes()
    except OSError as error:
        raise FileError(f"cannot read the record {path}: {error.strerror}") from error
    try:
        return Record.from_json(content)
    except FileError as error:
        raise FileError(f"{path}: {error}") from error
