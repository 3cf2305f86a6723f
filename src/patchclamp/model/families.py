"""Where the parts of each architecture are: one small table a family.

A family is data, not code. Paths are attribute paths, those of parts of a block relative to the block. Where a part
exists only under some configurations (a query norm, say), its entry is a tuple of candidates and the first
that the block has is used. `check.py` proves on every load that the table is true of the model at hand.
"""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Heads:
    """Where queries, keys or values are found, before rotary, and how they lie in that module's output.

    layout: `flat` heads × width side by side from `start`; `bthe` and `bhte` already four-dimensional;
    `head3` for each head its query, key, value; `group` for each key/value head its queries, then key, value.
    """

    path: str
    layout: str = "flat"
    start: str = "0"
    """Offset of a `flat` layout: a sum of `q` (width of all queries) and `k` (width of all keys)."""
    which: int = 0
    """For `head3` and `group`: 0 query, 1 key, 2 value."""


@dataclass(frozen=True)
class Family:
    """The anatomy of one architecture. Defaults are Llama's."""

    name: str
    architectures: tuple[str, ...]
    blocks: str = "model.layers"
    final_norm: str = "model.norm"
    final_projection: str | None = None
    """A projection between final norm and unembedding, where the architecture may have one."""
    attention: str = "self_attn"
    """The attention module: its second output is the pattern."""
    out_proj: str = "self_attn.o_proj"
    attn: str = "self_attn"
    """The module whose output attention adds to the residual stream (times `multiplier`)."""
    mlp: str = "mlp"
    """The module whose output the MLP adds to the residual stream (times `multiplier`)."""
    mlp_core: str = "mlp"
    """The MLP module itself, before any post-norm."""
    down_proj: str = "mlp.down_proj"
    gate: str | None = "mlp.act_fn"
    """The activation whose output multiplies the up projection; None where the MLP is not gated."""
    up_proj: str = "mlp.up_proj"
    """The projection that the gate multiplies; where it holds gate and up side by side, up is the second half."""
    attn_norm: tuple[str, ...] = ("input_layernorm",)
    """Modules that may lie between the residual stream and attention; none present: it reads the stream itself."""
    resid_mid: tuple[str, ...] = ("post_attention_layernorm",)
    """Modules that may read the residual stream after attention; none present: a parallel block."""
    parallel_if: str | None = None
    """Name of a configuration flag that makes the block parallel."""
    post_norm: bool = False
    """Attention and MLP outputs pass a norm before they are added (`attn`, `mlp` are then those norms)."""
    norm_offset: float = 0.0
    """What the post-norm adds to its weight (Gemma: 1)."""
    q: tuple[Heads, ...] = (Heads("self_attn.q_proj"),)
    k: tuple[Heads, ...] = (Heads("self_attn.k_proj"),)
    v: tuple[Heads, ...] = (Heads("self_attn.v_proj"),)
    multiplier: str | None = None
    """Block attribute that scales both outputs as they are added (Granite)."""
    logit_softcap: str | None = None
    """Configuration field: logits become cap · tanh(logits / cap)."""
    logit_scale: str | None = None
    """Configuration field by which logits are multiplied."""
    logit_divisor: str | None = None
    """Configuration field by which logits are divided."""
    common_attention: bool = True
    """Attention goes through transformers' attention interface, so that `pattern` can be edited."""
    rows_may_join: bool = True
    """Rows may be added to the batch between blocks (not where a bias is built per row, as for ALiBi)."""
    mutates_mlp: bool = False
    """The block adds into the MLP's output in place: a captured value must be copied."""
    norm_on_stream_if: tuple[str, bool] | None = None
    """A configuration field and the value under which the blocks put a norm on the residual stream itself."""


def _fused(path: str) -> dict[str, Any]:
    """Queries, keys and values side by side in one projection."""
    return {"q": (Heads(path),), "k": (Heads(path, start="q"),), "v": (Heads(path, start="q+k"),)}


def _interleaved(path: str, layout: str) -> dict[str, Any]:
    """Queries, keys and values of one head next to each other in one projection."""
    return {p: (Heads(path, layout, which=i),) for i, p in enumerate("qkv")}


def _normed(q: str, k: str, layout: str) -> dict[str, Any]:
    """Queries and keys after a norm where the block has one."""
    return {
        "q": (Heads(q, layout), Heads("self_attn.q_proj")),
        "k": (Heads(k, layout), Heads("self_attn.k_proj")),
    }


_GPT2_LIKE: dict[str, Any] = {
    "blocks": "transformer.h",
    "final_norm": "transformer.ln_f",
    "attention": "attn",
    "attn": "attn",
    "attn_norm": ("ln_1",),
    "gate": None,
}
_GEMMA_SANDWICH: dict[str, Any] = {
    "attn": "post_attention_layernorm",
    "mlp": "post_feedforward_layernorm",
    "resid_mid": ("pre_feedforward_layernorm",),
    "post_norm": True,
    "norm_offset": 1.0,
    "logit_softcap": "final_logit_softcapping",
}

FAMILIES: tuple[Family, ...] = (
    Family("llama", ("LlamaForCausalLM",)),
    Family("mistral", ("MistralForCausalLM",)),
    Family("mixtral", ("MixtralForCausalLM",)),
    Family("qwen2", ("Qwen2ForCausalLM",)),
    Family("qwen2_moe", ("Qwen2MoeForCausalLM",)),
    Family("qwen3", ("Qwen3ForCausalLM",), **_normed("self_attn.q_norm", "self_attn.k_norm", "bthe")),
    Family("smollm3", ("SmolLM3ForCausalLM",)),
    Family("gemma", ("GemmaForCausalLM",)),
    Family("gemma2", ("Gemma2ForCausalLM",), **_GEMMA_SANDWICH),
    Family(
        "gemma3",
        ("Gemma3ForCausalLM",),
        **_GEMMA_SANDWICH,
        **_normed("self_attn.q_norm", "self_attn.k_norm", "bhte"),
    ),
    Family(
        "gemma3_multimodal",
        ("Gemma3ForConditionalGeneration",),
        blocks="model.language_model.layers",
        final_norm="model.language_model.norm",
        **{**_GEMMA_SANDWICH, "logit_softcap": None},
        **_normed("self_attn.q_norm", "self_attn.k_norm", "bhte"),
    ),
    Family(
        "olmo2",
        ("Olmo2ForCausalLM",),
        attn="post_attention_layernorm",
        mlp="post_feedforward_layernorm",
        resid_mid=("mlp",),
        post_norm=True,
        attn_norm=(),
        **_normed("self_attn.q_norm", "self_attn.k_norm", "flat"),
    ),
    Family("granite", ("GraniteForCausalLM",), multiplier="residual_multiplier", logit_divisor="logits_scaling"),
    Family(
        "cohere",
        ("CohereForCausalLM",),
        resid_mid=(),
        logit_scale="logit_scale",
        **_normed("self_attn.q_norm", "self_attn.k_norm", "bthe"),
    ),
    Family(
        "stablelm",
        ("StableLmForCausalLM",),
        **_normed("self_attn.q_layernorm", "self_attn.k_layernorm", "bhte"),
    ),
    Family("phi3", ("Phi3ForCausalLM",), gate="mlp.activation_fn", up_proj="mlp.gate_up_proj",
           **_fused("self_attn.qkv_proj")),
    Family(
        "phi",
        ("PhiForCausalLM",),
        final_norm="model.final_layernorm",
        out_proj="self_attn.dense",
        down_proj="mlp.fc2",
        gate=None,
        resid_mid=(),
        **_normed("self_attn.q_layernorm", "self_attn.k_layernorm", "bhte"),
    ),
    Family(
        "gpt2",
        ("GPT2LMHeadModel",),
        **_GPT2_LIKE,
        out_proj="attn.c_proj",
        down_proj="mlp.c_proj",
        resid_mid=("ln_2",),
        **_fused("attn.c_attn"),
    ),
    Family(
        "gpt_neo",
        ("GPTNeoForCausalLM",),
        **_GPT2_LIKE,
        out_proj="attn.attention.out_proj",
        down_proj="mlp.c_proj",
        resid_mid=("ln_2",),
        q=(Heads("attn.attention.q_proj"),),
        k=(Heads("attn.attention.k_proj"),),
        v=(Heads("attn.attention.v_proj"),),
        common_attention=False,
    ),
    Family(
        "gptj",
        ("GPTJForCausalLM",),
        **_GPT2_LIKE,
        out_proj="attn.out_proj",
        down_proj="mlp.fc_out",
        resid_mid=(),
        q=(Heads("attn.q_proj"),),
        k=(Heads("attn.k_proj"),),
        v=(Heads("attn.v_proj"),),
        common_attention=False,
    ),
    Family(
        "gpt_neox",
        ("GPTNeoXForCausalLM",),
        blocks="gpt_neox.layers",
        final_norm="gpt_neox.final_layer_norm",
        attention="attention",
        attn="attention",
        out_proj="attention.dense",
        down_proj="mlp.dense_4h_to_h",
        gate=None,
        parallel_if="use_parallel_residual",
        **_interleaved("attention.query_key_value", "head3"),
    ),
    Family(
        "opt",
        ("OPTForCausalLM",),
        blocks="model.decoder.layers",
        final_norm="model.decoder.final_layer_norm",
        final_projection="model.decoder.project_out",
        out_proj="self_attn.out_proj",
        mlp="fc2",
        mlp_core="fc2",
        down_proj="fc2",
        gate=None,
        attn_norm=("self_attn_layer_norm",),
        resid_mid=("final_layer_norm",),
        norm_on_stream_if=("do_layer_norm_before", False),
    ),
    Family(
        "bloom",
        ("BloomForCausalLM",),
        blocks="transformer.h",
        final_norm="transformer.ln_f",
        attention="self_attention",
        attn="self_attention.dense",
        out_proj="self_attention.dense",
        mlp="mlp.dense_4h_to_h",
        mlp_core="mlp.dense_4h_to_h",
        down_proj="mlp.dense_4h_to_h",
        gate=None,
        common_attention=False,
        rows_may_join=False,
        norm_on_stream_if=("apply_residual_connection_post_layernorm", True),
        **_interleaved("self_attention.query_key_value", "head3"),
    ),
    Family(
        "falcon",
        ("FalconForCausalLM",),
        blocks="transformer.h",
        final_norm="transformer.ln_f",
        attention="self_attention",
        attn="self_attention",
        out_proj="self_attention.dense",
        down_proj="mlp.dense_4h_to_h",
        gate=None,
        common_attention=False,
        rows_may_join=False,
        mutates_mlp=True,
        attn_norm=("input_layernorm", "ln_attn"),
        resid_mid=("post_attention_layernorm", "ln_mlp"),
        parallel_if="parallel_attn",
        **_interleaved("self_attention.query_key_value", "falcon"),
    ),
    Family(
        "mpt",
        ("MptForCausalLM",),
        blocks="transformer.blocks",
        final_norm="transformer.norm_f",
        attention="attn",
        attn="attn",
        out_proj="attn.out_proj",
        mlp="ffn.down_proj",
        mlp_core="ffn.down_proj",
        down_proj="ffn.down_proj",
        gate=None,
        attn_norm=("norm_1",),
        resid_mid=("norm_2",),
        common_attention=False,
        **_fused("attn.Wqkv"),
    ),
)

BY_ARCHITECTURE: dict[str, Family] = {name: family for family in FAMILIES for name in family.architectures}
