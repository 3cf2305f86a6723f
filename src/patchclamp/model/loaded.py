"""What loading returns: the untouched Hugging Face model, its tokenizer, and where the weights came from."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from patchclamp.model.cache import FileStamp


@dataclass(frozen=True, eq=False)
class Loaded:
    """A model in memory and its provenance. `hf` and `tokenizer` are exactly what transformers built."""

    hf: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    ref: str
    """What the caller asked for: an embedded name, a path or a Hugging Face id."""
    name: str
    """How to call it in a chart or record: the embedded name, the id, or the file's or folder's name."""
    revision: str | None
    """The commit on the Hub, or the package an embedded model comes from; None for local files."""
    folder: Path | None
    """The folder the weights were read from."""
    weights: tuple[FileStamp, ...] = ()
    """The weight files, as they were when they were read."""

    @cached_property
    def weights_hash(self) -> str:
        """A sha256 that identifies the weights.

        One file: that file's sha256, the sum that `sha256sum model.safetensors` and the Hub show. Several
        shards: the sha256 of the lines `<sha256>  <name>`, sorted by name, which is what
        `sha256sum *.safetensors | sha256sum` prints. Computed on first use and remembered in the cache by
        path, size and modification time. Raises RunError if a file changed on disk since it was loaded.
        Without files, the model was made in memory: the sha256 of its state dict, names and bytes.
        """
        return hash_of_files(self.weights) if self.weights else self.hash_in_memory()

    def hash_in_memory(self) -> str:
        """The sha256 of the state dict as it is now: names, types, shapes and bytes."""
        return hash_of_tensors(self.hf)


def hash_of_files(weights: Sequence[FileStamp]) -> str:
    """The sha256 of one weight file, or of the sorted sums and names of several."""
    stamps = sorted(weights, key=lambda stamp: stamp.path.name)
    sums = [(stamp.sha256(), stamp.path.name) for stamp in stamps]
    if len(sums) == 1:
        return sums[0][0]
    return hashlib.sha256("".join(f"{sha256}  {name}\n" for sha256, name in sums).encode()).hexdigest()


def hash_of_tensors(module: torch.nn.Module) -> str:
    """The sha256 of a module's state dict as it is now: names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
