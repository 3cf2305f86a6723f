"""Matched controls: what else could have been done to the model, chosen blindly and reproducibly.

An effect means little beside nothing at all; the question is whether it stands out from the same operation on
units, directions or labels that differ only in being random. Everything here is pure and seeded. Shape
suffixes: N rows (prompts), D model width, K controls.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from patchclamp.errors import InputError

Unit = tuple[int, int]
"""(layer, unit): a neuron, a head or a feature."""
Label = TypeVar("Label")


def random_units(
    targets: Sequence[Unit],
    n_units: int | Callable[[int], int],
    n_groups: int,
    seed: int,
    exclude: Iterable[Unit] = (),
) -> list[list[Unit]]:
    """`n_groups` random groups with the targets' layer profile: element i is in the layer of target i.

    `n_units` is how many units a layer has (0 to n-1), or a function of the layer. No group holds a target or
    an excluded unit, none holds a unit twice, and no two groups are the same set; different groups may share
    units. Raises InputError when a target is listed twice or does not exist, and when fewer than `n_groups`
    such groups exist (`count_groups` tells how many do).
    """
    possible = count_groups(targets, n_units, exclude)
    if n_groups < 1:
        raise InputError(f"the number of control groups is at least 1; got {n_groups}")
    if possible < n_groups:
        raise InputError(
            f"only {possible} different control group(s) of {len(targets)} unit(s) match these targets, "
            f"not {n_groups}; ask for fewer groups or name fewer targets"
        )
    pools = _pools(targets, n_units, exclude)
    profile = Counter(layer for layer, _ in targets)
    generator = np.random.default_rng(seed)
    groups: list[list[Unit]] = []
    seen: set[frozenset[Unit]] = set()
    while len(groups) < n_groups:
        drawn = {
            layer: iter(generator.choice(pools[layer], size=count, replace=False))
            for layer, count in profile.items()
        }
        group = [(layer, int(next(drawn[layer]))) for layer, _ in targets]
        if frozenset(group) not in seen:
            seen.add(frozenset(group))
            groups.append(group)
    return groups


def count_groups(
    targets: Sequence[Unit], n_units: int | Callable[[int], int], exclude: Iterable[Unit] = ()
) -> int:
    """How many different groups `random_units` could draw: the product over layers of the ways to choose as
    many units as there are targets. Raises InputError when a layer has too few, or a target is wrong."""
    pools = _pools(targets, n_units, exclude)
    profile = Counter(layer for layer, _ in targets)
    for layer, count in profile.items():
        if len(pools[layer]) < count:
            raise InputError(
                f"layer {layer} has {len(pools[layer])} unit(s) left beside the targets, and a control group "
                f"needs {count} of them; name fewer targets in that layer"
            )
    return math.prod(math.comb(len(pools[layer]), count) for layer, count in profile.items())


def random_split_directions(acts_ND: Tensor, n: int, seed: int) -> Tensor:
    """Directions with the activations' own covariance: mean differences of random halves, [n, D].

    Each splits the rows in two at random, one row more in the second half if N is odd, and takes
    `mean(first) - mean(second)`. Over splits the covariance is `(1/N₁ + 1/N₂) Σ`, Σ the sample covariance of
    the rows. An isotropic direction of equal norm is no match: it leaves the few directions in which
    activations live, and does to a model what no activation does. Returned in the activations' dtype (float32
    at least) and on their device. Raises InputError for fewer than 2 rows, or values that are not finite.
    """
    if acts_ND.ndim != 2 or acts_ND.shape[0] < 2:
        raise InputError(
            f"splitting in halves needs activations [N, D], N at least 2; got {list(acts_ND.shape)}"
        )
    if n < 1:
        raise InputError(f"the number of control directions is at least 1; got {n}")
    if not bool(acts_ND.isfinite().all()):
        raise InputError("the activations hold NaN or infinity; a direction made of them means nothing")
    rows = acts_ND.shape[0]
    first = rows // 2
    exact_ND = acts_ND.detach().cpu().double()
    generator = torch.Generator().manual_seed(seed)
    order_KN = torch.rand(n, rows, generator=generator).argsort(dim=1)
    weights_KN = torch.full((n, rows), -1 / (rows - first), dtype=torch.float64)
    weights_KN.scatter_(1, order_KN[:, :first], 1 / first)
    # The weights sum to 0; subtracting the mean spares rows of a large common part the cancellation.
    directions_KD = weights_KN @ (exact_ND - exact_ND.mean(dim=0))
    dtype = torch.promote_types(acts_ND.dtype, torch.float32)
    return directions_KD.to(dtype=dtype, device=acts_ND.device)


def rescale(directions_KD: Tensor, norm: float | Tensor) -> Tensor:
    """Each direction at length `norm` (one number, or one a row, [K]); InputError for a zero direction."""
    norms_K = directions_KD.norm(dim=-1)
    if bool((norms_K == 0).any()):
        raise InputError("a direction of length 0 points nowhere and cannot be rescaled")
    return directions_KD * (torch.as_tensor(norm, device=norms_K.device) / norms_K).unsqueeze(-1).to(norms_K)


def matching_strengths(
    measure: Callable[[np.ndarray], np.ndarray],
    target: float,
    n: int,
    *,
    start: float = 1.0,
    tolerance: float = 0.05,
    max_rounds: int = 12,
    highest: float = 64.0,
) -> np.ndarray:
    """For each of `n` things the strength at which it moves the model by `target`: equal dose, not norm. [n]

    `measure` maps strengths [n], all > 0, to how far the model was moved by each, e.g. the mean KL divergence caused
    by adding each direction; each is taken to grow from 0. All are doubled or halved from `start` until the target is
    bracketed, then bisected geometrically, together, until all are within `tolerance` (relative) or the rounds are
    over; the nearest strengths seen are returned. None exceeds `highest` times `start`: some things level off below
    the target. Raises InputError unless target and start are positive.
    """
    if not (target > 0 and start > 0 and math.isfinite(target) and math.isfinite(start)):
        raise InputError(f"target and start are positive numbers; got {target} and {start}")
    low_K, high_K = np.zeros(n), np.full(n, np.inf)
    strength_K = np.full(n, float(start))
    best_K, off_K = strength_K.copy(), np.full(n, np.inf)
    for _ in range(max_rounds):
        reached_K = np.asarray(measure(strength_K), dtype=float)
        gap_K = np.abs(reached_K - target)
        best_K, off_K = np.where(gap_K < off_K, strength_K, best_K), np.minimum(gap_K, off_K)
        if (off_K <= tolerance * target).all():
            break
        is_below_K = reached_K < target
        low_K, high_K = np.where(is_below_K, strength_K, low_K), np.where(is_below_K, high_K, strength_K)
        middle_K = np.where(low_K > 0, np.sqrt(low_K * np.where(np.isinf(high_K), 0, high_K)), high_K / 2)
        strength_K = np.minimum(np.where(np.isinf(high_K), low_K * 2, middle_K), highest * start)
    return best_K


def shuffled_labels(labels: Sequence[Label], n: int, seed: int) -> list[list[Label]]:
    """`n` random permutations of `labels`: same counts, no relation to the rows.

    As in a permutation test, the original order is one of them by chance, which matters for very few rows.
    Raises InputError when all labels are the same, since no shuffle then changes anything.
    """
    if len(labels) < 2 or all(label == labels[0] for label in labels):
        raise InputError(
            f"shuffling needs at least two different labels; got {len(labels)} row(s) of one label"
        )
    if n < 1:
        raise InputError(f"the number of shuffles is at least 1; got {n}")
    generator = np.random.default_rng(seed)
    return [[labels[i] for i in generator.permutation(len(labels))] for _ in range(n)]


def _pools(
    targets: Sequence[Unit], n_units: int | Callable[[int], int], exclude: Iterable[Unit]
) -> dict[int, np.ndarray]:
    """The units of each targeted layer that are neither target nor excluded."""
    if not targets:
        raise InputError("controls match targets, and there are none; name at least one unit")
    twice = [unit for unit, count in Counter(targets).items() if count > 1]
    if twice:
        raise InputError(f"unit {twice[0][1]} of layer {twice[0][0]} is a target twice")
    taken = {*targets, *exclude}
    pools = {}
    for layer in {layer for layer, _ in targets}:
        size = n_units(layer) if callable(n_units) else n_units
        wrong = [unit for of, unit in targets if of == layer and not 0 <= unit < size]
        if wrong:
            raise InputError(
                f"layer {layer} has {size} units (0 to {size - 1}); target {wrong[0]} is not one of them"
            )
        pools[layer] = np.array([unit for unit in range(size) if (layer, unit) not in taken], dtype=np.int64)
    return pools
