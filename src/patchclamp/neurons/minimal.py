"""Smallest groups: neurons without which a behaviour goes, and neurons that suffice to bring it back.

Both start from a ranking, grow until a bound is met, and are then pruned exactly: as long as any single member can be
left out and the bound still holds, the one that matters least is left out. What remains is minimal in the sense that no
single member can go; another minimal group may exist.
"""

from collections.abc import Callable, Sequence

import numpy as np

from patchclamp.evidence.choices import Choice
from patchclamp.evidence.method import Progress
from patchclamp.forward import Edit, Model, Plan, Readout, Site

Measure = Callable[[Sequence[Sequence[Site]]], np.ndarray]
"""Mean logit difference with each of several groups ablated."""


def measure_ablated(
    model: Model, choices: Sequence[Choice], edit: Callable[[Site], Edit], progress: Progress
) -> Measure:
    """Mean of logit(answer) - logit(distractor) over the choices with a group of neurons ablated."""
    reads = [[Readout.logit_difference(choice.answer, choice.distractor)] for choice in choices]

    def measure(groups: Sequence[Sequence[Site]]) -> np.ndarray:
        plan = Plan.of((choice.prompt, [edit(site) for site in group], read) for group in groups
                       for choice, read in zip(choices, reads, strict=True))
        values = [float(row[0]) for row in model.execute(plan, track=progress.track)]
        return np.array(values).reshape(len(groups), -1).mean(1)

    return measure


def necessary(measure: Measure, ranked: Sequence[Site], at_most: float) -> list[Site] | None:
    """A minimal group whose ablation brings the measure down to `at_most`; None if all together do not."""
    return _pruned(measure, ranked, at_most)


def sufficient(measure: Measure, ranked: Sequence[Site], at_least: float) -> list[Site] | None:
    """A minimal group that, spared while the rest of `ranked` is ablated, keeps the measure at `at_least`; None if
    sparing all does not."""

    def lost(groups: Sequence[Sequence[Site]]) -> np.ndarray:
        return -measure([[site for site in ranked if site not in {*group}] for group in groups])

    return _pruned(lost, ranked, -at_least)


def _pruned(cost: Measure, ranked: Sequence[Site], bound: float) -> list[Site] | None:
    """Grow by rank to the first size whose cost is within the bound, then leave out one after the other, each time the
    one without which the cost is least."""
    fits = cost([ranked[:k] for k in range(1, len(ranked) + 1)]) <= bound
    if not fits.any():
        return None
    group = list(ranked[: int(fits.argmax()) + 1])
    while len(group) > 1:
        without = [[site for site in group if site is not left] for left in group]
        costs = cost(without)
        if costs.min() > bound:
            break
        group = without[int(costs.argmin())]
    return group
