"""Random circuits to compare with: connected, with as many edges into each block as the circuit has."""

import random

import torch
from torch import Tensor

from patchclamp.circuits.graph import Graph
from patchclamp.errors import RunError

TRIES = 2000


def random_circuits(graph: Graph, kept_NS: Tensor, n: int, seed: int) -> Tensor:
    """So many connected subgraphs [n, N, S], each with the circuit's number of edges into every block and the logits,
    none of them the circuit itself. RunError if none can be drawn."""
    rng = random.Random(seed)
    per_block = [int(kept_NS[graph.at(layer)].sum()) for layer in range(graph.n_layers + 1)]
    found: list[Tensor] = []
    for _ in range(TRIES * n):
        if len(found) == n:
            break
        drawn = _draw(graph, per_block, rng)
        if drawn is not None and not drawn.equal(kept_NS):
            found.append(drawn)
    if len(found) < n:
        raise RunError(f"only {len(found)} of {n} random circuits with {per_block} edges into the blocks could be "
                       "drawn")
    return torch.stack(found)


def _draw(graph: Graph, per_block: list[int], rng: random.Random) -> Tensor | None:
    """From the logits back: each block's edges go into parts that something behind needs, every one of them fed. None
    where that does not come out."""
    kept = torch.zeros_like(graph.edges)
    needed: list[set[int]] = [set() for _ in range(graph.n_layers)]
    layer_of = [-1, *(layer for layer in range(graph.n_layers) for _ in range(graph.n_heads + 1))]

    def group(source: int) -> int:
        """What an edge can feed at once: heads that share a key, or an MLP."""
        return graph.feeds[source][-1]

    def has_room(source: int) -> bool:
        layer = layer_of[source]
        return len({group(s) for s in (*needed[layer], source)}) <= per_block[layer]

    def add(destinations: list[int]) -> bool:
        for _ in range(20):
            place = rng.choice(destinations)
            fine = [s for s in range(1, graph.destinations[place].reach) if has_room(s)]
            empty = [s for s in fine if not needed[layer_of[s]]]  # blocks that should have edges and are not needed yet
            source = rng.choice(empty if empty and rng.random() < 0.5 else [0, *fine])
            if not kept[place, source]:
                kept[place, source] = True
                if source:
                    needed[layer_of[source]].add(source)
                return True
        return False

    if not all(add([len(graph.destinations) - 1]) for _ in range(per_block[-1])):
        return None
    for layer in reversed(range(graph.n_layers)):
        left, mlp = per_block[layer], graph.mlp(layer)
        if left and mlp in needed[layer]:  # its sources may be heads of this block, so it comes first
            others = len({group(s) for s in needed[layer]}) - 1
            share = rng.randint(1, left - others) if others or not graph.parallel else left
            if not all(add(list(graph.feeds[mlp])) for _ in range(share)):
                return None
            left -= share
        heads = sorted(needed[layer] - {mlp})
        shared: dict[int, list[int]] = {}
        for head in heads:
            shared.setdefault(group(head), []).append(head)
        first = [list(graph.feeds[mine[0]][0 if len(mine) == 1 else 1 :]) for mine in shared.values()]
        every = sorted({place for source in (heads or [mlp]) for place in graph.feeds[source]})
        rest = [every for _ in range(left - len(first))]
        if (left and not needed[layer]) or not all(add(places) for places in (*first, *rest)):
            return None
    alike = all(int(kept[graph.at(layer)].sum()) == count for layer, count in enumerate(per_block))
    return kept if alike and graph.connected(kept).equal(kept) else None
