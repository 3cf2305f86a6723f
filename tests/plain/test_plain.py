"""Capture and generation as methods."""

import pytest
import torch
from tiny import tiny_model

import patchclamp as pc
from patchclamp.errors import SpecError


def test_captured_values_are_the_models(tmp_path):
    model = tiny_model("llama")
    rows = pc.run("forward.capture", model, prompts=["w1 w2 w3"], sites=["resid.1", "neuron.0.3@last"]).result.rows
    direct = model.capture(["w1 w2 w3"], ["resid.1", "neuron.0.3@last"])
    assert [r.site for r in rows] == ["resid.1"] * 3 + ["neuron.0.3@last"]
    assert torch.equal(torch.tensor(rows[1].values), direct["resid.1"][0, 1])
    assert rows[3].values == float(direct["neuron.0.3@last"][0])


def test_a_pattern_is_one_row_a_reading_token():
    rows = pc.run("forward.capture", tiny_model("llama"), prompts=["w1 w2 w3"], sites=["pattern.1"]).result.rows
    assert [r.position for r in rows] == [0, 1, 2]
    assert torch.tensor(rows[1].values).shape == (4, 3)
    assert torch.tensor(rows[1].values).sum(-1) == pytest.approx([1, 1, 1, 1], abs=1e-5)


def test_too_many_numbers_for_a_record_are_refused(monkeypatch):
    monkeypatch.setattr("patchclamp.plain.capture.MOST_NUMBERS", 10)
    with pytest.raises(SpecError, match="fewer positions"):
        pc.run("forward.capture", tiny_model("llama"), prompts=["w1 w2 w3"], sites=["resid.1"])


def test_generation_shows_the_unedited_answer_beside():
    model = tiny_model("llama")
    edit = pc.Edit.scale("mlp.1", -3)
    row = pc.run("forward.generate", model, prompts=["w1 w2"], edits=[edit], max_new_tokens=4).result.rows[0]
    assert row.text == model.generate("w1 w2", [edit], 4).text
    assert row.unedited == model.generate("w1 w2", [], 4).text
