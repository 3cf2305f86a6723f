"""How strongly many measures go with a label, and how strong the strongest of them would be by chance.

Shape suffixes: N prompts, U units, P labellings.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Literal

import numpy as np

Association = Literal["auroc", "point_biserial", "mean_difference"]
UNITS_AT_ONCE = 8192
ROUNDING = 2e-6
"""Scores are summed in float32: what is nearer than this is equal."""


def scores(values_NU: np.ndarray, by: Association) -> np.ndarray:
    """What a labelling's score is a linear function of, [N, U] in float32: ranks for AUROC, values of mean 0 and
    deviation 1 for the others. A unit that never varies scores as chance."""
    if by == "auroc":
        from scipy.stats import rankdata

        return np.asarray(rankdata(values_NU, axis=0), dtype=np.float32)
    centred = values_NU - values_NU.mean(0)
    spread = values_NU.std(0)
    return (centred / np.where(spread > 0, spread, 1)).astype(np.float32)


def associate(scores_NU: np.ndarray, labels_PN: np.ndarray, by: Association) -> np.ndarray:
    """The association of every unit with each labelling, [P, U], from what `scores` gave.

    auroc: probability that a labelled prompt's value exceeds another one's, ties counted half (Mann-Whitney), chance
    .5. point_biserial: correlation of value and label. mean_difference: of the two sides' means, in standard deviations
    over all prompts. Both sides have to have prompts.
    """
    n = labels_PN.sum(1, keepdims=True).astype(np.float64)
    m = labels_PN.shape[1] - n
    parts = [labels_PN.astype(np.float32) @ scores_NU[:, i : i + UNITS_AT_ONCE]
             for i in range(0, scores_NU.shape[1], UNITS_AT_ONCE)]
    sums_PU = np.concatenate(parts, axis=1).astype(np.float64)
    if by == "auroc":
        return (sums_PU - n * (n + 1) / 2) / (n * m)
    # the scores sum to 0 over all prompts, so the other side's sum is -sum
    difference_PU = sums_PU * (1 / n + 1 / m)
    return difference_PU if by == "mean_difference" else difference_PU * np.sqrt(n * m) / (n + m)


def strength(association: np.ndarray, by: Association) -> np.ndarray:
    """How far from chance, whichever the sign."""
    return np.abs(association - 0.5 if by == "auroc" else association)


def shuffled(labels_N: np.ndarray, n: int, seed: int) -> np.ndarray:
    """`n` random labellings with as many of either side, [n, N]."""
    generator = np.random.default_rng(seed)
    return generator.permuted(np.tile(labels_N, (n, 1)), axis=1)


def adjusted_p(observed_U: np.ndarray, null_P: np.ndarray) -> np.ndarray:
    """For each unit the share of shuffled labellings whose strongest unit of all is at least as strong, [U]: corrected
    for having looked at every unit (single-step maxT, Westfall & Young 1993), the true labelling counted among them."""
    ordered = np.sort(null_P)
    beyond_U = len(ordered) - np.searchsorted(ordered, observed_U - ROUNDING, side="left")
    return (1 + beyond_U) / (1 + len(ordered))


def half_of_each(labels_N: np.ndarray, sides: Iterable[Any], seed: int) -> np.ndarray:
    """Which prompts something is found with, [N]: a random half of each side's, the larger if it is odd. The others are
    for trying it."""
    generator, first_N = np.random.default_rng(seed), np.zeros(len(labels_N), dtype=bool)
    for side in sides:
        own = np.flatnonzero(labels_N == side)
        first_N[generator.permutation(own)[: (len(own) + 1) // 2]] = True
    return first_N


def rank_correlation(first_N: np.ndarray, second_N: np.ndarray) -> float:
    """Spearman's; NaN of fewer than two."""
    from scipy.stats import spearmanr

    return float(spearmanr(first_N, second_N).statistic) if len(first_N) > 1 else math.nan
