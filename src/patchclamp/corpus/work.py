"""Working through the shards of a folder: in this process, in several, or on a Ray cluster.

Whoever works on a shard holds the lock of its name, which the system gives back when its holder dies; a shard is
finished when its file is there. So a run may be killed and started again, and started twice on one folder: shards are
taken in turn by whoever is free, and the answer does not depend on who took which.

    python -m patchclamp.corpus.work MODULE:JOB FOLDER '{"ref": …}'     what one process of several runs
"""

import json
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from patchclamp.corpus.windows import Manifest, lock_path, read_manifest, read_shard, shard_path, write_shard
from patchclamp.errors import FileError, InputError, PatchclampError, RunError, SpecError
from patchclamp.evidence.method import Progress, Silent
from patchclamp.forward import Model, load

POLL_SECONDS = 0.2
WRONG_INPUT = 2


@dataclass(frozen=True)
class Source:
    """How another process loads the same model."""

    ref: str
    dtype: str
    device: str
    revision: str | None
    attention: str | None
    threads: int

    @classmethod
    def of(cls, model: Model, workers: int) -> "Source":
        """The threads are shared out among the workers."""
        is_hub = model.revision is not None and "/" in model.ref
        return cls(model.ref, str(model.dtype).removeprefix("torch."), str(model.device),
                   model.revision if is_hub else None, getattr(model.hf.config, "_attn_implementation", None),
                   max(1, torch.get_num_threads() // workers))

    def load(self, manifest: Manifest) -> Model:
        """SpecError if what is loaded is not the model of the plan."""
        torch.set_num_threads(self.threads)
        model = load(self.ref, dtype=self.dtype, device=self.device, revision=self.revision,
                     attn_implementation=self.attention)
        if model.weights_hash != manifest.weights:
            raise SpecError(f"a worker that loads {self.ref} does not get the model of the plan: it was changed in "
                            "memory. Use one worker, or save it to a folder and load that")
        return model


class Job(ABC):
    """What is to be made of every shard of a folder. A worker opens it by its class and the folder."""

    verb: ClassVar[str]
    """What is done to a shard, for the progress display: "indexing"."""

    kind: ClassVar[type[Manifest]]
    """What its folder's manifest is."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder, self.manifest = folder, manifest

    @classmethod
    def open(cls, folder: Path) -> Self:
        """The job that is planned in `folder`. FileError if there is none."""
        return cls(folder, read_manifest(folder, cls.kind))

    @abstractmethod
    def make(self, model: Model, shard: int) -> dict[str, Tensor]:
        """What the shard's file will hold. Raises RunError for values that are no numbers."""

    @property
    def whole(self) -> bool:
        """Whether what was made of the shards has been put together, so that they may be gone."""
        return False

    def unfinished(self) -> list[int]:
        """Shards that have no file yet."""
        missing = [n for n in range(self.manifest.shards) if not shard_path(self.folder, n).is_file()]
        # looked for last: shards go when the whole has come
        return [] if self.whole else missing

    def do(self, model: Model, shard: int) -> None:
        """Make a shard's file."""
        write_shard(self.folder, self.manifest, shard, self.make(model, shard))

    def check(self) -> None:
        """FileError for a finished shard that is damaged or of another folder, before any work is done."""
        for shard in range(self.manifest.shards):
            try:
                if shard_path(self.folder, shard).is_file():
                    read_shard(self.folder, self.manifest, shard, "none")
            except FileError:
                if not self.whole:  # else another process has just put it together and removed it
                    raise

    def finish(self, model: Model, progress: Progress, workers: int = 1, ray: bool = False) -> None:
        """Have every shard done: here, by `workers` processes, or by Ray workers. Raises as `make` does."""
        if self.whole:
            return
        self.check()
        if ray:
            _work_on_ray(self, Source.of(model, workers), workers, progress)
        elif workers > 1:
            _work_together(self, Source.of(model, workers), workers, progress)
        # alone, or what is left: shards that another process is at
        work(model, self, progress)


def work(model: Model, job: Job, progress: Progress) -> None:
    """Take shards until all are finished, by this process or another. Raises as `Job.make`."""
    for _ in progress.track(_finished(job, model), f"{job.verb} shards", job.manifest.shards):
        pass


def _finished(job: Job, model: Model) -> Iterator[int]:
    """Every shard's number when it is finished, whoever did it; those that nobody is at are done here."""
    told: set[int] = set()
    while True:
        left = job.unfinished()
        news = sorted(set(range(job.manifest.shards)) - set(left) - told)
        told.update(news)
        yield from news
        if not left:
            return
        if not any(_claimed(job, model, shard) for shard in left):
            time.sleep(POLL_SECONDS)


def _claimed(job: Job, model: Model, shard: int) -> bool:
    """Do a shard unless someone else is at it."""
    try:
        with FileLock(lock_path(job.folder, f"{shard:05d}"), timeout=0):
            if shard in job.unfinished():
                job.do(model, shard)
            return True
    except Timeout:
        return False


# Several processes


def _work_together(job: Job, source: Source, workers: int, progress: Progress) -> None:
    """`workers` processes on this machine, each with the model. Raises what the first that fails says."""
    command = [sys.executable, "-m", "patchclamp.corpus.work", _name(job), str(job.folder), json.dumps(asdict(source))]
    with tempfile.TemporaryDirectory() as logs:
        errors = [Path(logs) / str(number) for number in range(workers)]
        running = []
        try:
            for path in errors:
                with path.open("w") as error:
                    running.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=error, stderr=error))
            done = _watched(job, running, errors)
            for _ in progress.track(done, f"{job.verb} shards, {workers} processes", job.manifest.shards):
                pass
        finally:
            for process in running:
                process.terminate()
            for process in running:
                process.wait()


def _name(job: Job) -> str:
    return f"{type(job).__module__}:{type(job).__name__}"


def _open(name: str, folder: Path) -> Job:
    module, _, kind = name.partition(":")
    job: Job = getattr(import_module(module), kind).open(folder)
    return job


def _watched(job: Job, running: list[subprocess.Popen], errors: list[Path]) -> Iterator[int]:
    told: set[int] = set()
    while True:
        left = job.unfinished()
        news = sorted(set(range(job.manifest.shards)) - set(left) - told)
        told.update(news)
        yield from news
        if not left or all(process.poll() == 0 for process in running):
            return  # what a worker left because its file went again is for the caller
        for process, path in zip(running, errors, strict=True):
            if process.poll():
                said = path.read_text(errors="replace").strip().splitlines()[-1:]
                kind = InputError if process.returncode == WRONG_INPUT else RunError
                raise kind(f"a worker stopped (exit code {process.returncode}): {''.join(said) or 'it said nothing'}. "
                           "Finished shards are kept; the same command goes on")
        time.sleep(POLL_SECONDS)


# A Ray cluster


def _work_on_ray(job: Job, source: Source, workers: int, progress: Progress) -> None:
    """`workers` Ray actors, each with the model, take shards; the folder must be one that every node sees. Joins the
    cluster that RAY_ADDRESS names, else starts one on this machine. Raises SpecError if Ray is not installed."""
    try:
        import ray
        from ray.util import ActorPool
    except ImportError as error:
        raise SpecError("Ray is not installed: pip install 'patchclamp[cluster]', or use --workers without --ray for "
                        "processes on this machine") from error
    started = not ray.is_initialized()
    if started:
        ray.init(log_to_driver=False, configure_logging=False)
    try:
        worker = ray.remote(_RayWorker)
        pool = ActorPool([worker.remote(source, _name(job), str(job.folder)) for _ in range(workers)])
        todo = job.unfinished()
        done = pool.map_unordered(lambda actor, shard: actor.do.remote(shard), todo)
        for failure in progress.track(done, f"{job.verb} shards, {workers} Ray workers", len(todo)):
            if failure is not None:
                kind = InputError if failure[0] else RunError
                raise kind(f"a Ray worker stopped: {failure[1]}. Finished shards are kept; the same command goes on")
    except ray.exceptions.RayError as error:
        said = str(error).strip().splitlines()[-1:]
        raise RunError(f"Ray stopped: {''.join(said)}. Finished shards are kept; the same command goes on") from error
    finally:
        if started:
            ray.shutdown()


class _RayWorker:
    """What runs in a Ray actor: the model loaded once, then shard after shard."""

    def __init__(self, source: Source, name: str, folder: str) -> None:
        self.source, self.name, self.folder = source, name, Path(folder)
        self.model: Model | None = None

    def do(self, shard: int) -> tuple[bool, str] | None:
        """None, or whether the input was at fault and what was wrong."""
        try:
            job = _open(self.name, self.folder)
            model = self.model = self.model or self.source.load(job.manifest)
            with FileLock(lock_path(self.folder, f"{shard:05d}")):
                if shard in job.unfinished():
                    job.do(model, shard)
        except PatchclampError as error:
            return isinstance(error, InputError), str(error)
        return None


def main(arguments: list[str]) -> int:
    """One process of several: the job's class, its folder, and a `Source` as JSON."""
    name, folder = arguments[0], Path(arguments[1])
    source: dict[str, Any] = json.loads(arguments[2])
    try:
        job = _open(name, folder)
        work(Source(**source).load(job.manifest), job, Silent())
    except PatchclampError as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return WRONG_INPUT if isinstance(error, InputError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
