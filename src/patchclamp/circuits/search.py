"""Finding a small subgraph that does a task as the whole model does.

    F(C) = (m(C) - m(corrupted)) / (m(full) - m(corrupted))        m: mean logit difference

A shortlist by score, connected and as short as the bound allows (greedy, Hanna et al. 2024, arXiv 2403.17806); then
exact pruning: edges are taken out, those first whose removal changes F least, until none is left that could go alone. F
above 1 is as bad as below: the bound b asks for b <= F <= 2 - b.

Shape suffixes: B prompts, M subgraphs, S sources, N destinations.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import TypeAlias

import torch
from torch import Tensor

from patchclamp.circuits.graph import Graph
from patchclamp.circuits.pairruns import Track
from patchclamp.circuits.runs import Runs

Place: TypeAlias = tuple[int, ...]
"""An edge as (destination, source), one at a role as (destination, source, role), or a unit's number."""
SIZES = 8
"""Subgraphs tried at once."""
MASK_STEPS, MASK_RATE = 40, 0.05
COARSE = 0.95
"""How much of it a step by slopes may leave to be followed by another."""
SHARES = (0, 0.005, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 0.85, 1)
"""Of what could go, tried at once."""
GROWTH = 1.5
"""How much larger than the last each subgraph is that is tried first."""


def greedy(graph: Graph, scores_NS: Tensor, sizes: Sequence[int]) -> Tensor:
    """Connected subgraphs of at most so many edges each, [sizes, N, S]: from the logits back, always the edge of the
    largest score into what is in already; counted after what hangs loose is taken away."""
    order = _order(graph, scores_NS)
    found = []
    for size in sizes:
        low, high = 0, len(order)  # more edges never take away from what hangs together
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if int(_first(graph, order, middle).sum()) <= size else (low, middle - 1)
        found.append(_first(graph, order, low))
    return torch.stack(found)


def _first(graph: Graph, order: Tensor, n: int) -> Tensor:
    """What hangs together of the first edges of an order, [N, S]."""
    kept = torch.zeros_like(graph.edges)
    kept[order[:n, 0], order[:n, 1]] = True
    return graph.connected(kept)


def _order(graph: Graph, scores_NS: Tensor) -> Tensor:
    """All edges as (destination, source) in the order they are taken in, [edges, 2]."""
    size_NS = scores_NS.abs().tolist()
    heap: list[tuple[float, int, int]] = []
    inside: set[int] = set()
    order: list[tuple[int, int]] = []

    def take_in(destination: int) -> None:
        if destination not in inside:
            inside.add(destination)
            for source in range(graph.destinations[destination].reach):
                heapq.heappush(heap, (-size_NS[destination][source], destination, source))

    take_in(len(graph.destinations) - 1)
    while heap:
        _, destination, source = heapq.heappop(heap)
        order.append((destination, source))
        for place in graph.feeds[source]:
            take_in(place)
    return torch.tensor(order)


def shortlist(runs: Runs, scores_NS: Tensor, bound: float) -> Tensor:
    """The shortest greedy subgraph found that keeps the bound: of sizes that grow by half each time, and then of some
    between the last two. The whole graph keeps every bound."""
    n, least = runs.graph.n_edges, 8
    sizes = [min(n, round(least * GROWTH**i)) for i in range(1 + math.ceil(math.log(n / least, GROWTH)))]
    first = _first_that_holds(runs, scores_NS, sizes, bound)
    before = sizes[sizes.index(first) - 1] if first > least else 1
    between = sorted({before + (first - before) * i // SIZES for i in range(1, SIZES)} - {before, first})
    return greedy(runs.graph, scores_NS, [_first_that_holds(runs, scores_NS, [*between, first], bound)])[0]


def _first_that_holds(runs: Runs, scores_NS: Tensor, sizes: Sequence[int], bound: float) -> int:
    """The first size whose greedy subgraph keeps the bound; the last if none before does."""
    for i in range(0, len(sizes), SIZES):
        some = sizes[i : i + SIZES]
        for size, faithfulness in zip(some, runs.faithfulness(greedy(runs.graph, scores_NS, some)), strict=True):
            if holds(faithfulness, bound):
                return size
    return sizes[-1]


def acdc(runs: Runs, threshold: float, track: Track | None = None) -> Tensor:
    """What is left of the graph [N, S] when, destination after destination from the logits back, every edge is cut
    whose loss alone changes F by less than a threshold (Conmy et al. 2023, arXiv 2304.14997, algorithm 1; the edges
    into one destination are tried together). Destinations that nothing behind needs any more are passed over."""
    graph = runs.graph
    kept_NS, places = graph.edges, range(len(graph.destinations) - 1, -1, -1)
    for place in track(places, "cutting edges from the logits back", len(places)) if track else places:
        edges = [(place, source) for source in kept_NS[place].nonzero()[:, 0].tolist()]
        if edges:
            now = runs.faithfulness(kept_NS[None])[0]
            alone = runs.faithfulness_of(runs.without(kept_NS, edges))
            fewer = _less(kept_NS, [edge for edge, f in zip(edges, alone, strict=True) if abs(now - f) < threshold])
            kept_NS = graph.connected(fewer)
    return kept_NS


def optimised(runs: Runs, penalty: float, track: Track | None = None) -> Tensor:
    """How much each edge is kept, 0 to 1 [N, S], when |1 - F| + penalty · Σ kept is made small by Adam, from all edges
    kept whole (edge pruning: Bhaskar et al. 2024, arXiv 2406.16778, without its noise)."""
    weights, slope_NS = runs.graph.edges.float().requires_grad_(), torch.ones(1)
    adam = torch.optim.Adam([weights], lr=MASK_RATE)
    for _ in track(range(MASK_STEPS), "optimising masks", MASK_STEPS) if track else range(MASK_STEPS):
        f, slope_NS = runs.slopes(weights.detach())
        direction = -1.0 if f < 1 else 1.0
        weights.grad = ((direction * slope_NS + penalty) * runs.graph.edges).to(weights)
        adam.step()
        with torch.no_grad():
            weights.clamp_(0, 1)
    return weights.detach() + 1e-3 * slope_NS.abs() / slope_NS.abs().max()  # among edges kept alike, those worth more


def holds(faithfulness: float, bound: float) -> bool:
    """Whether a faithfulness is within the bound on either side of 1."""
    return bound <= faithfulness <= 2 - bound


@dataclass(frozen=True)
class Prunable:
    """What `thinned` takes things out of: how faithful some of it is, with the rest gone."""

    faithfulness: Callable[[Tensor], list[float]]
    """F of several, [several, ...]."""
    tidy: Callable[[Tensor], Tensor] = lambda kept: kept
    """Without what means nothing any more once other things are gone."""
    slopes: Callable[[Tensor], tuple[float, Tensor]] | None = None
    """F, and to first order what each thing contributes to it; not given, every removal is measured from the start."""
    alone: Callable[[Tensor, list[Place]], list[float]] | None = None
    """F without each of some places alone; if not given, as `faithfulness` has it."""

    def without_each(self, kept: Tensor, places: list[Place]) -> list[float]:
        if self.alone is not None:
            return self.alone(kept, places)
        return self.faithfulness(torch.stack([_less(kept, [place]) for place in places]))


def thinned(
    of: Prunable, kept: Tensor, bound: float, what: str, track: Track | None = None, stages: list[Tensor] | None = None
) -> Tensor:
    """What is left when things are taken out until none can go alone without F leaving the bound.

    First as many at once as the bound allows, by what each contributes to first order within what is left, until that
    gets no further. Then each round measures every removal exactly, and takes out as many of the least important ones
    as the bound allows, and at least one. `stages` gets what is left after each round."""
    kept = of.tidy(kept)
    coarse, rounds = of.slopes is not None, count()
    for _ in track(rounds, f"pruning {what}", None) if track else rounds:
        if stages is not None:
            stages.append(kept)
        places: list[Place] = list(map(tuple, kept.nonzero().tolist()))
        if coarse and of.slopes is not None:
            now, slope = of.slopes(kept)
            fewer = _as_many(of, kept, _orders({place: float(slope[place]) for place in places}, now), bound, 0)
            coarse = int(fewer.sum()) <= COARSE * len(places)
            kept = fewer
            continue
        now = of.faithfulness(kept[None])[0]
        alone = of.without_each(kept, places)
        lost = {place: now - f for place, f in zip(places, alone, strict=True) if holds(f, bound)}
        if not lost:
            break
        kept = _as_many(of, kept, _orders(lost, now), bound, 1)
    return kept


def prune(
    runs: Runs, kept_NS: Tensor, bound: float, track: Track | None = None, stages: list[Tensor] | None = None
) -> Tensor:
    """A subgraph's edges of which none can go, [N, S]; see `thinned`."""
    edges = Prunable(runs.faithfulness, runs.graph.connected, runs.slopes,
                     lambda kept, places: runs.faithfulness_of(runs.without(kept, [(d, s) for d, s in places])))
    return thinned(edges, kept_NS, bound, "edges", track, stages)


def ranked_by_pruning(runs: Runs, scores_NS: Tensor, bound: float, track: Track | None = None) -> Tensor:
    """Scores by which every edge that survived more rounds of pruning comes before those that survived fewer, [N, S];
    among such of one round, and among those that were not on the shortlist, the given scores decide."""
    stages: list[Tensor] = []
    prune(runs, shortlist(runs, scores_NS, bound), bound, track, stages)
    return torch.stack(stages).sum(0) + scores_NS.abs() / (2 * scores_NS.abs().max())


def prune_roles(runs: Runs, kept_NS: Tensor, n_roles: int, bound: float, track: Track | None = None) -> Tensor:
    """At the tokens of which roles each edge of a subgraph has to be kept, [N, S, P]."""
    kept_NSP = kept_NS[..., None].expand(-1, -1, n_roles).contiguous()
    return thinned(Prunable(runs.faithfulness), kept_NSP, bound, "roles", track)


def _less(kept: Tensor, places: Sequence[Place]) -> Tensor:
    fewer = kept.clone()
    for place in places:
        fewer[place] = False
    return fewer


def _orders(lost: dict[Place, float], now: float) -> list[list[Place]]:
    """Places in two orders in which they might go, by what F loses without each: the least important first; and so that
    the losses that add up keep F near 1, of those whose loss leads there always the least important."""
    by_size = sorted(lost, key=lambda place: abs(lost[place]))
    harmful, helpful = (deque(place for place in by_size if (lost[place] < 0) == harms) for harms in (True, False))
    balanced = []
    while harmful or helpful:
        one = (harmful if harmful and (now < 1 or not helpful) else helpful).popleft()
        balanced.append(one)
        now -= lost[one]
    return [by_size, balanced]


def _as_many(of: Prunable, kept: Tensor, orders: Sequence[Sequence[Place]], bound: float, at_least: int) -> Tensor:
    """The least of it that the bound still holds for without the first so many places of one of some orders; at the
    worst without `at_least` of them."""
    tried = [of.tidy(_less(kept, order[:n])) for order in orders
             for n in sorted({max(at_least, round(len(order) * share)) for share in SHARES})]
    good = [one for one, f in zip(tried, of.faithfulness(torch.stack(tried)), strict=True) if holds(f, bound)]
    return min(good, key=lambda one: int(one.sum())) if good else tried[0]
