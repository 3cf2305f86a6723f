"""How well an identity holds: errors in units in the last place of the numbers that are added.

A tolerance relative to the largest value anywhere would prove nothing: SmolLM2's residual stream reaches 24,000 at the
first token and has a root mean square of 10 at the others, where an error of half a unit would then pass.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from patchclamp.errors import UnsupportedModel

SUM_ULPS = 4
"""For a product, or a sum of two or three terms in any order: each of at most four roundings is half a unit in the last
place of what the terms' magnitudes add up to."""
PART_ULPS, HALF_PART_ULPS = 64, 4
"""For sums of hundreds of products in another order, in units in the last place of the token's largest number: in
float32 (largest seen: 9, Gemma 3 270M), and in half precision, whose products are summed in float32 (0.8)."""
NORM_EPS = torch.finfo(torch.float32).eps
"""transformers computes softmax and most norms in float32, also in a float64 model."""

Pair = tuple[Tensor, Tensor, str]
"""What was computed from the parts, what the model has, and where."""


class Identity(NamedTuple):
    """One identity and how well it holds: its largest error over all blocks and tokens.

    The error is relative: for sums on the residual stream to the magnitude of the terms, number by number; for
    projections and logits to the largest number of the same token. `tolerance` is a few units in the last place of
    the model's number type.
    """

    name: str
    error: float
    tolerance: float
    ok: bool
    detail: str


def compare(name: str, pairs: list[Pair], scales: list[Tensor], ulps: int, eps: float = 0.0) -> Identity:
    """The largest |left − right| / scale, allowed to be `ulps` units in the last place (at least `ulps` × `eps`)."""
    worst, where = 0.0, "every block"
    for (left, right, label), scale in zip(pairs, scales, strict=True):
        if left.shape != right.shape:
            raise UnsupportedModel(f"{name}: {label} has shape {list(left.shape)}, expected {list(right.shape)}")
        eps = max(eps, torch.finfo(right.dtype).eps)
        left, scale = left.to(right.device), scale.to(right.device)
        apart = (left.double() - right.double()).abs() / scale.double().clamp(min=1e-30)
        error = float(apart.max())
        if not error <= worst:
            worst, where = error, label
        if error != error:  # not a number, which no later comparison may replace
            break
    tolerance = ulps * eps
    return Identity(name, worst, tolerance, worst <= tolerance, where)


def compare_rows(name: str, pairs: list[Pair]) -> Identity:
    """Relative to the largest number at each token, so that one token's huge values hide no error at the others."""
    half = pairs[0][1].dtype in (torch.float16, torch.bfloat16)
    eps = 0.0 if half else NORM_EPS
    scales = [right.abs().amax(-1, keepdim=True) for _, right, _ in pairs]
    return compare(name, pairs, scales, HALF_PART_ULPS if half else PART_ULPS, eps)


def compare_bits(name: str, pairs: list[Pair]) -> Identity:
    """Allowed no difference at all."""
    return compare(name, pairs, [right.abs() for _, right, _ in pairs], 0)
