"""Frozen norms: against the closed forms, against every family's own logits, and what is refused."""

import pytest
import torch
from tiny import CONFIGS, direction, tiny_model
from torch import nn

from patchclamp.errors import UnsupportedModel
from patchclamp.forward.frozen import FrozenUnembedding, exact, freeze

PROMPT = tuple(range(10, 18))
ROUNDING = 2e-6
"""Logits of size 4 in float32: some ten units in the last place."""


class Rms(nn.Module):
    """Gemma's RMS norm: the weight is an offset from 1."""

    def __init__(self, weight_D):
        super().__init__()
        self.weight_D = weight_D

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * (1 + self.weight_D)


def layer_norm(width):
    norm = nn.LayerNorm(width)
    with torch.no_grad():
        norm.weight.copy_(direction(width, 1))
        norm.bias.copy_(direction(width, 2))
    return norm


def test_an_rms_norms_gain_is_its_weight_over_the_root_mean_square():
    x_D, weight_D = direction(32), direction(32, 1) - 0.5
    frozen = freeze(Rms(weight_D), x_D)
    assert not frozen.centred
    assert torch.allclose(frozen.gain, exact((1 + weight_D) / x_D.pow(2).mean().sqrt()), atol=ROUNDING)
    assert torch.equal(frozen.bias, torch.zeros(32, dtype=torch.float64))


@pytest.mark.parametrize("width", [32, 33])
def test_a_layer_norms_gain_is_its_weight_over_the_standard_deviation(width):
    x_D, norm = direction(width) + 3, layer_norm(width)
    frozen = freeze(norm, x_D)
    assert frozen.centred
    assert torch.allclose(frozen.gain, exact(norm.weight / x_D.std(correction=0)), atol=1e-5)  # ε 1e-5 of variance 0.5
    assert torch.equal(frozen.bias, exact(norm.bias))


def test_the_statistic_stays_that_of_the_actual_run():
    frozen = freeze(layer_norm(32), direction(32))
    other_D = exact(direction(32, 5))
    assert torch.allclose(frozen.linear(7 * other_D), 7 * frozen.linear(other_D))


@pytest.mark.parametrize("norm", [layer_norm(32), Rms(direction(32))])
def test_pulling_back_is_the_transpose(norm):
    frozen, x_D, read_D = freeze(norm, direction(32)), exact(direction(32, 3)), exact(direction(32, 4))
    assert float(x_D @ frozen.pull_back(read_D)) == pytest.approx(float(frozen.linear(x_D) @ read_D), rel=1e-12)


def test_half_precision_is_frozen_within_its_own_rounding():
    x_D = direction(32).bfloat16()
    norm = layer_norm(32).bfloat16()
    with torch.no_grad():
        y_D = exact(norm(x_D))
    assert float((freeze(norm, x_D)(exact(x_D)) - y_D).abs().max()) < 0.05  # bfloat16 has 8 bits: 2.0 ± 0.008


def test_a_norm_of_another_kind_is_refused():
    with pytest.raises(UnsupportedModel, match=r"Tanh is neither.*neurons ablate"):
        freeze(nn.Tanh(), direction(32))


@pytest.mark.parametrize("name", CONFIGS)
def test_every_token_is_read_off_the_last_stream_as_the_model_does(name):
    """Gain, centring, bias, final projection, scale and divisor; then the softcap."""
    model = tiny_model(name)
    resid_D = model.capture(PROMPT, [f"resid.{model.n_layers - 1}@last"])[f"resid.{model.n_layers - 1}@last"][0]
    unembedding = FrozenUnembedding(model.anatomy, resid_D)
    read = unembedding.read(list(range(101)))
    sums_V = read.directions @ exact(resid_D) + read.norm_bias + read.token_bias
    with torch.no_grad():
        logits_V = exact(model.hf(torch.tensor([PROMPT])).logits[0, -1])
    assert float((sums_V - read.logits).abs().max()) < ROUNDING
    assert float((unembedding.capped(sums_V) - logits_V).abs().max()) < ROUNDING


@pytest.mark.parametrize("name", ["llama", "cohere", "opt-projected", "granite"])
def test_what_a_vector_writes_is_what_each_tokens_direction_reads(name):
    model = tiny_model(name)
    unembedding = FrozenUnembedding(model.anatomy, direction(32))
    written_V = unembedding.written(exact(direction(32, 2))[None])[0]
    read_V = unembedding.read(list(range(101))).directions @ exact(direction(32, 2))
    assert float((exact(written_V) - read_V).abs().max()) < 1e-5 * float(read_V.abs().max())
