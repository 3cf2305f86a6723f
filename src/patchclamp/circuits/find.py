"""The circuit of a task: the few edges of a model that do it as the whole model does, with a certificate.

    F(C) = (m(C) - m(corrupted)) / (m(full) - m(corrupted))        m: mean logit difference of answer and distractor

Every edge outside the circuit carries what it carries on the corrupted prompt. Edges are ranked by integrated gradients
(Hanna et al. 2024, arXiv 2403.17806), a connected shortlist is taken, and edges are taken out of it by exact removal
until none can go alone without F leaving the bound. Prompts that were not looked on, and random connected circuits with
as many edges into each block, stand beside. Wang et al. 2022, arXiv 2211.00593; Conmy et al. 2023, 2304.14997.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field
from torch import Tensor

from patchclamp.circuits.certificate import NAME, Certificate, certify
from patchclamp.circuits.controls import random_circuits
from patchclamp.circuits.drawing import Drawing, drawn
from patchclamp.circuits.graph import Graph
from patchclamp.circuits.material import (
    LEAST_SPAN,
    GraphSpec,
    ReadyPair,
    material,
    require_solved,
    require_span,
    role_names,
    runs_of,
)
from patchclamp.circuits.runs import Runs
from patchclamp.circuits.search import acdc, holds, optimised, prune, prune_roles, shortlist
from patchclamp.circuits.units import apart, mlps_of, prune_units
from patchclamp.errors import RunError, SpecError
from patchclamp.evidence.method import Outcome, Progress, Result, method
from patchclamp.evidence.store import check_folder
from patchclamp.evidence.verdict import NO_INTERVAL, Interval, Verdict, judge
from patchclamp.forward import Model
from patchclamp.tasks.files import DataFile

if TYPE_CHECKING:
    import altair
    import pandas


class FindSpec(GraphSpec):
    """How small and how faithful."""

    bound: float = Field(0.9, ge=0.05, lt=1)
    """Faithfulness of the circuit on the prompts looked on, and no further above 1."""
    max_edges: float = Field(0.02, gt=0, le=1)
    """Most edges of the circuit, as a share of all; a circuit that needs more does not support the verdict's claim."""
    search: Literal["greedy", "acdc", "masks"] = "greedy"
    """What exact pruning begins with: a connected shortlist of the edges of the largest scores; what is left when, from
    the logits back, every edge is cut whose loss changes faithfulness by less than a threshold (Conmy et al. 2023); or
    a shortlist by how much each edge is kept when that is optimised for few and faithful (Bhaskar et al. 2024, arXiv
    2406.16778)."""
    threshold: float = Field(0.01, gt=0)
    """Of acdc: of a change of faithfulness."""
    penalty: float = Field(0.002, gt=0)
    """Of masks: how much faithfulness an edge has to be worth."""
    steps: int = Field(5, ge=0)
    """Of integrated gradients for the ranking; 0 for the gradient at the clean prompt alone."""
    roles: bool = True
    """Also find at which tokens each edge is needed: those of the words that play a part, the last one, all others."""
    units: Literal["none", "neuron", "feature"] = "none"
    """Also find which units of the circuit's MLPs are needed, if it has any: neurons, or features of autoencoders of
    MLPs' outputs that are attached to the model."""
    controls: int = Field(20, ge=0)
    """Random circuits to compare with; 0 for no verdict."""
    out: DataFile | None = None
    """A folder for the certificate."""


class Circuit(Result):
    """The circuit that was found."""

    sources: int
    destinations: int
    edges_total: int
    edges_shortlist: int
    """Before exact pruning."""
    edges_kept: int
    faithfulness: float
    """On the prompts looked on."""
    faithfulness_heldout: float
    """On the same templates with other combinations of words."""
    faithfulness_others: float | None
    """On templates that were not looked on; null if there are none whose prompts the model tells apart."""
    completeness: float
    """1 less the faithfulness of the whole model without the circuit: 1 if nothing of the answer is left."""
    minimal: bool
    """Whether no edge can go alone without breaking the bound."""
    solved: float
    """Share of the pairs whose answer the whole model prefers."""
    skipped: int
    """Pairs that did not suit the model's tokens."""
    random: list[float]
    """Faithfulness of random connected circuits with as many edges into each block, on held-out prompts."""
    certificate: Certificate
    drawing: Drawing
    path: str | None
    """Where the certificate was written."""

    def table(self) -> pandas.DataFrame:
        """One row an edge, the one whose loss costs most first."""
        import pandas

        at: dict[str, list[str]] = {}
        for part in self.certificate.roles.edges if self.certificate.roles else ():
            at.setdefault(part.edge, []).append(part.role)
        rows: list[dict[str, Any]] = [
            {"edge": one.edge, "at": ", ".join(at.get(one.edge, [])), "loss without it": one.effect.mean,
             "low": one.effect.low, "high": one.effect.high, "on held-out prompts": one.heldout.mean,
             "faithfulness without it": one.without}
            for one in self.certificate.edges]
        return pandas.DataFrame(rows).sort_values("loss without it", key=abs, ascending=False, ignore_index=True)

    def chart(self) -> altair.TopLevelMixin:
        """The circuit, and its faithfulness beside random ones."""
        from patchclamp.charts.circuits import circuit_chart

        return circuit_chart(self)


@method("circuits.find", spec=FindSpec, result=Circuit)
def find_circuit(model: Model, spec: FindSpec, progress: Progress) -> Outcome:
    """Find the few edges of the model that do one task as the whole model does.

    The verdict asks whether the circuit, on prompts it was not looked for on, is nearer to a faithfulness of 1 than
    random connected circuits with as many edges into each block are. A circuit of more edges than `max_edges` allows
    is not supported.
    """
    if spec.out is not None:
        check_folder("--out", Path(spec.out))
    if spec.units != "none":
        apart(model.anatomy, spec.units)
    graph, found = Graph.of(model.anatomy, spec.grouped), material(model, spec)
    runs, heldout = (runs_of(model, graph, pairs, spec.ablation) for pairs in (found.search, found.heldout))
    solved = require_solved(runs, spec)
    require_span(heldout, "held-out prompts")
    others = _telling(model, graph, spec, found.others)
    first = _first(runs, spec, progress)
    if not holds(whole := runs.faithfulness(first[None])[0], spec.bound):
        raise SpecError(f"even the whole graph has a faithfulness of {whole:.7f} in numbers of this size, and the "
                        f"bound asks for {spec.bound}; give a lower --bound")
    kept = prune(runs, first, spec.bound, progress.track)
    by_role = None
    if spec.roles:
        names = role_names(found.search)
        by_role = names, prune_roles(runs, kept, len(names), spec.bound, progress.track)
    certificate = certify(model, kept, (found.search, runs), found.heldout, others, spec.what, spec.bound,
                          spec.ablation, spec.seed, by_role, _units(runs, spec, kept, progress))
    path = certificate.save(Path(spec.out) / NAME) if spec.out else None
    random: list[float] = []
    verdict = None
    if spec.controls:
        random, verdict = _beside_random(graph, heldout, spec, certificate)
    result = Circuit(
        sources=len(graph.sources), destinations=len(graph.destinations), edges_total=graph.n_edges,
        edges_shortlist=int(first.sum()), edges_kept=len(certificate.edges),
        faithfulness=certificate.search.faithfulness.mean, faithfulness_heldout=certificate.heldout.faithfulness.mean,
        faithfulness_others=certificate.others.faithfulness.mean if certificate.others else None,
        completeness=certificate.completeness, minimal=certificate.minimal, solved=solved, skipped=found.skipped,
        random=random, certificate=certificate, drawing=drawn(certificate, graph), path=str(path) if path else None,
    )
    return result, verdict


def _telling(model: Model, graph: Graph, spec: FindSpec, others: list[ReadyPair]) -> list[ReadyPair]:
    """Prompts of other templates, if the model tells them apart: what it does not do there no circuit does."""
    return others if others and runs_of(model, graph, others, spec.ablation).span >= LEAST_SPAN else []


def _first(runs: Runs, spec: FindSpec, progress: Progress) -> Tensor:
    """What pruning begins with, [N, S]; the whole graph if what was found does not keep the bound."""
    if spec.search == "acdc":
        kept = acdc(runs, spec.threshold, progress.track)
        return kept if holds(runs.faithfulness(kept[None])[0], spec.bound) else runs.graph.edges
    masks = spec.search == "masks"
    scores_NS = optimised(runs, spec.penalty, progress.track) if masks else runs.attribution(spec.steps).mean(-1)
    return shortlist(runs, scores_NS, spec.bound)


def _units(runs: Runs, spec: FindSpec, kept: Tensor, progress: Progress) -> tuple[str, dict[int, list[int]]] | None:
    """What kind, and by block those that the circuit's MLPs need; None if it has none that can be taken apart."""
    if spec.units == "none" or not (layers := mlps_of(runs, kept, spec.units)):
        return None
    runs.take_apart(spec.units, layers)
    return spec.units, prune_units(runs, kept, spec.bound, progress.track)


def _beside_random(
    graph: Graph, heldout: Runs, spec: FindSpec, certificate: Certificate
) -> tuple[list[float], Verdict]:
    """Random circuits' faithfulness on held-out prompts, and what that says of the circuit."""
    claim = (f"{len(certificate.edges)} of {graph.n_edges} edges do {certificate.task} on prompts not looked on "
             "(distance of faithfulness from 1, against random connected circuits with as many edges into each block)")
    distance = from_one(certificate.heldout.faithfulness)
    try:
        random = heldout.faithfulness(random_circuits(graph, certificate.kept(graph), spec.controls, spec.seed))
    except RunError as error:
        return [], Verdict(outcome="inconclusive", reason=f"There is nothing to compare with ({error}): {claim}.",
                           effect=distance, control=NO_INTERVAL)
    verdict = judge(distance, [abs(1 - f) for f in random], direction="less", against="distribution", seed=spec.seed,
                    claim=claim)
    if len(certificate.edges) > spec.max_edges * graph.n_edges:
        verdict = verdict.model_copy(update={"outcome": "not supported", "reason": (
            f"The circuit needs {len(certificate.edges)} edges, more than {spec.max_edges:.1%} of {graph.n_edges}, "
            f"which does not support that few edges do {certificate.task}.")})
    return random, verdict


def from_one(faithfulness: Interval) -> Interval:
    """How far F is from 1, with the range of that over F's interval."""
    ends = sorted(abs(1 - end) for end in (faithfulness.low, faithfulness.high))
    low = 0.0 if faithfulness.low <= 1 <= faithfulness.high else ends[0]
    return Interval(mean=abs(1 - faithfulness.mean), low=low, high=ends[1])
