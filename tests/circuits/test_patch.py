"""Activation patching: identities it must satisfy, agreement with one patch at a time, and a known circuit."""

import pytest
from tiny import tiny_model

import patchclamp as pc
from patchclamp.errors import SpecError

CLEAN, CORRUPTED = "w1 w2 w3 w4 w5", "w1 w7 w3 w8 w5"
ASK = {"clean": CLEAN, "corrupted": CORRUPTED, "answer": "w11", "distractor": "w12", "controls": 0}


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3", "mpt", "bloom"])
def test_patching_the_last_residual_stream_moves_everything(name):
    """The logits are a function of the last token's final residual stream alone."""
    cells = pc.patch(tiny_model(name), **ASK, sites=("resid",)).result.cells
    model = tiny_model(name)
    last = next(c for c in cells if c.site == f"resid.{model.n_layers - 1}@4")
    assert last.effect == pytest.approx(1, abs=1e-3)


def test_a_token_that_does_not_differ_moves_nothing_at_the_first_block():
    cells = {c.site: c.effect for c in pc.patch(tiny_model("llama"), **ASK, sites=("resid_pre",)).result.cells}
    assert cells["resid_pre.0@0"] == pytest.approx(0, abs=1e-4)
    assert abs(cells["resid_pre.0@1"]) > 1e-3


def test_each_cell_is_the_patch_run_on_its_own():
    model = tiny_model("llama")
    result = pc.patch(model, **ASK, sites=("attn", "head")).result
    read = pc.Readout.logit_difference("w11", "w12")
    span = result.clean_logit_difference - result.corrupted_logit_difference
    for cell in result.cells[::5]:
        plan = pc.Plan.of([(CORRUPTED, [pc.Edit.swap(cell.site, CLEAN)], [read])])
        alone = float(model.execute(plan, "single")[0][0])
        assert cell.effect == pytest.approx((alone - result.corrupted_logit_difference) / span, abs=1e-3)


def test_reverse_puts_corrupted_values_into_the_clean_run():
    """0 is the corrupted run and 1 the clean one in both directions."""
    model = tiny_model("llama")
    there = pc.patch(model, **ASK, sites=("mlp", "resid_pre"), reverse=True).result
    read = pc.Readout.logit_difference("w11", "w12")
    span = there.clean_logit_difference - there.corrupted_logit_difference
    for cell in there.cells[::4]:
        plan = pc.Plan.of([(CLEAN, [pc.Edit.swap(cell.site, CORRUPTED)], [read])])
        alone = float(model.execute(plan, "single")[0][0])
        assert cell.effect == pytest.approx((alone - there.corrupted_logit_difference) / span, abs=1e-3)
    same = next(c for c in there.cells if c.site == "resid_pre.0@0")
    assert same.effect == pytest.approx(1, abs=1e-4)


def test_every_block_and_position_or_head_has_a_cell():
    model = tiny_model("llama")
    assert len(pc.patch(model, **ASK, sites=("resid", "head")).result.cells) == 3 * 5 + 3 * 4
    assert len(pc.patch(model, **ASK, sites=("resid", "head"), positions="last").result.cells) == 3 + 3 * 4


def test_prompts_of_different_length_are_refused_with_their_tokens():
    with pytest.raises(SpecError, match="5 tokens and the corrupted one 4"):
        pc.patch(tiny_model("llama"), **{**ASK, "corrupted": "w1 w7 w3 w8"})


def test_prompts_that_are_answered_alike_are_refused():
    with pytest.raises(SpecError, match="nothing to move"):
        pc.patch(tiny_model("llama"), **{**ASK, "corrupted": CLEAN})


@pytest.mark.weights
def test_indirect_object_identification_runs_through_few_heads(smollm2):
    record = pc.patch(
        smollm2, clean="When John and Mary went to the park, John gave a drink to",
        corrupted="When John and Mary went to the park, Mary gave a drink to",
        answer=" Mary", distractor=" John", sites=("head",), positions="last",
    )
    effects = sorted((abs(c.effect) for c in record.result.cells), reverse=True)
    assert record.verdict.outcome == "supported"
    assert sum(e > 0.1 for e in effects) < 20 < len(effects)
