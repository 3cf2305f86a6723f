"""Reading other projects' files: what is missing, of the wrong kind or of the wrong shape is said by name.

Nothing is unpickled but tensors: torch reads a .pt with `weights_only`, numpy an .npz without pickles.
"""

import json
import pickle
import zipfile
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from patchclamp.errors import FileError
from patchclamp.evidence.record import write_whole
from patchclamp.model.tensors import read_tensors
from patchclamp.tasks.files import describe, note, read_json


class Config:
    """An object of a JSON file whose fields are asked for by kind. Raises FileError for another."""

    def __init__(self, path: Path, values: Mapping[str, Any], where: str = "") -> None:
        self.path, self.values, self.where = path, values, where

    @classmethod
    def read(cls, path: Path) -> "Config":
        """The object in a file."""
        if not path.is_file():
            raise FileError(f"there is no {path.name} in {path.parent}, which the format needs beside the tensors")
        values = read_json(path)
        if not isinstance(values, dict):
            raise FileError(f"{path} holds {describe(values)}, not an object with an autoencoder's settings")
        return cls(path, values)

    def part(self, name: str) -> "Config":
        """The object under a name; an empty one if there is none."""
        return Config(self.path, self._get(name, dict, {}, "an object"), f"{self.where}{name}.")

    def text(self, name: str, default: str | None = None) -> str | None:
        """A text, or the default."""
        value: str | None = self._get(name, str, default, "a text")
        return value

    def flag(self, name: str, default: bool = False) -> bool:
        """True or false."""
        return bool(self._get(name, bool, default, "true or false"))

    def count(self, name: str) -> int | None:
        """A whole number from 1, or None."""
        value = self._get(name, int | float, None, "a whole number from 1")
        if value is not None and (isinstance(value, bool) or value < 1 or not float(value).is_integer()):
            raise FileError(f"{self.path}: {self.where}{name} is {value}, not a whole number from 1")
        return None if value is None else int(value)

    def _get(self, name: str, kind: Any, default: Any, what: str) -> Any:
        value = self.values.get(name)
        if value is None:
            return default
        if not isinstance(value, kind):
            raise FileError(f"{self.path}: {self.where}{name} is {describe(value)}, not {what}")
        return value


class Tensors:
    """A file's tensors, taken one by one; each has to be there and of the right shape. Raises FileError."""

    def __init__(self, path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
        self.path, self.tensors, self.metadata = path, tensors, metadata or {}

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def take(self, name: str, *shape: int | None) -> Tensor:
        """A tensor whose shape is `shape`; None stands for any length."""
        if name not in self.tensors:
            raise FileError(f"{self.path} has no {name}; in it are {', '.join(sorted(self.tensors)) or 'no tensors'}")
        found = self.tensors[name]
        expected = [n if n is not None else "any" for n in shape]
        if found.dim() != len(shape) or any(n not in (None, m) for n, m in zip(shape, found.shape, strict=True)):
            raise FileError(f"{self.path}: {name} has shape {list(found.shape)}, expected {expected}")
        if not found.is_floating_point():
            raise FileError(f"{self.path}: {name} holds {found.dtype}, not numbers with a fraction")
        if not bool(found.isfinite().all()):
            raise FileError(f"{self.path}: {name} holds NaN or infinite numbers, so the autoencoder is damaged")
        return found

    def number(self, name: str) -> float | None:
        """The one number of a tensor, or None if there is no such tensor."""
        if name not in self.tensors:
            return None
        if self.tensors[name].numel() != 1:
            raise FileError(f"{self.path}: {name} has shape {list(self.tensors[name].shape)}, expected one number")
        return float(self.tensors[name])

    def weights(self, encoder: str, decoder: str, encoder_is_DL: bool, decoder_is_LO: bool) -> tuple[Tensor, Tensor]:
        """W_enc [L, D] and W_dec [L, O] from tensors that lie one way or the other."""
        enc, dec = self.take(encoder, None, None), self.take(decoder, None, None)
        W_enc_LD = enc.T if encoder_is_DL else enc
        n_latents = len(W_enc_LD)
        shape = (n_latents, None) if decoder_is_LO else (None, n_latents)
        dec = self.take(decoder, *shape)
        return W_enc_LD, dec if decoder_is_LO else dec.T


def safe_tensors(path: Path) -> Tensors:
    """The tensors of a safetensors file."""
    _need(path)
    return Tensors(path, *read_tensors(path))


def pickled_tensors(path: Path) -> Tensors:
    """The tensors of a .pt file. `weights_only` builds tensors in dictionaries and stops at anything else, which a
    pickle needs in order to run code (as in `lenses/transport.py`)."""
    _need(path)
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        first_line = str(error).strip().split("\n")[0]
        raise FileError(f"{path} cannot be read, nothing in it was run: {first_line}") from error
    if not isinstance(found, dict) or not all(isinstance(n, str) and isinstance(v, Tensor) for n, v in found.items()):
        raise FileError(f"{path} is not a dictionary of tensors, so it is no autoencoder")
    return Tensors(path, found)


def numpy_tensors(path: Path) -> Tensors:
    """The arrays of an .npz file; one of Python objects would have to be unpickled and is refused."""
    import numpy as np

    _need(path)
    try:
        with np.load(path, allow_pickle=False) as file:
            return Tensors(path, {name: torch.from_numpy(file[name]) for name in file.files})
    except (ValueError, TypeError, OSError, EOFError, KeyError, AttributeError, zipfile.BadZipFile) as error:
        raise FileError(f"{path} cannot be read as arrays of numbers, nothing in it was run: {error}") from error


def _need(path: Path) -> None:
    if not path.is_file():
        raise FileError(f"there is no {path.name} in {path.parent}")
    note(path)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """One JSON object, whole or not at all."""
    write_whole(path, (json.dumps(values, indent=1, ensure_ascii=False) + "\n").encode())


def write_pickled(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Tensors as torch saves them."""
    buffer = BytesIO()
    torch.save(dict(tensors), buffer)
    write_whole(path, buffer.getvalue())


def write_numpy(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Tensors as numpy saves them."""
    import numpy as np

    buffer = BytesIO()
    arrays: dict[str, Any] = {name: tensor.numpy() for name, tensor in tensors.items()}
    np.savez(buffer, **arrays)
    write_whole(path, buffer.getvalue())


def turned(tensors: Mapping[str, Tensor], names: Sequence[str]) -> dict[str, Tensor]:
    """Some matrices the other way round."""
    return {name: tensor.T.contiguous() if name in names else tensor for name, tensor in tensors.items()}
