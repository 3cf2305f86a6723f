"""Work in a queue: one piece at a time, clients in turn, each piece kept on disk so that a restart knows of it."""

from __future__ import annotations

import threading
import time
import traceback
import uuid
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from patchclamp.errors import InputError, PatchclampError, RunError
from patchclamp.evidence.record import write_whole

T = TypeVar("T")

State = Literal["waiting", "running", "done", "failed", "cancelled", "interrupted"]
ENDED: tuple[State, ...] = ("done", "failed", "cancelled", "interrupted")
KEPT = 200
"""Ended jobs that are remembered."""
WAITING_EACH, WAITING_ALL = 16, 64
"""Jobs that one client, and all together, may have waiting."""
CLIENTS = 1000
"""Clients that are remembered."""
PER_MINUTE = 60
"""Jobs that one client may submit in a minute."""


class BusyError(InputError):
    """The client has to wait before it submits another job."""


class Cancelled(BaseException):
    """Ends the work of a cancelled job. Not an Exception, so that no method mistakes it for a failure of its own."""


class Advance(BaseModel):
    """How far a loop is."""

    model_config = ConfigDict(frozen=True)

    description: str
    done: int = 0
    total: int | None = None
    left: float | None = None
    """Seconds, if the rest goes as what is done."""


class Job(BaseModel):
    """A piece of work."""

    id: str
    kind: str
    """What does it, e.g. `ask`."""
    title: str
    payload: dict[str, Any]
    """What it works on, as JSON values."""
    client: str
    state: State = "waiting"
    advance: Advance | None = None
    record: str | None = None
    """Id of the record it made."""
    error: str | None = None
    created: AwareDatetime
    started: AwareDatetime | None = None
    ended: AwareDatetime | None = None

    @property
    def is_over(self) -> bool:
        return self.state in ENDED


class JobProgress:
    """Tells a job how far its work is, and its work that the job was cancelled."""

    def __init__(self, job: Job, cancelled: threading.Event) -> None:
        self.job, self.cancelled, self.depth = job, cancelled, 0

    def check(self) -> None:
        """Raise Cancelled if the job was."""
        if self.cancelled.is_set():
            raise Cancelled

    def say(self, description: str) -> None:
        """What is being done, where there is nothing to count."""
        self.check()
        self.job.advance = Advance(description=description)

    def track(self, items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
        """Yield `items`; of nested loops the outermost is shown."""
        if total is None:
            with suppress(TypeError):
                total = len(items)  # type: ignore[arg-type]
        outermost, began = self.depth == 0, time.monotonic()
        self.depth += 1
        try:
            for done, item in enumerate(items):
                self.check()
                if outermost:
                    left = (time.monotonic() - began) / done * (total - done) if done and total else None
                    self.job.advance = Advance(description=description, done=done, total=total, left=left)
                yield item
        finally:
            self.depth -= 1


Work = Callable[[Job, JobProgress], str | None]
"""Does a job and returns the id of the record it made."""


class Queue:
    """The jobs, and the thread that does them."""

    def __init__(self, folder: Path, work: Work) -> None:
        """Keep jobs in `folder`; those that were under way when the last server ended become interrupted."""
        self.folder, self.work = folder, work
        self._changed = threading.Condition()
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._waiting: dict[str, deque[str]] = {}
        self._taken: dict[str, int] = {}
        """When a job of each client was last taken, as a count."""
        self._cancelled: dict[str, threading.Event] = {}
        self._submitted: dict[str, deque[float]] = {}
        for job in sorted(self._read(), key=lambda job: job.created):
            self._jobs[job.id] = job
            if not job.is_over:
                self._move(job, "interrupted")
        threading.Thread(target=self._serve, name="jobs", daemon=True).start()

    def submit(self, kind: str, title: str, payload: dict[str, Any], client: str) -> Job:
        """Queue work; the same work that waits or runs already is that job. BusyError if the client has too much."""
        with self._changed:
            if (same := self.under_way(kind, payload)) is not None:
                return same
            self._admit(client)
            job = Job(id=uuid.uuid4().hex[:12], kind=kind, title=title, payload=payload, client=client,
                      created=datetime.now(UTC))
            self._write(job)
            self._jobs[job.id] = job
            self._cancelled[job.id] = threading.Event()
            self._waiting.setdefault(client, deque()).append(job.id)
            self._forget()
            self._changed.notify_all()
        return job

    def get(self, name: str) -> Job:
        """The job of this id; InputError if there is none."""
        if (job := self._jobs.get(name)) is None:
            raise InputError(f"there is no job {name!r}")
        return job

    def under_way(self, kind: str, payload: dict[str, Any]) -> Job | None:
        """The job that does this work, waiting or running and not being cancelled."""
        return next((job for job in self.list() if (job.kind, job.payload) == (kind, payload)
                     and not (job.is_over or self.is_being_cancelled(job))), None)

    def list(self) -> list[Job]:
        """All jobs, newest first."""
        return list(reversed(list(self._jobs.values())))

    def cancel(self, name: str) -> Job:
        """End a job: one that waits at once, one that runs where its work next says how far it is."""
        job = self.get(name)
        with self._changed:
            if job.is_over:
                return job
            self._cancelled[job.id].set()
            if job.state == "waiting":
                self._waiting[job.client].remove(job.id)
                self._move(job, "cancelled")
        return job

    def resume(self, name: str, client: str) -> Job:
        """Submit an ended job's work again: what its method kept on disk it goes on from."""
        old = self.get(name)
        if not old.is_over:
            return old
        new = self.submit(old.kind, old.title, old.payload, client)
        with self._changed:
            self._drop(old.id)
        return new

    def is_being_cancelled(self, job: Job) -> bool:
        """Whether a running job was asked to end."""
        return not job.is_over and self._cancelled[job.id].is_set()

    def _admit(self, client: str) -> None:
        now, mine = time.monotonic(), self._submitted.setdefault(client, deque())
        while mine and now - mine[0] > 60:
            mine.popleft()
        if len(mine) >= PER_MINUTE:
            raise BusyError(f"{PER_MINUTE} jobs in one minute are the most; wait {60 - (now - mine[0]):.0f} seconds")
        if len(self._waiting.get(client, ())) >= WAITING_EACH:
            raise BusyError(f"{WAITING_EACH} of your jobs are waiting; wait for one of them, or cancel it")
        if sum(map(len, self._waiting.values())) >= WAITING_ALL:
            raise BusyError(f"{WAITING_ALL} jobs are waiting, which is all that there is room for; try again later")
        mine.append(now)

    def _next(self) -> Job:
        """The first job of the client who has waited longest since one of theirs was taken."""
        with self._changed:
            while not any(self._waiting.values()):
                self._changed.wait()
            lines = [name for name, line in self._waiting.items() if line]
            client = min(lines, key=lambda name: self._taken.get(name, 0))
            self._taken[client] = max(self._taken.values(), default=0) + 1
            for known in (self._taken, self._submitted, self._waiting):
                self._prune(known)
            job = self._jobs[self._waiting[client].popleft()]
            self._move(job, "running")
            return job

    def _prune(self, known: dict[str, Any]) -> None:
        """Forget those of too many clients that are known longest, but for those that wait."""
        for client in list(known)[: max(0, len(known) - CLIENTS)]:
            if not self._waiting.get(client):
                del known[client]

    def _serve(self) -> None:
        while True:
            job = self._next()
            progress = JobProgress(job, self._cancelled[job.id])
            try:
                progress.check()
                job.record = self.work(job, progress)
                self._move(job, "done")
            except Cancelled:
                self._move(job, "cancelled")
            except PatchclampError as error:
                self._fail(job, str(error))
            except MemoryError as error:
                self._fail(job, f"memory is short: {error or 'an array did not fit'}; ask for less, or unload a model")
            except BaseException as error:  # a library that wants to exit ends the job, not the queue
                traceback.print_exception(error)
                self._fail(job, _told(error))

    def _fail(self, job: Job, error: str) -> None:
        job.error = error.encode("utf-8", "replace").decode()  # it may quote half a character, which is no JSON
        self._move(job, "failed")

    def _move(self, job: Job, state: State) -> None:
        """Put a job into a state, and that on disk."""
        now = datetime.now(UTC)
        if state == "running":
            job.started = now
        elif state in ENDED:
            job.ended, job.advance = now, None
        job.state = state
        self._write(job)

    def _write(self, job: Job) -> None:
        with suppress(RunError):  # a full disk ends no job; a restart then does not know of it
            write_whole(self.folder / f"{job.id}.json", job.model_dump_json(indent=1).encode())

    def _forget(self) -> None:
        ended = [job.id for job in self._jobs.values() if job.is_over]
        for name in ended[: max(0, len(ended) - KEPT)]:
            self._drop(name)

    def _drop(self, name: str) -> None:
        self._jobs.pop(name, None)
        self._cancelled.pop(name, None)
        with suppress(OSError):
            (self.folder / f"{name}.json").unlink()

    def _read(self) -> Iterator[Job]:
        if not self.folder.is_dir():
            return
        for path in self.folder.glob("*.json"):
            with suppress(OSError, ValidationError):  # half of a file that a crash left is no job
                yield Job.model_validate_json(path.read_bytes())


def _told(error: BaseException) -> str:
    """An error that was not foreseen, in one line."""
    message = " ".join(str(error).split())[:500]
    if "can't allocate memory" in message or "not enough memory" in message:
        return f"memory is short: {message}; ask for less, or unload a model"
    return f"{type(error).__name__}: {message}"
