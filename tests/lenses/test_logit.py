"""The logit lens: against unembedding by hand, on the question of the lecture, and on bad input."""

import pytest
import torch
from tiny import tiny_model

import patchclamp as pc
from patchclamp.errors import SpecError, TokenError

PROMPT = tuple(range(10, 18))


@pytest.mark.parametrize("name", ["llama", "gemma2", "granite", "cohere", "gpt2", "opt-projected"])
def test_the_last_layer_is_the_models_own_output(name):
    """Final norm, scale and softcap are right if the lens ends where the model does."""
    model = tiny_model(name)
    record = pc.logit_lens(model, prompt=PROMPT, controls=0)
    with torch.no_grad():
        probs = model.hf(torch.tensor([PROMPT])).logits[0, -1].softmax(-1)
    last = record.result.layers[-1].top[0]
    assert record.result.prediction == model.say(int(probs.argmax()))
    assert last.prob == pytest.approx(float(probs.max()), rel=1e-4)


def test_layers_run_from_the_embeddings_to_the_last_block():
    model = tiny_model("llama")
    layers = pc.logit_lens(model, prompt=PROMPT, controls=0).result.layers
    assert [layer.layer for layer in layers] == [-1, 0, 1, 2]


def test_a_watched_tokens_rank_counts_the_tokens_above_it():
    model = tiny_model("llama")
    layer = pc.logit_lens(model, prompt=PROMPT, watch=["w5"], top=50, controls=0).result.layers[1]
    above = [t for t in layer.top if t.prob > layer.watch["w5"].prob]
    assert layer.watch["w5"].rank == len(above)


def test_a_position_reads_another_token():
    model = tiny_model("llama")
    short = pc.logit_lens(model, prompt=PROMPT[:4], controls=0).result
    inside = pc.logit_lens(model, prompt=PROMPT, position="3", controls=0).result
    assert inside.layers[-1].top[0].prob == pytest.approx(short.layers[-1].top[0].prob, rel=1e-4)


def test_several_positions_are_refused():
    with pytest.raises(SpecError, match="reads one"):
        pc.logit_lens(tiny_model("llama"), prompt=PROMPT, position="1:3", controls=0)


def test_a_word_of_several_tokens_is_refused_by_name():
    with pytest.raises(TokenError, match=r"w1 w2.*2"):
        pc.logit_lens(tiny_model("llama"), prompt=PROMPT, watch=["w1 w2"], controls=0)


@pytest.mark.weights
def test_poland_shows_beside_warsaw_in_the_middle_and_fades(gemma):
    """Section 7 of docs/design.md: Warsaw first at block 12, Poland right behind."""
    record = pc.logit_lens(gemma, prompt="The capital of Poland is the city of", watch=[" Warsaw", " Poland"])
    first = next(layer for layer in record.result.layers if layer.watch[" Warsaw"].rank == 0)
    assert record.result.prediction == " Warsaw"
    assert first.layer == 12
    assert first.watch[" Poland"].rank == 1
    assert record.result.layers[-1].watch[" Poland"].rank > 10
    assert record.verdict.outcome == "supported"


@pytest.mark.weights
def test_a_token_the_text_does_not_call_for_is_not_supported(gemma):
    record = pc.logit_lens(gemma, prompt="The capital of Poland is the city of", watch=[" trombone"])
    assert record.verdict.outcome == "not supported"
