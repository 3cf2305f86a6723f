"""The MLPs of a circuit taken apart: which of their neurons, or of an autoencoder's features, it needs.

A unit that is not kept is what it is in the reference (resample ablation: on the corrupted prompt), before the MLP's
own output projection and norms; what an autoencoder does not explain stays as it is. Marks et al. 2024, "Sparse feature
circuits" (arXiv 2403.19647), with exact pruning behind the attribution.
"""

from __future__ import annotations

import torch
from torch import Tensor

from patchclamp.circuits.pairruns import Track
from patchclamp.circuits.runs import Runs
from patchclamp.circuits.search import Prunable, holds, thinned
from patchclamp.errors import SpecError
from patchclamp.evidence.bootstrap import bootstrap_mean
from patchclamp.evidence.method import Part
from patchclamp.evidence.verdict import Interval


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


def prune_units(runs: Runs, kept_NS: Tensor, bound: float, track: Track | None = None) -> dict[int, list[int]]:
    """Which units a subgraph's MLPs need, by block: none of them can go alone without F leaving the bound. The runs
    have been taken apart."""
    sizes = sizes_of(runs)
    units = Prunable(lambda kept_MU: runs.faithfulness_of(runs.with_units(kept_NS, by_block(kept_MU, sizes))),
                     slopes=lambda kept_U: _slopes(runs, kept_NS, kept_U, sizes))
    kept_U = thinned(units, torch.ones(sum(sizes.values()), dtype=torch.bool), bound, "units", track)
    return {layer: kept.nonzero()[:, 0].tolist() for layer, kept in by_block(kept_U, sizes).items()}


def sizes_of(runs: Runs) -> dict[int, int]:
    """How many units each MLP has that has been taken apart, by block."""
    return {layer: there.shape[-1] for layer, there in runs.groups[0].units.items()}


def by_block(kept_XU: Tensor, sizes: dict[int, int]) -> dict[int, Tensor]:
    """Units of all blocks [..., units] by block."""
    return dict(zip(sizes, kept_XU.split(list(sizes.values()), -1), strict=True))


def _slopes(runs: Runs, kept_NS: Tensor, kept_U: Tensor, sizes: dict[int, int]) -> tuple[float, Tensor]:
    now, slopes = runs.unit_slopes(kept_NS, by_block(kept_U.float(), sizes))
    return now, torch.cat([slopes[layer] for layer in sizes])


def certify_units(
    runs: Runs, on_heldout: Runs, kept_NS: Tensor, point: str, units: dict[int, list[int]], bound: float, seed: int
) -> UnitCircuit:
    """Measure a circuit with some units alone; both runs are taken apart at its MLPs."""
    layers = mlps_of(runs, kept_NS, point)
    for some in (runs, on_heldout):
        some.take_apart(point, layers)
    sizes = sizes_of(runs)
    kept_U = torch.cat([torch.isin(torch.arange(n), torch.tensor(units.get(layer, []), dtype=torch.long))
                        for layer, n in sizes.items()])
    places = [(layer, unit) for layer in sizes for unit in sorted(units.get(layer, []))]  # in the order of `kept_U`
    several_MU = kept_U.repeat(1 + len(places), 1)
    several_MU[torch.arange(1, 1 + len(places)), kept_U.nonzero()[:, 0]] = False
    whole_B, *without = runs.each_faithfulness(runs.with_units(kept_NS, by_block(several_MU, sizes))).unbind(0)
    heldout_B = on_heldout.each_faithfulness(on_heldout.with_units(kept_NS, by_block(kept_U[None], sizes)))[0]
    return UnitCircuit(
        point=point, total=len(kept_U), faithfulness=bootstrap_mean(whole_B, seed),
        heldout=bootstrap_mean(heldout_B, seed), minimal=not any(holds(float(one.mean()), bound) for one in without),
        units=[CertifiedUnit(unit=f"{point}.{layer}.{unit}", effect=bootstrap_mean(whole_B - less_B, seed))
               for (layer, unit), less_B in zip(places, without, strict=True)])
