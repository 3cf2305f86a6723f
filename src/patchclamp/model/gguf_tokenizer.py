"""Making the tokenizer that transformers builds from a GGUF file split text as the original one does.

A GGUF file holds a vocabulary and merges, and names its splitting rules instead of spelling them out.
transformers 5.23 knows some of the names and falls back to GPT-2's rules for the others, without a word; the
tokens are then nearly always right, which is the worst kind of wrong. Two cases are put right here, the rest
is refused.
"""

import json
from pathlib import Path

from gguf import GGUFReader
from tokenizers import models, pre_tokenizers
from transformers import PreTrainedTokenizerBase

from patchclamp.errors import UnsupportedModel

GPT2_RULES = frozenset({"gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "gigachat", "roberta-bpe"})
"""Names (`tokenizer.ggml.pre`) under which GPT-2's own rules are meant."""

DIGITS_APART = frozenset({"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"})
"""Names under which every digit is split off first and GPT-2's rules come second: two line breaks before a
digit are then one token, not two."""

WHITESPACE = "\n▁\t"


def repair(tokenizer: PreTrainedTokenizerBase, gguf: Path, model_type: str) -> None:
    """Change the tokenizer in place where the rules its file names were not followed.

    Raises UnsupportedModel if the file names rules that neither transformers nor this module knows.
    """
    if model_type.startswith("gemma"):
        rank_longest_whitespace_first(tokenizer)
        return
    backend = tokenizer.backend_tokenizer
    if not isinstance(backend.pre_tokenizer, pre_tokenizers.ByteLevel):
        return
    field = GGUFReader(gguf).get_field("tokenizer.ggml.pre")
    rules = str(field.contents()) if field else "default"
    if rules in DIGITS_APART:
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    elif rules not in GPT2_RULES:
        raise UnsupportedModel(
            f"{gguf} splits text by the rules {rules!r}, which transformers does not read from a GGUF file: "
            "some tokens would be wrong. Load the model's Hugging Face folder or id instead."
        )


def rank_longest_whitespace_first(tokenizer: PreTrainedTokenizerBase) -> None:
    """Order Gemma's merges of blanks, line breaks and tabs as in its original tokenizer: longest first.

    transformers ranks merges by the vocabulary's order, where runs of whitespace stand shortest first, so
    that a run beyond the longest token (31) is cut into halves instead of one longest token and a rest.
    """
    backend = tokenizer.backend_tokenizer
    description = json.loads(backend.to_str())["model"]
    merges = [(left, right) for left, right in description["merges"]]

    def is_run(pair: tuple[str, str]) -> bool:
        return len(set(pair[0] + pair[1])) == 1 and pair[0][0] in WHITESPACE

    runs = sorted(filter(is_run, merges), key=lambda p: (-len(p[0]), -len(p[1]), WHITESPACE.index(p[0][0])))
    backend.model = models.BPE(
        vocab=description["vocab"],
        merges=runs + [pair for pair in merges if not is_run(pair)],
        unk_token=description["unk_token"],
        fuse_unk=description["fuse_unk"],
        byte_fallback=description["byte_fallback"],
    )
