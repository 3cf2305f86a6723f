"""Shortcuts on architectures that no table names: measured on load, and left out where they are not exact."""

import pytest
import torch
import transformers as tf
from tiny import CONFIGS, GPT, ids, tiny, wrap

import patchclamp as pc
from patchclamp.errors import UnsupportedModel
from patchclamp.forward import execute, prove
from patchclamp.forward.prove import prove_shortcuts
from patchclamp.model.check import resolve


class RenamedLlama(tf.LlamaForCausalLM):
    """An architecture whose name no table knows, and whose shortcuts are Llama's."""


def anatomy_of(hf):
    return resolve(hf.eval())[0]


def sweep(n):
    """Rows that join, on a prompt long enough for a cached prefix."""
    edits = [pc.Edit.scale(f"mlp.{layer}@{p}", 2.0) for layer in range(3) for p in range(n - 3, n)]
    return pc.Plan.of([(ids(n), [edit], ["logits@last"]) for edit in edits])


def test_an_architecture_whose_masks_are_made_once_for_all_rows_runs_without_joining():
    """GPTBigCode has GPT-2's shape, and a mask for exactly the rows that it began with."""
    model = wrap(tf.AutoModelForCausalLM.from_config(tf.GPTBigCodeConfig(**GPT)).eval(), "gpt_bigcode")
    prove_shortcuts(model.anatomy)
    assert model.family == "gpt2"
    assert not model.anatomy.family.rows_may_join
    for fast, alone in zip(model.execute(sweep(20)), model.execute(sweep(20), "single"), strict=True):
        torch.testing.assert_close(fast[0], alone[0], rtol=0, atol=1e-5)


def test_an_architecture_with_exact_shortcuts_keeps_them():
    anatomy = anatomy_of(RenamedLlama(CONFIGS["llama"]()))
    prove_shortcuts(anatomy)
    assert anatomy.family.rows_may_join


def test_a_wrong_prefix_is_noticed(monkeypatch):
    """Keys of the cache that are not those of the prompt."""
    anatomy = anatomy_of(RenamedLlama(CONFIGS["llama"]()))
    of = execute._Prefixes.of

    def wrong(self, layout):
        prefix = of(self, layout)
        return prefix and [(keys * 2, values) for keys, values in prefix]

    monkeypatch.setattr(execute._Prefixes, "of", wrong)
    prove_shortcuts(anatomy)
    assert not anatomy.family.rows_may_join


def test_an_architecture_that_padding_changes_is_refused():
    """Here the angles depend on how many rows there are."""
    hf = RenamedLlama(CONFIGS["llama"]())
    rotary = hf.model.rotary_emb
    forward = rotary.forward
    rotary.forward = lambda x, position_ids: forward(x, position_ids * len(position_ids))
    with torch.no_grad():
        for parameter in hf.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    with pytest.raises(UnsupportedModel, match="gives other numbers to a prompt that is padded"):
        prove_shortcuts(anatomy_of(hf))


def test_listed_families_are_proved_by_tests_not_on_every_load(monkeypatch):
    monkeypatch.setattr(prove, "run_layout", lambda *_: pytest.fail("ran"))
    prove_shortcuts(resolve(tiny("llama"))[0])
