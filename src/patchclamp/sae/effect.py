"""What the model makes of reconstructions: the rest of the pass runs on them, and the next tokens' distribution is
compared with the clean run's.

    CE recovered = (CE_ablated - CE_reconstructed) / (CE_ablated - CE_clean)
    KL recovered = 1 - KL(clean ‖ reconstructed) / KL(clean ‖ ablated)

Ablated: zero, or the mean, in the value's place. Zero is what the field reports, and it flatters: a stream of zeros is
further from anything a model ever saw than its mean is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from patchclamp.errors import SpecError
from patchclamp.evidence.method import Progress
from patchclamp.forward import Edit, Model, Plan, Site

WINDOWS_AT_ONCE = 4
Ids = tuple[int, ...]


@dataclass(frozen=True)
class Losses:
    """Of some windows, [W]: mean over a window's predicted tokens, nats."""

    ce: Tensor
    """Cross-entropy of the next token."""
    kl: Tensor
    """KL(clean ‖ edited) of its distribution; 0 for the clean run."""


@torch.no_grad()
def losses(
    model: Model, windows: Sequence[Ids], site: str, instead: Mapping[str, Sequence[Tensor]], skip: int,
    progress: Progress,
) -> dict[str, Losses]:
    """Run windows with other values at a site, from the token number `skip` on: `instead` gives for each name a value
    [T - skip, D] a window. The clean run is called `clean`. What is predicted are the tokens after that one."""
    n_tokens = len(windows[0])
    if n_tokens - skip < 2:
        raise SpecError(f"windows of {n_tokens} tokens of which {skip} are left out have no token to predict")
    place = Site.parse(f"{site}@{skip}:")
    read = f"resid.{model.n_layers - 1}@{skip}:-1"
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ("clean", *instead)}
    starts = range(0, len(windows), WINDOWS_AT_ONCE)
    for first in progress.track(starts, "predicting from reconstructions", len(starts)):
        some = range(first, min(first + WINDOWS_AT_ONCE, len(windows)))
        names = [(number, name) for number in some for name in found]
        rows = [(windows[n], () if name == "clean" else [Edit.set(place, instead[name][n])], [read])
                for n, name in names]
        clean_TV = torch.empty(0)
        for (number, name), (resid_TD,) in zip(names, model.execute(Plan.of(rows)), strict=True):
            logs_TV = model.anatomy.unembed(resid_TD.to(model.device, model.dtype)).float().log_softmax(-1).cpu()
            if name == "clean":
                clean_TV = logs_TV
            next_T = torch.tensor(windows[number][skip + 1 :])
            ce = -float(logs_TV.gather(1, next_T[:, None]).double().mean())
            kl = float((clean_TV.exp() * (clean_TV - logs_TV)).sum(1).double().mean())
            found[name].append((ce, 0.0 if name == "clean" else kl))
    return {name: Losses(*torch.tensor(pairs, dtype=torch.float64).T) for name, pairs in found.items()}
