"""A corpus on disk, cut into windows and these into shards of work, each done once by whoever is free.

    manifest.json               what was asked of which model, and what the corpus became; written last of the plan
    windows/00000.safetensors   token ids [windows, length], a thousand windows a file: texts are shown from them
    shards/00000.safetensors    what was made of a shard's windows
    .locks/                     who is at work on what

What a shard holds is for those who make it: sketches of units (`indexing.py`), activations to train on. Every file is
written beside and renamed, so that half a file is never taken for one.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from patchclamp.corpus.pack import Ids, need_sequences, packed
from patchclamp.errors import FileError, SpecError
from patchclamp.evidence.record import write_whole
from patchclamp.forward import Model
from patchclamp.model.tensors import read_tensors, write_tensors

MANIFEST, MADE_OF = "manifest.json", "made of"
WINDOWS_A_FILE = 1024
SKIP = 1
"""Tokens left out at the beginning of a window: the first one's activations are like no other's."""


class Settings(BaseModel):
    """What has to be equal for two runs to work on the same folder. Subclasses add what their shards depend on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    weights: str
    """sha256, as in a record's provenance."""
    dtype: str
    corpus: str
    tokens: int
    length: int
    batch: int
    """Windows in one pass."""
    shard: int | None
    seed: int

    @staticmethod
    def of_model(model: Model) -> dict[str, Any]:
        """The fields that say which model it is."""
        return {"model": model.name, "weights": model.weights_hash, "dtype": str(model.dtype).removeprefix("torch.")}


class Manifest(Settings):
    """The plan of a folder: its settings and what the corpus became under them."""

    what: ClassVar[str]
    """What a folder with such a manifest is, with its article."""
    made_by: ClassVar[str]
    """The command that makes one."""

    windows: int
    """How many the corpus filled, `tokens / length` at most."""
    digest: str
    """sha256 of the windows' token ids."""
    a_shard: int
    """Windows in a shard."""

    @property
    def shards(self) -> int:
        return -(-self.windows // self.a_shard)

    @property
    def identity(self) -> str:
        """What a shard has to bear to belong here."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()

    def windows_of(self, shard: int) -> Sequence[int]:
        """The numbers of a shard's windows."""
        return range(shard * self.a_shard, min((shard + 1) * self.a_shard, self.windows))

    @classmethod
    def planned(cls, settings: Settings, windows: int, digest: str) -> Self:
        """The manifest of these settings and what the corpus became under them."""
        raise NotImplementedError


M = TypeVar("M", bound=Manifest)


def plan(model: Model, settings: Settings, folder: Path, kind: type[M]) -> M:
    """The manifest in `folder`, made now if there is none.

    Raises SpecError if what is in the folder was asked for otherwise, FileError for a corpus smaller than one window,
    or one that has changed since.
    """
    from filelock import FileLock

    with FileLock(lock_path(folder, "plan")):
        if not (folder / MANIFEST).is_file():
            return _make_plan(model, settings, folder, kind)
        found = read_manifest(folder, kind)
        _refuse_other(found, settings, folder)
        digest = hashlib.sha256()
        count = sum(len(_digested(chunk, digest)) for chunk in _chunks(model, settings))
        if (count, digest.hexdigest()) != (found.windows, found.digest):
            raise FileError(f"{settings.corpus} has changed since {folder} was planned ({found.windows} windows then, "
                            f"{count} now, or other words); choose another folder")
        return found


def lock_path(folder: Path, name: str) -> Path:
    """The file that stands for a claim; its folder is made."""
    locks = folder / ".locks"
    try:
        locks.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(f"{folder} cannot be made: {error.strerror}; choose another folder") from error
    return locks / name


def read_manifest(folder: Path, kind: type[M]) -> M:
    """FileError if `folder` holds none of this kind."""
    path = folder / MANIFEST
    if not path.is_file():
        raise FileError(f"{folder} holds no {MANIFEST}: it is not {kind.what}; `{kind.made_by}` makes one")
    try:
        return kind.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        raise FileError(f"{path} is damaged, or that of something else than {kind.what} "
                        f"({'.'.join(map(str, first['loc']))}: {first['msg']}); delete the folder and make it again"
                        ) from error


def _refuse_other(found: Manifest, settings: Settings, folder: Path) -> None:
    theirs, ours = found.model_dump(), settings.model_dump()
    differing = [f"{key} {_short(theirs[key])}, not {_short(ours[key])}" for key in ours if theirs[key] != ours[key]]
    if differing:
        raise SpecError(f"{folder} was made with other settings: {'; '.join(differing)}. Ask for the same "
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


def _make_plan(model: Model, settings: Settings, folder: Path, kind: type[M]) -> M:
    digest, count = hashlib.sha256(), 0
    for number, chunk in enumerate(_chunks(model, settings)):
        ids_WT = _digested(chunk, digest)
        write_tensors(_windows_path(folder, number), {"ids": torch.from_numpy(ids_WT)}, {})
        count += len(ids_WT)
    need_sequences(count, 1, settings.length, settings.corpus, "a window is one")
    manifest = kind.planned(settings, count, digest.hexdigest())
    write_whole(folder / MANIFEST, (manifest.model_dump_json(indent=1) + "\n").encode())
    return manifest


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


def write_shard(folder: Path, manifest: Manifest, shard: int, tensors: dict[str, Tensor]) -> None:
    """Write what was made of a shard, whole or not at all."""
    write_tensors(shard_path(folder, shard), tensors, {MADE_OF: manifest.identity})


def read_shard(folder: Path, manifest: Manifest, shard: int, prefix: str = "") -> dict[str, Tensor]:
    """Tensors of a finished shard whose names begin with `prefix`, without it. FileError if its file is damaged or
    belongs to another folder."""
    path = shard_path(folder, shard)
    tensors, metadata = read_tensors(path, prefix)
    if metadata.get(MADE_OF) != manifest.identity:
        raise FileError(f"{path} belongs to another folder; delete it and run the same command again")
    return tensors


def remove_if_empty(folder: Path) -> None:
    """Remove a folder if nothing is left in it."""
    with suppress(OSError):
        folder.rmdir()
