"""Attention view: weights against Hugging Face's own, norms against loops, shares against their definitions."""

import copy
import math

import pytest
import torch
from tiny import CONFIGS, SPREAD, tiny, tiny_model, wrap

import patchclamp.lenses.attention as module
from patchclamp.errors import PromptError, SiteError, SpecError, UnsupportedModel
from patchclamp.lenses.attention import attention
from patchclamp.model.anatomy import part, weight_in_out

PROMPT = (10, 11, 12, 10, 11, 13)
ROUNDING = 5e-6
"""Norms of size 10 in float32: some five units in the last place."""


def head_of(record, layer, unit):
    return next(h for h in record.result.heads if (h.layer, h.head) == (layer, unit))


@pytest.mark.parametrize("name", SPREAD)
def test_weights_are_the_models_own(name):
    record = attention(tiny_model(name), prompt=PROMPT)
    with torch.no_grad():
        own = tiny(name, "eager")(torch.tensor([PROMPT]), output_attentions=True).attentions
    for head in record.result.heads:
        assert torch.allclose(torch.tensor(head.pattern), own[head.layer][0, head.head], atol=ROUNDING)


@pytest.mark.parametrize("name", CONFIGS)
def test_norms_are_those_of_each_weighted_value_vector_projected_out(name):
    model = tiny_model(name)
    record = attention(model, prompt=PROMPT, layers=(1,))
    seen = model.capture(PROMPT, ["pattern.1", "v.1"])
    pattern_HTS, v_TKE = seen["pattern.1"][0], seen["v.1"][0]
    w_WD = weight_in_out(part(model.anatomy.blocks[1], model.anatomy.family.out_proj)).detach()
    width, shared = model.d_head, model.n_heads // model.n_kv_heads
    for unit in range(model.n_heads):
        norms = head_of(record, 1, unit).norms
        for i in range(len(PROMPT)):
            for j in range(len(PROMPT)):
                moved = pattern_HTS[unit, i, j] * v_TKE[j, unit // shared] @ w_WD[unit * width : (unit + 1) * width]
                assert norms[i][j] == pytest.approx(float(moved.norm()), abs=ROUNDING)


def test_rows_sum_to_one_and_nothing_is_read_from_later_tokens():
    for head in attention(tiny_model("gemma3"), prompt=PROMPT).result.heads:
        for i, row in enumerate(head.pattern):
            assert sum(row) == pytest.approx(1, abs=1e-6)
            assert row[i + 1 :] == [0.0] * (len(row) - i - 1)


def test_shares_follow_their_definitions():
    head = head_of(attention(tiny_model("llama"), prompt=PROMPT), 2, 3)
    rows = head.pattern
    later = range(1, len(rows))
    assert head.first == pytest.approx(sum(rows[i][0] for i in later) / 5)
    assert head.previous == pytest.approx(sum(rows[i][i - 1] for i in later) / 5)
    assert head.itself == pytest.approx(sum(rows[i][i] for i in later) / 5)
    assert head.entropy == pytest.approx(-sum(p * math.log(p) for i in later for p in rows[i] if p) / 5)
    assert head.induction == pytest.approx((rows[3][1] + rows[4][2]) / 2)  # 10 at 3 follows 10 at 0, 11 likewise


def test_reading_itself_is_no_induction_where_a_token_is_doubled():
    head = head_of(attention(tiny_model("llama"), prompt=(10, 11, 11, 11)), 1, 0)
    assert head.induction == pytest.approx(head.pattern[3][2])


def test_without_a_repeated_token_there_is_no_induction():
    assert all(h.induction is None for h in attention(tiny_model("llama"), prompt=PROMPT[:3]).result.heads)


@pytest.mark.parametrize(("asked", "heads"), [
    ({"heads": ("pattern.2.1", "pattern.0.3")}, [(0, 3), (2, 1)]),
    ({"layers": (1,)}, [(1, 0), (1, 1), (1, 2), (1, 3)]),
    ({"layers": (2,), "heads": ("pattern.2.1", "pattern.0.3")}, [(0, 3), (2, 0), (2, 1), (2, 2), (2, 3)]),
    ({}, [(layer, head) for layer in range(3) for head in range(4)]),
])
def test_one_head_many_or_all(asked, heads):
    record = attention(tiny_model("llama"), prompt=PROMPT, **asked)
    assert [(h.layer, h.head) for h in record.result.heads] == heads
    assert len(record.table()) == len(heads)
    assert record.verdict is None


def test_a_head_whose_output_is_not_weights_times_values_is_refused():
    model = wrap(copy.deepcopy(tiny("llama")), "gated")
    model.hf.model.layers[1].self_attn.o_proj.register_forward_pre_hook(lambda _, args: (args[0] * 0.5,))
    with pytest.raises(UnsupportedModel, match="block 1: attention weights times values"):
        attention(model, prompt=PROMPT)


@pytest.mark.parametrize(("wrong", "error", "says"), [
    ({"layers": (3,)}, SpecError, r"3 blocks \(0 to 2\)"),
    ({"layers": (-1,)}, SpecError, "names -1"),
    ({"heads": ("pattern.7.0",)}, SiteError, "names block 7"),
    ({"heads": ("pattern.1.4",)}, SiteError, r"4 heads \(0 to 3\)"),
    ({"heads": ("pattern.1",)}, SpecError, "--layers"),
    ({"heads": ("neuron.1.4",)}, SpecError, "not one head"),
    ({"heads": ("pattern.1.2@last",)}, SpecError, "without positions"),
    ({"prompt": (10,)}, SpecError, "one token"),
    ({"prompt": ""}, PromptError, "empty"),
])
def test_bad_questions_are_refused(wrong, error, says):
    with pytest.raises(error, match=says):
        attention(tiny_model("llama"), **{"prompt": PROMPT, **wrong})


@pytest.mark.parametrize(("most", "remedy"), [(800, "at most 11 heads"), (60, "shorten the prompt to 5 tokens")])
def test_too_much_for_one_record_says_how_much_fits(monkeypatch, most, remedy):
    monkeypatch.setattr(module, "MOST_NUMBERS", most)
    with pytest.raises(SpecError, match=f"864 numbers.*{remedy}"):
        attention(tiny_model("llama"), prompt=PROMPT)


@pytest.mark.weights
def test_smollm2_has_previous_token_and_induction_heads(smollm2):
    tokens = tuple(range(3000, 15000, 1000))
    table = attention(smollm2, prompt=tokens + tokens).table()
    assert len(table) == 270
    assert table["previous"].max() > 0.8
    assert table["induction"].max() > 0.7


@pytest.mark.weights
def test_gemma_has_induction_heads(gemma):
    tokens = tuple(range(3000, 15000, 1000))
    assert attention(gemma, prompt=tokens + tokens).table()["induction"].max() > 0.7
