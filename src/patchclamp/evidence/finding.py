"""Correlation: which of very many units are active where a label holds, and which would seem so by chance.

Every unit is scored on half of the prompts, the best ones again on the other half. Among 46,080 neurons some tell any
two sets of a few prompts apart, so p-values come from the strongest unit of all under shuffled labels (Westfall &
Young 1993), and the same search on shuffled labels stands beside the finding. Shape suffixes: N prompts, U units.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Literal, get_args

import numpy as np
import torch
from pydantic import Field

from patchclamp.errors import InputError, SpecError
from patchclamp.evidence.association import Association, adjusted_p, half_of_each, shuffled, strength
from patchclamp.evidence.bootstrap import control_range
from patchclamp.evidence.cli_hints import CommaList
from patchclamp.evidence.method import Part, Progress, Result
from patchclamp.evidence.search import Best, Search, best_of
from patchclamp.evidence.sides import SidesSpec, read_sides
from patchclamp.evidence.verdict import NO_INTERVAL, Interval, Verdict, judge
from patchclamp.forward import Model, Plan, Readout, Site
from patchclamp.forward.site import Positions

if TYPE_CHECKING:
    import altair
    import pandas

FEWEST = 4
"""Prompts of each side that finding and testing need each."""
PROMPTS_AT_ONCE = 32
LABELLINGS_AT_ONCE = 50
RANDOM_UNITS = 200
"""Random units whose held-out score is reported."""


class FindSpec(SidesSpec):
    """Which prompts to tell apart, and how."""

    positions: Annotated[tuple[str, ...], CommaList()] = Field(("last",), min_length=1)
    """Tokens whose activation counts: last, an index, a slice, all. Of several the best, on the finding half."""
    pool: Literal["mean", "max"] = "mean"
    """What counts of several tokens."""
    by: Association = "auroc"
    """What units are ranked by, on the finding half."""
    top: int = Field(20, ge=1)
    """How many units are reported."""
    permutations: int = Field(1000, ge=100, le=100_000)
    """Shuffled labellings that p-values come from."""
    controls: int = Field(20, ge=2, le=1000)
    """How many times the whole search is made again with shuffled labels."""


class FoundUnit(Part):
    """One unit. Finding half, unless said otherwise."""

    site: str
    auroc: float
    """Probability that it is more active on a labelled prompt than on another one."""
    effect: float
    """Difference of the two sides' means, in standard deviations over all prompts."""
    point_biserial: float
    """Correlation of its activation with the label."""
    p_adjusted: float
    """Share of shuffled labellings whose strongest unit of all is as strong."""
    auroc_heldout: float
    """AUROC on the prompts it was not found with."""


class TriedPositions(Part):
    """One choice of tokens, on the finding half."""

    positions: str
    best: str
    """The strongest unit."""
    association: float
    """Its score in the measure units are ranked by."""


class FoundUnits(Result):
    """Units by how well they tell the two sides apart."""

    ranking: list[FoundUnit]
    by: Association
    positions: str
    """The tokens whose activations count."""
    tried: list[TriedPositions]
    significant: dict[int, int]
    """By layer, how many units have p_adjusted < .05."""
    random: Interval
    """Held-out AUROC, turned so that it is at least .5 in the finding half, of random units: mean and 95 % range."""
    shuffled: Interval
    """Held-out AUROC of the best unit found with shuffled labels, turned likewise: mean and 95 % range."""
    constant: int
    """Units that never vary over these prompts."""
    label: str
    finding: int
    """Prompts units were found with."""
    heldout: int

    def table(self) -> "pandas.DataFrame":
        """One row a unit."""
        import pandas

        return pandas.DataFrame([one.model_dump() for one in self.ranking])

    def chart(self) -> "altair.TopLevelMixin":
        """The best units' AUROC in both halves, and where units with p < .05 are."""
        from patchclamp.charts.neurons import found_chart

        return found_chart(self)


def find_units(
    model: Model, spec: FindSpec, wholes: Sequence[Site], noun: str, progress: Progress
) -> tuple[FoundUnits, Verdict]:
    """Rank the units of some whole sites, called `noun` in the plural, by how well they tell the two sides apart, and
    try the best on held-out prompts: against the best of the same search on shuffled labels."""
    wheres = [Positions.parse(one) for one in spec.positions]
    sides = read_sides(model, spec)
    prompts = [*sides.showing, *sides.plain]
    labels_N = np.repeat([True, False], [len(sides.showing), len(sides.plain)])
    first_N = _finding(labels_N, spec)
    searches = [
        Search(_activations(model, prompts, [replace(whole, positions=where) for whole in wholes], spec.pool, progress),
               first_N, spec.by)
        for where in wheres
    ]
    units = [(whole, unit) for whole in wholes for unit in range(model.anatomy.n_units(whole.place, whole.layer or 0))]
    sites_SU = [[replace(whole, unit=unit, positions=where) for whole, unit in units] for where in wheres]
    best = best_of(searches, labels_N)
    labellings = np.zeros((spec.controls, len(labels_N)), dtype=bool)
    for part_N, seed in ((first_N, spec.seed), (~first_N, spec.seed + 2)):
        labellings[:, part_N] = shuffled(labels_N[part_N], spec.controls, seed)
    chance = [best_of(searches, one).heldout
              for one in progress.track(labellings, "searching with shuffled labels", spec.controls)]
    result = _result(spec, searches, sites_SU, labels_N, best, progress).model_copy(update={
        "label": sides.label, "shuffled": control_range(chance, share=True)})
    verdict = judge(
        best.heldout, np.array(chance), direction="greater", against="distribution", share=True, seed=spec.seed,
        claim=f"{sites_SU[best.search][best.unit]} tells held-out prompts of {sides.label} from others (AUROC, the "
              f"best of {len(units)} {noun}, against the best of the same search on shuffled labels)")
    return result, verdict


def _result(
    spec: FindSpec, searches: Sequence[Search], sites_SU: Sequence[Sequence[Site]], labels_N: np.ndarray,
    best: Best, progress: Progress,
) -> FoundUnits:
    by, search, sites = spec.by, searches[best.search], sites_SU[best.search]
    found_SU = np.concatenate([one.found(labels_N[None]) for one in searches])
    observed_U = strength(found_SU[best.search], by)
    p_U = adjusted_p(observed_U, _null(searches, labels_N, spec, progress))
    order = np.argsort(-search.order(labels_N), kind="stable")[: spec.top].tolist()
    measures = {name: search.measure(labels_N, order, name) for name in get_args(Association)}
    heldout = search.heldout(labels_N, order)
    ranking = [
        FoundUnit(site=str(sites[unit]), auroc=measures["auroc"][i], effect=measures["mean_difference"][i],
              point_biserial=measures["point_biserial"][i], p_adjusted=p_U[unit], auroc_heldout=heldout[i])
        for i, unit in enumerate(order)
    ]
    tried = []
    for where, found_U, names, one in zip(spec.positions, found_SU, sites_SU, searches, strict=True):
        unit = int(one.order(labels_N).argmax())
        tried.append(TriedPositions(positions=where, best=str(names[unit]), association=float(found_U[unit])))
    significant = Counter(sites[unit].layer or 0 for unit in np.flatnonzero(p_U < 0.05).tolist())
    drawn = np.random.default_rng(spec.seed).choice(len(sites), min(RANDOM_UNITS, len(sites)), replace=False)
    turned = search.heldout(labels_N, drawn.tolist())
    is_below = found_SU[best.search][drawn] < (0.5 if by == "auroc" else 0)
    return FoundUnits(
        ranking=ranking, by=by, positions=spec.positions[best.search], tried=tried,
        significant=dict(sorted(significant.items())),
        random=control_range(np.where(is_below, 1 - turned, turned), share=True), shuffled=NO_INTERVAL,
        constant=search.constant, label="", finding=int(search.first_N.sum()), heldout=int((~search.first_N).sum()),
    )


def _null(
    searches: Sequence[Search], labels_N: np.ndarray, spec: FindSpec, progress: Progress
) -> np.ndarray:
    """The strongest unit of all under each shuffled labelling of the finding half, [P]."""
    labels_PN = np.zeros((spec.permutations, len(labels_N)), dtype=bool)
    first_N = searches[0].first_N
    labels_PN[:, first_N] = shuffled(labels_N[first_N], spec.permutations, spec.seed + 1)
    portions = np.array_split(labels_PN, -(-spec.permutations // LABELLINGS_AT_ONCE))
    return np.concatenate([
        np.max([strength(search.found(some), spec.by).max(1) for search in searches], axis=0)
        for some in progress.track(portions, "shuffling labels", len(portions))
    ])


def _finding(labels_N: np.ndarray, spec: FindSpec) -> np.ndarray:
    """Which prompts units are found with: a random half of either side. SpecError if there are too few."""
    for side in (True, False):
        count = int((labels_N == side).sum())
        if count < 2 * FEWEST:
            name = "with the label" if side else "without it"
            raise SpecError(f"{spec.source}: {count} prompts {name} are too few; half of them are for finding "
                            f"units and half for testing, at least {FEWEST} each")
    return half_of_each(labels_N, (True, False), spec.seed)


def _activations(
    model: Model, prompts: Sequence, sites: Sequence[Site], pool: str, progress: Progress
) -> np.ndarray:
    """Every unit's activation on each prompt, [N, U]; of several tokens their mean or largest."""
    single = sites[0].positions.single
    reads = [Readout.value(site) for site in sites]
    order = sorted(range(len(prompts)), key=lambda i: len(model.encode(prompts[i])))  # little padding
    found: dict[int, np.ndarray] = {}
    starts = range(0, len(order), PROMPTS_AT_ONCE)
    for start in progress.track(starts, "reading units", len(starts)):
        some = order[start : start + PROMPTS_AT_ONCE]
        for i, values in zip(some, model.execute(Plan.of([(prompts[i], (), reads) for i in some])), strict=True):
            pooled = [v if single else v.mean(0) if pool == "mean" else v.amax(0) for v in values]
            found[i] = torch.cat([v.float().cpu() for v in pooled]).numpy()
    values_NU = np.stack([found[i] for i in range(len(prompts))])
    if not np.isfinite(values_NU).all():
        raise InputError("an activation is NaN or infinite; load the model in float32")
    return values_NU
