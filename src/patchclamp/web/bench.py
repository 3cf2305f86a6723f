"""What the workbench holds: the store of records, a folder of files, models in memory, and the queue of jobs."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from patchclamp.errors import FileError, PatchclampError
from patchclamp.evidence.method import get_method, load_language_model, methods
from patchclamp.evidence.provenance import version_of
from patchclamp.evidence.record import Record, write_whole
from patchclamp.evidence.store import FILE, Store, replay
from patchclamp.tasks.examples import data_folder
from patchclamp.tasks.files import ATTACHED, DEFAULT_MODEL, hash_of_file, hash_of_folder, opening_only
from patchclamp.web.jobs import BusyError, Job, JobProgress, Queue
from patchclamp.web.models import Models
from patchclamp.web.question import check_inside, files_named, question_id

if TYPE_CHECKING:
    from patchclamp.evidence.provenance import Provenance
    from patchclamp.forward import Model
    from patchclamp.web.question import Question

REPLAY = "replay.json"
"""In a record's folder, what came of it when it was last run again."""
MOST_STREAMS = 3
"""Answers that are streamed at once, one a client."""
JOBS, FILES, TOUR = ".jobs", ".files", "tour"
"""Folders inside the store, next to the records; the tour's is among the files."""


class Workbench:
    """One server's state. `start` begins to import what takes long; until `is_ready` only the store can be read."""

    def __init__(self, store: Store, files: Path | None = None, models: tuple[str, ...] = (DEFAULT_MODEL,)) -> None:
        self.store = store
        self.files = (files or store.folder / FILES).absolute()
        self.files.mkdir(parents=True, exist_ok=True)
        self.offered = models
        """Models to choose from, beside the embedded ones; the first is the default."""
        self.models = Models()
        self.works: dict[str, Callable[[dict[str, Any], JobProgress], str | None]] = {
            "ask": self._ask, "load": self._load, "replay": self._replay, "stop": self._stop}
        self.queue = Queue(store.folder / JOBS, self._work)
        self._ready = threading.Event()
        self._streams: dict[str, threading.Event] = {}
        self.stage = "starting"
        self.problem: str | None = None

    @property
    def folders(self) -> tuple[Path, ...]:
        """Where files may lie: the first is current."""
        return (self.files, self.store.folder)

    def start(self) -> None:
        """Import the methods and load the default model in the background."""
        threading.Thread(target=self._start, name="start", daemon=True).start()

    def _start(self) -> None:
        try:
            self.stage = "importing torch and transformers"
            methods()
            self._ready.set()
            self.stage = f"loading {self.offered[0]}"
            self.models.get(self.offered[0], "float32", load_language_model, lambda _: None)
        except Exception as error:
            self.problem = f"{type(error).__name__}: {error}"
        self.stage = "ready"
        self._ready.set()

    @property
    def is_ready(self) -> bool:
        """Whether the methods are imported."""
        return self._ready.is_set()

    def wait(self, seconds: float = 120.0) -> None:
        """Wait until the methods are imported."""
        self._ready.wait(seconds)

    def check_opened(self, path: Path) -> None:
        """Raise FileError for a data file that a question may not open, such as one that another file names."""
        if not path.resolve().is_relative_to(data_folder().resolve()):
            check_inside(str(path), self.folders)

    # Questions and answers

    def answer(self, question: Question) -> str | None:
        """The id of a stored record that answers the question: of the same fields, model and version, whose files are
        still what they were."""
        for name in _answers(self.store, question.id):
            try:
                record = self.store.get(name)
            except PatchclampError:  # damaged, or its method is gone
                continue
            model = self.models.loaded(question.model, question.dtype)
            then = record.provenance
            if (then.versions.get("patchclamp") == version_of("patchclamp") and _is_unchanged(then.inputs)
                    and _is_same_model(model, question.model, then) and _is_there(question)):
                return name
        return None

    def ask(self, question: Question, client: str) -> Job:
        """Queue a question."""
        return self.queue.submit("ask", question.method.name, payload_of(question), client)

    def under_way(self, question: Question) -> Job | None:
        """The job that will answer the question, if it was asked already."""
        return self.queue.under_way("ask", payload_of(question))

    def only_stream(self, client: str) -> threading.Event:
        """What tells a new stream of a client to stop; their older one is told at once. BusyError if others have as
        many as there may be."""
        if (older := self._streams.pop(client, None)) is not None:
            older.set()
        if len(self._streams) >= MOST_STREAMS:
            raise BusyError(f"{MOST_STREAMS} answers are being written for others; try again in a moment")
        self._streams[client] = threading.Event()
        return self._streams[client]

    def end_stream(self, client: str, stop: threading.Event) -> None:
        """Make room for another stream."""
        if self._streams.get(client) is stop:
            del self._streams[client]

    # Work, each by its payload

    def _work(self, job: Job, progress: JobProgress) -> str | None:
        progress.say("waiting for torch")
        self.wait()
        from patchclamp.forward.turns import interrupted_by

        with interrupted_by(progress.check):
            return self.works[job.kind](job.payload, progress)

    def _ask(self, payload: dict[str, Any], progress: JobProgress) -> str:
        method = get_method(payload["method"])
        model = self.models.get(payload["model"], payload["dtype"], method.load, progress.say)
        progress.say(method.name)
        with opening_only(self.check_opened):
            record = method.run(model, method.make_spec(**payload["spec"]), progress)
        self.store.save(record)
        return record.id

    def _load(self, payload: dict[str, Any], progress: JobProgress) -> None:
        self.models.get(payload["ref"], payload["dtype"], load_language_model, progress.say)

    def _replay(self, payload: dict[str, Any], progress: JobProgress) -> str:
        record = self.store.get(payload["record"])
        then = record.provenance
        model = self.models.get(then.model, then.dtype, get_method(record.method).load, progress.say)
        result = replay(record, model, progress)
        write_whole(self.store.folder / record.id / REPLAY, result.model_dump_json().encode())
        return record.id

    def _stop(self, payload: dict[str, Any], progress: JobProgress) -> str | None:
        """One stop of the tour."""
        from patchclamp.tour import STOPS, take

        number = payload["number"]
        take(self.files / TOUR, progress, progress.say, only=[number])
        path = self.files / TOUR / "records" / f"{number:02}-{STOPS[number - 1].method}.json"
        record = Record.from_json(path.read_bytes())
        self.store.save(record)
        return record.id


def payload_of(question: Question) -> dict[str, Any]:
    """What a job needs to answer a question."""
    return {"method": question.method.name, "spec": question.spec.model_dump(mode="json", by_alias=True),
            "model": question.model, "dtype": question.dtype}


def _answers(store: Store, question: str) -> list[str]:
    """Ids of the records whose question this is, newest first."""
    return [entry.id for entry in store.list() if not entry.problem
            and _question_of(store.folder / entry.id / FILE, entry.started) == question]


@lru_cache(maxsize=4096)
def _question_of(path: Path, started: object) -> str | None:
    """The question a stored record answers; a record stored again has another start."""
    try:
        data = json.loads(path.read_bytes())
        where = data["provenance"]
        return question_id(data["method"], data["spec"], where["model"], where["dtype"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _is_unchanged(inputs: Mapping[str, str]) -> bool:
    """Whether the files a run read are what they were; those that come with patchclamp are, with its version."""
    for name, then in inputs.items():
        path = Path(name)
        if not path.is_absolute():
            continue
        try:
            now = (hash_of_folder if path.is_dir() else hash_of_file)(path)
        except OSError:
            return False
        if now != then:
            return False
    return True


def _is_same_model(loaded: Model | None, ref: str, then: Provenance) -> bool:
    """Whether a record is of the model as it is: the one in memory, or if it is not loaded, one in folders whose files
    were not written since."""
    if loaded is not None:
        return loaded.weights_hash == then.weights_hash
    places = [place for place in map(Path, ref.split(ATTACHED)) if place.is_absolute()]
    files = [file for place in places for file in (place.rglob("*") if place.is_dir() else (place,))]
    try:
        return all(file.stat().st_ctime < then.started.timestamp() for file in files)
    except OSError:
        return False


def _is_there(question: Question) -> bool:
    """Whether every file the question names still exists, so that what a run wrote can be used."""
    names = map(Path, files_named(question.method, question.spec))
    return all(path.exists() for path in names if path.is_absolute())


def safe_name(name: str) -> str:
    """A file's name without folders; FileError if nothing is left of it, or it is hidden."""
    last = Path(name.replace("\\", "/")).name
    marks = ("example:", "hf:", "@", "-")  # which mean something else where a file is named
    if not last or last.startswith((".", *marks)) or set(last) & set(",\0\n") or len(last) > 200:
        raise FileError(f"{name!r} cannot be a file's name here; give it a plain one, such as prompts.txt")
    return last
