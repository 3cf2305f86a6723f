"""A steering vector: a direction at each of some sites, whose it is and how it was found, in one safetensors file.

The file's tensors are named after their sites (`resid.14`, `head.9.6`); its metadata key `patchclamp.vector` holds the
rest as JSON (`VectorInfo`). `controlvector.py` reads and writes the GGUF files of other projects.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from patchclamp.errors import FileError, InputError, SpecError
from patchclamp.evidence.record import write_whole
from patchclamp.forward import Edit, Model, Site, When

METADATA = "patchclamp.vector"
Unit = Literal["sd", "raw"]


class Setting(BaseModel):
    """How a vector is used: at which sites, how strongly, on which tokens."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    sites: tuple[str, ...]
    """The sites where it is applied, each with its own direction."""
    strength: float
    """How much is added, in `unit`; negative: subtracted."""
    unit: Unit = "sd"
    """Standard deviations of projections over a neutral corpus, or the vector as it is."""
    positions: str = "all"
    """On which tokens: all, prompt, response, or another form of a site's positions."""


class Ablation(BaseModel):
    """Which direction is projected out, and from what."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    site: str
    """The site whose direction it is."""
    everywhere: bool = True
    """From everything that is written to the residual stream, or only at that site."""


class VectorInfo(BaseModel):
    """What a vector file says of itself."""

    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True)

    name: str
    """What the direction stands for."""
    model: str
    """The model it was found in."""
    weights_hash: str | None = None
    """Hash of that model's weights; none in files of other projects."""
    how: str = "unknown"
    """How it was found: mean, pca, logistic, mass-mean."""
    position: str | None = None
    """Which tokens' states it was found at; none: the last of a prompt, the answer of a pair."""
    format: Literal["chat", "text"] | None = None
    """How its prompts were asked."""
    behaviour: str | None = None
    """The shipped behaviour or the behaviour file it was found with."""
    prompts: tuple[str, ...] = ()
    """Hashes of the prompts it was found with, so that it is not judged on these."""
    means: dict[str, tuple[float, float]] = {}
    """Site -> mean coordinates along its direction of the plain and of the showing prompts."""
    auroc: dict[str, float] = {}
    """Site -> how well projections told held-out prompts apart when it was found."""
    add: Setting | None = None
    """The chosen way of adding it."""
    remove: Setting | None = None
    """The chosen way of subtracting it."""
    ablate: Ablation | None = None
    """The chosen way of projecting it out."""
    made: dict[str, str] = {}
    """Versions and time."""


@dataclass(frozen=True, eq=False)
class SteeringVector:
    """Directions by site, and what is known of them."""

    info: VectorInfo
    directions: dict[str, Tensor]
    """Site (without positions) -> direction [W], float32, longer where the two sides differ more."""

    def at(self, sites: Sequence[str] | None = None) -> dict[str, Tensor]:
        """The directions at some sites. SpecError if the vector has none there."""
        if sites is None:
            return self.directions
        missing = [site for site in sites if site not in self.directions]
        if missing:
            raise SpecError(
                f"the vector {self.info.name!r} has no direction at {missing[0]}; it has them at "
                f"{next(iter(self.directions))} to {next(reversed(self.directions))}"
            )
        return {site: self.directions[site] for site in sites}

    def edits(self, setting: Setting, when: dict[str, When] | None = None) -> list[Edit]:
        """The edits that add the vector; `when` gives the condition at each site."""
        return [
            Edit.add(Site.parse(site).at(setting.positions), direction, setting.strength, setting.unit,
                     (when or {}).get(site))
            for site, direction in self.at(setting.sites).items()
        ]

    def active(self, site: str, above: float | None = None) -> When:
        """The condition that a token lies further along this vector than `above`, by default half-way between the mean
        coordinates of plain and showing prompts. SpecError if these are not known."""
        (direction,) = self.at([site]).values()
        if above is None and site not in self.info.means:
            raise SpecError(f"the vector {self.info.name!r} does not say where its two sides lie at {site}; give the "
                            "coordinate above which it counts as active (--above)")
        return When(direction=direction, above=sum(self.info.means[site]) / 2 if above is None else above)  # type: ignore[arg-type]

    def watch(
        self, model: Model, prompt: Any, site: str, edits: Sequence[Edit] = (), max_new_tokens: int = 64
    ) -> Iterator[tuple[str, float]]:
        """The model's answer piece by piece while it is generated, each with how far along this vector the state lies
        that it is written from: 0 at the mean of plain prompts, 1 at that of showing ones; of a piece of several tokens
        the furthest. SpecError if these are not known."""
        (direction,) = self.at([site]).values()
        if site not in self.info.means or len(set(self.info.means[site])) == 1:
            raise SpecError(f"the vector {self.info.name!r} does not say where its two sides lie at {site}")
        plain, showing = self.info.means[site]
        unit = direction / direction.norm()
        watched = model.watch(prompt, site, edits, max_new_tokens)
        return ((piece, float(((values @ unit - plain) / (showing - plain)).max())) for piece, values in watched)

    def ablation(self, site: str, model: Model) -> Ablation:
        """Projecting the site's direction out: everywhere, if it is a direction of the residual stream, else there."""
        return Ablation(site=site, everywhere=len(self.at([site])[site]) == model.d_model)

    def with_info(self, **changes: object) -> SteeringVector:
        """The same directions with other facts known about them."""
        return replace(self, info=self.info.model_copy(update=changes))

    def check(self, model: Model) -> None:
        """SpecError unless the vector fits the model: its sites, its widths, and its very weights where known."""
        for site, direction in self.directions.items():
            parsed = Site.parse(site)
            width = model.d_head if parsed.point in ("head", "q", "k", "v") else model.d_model
            if parsed.layer is not None and parsed.layer >= model.n_layers:
                raise SpecError(
                    f"the vector {self.info.name!r} is for {self.info.model} and has a direction at {site}; "
                    f"{model.name} has {model.n_layers} blocks (0 to {model.n_layers - 1})"
                )
            if len(direction) != width:
                raise SpecError(
                    f"the vector {self.info.name!r} is for {self.info.model}: it has width {len(direction)} "
                    f"at {site}, where {model.name} has width {width}"
                )
        if self.info.weights_hash is not None and self.info.weights_hash != model.weights_hash:
            raise SpecError(
                f"the vector {self.info.name!r} was found in {self.info.model}, whose weights are not those of "
                f"{model.name}; find it again in this model"
            )

    def save(self, path: str | Path) -> Path:
        """Write the file, whole or not at all. The suffix is .safetensors; .gguf writes a control vector."""
        path = Path(path).expanduser()
        if path.suffix == ".gguf":
            from patchclamp.vectors.controlvector import write_gguf

            return write_gguf(self, path)
        from safetensors.torch import save

        check_suffix(path)
        tensors = {site: direction.float().contiguous() for site, direction in self.directions.items()}
        write_whole(path, save(tensors, {METADATA: self.info.model_dump_json()}))
        return path


def check_suffix(path: str | Path) -> None:
    """SpecError for a name that says nothing of what a vector's file holds."""
    if Path(path).suffix not in (".safetensors", ".gguf"):
        raise SpecError(f"{path}: a vector is saved as .safetensors, or as .gguf for other projects")


def load_vector(path: str | Path, model: Model | None = None) -> SteeringVector:
    """The vector in a file, checked against `model` if one is given. FileError, or SpecError if it does not fit."""
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileError(f"{path} does not exist; patchclamp vectors find --save {path.name} makes a vector")
    vector = _read_gguf(path) if path.suffix == ".gguf" else _read_safetensors(path)
    if model is not None:
        vector.check(model)
    return vector


def _read_gguf(path: Path) -> SteeringVector:
    from patchclamp.vectors.controlvector import read_gguf

    return read_gguf(path)


def _read_safetensors(path: Path) -> SteeringVector:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(METADATA)
            tensors = {name: file.get_tensor(name).float() for name in sorted(file.keys())}
    except (SafetensorError, OSError) as error:
        raise FileError(f"{path} is not a safetensors file that can be read: {error}") from error
    if text is None:
        raise FileError(f"{path} is no vector: its metadata has no {METADATA}; vectors find --save makes such files")
    try:
        info = VectorInfo.model_validate_json(text)
        ordered = sorted(tensors, key=lambda site: ((parsed := Site.parse(site)).layer or 0, parsed.unit or 0))
    except (ValidationError, InputError) as error:
        raise FileError(f"{path} holds a vector that cannot be read: {error}") from error
    for site in ordered:
        if tensors[site].dim() != 1 or not bool(torch.isfinite(tensors[site]).all()):
            raise FileError(f"{path}: {site} is not one direction of finite numbers")
    return SteeringVector(info, {site: tensors[site] for site in ordered})
