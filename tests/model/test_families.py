"""Every family is proved on a tiny random model of its real configuration class; what does not fit is refused."""

import copy
import json
from dataclasses import replace

import pytest
import torch
import transformers as tf
from oracle import capture, find, hooked, parts_of
from tiny import (
    CONFIGS,
    EAGER_ONLY,
    GQA,
    OWN_ATTENTION,
    SPREAD,
    ids,
    supports,
    tiny,
    tiny_model,
    tiny_tokenizer,
    wrap,
)
from torch import nn
from transformers.models.gpt_neo import modeling_gpt_neo
from transformers.models.gptj import modeling_gptj

from patchclamp.errors import EditError, SiteError, UnsupportedModel
from patchclamp.forward import Edit, Site
from patchclamp.model.anatomy import Anatomy
from patchclamp.model.check import prove, resolve
from patchclamp.model.families import BY_ARCHITECTURE, FAMILIES
from patchclamp.model.identity import compare_rows
from patchclamp.model.load import load_weights

REQUIRED = (
    "gpt2",
    "gpt_neo",
    "gptj",
    "gpt_neox",
    "opt",
    "bloom",
    "falcon",
    "mpt",
    "llama",
    "mistral",
    "mixtral",
    "qwen2",
    "qwen2_moe",
    "qwen3",
    "gemma",
    "gemma2",
    "gemma3",
    "phi",
    "phi3",
    "stablelm",
    "olmo2",
    "granite",
    "cohere",
    "smollm3",
)
every = pytest.mark.parametrize("name", CONFIGS)


def perturbed(hf: tf.PreTrainedModel) -> tf.PreTrainedModel:
    """A model whose norms and biases are no longer ones and zeros."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in hf.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return hf.eval()


def test_every_required_family_has_a_tiny_model_that_uses_its_own_table():
    """An inspected look-alike would not count: the architecture's own name finds the table."""
    found = {BY_ARCHITECTURE[type(tiny(name)).__name__].name for name in CONFIGS}
    assert found == set(REQUIRED)
    assert {f.name for f in FAMILIES} == found | {"gemma3_multimodal"}


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@every
def test_identities_hold(name, attention):
    """Float32 sums of two or three terms: within four units in the last place (1.2e-7 each); sums of a few dozen
    products: errors near 4e-7 of the token's largest number, ten times that leaves room for other processors."""
    if attention == "sdpa" and name in EAGER_ONLY:
        pytest.skip("transformers has no sdpa for this family")
    _, identities = resolve(tiny(name, attention))
    wrong = [i for i in identities if not (i.ok and i.error <= 5e-6)]
    assert not wrong
    said = " ".join(i.name for i in identities)
    for wanted in ("attn + mlp == resid", "heads + output bias == attn", "== logits", "bit for bit"):
        assert wanted in said
    assert ("resid_mid" in said) == supports(name, "resid_mid")
    assert ("gate × up == neuron" in said) == (supports(name, "gate") or name == "qwen2_moe")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("name", SPREAD)
def test_identities_hold_in_every_number_type(name, dtype):
    """Their tolerance is the type's own: units in the last place of what is added."""
    hf = copy.deepcopy(tiny(name)).to(dtype)
    hf.config._experts_implementation = "eager"  # torch's grouped matrix product knows no float64
    _, identities = resolve(hf)
    added = identities[0]
    assert added.name == "resid_pre + attn + mlp == resid"
    assert added.tolerance == 4 * torch.finfo(dtype).eps


@every
def test_points_are_those_of_the_anatomy(name):
    """Parallel blocks have no resid_mid, plain MLPs no gate, fused experts no neurons; all have the rest."""
    points = tiny_model(name).anatomy.points
    for point in (
        "embed",
        "resid_pre",
        "resid",
        "attn",
        "mlp",
        "head",
        "head_out",
        "q",
        "k",
        "v",
        "pattern",
        "logits",
    ):
        assert point in points
    for point in ("resid_mid", "gate"):
        some = name == "qwen2_moe" and point == "gate"  # its block 1 is dense
        assert (point in points) == (supports(name, point) or some)


@pytest.mark.parametrize("point", ["resid_pre", "resid_mid", "resid", "attn", "mlp", "head", "neuron"])
@every
def test_value_is_where_the_oracle_finds_it(name, point):
    """Bit for bit: both only look. A stream between attention and MLP is a sum there, so equal within one rounding."""
    if not supports(name, point):
        pytest.skip("this anatomy has no such point")
    model, prompt = tiny_model(name), ids(9)
    for layer in range(model.n_layers):
        ours = model.capture([prompt], [f"{point}.{layer}"])[f"{point}.{layer}"][0].reshape(9, -1)
        theirs = capture(model.hf, prompt, point, layer)
        if point == "resid_mid":
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
        else:
            assert torch.equal(ours, theirs)


# Queries, keys, values


def received_by_attention(hf, name, layer, tokens, monkeypatch):
    """Queries, keys and values as the attention computation receives them, [heads, width] for each one-token prompt.

    A one-token prompt stands at position 0, where rotary embeddings turn by nothing.
    """
    got = {}

    def keep(q, k, v):
        got.update(q=q[:, :, 0].clone(), k=k[:, :, 0].clone(), v=v[:, :, 0].clone())

    attention = find(find(hf, parts_of(hf).blocks)[layer], parts_of(hf).attention)
    if name in ("gpt_neo", "gptj"):
        cls = modeling_gpt_neo.GPTNeoSelfAttention if name == "gpt_neo" else modeling_gptj.GPTJAttention
        real = cls._attn

        def spy(self, query, key, value, *args, **kwargs):
            if self in (attention, getattr(attention, "attention", None)):
                keep(query, key, value)
            return real(self, query, key, value, *args, **kwargs)

        monkeypatch.setattr(cls, "_attn", spy)
    elif name.startswith("falcon"):
        real = attention._split_heads
        monkeypatch.setattr(
            attention, "_split_heads", lambda x: keep(*(t.transpose(1, 2) for t in real(x))) or real(x)
        )
    elif name == "bloom":
        real = attention._reshape
        monkeypatch.setattr(attention, "_reshape", lambda x: keep(*real(x)) or real(x))
    elif name == "mpt":
        heads = hf.config.n_heads
        with hooked(
            attention.Wqkv,
            "out",
            lambda x: keep(*(t.unflatten(2, (heads, -1)).transpose(1, 2) for t in x.chunk(3, 2))),
        ):
            hf(tokens)
        return got
    else:
        from transformers import AttentionInterface

        real = AttentionInterface()["sdpa"]

        def spy(module, query, key, value, *args, **kwargs):
            if module is attention:
                keep(query / attention.scaling if name.startswith("opt") else query, key, value)
            kwargs.pop("softcap", None)  # sdpa knows none, and one token has but one weight
            return real(module, query, key, value, *args, **kwargs)

        AttentionInterface.register("spy", spy)
        monkeypatch.setattr(hf.config, "_attn_implementation_internal", "spy")
    with torch.no_grad():
        hf(tokens)
    return got


@every
def test_q_k_v_are_what_attention_receives_before_rotary(name, monkeypatch):
    """After any q/k-norm, split into the true heads, also for fused and interleaved projections. Rotary at position 0
    multiplies by cos 0 = 1 exactly. OPT alone scales queries on the way, which belongs to the scores. Within
    one rounding of batched products."""
    model = tiny_model(name)
    prompts = ids(5)
    for layer in range(model.n_layers):
        sites = [f"{p}.{layer}@0" for p in "qkv"]
        acts = model.capture([(i,) for i in prompts], sites)
        got = received_by_attention(model.hf, name, layer, torch.tensor(prompts)[:, None], monkeypatch)
        monkeypatch.undo()
        for point, site in zip("qkv", sites, strict=True):
            received = got[point]
            if name == "falcon-new" and point in "kv":  # Falcon hands every query head its own copy
                received = received[:, :: model.n_heads // model.n_kv_heads]
            torch.testing.assert_close(acts[site], received, rtol=0, atol=1e-5)


@every
def test_pattern_times_values_is_the_heads_output(name):
    """The attention computation itself, redone from the captured pattern and values: pattern, v and head agree."""
    model = tiny_model(name)
    prompt = ids(9)  # longer than the sliding windows
    for layer in range(model.n_layers):
        acts = model.capture([prompt], [f"pattern.{layer}", f"v.{layer}", f"head.{layer}"])
        pattern_HTS, v_KSE, z_HTE = (acts[s][0] for s in acts)
        v_KSE, z_HTE = v_KSE.transpose(0, 1), z_HTE.transpose(0, 1)
        v_HSE = v_KSE.repeat_interleave(len(pattern_HTS) // len(v_KSE), 0)
        torch.testing.assert_close(pattern_HTS @ v_HSE, z_HTE, rtol=0, atol=1e-5)
        torch.testing.assert_close(pattern_HTS.sum(-1), torch.ones_like(pattern_HTS[..., 0]))


# What a model lacks is refused with the reason


@pytest.mark.parametrize("name", ["mixtral", "qwen2_moe"])
def test_neurons_of_fused_experts_are_refused(name):
    """No projection reads one expert's neurons, so there is no exact place for them."""
    with pytest.raises(SiteError, match=r"mixture of experts .* use mlp\.0"):
        tiny_model(name).capture([ids(4)], ["neuron.0.3"])


def test_the_dense_block_of_a_mixture_model_has_neurons():
    """Qwen2-MoE may mix dense blocks in; refusal is block by block."""
    assert tiny_model("qwen2_moe").capture([ids(4)], ["neuron.1"])["neuron.1"].shape == (1, 4, 48)


@pytest.mark.parametrize("name", [n for n in CONFIGS if not supports(n, "gate") and supports(n, "neuron")])
def test_gate_is_refused_where_the_mlp_has_none(name):
    """The activation of a plain MLP is the neuron itself."""
    with pytest.raises(SiteError, match=r"not gated; use neuron\.0"):
        tiny_model(name).capture([ids(4)], ["gate.0"])


@pytest.mark.parametrize("name", [n for n in CONFIGS if not supports(n, "resid_mid")])
def test_resid_mid_is_refused_in_parallel_blocks(name):
    """Attention and MLP read the same stream, so nothing lies between them."""
    with pytest.raises(SiteError, match=r"parallel .* resid_pre\.1"):
        tiny_model(name).capture([ids(4)], ["resid_mid.1"])


@pytest.mark.parametrize("name", OWN_ATTENTION)
def test_pattern_edits_are_refused_outside_the_attention_interface(name):
    """Such a pattern can be read; an edit would never reach the values."""
    with pytest.raises(EditError, match=r"can be read but not edited; edit head\.1"):
        tiny_model(name).run(ids(5), [Edit.block("pattern.1", keys="0")])


# Unknown architectures


class RenamedLlama(tf.LlamaForCausalLM):
    """An architecture whose name no table knows."""


class RenamedQwen3(tf.Qwen3ForCausalLM):
    """Unknown, of Llama's shape but for the norms on queries and keys."""


class RenamedOlmo2(tf.Olmo2ForCausalLM):
    """Unknown, with post-norms and flat query norms."""


@pytest.mark.parametrize(
    ("cls", "config"), [(RenamedLlama, "llama"), (RenamedQwen3, "qwen3"), (RenamedOlmo2, "olmo2")]
)
def test_unknown_architecture_is_resolved_by_inspection(cls, config):
    """The first table under which everything holds is used; its values are those of the known architecture."""
    hf = cls(CONFIGS[config]()).eval()
    hf.load_state_dict(tiny(config).state_dict())
    anatomy, identities = resolve(hf)
    assert all(i.ok for i in identities)
    assert anatomy.family.name == config


def test_unknown_query_norm_is_never_read_on_the_wrong_side():
    """No sum of parts shows a query norm: a table without it must not be chosen for a model that has one."""
    hf = perturbed(RenamedQwen3(CONFIGS["qwen3"]()))
    anatomy, _ = resolve(hf)
    assert anatomy.tap("q", 0).module is hf.model.layers[0].self_attn.q_norm


class TwiceBlock(nn.Module):
    """A block that adds the residual stream once too often."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        for name, child in block.named_children():
            setattr(self, name, child)
        self.inner = [block]
        self.attention_type = getattr(block, "attention_type", None)

    def forward(self, hidden_states, **kwargs):
        return self.inner[0](hidden_states, **kwargs) + hidden_states


def test_block_that_adds_the_residual_twice_is_refused_by_name():
    """The error names the identity, its error and the block."""
    hf = perturbed(tf.LlamaForCausalLM(CONFIGS["llama"]()))
    hf.model.layers[1] = TwiceBlock(hf.model.layers[1])
    with pytest.raises(UnsupportedModel, match=r"resid_pre \+ attn \+ mlp == resid is off by .* at block 1"):
        resolve(hf)


def add_noise(hf, layer, size):
    """Let a block add noise to the stream that neither attention nor MLP wrote, the same in every run."""
    block = hf.model.layers[layer]
    forward = block.forward

    def noisy(*args, **kwargs):
        out = forward(*args, **kwargs)
        generator = torch.Generator().manual_seed(0)
        return out + (torch.randn(out.shape, generator=generator) * size).to(out)

    block.forward = noisy
    return hf


@pytest.mark.weights
@pytest.mark.parametrize(("dtype", "size"), [("float32", 0.1), ("bfloat16", 5.0)])
def test_noise_far_below_the_largest_residual_is_refused(dtype, size):
    """SmolLM2's stream reaches 24,000 at the first token and has a root mean square of 10 elsewhere: an error must be
    judged where it is."""
    hf = load_weights("smollm2-135m-instruct", dtype=dtype).hf
    resolve(hf)
    with pytest.raises(UnsupportedModel, match=r"resid_pre \+ attn \+ mlp == resid is off by .* at block 20"):
        resolve(add_noise(hf, 20, size))


@pytest.mark.parametrize("size", [1e-5, 1e-3, 1.0])
def test_noise_of_any_size_is_refused(size):
    """The terms of the sum are near 1 here, so that rounding is near 1e-7."""
    hf = add_noise(copy.deepcopy(tiny("llama")), 1, size)
    with pytest.raises(UnsupportedModel, match=r"resid_pre \+ attn \+ mlp == resid is off by .* at block 1"):
        resolve(hf)


def test_a_huge_token_hides_no_error_at_the_others():
    right = torch.ones(1, 2, 4)
    right[0, 0] *= 1e5
    left = right.clone()
    left[0, 1, 2] += 0.01
    identity = compare_rows("sum", [(left, right, "block 0")])
    assert not identity.ok
    assert identity.error == pytest.approx(0.01, rel=1e-3)


def test_what_is_not_a_number_is_no_small_error():
    """Neither where it is met first nor last."""
    good, bad = torch.ones(1, 2, 4), torch.full((1, 2, 4), float("nan"))
    for pairs in ([(bad, good, "a"), (good, good, "b")], [(good, good, "b"), (bad, good, "a")]):
        identity = compare_rows("sum", pairs)
        assert not identity.ok
        assert identity.detail == "a"


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(
            lambda: tf.OPTConfig(
                vocab_size=101,
                hidden_size=32,
                num_hidden_layers=2,
                num_attention_heads=4,
                ffn_dim=48,
                word_embed_proj_dim=32,
                do_layer_norm_before=False,
            ),
            id="opt-post-norm",
        ),
        pytest.param(
            lambda: tf.BloomConfig(
                vocab_size=101, hidden_size=32, n_layer=2, n_head=4, apply_residual_connection_post_layernorm=True
            ),
            id="bloom-residual-after-norm",
        ),
    ],
)
def test_variant_whose_residual_passes_a_norm_is_refused(config):
    """In these the norm sits on the stream itself, so the parts do not add up to it."""
    hf = perturbed(tf.AutoModelForCausalLM.from_config(config()))
    with pytest.raises(UnsupportedModel, match=r"norm on the residual stream itself .* does not add up") as refused:
        resolve(hf)
    assert "add a table" not in str(refused.value)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        pytest.param(lambda: tf.Glm4Config(**GQA, head_dim=8), "resid_pre", id="glm4"),
        pytest.param(lambda: tf.Exaone4Config(**GQA), "q_norm is not in the table", id="exaone4"),
        pytest.param(lambda: tf.VaultGemmaConfig(**GQA, head_dim=16), "== logits", id="vaultgemma"),
        pytest.param(lambda: tf.DogeConfig(**GQA), "resid_pre", id="doge"),
        pytest.param(
            lambda: tf.BloomConfig(
                vocab_size=101, hidden_size=32, n_layer=2, n_head=4, pretraining_tp=2, slow_but_exact=True
            ),
            "attn.0 passes no module",
            id="bloom-sliced",
        ),
    ],
)
def test_architecture_that_no_table_fits_is_refused_with_what_failed(config, reason):
    """A table that meets a missing field or module is one that does not fit; the others are still tried."""
    hf = perturbed(tf.AutoModelForCausalLM.from_config(config()))
    with pytest.raises(UnsupportedModel, match=reason):
        resolve(hf)


def test_encoder_with_a_head_is_not_taken_for_a_causal_model():
    """BERT's decoder head shares nothing with the tables."""
    hf = tf.BertLMHeadModel(
        tf.BertConfig(
            vocab_size=101,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=48,
            is_decoder=True,
        )
    ).eval()
    with pytest.raises(UnsupportedModel, match="cannot be addressed safely"):
        resolve(hf)


@pytest.mark.parametrize("config", [tf.NemotronConfig, tf.ArceeConfig])
def test_gate_is_refused_where_its_product_is_not_the_neuron(config):
    """Of Llama's shape, but the activation's output is itself what the down projection reads."""
    anatomy, identities = resolve(perturbed(tf.AutoModelForCausalLM.from_config(config(**GQA))))
    assert anatomy.family.name == "llama"
    assert "gate × up == neuron" not in {i.name for i in identities}
    assert "gate" not in anatomy.points
    assert "neuron" in anatomy.points
    with pytest.raises(SiteError, match=r"gate\.1: .* is not gated as a llama block is; use neuron\.1"):
        anatomy.tap("gate", 1)


def test_the_gate_is_proved():
    """A table that names the wrong factor fails."""
    wrong = replace(BY_ARCHITECTURE["LlamaForCausalLM"], up_proj="mlp.gate_proj")
    failed = [i.name for i in prove(Anatomy(tiny("llama"), wrong)) if not i.ok]
    assert failed == ["gate × up == neuron"]


def test_neurons_without_a_known_projection_are_refused_with_that_reason():
    """StarCoder2 calls it otherwise, which does not make it a mixture of experts."""
    anatomy, _ = resolve(perturbed(tf.AutoModelForCausalLM.from_config(tf.Starcoder2Config(**GQA))))
    with pytest.raises(SiteError, match=r"block 1 has no 'mlp.down_proj' to read its neurons; use mlp\.1"):
        anatomy.tap("neuron", 1)


def test_pattern_with_an_attention_sink_is_read_but_not_edited():
    """GPT-OSS gives a part of the attention to no token: what is left after a block would be scaled up wrongly."""
    config = tf.GptOssConfig(**GQA, head_dim=16, num_local_experts=4, num_experts_per_tok=2)
    model = wrap(perturbed(tf.AutoModelForCausalLM.from_config(config)), "gpt-oss")
    weights = model.capture([ids(6)], ["pattern.1"])["pattern.1"]
    assert float(weights.sum(-1).max()) < 0.999
    with pytest.raises(EditError, match="can be read but not edited: the weights of block 0 do not sum to 1"):
        model.run(ids(6), [Edit.block("pattern.1", keys="1")])


@every
def test_pattern_has_no_fault_in_listed_families(name):
    """And the attention implementation is as it was."""
    hf = tiny(name)
    before = hf.config._attn_implementation
    assert resolve(hf)[0].pattern_fault is None
    assert hf.config._attn_implementation == before


# A language model inside another


def language_model_alone(hf):
    """Gemma 3 for text, with the weights of the one inside a model that also sees."""
    alone = tf.Gemma3ForCausalLM(hf.config.text_config).eval()
    alone.model.load_state_dict(hf.model.language_model.state_dict())
    alone.lm_head.load_state_dict(hf.lm_head.state_dict())
    alone.config.final_logit_softcapping = None  # the class around it applies none
    return alone


def test_the_language_model_inside_a_model_that_sees_is_the_language_model():
    """Same points, same numbers, padded and edited."""
    inside = tiny_model("gemma3-multimodal")
    alone = wrap(language_model_alone(inside.hf), "alone")
    assert inside.anatomy.points == alone.anatomy.points
    assert inside.family == "gemma3_multimodal"
    prompts = [ids(9), ids(5, 1)]
    for point in inside.anatomy.points:
        site = point if point in ("embed", "logits") else f"{point}.1"
        for ours, theirs in zip(inside.capture(prompts, [site]).rows(site), alone.capture(prompts, [site]).rows(site),
                                strict=True):
            assert torch.equal(ours, theirs)
    for edit in (Edit.zero("mlp.1@2"), Edit.block("pattern.2", keys="1"), Edit.scale("neuron.0.3", 5.0)):
        for mode in ("single", "fast"):
            got, want = (m.run(prompts, [edit], mode=mode) for m in (inside, alone))
            assert torch.equal(torch.stack(got), torch.stack(want))
    assert inside.generate(prompts[0], [Edit.zero("mlp.1")], 5) == alone.generate(prompts[0], [Edit.zero("mlp.1")], 5)


def test_a_folder_of_a_model_that_sees_is_read(tmp_path):
    """transformers' class for causal language modelling with Gemma 3's larger checkpoints."""
    tiny("gemma3-multimodal").save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["Gemma3ForConditionalGeneration"]
    assert resolve(load_weights(tmp_path).hf)[0].family.name == "gemma3_multimodal"


# Rotary embeddings that change


def test_longrope_has_two_sides():
    """Phi-3 turns by other angles in prompts beyond the original window."""
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4,
            "original_max_position_embeddings": 8}
    hf = tf.AutoModelForCausalLM.from_config(
        tf.Phi3Config(**GQA, original_max_position_embeddings=8, rope_parameters=rope)
    )
    anatomy, _ = resolve(hf.eval())
    assert [anatomy.rope_side(n) for n in (1, 8, 9, 100)] == [False, False, True, True]
    assert not tiny_model("phi3").anatomy.rope_side(128)


def test_clipped_queries_are_refused():
    """OLMo may clip after the projection, where no module shows the values; MPT too."""
    hf = perturbed(
        tf.OlmoForCausalLM(
            tf.OlmoConfig(
                vocab_size=101,
                hidden_size=32,
                num_hidden_layers=2,
                num_attention_heads=4,
                intermediate_size=48,
                clip_qkv=0.1,
            )
        )
    )
    anatomy, _ = resolve(hf)
    with pytest.raises(SiteError, match=r"clips queries, keys and values at ±0\.1"):
        anatomy.tap("q", 0)


def test_the_check_is_not_fooled_by_a_swapped_table():
    """A known architecture with a wrong table fails at the identity the table breaks."""
    hf = tiny("gemma2")
    wrong = replace(BY_ARCHITECTURE["Gemma2ForCausalLM"], logit_softcap=None)
    failed = [i.name for i in prove(Anatomy(hf, wrong)) if not i.ok]
    assert failed == ["unembed(resid.last) == logits"]


def test_site_points_are_all_known():
    """A table entry for a point that no site can name would be dead."""
    for name in CONFIGS:
        for point in tiny_model(name).anatomy.points:
            text = point if point in ("embed", "logits") else f"{point}.0"
            assert str(Site.parse(text)) == text
