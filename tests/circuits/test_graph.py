"""The graph: how many edges there are, their names, and what hangs loose."""

import pytest
import torch
from tiny import tiny_model

from patchclamp.circuits.graph import Graph
from patchclamp.errors import InputError

SMOLLM2, GEMMA = (30, 9, 3, False), (18, 4, 1, False)


@pytest.mark.parametrize(("shape", "grouped", "ungrouped"), [(SMOLLM2, 70_651, 123_211), (GEMMA, 5_644, 10_342)])
def test_edges_are_counted_by_true_key_value_heads_or_once_a_query_head(shape, grouped, ungrouped):
    assert Graph(*shape).n_edges == grouped
    assert Graph(*shape, grouped=False).n_edges == ungrouped


def test_a_source_reaches_everything_behind_it():
    graph = Graph.of(tiny_model("llama").anatomy)
    for d, destination in enumerate(graph.destinations):
        before = {s for s in graph.sources if s == "embed" or int(s.split(".")[1]) < destination.layer}
        if destination.point == "mlp":
            before |= {f"head.{destination.layer}.{h}" for h in range(graph.n_heads)}
        assert {graph.sources[s] for s in graph.edges[d].nonzero()[:, 0]} == before


def test_no_head_is_before_its_own_blocks_mlp_where_they_are_parallel():
    graph = Graph.of(tiny_model("gptj").anatomy)
    mlp = next(d for d in graph.destinations if str(d) == "mlp.1")
    assert graph.sources[mlp.reach - 1] == "mlp.0"


def test_an_edge_is_found_by_its_name():
    graph = Graph(*GEMMA)
    for number in (0, 77, 5_643):
        edge = tuple(graph.edges.nonzero()[number].tolist())
        assert graph.find(graph.name(*edge)) == edge


@pytest.mark.parametrize(("name", "said"), [
    ("head.3.1", "no edge"), ("head.3.9->logits", "no edge"), ("mlp.5->q.5.0", "not before"),
])
def test_a_name_that_names_no_edge_is_refused(name, said):
    with pytest.raises(InputError, match=said):
        Graph(*GEMMA).find(name)


def test_what_hangs_loose_is_taken_away():
    graph = Graph(*GEMMA)
    kept = torch.zeros_like(graph.edges)
    whole = ["embed->mlp.3", "mlp.3->v.11.0", "head.11.2->logits"]
    unfed, unread = ["head.5.0->mlp.5", "mlp.5->logits"], ["embed->q.9.1", "embed->mlp.9"]
    for name in (*whole, *unfed, *unread):
        kept[graph.find(name)] = True
    assert {graph.name(*edge) for edge in graph.connected(kept).nonzero().tolist()} == set(whole)


def test_the_whole_graph_hangs_together():
    graph = Graph.of(tiny_model("gemma3").anatomy)
    assert graph.connected(graph.edges).equal(graph.edges)
