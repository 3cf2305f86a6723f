"""What an experiment concludes: an effect beside its matched control, and the sentence that says why."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, WithJsonSchema

from patchclamp.errors import InputError

if TYPE_CHECKING:
    from patchclamp.evidence.bootstrap import Values

FEWEST = 6
"""Observations below which no interval decides: five values on one side of zero happen by chance 6 % of the
time (2 · 2⁻⁵), six 3 %. In simulations two samples of one normal distribution came out as different 35 % of
the time with two observations each, 3 % with six."""

FEWEST_EQUAL = 19
"""Control groups that all came out the same have no spread to extrapolate from; that the effect exceeds them all
then happens by chance once in as many trials as there are groups and one: 19 groups make that 5 %."""

Direction = Literal["differs", "greater", "less"]
Against = Literal["mean", "distribution"]
Outcome = Literal["supported", "not supported", "inconclusive"]
CONCLUSIONS = {
    "supported": "which supports that",
    "not supported": "which does not support that",
    "inconclusive": "which leaves open whether",
}

Bound = Annotated[
    float,
    BeforeValidator(lambda value: math.nan if value is None else value),
    WithJsonSchema({"anyOf": [{"type": "number"}, {"type": "null"}]}),
]
"""An end of an interval; NaN in Python and null in JSON when there is no interval."""


class Interval(BaseModel):
    """A mean with its 95 % bootstrap interval, or, for a control's distribution, its 95 % range."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    mean: Bound
    """The mean over the sample; NaN, in JSON null, if there was no sample."""
    low: Bound
    """The lower end (2.5 % quantile of the bootstrap means); NaN, in JSON null, if there is none."""
    high: Bound
    """The upper end (97.5 % quantile of the bootstrap means); NaN, in JSON null, if there is none."""

    @property
    def exists(self) -> bool:
        """Whether there is an interval around the mean: one observation has none."""
        return not (math.isnan(self.low) or math.isnan(self.high))

    def __str__(self) -> str:
        return f"{self.mean:.3g} [{self.low:.3g}, {self.high:.3g}]" if self.exists else f"{self.mean:.3g}"


NO_INTERVAL = Interval(mean=math.nan, low=math.nan, high=math.nan)
"""What a mean over no observations is."""


class Verdict(BaseModel):
    """Effect, control and the conclusion drawn from both."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    outcome: Outcome
    """What the evidence says of the claim."""
    reason: str
    """One sentence with the numbers that decided."""
    effect: Interval
    """The effect that was asked about."""
    control: Interval
    """The same measure under the matched control."""


def judge(
    effect: Interval | Values,
    control: Interval | Values,
    *,
    claim: str,
    direction: Direction = "differs",
    against: Against = "mean",
    share: bool = False,
    seed: int = 0,
) -> Verdict:
    """Decide whether `effect` stands out from `control`.

    `effect` is one number, one value a prompt [N], or an interval. `control` is one value a prompt [N] or a
    group [G], the groups' values prompt by prompt [G, N], or an interval; a control that is a known constant
    is an interval of no width. `claim` completes "which supports that …", e.g. "neuron.19.1044 lowers the
    logit difference".

    What the control becomes depends on what is claimed:

    - `against="mean"`: the control's mean with its bootstrap interval. For controls that are a condition of
      their own, such as other prompts or shuffled labels.
    - `against="distribution"`: the range in which one more control group would fall (`control_range`; the
      means over prompts of [G, N]). For random neurons, heads or directions, where the question is whether
      these stand out among such groups. Any group differs from the average group if one looks long enough. The
      range of a `share` ends at 0 and 1.

    Then two intervals decide, so that every reader can check the verdict from the numbers printed:

    1. too little to compare (against the mean, fewer than `FEWEST` values on a side; against the
       distribution, fewer than 2 groups, or than `FEWEST_EQUAL` that all came out the same): inconclusive;
    2. the effect's mean lies inside the control's interval or on the side not claimed: not supported;
    3. the whole effect interval lies beyond the control's, on the side claimed: supported;
    4. else, the mean beyond and the intervals overlapping: inconclusive.

    Against a distribution an effect of one observation has no interval and its value counts: the finding is
    about that one prompt, and the reason says so. That intervals do not overlap is stricter than a difference
    significant at 5 %, so the verdict errs towards "inconclusive". "Not supported" is no proof of absence.
    Passing an `Interval` states that it rests on enough observations.

    Raises InputError for values that are not finite numbers, or an unknown direction or comparison.
    """
    if direction not in ("differs", "greater", "less"):
        raise InputError(f"direction is differs, greater or less; got {direction!r}")
    if against not in ("mean", "distribution"):
        raise InputError(f"a control is compared by its mean or its distribution; got {against!r}")
    effect_interval, effect_size = _effect(effect, seed)
    control_interval, control_size = _control(control, against, share, seed)
    outcome, finding = _decide(
        effect_interval, effect_size, control_interval, control_size, direction, against == "distribution"
    )
    return Verdict(
        outcome=outcome,
        reason=f"{finding}, {CONCLUSIONS[outcome]} {claim.strip().rstrip('.')}.",
        effect=effect_interval,
        control=control_interval,
    )


def _decide(
    effect: Interval,
    effect_size: float,
    control: Interval,
    control_size: float,
    direction: Direction,
    is_distribution: bool,
) -> tuple[Outcome, str]:
    """The rule of `judge` and the sentence's first half. A sample given as an interval has infinite size."""
    few = _too_few("The control", control, control_size, 2 if is_distribution else FEWEST)
    if not is_distribution:
        few = few or _too_few("The effect", effect, effect_size, FEWEST)
    if not few and is_distribution and control.low == control.high and control_size < FEWEST_EQUAL:
        few = (f"The {control_size:.0f} control groups all came out as {control.mean:.3g}, which shows no spread to "
               f"compare with; {FEWEST_EQUAL} such groups would do")
    if few:
        return "inconclusive", few
    what = "what 95 % of control groups do" if is_distribution else "the control"
    finding = f"The effect {effect}{'' if effect.exists else ', of one observation,'}"
    if control.low <= effect.mean <= control.high:
        return "not supported", f"{finding} lies inside {what}, {control}"
    is_above = effect.mean > control.high
    place = "above" if is_above else "below"
    if direction == ("less" if is_above else "greater"):
        asked = "below" if is_above else "above"
        return "not supported", f"{finding} lies {place} {what}, {control}, not {asked}"
    low, high = (effect.low, effect.high) if effect.exists else (effect.mean, effect.mean)
    if low > control.high or high < control.low:
        return "supported", f"{finding} lies {place} {what}, {control}"
    return "inconclusive", f"{finding} lies {place} {what}, {control}, but the intervals overlap"


def _too_few(what: str, interval: Interval, size: float, least: int) -> str | None:
    if size < least:
        rests = f"{size:.0f} observation{'s' if size > 1 else ''}"
        return f"{what} {interval} rests on {rests}, where {least} are needed to compare"
    return None if interval.exists else f"{what} {interval} has no interval to compare by"


def _effect(values: Interval | Values, seed: int) -> tuple[Interval, float]:
    from patchclamp.evidence.bootstrap import bootstrap_mean, sample  # it needs Interval, defined here

    if isinstance(values, Interval):
        return values, math.inf
    values_N = sample(values, 0, 1).reshape(-1)
    return bootstrap_mean(values_N, seed), len(values_N)


def _control(values: Interval | Values, against: Against, share: bool, seed: int) -> tuple[Interval, float]:
    from patchclamp.evidence.bootstrap import bootstrap_groups, bootstrap_mean, control_range, sample

    if isinstance(values, Interval):
        return values, math.inf
    values_GN = sample(values, 0, 1, 2)
    if against == "distribution":
        values_G = values_GN.mean(axis=1) if values_GN.ndim == 2 else values_GN.reshape(-1)
        return control_range(values_G, share=share), len(values_G)
    if values_GN.ndim == 2:
        return bootstrap_groups(values_GN, seed), values_GN.size
    return bootstrap_mean(values_GN.reshape(-1), seed), values_GN.size
