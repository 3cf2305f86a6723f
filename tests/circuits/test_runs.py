"""Runs with edges cut: against the engine's edits, one edge at a time, in every family."""

import pytest
import torch
from cut import CHOICES, cut_by_edits, difference, pairs, same, some_of, subgraph_by_edits, tiny_runs, value
from tiny import CONFIGS, tiny_model

import patchclamp as pc
from patchclamp.circuits.graph import Graph
from patchclamp.circuits.runs import Runs
from patchclamp.circuits.search import optimised
from patchclamp.errors import SpecError, UnsupportedModel

NEAR = 1e-6
"""Gemma's norms count in float32 whatever the model is in."""


@pytest.mark.parametrize("name", CONFIGS)
def test_the_whole_graph_is_the_model_and_none_of_it_the_corrupted_run(name):
    runs = tiny_runs(name)
    clean, corrupted = pairs()
    model = runs.groups[0].model
    m = runs.subgraphs(torch.stack([runs.graph.edges, torch.zeros_like(runs.graph.edges)]))
    for line, prompts in zip(m, (clean, corrupted), strict=True):
        assert same(line, [difference(model, p, c) for p, c in zip(prompts, CHOICES, strict=True)], 1e-5)
    assert runs.faithfulness(runs.graph.edges[None])[0] == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_an_edge_cut_alone_is_what_edits_make_of_it(name):
    runs = tiny_runs(name)
    graph, model = runs.graph, runs.groups[0].model
    m_NSB = runs.each_edge()
    clean, corrupted = pairs()
    edges = graph.edges.nonzero()
    some = edges[torch.randperm(len(edges), generator=torch.Generator().manual_seed(0))[:12]].tolist()
    for d, s in (*some, [len(graph.destinations) - 1, 2]):
        for b in (0, 2):
            brute = cut_by_edits(model, clean[b], corrupted[b], CHOICES[b], graph.sources[s], graph.destinations[d])
            assert float(m_NSB[d, s, b]) == pytest.approx(brute, abs=2e-5), graph.name(d, s)


@pytest.mark.parametrize("name", ["llama", "gemma3", "bloom"])
def test_each_edge_is_the_whole_graph_without_it(name):
    runs = tiny_runs(name)
    m_NSB = runs.each_edge()
    assert same(m_NSB.isnan().any(-1), ~runs.graph.edges)
    edges = [(int(d), int(s)) for d, s in runs.graph.edges.nonzero()]
    assert same(runs.without(runs.graph.edges, edges), torch.stack([m_NSB[edge] for edge in edges]), NEAR)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_subgraph_is_what_edits_make_of_it(name):
    """A large one and one so small that parts of the model need not be run."""
    runs = tiny_runs(name)
    clean, corrupted = pairs()
    for share, seed in ((0.6, 3), (0.12, 4)):
        kept = some_of(runs.graph, share, seed)
        brute = subgraph_by_edits(runs.groups[0].model, runs.graph, kept, clean[1], corrupted[1], CHOICES[1])
        assert float(runs.subgraphs(kept[None])[0, 1]) == pytest.approx(brute, abs=2e-5), share


@pytest.mark.parametrize("name", ["llama", "gemma3", "gptj", "falcon-new"])
def test_slopes_are_derivatives_by_how_much_an_edge_is_kept(name):
    runs = tiny_runs(name)
    group = runs.groups[1]
    weights = some_of(runs.graph, 0.7, 5) * torch.rand(runs.graph.edges.shape, dtype=torch.float64,
                                                      generator=torch.Generator().manual_seed(6))
    slope = group.slopes(weights)[1]
    assert slope[~runs.graph.edges].abs().max() == 0
    edges = (weights != 0).nonzero().tolist()
    for d, s in edges[:: len(edges) // 12]:
        there = []
        for step in (2e-3, -2e-3):
            weights[d, s] += step
            there.append(float(group.slopes(weights)[0].sum()))
            weights[d, s] -= step
        assert float(slope[d, s]) == pytest.approx((there[0] - there[1]) / 4e-3, rel=5e-3, abs=1e-4)


@pytest.mark.parametrize("name", ["llama", "gemma3", "bloom"])
def test_slopes_of_the_whole_graph_are_attribution_patching(name, monkeypatch):
    runs = tiny_runs(name)
    span = float((runs.clean_B - runs.corrupted_B).mean())
    expected = -runs.attribution().mean(-1) / span
    faithfulness, slope = runs.slopes(runs.graph.edges)
    assert faithfulness == pytest.approx(1, abs=1e-5)
    assert same(slope, expected, 1e-5)
    monkeypatch.setattr("patchclamp.circuits.subgraphs.GRADED", 1)
    assert same(runs.slopes(runs.graph.edges)[1], expected, 1e-5)


@pytest.mark.parametrize("name", ["gpt2", "gemma3", "falcon-new"])
def test_going_on_from_a_subgraphs_run_is_running_it_whole(name):
    runs = tiny_runs(name)
    kept = runs.graph.edges & (torch.rand(runs.graph.edges.shape, generator=torch.Generator().manual_seed(1)) < 0.4)
    edges = [(int(d), int(s)) for d, s in kept.nonzero()]
    without = []
    for edge in edges:
        fewer = kept.clone()
        fewer[edge] = False
        without.append(fewer)
    assert same(runs.without(kept, edges), runs.subgraphs(torch.stack(without)), NEAR)


def test_prompts_of_several_lengths_come_back_in_their_order():
    model = tiny_model("llama", double=True)
    clean, corrupted = pairs((6, 8, 6))
    runs = Runs(model, Graph.of(model.anatomy), clean, corrupted, CHOICES)
    assert same(runs.clean_B, [difference(model, p, c) for p, c in zip(clean, CHOICES, strict=True)], 1e-6)


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3", "cohere", "gptj"])
def test_copies_of_keys_and_values_change_nothing_and_cut_together_are_the_key_or_value(name):
    grouped, copied = tiny_runs(name), tiny_runs(name, grouped=False)
    assert same(copied.clean_B, grouped.clean_B) and same(copied.corrupted_B, grouped.corrupted_B)
    graph, wide = grouped.graph, copied.graph
    share = graph.n_heads // graph.n_kv_heads
    for source in ("embed", "head.0.1", "mlp.0"):
        kept, kept_wide = graph.edges.clone(), wide.edges.clone()
        for point in "kv":
            kept[graph.find(f"{source}->{point}.2.1")] = False
            for head in range(share, 2 * share):
                kept_wide[wide.find(f"{source}->{point}.2.{head}")] = False
        assert same(copied.subgraphs(kept_wide[None]), grouped.subgraphs(kept[None]))


def test_edges_of_copies_are_exact_and_attributed_one_by_one():
    runs = tiny_runs("llama", grouped=False)
    edge = runs.graph.find("mlp.0->k.2.3")
    kept = runs.graph.edges.clone()
    kept[edge] = False
    assert same(runs.each_edge()[edge], runs.subgraphs(kept[None])[0])
    grouped = tiny_runs("llama")
    both = sum(runs.attribution()[runs.graph.find(f"mlp.0->k.2.{head}")] for head in (2, 3))
    assert same(both, grouped.attribution()[grouped.graph.find("mlp.0->k.2.1")], 1e-6)


def test_copies_need_keys_and_values_of_their_own_module():
    with pytest.raises(UnsupportedModel, match="leave the graph grouped"):
        tiny_runs("phi3", grouped=False)


def test_too_many_prompts_for_one_pass_are_run_in_parts(monkeypatch):
    usual = tiny_runs("llama", lengths=(7, 7, 7))
    monkeypatch.setattr("patchclamp.circuits.runs.HELD", 1)
    parted = tiny_runs("llama", lengths=(7, 7, 7))
    assert (len(usual.groups), len(parted.groups)) == (1, 3)
    kept = usual.graph.edges & (torch.rand(usual.graph.edges.shape, generator=torch.Generator().manual_seed(2)) < 0.5)
    assert same(parted.subgraphs(kept[None]), usual.subgraphs(kept[None]))


def test_the_model_is_left_as_it_was():
    model = tiny_model("llama", double=True)
    before = difference(model, pairs()[0][0], (5, 6))
    runs = tiny_runs("llama")
    runs.without(runs.graph.edges, [(20, 1)])
    assert difference(model, pairs()[0][0], (5, 6)) == before
    assert not any("forward" in vars(block) for block in model.anatomy.blocks)


def test_a_forward_that_another_library_has_put_there_stays(monkeypatch):
    block = tiny_model("llama", double=True).anatomy.blocks[0]
    usual = block.forward
    monkeypatch.setattr(block, "forward", lambda *args, **kwargs: usual(*args, **kwargs), raising=False)
    put = vars(block)["forward"]
    runs = tiny_runs("llama")
    runs.without(runs.graph.edges, [(20, 1)])
    assert vars(block)["forward"] is put


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_a_mean_is_over_prompts_of_all_lengths(name):
    """With nothing kept, the last stream at the last token is the sum of what sources write in the mean."""
    clean, corrupted = pairs((7, 7, 6))
    model = tiny_model(name, double=True)
    runs = Runs(model, Graph.of(model.anatomy), clean, corrupted, CHOICES, "mean")
    means = []
    for source in runs.graph.sources:
        values = [value(model, prompt, source).reshape(len(prompt), -1) for prompt in corrupted]
        means.append(torch.cat(values).mean(0))
    last = torch.stack(means).sum(0)
    site = f"resid.{model.n_layers - 1}"
    expected = [difference(model, prompt, choice, [pc.Edit.set(f"{site}@last", last)])
                for prompt, choice in zip(clean, CHOICES, strict=True)]
    assert runs.corrupted_B.tolist() == pytest.approx(expected, abs=1e-5)


def test_a_mean_at_a_token_needs_two_prompts_of_a_length():
    model = tiny_model("llama")
    with pytest.raises(SpecError, match="the only ones of their length"):
        Runs(model, Graph.of(model.anatomy), *pairs((7, 7, 6)), CHOICES, "mean-per-position")


def test_masks_are_optimised_in_the_models_own_numbers():
    runs = tiny_runs("llama")
    assert runs.clean_B.dtype == torch.float64
    weights = optimised(runs, 0.002)
    assert weights.shape == runs.graph.edges.shape and bool((weights[~runs.graph.edges] < 0.01).all())
