"""Degree: does more of a neuron mean more of the behaviour?

The activation is scaled, or set to values over a range, and a graded readout is taken at each dose. A curve that rises
with every dose has Spearman correlation 1, even if it hardly rises: so its height is compared with random neurons of
the same layer, which are given the same doses in their own standard deviations.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field, model_validator

from patchclamp.errors import SpecError
from patchclamp.evidence.bootstrap import bootstrap_mean, control_range
from patchclamp.evidence.cli_hints import CommaList, Positional
from patchclamp.evidence.method import Outcome, Part, Progress, Result, method
from patchclamp.evidence.verdict import Interval, Verdict, judge
from patchclamp.forward import Edit, Model, Site
from patchclamp.neurons.graded import GradedSpec, graded
from patchclamp.neurons.groups import NO_CONTROL, Controls
from patchclamp.neurons.removal import check_units

if TYPE_CHECKING:
    import altair
    import pandas

SCALES = (-2.0, -1.0, 0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0)
DEVIATIONS = (-4.0, -3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0)


class DoseSpec(GradedSpec):
    """Which neurons get which doses."""

    sites: Annotated[tuple[Site, ...], Positional()] = Field(min_length=1)
    """Neurons or gates, e.g. neuron.19.1044 or neuron.19.1044@last: together one group, each with the same dose."""
    by: Literal["scale", "set"] = "scale"
    """Multiply the activation, or write a value in its place: its mean over a neutral corpus and so many of its
    standard deviations there."""
    doses: Annotated[tuple[float, ...], CommaList()] = ()
    """Factors, or standard deviations from the mean; by default -2 to 4 times, or -4 to 4 deviations."""
    controls: int = Field(10, ge=2)
    """Random groups of the same layers, given the same doses."""

    @model_validator(mode="after")
    def _several(self) -> "DoseSpec":
        if self.doses and len({*self.doses}) < 3:
            raise ValueError("a curve needs three different doses or more")
        return self


class Dosed(Part):
    """One dose."""

    dose: float
    """The factor, or the standard deviations from the mean."""
    readout: Interval
    """Mean over prompts."""
    random: Interval
    """Mean over random groups, and the range in which one more would fall."""


class DoseResult(Result):
    """The curve, and how far it rises with the dose."""

    curve: list[Dosed]
    spearman: Interval
    """Rank correlation of dose and readout along each prompt's curve, mean over prompts; 1 is a curve that rises with
    every dose. Prompts whose readout never changes count as 0."""
    change: Interval
    """Readout at the highest dose less that at the lowest, mean over prompts."""
    random_change: Interval
    readout: str
    """What was measured."""
    by: str
    sites: list[str]
    prompts: int
    texts: list[str]
    """For readouts of answers: what the model wrote after the first prompt, by dose."""

    def table(self) -> "pandas.DataFrame":
        """One row a dose."""
        import pandas

        return pandas.DataFrame([
            {"dose": d.dose, "readout": d.readout.mean, "low": d.readout.low, "high": d.readout.high,
             "random": d.random.mean, "random low": d.random.low, "random high": d.random.high} for d in self.curve])

    def chart(self) -> "altair.TopLevelMixin":
        """The curve with its interval, beside random neurons' range."""
        from patchclamp.charts.neurons import dose_chart

        return dose_chart(self)


@method("neurons.dose", spec=DoseSpec, result=DoseResult)
def dose(model: Model, spec: DoseSpec, progress: Progress) -> Outcome:
    """Give neurons doses from below to above their own activation and take a graded readout at each.

    The verdict asks whether the readout changes further from the lowest to the highest dose than with random neurons of
    the same layer; where the curve does not go one way (the interval of Spearman's correlation holds 0), that supports
    no degree and the verdict is inconclusive.
    """
    check_units(model, spec.sites)
    if spec.sites[0].point == "head":
        raise SpecError("a head is no single number to give doses of; `neurons ablate` takes heads away")
    doses = sorted({*(spec.doses or (SCALES if spec.by == "scale" else DEVIATIONS))})
    groups = [list(spec.sites), *Controls(model, spec.controls, spec.seed).beside(spec.sites, spec.sites)]
    edits = [_edits(model, spec.by, group, one) for group in groups for one in doses]
    readings = graded(model, spec, edits, progress)
    values_GDN = readings.values.reshape(len(groups), len(doses), -1)
    own_DN, random_GDN = values_GDN[0], values_GDN[1:]
    curve = [
        Dosed(dose=one, readout=bootstrap_mean(own_DN[i], spec.seed),
              random=control_range(random_GDN[:, i].mean(1)) if len(random_GDN) else NO_CONTROL)
        for i, one in enumerate(doses)
    ]
    spearman = bootstrap_mean(np.array([_monotone(doses, own_DN[:, i]) for i in range(own_DN.shape[1])]), spec.seed)
    change_N, random_GN = own_DN[-1] - own_DN[0], random_GDN[:, -1] - random_GDN[:, 0]
    result = DoseResult(
        curve=curve, spearman=spearman, change=bootstrap_mean(change_N, spec.seed),
        random_change=control_range(random_GN.mean(1)) if len(random_GN) else NO_CONTROL, readout=readings.name,
        by=spec.by, sites=[str(site) for site in spec.sites], prompts=own_DN.shape[1],
        texts=readings.texts[: len(doses)],
    )
    return result, _verdict(spec, change_N, random_GN, spearman, readings.name)


def _verdict(
    spec: DoseSpec, change_N: np.ndarray, random_GN: np.ndarray, spearman: Interval, readout: str
) -> Verdict:
    names = ", ".join(map(str, spec.sites[:3])) + (" and others" if len(spec.sites) > 3 else "")
    verdict = judge(
        change_N, random_GN if len(random_GN) else NO_CONTROL, against="distribution", seed=spec.seed,
        claim=f"the degree of {names} sets {readout} (change from the lowest to the highest dose, against random "
              f"neurons of the same layer; Spearman {spearman})")
    one_way = spearman.exists and spearman.low * spearman.high > 0
    if verdict.outcome != "supported" or one_way:
        return verdict
    return verdict.model_copy(update={
        "outcome": "inconclusive", "reason": f"The curve does not go one way (Spearman {spearman}): {verdict.reason}"})


def _edits(model: Model, by: str, sites: Sequence[Site], dose: float) -> list[Edit]:
    """One dose for every site of a group."""
    if by == "scale":
        return [Edit.scale(site, dose) for site in sites]
    edits = []
    for site in sites:
        (mean,), spread = model.mean_values([site]), model.value_sd(site)
        edits.append(Edit.set(site, float(mean) + dose * float(spread)))
    return edits


def _monotone(doses: Sequence[float], values_D: np.ndarray) -> float:
    """Spearman's correlation; 0 where the readout never changes."""
    from scipy.stats import spearmanr

    return float(spearmanr(doses, values_D).statistic) if np.ptp(values_D) > 0 else 0.0
