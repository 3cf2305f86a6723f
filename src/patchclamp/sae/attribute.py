"""Which features a choice depends on: one backward pass for all, then the best taken out one by one and together.

    estimate_i = -aᵢ · (vᵢ · ∂readout/∂h)        the first-order effect of taking aᵢvᵢ out of the state h

h is not replaced by its reconstruction: what the autoencoder leaves unexplained stays, and its share of the whole
effect is reported beside the features'. Marks et al. 2024, "Sparse Feature Circuits", arXiv 2403.19647. Random features
are no control if they are silent, so controls are drawn from those active on about as many of the finding rows.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from patchclamp.errors import SpecError
from patchclamp.evidence.association import rank_correlation
from patchclamp.evidence.bootstrap import bootstrap_mean, control_range
from patchclamp.evidence.choices import FEWEST, Choice, ChoicesSpec, halves, read_choices, score, score_unedited
from patchclamp.evidence.cli_hints import CommaList
from patchclamp.evidence.method import Outcome, Part, Progress, Result, method
from patchclamp.evidence.verdict import NO_INTERVAL, Interval, judge
from patchclamp.forward import Edit, Model, Readout, Site
from patchclamp.sae.attached import attached
from patchclamp.tasks.files import DataFile

if TYPE_CHECKING:
    import altair
    import pandas

AT_ONCE = 64


class AttributeSpec(ChoicesSpec):
    """Which choices to explain by which features."""

    sae: DataFile | None = None
    """The autoencoder's folder; not needed if one is attached to the model."""
    position: str = "last"
    """The tokens at which features are taken out: last, an index, a slice, all."""
    shortlist: int = Field(50, ge=1)
    """How many features, those with the largest estimates, are taken out one by one."""
    sizes: Annotated[tuple[Annotated[int, Field(ge=1)], ...], CommaList()] = Field((1, 5, 10), min_length=1)
    """Sizes of the groups, the features that hurt most first, that are taken out together on the other rows."""
    controls: int = Field(20, ge=2)
    """How many random groups stand beside each."""
    limit: int = Field(100, ge=FEWEST)
    """At most so many rows to find features with, and as many others to test them on."""


class RankedFeature(Part):
    """One feature."""

    site: str
    active: float
    """Share of the finding rows it is active on."""
    attribution: float
    """The estimated effect of taking it out on logit(answer) - logit(distractor), mean over the finding rows."""
    exact_effect: float
    """The effect, measured on the same rows."""


class FeatureGroup(Part):
    """The features that hurt most when taken out, together, on other rows."""

    k: int
    sites: list[str]
    effect: Interval
    """On logit(answer) - logit(distractor)."""
    random: Interval
    """Of random features active on as many rows: mean, and the range in which one more group would fall."""
    accuracy: float
    """Share of rows on which the answer stays likelier."""


class FeatureAttribution(Result):
    """Features by what taking them out does."""

    ranking: list[RankedFeature]
    spearman: float
    """Rank correlation of estimate and exact effect over the shortlist."""
    groups: list[FeatureGroup]
    explained: float
    """Share of the first-order effect of the whole state, h · ∂readout/∂h, that active features bring, in absolute
    terms: Σ|featureᵢ| / (Σ|featureᵢ| + |error|), mean over the finding rows."""
    right: float
    """Share of testing rows on which the unedited model prefers the answer."""
    prompts: int
    heldout: int
    skipped: int

    def table(self) -> "pandas.DataFrame":
        """One row a feature."""
        import pandas

        return pandas.DataFrame([one.model_dump() for one in self.ranking])

    def chart(self) -> "altair.TopLevelMixin":
        """Estimate against exact effect, and the groups on other rows."""
        from patchclamp.charts.features import attribution_chart

        return attribution_chart(self)


@method("sae.attribute", spec=AttributeSpec, result=FeatureAttribution)
def attribute_features(model: Model, spec: AttributeSpec, progress: Progress) -> Outcome:
    """Find the features that a choice depends on: estimated for all at once, taken out one by one, tested in groups.

    Half of the rows are for finding, the other half for testing. The verdict: does taking out the largest group lower
    the logit difference on the testing rows further than random features as often active do?
    """
    whole = attached(model, spec.sae).at(spec.position)
    choices = read_choices(model, spec.prompts, spec.where)
    finding, testing = halves(choices.kept, spec.seed, spec.limit, spec.prompts)
    estimates_L, active_L, explained = estimate(model, finding, whole, progress)
    listed = [int(unit) for unit in np.argsort(-np.abs(estimates_L), kind="stable")[: spec.shortlist]
              if active_L[unit] > 0]
    if not listed:
        raise SpecError(f"no feature of {whole} is active on the finding rows; choose another position, or autoencoder")
    exact = _exact(model, finding, whole, listed, progress)
    order = np.argsort(exact, kind="stable")
    ranking = [RankedFeature(site=str(_one(whole, listed[i])), active=float(active_L[listed[i]]),
                             attribution=float(estimates_L[listed[i]]), exact_effect=float(exact[i])) for i in order]
    ordered = [listed[i] for i in order]
    base = score_unedited(model, testing, progress)
    found = [_group(model, whole, ordered[:k], active_L, ordered[: max(spec.sizes)], testing, base.logit_difference,
                    spec, progress) for k in sorted({min(k, len(ordered)) for k in spec.sizes})]
    result = FeatureAttribution(
        ranking=ranking, spearman=rank_correlation(estimates_L[listed], exact), groups=[group for group, _, _ in found],
        explained=explained, right=float(base.right.mean()), prompts=len(finding), heldout=len(testing),
        skipped=choices.skipped)
    group, own_N, random_GN = found[-1]
    verdict = judge(
        own_N, random_GN if len(random_GN) else NO_INTERVAL, direction="less", against="distribution", seed=spec.seed,
        claim=f"the {group.k} features of {whole.whole} whose loss hurts most on other prompts carry the choice: "
              "without them the logit difference falls further than without random features as often active")
    return result, verdict


def _one(whole: Site, unit: int) -> Site:
    return Site(whole.point, whole.layer, unit, whole.positions, whole.name)


def estimate(
    model: Model, choices: Sequence[Choice], whole: Site, progress: Progress
) -> tuple[np.ndarray, np.ndarray, float]:
    """For each feature the estimated effect of taking it out, mean over choices and summed over positions, and the
    share of choices it is active on, [L]; and the share of the state's first-order effect that features bring."""
    autoencoder = model.autoencoder(whole)
    base = Site(autoencoder.site.point, autoencoder.site.layer, None, whole.positions)
    total_L, active_L, shares = torch.zeros(autoencoder.n_latents, dtype=torch.float64), torch.zeros(
        autoencoder.n_latents), []
    portions = [choices[i : i + AT_ONCE] for i in range(0, len(choices), AT_ONCE)]
    for some in progress.track(portions, "estimating", len(portions)):
        prompts = [choice.prompt for choice in some]
        reads = [Readout.logit_difference(choice.answer, choice.distractor) for choice in some]
        values, slopes = model.capture(prompts, [base]), model.gradients(prompts, reads, [base])
        for value, slope in zip(values.rows(base), slopes.rows(base), strict=True):
            value_ND, slope_ND = (one.reshape(-1, autoencoder.W_enc.shape[1]).float() for one in (value, slope))
            parts_L, error = _parts(autoencoder.encode(value_ND), value_ND, slope_ND, autoencoder.directions,
                                    autoencoder.reconstruct(value_ND))
            total_L -= parts_L.double().cpu()
            active_L += (parts_L != 0).float().cpu()
            said = float(parts_L.abs().sum())
            shares.append(said / (said + error) if said + error else 0.0)
    return (total_L / len(choices)).numpy(), (active_L / len(choices)).numpy(), float(np.mean(shares))


def _parts(
    codes_NL: Tensor, value_ND: Tensor, slope_ND: Tensor, directions_LD: Tensor, said_ND: Tensor
) -> tuple[Tensor, float]:
    """Each feature's first-order effect, [L], and that of what is left unexplained."""
    parts_L = (codes_NL * (slope_ND @ directions_LD.T.to(slope_ND))).sum(0)
    return parts_L, abs(float(((value_ND - said_ND) * slope_ND).sum()))


def _exact(
    model: Model, choices: Sequence[Choice], whole: Site, units: Sequence[int], progress: Progress
) -> np.ndarray:
    """The effect of taking each feature out alone, mean over the choices, [units]."""
    settings: list[list[list[Edit]]] = [[[]] * len(choices)]
    settings += [[[Edit.zero(_one(whole, unit))]] * len(choices) for unit in units]
    found_GN = score(model, choices, settings, progress).logit_difference
    return np.asarray((found_GN[1:] - found_GN[0]).mean(1))


def _group(
    model: Model, whole: Site, units: Sequence[int], active_L: np.ndarray, targets: Sequence[int],
    choices: Sequence[Choice], base_N: np.ndarray, spec: AttributeSpec, progress: Progress,
) -> tuple[FeatureGroup, np.ndarray, np.ndarray]:
    groups = [list(units), *_matched(units, active_L, targets, spec.controls, spec.seed)]
    settings = [[[Edit.zero(_one(whole, unit)) for unit in group]] * len(choices) for group in groups]
    scores = score(model, choices, settings, progress)
    changes_GN = scores.logit_difference - base_N
    random_GN = changes_GN[1:]
    return FeatureGroup(
        k=len(units), sites=[str(_one(whole, unit)) for unit in units],
        effect=bootstrap_mean(changes_GN[0], spec.seed), accuracy=float(scores.right[0].mean()),
        random=control_range(random_GN.mean(1)) if len(random_GN) > 1 else NO_INTERVAL,
    ), changes_GN[0], random_GN


def _matched(
    units: Sequence[int], active_L: np.ndarray, targets: Sequence[int], n: int, seed: int
) -> list[list[int]]:
    """Random groups: for each feature another one, of the tenth of active features nearest to it in how often it is
    active, none of them a target. None if there are too few."""
    pool = np.array([unit for unit in np.flatnonzero(active_L > 0) if unit not in set(targets)], dtype=int)
    if len(pool) < 2 * len(units):
        return []
    generator, near = np.random.default_rng(seed), max(2 * len(units), len(pool) // 10)
    found = []
    for _ in range(n):
        group: list[int] = []
        for unit in units:
            nearest = pool[np.argsort(np.abs(active_L[pool] - active_L[unit]), kind="stable")[:near]]
            group.append(int(generator.choice([one for one in nearest if one not in group])))
        found.append(group)
    return found
