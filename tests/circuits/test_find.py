"""Circuits found, certified and measured again."""

import json

import numpy as np
import pytest
from tiny import tiny_model

import patchclamp as pc
from patchclamp.circuits.certificate import Certificate
from patchclamp.circuits.find import from_one
from patchclamp.circuits.graph import Graph
from patchclamp.circuits.material import make_ready, runs_of
from patchclamp.errors import FileError, InputError, PromptError, RunError, SpecError
from patchclamp.evidence.verdict import Interval
from patchclamp.tasks.circuit import CircuitPair


def test_a_circuit_keeps_its_bound_and_cannot_be_less(found):
    result = found[0].result
    assert 0.9 <= result.faithfulness <= 1.1
    assert result.minimal
    assert result.edges_kept == len(result.certificate.edges) < result.edges_total
    assert all(not 0.9 <= one.without <= 1.1 for one in result.certificate.edges)
    assert len(result.random) == 4


def test_a_certificate_comes_back_from_its_file(found):
    record, folder = found
    assert Certificate.load(folder / "circuit.json") == record.result.certificate


def test_a_certificate_holds_when_it_is_measured_again(found):
    again = pc.verify_circuit(tiny_model("llama"), certificate=str(found[1]))
    assert again.result.holds and again.result.largest_deviation < 1e-4
    assert again.verdict.outcome == "supported"


def test_another_models_certificate_is_refused(found):
    with pytest.raises(SpecError, match="load that model"):
        pc.verify_circuit(tiny_model("gpt2"), certificate=str(found[1]))


def test_a_file_that_is_no_certificate_is_refused(good_pairs, tmp_path):
    with pytest.raises(FileError, match="no certificate"):
        Certificate.load(good_pairs)
    with pytest.raises(FileError, match=r"circuit\.json"):
        pc.verify_circuit(tiny_model("llama"), certificate=str(tmp_path))


@pytest.mark.parametrize("ablation", ["mean", "mean-per-position", "zero"])
def test_other_ablations_have_circuits_too(good_pairs, ablation):
    result = pc.find_circuit(tiny_model("llama"), pairs=str(good_pairs), prompts=6, heldout=4, controls=0, anyway=True,
                             ablation=ablation, bound=0.5).result
    assert result.certificate.ablation == ablation
    assert 0.5 <= result.faithfulness <= 1.5


def test_both_results_draw(found, tmp_path):
    again = pc.verify_circuit(tiny_model("llama"), certificate=str(found[1]))
    for record in (found[0], again):
        assert record.save(tmp_path / "chart.svg").read_text().startswith("<svg")


@pytest.mark.parametrize(("pair", "said"), [
    (CircuitPair("w1 w2", "w1 w2 w3", "w4", "w5"), "2 tokens"),
    (CircuitPair("w1 w2", "w1 w3", "w4 w5", "w4 w6"), "begin with the same token"),
    (CircuitPair("w1 w2", "w1 w2", "w4", "w6"), "the same tokens"),
])
def test_pairs_that_do_not_suit_are_refused(pair, said):
    with pytest.raises(PromptError, match=said):
        make_ready(tiny_model("llama"), pair)


def test_a_bad_row_of_a_file_is_named(tmp_path):
    rows = [{"clean": "w1 w2", "corrupted": "w1 w3 w4", "answer": "w5", "distractor": "w6"}]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(SpecError, match="row 1"):
        pc.find_circuit(tiny_model("llama"), pairs=str(tmp_path / "pairs.jsonl"))


def test_a_task_the_model_cannot_do_is_refused_unless_told(good_pairs, tmp_path):
    rows = [json.loads(line) for line in good_pairs.read_text().splitlines()]
    turned = [{**row, "answer": row["distractor"], "distractor": row["answer"]} for row in rows]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in turned))
    with pytest.raises(SpecError, match="cannot do"):
        pc.find_circuit(tiny_model("llama"), pairs=str(tmp_path / "pairs.jsonl"), prompts=6)


def test_neither_task_nor_pairs_or_both_is_an_error(good_pairs):
    for fields in ({}, {"task": "ioi", "pairs": str(good_pairs)}):
        with pytest.raises(SpecError, match="either a task"):
            pc.find_circuit(tiny_model("llama"), **fields)
    with pytest.raises(InputError, match="no task"):
        pc.find_circuit(tiny_model("llama"), task="nothing")


@pytest.mark.weights
def test_a_few_edges_of_gemma_tell_the_indirect_object(gemma):
    record = pc.find_circuit(gemma, task="ioi", prompts=8, heldout=8, controls=12)
    result = record.result
    assert result.edges_total == 5644
    assert result.edges_kept <= 0.02 * 5644
    assert result.minimal
    assert 0.9 <= result.faithfulness <= 1.1
    assert result.faithfulness_heldout > 0.8
    assert result.faithfulness_others > 0.8
    assert record.verdict.outcome == "supported"


def test_a_bound_that_even_the_whole_graph_misses_is_refused(good_pairs):
    with pytest.raises(SpecError, match="even the whole graph has a faithfulness of"):
        pc.find_circuit(tiny_model("llama"), pairs=str(good_pairs), prompts=6, heldout=4, controls=0, bound=1 - 1e-15)


def test_edges_at_roles_keep_the_bound_and_none_can_go(found):
    by_role = found[0].result.certificate.roles
    assert by_role.names == ["what differs", "last", "other words"]
    assert 0.9 <= by_role.faithfulness.mean <= 1.1 and by_role.minimal
    certified = {one.edge for one in found[0].result.certificate.edges}
    assert {one.edge for one in by_role.edges} <= certified
    for one in by_role.edges:
        assert not 0.9 <= by_role.faithfulness.mean - one.effect.mean <= 1.1
        if one.edge.endswith("logits"):
            assert one.role == "last"


def test_a_circuit_is_drawn_with_every_edge_between_its_nodes(found, tmp_path):
    record = pc.show_circuit(tiny_model("llama"), certificate=str(found[1]), dot=str(tmp_path / "c.dot"))
    drawing, certificate = record.result.drawing, found[0].result.certificate
    assert drawing == found[0].result.drawing
    assert {(line.edge, line.role) for line in drawing.lines} == {(e.edge, e.role) for e in certificate.roles.edges}
    nodes = drawing.nodes
    for line in drawing.lines:
        source, destination = line.edge.split("->")
        assert (nodes[line.source].part, nodes[line.source].role) == (source, line.role)
        kind, *numbers = destination.split(".")
        ends = nodes[line.destination].part.split(".")
        assert ends[0] == {"q": "head", "k": "head", "v": "head"}.get(kind, kind) and ends[1:2] == numbers[:1]
        assert nodes[line.source].y < nodes[line.destination].y
    assert len({(node.x, node.y) for node in nodes}) == len(nodes)
    for head in {look.head for look in record.result.looks}:
        for reader in {look.reader for look in record.result.looks if look.head == head}:
            shares = [one.share for one in record.result.looks if (one.head, one.reader) == (head, reader)]
            assert sum(shares) == pytest.approx(1, abs=1e-5)
    text = (tmp_path / "c.dot").read_text()
    assert text.startswith("digraph circuit {") and text.count(" -> ") == len(drawing.lines)
    chart = json.dumps(record.result.chart().to_dict())
    assert all(part in chart for part in ("edges shown", "picked", certificate.roles.edges[0].edge))


def test_a_picture_needs_the_certificates_model_and_a_folder(found, tmp_path):
    with pytest.raises(SpecError, match="load that model"):
        pc.show_circuit(tiny_model("gemma3"), certificate=str(found[1]))
    with pytest.raises(SpecError, match="there is no folder"):
        pc.show_circuit(tiny_model("llama"), certificate=str(found[1]), dot=str(tmp_path / "none" / "c.dot"))
    with pytest.raises(FileError, match="no certificate"):
        (tmp_path / "circuit.json").write_text("{}")
        pc.show_circuit(tiny_model("llama"), certificate=str(tmp_path))


def test_without_roles_a_circuit_has_one_column(good_pairs):
    result = pc.find_circuit(tiny_model("llama"), pairs=str(good_pairs), prompts=6, heldout=4, controls=0,
                             max_edges=1.0, roles=False).result
    assert result.certificate.roles is None and result.drawing.columns == ["all tokens"]
    assert {line.edge for line in result.drawing.lines} == {one.edge for one in result.certificate.edges}
    result.chart()


@pytest.mark.parametrize("search", ["acdc", "masks"])
def test_other_first_steps_end_in_circuits_too(search, good_pairs):
    result = pc.find_circuit(tiny_model("llama"), pairs=str(good_pairs), prompts=6, heldout=4, controls=0,
                             max_edges=1.0, roles=False, search=search).result
    assert result.minimal and 0.9 <= result.faithfulness <= 1.1
    assert result.edges_kept <= result.edges_shortlist


@pytest.mark.parametrize(("change", "message"), [
    (lambda c: c["edges"][0].update(edge="head.9.9->logits"), "is no edge"),
    (lambda c: c["roles"]["edges"][0].update(edge="mlp.0->nowhere"), "is no edge"),
    (lambda c: c["roles"]["edges"][0].update(role="verb"), "not among the names: verb"),
    (lambda c: c.update(edges=[]), "at least 1"),
])
def test_a_certificate_that_cannot_be_drawn_says_why(change, message, found, tmp_path):
    certificate = json.loads((found[1] / "circuit.json").read_text())
    change(certificate)
    (tmp_path / "circuit.json").write_text(json.dumps(certificate))
    with pytest.raises(InputError, match=message):
        pc.show_circuit(tiny_model("llama"), certificate=str(tmp_path))


def test_all_that_is_said_of_a_circuit_is_so(found):
    """Completeness, losses and intervals, each worked out from the runs."""
    model, certificate = tiny_model("llama"), found[0].result.certificate
    graph = Graph.of(model.anatomy, certificate.grouped)
    kept = certificate.kept(graph)
    search, heldout = (runs_of(model, graph, certificate.ready(model, part))
                       for part in (certificate.search, certificate.heldout))
    assert {p.clean for p in certificate.search.pairs}.isdisjoint(p.clean for p in certificate.heldout.pairs)
    without = search.faithfulness((graph.edges & ~kept)[None])[0]
    assert certificate.completeness == pytest.approx(1 - without, abs=1e-4)
    for runs, part in ((search, certificate.search), (heldout, certificate.heldout)):
        f = runs.faithfulness(kept[None])[0]
        assert part.faithfulness.mean == pytest.approx(f, abs=1e-4)
        assert part.each == pytest.approx(runs.each_faithfulness(runs.subgraphs(kept[None]))[0].tolist(), abs=1e-4)
    for one in certificate.edges[:3]:
        fewer = kept.clone()
        fewer[graph.find(one.edge)] = False
        for runs, effect in ((search, one.effect), (heldout, one.heldout)):
            lost = runs.faithfulness(kept[None])[0] - runs.faithfulness(fewer[None])[0]
            assert effect.mean == pytest.approx(lost, abs=1e-4)
    verdict = found[0].verdict
    assert verdict.effect.mean == pytest.approx(abs(1 - certificate.heldout.faithfulness.mean), abs=1e-6)
    assert verdict.effect.mean != pytest.approx(abs(1 - certificate.search.faithfulness.mean), abs=1e-6)


def test_the_whole_graph_is_faithful_without_a_doubt(good_pairs):
    """F is a quotient of two means over the same prompts: of the whole model it is 1 on every draw of prompts."""
    model = tiny_model("llama")
    graph = Graph.of(model.anatomy)
    pairs = [make_ready(model, CircuitPair(**json.loads(line))) for line in good_pairs.read_text().splitlines()]
    runs = runs_of(model, graph, pairs)
    interval = runs.faithfulness_interval(runs.clean_B, 0)
    assert (interval.low, interval.mean, interval.high) == (pytest.approx(1), pytest.approx(1), pytest.approx(1))
    assert np.ptp(runs.each_faithfulness(runs.clean_B).numpy()) > 0.1


def test_f_above_one_is_as_bad_as_below():
    assert from_one(Interval(mean=3.0, low=2.5, high=3.5)) == Interval(mean=2.0, low=1.5, high=2.5)
    assert from_one(Interval(mean=0.95, low=0.9, high=1.2)).low == 0
    assert from_one(Interval(mean=0.5, low=0.4, high=0.7)).high == pytest.approx(0.6)


def test_a_circuit_of_too_many_edges_is_not_few(good_pairs):
    verdict = pc.find_circuit(tiny_model("llama"), pairs=str(good_pairs), prompts=6, heldout=4, controls=4,
                              max_edges=1e-4).verdict
    assert verdict.outcome == "not supported" and "needs" in verdict.reason


def test_a_circuit_that_nothing_can_be_compared_with_is_kept(good_pairs, tmp_path, monkeypatch):
    def none(*_):
        raise RunError("only 0 of 4 random circuits could be drawn")

    monkeypatch.setattr("patchclamp.circuits.find.random_circuits", none)
    record = pc.find_circuit(tiny_model("llama"), pairs=str(good_pairs), prompts=6, heldout=4, controls=4,
                             out=str(tmp_path))
    assert record.verdict.outcome == "inconclusive" and "only 0 of 4" in record.verdict.reason
    assert Certificate.load(tmp_path) == record.result.certificate


def test_a_place_that_cannot_be_written_is_said_before_the_search(good_pairs, tmp_path, monkeypatch):
    monkeypatch.setattr("patchclamp.circuits.find.runs_of", lambda *_: pytest.fail("it searched"))
    (tmp_path / "file").touch()
    with pytest.raises(FileError, match="is a file; a folder is needed"):
        pc.find_circuit(tiny_model("llama"), pairs=str(good_pairs), out=str(tmp_path / "file" / "inside"))


def test_held_out_prompts_that_tell_nothing_are_refused(good_pairs, tmp_path):
    """Their span is what F is a share of."""
    lines = good_pairs.read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    turned = [{**row, "clean": row["corrupted"], "corrupted": row["clean"]} for row in rows[4:8]]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows[:4], *turned]))
    with pytest.raises(SpecError, match="on the clean held-out prompts"):
        pc.find_circuit(tiny_model("llama"), pairs=str(path), prompts=4, heldout=4, anyway=True)
