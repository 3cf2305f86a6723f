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
from patchclamp.tasks.files import DEFAULT_MODEL, hash_of_file, hash_of_folder
from patchclamp.web.jobs import Job, JobProgress, Queue
from patchclamp.web.models import Models

if TYPE_CHECKING:
    from patchclamp.web.question import Question

REPLAY = "replay.json"
"""In a record's folder, what came of it when it was last run again."""
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
                    and (model is None or model.weights_hash == then.weights_hash) and _is_there(question)):
                return name
        return None

    def ask(self, question: Question, client: str) -> Job:
        """Queue a question."""
        payload = {"method": question.method.name, "spec": question.spec.model_dump(mode="json", by_alias=True),
                   "model": question.model, "dtype": question.dtype}
        return self.queue.submit("ask", question.method.name, payload, client)

    def only_stream(self, client: str) -> threading.Event:
        """What tells a new stream of a client to stop; their older one is told at once, since nobody reads it now."""
        if (older := self._streams.get(client)) is not None:
            older.set()
        self._streams[client] = threading.Event()
        return self._streams[client]

    # Work, each by its payload

    def _work(self, job: Job, progress: JobProgress) -> str | None:
        progress.say("waiting for torch")
        self.wait()
        return self.works[job.kind](job.payload, progress)

    def _ask(self, payload: dict[str, Any], progress: JobProgress) -> str:
        method = get_method(payload["method"])
        model = self.models.get(payload["model"], payload["dtype"], method.load, progress.say)
        progress.say(method.name)
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


def _answers(store: Store, question: str) -> list[str]:
    """Ids of the records whose question this is, newest first."""
    return [entry.id for entry in store.list() if not entry.problem
            and _question_of(store.folder / entry.id / FILE, entry.started) == question]


@lru_cache(maxsize=4096)
def _question_of(path: Path, started: object) -> str | None:
    """The question a stored record answers; a record stored again has another start."""
    from patchclamp.web.question import question_id

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


def _is_there(question: Question) -> bool:
    """Whether every file the question names still exists, so that what a run wrote can be used."""
    from patchclamp.web.question import files_named

    names = map(Path, files_named(question.method, question.spec))
    return all(path.exists() for path in names if path.is_absolute())


def safe_name(name: str) -> str:
    """A file's name without folders; FileError if nothing is left of it, or it is hidden."""
    last = Path(name.replace("\\", "/")).name
    if not last or last.startswith(".") or "\0" in last or len(last) > 200:
        raise FileError(f"{name!r} cannot be a file's name here; give it a plain one, such as prompts.txt")
    return last
