"""Tensors in files, with what they are: safetensors, written whole or not at all."""

import os
import uuid
from pathlib import Path

from torch import Tensor

from patchclamp.errors import FileError, StoreError


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
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
