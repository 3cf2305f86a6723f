"""Control vectors in GGUF files, as repeng and llama.cpp keep them: one tensor `direction.L` a block.

`direction.L` is added to the residual stream after block L, so it is our `resid.L`. Such a file names a model type and
nothing else about where it comes from.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from patchclamp.errors import FileError, SpecError
from patchclamp.forward import Site
from patchclamp.vectors.vector import SteeringVector, VectorInfo

ARCHITECTURE = "controlvector"


def write_gguf(vector: SteeringVector, path: Path) -> Path:
    """Write the directions after blocks; SpecError if the vector has others."""
    from gguf import GGUFWriter

    blocks = {}
    for site, direction in vector.directions.items():
        parsed = Site.parse(site)
        if parsed.point != "resid":
            raise SpecError(
                f"a GGUF control vector has directions after blocks (resid.L) only, and {vector.info.name!r} has "
                f"one at {site}; save it as .safetensors"
            )
        blocks[parsed.layer] = direction
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        writer = GGUFWriter(name, ARCHITECTURE)
        writer.add_string(f"{ARCHITECTURE}.model_hint", vector.info.model)
        writer.add_uint32(f"{ARCHITECTURE}.layer_count", len(blocks))
        for layer, direction in blocks.items():
            writer.add_tensor(f"direction.{layer}", np.ascontiguousarray(direction.float().numpy()))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        Path(name).replace(path)
    finally:
        Path(name).unlink(missing_ok=True)
    return path


def read_gguf(path: Path) -> SteeringVector:
    """The directions in a control vector's file. FileError if it is none."""
    from gguf import GGUFReader

    try:
        reader = GGUFReader(path)
        kind, hint = _text(reader, "general.architecture"), _text(reader, f"{ARCHITECTURE}.model_hint")
        if kind != ARCHITECTURE:
            raise FileError(f"{path} is a GGUF file of a {kind or 'nameless'} model, not a control vector")
        found = {
            int(tensor.name.removeprefix("direction.")): torch.tensor(np.array(tensor.data), dtype=torch.float32)
            for tensor in reader.tensors
            if tensor.name.startswith("direction.")
        }
    except (OSError, ValueError, IndexError, KeyError) as error:
        raise FileError(f"{path} is not a GGUF control vector that can be read: {error}") from error
    if not found:
        raise FileError(f"{path} holds no direction.L, so it is no control vector")
    info = VectorInfo(name=path.stem, model=hint or "unknown", how="control vector")
    return SteeringVector(info, {f"resid.{layer}": found[layer] for layer in sorted(found)})


def _text(reader: Any, key: str) -> str:
    field = reader.get_field(key)
    return bytes(field.parts[-1]).decode("utf-8", "replace") if field is not None else ""
