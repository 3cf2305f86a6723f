"""Which tokens begin a word, and which words cannot be told apart."""

import pytest

from patchclamp.lenses.words import own_tokens, prefix_tokens


@pytest.mark.weights
def test_prefixes_with_and_without_a_space_are_all_found(gemma):
    """Against going through the whole vocabulary."""
    word = "flower"
    said = {t: gemma.say(t) for t in range(len(gemma.tokenizer))
            if not gemma.tokenizer.convert_ids_to_tokens(t).startswith("<0x")}
    expected = {t for t, text in said.items()
                if text.strip() and (word.startswith(text) or f" {word}".startswith(text))}

    assert prefix_tokens(gemma.tokenizer, word) == expected


@pytest.mark.weights
def test_a_token_that_begins_two_words_counts_for_neither(gemma):
    tokens = own_tokens(gemma.tokenizer, {"fr": "fleur", "en": "flower", "zh": "花"})

    assert isinstance(tokens, dict)
    assert gemma.token("fl") not in tokens["fr"] | tokens["en"]
    assert gemma.token("flower") in tokens["en"]


@pytest.mark.weights
@pytest.mark.parametrize(("words", "said"), [
    ({"fr": "table", "en": "table"}, "'table' (fr) begins with the same token as 'table' (en)"),
])
def test_words_that_begin_alike_are_refused_by_name(gemma, words, said):
    assert own_tokens(gemma.tokenizer, words) == said
