"""The folder of an index before it is whole: the corpus cut into windows, the plan of the work, finished shards.

    manifest.json               what was asked of which model, and what the corpus became; written last of the plan
    windows/00000.safetensors   token ids [windows, length], a thousand windows a file: texts are shown from them
    shards/00000.safetensors    sketches of a shard's windows, layer by layer; gone once the index is whole
    index.parquet               one row a neuron; there once the index is whole
    .locks/                     who is at work on what

Every file is written beside and renamed, so that half a file is never taken for one.
"""

import hashlib
import os
import random
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from patchclamp.errors import FileError, SpecError, StoreError
from patchclamp.evidence.record import write_whole
from patchclamp.forward import Model
from patchclamp.forward.pack import Ids, need_sequences, packed
from patchclamp.neurons.sketch import MOST_PLACES, Sketch

MANIFEST, INDEX = "manifest.json", "index.parquet"
WINDOWS_A_FILE = 1024
MOST_SHARDS, A_SHARD, SHARE = 64, 256, 8
"""A shard is so many windows; more where that made too many shards, which would fill the disk; in a small corpus an
eighth of it, or one batch, so that no shard has to hold all sampled values in memory."""
SKIP = 1
"""Tokens left out at the beginning of a window: the first one's activations are like no other's."""


class Settings(BaseModel):
    """What has to be equal for two runs to work on the same index."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    weights: str
    """sha256, as in a record's provenance."""
    dtype: str
    corpus: str
    tokens: int
    length: int
    layers: tuple[int, ...]
    top: int
    places: int
    batch: int
    """Windows in one pass."""
    shard: int | None
    seed: int


class Manifest(Settings):
    """The plan of an index: its settings and what the corpus became under them."""

    windows: int
    """How many the corpus filled, `tokens / length` at most."""
    digest: str
    """sha256 of the windows' token ids."""
    a_shard: int
    """Windows in a shard."""
    sample: tuple[int, ...]
    """Places (window · length + position) whose values are kept, drawn from all but the first of each window."""

    @property
    def shards(self) -> int:
        return -(-self.windows // self.a_shard)

    @property
    def identity(self) -> str:
        """What a shard has to bear to belong here."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()

    def windows_of(self, shard: int) -> range:
        """The numbers of a shard's windows."""
        return range(shard * self.a_shard, min((shard + 1) * self.a_shard, self.windows))

    def places_in(self, windows: range) -> list[int]:
        """The sampled places in some windows."""
        return [p for p in self.sample if windows.start <= p // self.length < windows.stop]


def plan(model: Model, settings: Settings, folder: Path) -> Manifest:
    """The manifest in `folder`, made now if there is none.

    Raises SpecError if the folder's index was asked for otherwise, FileError for a corpus smaller than one window, or
    one that has changed since.
    """
    from filelock import FileLock

    with FileLock(lock_path(folder, "plan")):
        if not (folder / MANIFEST).is_file():
            return _make_plan(model, settings, folder)
        found = read_manifest(folder)
        _refuse_other(found, settings, folder)
        digest = hashlib.sha256()
        count = sum(len(_digested(chunk, digest)) for chunk in _chunks(model, settings))
        if (count, digest.hexdigest()) != (found.windows, found.digest):
            raise FileError(f"{settings.corpus} has changed since the index in {folder} was planned ({found.windows} "
                            f"windows then, {count} now, or other words); index it into another folder")
        return found


def lock_path(folder: Path, name: str) -> Path:
    """The file that stands for a claim; its folder is made."""
    locks = folder / ".locks"
    try:
        locks.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(f"{folder} cannot be made: {error.strerror}; choose another folder") from error
    return locks / name


def read_manifest(folder: Path) -> Manifest:
    """FileError if `folder` is no index."""
    path = folder / MANIFEST
    if not path.is_file():
        raise FileError(f"{folder} holds no {MANIFEST}: it is not an index; `patchclamp neurons index` makes one")
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        raise FileError(f"{path} is damaged ({'.'.join(map(str, first['loc']))}: {first['msg']}); delete the folder "
                        "and make the index again") from error


def _refuse_other(found: Manifest, settings: Settings, folder: Path) -> None:
    theirs, ours = found.model_dump(), settings.model_dump()
    differing = [f"{key} {_short(theirs[key])}, not {_short(ours[key])}" for key in ours if theirs[key] != ours[key]]
    if differing:
        raise SpecError(f"{folder} holds an index made with other settings: {'; '.join(differing)}. Ask for the same "
                        "ones, or save to another folder")


def _short(value: Any) -> str:
    text = repr(list(value) if isinstance(value, tuple) else value)
    return text if len(text) <= 40 else f"{text[:24]}…{text[-12:]}"


def _chunks(model: Model, settings: Settings) -> Iterator[Sequence[Ids]]:
    """The corpus's windows, a file's worth at a time."""
    windows = islice(packed(model, settings.corpus, settings.length), settings.tokens // settings.length)
    while chunk := tuple(islice(windows, WINDOWS_A_FILE)):
        yield chunk


def _digested(chunk: Sequence[Ids], digest: Any) -> np.ndarray:
    ids_WT = np.array(chunk, dtype=np.int32)
    digest.update(ids_WT.astype("<i4").tobytes())
    return ids_WT


def _make_plan(model: Model, settings: Settings, folder: Path) -> Manifest:
    if settings.tokens > MOST_PLACES:
        raise SpecError(f"{settings.tokens} tokens are more than an index can number ({MOST_PLACES}); ask for fewer")
    digest, count = hashlib.sha256(), 0
    for number, chunk in enumerate(_chunks(model, settings)):
        ids_WT = _digested(chunk, digest)
        _write(_windows_path(folder, number), {"ids": torch.from_numpy(ids_WT)}, {})
        count += len(ids_WT)
    need_sequences(count, 1, settings.length, settings.corpus, "a window of the index is one")
    manifest = Manifest(
        **settings.model_dump(), windows=count, digest=digest.hexdigest(),
        sample=draw_places(count, settings.length, settings.places, settings.seed),
        a_shard=settings.shard or shard_size(count, settings.batch),
    )
    write_whole(folder / MANIFEST, (manifest.model_dump_json(indent=1) + "\n").encode())
    return manifest


def shard_size(windows: int, batch: int) -> int:
    """Windows in a shard, where nobody says how many."""
    return max(-(-windows // MOST_SHARDS), min(A_SHARD, max(batch, -(-windows // SHARE))))


def draw_places(windows: int, length: int, places: int, seed: int) -> tuple[int, ...]:
    """Places drawn uniformly from all tokens of all windows but the first of each, sorted."""
    room = length - SKIP
    drawn = random.Random(seed).sample(range(windows * room), min(places, windows * room))
    return tuple(sorted(n // room * length + SKIP + n % room for n in drawn))


def _windows_path(folder: Path, number: int) -> Path:
    return folder / "windows" / f"{number:05d}.safetensors"


def window_ids(folder: Path, numbers: Iterable[int]) -> list[Ids]:
    """The token ids of windows. Raises FileError if their file is gone or damaged."""
    out: list[Ids] = []
    held, tensor_WT = -1, torch.empty(0)
    for number in numbers:
        file = number // WINDOWS_A_FILE
        if file != held:
            held, tensor_WT = file, read_tensors(_windows_path(folder, file))[0]["ids"]
        out.append(tuple(tensor_WT[number % WINDOWS_A_FILE].tolist()))
    return out


# Shards


def shard_path(folder: Path, shard: int) -> Path:
    """The file of a finished shard."""
    return folder / "shards" / f"{shard:05d}.safetensors"


def remove_if_empty(folder: Path) -> None:
    """Remove a folder if nothing is left in it."""
    with suppress(OSError):
        folder.rmdir()


def write_shard(folder: Path, manifest: Manifest, shard: int, sketches: dict[int, Sketch]) -> None:
    """Write the sketches of a shard, by layer, whole or not at all."""
    tensors = {f"{layer}.{name}": tensor for layer, sketch in sketches.items()
               for name, tensor in sketch.tensors().items()}
    _write(shard_path(folder, shard), tensors, {"index": manifest.identity})


def read_sketch(folder: Path, manifest: Manifest, shard: int, layer: int) -> Sketch:
    """One layer of a finished shard. FileError if its file is damaged or belongs to another index."""
    path = shard_path(folder, shard)
    tensors, metadata = read_tensors(path, f"{layer}.")
    if metadata.get("index") != manifest.identity:
        raise FileError(f"{path} belongs to another index; delete it and run the same command again")
    return Sketch.of(tensors)


def _write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """As `write_whole`, without a second copy of everything in memory."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    temporary = path.with_name(f".{uuid.uuid4().hex}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            save_file(tensors, temporary, metadata)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except (OSError, SafetensorError) as error:
        raise StoreError(f"cannot write {path}: {error}") from error


def read_tensors(path: Path, prefix: str = "") -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors of a file whose names begin with `prefix`, without it, and the file's metadata."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118 (not a dictionary)
            return {name.removeprefix(prefix): file.get_tensor(name) for name in names}, file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise FileError(f"{path} is damaged or half-written ({error}); delete it and run the same command again") from (
            error)
