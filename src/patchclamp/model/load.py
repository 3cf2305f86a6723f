"""Loading weights by name: an embedded model, a local folder, a GGUF file or a Hugging Face id."""

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from patchclamp.errors import ModelError
from patchclamp.model.cache import FileStamp
from patchclamp.model.embedded import EMBEDDED, Progress, fetch, nearest
from patchclamp.model.hub import find_on_hub
from patchclamp.model.loaded import Loaded
from patchclamp.model.read import Options, explained, read_folder, read_gguf, weight_files

DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16", "float64")}
_READING = threading.Lock()
"""transformers makes models under settings of the whole process: of two threads one may find weights lacking."""


def load_weights(
    ref: str | Path,
    *,
    dtype: str | torch.dtype = "float32",
    device: str | torch.device | None = None,
    device_map: str | dict[str, Any] | None = None,
    trust_remote_code: bool = False,
    revision: str | None = None,
    attn_implementation: str | None = None,
    progress: Progress | None = None,
) -> Loaded:
    """Load a causal language model and its tokenizer, in eval mode and otherwise untouched.

    ref: an embedded model's name (`smollm2-135m-instruct`, `gemma-3-270m`; write `./NAME` for a folder of
        that name), a local Hugging Face folder, a local `.gguf` file, or a Hugging Face id. An id is taken
        from the local Hugging Face cache if it is there whole, and downloaded otherwise.
    dtype: `float32` (default: what comparisons on a CPU should use), `bfloat16`, `float16`, `float64`, or
        `auto` for the checkpoint's own.
    device: where the model goes, e.g. `cpu`, `cuda`, `cuda:1`, `mps`; None is the CPU, or where `device_map`
        says.
    device_map: spread a large model by accelerate (`auto`, or module names to devices); not with `device`.
    trust_remote_code: run the Python code a checkpoint brings, where transformers has no class for it.
    revision: a branch, tag or commit on the Hub; only for Hugging Face ids.
    attn_implementation: `eager`, `sdpa` or another that transformers offers; None is its default.
    progress: gets a line of text at each step of fetching an embedded model; None: they go to standard error.

    Raises ModelError when the model cannot be found or read, UnsupportedModel when it is not a causal
    language model, RunError when memory or disk runs out.
    """
    options = Options(
        dtype=check_dtype(dtype),
        device_map=device_map,
        trust_remote_code=trust_remote_code,
        attn_implementation=attn_implementation,
    )
    place = check_device(device, device_map)
    source = find(str(ref), revision, trust_remote_code, progress)
    files = [source.path] if source.is_file else weight_files(source.path)
    stamps = tuple(FileStamp.of(file) for file in files if file.is_file())
    hf: Any
    with _READING:
        hf, tokenizer = (read_gguf if source.is_file else read_folder)(source.path, options)
    if place is not None and place.type != "cpu":
        with explained(f"Cannot move {source.name} to {place}"):
            hf.to(place)
    return Loaded(
        hf=hf,
        tokenizer=tokenizer,
        ref=str(ref),
        name=source.name,
        revision=source.revision,
        folder=source.path.parent if source.is_file else source.path,
        weights=stamps,
    )


def check_dtype(dtype: str | torch.dtype) -> torch.dtype | str:
    """The torch dtype of a name, or `auto`. Raises ModelError for anything that is not a float type."""
    if dtype == "auto":
        return "auto"
    if isinstance(dtype, str) and dtype in DTYPES:
        return DTYPES[dtype]
    if isinstance(dtype, torch.dtype) and dtype in DTYPES.values():
        return dtype
    known = ", ".join(DTYPES)
    raise ModelError(f"{str(dtype)!r} is not a dtype to load a model in; choose one of {known} or auto.")


def check_device(device: str | torch.device | None, device_map: object = None) -> torch.device | None:
    """The torch device, after checking that this machine has it. Raises ModelError if it does not."""
    if device is None:
        return None
    if device_map is not None:
        raise ModelError(f"device {str(device)!r} and device_map {device_map!r} were both given; choose one.")
    try:
        place = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ModelError(f"{device!r} is not a device; write cpu, cuda, cuda:1 or mps.") from error
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise ModelError(f"There is no {place}: torch sees {count} CUDA devices on this machine; try cpu.")
    if place.type == "mps" and not torch.backends.mps.is_available():
        raise ModelError("There is no mps device: torch sees no Apple GPU here; try cpu.")
    if place.type == "meta":
        raise ModelError("The meta device holds no numbers; try cpu.")
    return place


@dataclass(frozen=True)
class Source:
    """Where a ref was found: a folder or a GGUF file on this machine."""

    path: Path
    name: str
    revision: str | None = None

    @property
    def is_file(self) -> bool:
        return self.path.is_file()


def find(
    ref: str, revision: str | None, trust_remote_code: bool, progress: Progress | None, needs_tokenizer: bool = True
) -> Source:
    """Where a ref's files are on this machine, fetched first if need be; ModelError if there is no such model."""
    if not ref:
        raise ModelError(
            f"The model's name is empty; give an embedded model ({', '.join(EMBEDDED)}), a folder, "
            "a .gguf file or a Hugging Face id."
        )
    local = Path(ref).expanduser()
    if ref in EMBEDDED or local.exists():
        if revision is not None:
            raise ModelError(f"revision {revision!r} is for Hugging Face ids; {ref} is not one.")
        if ref in EMBEDDED:
            return Source(fetch(ref, progress), ref, EMBEDDED[ref].revision)
        return _local(local)
    near = nearest(ref)
    hint = f" Did you mean the embedded model {near!r}?" if near else ""
    if _looks_like_path(ref):
        raise ModelError(f"There is no folder or file {ref}.{hint}")
    if near and "/" not in ref:
        raise ModelError(f"There is no embedded model or folder {ref!r}.{hint}")
    folder, commit = find_on_hub(ref, revision, trust_remote_code, hint, needs_tokenizer)
    return Source(folder, ref, commit)


def _looks_like_path(ref: str) -> bool:
    suffixes = (".gguf", ".safetensors", ".bin", ".pt", ".pth", ".ckpt")
    return ref[0] in "./~" or "\\" in ref or ref.count("/") > 1 or ref.lower().endswith(suffixes)


def _local(path: Path) -> Source:
    path = path.resolve()
    if path.is_dir():
        return Source(path, path.name)
    if path.suffix.lower() == ".gguf":
        return Source(path, path.stem)
    if path.suffix == ".safetensors":
        raise ModelError(f"{path} is weights alone; give its folder, {path.parent}.")
    raise ModelError(f"{path} is not a model: give a Hugging Face folder or a .gguf file.")
