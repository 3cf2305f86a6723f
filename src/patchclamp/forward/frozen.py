"""Norms with their statistics frozen at one run: there a norm is an affine map, and so is every logit.

    RMS norm     y = w ⊙ x / rms(x)                          rms(x) = √(mean x² + ε)
    layer norm   y = w ⊙ (x - mean x) / std(x) + bias        std(x) = √(var x + ε)

With rms(x) or std(x) held at their value in the actual run, what a block, a head or a neuron adds to the residual
stream adds to the logit in proportion (direct logit attribution: Elhage et al. 2021, "A Mathematical Framework for
Transformer Circuits"; Wang et al. 2022, arXiv 2211.00593). Everything here is in float64 on the CPU. Shape
suffixes: D model width, K tokens, N vectors, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from patchclamp.errors import UnsupportedModel
from patchclamp.model.anatomy import Anatomy, part

TOLERANCE = {torch.float32: 2e-5, torch.float64: 2e-6, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""By the model's dtype, relative to the largest value compared: sums of some thousand products in another order."""
PROBE = 64.0
"""Size of the vectors a norm is probed with: its ε, at most 1e-5, is 2e-9 of their variance, and sums of powers of
two are exact."""


@dataclass(frozen=True)
class FrozenNorm:
    """The affine map `y = gain ⊙ (x - mean x) + bias`, the mean taken off only if `centred`."""

    gain: Tensor
    """[D]: the norm's weight over its statistic at the actual run."""
    bias: Tensor
    """[D]."""
    centred: bool

    def __call__(self, x_ND: Tensor) -> Tensor:
        """The map of vectors [..., D]."""
        return self.linear(x_ND) + self.bias

    def linear(self, x_ND: Tensor) -> Tensor:
        """The map without its bias: what parts of a sum contribute, [..., D]."""
        return self.gain * _less_mean(x_ND, self.centred)

    def pull_back(self, direction_ND: Tensor) -> Tensor:
        """The direction [..., D] before the map that reads what `direction_ND` reads after it:
        `x · pull_back(d) == linear(x) · d`."""
        return _less_mean(self.gain * direction_ND, self.centred)


def _less_mean(x_ND: Tensor, centred: bool) -> Tensor:
    return x_ND - x_ND.mean(-1, keepdim=True) if centred else x_ND


@torch.no_grad()
def freeze(norm: nn.Module, x_D: Tensor) -> FrozenNorm:
    """The norm at `x_D` [D], in the model's dtype, as the affine map it is with its statistic held.

    Bias, centring and weight are read off the module's answers to zero, a constant and an alternating vector, so
    that no naming convention (Gemma's 1 + w, say) is relied upon; the statistic is the one scale that gives the
    module's own output at `x_D`. Raises UnsupportedModel if the map does not give that output within `TOLERANCE`
    of the dtype, relative to its largest value.
    """
    constant_D = torch.full_like(x_D, PROBE)
    alternating_D = constant_D * (1 - 2 * (torch.arange(len(x_D), device=x_D.device) % 2)).to(x_D)
    bias_D, of_constant_D, of_alternating_D, y_D = (
        exact(norm(v[None, None])[0, 0]) for v in (torch.zeros_like(x_D), constant_D, alternating_D, x_D)
    )
    answer_D = of_alternating_D - bias_D
    centred = bool((of_constant_D - bias_D).abs().max() < 1e-3 * answer_D.abs().max())
    probe_D = _less_mean(exact(alternating_D), centred)
    weight_D = answer_D / (probe_D / probe_D.pow(2).mean().sqrt())
    spread_D = weight_D * _less_mean(exact(x_D), centred)
    scale = float((y_D - bias_D) @ spread_D / (spread_D @ spread_D))
    frozen = FrozenNorm(weight_D * scale, bias_D, centred)
    error, limit = float((frozen(exact(x_D)) - y_D).abs().max()), TOLERANCE.get(x_D.dtype, 2e-5)
    if not error <= limit * float(y_D.abs().max()):
        raise UnsupportedModel(
            f"{type(norm).__name__} is neither an RMS norm nor a layer norm: as one, its output at this run would be "
            f"off by {error:.1e} (tolerance {limit:.0e} of {float(y_D.abs().max()):.1e}), so no logit can be "
            "attributed through it; `neurons ablate` and `circuits patch` measure effects without it"
        )
    return frozen


def into_stream(anatomy: Anatomy, layer: int, point: str, raw_D: Tensor) -> FrozenNorm:
    """What lies between the output projection of a block's `attn` or `mlp` and the residual stream: the post-norm
    at that projection's output `raw_D` [D] where the family has one, else the family's multiplier or 1."""
    family, block = anatomy.family, anatomy.blocks[layer]
    if family.post_norm:
        return freeze(part(block, family.attn if point == "attn" else family.mlp), raw_D)
    multiplier = float(getattr(block, family.multiplier)) if family.multiplier else 1.0
    zeros_D = torch.zeros(anatomy.d_model, dtype=torch.float64)
    return FrozenNorm(zeros_D + multiplier, zeros_D, centred=False)


@dataclass(frozen=True)
class TokenDirections:
    """Logits of K tokens, before any softcap, as affine functions of the final residual stream."""

    directions: Tensor
    """[K, D]: `x · direction` is what a part x of the residual stream contributes."""
    norm_bias: Tensor
    """[K]: what the final norm's bias contributes."""
    token_bias: Tensor
    """[K]: the tokens' own biases in the unembedding."""
    logits: Tensor
    """[K]: the logits before the softcap, through the model's own norm: what the sums have to give."""


class FrozenUnembedding:
    """Final norm and unembedding at one run's final residual stream `resid_D` [D]."""

    def __init__(self, anatomy: Anatomy, resid_D: Tensor) -> None:
        config, family = anatomy.config, anatomy.family
        self.unembedding: Any = anatomy.unembedding
        self.norm = freeze(anatomy.final_norm, resid_D)
        with torch.no_grad():
            self.hidden = exact(anatomy.final_norm(resid_D[None, None])[0, 0])
        self.projection = part(anatomy.hf, family.final_projection) if family.final_projection else None
        self.factor = float(getattr(config, family.logit_scale)) if family.logit_scale else 1.0
        if family.logit_divisor:
            self.factor /= float(getattr(config, family.logit_divisor))
        cap = getattr(config, family.logit_softcap) if family.logit_softcap else None
        self.softcap = None if cap is None else float(cap)

    def read(self, tokens: list[int]) -> TokenDirections:
        """How the logits of these K tokens are read off the residual stream."""
        weight, bias = self.unembedding.weight, getattr(self.unembedding, "bias", None)
        rows_KD = exact(weight[torch.tensor(tokens, device=weight.device)]) * self.factor
        token_bias_K = rows_KD.new_zeros(len(tokens)) if bias is None else exact(bias[tokens]) * self.factor
        if self.projection is not None:
            rows_KD = rows_KD @ exact(self.projection.weight)
        return TokenDirections(
            directions=self.norm.pull_back(rows_KD),
            norm_bias=rows_KD @ self.norm.bias,
            token_bias=token_bias_K,
            logits=rows_KD @ self.hidden + token_bias_K,
        )

    def capped(self, logits_K: Tensor) -> Tensor:
        """Logits as the model gives them: cap · tanh(logits / cap) where it has a softcap."""
        return logits_K if self.softcap is None else torch.tanh(logits_K / self.softcap) * self.softcap

    @torch.no_grad()
    def written(self, values_ND: Tensor) -> Tensor:
        """What vectors of the residual stream [N, D] add to every logit before the softcap, [N, V]."""
        hidden_ND = self.norm.linear(values_ND)
        if self.projection is not None:
            hidden_ND = hidden_ND @ exact(self.projection.weight).T
        weight = self.unembedding.weight
        wide = torch.promote_types(weight.dtype, torch.float32)
        return hidden_ND.to(weight.device, wide) @ weight.to(wide).T * self.factor


def exact(x: Tensor) -> Tensor:
    """The same numbers in float64 on the CPU."""
    return x.detach().cpu().double()
