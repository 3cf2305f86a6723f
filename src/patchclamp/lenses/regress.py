"""Least squares from every layer's residual stream to the last one: where the training of a tuned lens begins.

For each layer l, over tokens, with x = (h_l - μ_l) / σ_l and y = (h_final - h_l) / σ_final coordinate by coordinate,

    B = (Cov(x, x) + λ 1)⁻¹ Cov(x, y),   A = σ_final Bᵀ / σ_l,   b = E[h_final - h_l] - A E[h_l]

Ridge regression (Hoerl & Kennard 1970) towards A = 0, the logit lens; λ = D / N is the noise of N tokens on D
coordinates. It needs no logits, so it may use every token; the units μ, σ are those of the first tokens seen, which
keeps the sums near 1 and float32 exact enough.

Shape suffixes: N tokens, S layers with the last, L layers without it, D width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from patchclamp.errors import RunError

LEAST_SCALE = 1e-3
"""Smallest σ of a coordinate, as a share of its layer's mean: a dead coordinate is not blown up."""


@dataclass(frozen=True)
class Start:
    """What the regression hands to the training: the maps, and the units in which to change them."""

    weight: Tensor
    """A, [L, D, D]."""
    bias: Tensor
    """b, [L, D]."""
    mean: Tensor
    """μ of each layer's stream, [L, D]."""
    scale: Tensor
    """σ of each layer's stream, [L, D]: the unit of what a map reads."""
    left: Tensor
    """σ of what the regression leaves unexplained of the last stream, [L, D]: the unit of what a map may still add."""


class Regression:
    """Sums over tokens, `tensors`, that determine the regression. Shapes: see `begin`."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}

    def add(self, places_NSD: Tensor) -> None:
        """Take in the streams of N more tokens."""
        if not self.tensors:
            self._begin(places_NSD)
        sums = self.tensors
        x_LND, y_LND = self._in_units(places_NSD.float().transpose(0, 1))
        sums["count"] += len(places_NSD)
        sums["x"] += x_LND.sum(1)
        sums["y"] += y_LND.sum(1)
        sums["yy"] += y_LND.square().sum(1)
        sums["xx"].baddbmm_(x_LND.mT, x_LND)
        sums["xy"].baddbmm_(x_LND.mT, y_LND)

    def _begin(self, places_NSD: Tensor) -> None:
        streams_SND = places_NSD.float().transpose(0, 1)
        width, layers = places_NSD.shape[-1], places_NSD.shape[1] - 1
        new = streams_SND.new_zeros
        self.tensors = {
            "mean": streams_SND.mean(1), "scale": _at_least(streams_SND.std(1)), "count": new(()),
            "x": new(layers, width), "y": new(layers, width), "yy": new(layers, width),
            "xx": new(layers, width, width), "xy": new(layers, width, width),
        }

    def _in_units(self, streams_SND: Tensor) -> tuple[Tensor, Tensor]:
        mean_SD, scale_SD = self.tensors["mean"], self.tensors["scale"]
        x_LND = (streams_SND[:-1] - mean_SD[:-1, None]) / scale_SD[:-1, None]
        change_LND = (streams_SND[-1] - mean_SD[-1]) - (streams_SND[:-1] - mean_SD[:-1, None])
        return x_LND, change_LND / scale_SD[-1]

    def solve(self) -> Start:
        """The maps of every layer but the last. RunError if a stream overflowed."""
        sums = self.tensors
        n = sums["count"]
        mean_SD, scale_SD = sums["mean"], sums["scale"]
        x_LD, y_LD = sums["x"] / n, sums["y"] / n
        xx_LDD = sums["xx"] / n - x_LD[:, :, None] * x_LD[:, None]
        xy_LDD = sums["xy"] / n - x_LD[:, :, None] * y_LD[:, None]
        b_LDD = torch.stack([_ridge(xx_DD, xy_DD, float(n)) for xx_DD, xy_DD in zip(xx_LDD, xy_LDD, strict=True)])
        explained_LD = (b_LDD * (2 * xy_LDD - xx_LDD @ b_LDD)).sum(1)
        left_LD = (sums["yy"] / n - y_LD.square() - explained_LD).clamp_min(0).sqrt()
        weight_LDD = scale_SD[-1][:, None] * b_LDD.mT / scale_SD[:-1, None]
        mean_LD = mean_SD[:-1] + scale_SD[:-1] * x_LD
        change_LD = mean_SD[-1] - mean_SD[:-1] + scale_SD[-1] * y_LD
        bias_LD = change_LD - (weight_LDD @ mean_LD[:, :, None]).squeeze(-1)
        return Start(weight_LDD, bias_LD, mean_LD, scale_SD[:-1], _at_least(left_LD * scale_SD[-1]))


def _ridge(xx_DD: Tensor, xy_DD: Tensor, n: float) -> Tensor:
    """(xx + D/n · 1)⁻¹ xy, in float64 on the processor: MKL's batched float32 solver fails under two threads."""
    if not bool(xx_DD.isfinite().all() and xy_DD.isfinite().all()):
        raise RunError("the residual streams hold NaN or infinity: the forward pass overflowed; load the model in "
                       "float32")
    eye_DD = torch.eye(len(xx_DD), dtype=torch.float64)
    factor_DD = torch.linalg.cholesky(xx_DD.cpu().double() + eye_DD * (len(xx_DD) / n))
    return torch.cholesky_solve(xy_DD.cpu().double(), factor_DD).to(xx_DD)


def _at_least(scale_SD: Tensor) -> Tensor:
    return torch.maximum(scale_SD, LEAST_SCALE * scale_SD.mean(1, keepdim=True))
