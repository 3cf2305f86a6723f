"""Find causes fast: what ablating each neuron of all layers would do, estimated by one backward pass, then measured.

    estimate_i = (replacement_i - a_i) · ∂readout/∂a_i

the first-order effect of putting the replacement (zero, or the mean over a corpus) in the place of activation a_i
(attribution patching, Nanda 2023; Syed et al. 2023, arXiv 2310.10348). `integrated` takes the mean gradient on the
straight way from a to the replacement, one layer at a time (Sundararajan et al. 2017, arXiv 1703.01365): the estimates
of a layer then sum to what replacing the whole layer does (towards zero not where a norm follows the MLP). Shape
suffixes: L layers, F neurons, N choices, T tokens.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from patchclamp.errors import SpecError
from patchclamp.evidence.association import rank_correlation
from patchclamp.evidence.choices import FEWEST, Choice, ChoicesSpec, drawn, halves, read_choices, score_unedited
from patchclamp.evidence.cli_hints import CommaList
from patchclamp.evidence.method import Outcome, Part, Progress, Result, method
from patchclamp.forward import Edit, Model, Plan, Readout, Site
from patchclamp.forward.gradient import path_gradients
from patchclamp.forward.prepare import check_site
from patchclamp.forward.site import Positions
from patchclamp.neurons.groups import Controls, Group, Measured, measure_group
from patchclamp.neurons.removal import Removal, corpus_texts
from patchclamp.tasks.files import DataFile

if TYPE_CHECKING:
    import altair
    import pandas

CHOICES_AT_ONCE = 64
TOP = 20
"""Most important neurons that a sweep looks for on the shortlist."""
ROWS_AT_ONCE = 2**15
"""Rows of one plan in a sweep; more only need memory."""


class AttributeSpec(ChoicesSpec):
    """Which choices to explain by which neurons."""

    layers: Annotated[tuple[int, ...], CommaList()] = ()
    """Only these layers; all if left out."""
    position: str = "last"
    """The tokens at which neurons are ablated: last, an index, a slice, all."""
    how: Literal["zero", "mean"] = "zero"
    """What is put in the place of an activation."""
    corpus: DataFile | None = None
    """For mean: a text file, JSONL or Parquet with a text column; the built-in neutral corpus if not given."""
    by: Literal["gradient", "integrated"] = "gradient"
    """The estimate: gradient times change, or integrated gradients, one layer at a time."""
    steps: int = Field(8, ge=2, le=64)
    """For integrated: gradients taken on the way."""
    shortlist: int = Field(200, ge=1)
    """How many neurons, those with the largest estimates, are ablated one by one."""
    sweep: bool = False
    """Ablate every neuron of the layers one by one, and say how many of the most important ones the estimate had on its
    shortlist."""
    limit: int = Field(100, ge=FEWEST)
    """At most so many rows to find neurons with, and as many others to test them on."""
    sizes: Annotated[tuple[Annotated[int, Field(ge=1)], ...], CommaList()] = Field((1, 5, 10), min_length=1)
    """Sizes of the groups that are ablated together on the other rows, the neurons whose loss hurts most first."""
    controls: int = Field(20, ge=2)
    """How many random groups of the same layers stand beside each group."""


class Ranked(Part):
    """One neuron."""

    site: str
    attribution: float
    """The estimated effect of ablating it on logit(answer) - logit(distractor), mean over the finding rows."""
    exact_effect: float
    """The effect of ablating it, measured on the same rows."""


class Recall(Part):
    """How good the estimate is where every neuron was ablated."""

    top: int
    """How many of the most important neurons, by absolute exact effect, were looked for."""
    found: float
    """Share of these among the shortlist."""
    neurons: int
    """Neurons that were ablated."""


class Attribution(Result):
    """Neurons by what ablating them does, the most harmful first, and their groups on other rows."""

    ranking: list[Ranked]
    spearman: float
    """Rank correlation of estimate and exact effect over the neurons that were ablated one by one."""
    recall: Recall | None
    """Of a sweep."""
    groups: list[Group]
    """The most harmful neurons ablated together, on rows they were not found with."""
    right: float
    """Share of those rows on which the unedited model prefers the answer."""
    others: list[Group]
    """The same groups on the rows that `where` leaves out; empty if there are none."""
    others_right: float | None
    prompts: int
    """Rows that neurons were found with."""
    heldout: int
    """Rows that groups were tested on."""
    skipped: int
    """Rows left out because one answer is a prefix of the other, or nothing stands before their difference."""

    def table(self) -> "pandas.DataFrame":
        """One row a neuron."""
        import pandas

        return pandas.DataFrame([one.model_dump() for one in self.ranking])

    def chart(self) -> "altair.TopLevelMixin":
        """Estimate against exact effect, where the neurons are, and the groups on other rows."""
        from patchclamp.charts.neurons import attribution_chart

        return attribution_chart(self)


@method("neurons.attribute", spec=AttributeSpec, result=Attribution)
def attribute_neurons(model: Model, spec: AttributeSpec, progress: Progress) -> Outcome:
    """Find the neurons that a choice depends on: estimated for all at once, ablated one by one, tested in groups.

    Half of the rows are for finding, the other half for testing. The verdict asks whether the largest group lowers the
    share of right choices on the testing rows further than random groups of the same layers do.
    """
    layers = _layers(model, spec)
    if spec.by == "integrated" and spec.how == "zero" and model.anatomy.family.post_norm:
        raise SpecError(f"{model.name} has a norm after the MLP, which undoes any scaling of all neurons, so the way "
                        "to zero leads nowhere until its end; integrate towards the mean (--how mean), or use gradient")
    choices = read_choices(model, spec.prompts, spec.where)
    finding, testing = halves(choices.kept, spec.seed, spec.limit, spec.prompts)
    texts = corpus_texts(spec.corpus)
    estimates = estimate(model, finding, layers, spec.position, spec.how, texts, progress,
                         spec.steps if spec.by == "integrated" else 1)
    n = min(spec.shortlist, estimates.numel())
    listed = estimates.abs().flatten().topk(n).indices.tolist()
    asked = list(range(estimates.numel())) if spec.sweep else listed
    sites = [_site(layers, index, estimates.shape[1], spec.position) for index in asked]
    exact = exact_effects(model, finding, sites, spec.how, texts, progress)
    estimated = estimates.flatten()[asked].double().numpy()
    order = np.argsort(exact, kind="stable")
    ranking = [Ranked(site=str(sites[i]), attribution=float(estimated[i]), exact_effect=float(exact[i]))
               for i in order[:n]]
    tested = _tested(model, spec, [sites[i] for i in order], testing, texts, progress)
    off_target = drawn(choices.others, spec.limit, spec.seed)
    others = _tested(model, spec, [sites[i] for i in order], off_target, texts, progress)
    result = Attribution(
        ranking=ranking, spearman=rank_correlation(estimated, exact),
        recall=_recall(exact, listed) if spec.sweep else None,
        groups=[m.group for m in tested.groups], right=tested.right, others=[m.group for m in others.groups],
        others_right=others.right if choices.others else None, prompts=len(finding), heldout=len(testing),
        skipped=choices.skipped,
    )
    largest = tested.groups[-1]
    return result, largest.verdict(
        f"the {largest.group.k} neurons whose ablation hurts most on other prompts carry the choice: together ablated "
        f"({spec.how}) they lower the share of right choices further than random neurons of the same layers do",
        spec.seed, "accuracy", "less")


def _layers(model: Model, spec: AttributeSpec) -> list[int]:
    layers = list(dict.fromkeys(spec.layers)) or list(range(model.n_layers))
    for layer in layers:
        check_site(model.anatomy, Site("neuron", layer), model.name)
    widths = {model.n_neurons(layer) for layer in layers}
    if len(widths) > 1:
        raise SpecError(f"the layers of {model.name} have {min(widths)} to {max(widths)} neurons; ask for layers of "
                        "one width (--layers)")
    return layers


def estimate(
    model: Model, choices: Sequence[Choice], layers: Sequence[int], position: str, how: str, texts: tuple[str, ...],
    progress: Progress, steps: int = 1,
) -> Tensor:
    """The estimated effect of ablating each neuron, mean over the choices, [L, F]; summed over its positions."""
    sites = [Site("neuron", layer, None, Positions.parse(position)) for layer in layers]
    replaced = torch.zeros(len(layers), model.n_neurons(layers[0]))
    if how == "mean":
        replaced = torch.stack(model.mean_values(sites, texts)).float().cpu()
    total = torch.zeros_like(replaced, dtype=torch.float64)
    portions = [choices[i : i + CHOICES_AT_ONCE] for i in range(0, len(choices), CHOICES_AT_ONCE)]
    for some in progress.track(portions, "estimating", len(portions)):
        prompts = [choice.prompt for choice in some]
        reads = [Readout.logit_difference(choice.answer, choice.distractor) for choice in some]
        values = model.capture(prompts, sites)
        slopes = [path_gradients(model, prompts, reads, site, [replaced[row]] * len(some), values.rows(site), steps)
                  for row, site in enumerate(sites)] if steps > 1 else None
        gradients = model.gradients(prompts, reads, sites) if steps == 1 else None
        for row, site in enumerate(sites):
            ways = slopes[row] if slopes else gradients.rows(site)  # type: ignore[union-attr]
            for value, slope in zip(values.rows(site), ways, strict=True):
                change = (replaced[row] - value.cpu()) * slope.cpu()
                total[row] += change.reshape(-1, change.shape[-1]).double().sum(0)
    return total / len(choices)


def exact_effects(
    model: Model, choices: Sequence[Choice], sites: Sequence[Site], how: str, texts: tuple[str, ...], progress: Progress
) -> np.ndarray:
    """The effect of ablating each site alone on logit(answer) - logit(distractor), mean over the choices, [sites]."""
    reads = [[Readout.logit_difference(choice.answer, choice.distractor)] for choice in choices]
    base = model.execute(Plan.of((c.prompt, (), read) for c, read in zip(choices, reads, strict=True)))
    base_N = np.array([float(row[0]) for row in base])
    size = max(1, ROWS_AT_ONCE // len(choices))
    portions = [sites[i : i + size] for i in range(0, len(sites), size)]
    out = []
    for some in progress.track(portions, "ablating one by one", len(portions)):
        edits = [[Edit.zero(site) if how == "zero" else Edit.mean(site, texts)] for site in some]
        plan = Plan.of((choice.prompt, edit, read) for edit in edits
                       for choice, read in zip(choices, reads, strict=True))
        values = np.array([float(row[0]) for row in model.execute(plan, track=progress.track)])
        out.append((values.reshape(len(some), -1) - base_N).mean(1))
    return np.concatenate(out)


def _site(layers: Sequence[int], index: int, width: int, position: str) -> Site:
    row, unit = divmod(index, width)
    return Site("neuron", layers[row], unit, Positions.parse(position))


class Tested(NamedTuple):
    """The groups on some rows, and how often the unedited model is right there."""

    groups: list[Measured]
    right: float


def _tested(
    model: Model, spec: AttributeSpec, sites: Sequence[Site], choices: Sequence[Choice], texts: tuple[str, ...],
    progress: Progress,
) -> Tested:
    if not choices:
        return Tested([], math.nan)
    base = score_unedited(model, choices, progress)
    controls, way = Controls(model, spec.controls, spec.seed), Removal(spec.how, choices, texts)
    sizes = sorted({min(k, len(sites)) for k in spec.sizes})
    groups = [measure_group(way, base, sites[:k], sites[: sizes[-1]], controls, progress) for k in sizes]
    return Tested(groups, float(base.right.mean()))


def _recall(exact: np.ndarray, listed: Sequence[int]) -> Recall:
    """Of the neurons with the largest exact effects the share that the estimate had on its shortlist."""
    top = min(TOP, len(exact))
    important = np.argsort(-np.abs(exact), kind="stable")[:top].tolist()
    return Recall(top=top, found=len({*important} & {*listed}) / top, neurons=len(exact))
