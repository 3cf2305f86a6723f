"""The tokenizer of a GGUF file splits text as its original does, or the file is refused."""

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from patchclamp.errors import UnsupportedModel
from patchclamp.model.gguf_tokenizer import rank_longest_whitespace_first
from patchclamp.model.read import Options, read_gguf


@pytest.mark.parametrize(
    ("rules", "tokens"),
    [("gpt-2", ["Ċ", "Ċ", "5"]), ("smollm", ["ĊĊ", "5"])],
)
def test_digits_are_split_off_first_where_the_rules_say_so(make_gguf, rules, tokens):
    # GPT-2's rules leave the last blank before a word or digit to it, so that the two line breaks part.
    _, tokenizer = read_gguf(make_gguf(rules), Options())
    assert tokenizer.tokenize("\n\n5") == tokens


def test_rules_that_nobody_here_knows_are_refused(make_gguf):
    with pytest.raises(UnsupportedModel, match=r"rules 'deepseek-llm'.*Hugging Face folder"):
        read_gguf(make_gguf("deepseek-llm"), Options())


def blanks_tokenizer(longest: int) -> PreTrainedTokenizerFast:
    """Tokens of one to `longest` blanks, with merges ranked shortest first."""
    runs = ["▁" * n for n in range(1, longest + 1)]
    merges = [(a, b) for n in range(2, longest + 1) for a in runs for b in runs if len(a + b) == n]
    inner = Tokenizer(models.BPE({"<unk>": 0, **{run: i + 1 for i, run in enumerate(runs)}}, merges, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>")


def test_a_long_run_of_blanks_becomes_one_longest_token_and_a_rest():
    tokenizer = blanks_tokenizer(longest=5)
    assert [len(token) for token in tokenizer.tokenize("▁" * 7)] == [4, 3]
    rank_longest_whitespace_first(tokenizer)
    assert [len(token) for token in tokenizer.tokenize("▁" * 7)] == [5, 2]
