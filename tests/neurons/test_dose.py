"""Doses of a neuron and graded readouts."""

import json

import numpy as np
import pytest
from endpoint import SCORES
from tiny import tiny_model

import patchclamp as pc
from patchclamp.errors import EditError, SpecError
from patchclamp.neurons.graded import in_lexicon

ROWS = [("w1 w2 w3", " w4", " w5"), ("w6 w7 w8", " w9", " w10"), ("w11 w12 w13", " w14", " w15"),
        ("w3 w9", " w1", " w8")]


@pytest.fixture
def choices(tmp_path):
    path = tmp_path / "choices.jsonl"
    path.write_text("".join(json.dumps(dict(zip(("prompt", "answer", "distractor"), row, strict=True))) + "\n"
                            for row in ROWS))
    return str(path)


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("".join(f"{row[0]}\n" for row in ROWS))
    return str(path)


def difference(model, row, edits):
    read = pc.Readout.logit_difference(row[1].strip(), row[2].strip())
    return float(model.execute(pc.Plan.of([(row[0], edits, [read])]), "single")[0][0])


def test_each_dose_is_its_own_run(choices):
    model = tiny_model("llama")
    record = pc.dose(model, sites=["neuron.1.7@last"], prompts=choices, doses=(0.0, 1.0, 5.0), controls=2)
    for one in record.result.curve:
        want = np.mean([difference(model, row, [pc.Edit.scale("neuron.1.7@last", one.dose)]) for row in ROWS])
        assert one.readout.mean == pytest.approx(want, abs=1e-5)
    change = record.result.curve[-1].readout.mean - record.result.curve[0].readout.mean
    assert record.result.change.mean == pytest.approx(change)
    assert record.chart().to_dict()["layer"] and len(record.table()) == 3
    assert type(record.result).model_validate_json(record.result.model_dump_json()) == record.result


def test_doses_in_deviations_from_the_mean(choices):
    model = tiny_model("llama")
    record = pc.dose(model, sites=["neuron.1.7@last"], prompts=choices, by="set", doses=(-2.0, 0.0, 3.0), controls=2)
    mean, spread = float(model.mean_values(["neuron.1.7"])[0]), float(model.value_sd("neuron.1.7"))
    assert spread > 0
    edits = [pc.Edit.set("neuron.1.7@last", mean + 3 * spread)]
    want = np.mean([difference(model, row, edits) for row in ROWS])
    assert record.result.curve[-1].readout.mean == pytest.approx(want, abs=1e-5)


def test_spearman_is_one_for_a_curve_that_only_rises(choices):
    """A doubled last residual direction: the readout is nearly linear in a last-layer neuron."""
    model = tiny_model("llama")
    result = pc.dose(model, sites=["neuron.2.7@last"], prompts=choices, doses=(0.0, 0.5, 1.0, 1.5), controls=2).result
    each = [[difference(model, row, [pc.Edit.scale("neuron.2.7@last", d.dose)]) for d in result.curve] for row in ROWS]
    from scipy.stats import spearmanr

    want = np.mean([spearmanr([0, 0.5, 1, 1.5], values).statistic for values in each])
    assert result.spearman.mean == pytest.approx(want)


def test_the_probability_of_a_set_of_tokens(prompts):
    model = tiny_model("llama")
    result = pc.dose(model, sites=["neuron.1.7"], prompts=prompts, tokens=("w4", "w5"), doses=(0.0, 1.0, 2.0),
                     controls=2).result
    read = pc.Readout.probability("w4", "w5")
    want = np.mean([float(model.run(row[0], read=read).sum()) for row in ROWS])
    assert result.curve[1].readout.mean == pytest.approx(want, abs=1e-6)
    assert "probability of 'w4', 'w5'" in result.readout


def test_the_share_of_words_in_a_list(tmp_path, prompts):
    assert in_lexicon("What a Lovely, lovely day it's", frozenset(["lovely", "it's"])) == 0.5
    assert in_lexicon("…", frozenset(["a"])) == 0
    words = tmp_path / "words.txt"
    model = tiny_model("llama")
    said = [answer.text for answer in model.generate([row[0] for row in ROWS], max_new_tokens=5)]
    words.write_text("\n".join(said[0].split()) + "\n")
    result = pc.dose(model, sites=["neuron.1.7"], prompts=prompts, words=str(words), max_new_tokens=5,
                     doses=(0.0, 1.0, 2.0), controls=2).result
    want = np.mean([in_lexicon(text, frozenset(said[0].split())) for text in said])
    assert result.curve[1].readout.mean == pytest.approx(want)
    assert result.texts[1] == said[0] and len(result.texts) == 3


def test_a_judge_rates_the_answers(endpoint, prompts):
    endpoint.reply = lambda asked: SCORES
    result = pc.dose(tiny_model("llama"), sites=["neuron.1.7"], prompts=prompts, judge=endpoint.url, judge_model="j",
                     concept="rain", max_new_tokens=3, doses=(0.0, 1.0, 2.0), controls=2).result
    assert [one.readout.mean for one in result.curve] == [json.loads(SCORES)["concept"]] * 3
    assert result.spearman.mean == 0


def test_a_judge_without_scores_is_an_error(endpoint, prompts):
    endpoint.reply = lambda asked: "lovely"
    with pytest.raises(SpecError, match="only 0 of 4 prompts"):
        pc.dose(tiny_model("llama"), sites=["neuron.1.7"], prompts=prompts, judge=endpoint.url, judge_model="j",
                concept="rain", max_new_tokens=3, doses=(0.0, 1.0, 2.0), controls=2)


@pytest.mark.parametrize(("fields", "error", "message"), [
    ({"doses": (0.0, 1.0)}, SpecError, "three different doses"),
    ({"sites": ["head.1.0"]}, SpecError, "no single number"),
    ({"tokens": ("w1",), "words": "x.txt"}, SpecError, "tokens and words are two readouts"),
    ({"judge": "http://127.0.0.1:1/v1"}, SpecError, "belong together"),
    ({"doses": (0.0, 1.0, 1e30)}, EditError, "overflows float32"),
])
def test_what_is_wrong_is_named(choices, fields, error, message):
    with pytest.raises(error, match=message):
        pc.dose(tiny_model("llama"), **{"sites": ["neuron.1.7"], "prompts": choices, "controls": 2} | fields)


@pytest.mark.weights
def test_the_degree_of_a_plural_neuron(smollm2):
    record = pc.dose(smollm2, sites=["neuron.19.1044@last"], prompts="example:agreement", where=("number=plural",),
                     controls=5)
    assert record.verdict.outcome == "supported"
    assert record.result.spearman.low > 0.3 and record.result.random_change.high < 1
