"""How sure a mean is: seeded intervals by resampling, and the range of a control's distribution.

The percentile bootstrap (Efron & Tibshirani 1993, "An Introduction to the Bootstrap", chapter 13): draw as
many observations as there are, with replacement; take the mean; repeat. The middle 95 % of those means is the
interval. It assumes that observations (prompts, say) are independent draws from what the claim is about.

An interval from one observation does not exist, so its `low` and `high` are NaN (null in JSON). With few
observations the interval is too narrow: normal data of 3, 6 and 20 observations are covered 73 %, 87 % and
93 % of the time where 95 % is promised, and n equal observations give no width at all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from patchclamp.errors import InputError
from patchclamp.evidence.verdict import NO_INTERVAL, Interval

if TYPE_CHECKING:
    from torch import Tensor

Values: TypeAlias = "float | Sequence[float] | Sequence[Sequence[float]] | np.ndarray | Tensor"
"""Numbers in any container numpy or torch knows."""

RESAMPLES = 2000
BLOCK = 2**22
"""Most indices drawn at once: 32 MB, however long the sample."""


def bootstrap_mean(values: Values, seed: int, n: int = RESAMPLES, level: float = 0.95) -> Interval:
    """Mean of `values` [N] with the central `level` of the means of `n` resamples.

    The same seed and values give the same interval. One observation: `low` and `high` are NaN. Raises
    InputError for no values, values that are not a list of finite numbers, and a level outside (0, 1).
    """
    values_N = sample(values, 1)
    tails = _tails(level)
    size = len(values_N)
    # Deviations from one observation are averaged, so that equal observations have exactly their own mean.
    origin = float(values_N[0])
    gaps_N = values_N - origin
    mean = origin + float(gaps_N.mean())
    if size == 1:
        return Interval(mean=mean, low=math.nan, high=math.nan)
    generator = np.random.default_rng(seed)
    rows = max(1, BLOCK // size)
    blocks = (
        gaps_N[generator.integers(0, size, (min(rows, n - start), size))].mean(axis=1)
        for start in range(0, n, rows)
    )
    low, high = origin + np.quantile(np.concatenate(list(blocks)), tails)
    return Interval(mean=mean, low=float(low), high=float(high))


def paired_difference(
    first: Values, second: Values, seed: int, n: int = RESAMPLES, level: float = 0.95
) -> Interval:
    """Mean of `first - second` [N], resampling pairs: for two measures of the same prompts.

    What makes a prompt easy or hard for both drops out, so this interval is usually the narrower one. Raises
    InputError as `bootstrap_mean`, and when the lengths differ.
    """
    first_N, second_N = sample(first, 1), sample(second, 1)
    if len(first_N) != len(second_N):
        raise InputError(
            f"pairs need equally many values on both sides; got {len(first_N)} and {len(second_N)}"
        )
    return bootstrap_mean(first_N - second_N, seed, n, level)


def bootstrap_ratio(
    over: Values, under: Values, seed: int, n: int = RESAMPLES, level: float = 0.95
) -> Interval:
    """Σ `over` / Σ `under` [N], resampling pairs: for a pooled quotient, such as a share of variance, whose parts were
    measured on N texts.

    One pair: `low` and `high` are NaN. Raises InputError as `paired_difference`, and if Σ `under` is 0.
    """
    over_N, under_N = sample(over, 1), sample(under, 1)
    tails = _tails(level)
    if len(over_N) != len(under_N):
        raise InputError(f"a quotient needs equally many values on both sides; got {len(over_N)} and {len(under_N)}")
    if not under_N.sum():
        raise InputError("a quotient by a sum of 0 means nothing")
    mean, size = float(over_N.sum() / under_N.sum()), len(over_N)
    if size == 1:
        return Interval(mean=mean, low=math.nan, high=math.nan)
    # how often each pair was drawn says all that a sum needs to know
    generator = np.random.default_rng(seed)
    rows = max(1, BLOCK // size)
    quotients = []
    for start in range(0, n, rows):
        drawn_RN = generator.multinomial(size, np.full(size, 1 / size), size=min(rows, n - start))
        with np.errstate(divide="ignore", invalid="ignore"):
            quotients.append((drawn_RN @ over_N) / (drawn_RN @ under_N))
    low, high = np.nanquantile(np.concatenate(quotients), tails)
    return Interval(mean=mean, low=float(low), high=float(high))


def bootstrap_groups(values: Values, seed: int, n: int = RESAMPLES, level: float = 0.95) -> Interval:
    """Grand mean of `values` [G, N], G control groups measured on the same N prompts.

    Groups and prompts are both samples and every group sees every prompt, so each resample draws G groups and
    N prompts (the crossed, or "pigeonhole", bootstrap: Owen 2007, doi:10.1214/07-AOAS122; somewhat too wide
    rather than too narrow). An axis of length one is taken as fixed; if both are, `low` and `high` are NaN.
    Raises InputError as `bootstrap_mean`.
    """
    values_GN = sample(values, 2)
    tails = _tails(level)
    groups, prompts = values_GN.shape
    origin = float(values_GN[0, 0])
    gaps_GN = values_GN - origin
    mean = origin + float(gaps_GN.mean())
    if groups == prompts == 1:
        return Interval(mean=mean, low=math.nan, high=math.nan)
    generator = np.random.default_rng(seed)
    # How often each group and prompt was drawn says all that a mean needs to know of a resample.
    group_share = generator.multinomial(groups, np.full(groups, 1 / groups), size=n) / groups
    prompt_share = generator.multinomial(prompts, np.full(prompts, 1 / prompts), size=n) / prompts
    low, high = origin + np.quantile(((group_share @ gaps_GN) * prompt_share).sum(axis=1), tails)
    return Interval(mean=mean, low=float(low), high=float(high))


def mean_if_any(values: Sequence[float] | np.ndarray, seed: int) -> Interval:
    """`bootstrap_mean`, or `NO_INTERVAL` where there may be no observation at all."""
    return bootstrap_mean(np.asarray(values, dtype=float), seed) if len(values) else NO_INTERVAL


def control_range(values: Values, level: float = 0.95, share: bool = False) -> Interval:
    """Mean of `values` [G], one a control group, and the range in which one more such group would fall.

    The prediction interval `mean ± t · s · √(1 + 1/G)`, with s the standard deviation of the groups and t the
    quantile of Student's distribution with G-1 degrees of freedom (Hahn & Meeker 1991, "Statistical
    Intervals", chapter 4). It assumes that groups vary roughly normally. Unlike an interval of the mean it
    does not shrink to nothing as groups are added, and few groups make it wide: ±12.7·1.2 s for two, ±2.4 s
    for ten. One group has no range: NaN. A `share` lies between 0 and 1, and so does its range. Raises InputError
    as `bootstrap_mean`.
    """
    from scipy.special import stdtrit

    values_G = sample(values, 1)
    upper = _tails(level)[1]
    size = len(values_G)
    gaps_G = values_G - values_G[0]
    mean = float(values_G[0] + gaps_G.mean())
    if size == 1:
        return Interval(mean=mean, low=math.nan, high=math.nan)
    reach = float(stdtrit(size - 1, upper) * gaps_G.std(ddof=1) * math.sqrt(1 + 1 / size))
    low, high = mean - reach, mean + reach
    return Interval(mean=mean, low=max(low, 0.0) if share else low, high=min(high, 1.0) if share else high)


def sample(values: Any, *dimensions: int) -> np.ndarray:
    """`values` as a float64 array with one of these numbers of dimensions.

    Tensors of any dtype and device are taken, gradients and all. Raises InputError unless the values form a
    rectangle, there is at least one, and all are finite.
    """
    if hasattr(values, "detach"):
        values = values.detach().cpu().double().numpy()
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"a sample is a rectangle of numbers: {error}") from error
    if array.ndim not in dimensions:
        expected = " or ".join(map(str, dimensions))
        raise InputError(f"expected values of {expected} dimension(s), got shape {list(array.shape)}")
    if array.size == 0:
        raise InputError("a sample needs at least one value; got none")
    wrong = np.argwhere(~np.isfinite(array))
    if len(wrong):
        place = tuple(int(i) for i in wrong[0])
        raise InputError(
            f"{len(wrong)} of {array.size} values are not finite (the first is {array[place]}, at "
            f"{list(place)}); a mean over them means nothing: leave those rows out and count them"
        )
    return array


def _tails(level: float) -> tuple[float, float]:
    if not 0 < level < 1:
        raise InputError(f"an interval's level lies between 0 and 1 (say 0.95); got {level}")
    return (1 - level) / 2, (1 + level) / 2
