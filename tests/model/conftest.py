"""Small models on disk: a Hugging Face folder and a GGUF file, made in a moment and random."""

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from tiny import tiny, tiny_tokenizer
from tokenizers import pre_tokenizers

WIDTH, HEADS, NEURONS = 32, 4, 48


@pytest.fixture(autouse=True)
def own_hash_cache(request, tmp_path_factory, monkeypatch):
    """Tests leave no checksums of their files in the user's cache; tests of real weights use that cache."""
    real = "weights" in request.keywords or {"smollm2", "gemma"} & set(request.fixturenames)
    if not real:
        monkeypatch.setenv("PATCHCLAMP_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def folder(tmp_path) -> Path:
    """A tiny Llama with its tokenizer, as save_pretrained writes it."""
    made = tmp_path / "tiny-llama"
    tiny("llama").save_pretrained(made)
    tiny_tokenizer().save_pretrained(made)
    return made


def write_gguf(path: Path, rules: str) -> Path:
    """A tiny Llama as GGUF: byte-level tokenizer, a merge for two line breaks, splitting rules by name."""
    byte_tokens = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*byte_tokens, "ĊĊ", "<s>", "</s>"]
    normal, control = gguf.TokenType.NORMAL, gguf.TokenType.CONTROL
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(2)
    writer.add_feed_forward_length(NEURONS)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(rules)
    writer.add_token_list(tokens)
    writer.add_token_types([normal] * (len(tokens) - 2) + [control] * 2)
    writer.add_token_merges(["Ċ Ċ"])
    writer.add_bos_token_id(len(tokens) - 2)
    writer.add_eos_token_id(len(tokens) - 1)
    shapes = {"token_embd": (len(tokens), WIDTH), "output_norm": (WIDTH,)}
    for block in range(2):
        shapes |= {f"blk.{block}.{name}": (WIDTH, WIDTH) for name in ("attn_q", "attn_k", "attn_v", "attn_output")}
        shapes |= {f"blk.{block}.{name}": (NEURONS, WIDTH) for name in ("ffn_gate", "ffn_up")}
        shapes |= {f"blk.{block}.ffn_down": (WIDTH, NEURONS)}
        shapes |= {f"blk.{block}.{name}": (WIDTH,) for name in ("attn_norm", "ffn_norm")}
    random = np.random.default_rng(0)
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", random.normal(size=shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def make_gguf(tmp_path) -> Callable[[str], Path]:
    """Makes the tiny GGUF file; its argument names the splitting rules of its tokenizer."""
    return lambda rules: write_gguf(tmp_path / "tiny.gguf", rules)


@pytest.fixture
def gguf_file(make_gguf) -> Path:
    """The tiny GGUF file with GPT-2's splitting rules."""
    return make_gguf("gpt-2")
