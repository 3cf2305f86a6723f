"""Tiny randomly initialised models of every supported family's real configuration class, and variants."""

import copy
from collections.abc import Callable
from functools import cache

import torch
import transformers as tf

COMMON = {"vocab_size": 101, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
          "intermediate_size": 48, "max_position_embeddings": 128}
IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
GQA = {**COMMON, **IDS, "num_key_value_heads": 2}
GPT = {"vocab_size": 101, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 128, **IDS}
MOE = {"num_experts_per_tok": 2}

CONFIGS: dict[str, Callable[[], tf.PretrainedConfig]] = {
    "gpt2": lambda: tf.GPT2Config(**GPT),
    "gpt_neo": lambda: tf.GPTNeoConfig(vocab_size=101, hidden_size=32, num_layers=4, num_heads=4, window_size=3,
                                       max_position_embeddings=128,
                                       attention_types=[[["global", "local"], 2]], **IDS),
    "gptj": lambda: tf.GPTJConfig(**GPT, rotary_dim=4),
    "gpt_neox": lambda: tf.GPTNeoXConfig(**COMMON, **IDS),
    "gpt_neox-sequential": lambda: tf.GPTNeoXConfig(**COMMON, **IDS, use_parallel_residual=False),
    "opt": lambda: tf.OPTConfig(vocab_size=101, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, ffn_dim=48,
                                max_position_embeddings=128, word_embed_proj_dim=32, **IDS),
    "opt-projected": lambda: tf.OPTConfig(vocab_size=101, hidden_size=32, num_hidden_layers=3, num_attention_heads=4,
                                          ffn_dim=48, max_position_embeddings=128, word_embed_proj_dim=16,
                                          activation_function="gelu", **IDS),
    "bloom": lambda: tf.BloomConfig(vocab_size=101, hidden_size=32, n_layer=3, n_head=4, **IDS),
    "falcon": lambda: tf.FalconConfig(vocab_size=101, hidden_size=32, num_hidden_layers=3, num_attention_heads=4,
                                      **IDS),
    "falcon-new": lambda: tf.FalconConfig(vocab_size=101, hidden_size=32, num_hidden_layers=3, num_attention_heads=4,
                                          num_kv_heads=2, new_decoder_architecture=True, **IDS),
    "falcon-rw": lambda: tf.FalconConfig(vocab_size=101, hidden_size=32, num_hidden_layers=3, num_attention_heads=4,
                                         multi_query=False, parallel_attn=False, alibi=True, bias=True, **IDS),
    "mpt": lambda: tf.MptConfig(vocab_size=101, d_model=32, n_layers=3, n_heads=4, max_seq_len=128, **IDS),
    "llama": lambda: tf.LlamaConfig(**GQA),
    "llama-wide-heads": lambda: tf.LlamaConfig(**GQA, head_dim=16, attention_bias=True, mlp_bias=True),
    "mistral": lambda: tf.MistralConfig(**GQA, sliding_window=4),
    "mixtral": lambda: tf.MixtralConfig(**GQA, **MOE, num_local_experts=4),
    "qwen2": lambda: tf.Qwen2Config(**GQA),
    "qwen2_moe": lambda: tf.Qwen2MoeConfig(**GQA, **MOE, num_experts=4, moe_intermediate_size=16,
                                           shared_expert_intermediate_size=24, mlp_only_layers=[1]),
    "qwen3": lambda: tf.Qwen3Config(**GQA, head_dim=16),
    "gemma": lambda: tf.GemmaConfig(**GQA, head_dim=16),
    "gemma2": lambda: tf.Gemma2Config(**GQA, head_dim=16, final_logit_softcapping=1.0, sliding_window=4,
                                      query_pre_attn_scalar=16),
    "gemma3": lambda: tf.Gemma3TextConfig(**GQA, head_dim=16, sliding_window=4, final_logit_softcapping=2.0,
                                          layer_types=["sliding_attention", "full_attention", "sliding_attention"]),
    "phi": lambda: tf.PhiConfig(**GQA),
    "phi-qk-norm": lambda: tf.PhiConfig(**GQA, qk_layernorm=True),
    "phi3": lambda: tf.Phi3Config(**GQA),
    "stablelm": lambda: tf.StableLmConfig(**GQA),
    "stablelm-parallel": lambda: tf.StableLmConfig(**GQA, use_parallel_residual=True, qk_layernorm=True),
    "olmo2": lambda: tf.Olmo2Config(**GQA),
    "granite": lambda: tf.GraniteConfig(**GQA, residual_multiplier=0.4, logits_scaling=3.0, embedding_multiplier=2.0,
                                        attention_multiplier=0.2),
    "cohere": lambda: tf.CohereConfig(**GQA, logit_scale=0.25, use_qk_norm=True),
    "smollm3": lambda: tf.SmolLM3Config(**GQA),
}

VISION = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
          "image_size": 28, "patch_size": 14}
INSIDE: dict[str, Callable[[], tf.PretrainedConfig]] = {
    "gemma3-multimodal": lambda: tf.Gemma3Config(text_config=CONFIGS["gemma3"]().to_dict(), vision_config=VISION,
                                                 mm_tokens_per_image=4),
}
"""Language models inside a model that also sees, to be compared with the language model alone."""


def tiny(name: str, attention: str | None = None) -> tf.PreTrainedModel:
    """One tiny model, the same object at every call: a second one of the same weights may lie elsewhere in memory,
    where a product of matrices rounds otherwise. `attention`: eager or sdpa."""
    return _tiny(name, attention)


@cache
def _tiny(name: str, attention: str | None) -> tf.PreTrainedModel:
    torch.manual_seed(sum(map(ord, name)))
    config = {**CONFIGS, **INSIDE}[name]()
    kwargs = {"attn_implementation": attention} if attention else {}
    model = tf.AutoModelForCausalLM.from_config(config, dtype=torch.float32, **kwargs).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


EAGER_ONLY = ("gpt_neo", "gptj", "bloom", "mpt", "gemma2")
"""Configurations that transformers runs with its eager attention only."""
OWN_ATTENTION = ("gpt_neo", "gptj", "bloom", "falcon", "falcon-new", "falcon-rw", "mpt")
"""Configurations whose attention does not go through transformers' attention interface."""
SPREAD = ("gpt2", "gpt_neo", "gptj", "gpt_neox", "opt-projected", "bloom", "falcon-new", "mpt", "llama-wide-heads",
          "mistral", "qwen2_moe", "gemma2", "gemma3", "olmo2", "granite", "cohere")
"""One configuration for every distinct anatomy, for tests too slow to run on all."""


def supports(name: str, point: str) -> bool:
    """Whether a tiny model has a point in every block."""
    if point == "resid_mid":
        return name not in ("gptj", "gpt_neox", "falcon", "falcon-new", "phi", "phi-qk-norm", "stablelm-parallel",
                            "cohere")
    gated = not name.startswith(("gpt", "opt", "bloom", "falcon", "mpt", "phi")) or name == "phi3"
    if point in ("neuron", "gate"):
        return name not in ("mixtral", "qwen2_moe") and (point == "neuron" or gated)
    return True


@cache
def tiny_tokenizer() -> tf.PreTrainedTokenizerFast:
    """A word-level tokenizer of 101 tokens: 'w0' to 'w96' and specials."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    words = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3} | {f"w{i}": i + 4 for i in range(97)}
    inner = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.decoder = decoders.Fuse()
    return tf.PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>",
                                      pad_token="<pad>")


def wrap(hf: tf.PreTrainedModel, name: str):
    """A Hugging Face model of 101 tokens as patchclamp's."""
    from patchclamp.forward.model import Model
    from patchclamp.model.loaded import Loaded

    return Model(Loaded(hf=hf, tokenizer=tiny_tokenizer(), ref=f"tiny:{name}", name=name, revision=None, folder=None))


@cache
def tiny_model(name: str, attention: str | None = None, double: bool = False):
    """The same tiny model, wrapped; `double`: a copy in float64."""
    hf = tiny(name, attention)
    if not double:
        return wrap(hf, name)
    hf = copy.deepcopy(hf).double()
    hf.config._experts_implementation = "eager"  # torch's grouped matrix product knows no float64
    return wrap(hf, name)


def unattached(name: str = "llama"):
    """The tiny model, wrapped anew: what is attached to it is attached nowhere else."""
    return wrap(tiny(name), name)


def ids(n: int, seed: int = 0) -> tuple[int, ...]:
    """A prompt of `n` token ids, none of them special."""
    return tuple((i * 7 + seed * 13) % 90 + 5 for i in range(n))


def direction(width: int, seed: int = 0) -> torch.Tensor:
    """A fixed vector without special structure."""
    return torch.cos(torch.arange(width) * (1.3 + seed)) + 0.1


def tiny_vector(model, seed=0, **info):
    """A random direction after every block."""
    from patchclamp.vectors.vector import SteeringVector, VectorInfo

    generator = torch.Generator().manual_seed(seed)
    directions = {f"resid.{layer}": torch.randn(model.d_model, generator=generator) for layer in range(model.n_layers)}
    return SteeringVector(
        VectorInfo(name="test", model=model.name, weights_hash=model.weights_hash, **info), directions
    )
