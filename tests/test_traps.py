"""The dozen ways in which interpretability libraries have been silently wrong, tried on every family they apply to.

Float32 sums on tiny models agree to 1e-5; anything a trap would do is larger by orders of magnitude.
"""

import copy

import pytest
import torch
from oracle import Change, capture, find, greedy, logits, parts_of
from tiny import CONFIGS, direction, ids, supports, tiny, tiny_model, wrap

from patchclamp.errors import EditError, SiteError
from patchclamp.forward import Edit, Readout

V = direction(32)
PROMPT = ids(7)
every = pytest.mark.parametrize("name", CONFIGS)
CLOSE = {"rtol": 0, "atol": 1e-5}


@every
def test_unfired_hook(name, monkeypatch):
    """A hook on a module that the pass does not run must raise, not return unedited numbers."""
    model = tiny_model(name)
    tap = model.anatomy.tap("mlp", 1)
    idle = copy.copy(tap.module)
    object.__setattr__(idle, "_forward_hooks", type(tap.module._forward_hooks)())
    monkeypatch.setitem(model.anatomy._taps, ("mlp", 1), type(tap)(idle, "out"))
    for mode in ("single", "batch", "fast"):
        with pytest.raises(EditError, match=r"zero at mlp.1@last did not fire in row 0"):
            model.run(PROMPT, [Edit.zero("mlp.1@last")], mode=mode)


@every
def test_alias_that_discards_edits(name):
    """resid.0 and resid_pre.1 are one value: an edit through either name reaches the logits, and both names show it."""
    model = tiny_model(name)
    want = logits(model.hf, PROMPT, [Change("resid", 0, lambda x: x + V, [3])])
    for site in ("resid.0@3", "resid_pre.1@3"):
        got, seen = model.run(PROMPT, [Edit.add(site, V, 1.0, "raw")], ["logits", "resid_pre.1@3"])
        torch.testing.assert_close(got, want, **CLOSE)
        torch.testing.assert_close(seen, capture(model.hf, PROMPT, "resid", 0)[3] + V, **CLOSE)


@pytest.mark.parametrize("name", [n for n in CONFIGS if supports(n, "resid_mid")])
def test_alias_between_attention_and_mlp(name):
    """The stream between attention and MLP goes two ways, into the MLP and past it: an edit must take both."""
    model = tiny_model(name)
    want = logits(model.hf, PROMPT, [Change("resid_mid", 1, lambda x: x + V, [3])])
    got = model.run(PROMPT, [Edit.add("resid_mid.1@3", V, 1.0, "raw")], "logits")
    torch.testing.assert_close(got, want, **CLOSE)


@every
def test_several_position_capture_shape(name):
    """A position keeps its place: [B,T,…] for several tokens and one-token slices, [B,…] where one is meant."""
    model = tiny_model(name)
    whole = model.capture([PROMPT], ["resid.1"])["resid.1"]
    for positions, index in (
        ("1:4", slice(1, 4)),
        ("2:3", slice(2, 3)),
        ("::3", slice(None, None, 3)),
        ("2", 2),
        ("last", -1),
    ):
        got = model.capture([PROMPT], [f"resid.1@{positions}"])[f"resid.1@{positions}"]
        assert torch.equal(got, whole[:, index])
    heads = model.capture([PROMPT], ["head.1@1:4", "head.1.2@1:4"])
    assert heads["head.1@1:4"].shape == (1, 3, model.n_heads, model.d_head)
    assert torch.equal(heads["head.1.2@1:4"], heads["head.1@1:4"][:, :, 2])


@every
def test_attention_output_that_includes_the_residual(name):
    """`attn` is only what attention adds: with the output projection at zero, nothing (Bloom's and Falcon's code adds
    the residual inside the module)."""
    hf = copy.deepcopy(tiny(name))
    block = find(hf, parts_of(hf).blocks)[1]
    out_proj = find(block, parts_of(hf).out_proj)
    with torch.no_grad():
        for parameter in out_proj.parameters():
            parameter.zero_()
    acts = wrap(hf, name).capture([PROMPT], ["attn.1", "mlp.1", "resid_pre.1", "resid.1"])
    assert not acts["attn.1"].any()
    torch.testing.assert_close(acts["resid_pre.1"] + acts["mlp.1"], acts["resid.1"], rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("name", [n for n in CONFIGS if supports(n, "gate")])
def test_gate_taken_for_neuron(name):
    """A gated MLP's neuron is gate times up projection: what the down projection really reads."""
    model = tiny_model(name)
    acts = model.capture([PROMPT], ["gate.1", "neuron.1"])
    mlp = find(model.hf, parts_of(model.hf).blocks)[1].mlp
    up = []
    module = getattr(mlp, "up_proj", None) or mlp.gate_up_proj
    handle = module.register_forward_hook(lambda *a: up.append(a[2]))
    with torch.no_grad():
        model.hf(torch.tensor([PROMPT]))
    handle.remove()
    width = acts["neuron.1"].shape[-1]
    torch.testing.assert_close(acts["gate.1"] * up[0][..., -width:], acts["neuron.1"], **CLOSE)
    assert (acts["gate.1"] - acts["neuron.1"]).abs().max() > 0.01


@every
def test_softcap_ignored(name):
    """Softcap, logit scale and divisor are in every readout, also in those that unembed two tokens only."""
    model = tiny_model(name)
    want = logits(model.hf, PROMPT)[-1]
    all_of, some, difference = model.run(
        PROMPT, read=[Readout.logits(), Readout.logit(5, 50), Readout.logit_difference(5, 50)]
    )
    torch.testing.assert_close(all_of, want, **CLOSE)
    torch.testing.assert_close(some, want[[5, 50]], **CLOSE)
    torch.testing.assert_close(difference, want[5] - want[50], **CLOSE)


@every
def test_padding_shift(name):
    """A short prompt beside long ones keeps its positions, its edits' positions and its numbers."""
    model = tiny_model(name)
    edits = [Edit.add("resid.0@2", V, 1.0, "raw"), Edit.zero("attn.1@-2")]
    reads = [Readout.logits("2"), Readout.logits("last"), "resid.1@2"]
    alone = model.run(ids(4), edits, reads, "single")
    together = model.run([ids(12, 1), ids(4), ids(9, 2)], edits, reads)[1]
    for one, other in zip(alone, together, strict=True):
        torch.testing.assert_close(one, other, **CLOSE)


def test_bos_doubled():
    """A text that already spells the BOS gets no second from the tokenizer, in runs and in generation alike."""
    from tokenizers.processors import TemplateProcessing

    model = copy.copy(tiny_model("llama"))
    model.tokenizer = copy.deepcopy(model.tokenizer)
    model.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    assert model.encode("<s> w1 w2").ids == model.encode("w1 w2").ids == (1, 5, 6)
    assert torch.equal(model.run("<s> w1 w2"), model.run("w1 w2"))


@every
def test_kv_cache_steering_no_op(name, monkeypatch):
    """A steering vector at position 0 of each cached call would touch the prompt only: the answer must be steered."""
    model = tiny_model(name)
    monkeypatch.setattr(model.hf.generation_config, "eos_token_id", None)
    strength = 30.0  # large beside every family's stream, so that some token changes
    edit = Edit.add("resid.1@response", V, strength, "raw")
    want = greedy(
        model.hf,
        PROMPT,
        5,
        lambda start, total: (
            [Change("resid", 1, lambda x: x + strength * V, range(start, total))] if total > start else []
        ),
    )
    got = model.generate(PROMPT, [edit], 5).tokens
    assert got == tuple(want)
    assert got != model.generate(PROMPT, max_new_tokens=5).tokens


def tied(name):
    hf = tiny(name)
    return hf.get_input_embeddings().weight is hf.get_output_embeddings().weight


@every
def test_tied_embeddings(name):
    """Editing the embeddings of a run leaves the unembedding alone, tied or not; so does reading them."""
    model = tiny_model(name)
    before = model.anatomy.unembedding.weight.clone()
    want = logits(model.hf, PROMPT, [Change("embed", 0, lambda x: x + V, [2])])
    torch.testing.assert_close(model.run(PROMPT, [Edit.add("embed@2", V, 1.0, "raw")], "logits"), want, **CLOSE)
    model.capture([PROMPT], ["embed"])["embed"].zero_()
    assert torch.equal(model.anatomy.unembedding.weight, before)
    assert torch.equal(model.run(PROMPT, read="logits", mode="single"), logits(model.hf, PROMPT))


def test_both_tied_and_untied_models_are_among_these():
    """Otherwise the test above would cover half of its claim."""
    assert {tied(name) for name in CONFIGS} == {True, False}


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "cohere"])
def test_bf16_rank_ties(name):
    """bfloat16 logits tie often: ranks stay a permutation, the first choice has rank 0, ties go by token id."""
    hf = copy.deepcopy(tiny(name)).to(torch.bfloat16)
    with torch.no_grad():
        hf.get_output_embeddings().weight[60:70] = hf.get_output_embeddings().weight[50]
        if getattr(hf.get_output_embeddings(), "bias", None) is not None:
            hf.get_output_embeddings().bias[60:70] = hf.get_output_embeddings().bias[50]
    model = wrap(hf, name)
    ranks, values, top = model.run(PROMPT, read=[Readout.rank(*range(101)), Readout.logits(), Readout.top(101)])
    assert len(values.unique()) < 101 - 9
    assert sorted(ranks.tolist()) == list(range(101))
    order = sorted(range(101), key=lambda t: (-float(values[t]), t))
    assert [int(ranks[t]) for t in order] == list(range(101))
    assert [t.id for t in top] == order
    assert [t.id for t in model.run(PROMPT, read=Readout.top(5))] == order[:5]


@every
def test_off_by_one_layer(name):
    """resid.L is what block L puts out: zeroing all that block L adds makes it resid_pre.L and leaves earlier ones."""
    model = tiny_model(name)
    for layer in range(model.n_layers):
        edits = [Edit.zero(f"attn.{layer}"), Edit.zero(f"mlp.{layer}")]
        pre, post = model.run(PROMPT, edits, [f"resid_pre.{layer}", f"resid.{layer}"])
        assert torch.equal(pre, capture(model.hf, PROMPT, "resid_pre", layer))
        torch.testing.assert_close(post, pre, **CLOSE)
    last = model.n_layers - 1
    with pytest.raises(
        SiteError, match=rf"has {last + 1} blocks \(0 to {last}\); resid.{last + 1} names block {last + 1}"
    ):
        model.capture([PROMPT], [f"resid.{last + 1}"])
