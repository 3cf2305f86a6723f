"""In-context vectors: prompts as meant, vectors as defined, and a task that works in some blocks of a real model."""

import json
import re

import numpy as np
import pytest
import torch
from tiny import tiny_model

from patchclamp.errors import FileError, SpecError
from patchclamp.evidence.method import Silent
from patchclamp.tasks.rows import TaskRow
from patchclamp.vectors.compose import compose_vectors
from patchclamp.vectors.incontext import (
    Asked,
    Template,
    check_template,
    few_shot,
    function_vector,
    head_means,
    indirect_effects,
    split_rows,
)
from patchclamp.vectors.task import task_vectors

weights = pytest.mark.weights
ROWS = [TaskRow(input=f"w{i}", output=f"w{i + 1}") for i in range(10, 50)]
PAIRS = {
    "France": "Paris",
    "Italy": "Rome",
    "Spain": "Madrid",
    "Japan": "Tokyo",
    "Germany": "Berlin",
    "Greece": "Athens",
    "Austria": "Vienna",
    "Russia": "Moscow",
    "Poland": "Warsaw",
    "Portugal": "Lisbon",
    "Ireland": "Dublin",
    "Norway": "Oslo",
    "Sweden": "Stockholm",
    "Finland": "Helsinki",
    "Denmark": "Copenhagen",
    "Hungary": "Budapest",
    "Belgium": "Brussels",
    "China": "Beijing",
    "Cuba": "Havana",
    "Peru": "Lima",
    "Chile": "Santiago",
    "Egypt": "Cairo",
    "Kenya": "Nairobi",
    "Thailand": "Bangkok",
    "Vietnam": "Hanoi",
    "Iraq": "Baghdad",
    "Iran": "Tehran",
    "Syria": "Damascus",
    "Lebanon": "Beirut",
    "Turkey": "Ankara",
    "Canada": "Ottawa",
    "Nepal": "Kathmandu",
    "Bulgaria": "Sofia",
    "Serbia": "Belgrade",
    "Croatia": "Zagreb",
    "Ukraine": "Kyiv",
}


def write(path, rows):
    path.write_text(json.dumps([{"input": i, "output": o} for i, o in rows]))
    return str(path)


def test_the_answer_is_the_token_that_follows_when_it_is_written_there():
    template = Template(tiny_model("llama"), "{} w2 {} w3 ")
    asked = template.prompt([("w10", "w11")], ROWS[5])
    model = template.model
    assert model.decode(asked.ids).replace(" ", "") == "w10w2w11w3w15w2"
    assert model.say(asked.answer).strip() == "w16"


def test_a_row_is_never_its_own_example():
    template = Template(tiny_model("llama"), "{} w2 {} w3 ")
    for asked, row in zip(few_shot(template, ROWS, ROWS, 8, 0), ROWS, strict=True):
        inputs = re.findall(r"w\d+", template.model.decode(asked.ids))[::4]
        assert len(inputs) == 9
        assert inputs[-1] == row.input
        assert row.input not in inputs[:-1]


def test_the_sets_share_no_input():
    split = split_rows([*ROWS, ROWS[0]], 3, 12, 0, "file")
    inputs = [[row.input for row in part] for part in split]
    assert sum(map(len, inputs)) == 40
    assert len(set().union(*inputs)) == 40


def test_too_few_rows_say_how_many_are_needed():
    with pytest.raises(FileError, match="24 are needed"):
        split_rows(ROWS[:10], 8, 12, 0, "file")


def test_a_template_has_two_places():
    assert check_template("arrow") == "{} -> {}\n"
    with pytest.raises(SpecError, match="1 places"):
        check_template("Q: {}")


def test_head_contributions_are_outputs_times_the_output_projection():
    model = tiny_model("llama")
    prompts = [Asked(model.encode(f"w{i} w{i + 2} w5").ids, 7) for i in range(10, 14)]
    outputs_LHE, parts_LHD = head_means(model, prompts)
    w_ED = model.hf.model.layers[1].self_attn.o_proj.weight.T.reshape(model.n_heads, model.d_head, -1)[2].double()
    assert torch.allclose(parts_LHD[1, 2], outputs_LHE[1, 2] @ w_ED, atol=1e-6)
    assert torch.allclose(function_vector(parts_LHD, [(1, 2), (0, 1)]), parts_LHD[1, 2] + parts_LHD[0, 1])


def test_the_indirect_effect_is_the_rise_of_the_answers_probability():
    model = tiny_model("llama")
    prompts = [Asked(model.encode(f"w{i} w{i + 2} w5").ids, 7) for i in range(10, 14)]
    outputs_LHE = torch.randn(model.n_layers, model.n_heads, model.d_head, generator=torch.Generator().manual_seed(0))
    effects = indirect_effects(model, prompts, outputs_LHE, Silent())
    from patchclamp import Edit, Readout

    edit = Edit.set("head.1.3@last", outputs_LHE[1, 3])
    by_hand = [
        float(model.run(p.ids, [edit], Readout.probability(7)) - model.run(p.ids, [], Readout.probability(7)))
        for p in prompts
    ]
    assert float(effects[1, 3]) == pytest.approx(np.mean(by_hand), abs=1e-6)


def test_a_model_that_cannot_learn_in_context_is_reported_and_not_measured(tmp_path):
    rows = [(f"w{i}", f"w{(37 * i) % 90 + 5}") for i in range(3, 60)]
    record = task_vectors(tiny_model("llama"), file=write(tmp_path / "t.json", rows), template="{} w2 {} w3 ", limit=12)
    assert record.result.by_layer == []
    assert record.verdict.outcome == "inconclusive"
    assert "In-context learning too weak" in record.verdict.reason


@pytest.fixture(scope="module")
def capitals(tmp_path_factory, gemma):
    path = write(tmp_path_factory.mktemp("task") / "capitals.json", PAIRS.items())
    return task_vectors(gemma, file=path, shots=4, template="question", prompts=6, limit=12, heads=8, controls=20)


@weights
def test_one_vector_does_what_the_examples_do_in_some_blocks_only(capitals):
    replace = [layer.replace for layer in capitals.result.by_layer]
    assert capitals.result.zero_shot_accuracy <= 0.1
    assert max(replace) >= 0.5
    assert replace[2] <= 0.1 and replace[17] <= 0.1
    assert max(layer.random for layer in capitals.result.by_layer) <= 0.1
    assert capitals.verdict.outcome == "supported"


@weights
def test_it_is_drawn_and_comes_back(capitals, tmp_path):
    import patchclamp as pc

    assert capitals.save(tmp_path / "c.svg").read_text().startswith("<svg")
    assert pc.Record.from_json(capitals.to_json()).to_json() == capitals.to_json()
    assert len(capitals.table()) == 18


@weights
def test_composing_reports_the_composed_vector_beside_the_measured_one(gemma, tmp_path):
    path = write(tmp_path / "capitals.json", PAIRS.items())
    record = compose_vectors(gemma, file=path, shots=3, prompts=4, limit=12)
    result = record.result
    chosen = result.layers[result.layer]
    assert (chosen.cosine, chosen.composed) == (result.cosine, result.accuracy_composed.mean)
    assert [layer.layer for layer in result.layers] == list(range(18))
    assert result.zero_shot_accuracy <= 0.2
    assert record.save(tmp_path / "c.svg").read_text().startswith("<svg")


@weights
def test_what_an_mlp_writes_on_the_way_to_a_capital_is_a_word_vector(gemma):
    record = compose_vectors(gemma, file="example:country-capital", by="mlp", limit=12, prompts=6)
    assert record.verdict.outcome == "supported"
    assert record.result.accuracy_composed.mean > 0.4
    assert record.result.zero_shot_accuracy < 0.2
    layers = record.result.layers
    assert max(layer.composed for layer in layers[:8]) < 0.2
