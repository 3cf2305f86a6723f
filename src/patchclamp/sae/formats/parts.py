"""An autoencoder as a file of another project has it, and its conventions folded into one.

Ours encodes what it is given, W_enc x + b_enc. Others differ in three ways, none of which changes what is computed:

    W_enc (x - b_dec) + b_enc           b_dec is taken away first:      b_enc - W_enc b_dec
    ‖dᵢ‖ (W_enc x + b_enc)ᵢ, dᵢ/‖dᵢ‖    codes times directions' length: rows of W_enc and b_enc times it, of W_dec by it
    W_enc (s x) + b_enc, x̂ / s          inputs scaled:                  W_enc · s, W_dec / s, b_dec / s

Sums are taken in float64 and rounded once. What needs no folding keeps its bits. Suffixes as in `autoencoder.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from patchclamp.errors import SpecError
from patchclamp.forward.autoencoder import ABOUT, NEEDS, Architecture, Autoencoder, AutoencoderInfo

BY_THRESHOLD = ("jumprelu", "batchtopk", "matryoshka")
"""Architectures that were trained otherwise and compute the same."""
AT_ONCE = 4096


@dataclass(frozen=True)
class Parts:
    """What a file holds, under our names and turned our way: W_enc [L, D], W_dec [L, O], W_skip [D, O]."""

    kind: str
    """What the format calls it."""
    architecture: Architecture
    tensors: dict[str, Tensor]
    k: int | None = None
    subtracts: bool = False
    """b_dec is taken from what is read before that is encoded."""
    by_length: bool = False
    """Codes are multiplied by their direction's length and chosen so; directions are divided by it."""
    scale: float = 1.0
    """What is read is multiplied by it, what is written divided."""
    site: str | None = None
    output_site: str | None = None
    is_transcoder: bool = False
    """It writes another site than it reads, whether or not the file says which."""
    raw_output: bool = False
    """`site` is a module's own output, before a norm or a factor that some models have behind it."""
    model: str | None = None
    """What the file calls the model."""
    settings: dict[str, Any] = field(default_factory=dict)
    told: AutoencoderInfo | None = None
    """What patchclamp wrote down when it made the file."""

    def autoencoder(
        self, name: str, site: str, output_site: str | None, model: str, weights: str, settings: dict[str, Any]
    ) -> Autoencoder:
        """The autoencoder, its conventions folded, as `model`'s. What patchclamp told of it is kept. Raises SpecError
        for tensors that do not fit together."""
        tensors = folded(self)
        architecture = self._architecture(tensors)
        tensors = {n: t for n, t in tensors.items() if n in (*_COMMON, *NEEDS[architecture])}
        told = self.told.model_dump() if self.told else {}
        info = AutoencoderInfo.model_validate({
            **told, "name": name, "architecture": architecture, "k": self._k(architecture), "site": site,
            "output_site": output_site, "model": model, "weights": weights,
            "settings": {**self.settings, **told.get("settings", {}), **settings},
        })
        return Autoencoder(info, tensors)

    def _architecture(self, tensors: dict[str, Tensor]) -> Architecture:
        """What it was trained as, where the file can only say what it computes."""
        told = self.told.architecture if self.told else None
        if told is None or self.architecture != "jumprelu":
            return self.architecture
        if told == "relu":
            return self.architecture if bool(tensors["threshold"].any()) else told
        return told if told in BY_THRESHOLD else self.architecture

    def _k(self, architecture: Architecture) -> int | None:
        return self.told.k if self.k is None and self.told and self.told.architecture == architecture else self.k


_COMMON = ("W_enc", "b_enc", "W_dec", "b_dec", "W_skip")


def folded(parts: Parts) -> dict[str, Tensor]:
    """The tensors of one that encodes what it is given."""
    out = {name: tensor.float().contiguous() for name, tensor in parts.tensors.items()}
    if parts.by_length:
        length_L = out["W_dec"].double().norm(dim=1)
        safe_L = torch.where(length_L > 0, length_L, 1.0)
        out["W_enc"] = (out["W_enc"] * length_L[:, None]).float()
        out["b_enc"] = (out["b_enc"] * length_L).float()
        out["W_dec"] = (out["W_dec"] / safe_L[:, None]).float()
    if parts.subtracts:
        out |= shifted(out, out["b_dec"], -1.0)
    if parts.scale != 1.0:
        out["W_enc"] = (out["W_enc"].double() * parts.scale).float()
        out["W_dec"], out["b_dec"] = ((out[name].double() / parts.scale).float() for name in ("W_dec", "b_dec"))
    return out


def shifted(tensors: dict[str, Tensor], by_D: Tensor, sign: float) -> dict[str, Tensor]:
    """The encoder's biases once sign · `by_D` has been added to what is read: -1 as if it was taken away."""
    shift_L = sign * torch.cat([rows.double() @ by_D.double() for rows in tensors["W_enc"].split(AT_ONCE)])
    changed = {"b_enc": (tensors["b_enc"].double() + shift_L).float()}
    if "b_mag" in tensors:
        r_mag_L = tensors["r_mag"].double().exp()
        changed["b_mag"] = (tensors["b_mag"].double() + r_mag_L * shift_L).float()
    return changed


def subtracting(autoencoder: Autoencoder) -> dict[str, Tensor]:
    """The tensors of one that takes b_dec away first and encodes the same."""
    tensors = detached(autoencoder)
    return tensors | shifted(tensors, tensors["b_dec"], 1.0)


def detached(autoencoder: Autoencoder) -> dict[str, Tensor]:
    """Its tensors as float32 in main memory."""
    return {name: tensor.detach().to("cpu", torch.float32).contiguous() for name, tensor in autoencoder.tensors.items()}


def one_threshold(autoencoder: Autoencoder) -> float | None:
    """The threshold that all latents share, if they do."""
    threshold_L = autoencoder.tensors["threshold"]
    return float(threshold_L[0]) if bool((threshold_L == threshold_L[0]).all()) else None


def prefixes_of(info: AutoencoderInfo, n_latents: int) -> list[int]:
    """Where the groups of a matryoshka end; one group if that was not written down."""
    found = info.settings.get("prefixes") or info.settings.get("identity", {}).get("prefixes")
    if not found and "identity" in info.settings:  # trained here with the default
        found = sorted({max(1, n_latents // n) for n in (16, 4, 1)})
    return [int(n) for n in found or [n_latents]]


def told_by(about: Mapping[str, Any]) -> AutoencoderInfo | None:
    """What patchclamp wrote about it into another project's file; None if nothing, or nothing that can be read."""
    try:
        return AutoencoderInfo.model_validate_json(about[ABOUT]) if isinstance(about.get(ABOUT), str) else None
    except ValidationError:
        return None


def telling(info: AutoencoderInfo) -> dict[str, str]:
    """What another project's format has no place for, to go into its file under a key that its loader passes over."""
    return {ABOUT: info.model_dump_json()}


def refuse(autoencoder: Autoencoder, form: str, why: str) -> SpecError:
    """The error for what a format cannot hold."""
    info = autoencoder.info
    what = f"{info.architecture} {'transcoder' if info.output_site else 'autoencoder'}"
    return SpecError(f"{info.name} is a {what}, which the format {form} cannot hold: {why}")


def only_file(source: Path, name: str) -> Path:
    """The file called `name` in the folder that `source` is or lies in."""
    return (source if source.is_dir() else source.parent) / name
