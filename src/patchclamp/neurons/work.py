"""Working through the shards of an index: in this process, in several, or on a Ray cluster.

Whoever works on a shard holds the lock of its name, which the system gives back when its holder dies; a shard is
finished when its file is there. So a run may be killed and started again, and started twice on one folder: shards are
taken in turn by whoever is free, and the answer does not depend on who took which.

    python -m patchclamp.neurons.work FOLDER '{"ref": …}'     what one process of several runs
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from patchclamp.errors import FileError, InputError, PatchclampError, RunError, SpecError
from patchclamp.evidence.method import Progress, Silent
from patchclamp.forward import Model, Site, load
from patchclamp.neurons.sketch import Sketch
from patchclamp.neurons.windows import (
    INDEX,
    SKIP,
    Manifest,
    lock_path,
    read_manifest,
    read_tensors,
    shard_path,
    window_ids,
    write_shard,
)

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
        """SpecError if what is loaded is not the model of the index."""
        torch.set_num_threads(self.threads)
        model = load(self.ref, dtype=self.dtype, device=self.device, revision=self.revision,
                     attn_implementation=self.attention)
        if model.weights_hash != manifest.weights:
            raise SpecError(f"a worker that loads {self.ref} does not get the model of the index: it was changed in "
                            "memory. Index it with one worker, or save it to a folder and load that")
        return model


def work(model: Model, manifest: Manifest, folder: Path, progress: Progress) -> None:
    """Take shards until all are finished, by this process or another. Raises RunError for values that are no
    numbers, FileError for a damaged shard."""
    done = _finished(manifest, folder, lambda shard: index_shard(model, manifest, folder, shard))
    for _ in progress.track(done, "indexing shards", manifest.shards):
        pass


def unfinished(manifest: Manifest, folder: Path) -> list[int]:
    """Shards that have no file yet; none once the index is whole."""
    missing = [shard for shard in range(manifest.shards) if not shard_path(folder, shard).is_file()]
    # looked for last: shards go when the index has come
    return [] if (folder / INDEX).is_file() else missing


def _finished(manifest: Manifest, folder: Path, index: Callable[[int], None]) -> Iterator[int]:
    """Every shard's number when it is finished, whoever did it; those that nobody is at are done here."""
    told: set[int] = set()
    while True:
        left = unfinished(manifest, folder)
        news = sorted(set(range(manifest.shards)) - set(left) - told)
        told.update(news)
        yield from news
        if not left:
            return
        if not any(_claimed(manifest, folder, shard, index) for shard in left):
            time.sleep(POLL_SECONDS)


def _claimed(manifest: Manifest, folder: Path, shard: int, index: Callable[[int], None]) -> bool:
    """Do a shard unless someone else is at it."""
    try:
        with FileLock(lock_path(folder, f"{shard:05d}"), timeout=0):
            if shard in unfinished(manifest, folder):
                index(shard)
            return True
    except Timeout:
        return False


def index_shard(model: Model, manifest: Manifest, folder: Path, shard: int) -> None:
    """Run a shard's windows, batch by batch, and write the sketches of its layers."""
    windows = manifest.windows_of(shard)
    ids = window_ids(folder, windows)
    places = manifest.places_in(windows)
    sketches = {layer: Sketch(model.n_neurons(layer), manifest.top, places) for layer in manifest.layers}
    sites = [Site("neuron", layer) for layer in manifest.layers]
    for first in range(0, len(ids), manifest.batch):
        numbers = windows[first : first + manifest.batch]

        def take(site: Site, values_WTF: Tensor, numbers: range = numbers) -> None:
            sketches[site.layer or 0].add(values_WTF, numbers, SKIP)

        model.scan(ids[first : first + manifest.batch], sites, take)
    check_finite(sketches, model)
    write_shard(folder, manifest, shard, sketches)


def check_finite(sketches: dict[int, Sketch], model: Model) -> None:
    """RunError if a value was no number: no statistic of it would mean anything."""
    wrong = [layer for layer, sketch in sketches.items() if not sketch.finite]
    if wrong:
        raise RunError(f"neuron.{wrong[0]} of {model.name} has values that are no finite numbers; load the model in "
                       f"float32 (it runs in {model.dtype})")


# Several processes


def work_together(source: Source, manifest: Manifest, folder: Path, workers: int, progress: Progress) -> None:
    """`workers` processes on this machine, each with the model. Raises what the first that fails says."""
    command = [sys.executable, "-m", "patchclamp.neurons.work", str(folder), json.dumps(asdict(source))]
    with tempfile.TemporaryDirectory() as logs:
        errors = [Path(logs) / str(number) for number in range(workers)]
        running = []
        try:
            for path in errors:
                with path.open("w") as error:
                    running.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=error, stderr=error))
            done = _watched(manifest, folder, running, errors)
            for _ in progress.track(done, f"indexing shards, {workers} processes", manifest.shards):
                pass
        finally:
            for process in running:
                process.terminate()
            for process in running:
                process.wait()


def _watched(
    manifest: Manifest, folder: Path, running: list[subprocess.Popen], errors: list[Path]
) -> Iterator[int]:
    told: set[int] = set()
    while True:
        left = unfinished(manifest, folder)
        news = sorted(set(range(manifest.shards)) - set(left) - told)
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


def work_on_ray(source: Source, manifest: Manifest, folder: Path, workers: int, progress: Progress) -> None:
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
        pool = ActorPool([worker.remote(source, str(folder)) for _ in range(workers)])
        todo = unfinished(manifest, folder)
        done = pool.map_unordered(lambda actor, shard: actor.index.remote(shard), todo)
        for failure in progress.track(done, f"indexing shards, {workers} Ray workers", len(todo)):
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

    def __init__(self, source: Source, folder: str) -> None:
        self.source, self.folder = source, Path(folder)
        self.model: Model | None = None

    def index(self, shard: int) -> tuple[bool, str] | None:
        """None, or whether the input was at fault and what was wrong."""
        try:
            manifest = read_manifest(self.folder)
            model = self.model = self.model or self.source.load(manifest)
            with FileLock(lock_path(self.folder, f"{shard:05d}")):
                if shard in unfinished(manifest, self.folder):
                    index_shard(model, manifest, self.folder, shard)
        except PatchclampError as error:
            return isinstance(error, InputError), str(error)
        return None


def check_shards(manifest: Manifest, folder: Path) -> None:
    """FileError for a finished shard that is damaged or of another index, before any work is done."""
    for shard in range(manifest.shards):
        path = shard_path(folder, shard)
        try:
            if path.is_file() and read_tensors(path, "none")[1].get("index") != manifest.identity:
                raise FileError(f"{path} belongs to another index; delete it and run the same command again")
        except FileError:
            if not (folder / INDEX).is_file():  # else another process has just merged and removed it
                raise


def main(arguments: list[str]) -> int:
    """One process of several: the folder, and a `Source` as JSON."""
    folder = Path(arguments[0])
    source: dict[str, Any] = json.loads(arguments[1])
    try:
        manifest = read_manifest(folder)
        work(Source(**source).load(manifest), manifest, folder, Silent())
    except PatchclampError as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return WRONG_INPUT if isinstance(error, InputError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
