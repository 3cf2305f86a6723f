"""Random circuits: connected, alike in their edges into every block, and not all the same."""

import pytest
import torch
from tiny import tiny_model

from patchclamp.circuits.controls import random_circuits
from patchclamp.circuits.graph import Graph
from patchclamp.circuits.search import greedy


@pytest.mark.parametrize("name", ["llama", "gpt2", "gptj", "falcon"])
@pytest.mark.parametrize("size", [4, 12, 60])
def test_random_circuits_have_as_many_edges_into_each_block(name, size):
    graph = Graph.of(tiny_model(name).anatomy)
    scores = torch.rand(graph.edges.shape, generator=torch.Generator().manual_seed(3)) * graph.edges
    kept = greedy(graph, scores, [size])[0]
    drawn = random_circuits(graph, kept, 8, seed=0)
    for one in drawn:
        assert graph.connected(one).equal(one)
        for layer in range(graph.n_layers + 1):
            assert one[graph.at(layer)].sum() == kept[graph.at(layer)].sum()
    assert len({tuple(one.flatten().tolist()) for one in drawn}) > 4


def test_one_edge_can_feed_heads_that_share_a_key():
    graph = Graph(18, 4, 1, False)
    kept = torch.zeros_like(graph.edges)
    for name in ("embed->v.3.0", *(f"head.3.{h}->logits" for h in range(4))):
        kept[graph.find(name)] = True
    assert random_circuits(graph, kept, 5, seed=1).sum((1, 2)).tolist() == [5] * 5


def test_the_same_seed_draws_the_same():
    graph = Graph(18, 4, 1, False)
    kept = torch.zeros_like(graph.edges)
    for name in ("embed->mlp.3", "mlp.3->v.11.0", "head.11.2->logits"):
        kept[graph.find(name)] = True
    assert random_circuits(graph, kept, 3, seed=5).equal(random_circuits(graph, kept, 3, seed=5))
