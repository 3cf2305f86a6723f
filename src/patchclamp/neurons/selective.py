"""How well units tell one concept's pictures from all others, form by form; pure functions of their values.

A unit's score is its smallest AUROC over the forms: of the concept's photos, drawings, words …, each against all
rivals' pictures of every form. One threshold on such a unit then tells the concept apart however it is shown; a unit
that likes all words alike has a score of .5 at most. Shape suffixes: N pictures, U units, F forms, R rivals' pictures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product

import numpy as np

from patchclamp.evidence.verdict import FEWEST, Interval

RESAMPLES = 2000
MANY_DEALINGS = 10_000
"""Up to so many ways are listed; of more, so many are drawn."""


class Ranked:
    """Units' values on N pictures, sorted once: the scores of any grouping of the pictures then cost one pass."""

    def __init__(self, values_NU: np.ndarray) -> None:
        n, units = values_NU.shape
        self._order_NU = values_NU.argsort(axis=0, kind="stable")
        sorted_NU = np.take_along_axis(values_NU, self._order_NU, axis=0)
        is_new_NU = np.ones((n, units), dtype=bool)
        is_new_NU[1:] = sorted_NU[1:] != sorted_NU[:-1]
        place_N1 = np.arange(n)[:, None]
        start_NU = np.maximum.accumulate(np.where(is_new_NU, place_N1, 0), axis=0)
        is_last_NU = np.vstack([is_new_NU[1:], np.ones((1, units), dtype=bool)])
        end_NU = np.minimum.accumulate(np.where(is_last_NU, place_N1 + 1, n)[::-1], axis=0)[::-1]
        self._start_NU, self._end_NU = np.empty_like(start_NU), np.empty_like(end_NU)
        np.put_along_axis(self._start_NU, self._order_NU, start_NU, axis=0)
        np.put_along_axis(self._end_NU, self._order_NU, end_NU, axis=0)

    def aurocs(self, shown: Sequence[np.ndarray], is_rival_N: np.ndarray) -> np.ndarray:
        """[F, U]: the chance that a picture of `shown[f]` (indices) has a larger value than a rival's, ties half."""
        n, units = self._order_NU.shape
        below_NU = np.zeros((n + 1, units), dtype=np.int64)
        np.cumsum(is_rival_N[self._order_NU], axis=0, out=below_NU[1:])
        rivals = int(is_rival_N.sum())
        out = []
        for rows in shown:
            under = np.take_along_axis(below_NU, self._start_NU[rows], axis=0)
            upto = np.take_along_axis(below_NU, self._end_NU[rows], axis=0)
            out.append((under + upto).mean(axis=0) / (2 * rivals))
        return np.array(out)


def score_interval(values_N: np.ndarray, shown: Sequence[np.ndarray], is_rival_N: np.ndarray, seed: int) -> Interval:
    """One unit's score (smallest AUROC over the forms) with a bootstrap interval: the pictures of each form and the
    rivals' are drawn anew, 2000 times."""
    generator = np.random.default_rng(seed)
    rivals_R = values_N[is_rival_N]
    count = len(rivals_R)
    weight_R = generator.multinomial(count, np.full(count, 1 / count), size=RESAMPLES) / count
    exact, drawn = [], []
    for rows in shown:
        mine = values_N[rows][:, None]
        won = (mine > rivals_R) + 0.5 * (mine == rivals_R)
        weight = generator.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), size=RESAMPLES) / len(rows)
        exact.append(won.mean())
        drawn.append(((weight @ won) * weight_R).sum(axis=1))
    low, high = np.quantile(np.min(drawn, axis=0), [0.025, 0.975])
    return Interval(mean=float(min(exact)), low=float(low), high=float(high))


def halves(categories: Sequence[str], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of two halves of the pictures, every category split alike; the odd one is in the second."""
    generator = np.random.default_rng(seed)
    first: list[int] = []
    second: list[int] = []
    for name in sorted(set(categories)):
        rows = generator.permutation([i for i, other in enumerate(categories) if other == name])
        first.extend(rows[: len(rows) // 2])
        second.extend(rows[len(rows) // 2 :])
    return np.array(sorted(first), dtype=int), np.array(sorted(second), dtype=int)


def dealings(concepts_by_form: Sequence[Sequence[str]], n: int, seed: int) -> list[tuple[str, ...]]:
    """Up to `n` different ways to deal each form another concept: photos of one thing, drawings of a second, words for
    a third. If fewer than six ways exist in which all differ, then ways in which at least two do; none if those are
    fewer than six too, as for one form: a range of so few says nothing."""
    generator = np.random.default_rng(seed)
    if math.prod(map(len, concepts_by_form)) <= MANY_DEALINGS:
        ways = list(product(*concepts_by_form))
    else:
        drawn = [generator.integers(len(some), size=MANY_DEALINGS) for some in concepts_by_form]
        named = [[some[i] for i in one] for some, one in zip(concepts_by_form, drawn, strict=True)]
        ways = list(dict.fromkeys(zip(*named, strict=True)))
    for different in (len(concepts_by_form), 2):
        mixed = [one for one in ways if len(set(one)) >= max(different, 2)]
        if len(mixed) >= FEWEST:
            return [mixed[i] for i in generator.permutation(len(mixed))[:n]]
    return []
