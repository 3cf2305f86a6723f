"""The MLPs of a circuit taken apart: which of their neurons, or of an autoencoder's features, it needs.

A unit that is not kept is what it is in the reference (resample ablation: on the corrupted prompt), before the MLP's
own output projection and norms; what an autoencoder does not explain stays as it is. Marks et al. 2024, "Sparse feature
circuits" (arXiv 2403.19647), with exact pruning behind the attribution.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence

import torch
from pydantic import Field, model_validator
from torch import Tensor

from patchclamp.circuits.pairruns import Track
from patchclamp.circuits.runs import Runs
from patchclamp.circuits.search import Prunable, holds, thinned
from patchclamp.errors import SpecError
from patchclamp.evidence.method import Part
from patchclamp.evidence.verdict import Interval
from patchclamp.model.anatomy import Anatomy


class CertifiedUnit(Part):
    """One neuron or feature."""

    unit: str
    """As a site: neuron.17.345."""
    effect: Interval
    """What the circuit's faithfulness loses without it, over the prompts looked on."""


UNIT = re.compile(r"(neuron|feature(?::[^.@\s]+)?)\.(\d+)\.(\d+)")


def once(names: Sequence[Hashable], what: str) -> None:
    """ValueError if something comes twice."""
    twice = [name for name, n in Counter(names).items() if n > 1]
    if twice:
        raise ValueError(f"the {what} {twice[0]} comes twice")


class UnitCircuit(Part):
    """The units that a circuit's MLPs need."""

    point: str
    total: int = Field(ge=1)
    """Units of the circuit's MLPs."""
    autoencoders: dict[int, str] = Field(default_factory=dict)
    """Of features, by block the sha256 of the autoencoder they belong to."""
    units: list[CertifiedUnit]
    faithfulness: Interval
    """Of the circuit with these units alone, over the prompts looked on."""
    heldout: Interval
    minimal: bool

    @model_validator(mode="after")
    def _are_units(self) -> UnitCircuit:
        for one in self.units:
            found = UNIT.fullmatch(one.unit)
            if found is None or found[1] != self.point:
                raise ValueError(f"{one.unit!r} is no unit of the kind {self.point}, such as {self.point}.17.345")
        once([one.unit for one in self.units], "unit")
        return self

    def require(self, anatomy: Anatomy) -> None:
        """SpecError unless the model has these units, of the same autoencoders."""
        for layer, units in self.kept().items():
            if layer >= anatomy.n_layers or not anatomy.has(self.point, layer):
                raise SpecError(f"the certificate names units {self.point}.{layer}, and the model has none; features "
                                "need their autoencoders attached (--model NAME+sae=FOLDER)")
            if max(units) >= (n := anatomy.n_units(self.point, layer)):
                raise SpecError(f"the certificate names {self.point}.{layer}.{max(units)}, and the last one there is "
                                f"{n - 1}")
        if self.autoencoders and self.autoencoders != (now := fingerprints(anatomy, self.point, self.autoencoders)):
            other = next(layer for layer, found in self.autoencoders.items() if now.get(layer) != found)
            raise SpecError(f"the certificate's features of block {other} are of another autoencoder than the one that "
                            "is attached; attach that one")

    def kept(self) -> dict[int, list[int]]:
        """Units by block."""
        found: dict[int, list[int]] = {}
        for one in self.units:
            layer, unit = map(int, one.unit.split(".")[1:])
            found.setdefault(layer, []).append(unit)
        return found


def apart(anatomy: Anatomy, point: str) -> list[int]:
    """Blocks whose MLP can be taken apart into units of a kind. SpecError if there is none."""
    found = [layer for layer in range(anatomy.n_layers) if anatomy.has(point, layer)
             and (point == "neuron" or anatomy.base_point(point, layer) == "mlp")]
    if not found:
        raise SpecError(f"the model's MLPs cannot be taken apart into units {point}: features need autoencoders of the "
                        "sites mlp.L (--model NAME+sae=FOLDER), neurons MLPs that are no mixture of experts")
    return found


def fingerprints(anatomy: Anatomy, point: str, layers: Iterable[int]) -> dict[int, str]:
    """By block, the sha256 of the autoencoder whose features are meant; none of neurons."""
    if point == "neuron":
        return {}
    return {layer: str(getattr(anatomy.codec(point, layer)[0], "fingerprint", "")) for layer in layers
            if anatomy.has(point, layer)}


def mlps_of(runs: Runs, kept_NS: Tensor, point: str) -> list[int]:
    """Blocks whose MLP a subgraph has and that can be taken apart into such units."""
    used_S, anatomy = runs.graph.connected(kept_NS).any(0), runs.groups[0].model.anatomy
    return [layer for layer in apart(anatomy, point) if used_S[runs.graph.mlp(layer)]]


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
    m_MB = runs.with_units(kept_NS, by_block(several_MU, sizes))
    (heldout_B,) = on_heldout.with_units(kept_NS, by_block(kept_U[None], sizes))
    return UnitCircuit(
        point=point, total=len(kept_U), autoencoders=fingerprints(runs.groups[0].model.anatomy, point, sizes),
        faithfulness=runs.faithfulness_interval(m_MB[0], seed),
        heldout=on_heldout.faithfulness_interval(heldout_B, seed),
        minimal=not any(holds(f, bound) for f in runs.faithfulness_of(m_MB[1:])),
        units=[CertifiedUnit(unit=f"{point}.{layer}.{unit}", effect=runs.interval(m_MB[0] - less_B, seed))
               for (layer, unit), less_B in zip(places, m_MB[1:], strict=True)])
