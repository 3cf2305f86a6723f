"""Where a number came from: which weights, which software, which machine, when."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from patchclamp.tasks.examples import EXAMPLE_PREFIX, data_folder
from patchclamp.tasks.files import hash_of_file, hash_of_folder

if TYPE_CHECKING:
    from patchclamp.forward import Model

PACKAGES = ("patchclamp", "torch", "transformers", "numpy")


class Provenance(BaseModel):
    """What it takes to run the same thing again."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    model: str
    """The model as it was asked for: an embedded model's name, a Hugging Face id or a folder."""
    name: str
    """The model's short name."""
    revision: str | None
    """The commit of the model's repository, if it has one."""
    weights_hash: str
    """Hash of the weights: equal hashes are the same numbers, wherever they were loaded from."""
    dtype: str
    """Number format the model ran in, e.g. `float32`."""
    device: str
    """Where it ran, e.g. `cpu` or `cuda:0`."""
    seed: int
    """The spec's seed."""
    versions: dict[str, str]
    """Versions of Python, patchclamp, torch, transformers and numpy (whose generator draws the controls)."""
    platform: str
    """Operating system and processor."""
    inputs: dict[str, str] = {}
    """The data files that were read, with their sha256 (of a folder of pictures, that of its files' sums and names);
    those that come with patchclamp by name."""
    threads: int = Field(ge=1)
    """Threads torch computed with: they change the order of sums, and so the last digits."""
    started: AwareDatetime
    """When the run began, UTC."""
    duration: float = Field(ge=0)
    """How long it took, seconds."""


def provenance_of(model: Model, *, seed: int, duration: float, inputs: Iterable[Path] = ()) -> Provenance:
    """The provenance of a run of `model` that ends now, took `duration` seconds and read the files `inputs`."""
    import torch

    return Provenance(
        model=model.ref,
        name=model.name,
        revision=model.revision,
        weights_hash=model.weights_hash,
        dtype=str(model.dtype).removeprefix("torch."),
        device=str(model.device),
        seed=seed,
        versions={"python": platform.python_version()} | {name: version_of(name) for name in PACKAGES},
        platform=platform.platform(),
        inputs={_named(path): (hash_of_folder if path.is_dir() else hash_of_file)(path) for path in sorted(inputs)},
        threads=torch.get_num_threads(),
        started=datetime.now(UTC) - timedelta(seconds=duration),
        duration=duration,
    )


def _named(path: Path) -> str:
    """A file by its place, one that comes with patchclamp by its name, wherever that is installed."""
    is_own = path.parent == data_folder()
    return f"{EXAMPLE_PREFIX}{path.stem}" if is_own else str(path.absolute())


def version_of(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # run from a source folder that was never installed
        return "not installed"
