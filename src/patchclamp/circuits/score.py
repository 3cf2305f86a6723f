"""What every edge of the model carries of a task: exactly, or to first order with a check on how good that is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from patchclamp.circuits.graph import Graph
from patchclamp.circuits.material import GraphSpec, material, require_solved, runs_of
from patchclamp.circuits.runs import Runs
from patchclamp.evidence.method import Outcome, Part, Progress, Result, method
from patchclamp.evidence.verdict import judge
from patchclamp.forward import Model

if TYPE_CHECKING:
    import altair
    import pandas

Scoring = Literal["exact", "eap", "eap-ig", "eap-ig-activations", "eap-frozen"]


class ScoreSpec(GraphSpec):
    """How edges are scored."""

    method: Scoring = "eap-ig"
    """Exact activation patching of each edge; attribution patching (eap), that with integrated gradients, over inputs
    or over all activations at once, or with norms held still for the gradient."""
    steps: int = Field(5, ge=1)
    """Of integrated gradients."""
    check: int = Field(120, ge=12)
    """How many edges are cut exactly to check a gradient's scores by: half those of the largest scores, half random."""
    top: int = Field(50, ge=1)
    """How many edges are listed."""


class EdgeScore(Part):
    """One edge."""

    edge: str
    score: float
    """Change of the mean logit difference when the edge alone is cut, as the method has it."""
    exact: float | None
    """The same measured; null where it was not."""
    chosen: Literal["top", "random"]


class EdgeScores(Result):
    """Edges and what they carry."""

    sources: int
    destinations: int
    edges_total: int
    method: Scoring
    solved: float
    logit_difference: float
    """Mean of the whole model."""
    correlation: float | None
    """Rank correlation (Spearman) of scores with exact ones, over random edges; null for exact scores."""
    correlation_top: float | None
    """The same over the edges of the largest scores."""
    edges: list[EdgeScore]

    def table(self) -> pandas.DataFrame:
        """One row an edge, the largest score first."""
        import pandas

        rows = pandas.DataFrame([one.model_dump() for one in self.edges])
        return rows.sort_values("score", key=abs, ascending=False, ignore_index=True)

    def chart(self) -> altair.TopLevelMixin:
        """Scores against exact ones, or the largest of them."""
        from patchclamp.charts.circuits import scores_chart

        return scores_chart(self)


def scored(runs: Runs, how: Scoring, steps: int, progress: Progress) -> Tensor:
    """Each edge's score for each prompt, [N, S, B]; 0 where there is none."""
    if how == "exact":
        return (runs.each_edge(progress.track) - runs.clean_B).nan_to_num(0.0)
    if how == "eap-ig-activations":
        return runs.along_edges(steps)
    return runs.attribution(steps if how == "eap-ig" else 0, frozen=how == "eap-frozen")


@method("circuits.score", spec=ScoreSpec, result=EdgeScores)
def score_edges(model: Model, spec: ScoreSpec, progress: Progress) -> Outcome:
    """Score every edge of the model for one task: by how much the logit difference changes when the edge is cut.

    The verdict asks whether the edges of the largest scores change the answer more than random edges do, both cut
    exactly, on prompts that were not scored on.
    """
    graph, found = Graph.of(model.anatomy, spec.grouped), material(model, spec)
    runs, heldout = (runs_of(model, graph, pairs, spec.ablation) for pairs in (found.search, found.heldout))
    solved = require_solved(runs, spec)
    mean_NS = scored(runs, spec.method, spec.steps, progress).mean(-1)
    every = graph.edges.nonzero()
    order = mean_NS[graph.edges].abs().argsort(descending=True)
    top = [(int(d), int(s)) for d, s in every[order[: spec.top]]]
    half = spec.check // 2
    shuffled = torch.randperm(len(every), generator=torch.Generator().manual_seed(spec.seed))
    some = [(int(d), int(s)) for d, s in every[shuffled[:half]]]
    checked = [*top[:half], *some]
    exact, tested = (dict(zip(checked, (one.some_edges(checked, progress.track) - one.clean_B).mean(-1).tolist(),
                              strict=True)) for one in (runs, heldout))
    edges = [EdgeScore(edge=graph.name(*edge), score=float(mean_NS[edge]), exact=exact.get(edge),
                       chosen="top" if edge in top else "random") for edge in dict.fromkeys([*top, *some])]
    result = EdgeScores(
        sources=len(graph.sources), destinations=len(graph.destinations),
        edges_total=graph.n_edges, method=spec.method, solved=solved, logit_difference=float(runs.clean_B.mean()),
        correlation=_agreement(mean_NS, exact, some) if spec.method != "exact" else None,
        correlation_top=_agreement(mean_NS, exact, top[:half]) if spec.method != "exact" else None, edges=edges)
    verdict = judge(
        [abs(tested[edge]) for edge in top[:half]], [abs(tested[edge]) for edge in some], direction="greater",
        seed=spec.seed,
        claim=f"the edges that {spec.method} ranks first carry the answer (change of the logit difference on other "
              "prompts when one is cut exactly, against random edges)")
    return result, verdict


def _agreement(scores_NS: Tensor, exact: dict[tuple[int, int], float], edges: list[tuple[int, int]]) -> float | None:
    """Rank correlation; none where one side is all the same."""
    from scipy.stats import spearmanr

    one, other = np.array([float(scores_NS[e]) for e in edges]), np.array([exact[e] for e in edges])
    return None if np.ptp(one) == 0 or np.ptp(other) == 0 else float(spearmanr(one, other).statistic)
