"""Checkpoints of a training that any number of processes may go on from.

    checkpoint/00000120/shard-…safetensors    each process's share of each tensor, with its place in the whole
    checkpoint/00000120/state.json            what training it belongs to and how far it was: written last

torch.distributed.checkpoint (DCP) divides the work and finds each process its share again, in safetensors: DCP's own
format is a pickle, and nothing here is unpickled. A checkpoint without a state.json was never finished and counts for
nothing; the one before it is removed only when the next is there. So a process may be killed at any time.
"""

import json
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from patchclamp.errors import FileError, PatchclampError, StoreError
from patchclamp.evidence.record import write_whole
from patchclamp.sae.parameters import SHARED
from patchclamp.sae.ranks import RankLost, Ranks

FOLDER, STATE = "checkpoint", "state.json"


def is_shared(name: str, tensor: Tensor) -> bool:
    """Whether a tensor of a learner's state is the same in every process."""
    return tensor.dim() == 0 or name.rpartition(".")[2] in SHARED


class Checkpoints:
    """The checkpoints in a training's folder."""

    def __init__(self, folder: Path, ranks: Ranks) -> None:
        self.folder, self.ranks = folder / FOLDER, ranks

    def newest(self) -> int | None:
        """The step of the last that was finished."""
        steps = [path.parent.name for path in self.folder.glob(f"*/{STATE}")]
        return max((int(step) for step in steps if step.isdigit()), default=None)

    def at(self, step: int) -> Path:
        """The folder of a step's."""
        return self.folder / f"{step:08d}"

    def save(self, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Write `tensors`, this process's share of them, and `state`. StoreError if the disk refuses."""
        import torch.distributed.checkpoint as dcp

        place, before = self.at(step), self.newest()
        if self.ranks.is_first:  # left over from a process that was killed while it wrote
            shutil.rmtree(place, ignore_errors=True)
            _made(place)
        self.ranks.meet()
        # a file a tensor, so that one tensor's bytes at a time are in memory twice
        writer = dcp.HuggingFaceStorageWriter(str(place), {name: n for n, name in enumerate(tensors, 1)},
                                              save_distributed=True)
        with self._asked(StoreError, f"cannot write {place}"):
            dcp.save(self._placed(tensors), storage_writer=writer, no_dist=not self.ranks.is_many)
        if self.ranks.is_first:
            write_whole(place / STATE, json.dumps(state).encode())
            if before is not None and before != step:
                _remove(self.at(before))
        self.ranks.meet()

    def state(self, place: Path) -> dict[str, Any]:
        """What a checkpoint says of itself. FileError if it is damaged."""
        try:
            state: dict[str, Any] = json.loads((place / STATE).read_text())
        except (OSError, ValueError) as error:
            raise FileError(f"{place / STATE} is damaged ({error}); delete {self.folder} to begin anew") from error
        return state

    def read(self, place: Path, tensors: Mapping[str, Tensor]) -> None:
        """Read a checkpoint into `tensors`, this process's share. FileError if it is damaged or does not fit."""
        import torch.distributed.checkpoint as dcp

        placed = self._placed(tensors)
        remedy = f"delete {self.folder} to begin anew"
        with self._asked(FileError, f"{place} is damaged or half-written; {remedy}"):
            reader = dcp.HuggingFaceStorageReader(str(place))
            found: dict[str, Any] = dict(reader.read_metadata().state_dict_metadata)
        if differing := sorted(name for name in {*found, *placed} if _shape(found, name) != _shape(placed, name)):
            name = differing[0]
            raise FileError(f"{place} is no checkpoint of this training: {name} is {_shape(found, name)} there and "
                            f"{_shape(placed, name)} here; {remedy}")
        for name, about in found.items():
            if sum(chunk.sizes.numel() for chunk in about.chunks) != about.size.numel():
                raise FileError(f"{place} is damaged: a part of {name} is missing; {remedy}")
        with self._asked(FileError, f"{place} is damaged; {remedy}"):
            dcp.load(placed, storage_reader=reader, no_dist=not self.ranks.is_many)

    def remove(self) -> None:
        """The training is done."""
        if self.ranks.is_first:
            for path in self.folder.glob(f"*/{STATE}"):
                path.unlink(missing_ok=True)
            shutil.rmtree(self.folder, ignore_errors=True)

    @contextmanager
    def _asked(self, kind: type[PatchclampError], said: str) -> Iterator[None]:
        """Inside, what DCP raises is of `kind`, or a process that does not answer is lost."""
        from torch.distributed.checkpoint.api import CheckpointException

        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "torch.distributed is disabled")
                yield
        except (CheckpointException, Exception) as error:  # the former is no Exception; each process's own is in it
            own = next(iter(error.failures.values()))[0] if isinstance(error, CheckpointException) else error
            told = " ".join(str(own).split())[:300]
            if isinstance(own, RankLost) or (self.ranks.is_many and isinstance(own, RuntimeError)):
                raise RankLost(told) from error
            raise kind(f"{said} ({told})") from error

    def _placed(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors with their place among all processes."""
        if not self.ranks.is_many:
            return dict(tensors)
        from torch.distributed.tensor import DTensor, Replicate, Shard

        places = [Replicate(), Shard(0)]
        return {name: tensor if is_shared(name, tensor) else DTensor.from_local(
            tensor, self.ranks.mesh, places, run_check=False) for name, tensor in tensors.items()}


def _shape(tensors: Mapping[str, Any], name: str) -> list[int] | str:
    if name not in tensors:
        return "missing"
    about = tensors[name]
    return list(about.size if hasattr(about, "chunks") else about.shape)


def _made(place: Path) -> None:
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"cannot write {place}: {error.strerror or error}") from error


def _remove(place: Path) -> None:
    (place / STATE).unlink(missing_ok=True)  # first, so that what is half removed is no checkpoint
    shutil.rmtree(place, ignore_errors=True)
