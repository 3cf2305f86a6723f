"""Ablation of neurons and heads, beside random ones: exactness, controls, and a neuron that matters."""

import json

import numpy as np
import pytest
from tiny import tiny_model

import patchclamp as pc
from patchclamp.errors import InputError, SiteError, SpecError
from patchclamp.tasks import ChoiceRow, read_rows

WORDS = [("w1 w2 w3", " w4", " w5"), ("w6 w7 w8", " w9", " w10"), ("w11 w12 w13", " w14", " w15")]


@pytest.fixture
def choices(tmp_path):
    path = tmp_path / "choices.jsonl"
    path.write_text("".join(json.dumps(dict(zip(("prompt", "answer", "distractor"), w, strict=True))) + "\n"
                            for w in WORDS))
    return str(path)


def difference(model, prompt, answer, distractor, edits=()):
    read = pc.Readout.logit_difference(answer.strip(), distractor.strip())
    return float(model.execute(pc.Plan.of([(prompt, edits, [read])]), "single")[0][0])


def test_the_effect_is_edited_minus_unedited(choices):
    model = tiny_model("llama")
    record = pc.ablate(model, sites=["neuron.1.7"], prompts=choices, controls=2)
    change = [difference(model, *w, [pc.Edit.zero("neuron.1.7")]) - difference(model, *w) for w in WORDS]
    assert record.result.groups[0].effect.logit_difference == pytest.approx(np.mean(change), abs=1e-5)


def test_ranked_grows_the_group_one_site_at_a_time(choices):
    sites = ["neuron.1.7", "neuron.2.3", "neuron.0.1"]
    groups = pc.ablate(tiny_model("llama"), sites=sites, prompts=choices, ranked=True, controls=2).result.groups
    assert [(g.k, g.sites) for g in groups] == [(1, sites[:1]), (2, sites[:2]), (3, sites)]


def test_a_neuron_set_to_its_own_mean_of_one_text_is_unchanged_there(tmp_path, choices):
    """The mean over a corpus leaves each text's first token out, so one two-token text has one value."""
    model = tiny_model("llama")
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("w20 w21\n")
    value = model.run("w20 w21", read="neuron.1.7@last")
    record = pc.ablate(model, sites=["neuron.1.7@last"], prompts=choices, how="mean", corpus=str(corpus), controls=2)
    by_hand = [difference(model, *w, [pc.Edit.set("neuron.1.7@last", float(value))]) - difference(model, *w)
               for w in WORDS]
    assert record.result.groups[0].effect.logit_difference == pytest.approx(np.mean(by_hand), abs=1e-5)


def test_resampling_takes_the_value_of_another_prompt(choices):
    model = tiny_model("llama")
    record = pc.ablate(model, sites=["head.1.2@last"], prompts=choices, how="resample", controls=2)
    by_donor = [[difference(model, *w, [pc.Edit.swap("head.1.2@last", other[0])]) - difference(model, *w)
                 for other in WORDS if other is not w] for w in WORDS]
    possible = {round(a + b + c, 3) for a in by_donor[0] for b in by_donor[1] for c in by_donor[2]}
    assert round(3 * record.result.groups[0].effect.logit_difference, 3) in possible


def test_a_matched_control_needs_sites_of_one_kind(choices):
    with pytest.raises(SpecError, match="mix"):
        pc.ablate(tiny_model("llama"), sites=["neuron.1.7", "head.1.2"], prompts=choices)


def test_a_missing_neuron_is_named_with_the_range(choices):
    with pytest.raises(SiteError, match=r"48 neurons \(0 to 47\)"):
        pc.ablate(tiny_model("llama"), sites=["neuron.1.48"], prompts=choices)


def test_whole_blocks_are_not_single_units(choices):
    with pytest.raises(SpecError, match="single units"):
        pc.ablate(tiny_model("llama"), sites=["mlp.1"], prompts=choices)


def test_an_answer_that_is_a_prefix_of_the_other_is_skipped_and_counted(tmp_path):
    path = tmp_path / "c.jsonl"
    rows = [*WORDS, ("w1 w2", " w3", " w3 w4")]
    path.write_text("".join(json.dumps(dict(zip(("prompt", "answer", "distractor"), w, strict=True))) + "\n"
                            for w in rows))
    result = pc.ablate(tiny_model("llama"), sites=["neuron.1.7"], prompts=str(path), controls=2).result
    assert (result.prompts, result.skipped) == (3, 1)


def test_a_missing_file_is_an_input_error():
    with pytest.raises(InputError, match="nowhere"):
        pc.ablate(tiny_model("llama"), sites=["neuron.1.7"], prompts="nowhere.jsonl")


@pytest.mark.weights
def test_a_plural_neuron_of_smollm2_stands_out_from_random_ones(smollm2, tmp_path):
    """After "these" and "those" it carries part of the plural; random neurons of its block do next to nothing."""
    rows = [row for row in read_rows("example:agreement", ChoiceRow) if row.number == "plural"]
    path = tmp_path / "plural.jsonl"
    path.write_text("".join(row.model_dump_json() + "\n" for row in rows))
    record = pc.ablate(smollm2, sites=["neuron.19.1044@last"], prompts=str(path), controls=8)
    assert record.verdict.outcome == "supported"
    assert record.verdict.effect.high < record.verdict.control.low
    assert record.result.right == 1.0


def test_more_heads_than_a_block_has_left_have_no_control_but_an_effect(tmp_path):
    path = tmp_path / "c.csv"
    path.write_text("prompt,answer,distractor\nw1 w2, w3, w4\nw5 w6, w7, w8\n")
    record = pc.ablate(tiny_model("llama"), sites=["head.1.0", "head.1.1", "head.1.2"], prompts=str(path))
    group = record.result.groups[0]
    assert group.effect.logit_difference != 0
    assert not group.random.logit_difference.exists
    assert record.verdict.outcome == "inconclusive"
    assert pc.Record.from_json(record.to_json()).to_json() == record.to_json()


def test_a_share_lies_between_nothing_and_all(tmp_path):
    path = tmp_path / "c.csv"
    path.write_text("prompt,answer,distractor\nw1 w2, w3, w4\nw5 w6, w7, w8\n")
    record = pc.ablate(tiny_model("llama"), sites=["neuron.1.0"], prompts=str(path), controls=3)
    flips = record.result.groups[0].random.flips
    assert 0 <= flips.low <= flips.high <= 1


def test_the_files_that_were_read_are_in_the_provenance_and_paths_are_absolute(tmp_path, monkeypatch):
    import hashlib

    monkeypatch.chdir(tmp_path)
    path = tmp_path / "c.csv"
    path.write_text("prompt,answer,distractor\nw1 w2, w3, w4\nw5 w6, w7, w8\n")
    record = pc.ablate(tiny_model("llama"), sites=["neuron.1.0"], prompts="c.csv", controls=3)
    assert record.spec.prompts == str(path)
    assert record.provenance.inputs == {str(path): hashlib.sha256(path.read_bytes()).hexdigest()}


def test_three_ways_stand_side_by_side(choices):
    """Zero first; the verdict is about the mean. Values are those of each way alone."""
    model = tiny_model("llama")
    record = pc.ablate(model, sites=["neuron.1.7@last", "neuron.2.3@last"], prompts=choices, ranked=True, controls=2)
    result = record.result
    assert [(g.by, g.k) for g in result.groups] == [("zero", 1), ("zero", 2)]
    assert [(g.by, g.k) for g in result.other_ways] == [("mean", 1), ("mean", 2), ("resample", 1), ("resample", 2)]
    assert "(mean)" in record.verdict.reason
    alone = pc.ablate(model, sites=["neuron.1.7@last", "neuron.2.3@last"], prompts=choices, how="mean", controls=2)
    assert alone.result.groups[0] == result.other_ways[1] and not alone.result.other_ways


def test_without_a_partner_of_its_length_there_is_no_resampling_unless_asked_for(tmp_path):
    path = tmp_path / "c.csv"
    path.write_text("prompt,answer,distractor\nw1 w2, w3, w4\nw5 w6 w7, w7, w8\n")
    model = tiny_model("llama")
    result = pc.ablate(model, sites=["neuron.1.0"], prompts=str(path), controls=2).result
    assert [g.by for g in result.groups + result.other_ways] == ["zero", "mean"]
    with pytest.raises(SpecError, match="leave resample out"):
        pc.ablate(model, sites=["neuron.1.0"], prompts=str(path), how="resample", controls=2)


def test_rows_and_files_beside_the_target(tmp_path, choices):
    path = tmp_path / "c.jsonl"
    rows = [dict(zip(("prompt", "answer", "distractor"), w, strict=True)) | {"n": i % 2} for i, w in enumerate(WORDS)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = tiny_model("llama")
    result = pc.ablate(model, sites=["neuron.1.7"], prompts=str(path), where=("n=0",), other=(choices,), how="zero",
                       controls=2).result
    assert result.prompts == 2
    assert [(o.name, o.prompts) for o in result.off_target] == [("rows without n=0", 1), (choices, 3)]
    change = difference(model, *WORDS[1], [pc.Edit.zero("neuron.1.7")]) - difference(model, *WORDS[1])
    assert result.off_target[0].groups[0].effect.logit_difference == pytest.approx(change, abs=1e-5)


def test_probability_and_accuracy_are_of_the_same_runs(choices):
    model = tiny_model("llama")
    result = pc.ablate(model, sites=["neuron.1.7"], prompts=choices, how="zero", controls=2).result

    def measured(edits):
        reads = [[pc.Readout.probability(w[1].strip())] for w in WORDS]
        p = [float(model.run(w[0], edits, read)[0]) for w, read in zip(WORDS, reads, strict=True)]
        return np.mean(p), np.mean([difference(model, *w, edits) > 0 for w in WORDS])

    (p, a), (base_p, base_a) = measured([pc.Edit.zero("neuron.1.7")]), measured([])
    assert result.groups[0].effect.probability == pytest.approx(p - base_p, abs=1e-6)
    assert result.groups[0].effect.accuracy == pytest.approx(a - base_a)
    assert (result.base_probability, result.right) == (pytest.approx(base_p), base_a)


def test_what_the_model_writes_with_and_without(choices):
    model = tiny_model("llama")
    result = pc.ablate(model, sites=["head.1.1"], prompts=choices, how="zero", answers=3, controls=2).result
    assert [w.prompt for w in result.written] == [model.decode(model.encode(w[0]).ids) for w in WORDS]
    assert result.written[0].edited == model.generate(WORDS[0][0], [pc.Edit.zero("head.1.1")], 3).text
    assert result.written[0].base == model.generate(WORDS[0][0], max_new_tokens=3).text
