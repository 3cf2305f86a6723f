"""Ablation: what happens without these neurons (or heads), beside as many random ones of the same layers.

Zero is itself an intervention, so three ways of taking a unit away stand side by side (`removal`). Self-repair and
redundancy make single ablations small (McGrath et al. 2023, arXiv 2307.15771): probabilities move, words do not.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import numpy as np
from pydantic import BeforeValidator, Field

from patchclamp.errors import SpecError
from patchclamp.evidence.choices import Choice, ChoicesSpec, Scores, read_choices, score_unedited
from patchclamp.evidence.cli_hints import CommaList, Positional
from patchclamp.evidence.method import Outcome, Part, Progress, Result, method
from patchclamp.forward import Model, Site
from patchclamp.neurons.groups import Controls, Group, Measured, measure_group
from patchclamp.neurons.removal import How, Removal, check_units, corpus_texts, removal
from patchclamp.tasks.files import DataFile

if TYPE_CHECKING:
    import altair
    import pandas

ANSWERS_SHOWN = 8
"""Prompts whose generated text is kept."""


def _listed(value: object) -> object:
    return (value,) if isinstance(value, str) else value


class AblateSpec(ChoicesSpec):
    """Which units to ablate, and on what."""

    sites: Annotated[tuple[Site, ...], Positional()] = Field(min_length=1)
    """Neurons, gates or heads, e.g. neuron.19.1044 or head.9.6@last: together one group."""
    how: Annotated[tuple[How, ...], BeforeValidator(_listed), CommaList()] = ()
    """What is put in the place of the activation: zero, mean (its mean over a corpus) or resample (its value in another
    prompt). By default all three, the last where every prompt has a partner of its length or one position is named."""
    ranked: bool = False
    """Grow the group one site at a time, k = 1 to n, in the order given."""
    corpus: DataFile | None = None
    """For mean: a text file, JSONL or Parquet with a text column; the built-in neutral corpus if not given."""
    other: tuple[DataFile, ...] = ()
    """Choice files of other behaviours, on which the same groups are tried as well. Rows that `where` leaves out are
    always among these."""
    answers: int = Field(0, ge=0, le=500)
    """Also let the model write on for so many tokens after the first prompts, with and without the whole group
    (resampled only at one named position: other prompts have no values for tokens that are still to be written)."""
    controls: int = Field(20, ge=2)
    """How many random groups of the same layers stand beside each group; fewer where a layer has fewer, and no verdict
    for or against where it has none."""


class OffTarget(Part):
    """The same groups on other choices."""

    name: str
    """The file, or the rows that `where` leaves out."""
    prompts: int
    right: float
    """Share on which the unedited model prefers the answer to the distractor."""
    groups: list[Group]


class Written(Part):
    """What the model writes after one prompt."""

    prompt: str
    by: str
    base: str
    edited: str


class Ablation(Result):
    """Ablated groups and their controls."""

    groups: list[Group]
    """One for each size, ablated in the first of the ways."""
    other_ways: list[Group]
    """The same groups ablated in the other ways."""
    off_target: list[OffTarget]
    base_logit_difference: float
    """Of the unedited model, mean over prompts."""
    base_probability: float
    """Of the answer in the unedited model, mean over prompts."""
    prompts: int
    """Prompts scored."""
    skipped: int
    """Rows left out because one answer is a prefix of the other, or nothing stands before their difference."""
    right: float
    """Share of prompts on which the unedited model prefers the answer to the distractor."""
    written: list[Written]
    """What the model writes with and without the whole group, if asked for."""

    def table(self) -> "pandas.DataFrame":
        """One row a group and measure: effect, and mean and range of the random groups."""
        import pandas

        sides = [("", self.groups + self.other_ways), *((other.name, other.groups) for other in self.off_target)]
        return pandas.DataFrame([
            {"on": on, "k": g.k, "sites": " ".join(g.sites), "by": g.by, "measure": name,
             "effect": getattr(g.effect, name), "random": r.mean, "random low": r.low, "random high": r.high}
            for on, groups in sides
            for g in groups
            for name in type(g.effect).model_fields
            for r in [getattr(g.random, name)]
        ])

    def chart(self) -> "altair.TopLevelMixin":
        """Effect against random groups, by size of the group."""
        from patchclamp.charts.neurons import ablation_chart

        return ablation_chart(self)


@method("neurons.ablate", spec=AblateSpec, result=Ablation)
def ablate(model: Model, spec: AblateSpec, progress: Progress) -> Outcome:
    """Take neurons or heads away and see what changes, beside random ones of the same layers.

    Effects are edited minus unedited, means over the prompts. The verdict asks whether the whole group, at its mean if
    that is among the ways, moves the logit difference further than random groups do.
    """
    check_units(model, spec.sites)
    choices = read_choices(model, spec.prompts, spec.where)
    texts = corpus_texts(spec.corpus)
    others = [(f"rows without {', '.join(spec.where)}", choices.others)] if choices.others else []
    others += [(name, read_choices(model, name).kept) for name in spec.other]
    base = score_unedited(model, choices.kept, progress)
    ways = _ways(spec, choices.kept, texts)
    measured = _grown(model, spec, ways, base, progress)
    off_target = []
    for name, some in others:
        their = score_unedited(model, some, progress)
        found = [m.group for m in _grown(model, spec, _ways(spec, some, texts), their, progress)]
        off_target.append(OffTarget(name=name, prompts=len(some), right=float(their.right.mean()), groups=found))
    groups = [m.group for m in measured]
    result = Ablation(
        groups=[g for g in groups if g.by == ways[0].how], other_ways=[g for g in groups if g.by != ways[0].how],
        off_target=off_target,
        base_logit_difference=float(base.logit_difference.mean()),
        base_probability=float(np.exp(base.logprob).mean()), prompts=len(choices.kept), skipped=choices.skipped,
        right=float(base.right.mean()), written=_written(model, spec, ways) if spec.answers else [],
    )
    judged = [m for m in measured if m.group.k == len(spec.sites)]
    whole = next((m for m in judged if m.group.by == "mean"), judged[0])
    return result, whole.verdict(
        f"ablating {named(spec.sites)} ({whole.group.by}) changes the logit difference more than random "
        f"{spec.sites[0].point}s of the same layers do", spec.seed)


def _ways(spec: AblateSpec, choices: Sequence[Choice], texts: tuple[str, ...]) -> list[Removal]:
    """The ways asked for; of the default ones those that are possible."""
    if spec.how:
        return [removal(how, choices, spec.sites, texts, spec.seed) for how in dict.fromkeys(spec.how)]
    ways = [removal(how, choices, spec.sites, texts, spec.seed) for how in ("zero", "mean")]
    try:
        return [*ways, removal("resample", choices, spec.sites, texts, spec.seed)]
    except SpecError:  # a prompt without a partner of its length
        return ways


def _grown(
    model: Model, spec: AblateSpec, ways: Sequence[Removal], base: Scores, progress: Progress
) -> list[Measured]:
    """The group of each size taken away in each way."""
    sizes = range(1, len(spec.sites) + 1) if spec.ranked else [len(spec.sites)]
    controls = Controls(model, spec.controls, spec.seed)
    return [measure_group(way, base, spec.sites[:k], spec.sites, controls, progress) for way in ways for k in sizes]


def _written(model: Model, spec: AblateSpec, ways: Sequence[Removal]) -> list[Written]:
    """What follows the first prompts, with and without the whole group."""
    prompts = [choice.prompt for choice in ways[0].choices[:ANSWERS_SHOWN]]
    base = model.generate(prompts, max_new_tokens=spec.answers)
    out = []
    single = all(site.positions.single for site in spec.sites)
    for way in [way for way in ways if way.how != "resample" or single]:
        edited = model.generate(prompts, way.edits(spec.sites)[:ANSWERS_SHOWN], spec.answers)
        out += [Written(prompt=model.decode(prompt), by=way.how, base=plain.text, edited=other.text)
                for prompt, plain, other in zip(prompts, base, edited, strict=True)]
    return out


def named(sites: Sequence[Site]) -> str:
    """The first of the sites, and how many more there are."""
    return ", ".join(str(s) for s in sites[:3]) + (f" and {len(sites) - 3} more" if len(sites) > 3 else "")
