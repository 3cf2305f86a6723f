"""Search: greedy subgraphs hang together, and what is left after pruning cannot be less."""

import pytest
import torch
from cut import tiny_runs

from patchclamp.circuits.attribution import attribution
from patchclamp.circuits.search import greedy, holds, prune, shortlist


def scored(name):
    runs = tiny_runs(name)
    return runs, torch.stack([attribution(group, 3).sum(-1) for group in runs.groups]).sum(0) / 3


@pytest.mark.parametrize("size", [1, 5, 20, 60])
def test_a_greedy_subgraph_hangs_together_and_keeps_to_its_size(size):
    runs, scores = scored("llama")
    kept = greedy(runs.graph, scores, [size])[0]
    assert kept.sum() <= size
    assert runs.graph.connected(kept).equal(kept)


def test_greedy_subgraphs_are_those_of_taking_edge_after_edge():
    """The slow way: count what hangs together after each edge."""
    runs, scores = scored("gptj")
    graph, kept = runs.graph, torch.zeros_like(runs.graph.edges)
    inside, best = {len(graph.destinations) - 1}, {}
    while not kept.equal(graph.edges):
        open_ = [(d, s) for d in inside for s in range(graph.destinations[d].reach) if not kept[d, s]]
        d, s = max(open_, key=lambda edge: float(scores[edge].abs()))
        kept[d, s] = True
        inside |= set(graph.feeds[s])
        whole = graph.connected(kept)
        best[int(whole.sum())] = whole
    for size in (3, 10, 40):
        expected = best[max(n for n in best if n <= size)]
        assert greedy(graph, scores, [size])[0].equal(expected)


def test_a_greedy_subgraph_of_all_edges_is_the_graph():
    runs, scores = scored("gpt2")
    assert greedy(runs.graph, scores, [runs.graph.n_edges])[0].equal(runs.graph.edges)


@pytest.mark.parametrize("name", ["llama", "gemma3", "gptj"])
def test_no_edge_of_a_pruned_subgraph_can_go(name):
    runs, scores = scored(name)
    kept = prune(runs, shortlist(runs, scores, 0.9), 0.9)
    assert holds(runs.faithfulness(kept[None])[0], 0.9)
    for d, s in kept.nonzero().tolist():
        fewer = kept.clone()
        fewer[d, s] = False
        assert not holds(runs.faithfulness(fewer[None])[0], 0.9)


def test_a_shortlist_keeps_the_bound_or_is_the_graph():
    runs, scores = scored("llama")
    assert holds(runs.faithfulness(shortlist(runs, scores, 0.9)[None])[0], 0.9)
    assert holds(runs.faithfulness(shortlist(runs, scores, 0.99999)[None])[0], 0.99999)


def test_too_much_is_as_bad_as_too_little():
    assert holds(0.9, 0.9) and holds(1.1, 0.9)
    assert not holds(0.89, 0.9) and not holds(1.11, 0.9)
