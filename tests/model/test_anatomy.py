"""Taps: how a point's value lies in the tensor that passes, and how a changed one is put back."""

import pytest
import torch
from tiny import CONFIGS, SPREAD, ids, supports, tiny, tiny_model
from torch import nn

from patchclamp.errors import UnsupportedModel
from patchclamp.model.anatomy import Anatomy, part, weight_in_out
from patchclamp.model.families import BY_ARCHITECTURE, Family
from patchclamp.model.tap import Tap

LAYOUTS = {
    "flat": (Tap(nn.Identity(), "out", units=2, start=4, _width=3), torch.arange(2.0 * 5 * 12).view(2, 5, 12)),
    "bthe": (Tap(nn.Identity(), "out", units=2, layout="bthe"), torch.arange(60.0).view(2, 5, 2, 3)),
    "bhte": (Tap(nn.Identity(), "out", units=2, layout="bhte"), torch.arange(60.0).view(2, 2, 5, 3)),
    "indexed": (
        Tap(nn.Identity(), "out", units=2, index=torch.tensor([[0, 1, 2], [6, 7, 8]])),
        torch.arange(90.0).view(2, 5, 9),
    ),
    "two-dimensional": (Tap(nn.Identity(), "in", units=2), torch.arange(60.0).view(10, 6)),
    "scaled": (Tap(nn.Identity(), "out", scale=0.5), torch.arange(60.0).view(2, 5, 6)),
}
layouts = pytest.mark.parametrize(("tap", "raw"), LAYOUTS.values(), ids=LAYOUTS)


@layouts
def test_writing_nothing_changes_nothing(tap, raw):
    """A halved and doubled float is the same float."""
    assert torch.equal(tap.write(raw, 5, lambda value: None), raw)


@layouts
def test_what_is_written_is_read(tap, raw):
    """At its own place, and only there."""

    def change(value):
        value[1, 3] = -1

    before = tap.read(raw, 5).clone()
    after = tap.read(tap.write(raw, 5, change), 5)
    assert (after[1, 3] == -1).all()
    before[1, 3] = -1
    assert torch.equal(after, before)


@layouts
def test_the_tensor_that_passed_is_left_as_it_was(tap, raw):
    """Others may hold it: an edit goes into a copy."""
    kept = raw.clone()
    tap.write(raw, 5, lambda value: value.zero_())
    assert torch.equal(raw, kept)


def test_in_place_tap_writes_into_the_stream_itself():
    """Between attention and MLP the block keeps its own reference, which a copy would not reach."""
    raw = torch.ones(1, 2, 3)
    assert Tap(nn.Identity(), "in", in_place=True).write(raw, 2, lambda value: value.zero_()) is raw
    assert not raw.any()


@pytest.mark.parametrize("name", SPREAD)
def test_sizes_are_the_weights_sizes(name):
    """Heads, widths, neurons: told by the configuration, true of the matrices."""
    anatomy = tiny_model(name).anatomy
    w_out = weight_in_out(part(anatomy.blocks[0], anatomy.family.out_proj))
    assert w_out.shape == (anatomy.n_heads * anatomy.d_head, anatomy.d_model)
    assert anatomy.n_heads % anatomy.n_kv_heads == 0
    assert anatomy.n_vocab == 101
    if supports(name, "neuron"):
        assert weight_in_out(part(anatomy.blocks[0], anatomy.family.down_proj)).shape == (
            anatomy.n_neurons(0),
            anatomy.d_model,
        )


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_of_some_tokens_are_entries_of_all_logits(name):
    """Bias, scale, divisor and softcap included; shared tokens [N] and tokens of each state's own [..., N]."""
    anatomy = tiny_model(name).anatomy
    generator = torch.Generator().manual_seed(0)
    width = anatomy.unembedding.weight.shape[1]
    hidden = torch.randn(4, width, generator=generator)
    full = anatomy.head(hidden)
    shared, own = torch.tensor([3, 50]), torch.tensor([[3, 50], [1, 2], [7, 7], [100, 0]])
    torch.testing.assert_close(anatomy.head(hidden, shared), full[:, shared], rtol=0, atol=1e-5)
    torch.testing.assert_close(anatomy.head(hidden, own), full.gather(1, own), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_unembedding_the_last_stream_gives_the_models_logits(name):
    """Final norm, projection, unembedding, scale, softcap."""
    model = tiny_model(name)
    acts = model.capture([ids(6)], [f"resid.{model.n_layers - 1}", "logits"])
    with torch.no_grad():
        logits = model.anatomy.unembed(acts[f"resid.{model.n_layers - 1}"])
    torch.testing.assert_close(logits, acts["logits"], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ({"blocks": "model.stack"}, "no blocks at 'model.stack'"),
        ({"final_norm": "model.final"}, "has no 'model.final'"),
        ({"mlp": "feed_forward"}, "block 0 has no 'feed_forward'"),
    ],
)
def test_a_table_that_does_not_fit_names_the_missing_part(field, message):
    """So that a table for a new architecture can be corrected from the message."""
    with pytest.raises(UnsupportedModel, match=message):
        Anatomy(tiny("llama"), Family("wrong", (), **field))


def test_no_architecture_is_in_two_tables():
    """The later would silently win."""
    from patchclamp.model.families import FAMILIES

    assert len(BY_ARCHITECTURE) == sum(len(f.architectures) for f in FAMILIES)
