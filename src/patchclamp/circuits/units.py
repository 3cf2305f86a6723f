"""The MLPs of a circuit taken apart: which of their neurons, or of an autoencoder's features, it needs.

A unit that is not kept is what it is in the reference (resample ablation: on the corrupted prompt), before the MLP's
own output projection and norms; what an autoencoder does not explain stays as it is. Marks et al. 2024, "Sparse feature
circuits" (arXiv 2403.19647), with exact pruning behind the attribution.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from patchclamp.circuits.pairruns import Track
from patchclamp.circuits.runs import Runs
from patchclamp.circuits.search import COARSE, SHARES, Place, holds, orders
from patchclamp.errors import SpecError
from patchclamp.evidence.bootstrap import bootstrap_mean
from patchclamp.evidence.method import Part
from patchclamp.evidence.verdict import Interval

FEW = 64
"""Units from which on every removal is measured exactly in each round; before, slopes choose."""


class CertifiedUnit(Part):
    """One neuron or feature."""

    unit: str
    """As a site: neuron.17.345."""
    effect: Interval
    """What the circuit's faithfulness loses without it, over the prompts looked on."""


class UnitCircuit(Part):
    """The units that a circuit's MLPs need."""

    point: str
    total: int
    """Units of the circuit's MLPs."""
    units: list[CertifiedUnit]
    faithfulness: Interval
    """Of the circuit with these units alone, over the prompts looked on."""
    heldout: Interval
    minimal: bool

    def kept(self) -> dict[int, list[int]]:
        """Units by block."""
        found: dict[int, list[int]] = {}
        for one in self.units:
            layer, unit = map(int, one.unit.split(".")[1:])
            found.setdefault(layer, []).append(unit)
        return found


def mlps_of(runs: Runs, kept_NS: Tensor, point: str) -> list[int]:
    """Blocks whose MLP a subgraph has, and of which there are such units. SpecError if there is none."""
    used_S, anatomy = runs.graph.connected(kept_NS).any(0), runs.groups[0].model.anatomy
    mlps = [layer for layer in range(runs.graph.n_layers) if used_S[runs.graph.mlp(layer)]]
    found = [layer for layer in mlps if anatomy.has(point, layer)
             and (point == "neuron" or anatomy.base_point(point, layer) == "mlp")]
    if not found:
        raise SpecError(f"there are no units {point} to take the circuit's MLPs apart into: it has the MLPs of blocks "
                        f"{', '.join(map(str, mlps)) or 'none'}; features need autoencoders of the sites mlp.L there "
                        "(--model NAME+sae=FOLDER)")
    return found


def prune_units(runs: Runs, kept_NS: Tensor, bound: float, track: Track | None = None) -> dict[int, Tensor]:
    """Which units a subgraph's MLPs need, by block [units]: none of them can go alone without F leaving the bound. The
    runs have been taken apart."""
    units = {layer: torch.ones(there.shape[-1], dtype=torch.bool) for layer, there in runs.groups[0].units.items()}
    coarse, rounds = True, range(sum(map(len, units.values())))
    for _ in track(rounds, "pruning units", None) if track else rounds:
        places: list[Place] = [(layer, int(u)) for layer, kept_U in units.items() for u in kept_U.nonzero()[:, 0]]
        if coarse:
            now, slope = runs.unit_slopes(kept_NS, {layer: kept_U.float() for layer, kept_U in units.items()})
            lost = {place: float(slope[place[0]][place[1]]) for place in places}
        else:
            now, *alone = _faithfulness(runs, kept_NS, [units, *(_less(units, [place]) for place in places)])
            lost = {place: now - f for place, f in zip(places, alone, strict=True) if holds(f, bound)}
        fewer = _as_many(runs, kept_NS, units, orders(lost, now), bound, 0 if coarse else 1) if lost else units
        left = sum(int(kept_U.sum()) for kept_U in fewer.values())
        if not coarse and not lost:
            break
        coarse = coarse and left > FEW and left <= COARSE * len(places)
        units = fewer
    return units


def _as_many(
    runs: Runs, kept_NS: Tensor, units: dict[int, Tensor], in_order: Sequence[Sequence[Place]], bound: float, least: int
) -> dict[int, Tensor]:
    tried = [_less(units, order[:count]) for order in in_order
             for count in sorted({max(least, round(len(order) * share)) for share in SHARES})]
    good = [one for one, f in zip(tried, _faithfulness(runs, kept_NS, tried), strict=True) if holds(f, bound)]
    return min(good, key=lambda one: sum(int(kept_U.sum()) for kept_U in one.values())) if good else tried[0]


def _less(units: dict[int, Tensor], places: Sequence[Place]) -> dict[int, Tensor]:
    fewer = {layer: kept_U.clone() for layer, kept_U in units.items()}
    for layer, unit in places:
        fewer[layer][unit] = False
    return fewer


def _faithfulness(runs: Runs, kept_NS: Tensor, several: Sequence[dict[int, Tensor]]) -> list[float]:
    return runs.faithfulness_of(runs.with_units(kept_NS, _stacked(several)))


def _stacked(several: Sequence[dict[int, Tensor]]) -> dict[int, Tensor]:
    return {layer: torch.stack([one[layer] for one in several]) for layer in several[0]}


def certify_units(
    runs: Runs, on_heldout: Runs, kept_NS: Tensor, point: str, units: dict[int, list[int]], bound: float, seed: int
) -> UnitCircuit:
    """Measure a circuit with some units alone; both runs are taken apart at its MLPs."""
    layers = mlps_of(runs, kept_NS, point)
    for some in (runs, on_heldout):
        some.take_apart(point, layers)
    kept = {layer: torch.zeros(there.shape[-1], dtype=torch.bool) for layer, there in runs.groups[0].units.items()}
    for layer, numbers in units.items():
        kept[layer][numbers] = True
    places: list[Place] = [(layer, int(u)) for layer, kept_U in kept.items() for u in kept_U.nonzero()[:, 0]]
    several = [kept, *(_less(kept, [place]) for place in places)]
    whole_B, *without = runs.each_faithfulness(runs.with_units(kept_NS, _stacked(several))).unbind(0)
    heldout_B = on_heldout.each_faithfulness(on_heldout.with_units(kept_NS, _stacked([kept])))[0]
    return UnitCircuit(
        point=point, total=sum(map(len, kept.values())), faithfulness=bootstrap_mean(whole_B, seed),
        heldout=bootstrap_mean(heldout_B, seed), minimal=not any(holds(float(one.mean()), bound) for one in without),
        units=[CertifiedUnit(unit=f"{point}.{layer}.{unit}", effect=bootstrap_mean(whole_B - less_B, seed))
               for (layer, unit), less_B in zip(places, without, strict=True)])
