"""How good a ranking of edges is: faithfulness of its circuits over all sizes.

    CPR = ∫ F(C_k) dk        CMD = ∫ |1 - F(C_k)| dk        k: share of edges, from 0 to 1

C_k is the connected circuit of the k edges of the largest scores; the integrals are sums of trapezia between the sizes
measured (circuit performance ratio and circuit-model distance: Mueller et al. 2025, "MIB", arXiv 2504.13151, section
3). A high CPR says that the edges help the answer, a CMD near 0 that the circuits behave as the model does. Scores are
from prompts looked on, F from held-out ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import torch
from pydantic import Field, field_validator
from torch import Tensor

from patchclamp.circuits.controls import random_circuits
from patchclamp.circuits.graph import Graph
from patchclamp.circuits.material import GraphSpec, material, require_solved, runs_of
from patchclamp.circuits.runs import Runs
from patchclamp.circuits.score import Scoring, scored
from patchclamp.circuits.search import greedy, ranked_by_pruning
from patchclamp.errors import RunError
from patchclamp.evidence.bootstrap import control_range
from patchclamp.evidence.cli_hints import CommaList
from patchclamp.evidence.method import Outcome, Part, Progress, Result, method
from patchclamp.evidence.verdict import Interval, judge
from patchclamp.forward import Model

if TYPE_CHECKING:
    import altair
    import pandas

DRAWN = 1000
"""Edges of the largest circuit that random ones are drawn for."""


class EvaluateCircuitsSpec(GraphSpec):
    """Which ranking, at which sizes."""

    method: Scoring | Literal["pruned"] = "eap-ig"
    """How edges are ranked; pruned: by how many rounds of pruning (circuits find) they survive, on a shortlist by
    integrated gradients."""
    bound: float = Field(0.9, ge=0.05, lt=1)
    """Of pruning."""
    steps: int = Field(5, ge=1)
    """Of integrated gradients."""
    fractions: Annotated[tuple[float, ...], CommaList()] = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
    """Sizes, as shares of all edges; the last one is 1."""
    controls: int = Field(8, ge=2)
    """Random rankings, and random circuits of each size, to compare with."""
    resamples: int = Field(20, ge=2)
    """How often the prompts are drawn anew to see whether the circuits stay the same."""

    @field_validator("fractions")
    @classmethod
    def _in_order(cls, fractions: tuple[float, ...]) -> tuple[float, ...]:
        if not fractions or any(not 0 < f <= 1 for f in fractions) or list(fractions) != sorted(set(fractions)):
            raise ValueError("fractions are shares above 0 and at most 1, each larger than the last")
        return fractions if fractions[-1] == 1 else (*fractions, 1.0)


class CurvePoint(Part):
    """Circuits of one size."""

    fraction: float
    edges: int
    """After what hangs loose is taken away."""
    faithfulness: float
    jaccard: float | None
    """Mean overlap with the circuits that resampled prompts give: shared edges over edges in either; null for pruned
    circuits, which have no score by prompt."""


class RandomPoint(Part):
    """Random connected circuits of one size, with as many edges into each block."""

    fraction: float
    edges: int
    faithfulness: Interval
    """Mean, and the range in which 95 % of such circuits fall."""


class CircuitCurve(Result):
    """Faithfulness by size."""

    method: Scoring | Literal["pruned"]
    edges_total: int
    solved: float
    cpr: float
    """Area under faithfulness."""
    cmd: float
    """Area between faithfulness and 1."""
    random_cpr: list[float]
    """Of random rankings."""
    random_cmd: list[float]
    curve: list[CurvePoint]
    random: list[RandomPoint]
    """At the sizes of at most a thousand edges."""

    def table(self) -> pandas.DataFrame:
        """One row a size."""
        import pandas

        random = {point.fraction: point.faithfulness.mean for point in self.random}
        rows = [{**one.model_dump(), "random circuits": random.get(one.fraction)} for one in self.curve]
        return pandas.DataFrame(rows)

    def chart(self) -> altair.TopLevelMixin:
        """Faithfulness over sizes, beside random circuits."""
        from patchclamp.charts.circuits import curve_chart

        return curve_chart(self)


@method("circuits.evaluate", spec=EvaluateCircuitsSpec, result=CircuitCurve)
def evaluate_circuits(model: Model, spec: EvaluateCircuitsSpec, progress: Progress) -> Outcome:
    """Rank the edges of the model for one task, and see how faithful the circuits of the first ones are, at all sizes.

    The verdict asks whether the circuits stay nearer to the model than those of random rankings do.
    """
    graph, found = Graph.of(model.anatomy, spec.grouped), material(model, spec)
    looked, heldout = (runs_of(model, graph, pairs, spec.ablation) for pairs in (found.search, found.heldout))
    solved = require_solved(looked, spec)
    if spec.method == "pruned":
        each_NSB = None
        mean_NS = ranked_by_pruning(looked, looked.attribution(spec.steps).mean(-1), spec.bound, progress.track)
    else:
        each_NSB = scored(looked, spec.method, spec.steps, progress)
        mean_NS = each_NSB.mean(-1)
    sizes = [max(1, round(fraction * graph.n_edges)) for fraction in spec.fractions]
    circuits = greedy(graph, mean_NS, sizes)
    ours = heldout.faithfulness(circuits)
    generator = torch.Generator().manual_seed(spec.seed)
    theirs = [heldout.faithfulness(greedy(graph, scores, sizes))
              for scores in progress.track([torch.rand(graph.edges.shape, generator=generator)
                                            for _ in range(spec.controls)], "random rankings", spec.controls)]
    cpr, cmd = areas(spec.fractions, ours)
    random = [areas(spec.fractions, one) for one in theirs]
    overlaps = [None] * len(sizes) if each_NSB is None else _overlaps(graph, each_NSB, sizes, circuits, spec)
    result = CircuitCurve(
        method=spec.method, edges_total=graph.n_edges, solved=solved, cpr=cpr, cmd=cmd,
        random_cpr=[a for a, _ in random], random_cmd=[b for _, b in random],
        curve=[CurvePoint(fraction=fraction, edges=int(kept.sum()), faithfulness=value, jaccard=overlap)
               for fraction, kept, value, overlap in zip(spec.fractions, circuits, ours, overlaps, strict=True)],
        random=_random(graph, heldout, spec, circuits))
    verdict = judge(cmd, [b for _, b in random], direction="less", against="distribution", seed=spec.seed,
                    claim=f"the circuits that {spec.method} gives behave as the model does (distance between "
                          "faithfulness and 1 over all sizes, against random rankings)")
    return result, verdict


def areas(fractions: Sequence[float], faithfulness: Sequence[float]) -> tuple[float, float]:
    """CPR and CMD; the empty circuit, of faithfulness 0, stands before the first size."""
    x, y = np.array([0.0, *fractions]), np.array([0.0, *faithfulness])
    return float(np.trapezoid(y, x)), float(np.trapezoid(np.abs(1 - y), x))


def _overlaps(
    graph: Graph, each_NSB: Tensor, sizes: Sequence[int], circuits: Tensor, spec: EvaluateCircuitsSpec
) -> list[float | None]:
    """By size, the mean Jaccard index of the circuit and those of resampled prompts."""
    n = each_NSB.shape[-1]
    generator = torch.Generator().manual_seed(spec.seed)
    found: list[list[float]] = [[] for _ in sizes]
    for _ in range(spec.resamples):
        drawn = torch.randint(n, (n,), generator=generator)
        scores_NS = each_NSB[..., drawn].mean(-1)
        for overlaps, other, kept in zip(found, greedy(graph, scores_NS, sizes), circuits, strict=True):
            overlaps.append(float((kept & other).sum() / (kept | other).sum().clamp(min=1)))
    return [float(np.mean(overlaps)) for overlaps in found]


def _random(
    graph: Graph, runs: Runs, spec: EvaluateCircuitsSpec, circuits: Tensor
) -> list[RandomPoint]:
    points = []
    for fraction, kept in zip(spec.fractions, circuits, strict=True):
        n = int(kept.sum())
        if 0 < n <= DRAWN and n < graph.n_edges:
            try:
                drawn = random_circuits(graph, kept, spec.controls, spec.seed)
            except RunError:  # so many edges into so few parts that chance does not find them
                continue
            points.append(RandomPoint(fraction=fraction, edges=n, faithfulness=control_range(runs.faithfulness(drawn))))
    return points
