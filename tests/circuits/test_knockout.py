"""Knockout of whole blocks."""

import pytest
from tiny import tiny_model

import patchclamp as pc
from patchclamp.errors import TokenError


def test_each_block_is_taken_away_alone():
    model = tiny_model("gpt2")
    result = pc.knockout(model, prompt="w1 w2 w3", answer="w4", distractor="w5").result
    read = pc.Readout.logit_difference("w4", "w5")
    for cell in result.cells:
        alone = float(model.execute(pc.Plan.of([("w1 w2 w3", [pc.Edit.zero(cell.site)], [read])]), "single")[0][0])
        assert cell.logit_difference == pytest.approx(alone, abs=1e-4)
        assert cell.effect == pytest.approx(alone - result.base_logit_difference, abs=1e-4)


def test_points_choose_the_kind_of_block():
    result = pc.knockout(tiny_model("gpt2"), prompt="w1 w2", answer="w4", distractor="w5", points=("mlp",)).result
    assert [c.site for c in result.cells] == ["mlp.0", "mlp.1", "mlp.2"]


def test_an_answer_of_several_tokens_is_refused():
    with pytest.raises(TokenError, match="not one token"):
        pc.knockout(tiny_model("gpt2"), prompt="w1", answer="w4 w5", distractor="w6")


@pytest.mark.weights
def test_some_block_of_smollm2_matters_more_than_the_others(smollm2):
    record = pc.knockout(smollm2, prompt="John and Mary went to the park, John gave a drink to", answer=" Mary",
                         distractor=" John")
    assert len(record.result.cells) == 60
    assert record.result.base_logit_difference > 2
    assert record.verdict.outcome == "supported"
