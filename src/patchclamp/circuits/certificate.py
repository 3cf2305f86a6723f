"""A circuit as a certificate: prompts, bound, and for each edge what the circuit loses without it. Anyone with the
model can measure all of it again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field, ValidationError, model_validator
from torch import Tensor

from patchclamp.circuits.graph import Graph
from patchclamp.circuits.material import LAST, REST, PromptPair, ReadyPair, example_pairs, make_ready, runs_of
from patchclamp.circuits.references import Ablation
from patchclamp.circuits.runs import Runs
from patchclamp.circuits.search import holds
from patchclamp.circuits.units import UnitCircuit, certify_units, once
from patchclamp.errors import FileError, SpecError
from patchclamp.evidence.method import Part
from patchclamp.evidence.record import write_whole
from patchclamp.evidence.verdict import Interval
from patchclamp.tasks.circuit import CircuitPair
from patchclamp.tasks.files import locate_file

if TYPE_CHECKING:
    from patchclamp.forward import Model


NAME = "circuit.json"
"""A certificate's file in its folder."""


class CertifiedEdge(Part):
    """One edge of the circuit."""

    edge: str
    """Source and destination: `head.3.1->q.5.2`."""
    without: float
    """Faithfulness of the circuit without it."""
    effect: Interval
    """What the circuit's faithfulness loses without it, over the prompts looked on."""
    heldout: Interval
    """The same over held-out prompts."""


class PairSet(Part):
    """Prompts, and how the circuit does on them."""

    pairs: list[PromptPair] = Field(min_length=1)
    full: float
    """Mean logit difference of the whole model."""
    corrupted: float
    """With every edge cut."""
    faithfulness: Interval
    """Of the circuit, over prompts."""
    each: list[float]
    """By prompt: how far the circuit's logit difference is from the corrupted one, as a share of the mean such distance
    of the whole model."""


class RoleEdge(Part):
    """One edge of the circuit at the tokens of one role."""

    edge: str
    role: str
    effect: Interval
    """What the faithfulness of the circuit by roles loses without it, over the prompts looked on."""


class RoleCircuit(Part):
    """At which tokens each edge is needed."""

    names: list[str]
    """The roles; the last two are the last token and all other words."""
    edges: list[RoleEdge] = Field(min_length=1)
    faithfulness: Interval
    """Of the circuit whose edges are kept at these roles only, over the prompts looked on."""
    heldout: Interval
    minimal: bool
    """Whether no edge at one role can go alone without breaking the bound."""

    @model_validator(mode="after")
    def _known_roles(self) -> RoleCircuit:
        if unknown := {one.role for one in self.edges} - set(self.names):
            raise ValueError(f"edges at roles that are not among the names: {', '.join(sorted(unknown))}")
        if self.names[-2:] != [LAST, REST] or len(set(self.names)) < len(self.names):
            raise ValueError(f"the roles end in {LAST!r} and {REST!r}, and none comes twice")
        if any(not name.isprintable() for name in self.names):
            raise ValueError("a role's name is one line of printable text")
        once([(one.edge, one.role) for one in self.edges], "edge at a role")
        return self

    def kept(self, graph: Graph) -> Tensor:
        """As edges at roles, [N, S, P]."""
        kept = torch.zeros(*graph.edges.shape, len(self.names), dtype=torch.bool)
        for one in self.edges:
            kept[(*graph.find(one.edge), self.names.index(one.role))] = True
        return kept


class Certificate(Part):
    """What a circuit is and what it does, so that it can be measured again."""

    format: Literal["patchclamp.circuit"] = "patchclamp.circuit"
    version: Literal[1] = 1
    model: str
    weights: str
    dtype: str
    """Number format of weights and activations: the numbers are those of one format."""
    task: str
    bound: float = Field(gt=0, lt=1)
    """The faithfulness asked for; no further from 1 on either side."""
    seed: int = Field(ge=0)
    """Of the intervals."""
    ablation: Ablation
    """What cut edges carry."""
    grouped: bool
    """Keys and values are the model's own, one for each key/value head."""
    edges_total: int = Field(ge=1)
    search: PairSet
    heldout: PairSet
    others: PairSet | None
    """Templates that were not looked on."""
    completeness: float
    """1 less the faithfulness of the whole model without the circuit's edges: 1 if nothing of the answer is left."""
    minimal: bool
    """Whether no edge can go alone without breaking the bound on the prompts looked on."""
    edges: list[CertifiedEdge] = Field(min_length=1)
    roles: RoleCircuit | None = None
    """The circuit's edges at the tokens of roles."""
    units: UnitCircuit | None = None
    """The neurons or features that the circuit's MLPs need."""

    @model_validator(mode="after")
    def _each_once(self) -> Certificate:
        once([one.edge for one in self.edges], "edge")
        return self

    def save(self, path: Path) -> Path:
        """Write it as JSON, beside and then renamed into place. StoreError when the disk refuses."""
        text = json.dumps(self.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n"
        write_whole(path, text.encode())
        return path

    @classmethod
    def load(cls, path: str | Path) -> Certificate:
        """Read one, from its file or from the folder that it was written into. FileError if there is none."""
        place = Path(path).expanduser()
        place = locate_file(place / NAME if place.is_dir() else path)
        try:
            return cls.model_validate_json(place.read_text("utf-8"))
        except (ValidationError, UnicodeDecodeError) as error:
            first = error.errors()[0] if isinstance(error, ValidationError) else None
            where = f": {'.'.join(map(str, first['loc']))}: {first['msg']}" if first else ""
            raise FileError(f"{place} is no certificate of a circuit{where}; circuits find writes one") from error

    def require(self, model: Model) -> None:
        """SpecError unless it is of this model, in this number format, with these autoencoders."""
        if self.weights != model.weights_hash:
            raise SpecError(f"the certificate is of {self.model} (weights {self.weights[:12]}), not of {model.name} "
                            f"({model.weights_hash[:12]}); load that model")
        if (dtype := str(model.dtype).removeprefix("torch.")) != self.dtype:
            raise SpecError(f"the certificate is of {self.dtype} numbers, and the model was loaded in {dtype}; give "
                            f"--dtype {self.dtype}")
        if self.units is not None:
            self.units.require(model.anatomy)

    def kept(self, graph: Graph) -> Tensor:
        """Its edges in a graph, [N, S]."""
        kept = torch.zeros_like(graph.edges)
        for one in self.edges:
            kept[graph.find(one.edge)] = True
        return kept

    def ready(self, model: Model, part: PairSet) -> list[ReadyPair]:
        """The prompts of one of its sets as a model's tokens."""
        return [make_ready(model, CircuitPair(**pair.model_dump())) for pair in part.pairs]


def certify(
    model: Model, kept_NS: Tensor, search: tuple[Sequence[ReadyPair], Runs], heldout: Sequence[ReadyPair],
    others: Sequence[ReadyPair], task: str, bound: float, ablation: Ablation, seed: int = 0,
    by_role: tuple[Sequence[str], Tensor] | None = None, units: tuple[str, dict[int, list[int]]] | None = None,
) -> Certificate:
    """Measure everything that the certificate of a circuit says. `by_role`: the roles' names, and the circuit's edges
    at them, [N, S, P]. `units`: what kind, and by block those that its MLPs need."""
    graph = search[1].graph
    edges = [(int(d), int(s)) for d, s in kept_NS.nonzero()]
    on_heldout = runs_of(model, graph, heldout, ablation, by_role and by_role[0])
    lost = [_lost(runs, kept_NS, edges) for runs in (search[1], on_heldout)]
    whole = search[1].faithfulness(kept_NS[None])[0]
    certified = []
    for i, edge in enumerate(edges):
        effect, on_others = search[1].interval(lost[0][i], seed), on_heldout.interval(lost[1][i], seed)
        certified.append(CertifiedEdge(edge=graph.name(*edge), without=whole - effect.mean, effect=effect,
                                       heldout=on_others))
    return Certificate(
        model=model.name, weights=model.weights_hash, dtype=str(model.dtype).removeprefix("torch."), task=task,
        bound=bound, seed=seed, ablation=ablation, grouped=graph.grouped, edges_total=graph.n_edges,
        search=_set(search[1], search[0], kept_NS, seed),
        heldout=_set(on_heldout, heldout, kept_NS, seed),
        others=_set(runs_of(model, graph, others, ablation), others, kept_NS, seed) if others else None,
        completeness=1 - search[1].faithfulness((graph.edges & ~kept_NS)[None])[0],
        minimal=not any(holds(one.without, bound) for one in certified), edges=certified,
        roles=_by_role(search[1], on_heldout, *by_role, bound, seed) if by_role else None,
        units=certify_units(search[1], on_heldout, kept_NS, *units, bound, seed) if units else None,
    )


def _by_role(
    runs: Runs, on_heldout: Runs, names: Sequence[str], kept_NSP: Tensor, bound: float, seed: int
) -> RoleCircuit:
    places = kept_NSP.nonzero().tolist()
    fewer = kept_NSP.repeat(1 + len(places), 1, 1, 1)
    for row, (d, s, role) in enumerate(places, 1):
        fewer[row, d, s, role] = False
    m_MB = runs.subgraphs(fewer)
    (heldout_B,) = on_heldout.subgraphs(kept_NSP[None])
    return RoleCircuit(
        names=list(names), faithfulness=runs.faithfulness_interval(m_MB[0], seed),
        heldout=on_heldout.faithfulness_interval(heldout_B, seed),
        minimal=not any(holds(f, bound) for f in runs.faithfulness_of(m_MB[1:])),
        edges=[RoleEdge(edge=runs.graph.name(d, s), role=names[role], effect=runs.interval(m_MB[0] - less_B, seed))
               for (d, s, role), less_B in zip(places, m_MB[1:], strict=True)])


def _lost(runs: Runs, kept_NS: Tensor, edges: Sequence[tuple[int, int]]) -> Tensor:
    """By edge and prompt, what m loses without the edge, [edges, B]."""
    return runs.subgraphs(kept_NS[None]) - runs.without(kept_NS, edges)


def _set(runs: Runs, pairs: Sequence[ReadyPair], kept_NS: Tensor, seed: int) -> PairSet:
    (m_B,) = runs.subgraphs(kept_NS[None])
    return PairSet(
        pairs=example_pairs(pairs), full=float(runs.clean_B.mean()), corrupted=float(runs.corrupted_B.mean()),
        faithfulness=runs.faithfulness_interval(m_B, seed), each=runs.each_faithfulness(m_B).tolist())
