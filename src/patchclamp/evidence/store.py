"""Records on disk: one folder each, named by content; and running one again.

The store is `$PATCHCLAMP_RUNS`, or `runs` in the user's data folder. A record's folder holds `record.json`
and whatever else its method wrote there. Several processes may use a store at once: a folder appears whole,
by a rename, and a file is replaced whole.
"""

from __future__ import annotations

import difflib
import io
import json
import os
import shutil
import textwrap
import uuid
import zipfile
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from patchclamp.errors import FileError, InputError, StoreError
from patchclamp.evidence.record import SUFFIXES, Record, check_suffix, content_id, write_whole

if TYPE_CHECKING:
    from patchclamp.evidence.method import Progress
    from patchclamp.forward import Model

FOLDER_VARIABLE = "PATCHCLAMP_RUNS"
FILE = "record.json"
OLDEST = datetime.min.replace(tzinfo=UTC)
"""Where entries without a readable date are sorted."""
ABSENT = "(absent)"
MOST_SHOWN = 80
"""Characters of what was asked, in a list."""


Change = tuple[str, Any, Any]
"""A path inside JSON, the value then and the value now."""


class Summary(BaseModel):
    """One line of the list of records."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    id: str
    """The record's id, which is its folder's name."""
    method: str | None = None
    """Name of the method."""
    model: str | None = None
    """Short name of the model."""
    asked: str | None = None
    """The first text of what was asked, such as the prompt, shortened."""
    started: datetime | None = None
    """When it was run."""
    outcome: str | None = None
    """The verdict's outcome, if there is a verdict."""
    reason: str | None = None
    """The verdict's sentence."""
    problem: str | None = None
    """What is wrong with the entry; None if it can be read. A broken entry can still be deleted."""


class Replay(BaseModel):
    """A record run again, number by number."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    same: bool
    """Whether result and verdict are equal, with no tolerance."""
    max_abs_difference: float
    """The largest difference between two numbers; 0 if none differ (texts, nulls or lengths still may)."""
    differences: list[str]
    """Every value that differs: its path in the record, then and now."""
    environment: list[str]
    """What differs in model, versions, dtype, device, threads and platform."""
    original: str
    """Id of the record that was run again."""
    replayed: str
    """Id of the record the new run makes."""
    sentence: str
    """The finding in one sentence."""


class Store:
    """A folder of records. Any method raises StoreError when the disk cannot be read or written."""

    def __init__(self, folder: str | Path | None = None):
        """Use `folder`, or `$PATCHCLAMP_RUNS`, or the user's data folder; made when first written to."""
        self.folder = Path(folder).expanduser() if folder is not None else default_folder()

    def save(self, record: Record) -> Path:
        """Store `record` and return its folder. Storing the same content again renews time and provenance."""
        place = self.folder / record.id
        content = (record.to_json(indent=1) + "\n").encode()
        if place.is_dir():
            write_whole(place / FILE, content)
            return place
        beside = self.folder / f".{uuid.uuid4().hex}.part"
        try:
            write_whole(beside / FILE, content)
            beside.rename(place)
        except OSError as error:
            if not place.is_dir():
                raise StoreError(f"cannot store {place}: {error.strerror or error}") from error
            write_whole(place / FILE, content)  # another process stored the same content meanwhile
        finally:
            shutil.rmtree(beside, ignore_errors=True)
        return place

    def get(self, name: str) -> Record:
        """The record with this id, or the only one whose id begins so.

        Raises InputError, listing near ones, for none or several; StoreError if the entry is damaged;
        SpecError if its method is not installed.
        """
        place = self.find(name)
        text = _read_text(place / FILE)
        try:
            record = Record.from_json(text)
        except FileError as error:
            raise StoreError(f"record {place.name} is damaged: {error}") from error
        if record.id != place.name:
            raise StoreError(f"record {place.name} was changed on disk: its content has the id {record.id}")
        return record

    def find(self, name: str) -> Path:
        """The folder of the record with this id or unique prefix; raises InputError as `get`."""
        known = sorted(place.name for place in self._places())
        matches = [name] if name in known else [other for other in known if name and other.startswith(name)]
        if len(matches) == 1:
            return self.folder / matches[0]
        if matches:
            raise InputError(
                f"{name!r} is short for {len(matches)} records: {_some(matches)}; give more digits"
            )
        if not known:
            raise InputError(f"there is no record {name!r}: {self.folder} holds none")
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or [s.id for s in self.list()[:3]]
        raise InputError(f"there is no record {name!r} in {self.folder}; there is {_some(near)}")

    def export(self, name: str, path: str | Path) -> Path:
        """Write one record to `path`: a `.zip` of its folder, or a file as `Record.save`. Raises as those."""
        path = Path(path).expanduser()
        if check_suffix(path, (".zip", *SUFFIXES)) != ".zip":
            return self.get(name).save(path)
        place = self.find(name)
        buffer = io.BytesIO()
        try:
            with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
                for file in sorted(place.rglob("*")):
                    if file.is_file() and not file.name.endswith(".part"):
                        archive.write(file, file.relative_to(self.folder))
        except OSError as error:
            raise StoreError(f"cannot read {place}: {error.strerror or error}") from error
        write_whole(path, buffer.getvalue())
        return path

    def delete(self, name: str) -> None:
        """Remove the record with this id or unique prefix, and its files; raises InputError as `get`."""
        place = self.find(name)
        aside = self.folder / f".{uuid.uuid4().hex}.part"
        try:
            place.rename(aside)
            shutil.rmtree(aside)
        except OSError as error:
            raise StoreError(f"cannot delete {place}: {error.strerror or error}") from error

    def _places(self) -> Iterator[Path]:
        try:
            if self.folder.is_dir():
                yield from (p for p in self.folder.iterdir() if p.is_dir() and not p.name.startswith("."))
        except OSError as error:
            raise StoreError(f"cannot read the store {self.folder}: {error.strerror or error}") from error

    def list(self) -> Sequence[Summary]:
        """All entries, newest first; damaged ones, with their problem, last."""
        summaries = [summary for place in self._places() if (summary := _entry(place))]
        return sorted(summaries, key=lambda entry: entry.started or OLDEST, reverse=True)


def default_folder() -> Path:
    """`$PATCHCLAMP_RUNS` if set, else `runs` in the user's data folder."""
    if folder := os.environ.get(FOLDER_VARIABLE):
        return Path(folder).expanduser()
    from platformdirs import user_data_path

    return user_data_path("patchclamp", appauthor=False) / "runs"


def check_folder(option: str, folder: Path) -> None:
    """Raise FileError, naming the option, if nothing can be written into a folder. One that is missing will be made, so
    its nearest parent has to be writable."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir():
        raise FileError(f"{option}: {folder} is a file; a folder is needed there")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise FileError(f"{option}: {folder} is not writable; choose another place")


def replay(record: Record, model: Model, progress: Progress | None = None) -> Replay:
    """Run `record`'s method with its spec on `model` and compare result and verdict, with no tolerance.

    On the same machine and versions the numbers are the same; elsewhere `environment` says what may explain a
    difference. Raises what the method raises, SpecError if it is not installed.
    """
    from patchclamp.evidence.method import get_method  # it imports record.py

    again = get_method(record.method).run(model, record.spec, progress)
    then, now = record.to_dict(), again.to_dict()
    differing = list(changes(_outcome(then), _outcome(now)))
    gap = max((abs(a - b) for _, a, b in differing if _is_number(a) and _is_number(b)), default=0.0)
    environment = [_told(change) for change in changes(_setting(then), _setting(now))
                   if not (change[0].startswith("inputs.") and ABSENT in change[1:])]  # what a model in memory knew
    return Replay(
        same=not differing,
        max_abs_difference=gap,
        differences=[_told(change) for change in differing],
        environment=environment,
        original=record.id,
        replayed=again.id,
        sentence=_sentence(_leaves(_outcome(then)), len(differing), gap, environment),
    )


def _sentence(values: int, differing: int, gap: float, environment: list[str]) -> str:
    names = ", ".join(change.split(":")[0] for change in environment)
    where = f"; the environment differs in {names}" if names else ""
    if not differing:
        return f"All {values} values of the record came out the same{where}."
    return f"{differing} of {values} values differ, numbers by at most {gap:.3g}{where}."


def _outcome(data: dict[str, Any]) -> dict[str, Any]:
    return {key: data[key] for key in ("result", "verdict")}


def _setting(data: dict[str, Any]) -> dict[str, Any]:
    """The provenance without what differs from run to run."""
    return {key: value for key, value in data["provenance"].items() if key not in ("started", "duration")}


def changes(then: Any, now: Any, path: str = "") -> Iterator[Change]:
    """Every place where two JSON values differ."""
    if isinstance(then, dict) and isinstance(now, dict):
        for key in {**then, **now}:
            yield from changes(then.get(key, ABSENT), now.get(key, ABSENT), f"{path}.{key}" if path else key)
    elif isinstance(then, list) and isinstance(now, list):
        if len(then) != len(now):
            yield path, f"{len(then)} items", f"{len(now)} items"
        for index, (old, new) in enumerate(zip(then, now, strict=False)):
            yield from changes(old, new, f"{path}[{index}]")
    elif then != now or isinstance(then, bool) != isinstance(now, bool):
        yield path, then, now


def _told(change: Change) -> str:
    path, then, now = change
    return f"{path}: {_short(then)} then, {_short(now)} now"


def _short(value: Any) -> str:
    text = value if value is ABSENT else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _leaves(value: Any) -> int:
    if isinstance(value, dict | list):
        return sum(map(_leaves, value.values() if isinstance(value, dict) else value))
    return 1


def _some(ids: Sequence[str]) -> str:
    return ", ".join(ids[:5]) + (" …" if len(ids) > 5 else "")


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise StoreError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error


def _entry(place: Path) -> Summary | None:
    """The summary of one folder; None if it was deleted since the store was listed."""
    try:
        state = (place / FILE).stat()
        return _summary(place / FILE, state.st_mtime_ns, state.st_size)
    except OSError as error:
        return Summary(id=place.name, problem=f"{FILE}: {error.strerror}") if place.is_dir() else None


@lru_cache(maxsize=4096)
def _summary(path: Path, modified: int, size: int) -> Summary:
    """The summary of one `record.json`, read again only when its time or size has changed."""
    name = path.parent.name
    try:
        data = json.loads(path.read_bytes())
        if (found := content_id(data)) != name:
            return Summary(id=name, problem=f"{FILE} was changed: its content has the id {found}")
        verdict = data["verdict"] or {}
        return Summary(
            id=name,
            method=data["method"],
            model=data["provenance"]["name"],
            asked=_first_text(data["spec"]),
            started=data["provenance"]["started"],
            outcome=verdict.get("outcome"),
            reason=verdict.get("reason"),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return Summary(id=name, problem=f"{FILE} is damaged: {error!r}")


def _first_text(spec: dict[str, Any]) -> str | None:
    """The first text among a specification's values; of a file its name alone."""
    firsts = (value[0] if isinstance(value, list) and value else value for value in spec.values())
    text = next((value for value in firsts if isinstance(value, str) and value.strip()), None)
    return text and textwrap.shorten(Path(text).name if text.startswith("/") else text, MOST_SHOWN, placeholder=" …")
