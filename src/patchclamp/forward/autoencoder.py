"""A sparse autoencoder: few directions that add up to a layer's state.

    a = σ(W_enc x + b_enc)        the codes: L numbers, few of them not zero
    x̂ = W_dec a + b_dec           h = Σ aᵢ vᵢ + e, the directions vᵢ being rows of W_dec here

σ is what tells architectures apart (`Architecture`). A transcoder has another site's value to reconstruct than the one
it reads, and may have a linear path beside the sparse one (skip). Bricken et al. 2023, "Towards Monosemanticity"; Gao
et al. 2024, arXiv 2406.04093 (TopK); Bussmann et al. 2024, arXiv 2412.06410 (BatchTopK); Rajamanoharan et al. 2024,
arXiv 2404.16014 (Gated) and 2407.14435 (JumpReLU); Bussmann et al. 2025, arXiv 2503.17547 (Matryoshka); Dunefsky et al.
2024, arXiv 2406.11944 (transcoders); Paulo et al. 2025, arXiv 2501.18823 (skip).

Shape suffixes: N inputs, D width read, O width written (D but for transcoders), L latents, P active pairs.
"""

import hashlib
import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from patchclamp.errors import FileError, SpecError
from patchclamp.forward.codes import Active, decode, select_top, select_where
from patchclamp.forward.site import Site
from patchclamp.model.tensors import read_tensors, write_tensors

Architecture = Literal["topk", "batchtopk", "relu", "jumprelu", "gated", "matryoshka"]
"""topk: the k greatest of each input. batchtopk: the k·B greatest of a batch of B; one threshold afterwards. relu: all
above zero, λ‖a‖₁ keeping them few. jumprelu: all above a threshold of the latent, λ‖a‖₀. gated: one half decides
whether, the other how much. matryoshka: batchtopk whose first latents have to do on their own too."""
FILE, ABOUT = "autoencoder.safetensors", "patchclamp.autoencoder"
AT_ONCE = 512
"""Inputs whose codes are computed at once, all latents of them."""
NEEDS: dict[Architecture, tuple[str, ...]] = {
    "topk": (), "batchtopk": ("threshold",), "relu": (), "jumprelu": ("threshold",),
    "gated": ("r_mag", "b_mag"), "matryoshka": ("threshold",),
}
"""Tensors beside the two weights and biases."""


class AutoencoderInfo(BaseModel):
    """What an autoencoder is and where it comes from."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: str
    """How `feature:NAME.L.i` calls it."""
    architecture: Architecture
    k: int | None = None
    """Latents active for an input: each one's for topk, the mean in training for batchtopk and matryoshka."""
    site: str
    """What it reads, e.g. resid.15."""
    output_site: str | None = None
    """What it writes, if it is a transcoder."""
    model: str
    weights: str
    """sha256 of the model's weights."""
    settings: dict[str, Any] = {}
    """How it was trained."""
    store: str | None = None
    """Identity of the harvested activations it was trained on."""
    held_out: tuple[int, ...] = ()
    """Shards of that store that it has not seen."""
    tokens: int = 0
    """Tokens it was trained on, counting again what was read again."""


class Autoencoder:
    """A trained autoencoder. Raises SpecError for tensors that do not fit together.

    `tensors`: W_enc [L, D], b_enc [L], W_dec [L, O], b_dec [O]; `threshold` [L] for batchtopk, matryoshka and jumprelu,
    `r_mag` and `b_mag` [L] for gated; `W_skip` [D, O] if a transcoder has a linear path.
    """

    def __init__(self, info: AutoencoderInfo, tensors: Mapping[str, Tensor]) -> None:
        self.info, self.tensors = info, dict(tensors)
        _check(info, self.tensors)
        self.W_enc, self.b_enc = self.tensors["W_enc"], self.tensors["b_enc"]
        self.W_dec, self.b_dec = self.tensors["W_dec"], self.tensors["b_dec"]
        self.site = Site.parse(info.site)

    @property
    def n_latents(self) -> int:
        """Number of latents, L."""
        return len(self.b_enc)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of its numbers and of how they are used."""
        digest = hashlib.sha256(f"{self.info.architecture} {self.info.k} {self.site}".encode())
        for name in sorted(self.tensors):
            digest.update(name.encode() + self.tensors[name].detach().cpu().contiguous().float().numpy().tobytes())
        return digest.hexdigest()

    @property
    def directions(self) -> Tensor:
        """What each latent adds, [L, O]."""
        return self.W_dec

    def active(self, x_ND: Tensor) -> tuple[Tensor, Active]:
        """The codes that are not zero: values [P] and pairs, in the order of inputs."""
        values, latents, counts = [], [], []
        for some_ND in x_ND.to(self.W_enc.dtype).split(AT_ONCE):
            values_P, active = self._some(some_ND)
            keep_P = values_P > 0
            values.append(values_P[keep_P])
            latents.append(active.latents[keep_P])
            counts.append(torch.bincount(active.inputs[keep_P], minlength=len(some_ND)))
        counts_N = torch.cat(counts) if counts else torch.zeros(0, dtype=torch.long)
        if not values:
            return x_ND.new_zeros(0), Active(counts_N, counts_N, self.n_latents)
        return torch.cat(values), Active(torch.cat(latents), counts_N.cumsum(0) - counts_N, self.n_latents)

    def _some(self, x_ND: Tensor) -> tuple[Tensor, Active]:
        pre_NL = torch.addmm(self.b_enc, x_ND, self.W_enc.T)
        kind = self.info.architecture
        if kind == "topk":
            return select_top(pre_NL, self.info.k or 1)
        if kind != "gated":
            return select_where(pre_NL, self.tensors.get("threshold", 0.0))
        gate_P, active = select_where(pre_NL, 0.0)
        latents_P = active.latents
        projected_P = gate_P - self.b_enc[latents_P]
        return self.tensors["r_mag"][latents_P].exp() * projected_P + self.tensors["b_mag"][latents_P], active

    def encode(self, x_ND: Tensor) -> Tensor:
        """The codes, [N, L]."""
        values_P, active = self.active(x_ND)
        return active.dense(values_P)

    def decode(self, codes_NL: Tensor) -> Tensor:
        """What codes add up to, [N, O], without a skip's part."""
        return torch.addmm(self.b_dec, codes_NL, self.W_dec)

    def reconstruct(self, x_ND: Tensor) -> Tensor:
        """x̂, [N, O]: decoded codes and, if there is one, the linear path."""
        return self.looked_at(x_ND)[0]

    def looked_at(self, x_ND: Tensor) -> tuple[Tensor, Tensor]:
        """x̂ [N, O], and for each latent how many inputs it is active for, [L]."""
        values_P, active = self.active(x_ND)
        out_NO = decode(active, values_P, self.W_dec) + self.b_dec
        skip = self.tensors.get("W_skip")
        counts_L = torch.bincount(active.latents, minlength=self.n_latents)
        return out_NO if skip is None else torch.addmm(out_NO, x_ND.to(skip.dtype), skip), counts_L

    def to(self, device: torch.device) -> "Autoencoder":
        """The same on another device."""
        return Autoencoder(self.info, {name: tensor.to(device) for name, tensor in self.tensors.items()})

    def save(self, folder: str | Path) -> Path:
        """Write the folder's autoencoder.safetensors; returns its path. Raises StoreError."""
        path = Path(folder) / FILE
        tensors: dict[str, Tensor] = {}
        for name, tensor in self.tensors.items():
            is_shared = any(tensor.data_ptr() == other.data_ptr() for other in tensors.values())  # a file has no ties
            tensors[name] = tensor.detach().clone() if is_shared else tensor.detach().contiguous()
        write_tensors(path, tensors, {ABOUT: self.info.model_dump_json()})
        return path

    @classmethod
    def load(cls, folder: str | Path) -> "Autoencoder":
        """The autoencoder in a folder. Raises FileError if there is none or it is damaged."""
        path = Path(folder).expanduser()
        path = path / FILE if path.is_dir() else path
        if not path.is_file():
            raise FileError(f"there is no {path}; `patchclamp sae train` makes an autoencoder")
        tensors, metadata = read_tensors(path)
        if ABOUT not in metadata:
            raise FileError(f"{path} is no autoencoder of patchclamp: its file says nothing of one")
        try:
            info = AutoencoderInfo.model_validate(json.loads(metadata[ABOUT]))
        except (ValidationError, ValueError) as error:
            raise FileError(f"{path}: what it says about itself is damaged ({error})") from error
        return cls(info, tensors)


def _check(info: AutoencoderInfo, tensors: Mapping[str, Tensor]) -> None:
    wanted = ("W_enc", "b_enc", "W_dec", "b_dec", *NEEDS[info.architecture])
    if missing := [name for name in wanted if name not in tensors]:
        raise SpecError(f"the autoencoder {info.name} ({info.architecture}) has no {', '.join(missing)}")
    if tensors["W_enc"].dim() != 2 or tensors["W_dec"].dim() != 2:
        raise SpecError(f"the autoencoder {info.name} has weights that are no matrices")
    (n_latents, width), out = tensors["W_enc"].shape, tensors["W_dec"].shape[1]
    shapes = {"b_enc": (n_latents,), "W_dec": (n_latents, out), "b_dec": (out,), "W_skip": (width, out),
              **dict.fromkeys(("threshold", "r_mag", "b_mag"), (n_latents,))}
    for name, shape in shapes.items():
        if name in tensors and tuple(tensors[name].shape) != shape:
            raise SpecError(f"the autoencoder {info.name}: {name} has shape {list(tensors[name].shape)}, expected "
                            f"{list(shape)}")
    if info.output_site is None and out != width:
        raise SpecError(f"the autoencoder {info.name} reads width {width} and writes width {out}")
    if info.architecture == "topk" and not 1 <= (info.k or 0) <= n_latents:
        raise SpecError(f"the autoencoder {info.name} has k {info.k}; it is 1 to {n_latents}")
