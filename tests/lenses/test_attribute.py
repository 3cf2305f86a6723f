"""Direct logit attribution: every decomposition sums to the logit in every family; single terms by brute force."""

import copy

import pytest
import torch
import transformers as tf
from oracle import capture, find, multiplier, parts_of
from tiny import CONFIGS, GQA, tiny, tiny_model, wrap

from patchclamp.errors import PromptError, RunError, SiteError, SpecError, TokenError
from patchclamp.forward.frozen import FrozenUnembedding, exact
from patchclamp.lenses.attribute import attribute

PROMPT = tuple(range(10, 18))
ASK = {"prompt": PROMPT, "answer": "w5", "controls": 0}
ROUNDING = 2e-6
"""Logits of size 4 in float32: some ten units in the last place."""
EXPERTS = ("mixtral", "qwen2_moe")


def parts_for(name):
    return ("block", "head") if name in EXPERTS else ("block", "head", "neuron")


def added(result, **wanted):
    return sum(t.contribution for t in result.terms if all(getattr(t, k) == v for k, v in wanted.items()))


@pytest.mark.parametrize("name", CONFIGS)
def test_blocks_embedding_and_constants_sum_to_the_models_logit(name):
    model = tiny_model(name)
    result = attribute(model, **ASK, distractor="w9", parts=("block",)).result
    with torch.no_grad():
        logits_V = model.hf(torch.tensor([PROMPT])).logits[0, -1].double()
    answer, distractor = (logits_V[model.token(t)] for t in ("w5", "w9"))
    assert result.logit == pytest.approx(float(answer - distractor), abs=ROUNDING)
    assert sum(t.contribution for t in result.terms) == pytest.approx(result.total, abs=1e-12)
    assert result.error < ROUNDING
    cap = result.softcap
    if cap is None:
        assert result.total == pytest.approx(result.logit, abs=ROUNDING)
    else:
        total = cap * float(torch.atanh(answer / cap) - torch.atanh(distractor / cap))
        steepest = 1 / (1 - max(abs(float(answer)), abs(float(distractor))) ** 2 / cap**2)  # slope of atanh
        assert result.total == pytest.approx(total, abs=ROUNDING * steepest)


@pytest.mark.parametrize("name", CONFIGS)
def test_heads_and_neurons_sum_to_their_blocks(name):
    result = attribute(tiny_model(name), **ASK, parts=parts_for(name), top_neurons=7).result
    for layer in range(max(t.layer or 0 for t in result.terms) + 1):
        attn, mlp = f"attn.{layer}", f"mlp.{layer}"
        heads = added(result, part="head", layer=layer) + added(result, part="bias", site=attn)
        assert heads == pytest.approx(added(result, part="attn", site=attn), abs=ROUNDING)
        if name not in EXPERTS:
            neurons = added(result, part="neuron", layer=layer) + added(result, part="bias", site=mlp)
            assert neurons == pytest.approx(added(result, part="mlp", site=mlp), abs=ROUNDING)


@pytest.mark.parametrize("config", [
    tf.Olmo2Config(**GQA, attention_bias=True), tf.GraniteConfig(**GQA, attention_bias=True, mlp_bias=True,
                                                                residual_multiplier=0.4),
])
def test_an_output_bias_passes_post_norm_and_multiplier(config):
    torch.manual_seed(3)
    hf = tf.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in hf.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    result = attribute(wrap(hf, "biased"), **ASK).result
    assert abs(added(result, part="bias", site="attn.1")) > 1e-3
    assert result.error < ROUNDING


def test_the_sums_by_layer_are_the_lens_with_the_last_norms_statistic():
    model = tiny_model("llama")
    result = attribute(model, **ASK).result
    hf, last = model.hf, capture(model.hf, PROMPT, "resid", 2)[-1]
    scale = (last.pow(2).mean() + hf.model.norm.variance_epsilon).sqrt()
    row_D = (hf.lm_head.weight[model.token("w5")] * hf.model.norm.weight / scale).detach()
    streams = [capture(hf, PROMPT, "embed", 0), *(capture(hf, PROMPT, "resid", layer) for layer in range(3))]
    assert [s.layer for s in result.by_layer] == [-1, 0, 1, 2]
    for stream, step in zip(streams, result.by_layer, strict=True):
        assert step.logit == pytest.approx(float(stream[-1] @ row_D), abs=ROUNDING)
    assert result.by_layer[-1].logit == pytest.approx(result.total, abs=1e-12)


def post_norm_gain(name, hf, layer):
    """What the MLP's output is multiplied by at the last token: the post-norm's weight over its root mean square."""
    if name not in ("gemma2", "gemma3", "olmo2"):
        return multiplier(hf)
    norm = find(hf, parts_of(hf).blocks)[layer].post_feedforward_layernorm
    seen = []
    with torch.no_grad():
        handle = norm.register_forward_pre_hook(lambda _, args: seen.append(args[0][0, -1]))
        hf(torch.tensor([PROMPT]))
        handle.remove()
    weight = norm.weight + (name != "olmo2")
    return weight / (seen[0].pow(2).mean() + 1e-6).sqrt()


@pytest.mark.parametrize("name", ["llama", "gpt2", "bloom", "opt-projected", "gemma2", "gemma3", "olmo2", "granite",
                                  "cohere", "falcon"])
def test_a_neuron_adds_what_its_activation_alone_would_write(name):
    model = tiny_model(name)
    result = attribute(model, **ASK, top_neurons=5).result
    last = model.n_layers - 1
    resid_D = capture(model.hf, PROMPT, "resid", last)[-1]
    read_D = FrozenUnembedding(model.anatomy, resid_D).read([model.token("w5")]).directions[0]
    listed = [t for t in result.terms if t.part == "neuron" and t.unit is not None]
    assert len(listed) == len(result.written) == 5
    for term, written in zip(listed, result.written, strict=True):
        block = find(model.hf, parts_of(model.hf).blocks)[term.layer]
        down = find(block, parts_of(model.hf).down_proj)
        neurons_F = capture(model.hf, PROMPT, "neuron", term.layer)[-1]
        alone_F = torch.zeros_like(neurons_F)
        alone_F[term.unit] = neurons_F[term.unit]
        with torch.no_grad():
            write_D = (down(alone_F[None]) - down(torch.zeros_like(alone_F)[None]))[0]
        write_D = write_D * post_norm_gain(name, model.hf, term.layer)
        assert term.contribution == pytest.approx(float(exact(write_D) @ read_D), abs=ROUNDING)
        assert written.activation == pytest.approx(float(neurons_F[term.unit]), abs=ROUNDING)


def test_the_listed_neurons_are_the_strongest_of_all():
    every = attribute(tiny_model("llama"), **ASK, top_neurons=3 * 48).result
    few = attribute(tiny_model("llama"), **ASK, top_neurons=4).result
    strongest = sorted(abs(t.contribution) for t in every.terms if t.part == "neuron" and t.unit is not None)[-4:]
    assert [abs(w.contribution) for w in reversed(few.written)] == pytest.approx(strongest)


def test_a_neuron_writes_the_tokens_its_output_weights_point_at():
    model = tiny_model("llama")
    written = attribute(model, **ASK, top_neurons=1).result.written[0]
    _, layer, unit = written.site.split(".")
    out_D = model.hf.model.layers[int(layer)].mlp.down_proj.weight[:, int(unit)]
    logits_V = model.hf.lm_head.weight @ (model.hf.model.norm.weight * out_D)
    assert written.raises == [model.say(int(t)) for t in logits_V.topk(5).indices]
    assert written.lowers == [model.say(int(t)) for t in (-logits_V).topk(5).indices]


def test_a_position_attributes_an_earlier_prediction():
    inside = attribute(tiny_model("llama"), **ASK, position="3").result
    short = attribute(tiny_model("llama"), **{**ASK, "prompt": PROMPT[:4]}).result
    assert inside.total == pytest.approx(short.total, abs=ROUNDING)


def test_only_the_parts_asked_for_are_listed():
    kinds = {t.part for t in attribute(tiny_model("gpt2"), **ASK, parts=("head",)).result.terms}
    assert kinds == {"head", "bias"}


def test_half_precision_is_attributed_within_its_own_rounding():
    model = wrap(copy.deepcopy(tiny("llama")).bfloat16(), "half")
    result = attribute(model, **ASK).result
    assert result.total == pytest.approx(result.logit, abs=0.1)  # bfloat16 has 8 bits: ± 0.4 % of each addend


def test_a_seed_gives_one_verdict_and_no_controls_none():
    model = tiny_model("llama")
    ask = {**ASK, "controls": 8, "distractor": "w9"}
    assert attribute(model, **ask).verdict == attribute(model, **ask).verdict
    assert attribute(model, **ASK).verdict is None


def test_a_mixture_of_experts_has_blocks_and_heads_but_no_neurons():
    with pytest.raises(SpecError, match=r"mixture of experts.*block and head"):
        attribute(tiny_model("mixtral"), **ASK)


def test_something_added_outside_attention_and_mlp_is_noticed():
    model = wrap(copy.deepcopy(tiny("llama")), "meddled")
    model.hf.model.layers[1].register_forward_hook(lambda _, __, output: output + 0.5)
    with pytest.raises(RunError, match="miss the logit"):
        attribute(model, **ASK)


@pytest.mark.parametrize(("wrong", "error", "says"), [
    ({"answer": "w1 w2"}, TokenError, "not one token"),
    ({"distractor": "w5"}, SpecError, "both 'w5'"),
    ({"prompt": " "}, PromptError, "empty"),
    ({"position": "1:3"}, SpecError, "several tokens"),
    ({"position": "99"}, SiteError, "8 tokens"),
    ({"parts": ("expert",)}, SpecError, "parts"),
    ({"parts": ()}, SpecError, "parts"),
    ({"top_neurons": 0}, SpecError, "top_neurons"),
])
def test_bad_questions_are_refused(wrong, error, says):
    with pytest.raises(error, match=says):
        attribute(tiny_model("llama"), **{**ASK, **wrong})


@pytest.mark.weights
def test_attention_in_block_12_of_gemma_writes_warsaw(gemma):
    record = attribute(gemma, prompt="The capital of Poland is the city of", answer=" Warsaw", distractor=" Berlin")
    blocks = [t for t in record.result.terms if t.part in ("attn", "mlp")]
    assert max(blocks, key=lambda t: t.contribution).site == "attn.12"
    assert record.result.error < 1e-4  # of contributions that add up to some 40 logits
    assert record.verdict.outcome == "supported"


@pytest.mark.weights
def test_a_word_the_text_does_not_call_for_is_not_supported(gemma):
    record = attribute(gemma, prompt="The capital of France is the city of", answer=" banana", parts=("block", "head"))
    assert record.verdict.outcome == "not supported"


@pytest.mark.weights
def test_smollm2s_parts_sum_to_its_logit_difference(smollm2):
    record = attribute(smollm2, prompt="When John and Mary went to the store, John gave a drink to", answer=" Mary",
                       distractor=" John")
    assert record.result.error < 1e-4  # of contributions that add up to some 40 logits
    assert record.result.total == pytest.approx(record.result.logit, abs=1e-4)
    # the strongest part for each matched token is a hard control: 4.8 against a range that ends at 4.9
    assert record.verdict.effect.mean > 2 * record.verdict.control.mean
