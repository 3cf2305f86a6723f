"""Where a number came from: which weights, which software, which machine, when."""

from __future__ import annotations

import platform
from datetime import UTC, datetime, timedelta
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

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
    threads: int = Field(ge=1)
    """Threads torch computed with: they change the order of sums, and so the last digits."""
    started: AwareDatetime
    """When the run began, UTC."""
    duration: float = Field(ge=0)
    """How long it took, seconds."""


def provenance_of(model: Model, *, seed: int, duration: float) -> Provenance:
    """The provenance of a run of `model` that ends now and took `duration` seconds."""
    import torch

    return Provenance(
        model=model.ref,
        name=model.name,
        revision=model.revision,
        weights_hash=model.weights_hash,
        dtype=str(model.dtype).removeprefix("torch."),
        device=str(model.device),
        seed=seed,
        versions={"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
        platform=platform.platform(),
        threads=torch.get_num_threads(),
        started=datetime.now(UTC) - timedelta(seconds=duration),
        duration=duration,
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # run from a source folder that was never installed
        return "not installed"
