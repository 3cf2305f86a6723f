"""What cut edges carry: the reference that a subgraph is run beside.

Shape suffixes: B prompts, S sources, T tokens, D model width, U units.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

Ablation = Literal["resample", "mean", "mean-per-position", "zero"]
"""What a cut edge carries: what its source wrote on the corrupted prompt; the mean of that over prompts and tokens, or
over prompts of the same length at the same token; nothing."""


def reference_of(wrote_BSTD: Tensor, ablation: Ablation) -> Tensor:
    """What cut edges carry, of what the sources wrote in the corrupted runs."""
    if ablation == "resample":
        return wrote_BSTD
    if ablation == "zero":
        return torch.zeros_like(wrote_BSTD)
    mean = wrote_BSTD.mean((0, 2) if ablation == "mean" else 0, keepdim=True)
    return mean.expand_as(wrote_BSTD).contiguous()


def pooled(means: Sequence[Tensor]) -> Tensor:
    """The mean over the prompts and tokens of all groups, of each group's own [B, …, T, X], the same everywhere in it:
    [1, …, 1, X]."""
    sizes = [mean.shape[0] * mean.shape[-2] for mean in means]
    total = torch.stack([mean[:1, ..., :1, :] * size for mean, size in zip(means, sizes, strict=True)]).sum(0)
    return total / sum(sizes)
