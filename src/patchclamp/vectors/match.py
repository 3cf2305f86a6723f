"""Random directions that do to a model as much as the vector does: same covariance as activations, same KL.

A direction drawn at random in all dimensions leaves the few in which activations live, and breaks some models at once.
So a control direction is the mean difference of two random halves of the training prompts' states, at the same sites,
each state less the mean of its own side: how activations vary where the behaviour does not. (Of the states as they are
the difference between the sides is the greatest variation, and a control would often be much of the vector again: of 20
from SmolLM2's refusal prompts after block 18, five had a cosine above .5 with it.) It is scaled until the next-token
distribution moves as far (KL, on the prompts given).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from patchclamp.evidence.controls import matching_strengths, random_split_directions
from patchclamp.evidence.written import kl_on
from patchclamp.forward import Edit, Model, Site
from patchclamp.vectors.vector import Setting

PROMPTS = 4
"""Prompts on which the KL is matched."""
ROUNDS = 6
LEAST_KL = 1e-6
"""What an edit without effect is matched to, nats."""


def within_sides(showing_NW: Tensor, plain_NW: Tensor) -> Tensor:
    """The states of both sides, each less its side's mean, [N,W]."""
    return torch.cat([side_NW - side_NW.mean(0) for side_NW in (showing_NW, plain_NW)])


def random_directions(states: dict[str, Tensor], n: int, seed: int) -> list[dict[str, Tensor]]:
    """`n` control directions, each at all sites from the same split, as long as the vector would be by chance.

    `states`: site -> states, of prompts on two sides each less its side's mean (`within_sides`), [N,W]."""
    by_site = {site: random_split_directions(states_NW, n, seed).float() for site, states_NW in states.items()}
    return [{site: directions[i] for site, directions in by_site.items()} for i in range(n)]


def added(directions: dict[str, Tensor], strength: float, positions: str, unit: Any = "sd") -> list[Edit]:
    """Edits that add a direction at each of its sites."""
    return [
        Edit.add(Site.parse(site).at(positions), direction, strength, unit) for site, direction in directions.items()
    ]


def matched(
    model: Model,
    directions: Sequence[dict[str, Tensor]],
    target: float,
    start: float,
    prompts: Sequence[Any],
    positions: str,
) -> list[float]:
    """For each direction the strength (standard deviations, with the sign of `start`) whose mean KL is `target`."""
    sign = 1 if start > 0 else -1

    def kl(strengths: np.ndarray) -> np.ndarray:
        settings = [added(one, sign * s, positions) for one, s in zip(directions, strengths.tolist(), strict=True)]
        return kl_on(model, prompts[:PROMPTS], settings).mean(1)

    found = matching_strengths(
        kl, max(target, LEAST_KL), len(directions), start=abs(start), tolerance=0.1, max_rounds=ROUNDS)
    return [sign * strength for strength in found.tolist()]


def control_edits(
    model: Model,
    states: dict[str, Tensor],
    setting: Setting,
    edits: Sequence[Edit],
    prompts: Sequence[Any],
    n: int,
    seed: int,
) -> list[list[Edit]]:
    """Edits that add `n` random directions as `setting` adds a vector, each stretched until it moves the model on the
    first prompts as far as `edits` do."""
    directions = random_directions(states, n, seed)
    target = float(kl_on(model, prompts[:PROMPTS], [edits]).mean())
    strengths = matched(model, directions, target, setting.strength, prompts, setting.positions)
    return [added(one, strength, setting.positions) for one, strength in zip(directions, strengths, strict=True)]
