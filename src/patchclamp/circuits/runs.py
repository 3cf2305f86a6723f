"""Pairs of prompts of any lengths, run in part: how far the answer goes with edges cut.

Shape suffixes: B prompts, M subgraphs, S sources, N destinations.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from patchclamp.circuits.attribution import attribution
from patchclamp.circuits.graph import Graph
from patchclamp.circuits.pairruns import HELD, PairRuns, Track
from patchclamp.circuits.references import Ablation, pooled
from patchclamp.circuits.wiring import Wiring
from patchclamp.errors import SpecError
from patchclamp.evidence.bootstrap import bootstrap_ratio
from patchclamp.evidence.verdict import Interval

if TYPE_CHECKING:
    from patchclamp.forward.model import Model


def _most(model: Model, graph: Graph, n_tokens: int) -> int:
    """How many prompts of a length run together at most, so that what all sources write fits into memory."""
    return max(1, HELD // (len(graph.sources) * n_tokens * model.d_model))


class Runs:
    """Pairs of any lengths, those of one length together."""

    def __init__(
        self, model: Model, graph: Graph, clean: Sequence[tuple[int, ...]], corrupted: Sequence[tuple[int, ...]],
        choices: Sequence[tuple[int, int]], ablation: Ablation = "resample",
        roles: Sequence[Sequence[int]] | None = None,
    ) -> None:
        """`choices`: each pair's answer and distractor as token ids. `roles`: the number of every token's role, if
        edges are to be kept at the tokens of some of them. UnsupportedModel if the model's destinations do
        not read what its table says."""
        wiring = Wiring(model.anatomy, graph)
        self.graph = graph
        alike = [[i for i, ids in enumerate(clean) if len(ids) == n] for n in sorted({len(ids) for ids in clean})]
        if ablation == "mean-per-position" and (alone := [ids for ids in alike if len(ids) < 2]):
            raise SpecError(f"{len(alone)} prompts are the only ones of their length, and their mean at a token is "
                            "what they are themselves; give pairs of fewer lengths, or --ablation mean")
        most = [_most(model, graph, len(clean[mine[0]])) if ablation in ("resample", "zero") else len(mine)
                for mine in alike]  # a mean is over all of them
        self.order = [mine[i : i + n] for mine, n in zip(alike, most, strict=True) for i in range(0, len(mine), n)]
        self.groups = [PairRuns(model, wiring, [clean[i] for i in mine], [corrupted[i] for i in mine],
                                [choices[i] for i in mine], ablation, roles and [roles[i] for i in mine])
                       for mine in self.order]
        if ablation == "mean" and len(self.groups) > 1:  # over all prompts, not those of one length
            pooled_STD = pooled([group.reference_BSTD for group in self.groups])
            for group in self.groups:
                group.refer_to(pooled_STD.expand_as(group.reference_BSTD).contiguous())
        self.clean_B = self._in_order([group.clean_B for group in self.groups])
        self.corrupted_B = self._in_order([group.corrupted_B for group in self.groups])

    def _in_order(self, parts: Sequence[Tensor]) -> Tensor:
        """Numbers of the groups' prompts [..., B], in the order of the pairs."""
        joined = torch.cat(list(parts), -1).cpu()
        return joined[..., torch.argsort(torch.tensor([i for mine in self.order for i in mine]))]

    def attribution(self, steps: int = 0, frozen: bool = False) -> Tensor:
        """Every edge's attribution for each prompt, [N, S, B]."""
        return self._in_order([attribution(group, steps, frozen) for group in self.groups])

    def along_edges(self, steps: int) -> Tensor:
        """Every edge's integrated gradient by how much all edges are kept, for each prompt, [N, S, B]."""
        return self._in_order([group.along_edges(steps) for group in self.groups])

    def each_edge(self, track: Track | None = None) -> Tensor:
        """m with each edge alone cut, [N, S, B]; NaN where there is none."""
        return self._in_order([group.each_edge(track) for group in self.groups])

    def some_edges(self, edges: Sequence[tuple[int, int]], track: Track | None = None) -> Tensor:
        """m with each of some edges alone cut, [edges, B]."""
        return self._in_order([group.some_edges(edges, track) for group in self.groups])

    def subgraphs(self, kept_MNS: Tensor) -> Tensor:
        """m of subgraphs, [M, B]."""
        return self._in_order([group.subgraphs(kept_MNS) for group in self.groups])

    def without(self, kept_NS: Tensor, edges: Sequence[tuple[int, int]]) -> Tensor:
        """m of a subgraph without each of some of its edges alone, [edges, B]."""
        return self._in_order([group.without(kept_NS, edges) for group in self.groups])

    def slopes(self, weights_NS: Tensor) -> tuple[float, Tensor]:
        """F of a subgraph whose edges are kept to so much (0 to 1), and its gradient by these weights, [N, S]: what
        each edge contributes within the subgraph, to first order."""
        f, slopes = self._in_faithfulness([(m_B, {0: slope}) for m_B, slope in (
            group.slopes(weights_NS) for group in self.groups)])
        return f, slopes[0]

    def _in_faithfulness(
        self, parts: Sequence[tuple[Tensor, dict[int, Tensor]]]
    ) -> tuple[float, dict[int, Tensor]]:
        """F, and the groups' gradients of the sum of m as gradients of F."""
        span = self.span * len(self.clean_B)
        f = self.faithfulness_of(self._in_order([m_B for m_B, _ in parts])[None])[0]
        return f, {name: torch.stack([slope[name].cpu() for _, slope in parts]).sum(0) / span for name in parts[0][1]}

    def take_apart(self, point: str, layers: Sequence[int]) -> None:
        """Have the MLPs of some blocks ready unit by unit: `neuron`, or a feature point of an autoencoder."""
        for group in self.groups:
            group.take_apart(point, layers)
        if self.groups[0].ablation == "mean" and len(self.groups) > 1:
            for layer in layers:
                pooled_TU = pooled([group.units[layer] for group in self.groups])
                for group in self.groups:
                    group.units[layer] = pooled_TU.expand_as(group.units[layer]).contiguous()

    def with_units(self, kept_NS: Tensor, units: dict[int, Tensor]) -> Tensor:
        """m [M, B] of one subgraph with some of its MLPs' units kept, by block [M, units]."""
        return self._in_order([group.with_units(kept_NS, units) for group in self.groups])

    def unit_slopes(self, kept_NS: Tensor, units: dict[int, Tensor]) -> tuple[float, dict[int, Tensor]]:
        """F of a subgraph whose MLPs' units are kept to so much, and its gradient by that, by block [units]."""
        return self._in_faithfulness([group.unit_slopes(kept_NS, units) for group in self.groups])

    def each_faithfulness(self, m_MB: Tensor) -> Tensor:
        """By prompt, how far m is from the corrupted run's, as a share of the mean such distance of the whole model: F
        is the mean of it."""
        return (m_MB - self.corrupted_B) / (self.clean_B - self.corrupted_B).mean()

    def interval(self, gap_B: Tensor, seed: int) -> Interval:
        """Σ of some difference of m over Σ of that between the whole model and the corrupted run: of m - m(corrupted)
        it is F. Prompts are drawn anew for both sums."""
        return bootstrap_ratio(gap_B, self.clean_B - self.corrupted_B, seed)

    def faithfulness_interval(self, m_B: Tensor, seed: int) -> Interval:
        """F of one subgraph's m."""
        return self.interval(m_B - self.corrupted_B, seed)

    @property
    def span(self) -> float:
        """How far the corrupted prompts move the mean logit difference."""
        return float((self.clean_B - self.corrupted_B).mean())

    def faithfulness_of(self, m_MB: Tensor) -> list[float]:
        """F of each line: 1 for the whole model's mean m, 0 for the corrupted one."""
        return self.each_faithfulness(m_MB).mean(-1).tolist()

    def faithfulness(self, kept_MNS: Tensor) -> list[float]:
        """F of subgraphs."""
        return self.faithfulness_of(self.subgraphs(kept_MNS))
