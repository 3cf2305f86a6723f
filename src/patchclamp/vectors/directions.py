"""From states on two sides to a direction: the ways of finding one, as pure functions.

With h+ the states that show the behaviour and h- those that do not:

    mean        v = mean(h+) - mean(h-)             Rimsky et al. 2023, 2312.06681; Arditi et al. 2024, 2406.11717
    pca         v = first principal component of h+_i - h-_i over pairs i, turned towards h+    Zou 2023, 2310.01405
    logistic    v = weights of a logistic regression that tells h+ from h-      Li et al. 2023, 2306.03341 (per head)
    mass-mean   v = Σ⁻¹ (mean(h+) - mean(h-)), Σ the covariance within the sides    Marks & Tegmark 2023, 2310.06824

Shape suffixes: P showing, M plain, W width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from patchclamp.errors import InputError
from patchclamp.evidence.association import associate, scores

How = Literal["mean", "pca", "logistic", "mass-mean"]
"""The ways of finding a direction."""
PENALTY = 1.0
"""Inverse strength of the logistic regression's ridge, on states of deviation one."""


def mean_difference(showing_PW: Tensor, plain_MW: Tensor) -> Tensor:
    """mean(showing) - mean(plain), [W]."""
    return showing_PW.mean(0) - plain_MW.mean(0)


def paired_component(showing_PW: Tensor, plain_MW: Tensor) -> Tensor:
    """The first principal component of the pairs' differences, length one, [W].

    The differences are centred first, so it is where they vary most, not their mean; most pairs' showing side lies
    further along it. InputError for sides of unequal length.
    """
    if len(showing_PW) != len(plain_MW) or len(showing_PW) < 2:
        raise InputError(
            f"pca takes the differences of pairs, and there are {len(showing_PW)} showing and "
            f"{len(plain_MW)} plain prompts; give as many of both, at least two, in the same order"
        )
    gaps_PW = showing_PW - plain_MW
    component_W = torch.linalg.svd(gaps_PW - gaps_PW.mean(0), full_matrices=False).Vh[0]
    ahead = (gaps_PW @ component_W).sign().sum()
    return -component_W if ahead < 0 else component_W


def logistic_weights(showing_PW: Tensor, plain_MW: Tensor) -> Tensor:
    """Weights of a ridge-penalised logistic regression in the states' own units, [W]."""
    from sklearn.linear_model import LogisticRegression

    both_NW = torch.cat([showing_PW, plain_MW])
    scale_W = both_NW.std(0).clamp(min=1e-12)
    labels_N = np.repeat([1, 0], [len(showing_PW), len(plain_MW)])
    fitted = LogisticRegression(C=PENALTY / len(both_NW), max_iter=1000).fit(
        ((both_NW - both_NW.mean(0)) / scale_W).numpy(), labels_N
    )
    return torch.from_numpy(fitted.coef_[0]) / scale_W


def mass_mean(showing_PW: Tensor, plain_MW: Tensor) -> Tensor:
    """Σ⁻¹ (mean(showing) - mean(plain)), Σ shrunk towards a multiple of the identity (Ledoit & Wolf 2004), [W]."""
    from sklearn.covariance import ledoit_wolf

    within_NW = torch.cat([showing_PW - showing_PW.mean(0), plain_MW - plain_MW.mean(0)])
    covariance_WW = torch.from_numpy(ledoit_wolf(within_NW.numpy(), assume_centered=True)[0])
    return torch.linalg.solve(covariance_WW, mean_difference(showing_PW, plain_MW))


WAYS: dict[How, Callable[[Tensor, Tensor], Tensor]] = {
    "mean": mean_difference,
    "pca": paired_component,
    "logistic": logistic_weights,
    "mass-mean": mass_mean,
}


def direction(how: How, showing_PW: Tensor, plain_MW: Tensor) -> Tensor:
    """The direction from plain to showing, [W] in float64. InputError where the two sides are the same."""
    showing_PW, plain_MW = showing_PW.double().cpu(), plain_MW.double().cpu()
    for states_NW in (showing_PW, plain_MW):
        if not bool(states_NW.isfinite().all()):
            raise InputError("a state holds NaN or infinity; load the model in float32")
    if torch.equal(showing_PW.mean(0), plain_MW.mean(0)):
        raise InputError(
            "the mean states of both sides are equal, so their difference points nowhere: the model reads "
            "the same at the chosen position on both sides; choose another one"
        )
    return WAYS[how](showing_PW, plain_MW)


def auroc(showing_P: Tensor, plain_M: Tensor) -> float:
    """Probability that a showing prompt's projection exceeds a plain one's, ties counted half (Mann-Whitney)."""
    both_N1 = torch.cat([showing_P, plain_M])[:, None].numpy()
    is_showing_N = np.repeat([True, False], [len(showing_P), len(plain_M)])
    return float(associate(scores(both_N1, "auroc"), is_showing_N[None], "auroc")[0, 0])


def held_out_auroc(how: How, showing_PW: Tensor, plain_MW: Tensor, folds: int = 4, seed: int = 0) -> float:
    """AUROC on prompts that had no part in finding the direction: mean over folds, pairs kept together."""
    generator = np.random.default_rng(seed)
    parts = [generator.permutation(len(side)) % folds for side in (showing_PW, plain_MW)]
    if len(showing_PW) == len(plain_MW):
        parts[1] = parts[0]
    found = []
    for fold in range(folds):
        in_P, in_M = (torch.from_numpy(part != fold) for part in parts)
        found_W = direction(how, showing_PW[in_P], plain_MW[in_M])
        found.append(auroc(showing_PW[~in_P].double() @ found_W, plain_MW[~in_M].double() @ found_W))
    return float(np.mean(found))
