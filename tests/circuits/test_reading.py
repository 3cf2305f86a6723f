"""Scores, curves, heads and flow: what they say of tiny models, against what can be worked out otherwise."""

import json
from pathlib import Path

import pytest
import torch
from tiny import tiny_model

import patchclamp as pc
from patchclamp.circuits.evaluate import EvaluateCircuitsSpec, areas
from patchclamp.circuits.find import FindSpec
from patchclamp.circuits.graph import Graph
from patchclamp.circuits.heads import HeadRow, label_of
from patchclamp.circuits.material import material, runs_of
from patchclamp.circuits.search import greedy
from patchclamp.errors import SpecError
from patchclamp.evidence.verdict import Interval

ASK = {"prompts": 6, "heldout": 4, "anyway": True}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Pairs in words of the tiny tokenizer that a tiny model answers rightly on the whole; a word comes twice."""
    model, path, rows = tiny_model("llama"), tmp_path_factory.mktemp("pairs") / "pairs.jsonl", []
    read = pc.Readout.logit_difference("w50", "w51")
    for i in range(5, 65):
        clean, corrupted = f"w{i} w{i + 9} w3 w{i} w4", f"w{i} w{(i * 7) % 40 + 40} w3 w{i} w4"
        a, b = (float(v) for v in model.run([clean, corrupted], read=read))
        if a > b + 0.3 and a > 0:
            rows.append({"clean": clean, "corrupted": corrupted, "answer": "w50", "distractor": "w51"})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert len(rows) >= 10
    return str(path)


@pytest.fixture(scope="module")
def records(pairs):
    model = tiny_model("llama")
    return {
        "exact": pc.score_edges(model, pairs=pairs, method="exact", check=40, **ASK),
        "eap-ig": pc.score_edges(model, pairs=pairs, check=40, **ASK),
        "curve": pc.evaluate_circuits(model, pairs=pairs, method="exact", fractions=(0.02, 0.1, 0.5, 1.0), controls=3,
                                      resamples=3, **ASK),
        "heads": pc.read_heads(model, pairs=pairs, prompts=6, heldout=4, anyway=True, top=100),
        "flow": pc.flow(model, pairs=pairs, window=1, controls=3, **ASK),
    }


def test_exact_scores_are_the_exact_changes(records):
    edges = records["exact"].result.edges
    assert all(one.score == pytest.approx(one.exact, abs=1e-5) for one in edges if one.exact is not None)
    assert records["exact"].result.correlation is None


def test_gradient_scores_come_with_their_correlation(records):
    result = records["eap-ig"].result
    assert 0.5 < result.correlation <= 1
    assert len([one for one in result.edges if one.exact is not None]) >= 30


def test_the_whole_graph_ends_every_curve_at_one(records):
    result = records["curve"].result
    assert result.curve[-1].faithfulness == pytest.approx(1, abs=1e-4)
    assert result.curve[-1].edges == result.edges_total
    assert result.curve[-1].jaccard == 1
    assert all(0 <= one.jaccard <= 1 for one in result.curve)


def test_areas_are_those_under_the_curve_and_beside_one():
    assert areas([1.0], [1.0]) == (pytest.approx(0.5), pytest.approx(0.5))
    assert areas([0.5, 1.0], [1.0, 1.0]) == (pytest.approx(0.75), pytest.approx(0.25))
    assert areas([0.5, 1.0], [2.0, 1.0])[1] == pytest.approx(0.75)


def test_a_heads_effect_is_its_output_swapped(records, pairs):
    model, head = tiny_model("llama"), records["heads"].result.heads[0]
    rows = [json.loads(line) for line in Path(pairs).read_text().splitlines()][:6]
    changes = []
    for row in rows:
        read = pc.Readout.logit_difference(row["answer"], row["distractor"])
        swap = pc.Edit.swap(head.head, row["corrupted"])
        changes.append(float(model.run(row["clean"], [swap], read)) - float(model.run(row["clean"], read=read)))
    assert head.effect.mean == pytest.approx(sum(changes) / len(changes), abs=1e-4)


def test_shares_of_attention_are_those_of_the_pattern(records, pairs):
    head = next(one for one in records["heads"].result.heads if one.head == "head.1.2")
    rows = [json.loads(line) for line in Path(pairs).read_text().splitlines()][:6]
    patterns = [tiny_model("llama").capture(row["clean"], "pattern.1.2")["pattern.1.2"].reshape(5, 5) for row in rows]
    pattern = torch.stack(patterns).mean(0)
    assert head.attention["what differs"] == pytest.approx(float(pattern[-1, 1]), abs=1e-5)
    assert head.duplicate == pytest.approx(float(pattern[3, 0]), abs=1e-5)
    assert head.induction == pytest.approx(float(pattern[3, 1]), abs=1e-5)
    assert head.previous == pytest.approx(float(torch.stack([pattern[i, i - 1] for i in (2, 3, 4)]).mean()), abs=1e-5)


def test_blocking_is_the_engines_edit(records, pairs):
    result = records["flow"].result
    rows = [json.loads(line) for line in Path(pairs).read_text().splitlines()][:6]
    model, layer, changes = tiny_model("llama"), 2, []
    for row in rows:
        read = pc.Readout.probability(row["answer"])
        before = float(model.run(row["clean"], read=read))
        after = float(model.run(row["clean"], [pc.Edit.block(f"pattern.{layer}@last", "1")], read))
        changes.append((after - before) / before)
    mine = next(one for one in result.roles if one.role == "what differs").points[layer]
    assert mine.effect.mean == pytest.approx(sum(changes) / 6, abs=1e-4)
    assert {one.role for one in result.roles} == {"what differs", "other words", "random words", "first token"}


@pytest.mark.parametrize("name", ["exact", "eap-ig", "curve", "heads", "flow"])
def test_each_draws_and_tabulates(records, name, tmp_path):
    assert records[name].save(tmp_path / "chart.svg").read_text().startswith("<svg")
    assert len(records[name].result.table())


def test_an_unknown_role_is_refused(pairs):
    with pytest.raises(SpecError, match="what differs"):
        pc.flow(tiny_model("llama"), pairs=pairs, to="nobody", **ASK)


def test_fractions_have_to_grow():
    with pytest.raises(SpecError, match="larger than the last"):
        pc.evaluate_circuits(tiny_model("llama"), task="ioi", fractions=(0.5, 0.1))


NONE, SOME = Interval(mean=0, low=-1, high=1), Interval(mean=1, low=0.5, high=1.5)
LESS = Interval(mean=-1, low=-1.5, high=-0.5)


def head(**fields):
    usual = {"head": "head.1.1", "layer": 1, "unit": 1, "effect": LESS, "direct": NONE, "attention": {"NAME1": 0.1},
             "copying": 0.0, "previous": 0.1, "duplicate": 0.1, "induction": 0.1, "label": "", "why": ""}
    return HeadRow(**{**usual, **fields})


@pytest.mark.parametrize(("fields", "label"), [
    ({"attention": {"NAME1": 0.5}, "copying": 1.0, "direct": SOME}, "mover"),
    ({"attention": {"NAME1": 0.5}, "copying": -1.0, "direct": LESS}, "negative mover"),
    ({"duplicate": 0.6}, "duplicate token"), ({"induction": 0.6}, "induction"), ({"previous": 0.8}, "previous token"),
    ({"attention": {"S2": 0.5}}, "reads S2"), ({}, ""), ({"duplicate": 0.6, "effect": NONE}, ""),
])
def test_labels_are_given_where_the_numbers_are_clear(fields, label):
    assert label_of(head(**fields))[0] == label


@pytest.mark.parametrize("method", ["read_heads", "flow"])
def test_what_the_model_cannot_do_is_not_read(method, pairs, tmp_path):
    """The same prompts with answers exchanged."""
    rows = [json.loads(line) for line in Path(pairs).read_text().splitlines()]
    path = tmp_path / "wrong.jsonl"
    path.write_text("".join(json.dumps({**row, "answer": row["distractor"], "distractor": row["answer"]}) + "\n"
                            for row in rows))
    with pytest.raises(SpecError, match=r"answers 0% of the pairs of wrong\.jsonl rightly"):
        getattr(pc, method)(tiny_model("llama"), pairs=str(path), prompts=4, heldout=4)


def test_circuits_ranked_by_pruning_are_nested_and_have_no_overlap_by_prompt(pairs):
    result = pc.evaluate_circuits(tiny_model("llama"), pairs=pairs, method="pruned", fractions=(0.1, 0.3, 1.0),
                                  controls=2, **ASK).result
    assert result.method == "pruned" and all(one.jaccard is None for one in result.curve)
    assert result.curve[-1].faithfulness == pytest.approx(1, abs=1e-4)


def test_a_task_says_which_pairs_the_model_solves(pairs):
    model = tiny_model("llama")
    record = pc.show_task(model, pairs=pairs, prompts=6, heldout=4)
    result = record.result
    for one in result.pairs:
        read = pc.Readout.logit_difference(one.pair.answer, one.pair.distractor)
        m = [float(value) for value in model.run([one.pair.clean, one.pair.corrupted], read=read)]
        assert (one.clean, one.corrupted) == pytest.approx(m, abs=1e-5)
    assert result.solved.mean == pytest.approx(sum(one.clean > 0 for one in result.pairs) / len(result.pairs))
    assert set(result.table()) == {"clean", "corrupted", "answer", "distractor", "tokens", "m clean", "m corrupted"}
    assert "the model does pairs.jsonl" in record.verdict.reason
    assert "logit difference" in json.dumps(result.chart().to_dict())


def held_out(pairs):
    """The prompts that nothing was chosen on."""
    model = tiny_model("llama")
    spec = FindSpec(pairs=pairs, prompts=6, heldout=4)
    found = material(model, spec)
    return model, found, runs_of(model, Graph.of(model.anatomy), found.heldout)


def test_a_curve_is_of_held_out_prompts(records, pairs):
    model, found, heldout = held_out(pairs)
    result = records["curve"].result
    looked = runs_of(model, heldout.graph, found.search)
    scores = (looked.each_edge() - looked.clean_B).nan_to_num(0.0).mean(-1)
    circuits = greedy(heldout.graph, scores, [one.edges for one in result.curve])
    assert [one.faithfulness for one in result.curve] == pytest.approx(heldout.faithfulness(circuits), abs=1e-3)
    assert result.curve[1].faithfulness != pytest.approx(looked.faithfulness(circuits)[1], abs=1e-3)


def test_scores_are_judged_on_held_out_prompts(records, pairs):
    _, _, heldout = held_out(pairs)
    top = [one for one in records["exact"].result.edges if one.chosen == "top"][:20]
    effects = (heldout.some_edges([heldout.graph.find(one.edge) for one in top]) - heldout.clean_B).mean(-1)
    assert records["exact"].verdict.effect.mean == pytest.approx(float(effects.abs().mean()), abs=1e-4)


def test_heads_are_judged_on_held_out_prompts(records, pairs):
    model, found, _ = held_out(pairs)
    labelled = [one.head for one in records["heads"].result.heads if one.label]
    if not labelled:
        pytest.fail("no head of the tiny model got a label, so the test shows nothing")
    sizes = []
    for head in labelled:
        changes = []
        for pair in found.heldout:
            read = pc.Readout.logit_difference(*pair.choice)
            plain, edited = (float(model.run(pair.clean, edits, read))
                             for edits in ([], [pc.Edit.swap(head, pair.corrupted)]))
            changes.append(edited - plain)
        sizes.append(abs(sum(changes) / len(changes)))
    assert records["heads"].verdict.effect.mean == pytest.approx(sum(sizes) / len(sizes), abs=1e-4)


def test_windows_are_whole_and_named_by_their_middle(pairs):
    model = tiny_model("llama")
    result = pc.flow(model, pairs=pairs, window=3, controls=3, **ASK).result
    middles = [point.layer for point in result.roles[0].points]
    assert middles == list(range(1, model.n_layers - 1))
    assert all(one.peak in middles for one in result.roles)


def test_what_looks_at_itself_alone_has_nothing_to_hide(pairs):
    with pytest.raises(SpecError, match="no other role"):
        pc.flow(tiny_model("llama"), pairs=pairs, to="what differs", **ASK)


def test_fractions_end_at_the_whole_graph():
    assert EvaluateCircuitsSpec(task="ioi", fractions=(0.1, 0.5)).fractions == (0.1, 0.5, 1.0)
