"""Groups of units taken away, beside as many random units of the same layers."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from pydantic import BaseModel

from patchclamp.evidence.bootstrap import control_range
from patchclamp.evidence.choices import Scores, score
from patchclamp.evidence.controls import count_groups, random_units
from patchclamp.evidence.method import Progress
from patchclamp.evidence.verdict import Direction, Interval, Verdict, judge
from patchclamp.forward import Model, Site
from patchclamp.neurons.removal import Removal

NO_CONTROL = Interval(mean=math.nan, low=math.nan, high=math.nan)


class Effect(BaseModel):
    """Change from the unedited run, mean over prompts."""

    logprob: float
    """Log-probability of the answer, in nats."""
    probability: float
    """Probability of the answer."""
    logit_difference: float
    """logit(answer) - logit(distractor)."""
    accuracy: float
    """Share of prompts on which the answer is likelier than the distractor."""
    flips: float
    """Share of prompts whose most likely next token is another one."""


class RandomEffect(BaseModel):
    """The same for random groups: mean and the range in which one more random group would fall (95 %)."""

    logprob: Interval
    probability: Interval
    logit_difference: Interval
    accuracy: Interval
    flips: Interval


class Group(BaseModel):
    """One ablated group beside its control."""

    k: int
    """How many sites."""
    sites: list[str]
    by: str
    """How they were ablated."""
    effect: Effect
    random: RandomEffect


class Controls(NamedTuple):
    """Random groups to set beside groups of named units."""

    model: Model
    n: int
    """How many, where the blocks have so many."""
    seed: int

    def beside(self, group: Sequence[Site], targets: Sequence[Site]) -> list[list[Site]]:
        """Random groups with the same point, layers and positions, none holding a target; none at all where a block
        has too few units left."""
        anatomy, point = self.model.anatomy, group[0].point
        units, taken = _units(group), _units(targets)

        def n_units(layer: int) -> int:
            return anatomy.n_units(point, layer)

        left = Counter(layer for layer, _ in {*taken})
        profile = Counter(layer for layer, _ in units)
        if any(n_units(layer) - left[layer] < count for layer, count in profile.items()):
            return []
        n = min(self.n, count_groups(units, n_units, taken))
        drawn = random_units(units, n_units, n, self.seed, taken)
        return [[Site(point, layer, unit, site.positions) for (layer, unit), site in zip(some, group, strict=True)]
                for some in drawn]


def _units(sites: Sequence[Site]) -> list[tuple[int, int]]:
    return [(site.layer or 0, site.unit or 0) for site in sites]


class Measured(NamedTuple):
    """One group, and what it did to each prompt."""

    group: Group
    changes: dict[str, np.ndarray]
    """By measure [N]."""
    controls: dict[str, np.ndarray]
    """By measure [G, N], G random groups."""

    def verdict(
        self, claim: str, seed: int, measure: str = "logit_difference", direction: Direction = "differs"
    ) -> Verdict:
        """Whether the group moves the measure further than random groups do."""
        controls = self.controls[measure]
        return judge(
            self.changes[measure], controls if len(controls) else NO_CONTROL,
            claim=claim + ("" if len(controls) else " (a block has no such group left beside these)"),
            against="distribution", direction=direction, seed=seed,
        )


def measure_group(
    removal: Removal, base: Scores, group: Sequence[Site], targets: Sequence[Site], controls: Controls,
    progress: Progress,
) -> Measured:
    """Take a group away, and random groups beside it; `targets` are in no random group."""
    beside = controls.beside(group, targets)
    scores = score(controls.model, removal.choices, [removal.edits(sites) for sites in (group, *beside)], progress)
    changes = scores.changes(base)
    own = {name: values[0] for name, values in changes.items()}
    random = {name: values[1:] for name, values in changes.items()}
    return Measured(
        Group(
            k=len(group), sites=[str(s) for s in group], by=removal.how,
            effect=Effect(**{name: float(values.mean()) for name, values in own.items()}),
            random=RandomEffect(**{name: _range(name, values) for name, values in random.items()}),
        ),
        own, random,
    )


def _range(name: str, changes_GN: np.ndarray) -> Interval:
    return control_range(changes_GN.mean(1), share=name == "flips") if len(changes_GN) else NO_CONTROL
