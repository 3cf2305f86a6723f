"""Editing a fact and reading it elsewhere: against weights that were really changed, and on real models."""

import copy

import pytest
import torch
from linear_toy import relation_file
from tiny import ids, tiny, tiny_model, wrap

from patchclamp.errors import SpecError
from patchclamp.forward import Readout
from patchclamp.forward.rewrite import MovedValues, rewritten
from patchclamp.relations import knowledge
from patchclamp.relations.edit import edit_fact
from patchclamp.relations.lens import attribute_lens
from patchclamp.relations.prompts import Fact
from patchclamp.tasks.rows import RelationSample

QUICK = {"pairs": 6, "controls": 3, "max_new_tokens": 3}


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3"])
def test_moved_values_are_what_changed_weights_give(name):
    """Down projections written to in a copy, against the run-time change; prefixes and generation included."""
    model = tiny_model(name)
    vector = torch.linspace(-1, 1, model.d_model)
    moved = MovedValues({0: {3: 1.0, 7: -1.0}, 2: {5: 1.0}}, vector)
    hf = copy.deepcopy(tiny(name))
    changed = wrap(hf, name)
    with torch.no_grad():
        for layer, shares in moved.shares.items():
            for unit, share in shares.items():
                knowledge._value(changed, layer)[unit] += share * vector
    prompt = ids(9)
    with rewritten(model, moved):
        torch.testing.assert_close(model.run(prompt), changed.run(prompt), rtol=1e-4, atol=1e-4)
        assert model.generate(prompt, max_new_tokens=4).text == changed.generate(prompt, max_new_tokens=4).text
    torch.testing.assert_close(model.run(prompt), tiny_model(name).run(prompt))


def test_the_knowledge_neurons_are_those_with_the_largest_integrated_gradients():
    """By brute force: one gradient after another, neurons of a block scaled together at the last token."""
    model = tiny_model("llama")
    prompt = ids(7)
    answer = int(model.run(prompt).argmax())
    found = knowledge.find(model, [Fact(RelationSample(subject="w1", object="w2"), prompt, 2, answer)])
    scores = {}
    for layer, block in enumerate(model.hf.model.layers):
        held = {}
        handle = block.mlp.down_proj.register_forward_pre_hook(lambda _, args, held=held: held.update(a=args[0]))
        model.hf(torch.tensor([prompt]))
        handle.remove()
        actual_F, total_F = held["a"][0, -1].detach(), 0
        for step in range(knowledge.STEPS):
            scaled_F = ((step + 0.5) / knowledge.STEPS * actual_F).requires_grad_()

            def put(_, args, scaled_F=scaled_F):
                new = args[0].clone()
                new[0, -1] = scaled_F
                return (new,)

            handle = block.mlp.down_proj.register_forward_pre_hook(put)
            probability = model.hf(torch.tensor([prompt])).logits[0, -1].softmax(-1)[answer]
            handle.remove()
            total_F = total_F + torch.autograd.grad(probability, scaled_F)[0] / knowledge.STEPS
        for unit, score in enumerate((actual_F * total_F).tolist()):
            scores[layer, unit] = score
    best = sorted(scores, key=scores.__getitem__, reverse=True)[: len(found.neurons)]
    assert found.neurons == best and 1 <= len(best) <= knowledge.MOST
    assert found.attributions == pytest.approx([scores[one] for one in best], rel=1e-3, abs=1e-7)


def test_the_rewriting_points_from_the_old_answer_to_the_new():
    model = tiny_model("llama")
    found = knowledge.Found([(0, 3), (1, 4)], [1.0, -1.0], [0.2, 0.1])
    moved = knowledge.moved(model, found, 10, 20, 2.0)
    rows = torch.nn.functional.normalize(model.anatomy.unembedding.weight.detach())
    norms = [float(knowledge._value(model, layer)[unit].norm()) for layer, unit in found.neurons]
    torch.testing.assert_close(moved.vector, 2.0 * sum(norms) / 2 * (rows[20] - rows[10]))
    assert moved.shares == {0: {3: 1.0}, 1: {4: -1.0}}
    other = knowledge.at_random(model, moved, 0)
    assert {layer: len(own) for layer, own in other.shares.items()} == {0: 1, 1: 1}


def two_subjects(model, path):
    """Two subjects of a file with different answers."""
    from patchclamp.tasks.read import read_relation

    samples = read_relation(path).samples
    first = samples[0]
    return first.subject, next(one.subject for one in samples if one.object != first.object)


@pytest.mark.parametrize("by", ["inverse", "swap", "neurons"])
def test_a_fact_of_the_toy_is_edited(linear, linear_file, by, tmp_path):
    source, target = two_subjects(linear, linear_file)
    record = edit_fact(linear, subject=source, to_object_of=target, relation=linear_file, by=by, **QUICK)
    result = record.result
    assert result.old != result.new and result.before.old > result.before.new
    if by == "inverse":
        assert result.success.mean == 1 and result.after.new > result.after.old
    if by == "swap":
        assert result.success.mean > 0.6 and result.success == result.swap and result.rank is None
    assert (result.strength is not None) == bool(result.neurons) == (by == "neurons")
    assert result.pairs == 6 and 0 <= result.other_subjects_kept.mean <= 1
    assert record.save(tmp_path / "edit.svg").read_text().startswith("<svg")
    assert len(result.table()) >= 3


def test_a_given_block_and_rank_are_used(linear, linear_file):
    source, target = two_subjects(linear, linear_file)
    asked = {"subject": source, "to_object_of": target, "relation": linear_file, **QUICK}
    result = edit_fact(linear, layer=0, rank=2, **asked).result
    assert (result.layer, result.rank) == (0, 2)
    with pytest.raises(SpecError, match="never reaches the answer"):
        edit_fact(linear, layer=2, **asked)


@pytest.mark.parametrize(("changed", "said"), [
    ({"subject": "Polnd"}, "has no subject 'Polnd'"), ({"to_object_of": "w5x"}, "near it: w5"),
    ({"to_object_of": "w0", "subject": "w0"}, "its own object"), ({"rank": 999}, "rank 999: W is 32 wide"),
    ({"layer": 2}, "never reaches the answer"),
])
def test_what_is_wrong_is_said_before_anything_is_run(linear, linear_file, monkeypatch, changed, said):
    monkeypatch.setattr("patchclamp.relations.edit.part", lambda *_: pytest.fail("asked the model"))
    asked = {"subject": "w0", "to_object_of": "w1", "relation": linear_file, **changed}
    with pytest.raises(SpecError, match=said):
        edit_fact(linear, **asked)


def test_other_facts_on_the_subject_are_looked_up_beside_the_file(linear, linear_file, tmp_path):
    own = relation_file(linear, tmp_path, "own")
    relation_file(linear, tmp_path, "neighbour", template="w95 {} w96 w94")
    source, target = two_subjects(linear, own)
    result = edit_fact(linear, subject=source, to_object_of=target, relation=own, **QUICK).result
    assert [one.relation for one in result.side_effects if one.kind == "same subject"] == ["neighbour"]
    assert all(one.kept == (one.before == one.after) for one in result.side_effects)


def test_two_subjects_with_one_answer_have_nothing_to_edit(linear, linear_file):
    from patchclamp.tasks.read import read_relation

    samples = read_relation(linear_file).samples
    twin = next(one.subject for one in samples[1:] if one.object == samples[0].object)
    with pytest.raises(SpecError, match="nothing to edit"):
        edit_fact(linear, subject=samples[0].subject, to_object_of=twin, relation=linear_file, **QUICK)


def test_the_lens_reads_the_toys_relation_in_other_sentences(linear, linear_file, tmp_path):
    """The words of the sentences are unknown to its tokenizer, but the subject is not."""
    record = attribute_lens(linear, relation=linear_file, prompt="w1 w2 w3 w4", k=1)
    result = record.result
    assert {(cell.layer, cell.position) for cell in result.cells} == {(i, t) for i in (-1, 0, 1) for t in range(4)}
    assert result.recall["in an unrelated sentence"]["linear map"].mean > 0.5
    assert record.save(tmp_path / "lens.svg").read_text().startswith("<svg")
    assert len(result.table()) >= 4


def test_a_cell_of_the_lens_is_the_map_at_that_state(linear, linear_file):
    from patchclamp.evidence.method import Silent
    from patchclamp.relations.fitting import fitted
    from patchclamp.relations.samples import SamplesSpec
    from patchclamp.tasks.read import read_relation

    _, made = fitted(linear, read_relation(linear_file), SamplesSpec(), linear_file, Silent())
    result = attribute_lens(linear, relation=linear_file, prompt="w1 w2 w3 w4").result
    cell = next(one for one in result.cells if (one.layer, one.position) == (0, 2))
    state_D = linear.run("w1 w2 w3 w4", read=Readout.value("resid.0@2"))
    z_D = made.objects(state_D, 0, next(iter(result.beta.values())))
    probs_V = linear.anatomy.unembed(z_D).softmax(-1).detach()
    assert cell.top == linear.say(int(probs_V.argmax())) and cell.prob == pytest.approx(float(probs_V.max()), rel=1e-4)


@pytest.mark.weights
def test_gemma_moves_poland_to_tokyo(gemma):
    """The text before and after, by way of the inverse; random changes as long leave the answer."""
    result = edit_fact(gemma, subject="Poland", to_object_of="Japan", relation="example:relations/country-capital",
                       samples=3, tests=8, **QUICK).result
    assert (result.old, result.new) == (" Warsaw", " Tokyo")
    assert "Warsaw" in result.before.text and "Tokyo" in result.after.text and "Tokyo" not in result.random_answer.text
