"""Which of a dictionary's directions point almost the same way."""

import torch
from torch import Tensor
from torch.nn.functional import normalize

ENTRIES = 2**24
"""Cosines held at once: 64 MB, however many latents."""


@torch.no_grad()
def neighbours(
    directions_LD: Tensor, count: int = 1, asked: Tensor | None = None, skip: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """For each latent, or those `asked` for, the `count` others of the greatest cosine, greatest first: cosines
    [A, count] and latents [A, count]. `skip` [L]: latents that are nobody's neighbours (dead ones, say)."""
    unit_LD = normalize(directions_LD.float(), dim=1)
    asked_A = torch.arange(len(unit_LD)) if asked is None else asked
    count = min(count, len(unit_LD) - 1)
    cosines, latents = [], []
    for some_A in asked_A.split(max(1, ENTRIES // len(unit_LD))):
        cosines_AL = unit_LD[some_A] @ unit_LD.T
        cosines_AL[torch.arange(len(some_A)), some_A] = -torch.inf
        if skip is not None:
            cosines_AL[:, skip] = -torch.inf
        best = cosines_AL.topk(count, 1)
        cosines.append(best.values)
        latents.append(best.indices)
    return torch.cat(cosines), torch.cat(latents)
