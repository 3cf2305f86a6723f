"""Redundancy and self-repair: what an ablation would do if nothing downstream changed, what it does, and who repairs.

Also the smallest groups of neurons without which a behaviour goes, and that suffice for it. See `selfrepair` for the
arithmetic and `minimal` for the pruning.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from patchclamp.errors import SpecError
from patchclamp.evidence.bootstrap import bootstrap_mean, control_range
from patchclamp.evidence.choices import Choice, ChoicesSpec, halves, read_choices, score, score_unedited
from patchclamp.evidence.cli_hints import Positional
from patchclamp.evidence.method import Outcome, Part, Progress, Result, method
from patchclamp.evidence.verdict import Interval, judge
from patchclamp.forward import Edit, Model, Site
from patchclamp.neurons.attribute import estimate, exact_effects
from patchclamp.neurons.groups import NO_CONTROL, Controls
from patchclamp.neurons.minimal import measure_ablated, necessary, sufficient
from patchclamp.neurons.removal import check_units
from patchclamp.neurons.selfrepair import Anatomist, Repair

if TYPE_CHECKING:
    import altair
    import pandas


class RepairSpec(ChoicesSpec):
    """Which neurons to ablate, and on what."""

    sites: Annotated[tuple[Site, ...], Positional()] = ()
    """Neurons, e.g. neuron.19.1044, ablated at the last token; if none are named, those whose ablation hurts most are
    looked for on half of the rows."""
    how: Literal["zero", "mean"] = "zero"
    """What is put in the place of an activation: zero, or its mean over the neutral corpus."""
    by: Literal["total", "direct"] = "total"
    """Look for the neurons whose ablation hurts most in the end, or for those that write the answer directly, whose
    ablation would hurt most if nothing downstream changed."""
    shortlist: int = Field(30, ge=2, le=200)
    """How many neurons to look for if none are named."""
    lost: float = Field(0.5, gt=0, le=1)
    """The necessary group takes away at least this share of the logit difference."""
    kept: float = Field(0.9, gt=0, le=1)
    """The sufficient group, spared while all other named neurons are ablated, keeps this share of what they carry."""
    limit: int = Field(60, ge=4)
    """At most so many rows to find with, and as many others to test on."""
    controls: int = Field(20, ge=2)
    """Random groups of the same layers."""


class Repaired(Part):
    """One neuron, or all together. In units of logit(answer) - logit(distractor), mean over testing rows."""

    site: str
    direct: float
    """Effect of the ablation on the readout if nothing downstream had changed, the final norm frozen."""
    total: float
    """Effect of the ablation."""
    repaired: float | None
    """1 - total / direct: the share that later blocks and the norm make good; negative where they add to it."""


class Response(Part):
    """What one block does in answer to ablating all neurons together, along the readout."""

    block: int
    attn: float
    mlp: float


class Smallest(Part):
    """A group of neurons of which none can be left out."""

    sites: list[str]
    difference: float
    """Mean logit difference on the testing rows: with the necessary group ablated, or with only the sufficient one
    spared."""
    accuracy: float
    """Share of testing rows with the answer preferred then."""
    random: Interval
    """Logit difference with random neurons of the same layers ablated instead, or as many random ones of those named
    spared: mean and 95 % range."""


class RepairResult(Result):
    """Direct and total effects, the blocks' responses, and the smallest groups."""

    neurons: list[Repaired]
    together: Repaired
    responses: list[Response]
    norm: float
    """What the final norm adds to the total because the stream's size has changed (and a softcap, where there is
    one)."""
    share: Interval
    """Share of the mean direct effect that is made good, over testing rows; negative where later blocks add to it."""
    random_share: Interval
    """The same of random groups: mean and 95 % range; wide, since their direct effects are small."""
    necessary: Smallest | None
    """None where all neurons together take away less, or the model prefers the distractor on the finding rows."""
    sufficient: Smallest | None
    base: float
    """Logit difference of the unedited model on the testing rows."""
    right: float
    all_ablated: float
    """Logit difference with all neurons ablated."""
    found_on: int
    tested_on: int

    def table(self) -> "pandas.DataFrame":
        """One row a neuron, and all together."""
        import pandas

        return pandas.DataFrame([one.model_dump() for one in (self.together, *self.neurons)])

    def chart(self) -> "altair.TopLevelMixin":
        """Direct and total effect of each neuron, and the blocks' responses."""
        from patchclamp.charts.neurons import repair_chart

        return repair_chart(self)


@method("neurons.repair", spec=RepairSpec, result=RepairResult)
def repair(model: Model, spec: RepairSpec, progress: Progress) -> Outcome:
    """Compare what ablating neurons does directly with what it does in the end: do later blocks repair it?

    Beside it the smallest groups: without which the behaviour goes, and which alone of the named neurons keep it. They
    are found on half of the rows and tested on the other half. The verdict asks whether a larger share of the direct
    effect of all named neurons is made good than of random neurons of the same layers.
    """
    choices = read_choices(model, spec.prompts, spec.where)
    finding, testing = halves(choices.kept, spec.seed, spec.limit, spec.prompts)
    ranked = _ranked(model, spec, finding, progress)
    controls = Controls(model, spec.controls, spec.seed).beside(ranked, ranked)
    layers = sorted({site.layer or 0 for site in ranked})
    anatomist = Anatomist(model, testing, layers, _replaced(model, spec, layers), progress)
    groups = [ranked, *([site] for site in ranked), *controls]
    found = anatomist.take_apart([(group, [_edit(spec, site) for site in group]) for group in groups], progress)
    whole, random = found[0], found[1 + len(ranked) :]
    base = score_unedited(model, testing, progress)
    measure = measure_ablated(model, finding, lambda site: _edit(spec, site), progress)
    carried, all_gone = (float(x) for x in measure([[], ranked]))
    need = necessary(measure, ranked, (1 - spec.lost) * carried) if carried > 0 else None
    enough = sufficient(measure, ranked, all_gone + spec.kept * (carried - all_gone)) if all_gone < carried else None
    shares_G = [one.share for one in random if np.isfinite(one.share)]
    beside_share = control_range(shares_G) if len(shares_G) > 1 else NO_CONTROL
    result = RepairResult(
        neurons=[_repaired(str(site), one) for site, one in zip(ranked, found[1:], strict=False)],
        together=_repaired(f"all {len(ranked)}", whole),
        responses=[Response(block=i, attn=float(a.mean()), mlp=float(m.mean()))
                   for i, (a, m) in enumerate(zip(whole.attn, whole.mlp, strict=True))],
        norm=float(whole.norm.mean()), share=bootstrap_mean(whole.shares, spec.seed), random_share=beside_share,
        necessary=_tested(model, spec, testing, need, ranked, False, progress),
        sufficient=_tested(model, spec, testing, enough, ranked, True, progress),
        base=float(base.logit_difference.mean()), right=float(base.right.mean()),
        all_ablated=float((base.logit_difference + whole.total).mean()),
        found_on=len(finding), tested_on=len(testing),
    )
    verdict = judge(
        whole.shares, np.array(shares_G) if len(shares_G) else NO_CONTROL, direction="greater",
        against="distribution", seed=spec.seed,
        claim=f"what comes after {len(ranked)} neurons repairs their ablation (direct effect {whole.direct.mean():.3g}"
              f", total {whole.total.mean():.3g}; the share against that of random neurons of the same layers)")
    return result, verdict


def _edit(spec: RepairSpec, site: Site) -> Edit:
    return Edit.zero(site) if spec.how == "zero" else Edit.mean(site)


def _ranked(model: Model, spec: RepairSpec, finding: Sequence[Choice], progress: Progress) -> list[Site]:
    """The neurons, the most harmful to ablate first, at the last token."""
    if spec.sites:
        if bad := next((s for s in spec.sites if s.point != "neuron" or str(s.positions) not in ("all", "last")), None):
            raise SpecError(f"{bad}: repair is about neurons at the last token, such as neuron.19.1044")
        check_units(model, spec.sites)
        if len({(s.layer, s.unit) for s in spec.sites}) < len(spec.sites):
            raise SpecError("a neuron is named twice")
        sites = [site.at("last") for site in spec.sites]
    elif spec.by == "direct":
        layers = list(range(model.n_layers))
        anatomist = Anatomist(model, finding, layers, _replaced(model, spec, layers), progress)
        return _lowest(anatomist.direct_effects(), spec.shortlist)
    else:
        estimates = estimate(model, finding, range(model.n_layers), "last", spec.how, (), progress)
        sites = _lowest(dict(enumerate(estimates)), 2 * spec.shortlist)
    effects = exact_effects(model, finding, sites, spec.how, (), progress)
    order = np.argsort(effects, kind="stable").tolist()
    return [sites[i] for i in order[: len(spec.sites) or spec.shortlist]]


def _lowest(effects: dict[int, Tensor], n: int) -> list[Site]:
    """The neurons with the lowest effects, [F] by layer."""
    places = [(float(value), layer, unit) for layer, effects_F in effects.items()
              for value, unit in zip(*(x.tolist() for x in effects_F.topk(min(n, len(effects_F)), largest=False)),
                                     strict=True)]
    return [Site("neuron", layer, unit).at("last") for _, layer, unit in sorted(places)[:n]]


def _replaced(model: Model, spec: RepairSpec, layers: Sequence[int]) -> dict[int, Tensor]:
    """What is put in the place of each activation, [F] by layer."""
    if spec.how == "zero":
        return {layer: torch.zeros(model.n_neurons(layer)) for layer in layers}
    means = model.mean_values([f"neuron.{layer}" for layer in layers])
    return {layer: mean.float().cpu() for layer, mean in zip(layers, means, strict=True)}


def _repaired(name: str, one: Repair) -> Repaired:
    share = one.share
    return Repaired(site=name, direct=float(one.direct.mean()), total=float(one.total.mean()),
                    repaired=None if np.isnan(share) else share)


def _tested(
    model: Model, spec: RepairSpec, testing: Sequence[Choice], group: list[Site] | None, ranked: Sequence[Site],
    spared: bool, progress: Progress,
) -> Smallest | None:
    """The group on other rows; beside it random neurons in its place, among the ablated or the spared."""
    if group is None:
        return None
    if spared:
        generator = np.random.default_rng(spec.seed)
        drawn = [{ranked[i] for i in generator.permutation(len(ranked))[: len(group)]} for _ in range(spec.controls)]
        ablated = [[site for site in ranked if site not in some] for some in ({*group}, *drawn)]
    else:
        ablated = [group, *Controls(model, spec.controls, spec.seed).beside(group, ranked)]
    scores = score(model, testing, [[[_edit(spec, s) for s in sites]] * len(testing) for sites in ablated], progress)
    random = scores.logit_difference[1:].mean(1)
    return Smallest(
        sites=[str(site) for site in group], difference=float(scores.logit_difference[0].mean()),
        accuracy=float(scores.right[0].mean()), random=control_range(random) if len(random) > 1 else NO_CONTROL)
