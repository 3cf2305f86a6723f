"""Jacobians of the stream at a prompt's end: against autograd by brute force, in every family."""

import pytest
import torch
from tiny import CONFIGS, ids, tiny_model
from transformers import AttentionInterface

from patchclamp.errors import InputError
from patchclamp.forward import jacobian, suffix
from patchclamp.forward.jacobian import jacobians
from patchclamp.forward.streams import streams


def brute_force(model, prompt, layer, position=-1):
    """∂h_final(end) / ∂h_layer(position), by autograd through the whole unmodified model."""
    blocks = model.anatomy.blocks
    seen = {}

    def rest(h_D):
        def put(stream):
            changed = stream.clone()
            changed[0, position] = h_D
            return changed

        def before(_, args, kwargs):
            if args:
                return (put(args[0]), *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": put(kwargs["hidden_states"])}

        def after(_, args, output):
            return (put(output[0]), *output[1:]) if isinstance(output, tuple) else put(output)

        def keep(_, args, output):
            seen["final"] = output[0] if isinstance(output, tuple) else output

        first = blocks[0].register_forward_pre_hook(before, with_kwargs=True) if layer < 0 else \
            blocks[layer].register_forward_hook(after)
        last = blocks[-1].register_forward_hook(keep)
        try:
            model.hf(torch.tensor([prompt]), use_cache=False)
        finally:
            first.remove()
            last.remove()
        return seen["final"][0, -1]

    return torch.autograd.functional.jacobian(rest, streams(model, [prompt], str(position % len(prompt)))[0][layer + 1])


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("position", [-1, 7, 0])
def test_the_jacobians_are_those_of_brute_force(name, position):
    """Twelve tokens, three times the sliding window; BLOOM runs without a key/value prefix, and some families compute
    attention in their own way. float64, in which transformers still computes norms and attention weights in float32:
    hence 1e-4 of the largest entry."""
    model = tiny_model(name, None, True)
    prompt = ids(12)
    found_LDD = jacobians(model, prompt, position)
    for layer in range(-1, model.n_layers - 1):
        expected_DD = brute_force(model, prompt, layer, position)
        error = (found_LDD[layer + 1] - expected_DD).abs().max()
        assert error <= 1e-4 * expected_DD.abs().max(), (layer, error)


@pytest.mark.parametrize("name", ["llama", "gemma2", "gemma3", "gpt2", "phi"])
def test_keys_that_stand_still_are_used(name, monkeypatch):
    """The streams that are differentiated are those of the run on them."""
    runs, used = {}, []
    run, rows = jacobian._run, jacobian._rows

    def kept(model, layout, prefix, stands=False):
        runs[stands] = run(model, layout, prefix, stands)
        return runs[stands]

    monkeypatch.setattr(jacobian, "_run", kept)
    monkeypatch.setattr(jacobian, "_rows", lambda final, early, *rest: used.extend(early) or rows(final, early, *rest))
    jacobians(tiny_model(name), ids(12), 7)
    assert used[0] is runs[True][0] is not runs[False][0]


def broken(*args, **more):
    raise TypeError


@pytest.mark.parametrize("other", [lambda *args, **more: (suffix._attend(*args, **more)[0] * 1.01, None), broken])
def test_an_attention_that_gives_other_numbers_is_not_used(monkeypatch, other):
    """Its output at the end of the prompt gives it away."""
    model = tiny_model("llama")
    exact_LDD = jacobians(model, ids(12), 7)
    monkeypatch.setitem(AttentionInterface._global_mapping, suffix.NAME, other)
    torch.testing.assert_close(jacobians(model, ids(12), 7), exact_LDD, rtol=1e-4, atol=1e-5)


def test_the_attention_is_the_models_own_again_afterwards():
    model = tiny_model("llama")
    before = model.anatomy.config._attn_implementation
    jacobians(model, ids(12), 7)
    assert model.anatomy.config._attn_implementation == before != suffix.NAME


@pytest.mark.parametrize("name", ["llama", "bloom"])
def test_some_layers_alone_are_the_same(name):
    model = tiny_model(name)
    whole_LDD = jacobians(model, ids(9), 4)
    torch.testing.assert_close(jacobians(model, ids(9), 4, [1, -1]), whole_LDD[[2, 0]])
    with pytest.raises(InputError, match="layers -1 to 1 before the last block"):
        jacobians(model, ids(9), 4, [2])


def test_rows_in_portions_are_the_same(monkeypatch):
    model = tiny_model("gemma3")
    whole_LDD = jacobians(model, ids(9), 4)
    monkeypatch.setattr(jacobian, "ROW_TOKENS", 15)
    torch.testing.assert_close(jacobians(model, ids(9), 4), whole_LDD, rtol=1e-5, atol=1e-6)


def test_a_position_outside_the_prompt_is_refused():
    with pytest.raises(InputError, match=r"position 9: the prompt has 9 tokens"):
        jacobians(tiny_model("llama"), ids(9), 9)


def test_the_jacobian_of_a_prompt_of_one_token():
    model = tiny_model("llama")
    torch.testing.assert_close(jacobians(model, (7,))[2], brute_force(model, (7,), 1), rtol=1e-3, atol=1e-4)
