"""Ablation: what happens without these neurons (or heads), beside as many random ones of the same layers.

Zero is itself an intervention: a neuron at zero may be as unusual as one at its largest. `mean` puts its mean
over a corpus, `resample` its value in another prompt of the file (Chan et al. 2022, "Causal scrubbing").
Self-repair and redundancy make single ablations small (McGrath et al. 2023, arXiv 2307.15771).
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import numpy as np
from pydantic import BaseModel, Field

from patchclamp.errors import PromptError, SpecError
from patchclamp.evidence.bootstrap import control_range
from patchclamp.evidence.cli_hints import Positional
from patchclamp.evidence.controls import count_groups, random_units
from patchclamp.evidence.method import Outcome, Progress, Result, Spec, method
from patchclamp.evidence.verdict import Interval, judge
from patchclamp.forward import Edit, Model, Plan, Readout, Site
from patchclamp.forward.prepare import check_site
from patchclamp.model.tokens import first_difference
from patchclamp.tasks.files import DataFile
from patchclamp.tasks.read import read_corpus, read_rows
from patchclamp.tasks.rows import ChoiceRow

if TYPE_CHECKING:
    import altair
    import pandas

NO_CONTROL = Interval(mean=math.nan, low=math.nan, high=math.nan)
UNITS = ("neuron", "gate", "head")
CORPUS_TEXTS = 64


class AblateSpec(Spec):
    """Which units to ablate, and on what."""

    sites: Annotated[tuple[Site, ...], Positional()] = Field(min_length=1)
    """Neurons, gates or heads, e.g. neuron.19.1044 or head.9.6@last: together one group."""
    prompts: DataFile
    """A choice file: rows with prompt, answer and distractor. `example:agreement` is a built-in one."""
    how: Literal["zero", "mean", "resample"] = "zero"
    """What is put in the place of the activation: zero, its mean over a corpus, or its value in another prompt."""
    ranked: bool = False
    """Grow the group one site at a time, k = 1 to n, in the order given."""
    corpus: DataFile | None = None
    """For `mean`: a text file, JSONL or Parquet with a text column; the built-in neutral corpus if not given."""
    controls: int = Field(20, ge=2)
    """How many random groups of the same layers stand beside each group; fewer where a layer has fewer, and no verdict
    for or against where it has none."""


class Effect(BaseModel):
    """Change from the unedited run, mean over prompts."""

    logprob: float
    """Log-probability of the answer, in nats."""
    logit_difference: float
    """logit(answer) - logit(distractor)."""
    flips: float
    """Share of prompts whose most likely next token is another one."""


class RandomEffect(BaseModel):
    """The same for random groups: mean and the range in which one more random group would fall (95 %)."""

    logprob: Interval
    logit_difference: Interval
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


class Ablation(Result):
    """Ablated groups and their controls."""

    groups: list[Group]
    base_logit_difference: float
    """Of the unedited model, mean over prompts."""
    prompts: int
    """Prompts scored."""
    skipped: int
    """Rows left out because one answer is a prefix of the other, or nothing stands before their difference."""
    right: float
    """Share of prompts on which the unedited model prefers the answer to the distractor."""

    def table(self) -> "pandas.DataFrame":
        """One row a group and measure: effect, and mean and range of the random groups."""
        import pandas

        return pandas.DataFrame([
            {"k": g.k, "sites": " ".join(g.sites), "by": g.by, "measure": name,
             "effect": getattr(g.effect, name), "random": r.mean, "random low": r.low, "random high": r.high}
            for g in self.groups
            for name in Effect.model_fields
            for r in [getattr(g.random, name)]
        ])

    def chart(self) -> "altair.TopLevelMixin":
        """Effect against random groups, by size of the group."""
        from patchclamp.charts.neurons import ablation_chart

        return ablation_chart(self)


class Choice(NamedTuple):
    """One row, scored at the first token in which answer and distractor differ."""

    prompt: tuple[int, ...]
    answer: int
    distractor: int


class Measured(NamedTuple):
    """What one run gave."""

    logprob: float
    logit_difference: float
    first: int


@method("neurons.ablate", spec=AblateSpec, result=Ablation)
def ablate(model: Model, spec: AblateSpec, progress: Progress) -> Outcome:
    """Take neurons or heads away and see what changes, beside random ones of the same layers.

    Effects are edited minus unedited, means over the prompts. The verdict asks whether the whole group moves the
    logit difference further than random groups do.
    """
    targets = [_target(model, site) for site in spec.sites]
    rows = read_rows(spec.prompts, ChoiceRow)
    choices = _choices(model, spec, rows)
    texts = tuple(read_corpus(spec.corpus, CORPUS_TEXTS)) if spec.corpus else ()
    base = _measure(model, choices, [None], spec, texts, progress)[0]
    groups, verdict = [], None
    for k in range(1, len(targets) + 1) if spec.ranked else [len(targets)]:
        group = targets[:k]
        controls = _controls(model, spec, group, targets)
        runs = _measure(model, choices, [spec.sites[:k], *controls], spec, texts, progress)
        changes_G = [_changes(run, base) for run in runs]
        groups.append(Group(
            k=k, sites=[str(s) for s in spec.sites[:k]], by=spec.how,
            effect=Effect(**{name: float(values.mean()) for name, values in changes_G[0].items()}),
            random=RandomEffect(**{name: _range(name, changes_G[1:]) for name in changes_G[0]}),
        ))
        verdict = judge(
            changes_G[0]["logit_difference"],
            np.array([c["logit_difference"] for c in changes_G[1:]]) if controls else NO_CONTROL,
            claim=f"ablating {_named(spec.sites[:k])} ({spec.how}) changes the logit difference more than random "
                  f"{spec.sites[0].point}s of the same layers do"
                  + ("" if controls else " (a block has no such group left beside these)"),
            against="distribution", seed=spec.seed,
        )
    result = Ablation(
        groups=groups, base_logit_difference=float(np.mean([m.logit_difference for m in base])), prompts=len(choices),
        skipped=len(rows) - len(choices), right=float(np.mean([m.logit_difference > 0 for m in base])),
    )
    return result, verdict


def _choices(model: Model, spec: AblateSpec, rows: Sequence[ChoiceRow]) -> list[Choice]:
    """Each row scored at the first differing token, rows that cannot be scored left out. Errors name the row."""
    choices = []
    for number, row in enumerate(rows, 1):
        scored = first_difference(model.tokenizer, row.prompt, row.answer, row.distractor)
        if scored is None or not scored[0]:
            continue
        try:
            model.encode(row.prompt)
            model.encode(scored[0])
        except PromptError as error:
            raise PromptError(f"{spec.prompts}, row {number}: {error}") from error
        choices.append(Choice(*scored))
    if not choices:
        raise SpecError(f"{spec.prompts}: in every row one answer is a prefix of the other, or nothing stands before "
                        "their first difference, so nothing can be scored")
    return choices


def _range(name: str, changes: Sequence[dict[str, np.ndarray]]) -> Interval:
    """The range of random groups."""
    if not changes:
        return NO_CONTROL
    return control_range([float(c[name].mean()) for c in changes], share=name == "flips")


def _named(sites: Sequence[Site]) -> str:
    return ", ".join(str(s) for s in sites[:3]) + (f" and {len(sites) - 3} more" if len(sites) > 3 else "")


def _target(model: Model, site: Site) -> tuple[int, int]:
    if site.point not in UNITS or site.unit is None or site.layer is None:
        raise SpecError(f"{site}: ablate names single units, such as neuron.19.1044 or head.9.6")
    check_site(model.anatomy, site, model.name)
    return site.layer, site.unit


def _controls(
    model: Model, spec: AblateSpec, group: list[tuple[int, int]], targets: list[tuple[int, int]]
) -> list[list[Site]]:
    """Random groups with the same points, layers and positions; none where a block has too few units left."""
    points = {s.point for s in spec.sites}
    if len(points) > 1:
        raise SpecError(f"the sites mix {' and '.join(sorted(points))}; a matched control needs one kind at a time")
    point = points.pop()

    def n_units(layer: int) -> int:
        return model.anatomy.n_units(point, layer)

    profile = Counter(layer for layer, _ in group)
    taken = Counter(layer for layer, _ in {*targets})
    if any(n_units(layer) - taken[layer] < count for layer, count in profile.items()):
        return []
    n = min(spec.controls, count_groups(group, n_units, targets))
    drawn = random_units(group, n_units, n, spec.seed, targets)
    return [[Site(point, layer, unit, site.positions) for (layer, unit), site in zip(some, spec.sites, strict=False)]
            for some in drawn]


def _edits(
    sites: Sequence[Site], index: int, choices: list[Choice], donors: list[int], spec: AblateSpec,
    texts: tuple[str, ...],
) -> list[Edit]:
    if spec.how == "zero":
        return [Edit.zero(site) for site in sites]
    if spec.how == "mean":
        return [Edit.mean(site, texts) for site in sites]
    return [Edit.swap(site, choices[donors[index]].prompt) for site in sites]


def _donors(choices: list[Choice], spec: AblateSpec) -> list[int]:
    """For each prompt another one to take values from: of the same length, unless one position is asked for."""
    if spec.how != "resample":
        return []
    generator = np.random.default_rng(spec.seed)
    single = all(s.positions.single for s in spec.sites)
    out = []
    for choice in choices:
        others = [j for j, other in enumerate(choices)
                  if other.prompt != choice.prompt and (single or len(other.prompt) == len(choice.prompt))]
        if not others:
            raise SpecError(
                f"no other prompt has {len(choice.prompt)} tokens to resample from; name one position, as in "
                f"{spec.sites[0].at('last')}"
            )
        out.append(int(generator.choice(others)))
    return out


def _measure(
    model: Model, choices: list[Choice], groups: Sequence[Sequence[Site] | None], spec: AblateSpec,
    texts: tuple[str, ...], progress: Progress,
) -> list[list[Measured]]:
    """Every group on every prompt, in one plan: measurements [group][prompt]."""
    donors = _donors(choices, spec)
    rows = []
    for sites in groups:
        for i, choice in enumerate(choices):
            edits = _edits(sites, i, choices, donors, spec, texts) if sites is not None else []
            rows.append((choice.prompt, edits, [
                Readout.log_probability(choice.answer), Readout.logit_difference(choice.answer, choice.distractor),
                Readout.top(1),
            ]))
    values = model.execute(Plan.of(rows), track=progress.track)
    measured = [Measured(float(logprob), float(difference), top[0].id) for logprob, difference, top in values]
    n = len(choices)
    return [measured[i : i + n] for i in range(0, len(measured), n)]


def _changes(run: list[Measured], base: list[Measured]) -> dict[str, np.ndarray]:
    pairs = list(zip(run, base, strict=True))
    return {
        "logprob": np.array([a.logprob - b.logprob for a, b in pairs]),
        "logit_difference": np.array([a.logit_difference - b.logit_difference for a, b in pairs]),
        "flips": np.array([float(a.first != b.first) for a, b in pairs]),
    }
