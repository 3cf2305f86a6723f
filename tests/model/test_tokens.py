"""Prompts to tokens and back: one BOS, chat templates, substrings, strings that are one token, choices."""

import pytest
import torch
from tiny import tiny_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from patchclamp.errors import PromptError, SiteError, TokenError
from patchclamp.model.tokens import encode, first_difference, pieces, single_token, token_text

weights = pytest.mark.weights
USER = {"role": "user", "content": "Where is Warsaw?"}
ANSWER = {"role": "assistant", "content": "In Poland"}


@pytest.fixture
def with_bos():
    """A tokenizer that puts <s> before every text."""
    import copy

    tokenizer = copy.deepcopy(tiny_tokenizer())
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


@pytest.fixture(params=["smollm2", "gemma"])
def real(request):
    """Both embedded models' tokenizers."""
    return request.getfixturevalue(request.param).tokenizer


def test_bos_is_added_once(with_bos):
    """Also where the text already spells it."""
    assert encode(with_bos, "w1 w2", None).ids == (1, 5, 6)
    assert encode(with_bos, "<s> w1 w2", None).ids == (1, 5, 6)


def test_token_ids_pass_as_they_are(with_bos):
    """No BOS is put before ids: they say what the model reads."""
    assert encode(with_bos, (5, 6), None).ids == (5, 6)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "the prompt is empty"),
        (" \n", "the prompt is empty"),
        ([], "empty"),
        ((5, -1), "token id -1 is outside"),
        ((5, 101, 6), "token id 101 is outside the vocabulary of 101"),
        ([USER], "no chat template: give a plain text"),
        ([{"role": "robot", "content": "x"}], "role and content"),
        ("w1 " * 9, "has 9 tokens and the model's context is 8"),
    ],
)
def test_a_prompt_that_cannot_be_read_is_refused(prompt, message):
    """With what is wrong and what to do."""
    with pytest.raises(PromptError, match=message):
        encode(tiny_tokenizer(), prompt, 8)


def test_choices_are_scored_at_the_first_difference():
    """After the prompt come the shared tokens, then each answer's own."""
    got = first_difference(tiny_tokenizer(), "w1 w2", " w7 w8", " w7 w9")
    assert got == ((5, 6, 11), 12, 13)


@pytest.mark.parametrize(("answer", "distractor"), [(" w7", " w7 w8"), (" w7 w8", " w7"), (" w7", " w7")])
def test_an_answer_that_is_a_prefix_of_the_other_cannot_be_scored(answer, distractor):
    """No token tells them apart."""
    assert first_difference(tiny_tokenizer(), "w1", answer, distractor) is None


def test_single_token_names_the_tokens():
    """What the tokenizer makes of it."""
    assert single_token(tiny_tokenizer(), "w5") == 9
    with pytest.raises(TokenError, match="not one token of this model but 2: 'w1', 'w2'"):
        single_token(tiny_tokenizer(), "w1 w2")
    with pytest.raises(TokenError, match="empty string"):
        single_token(tiny_tokenizer(), "")


def word_level(words, pre_tokenizer, decoder):
    """A tokenizer that looks whole words up."""
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer, inner.decoder = pre_tokenizer, decoder
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", eos_token="<eos>")


@pytest.fixture
def like_llama2():
    """Puts a space before every text and takes it off again when it decodes."""
    words = ["<unk>", "<eos>", "▁Paris", "Paris", "▁", "▁▁", "▁the"]
    return word_level(words, pre_tokenizers.Metaspace(prepend_scheme="always"), decoders.Metaspace())


@pytest.mark.parametrize(
    ("text", "token"), [(" Paris", 2), ("Paris", 3), (" ", 4), ("  ", 5), (" the", 6), ("<eos>", 1), ("<unk>", 0)]
)
def test_a_token_is_the_one_whose_text_was_asked_for(like_llama2, text, token):
    """'Paris' and ' Paris' are two tokens, though the tokenizer reads both as the second."""
    assert single_token(like_llama2, text) == token
    assert token_text(like_llama2, token) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("the", r"tokenizer makes ' the' of it \(did you mean ' the', with a leading space\?\)"),
        ("▁Paris", "not one token"),
        ("London", r"not in the vocabulary, so the tokenizer makes '.*<unk>' of it"),
    ],
)
def test_a_text_that_no_token_has_is_refused(like_llama2, text, message):
    """A token that says something else would be measured in its place, in silence."""
    with pytest.raises(TokenError, match=message):
        single_token(like_llama2, text)


def test_an_unknown_word_is_not_the_token_for_unknown_words():
    with pytest.raises(TokenError, match="'Warsaw' is not one token of this model: it is not in the vocabulary"):
        single_token(tiny_tokenizer(), "Warsaw")


def test_a_tokenizer_larger_than_the_model_is_noticed():
    """Of a prompt, of ids and of a watched word."""
    for prompt in ("w1 w90", (5, 94)):
        with pytest.raises(PromptError, match=r"'w90' is token 94, and the model knows only 90 tokens \(0 to 89\)"):
            encode(tiny_tokenizer(), prompt, None, 90)
    with pytest.raises(TokenError, match="'w90' is token 94, and the model knows only 90"):
        single_token(tiny_tokenizer(), "w90", 90)
    assert encode(tiny_tokenizer(), "w1 w80", None, 90).ids == (5, 84)


# Real tokenizers


@weights
@pytest.mark.parametrize("text", ["ĠParis", "Ã©", "▁Paris"])
def test_the_vocabularys_own_spelling_is_no_text(real, text):
    """'Ġ', 'Ã©' and '▁' stand for other characters there."""
    with pytest.raises(TokenError, match="not one token of this model"):
        single_token(real, text)


@weights
def test_every_token_with_a_text_is_found_by_it(real):
    """Every 97th; where two tokens have one text (a byte and its character), one of them."""
    for token in range(0, len(real), 97):
        text = token_text(real, token)
        if text and "�" not in text:
            assert token_text(real, single_token(real, text)) == text


TEXTS = (
    "The capital of Poland is Warsaw",
    "naïve café",
    "法国的首都是巴黎。",
    "party 🎉🥳 time 👨‍👩‍👧",
    "  two  spaces\n\ttab",
    "Кириллица и العربية",
    "def f(x):\n    return x",
)


@weights
@pytest.mark.parametrize("text", TEXTS)
def test_pieces_join_to_the_text(real, text):
    """One piece a token, nothing lost, nothing added, whatever the script."""
    encoded = encode(real, text, None)
    assert len(encoded.pieces) == len(encoded.ids)
    joined = "".join(encoded.pieces)
    assert joined.removeprefix(real.bos_token or "") == text


@weights
@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("The capital of Poland is Warsaw, in Poland.", "Poland"),
        ("法国的首都是巴黎。", "首都"),
        ("x 🎉 y 🥳 z", "🥳"),
        ("x 🎉 y 🥳 z", "🎉"),
        ("naïve café", "é"),
        ("unbelievable", "believ"),
    ],
)
def test_a_substring_is_found_at_its_last_occurrences_last_token(real, text, word):
    """The token at which the word is complete: the pieces up to it hold it, those before it do not."""
    encoded = encode(real, text, None)
    index = encoded.find(word)
    start = "".join(encoded.pieces).rfind(word)
    assert word in "".join(encoded.pieces[: index + 1])[start:]
    assert word not in "".join(encoded.pieces[:index])[start:]
    assert encoded.pieces[index], "the found token completes a character"


@weights
def test_a_substring_that_is_absent_is_an_error(real):
    """With the text that was read."""
    with pytest.raises(SiteError, match=r"does not contain 'Paris'; it reads .*Poland"):
        encode(real, "Poland", None).find("Paris")


@weights
def test_gemmas_bos_is_there_once(gemma):
    """Its tokenizer adds one; a text that spells it gets no second."""
    bos = gemma.tokenizer.bos_token_id
    for text in ("Hello", "<bos>Hello"):
        assert encode(gemma.tokenizer, text, None).ids.count(bos) == 1


@weights
def test_chat_template_opens_the_answer(smollm2):
    """The text is the template's own, with the assistant's turn opened, and no special token twice."""
    tokenizer = smollm2.tokenizer
    encoded = encode(tokenizer, [USER], None)
    text = tokenizer.apply_chat_template([USER], tokenize=False, add_generation_prompt=True)
    assert tokenizer.decode(encoded.ids) == text
    assert text.endswith("<|im_start|>assistant\n")
    assert encoded.n_prompt == len(encoded.ids)


@weights
def test_answer_in_a_conversation_is_its_response(smollm2):
    """What precedes it is the prompt, to the token."""
    encoded = encode(smollm2.tokenizer, [USER, ANSWER], None)
    assert encoded.ids[: encoded.n_prompt] == encode(smollm2.tokenizer, [USER], None).ids
    assert smollm2.tokenizer.decode(encoded.ids[encoded.n_prompt :]).startswith("In Poland")


@weights
def test_gemma_base_has_no_chat_template(gemma):
    """Rather an error than an invented format."""
    if gemma.tokenizer.chat_template:
        pytest.skip("this conversion has a template")
    with pytest.raises(PromptError, match="no chat template"):
        encode(gemma.tokenizer, [USER], None)


@weights
def test_every_ordinary_token_is_found_by_its_text(real):
    """What a token says leads back to it, so a watched word is the token that the model predicts."""
    for text in (" Poland", " Warsaw", " the", "a", " Mary"):
        token = single_token(real, text)
        assert pieces(real, [token]) == (text,)


@weights
def test_a_word_of_several_tokens_is_named_with_its_tokens(smollm2):
    """And the leading space is suggested where it is missing."""
    with pytest.raises(TokenError, match=r"not one token of this model but \d: .*did you mean ' Warsaw', with a lead"):
        single_token(smollm2.tokenizer, "Warsaw")
    with pytest.raises(TokenError, match=r"not one token of this model but \d: '[^()]*'$"):
        single_token(smollm2.tokenizer, "Warszawa")


@weights
def test_first_difference_of_real_answers(smollm2):
    """' New York' and ' New Orleans' share ' New'."""
    prompt, answer, distractor = first_difference(smollm2.tokenizer, "I live in", " New York", " New Orleans")
    said = smollm2.tokenizer.decode
    assert (said(prompt), said([answer]), said([distractor])[:2]) == ("I live in New", " York", " O")


@weights
def test_logits_at_a_substring_are_those_after_it(smollm2):
    """The position named by a word is the one whose prediction follows it."""
    from patchclamp.forward import Readout

    prompt = "The capital of Poland is"
    at_word = smollm2.run(prompt, read=Readout.logits('"Poland"'))
    shorter = smollm2.run("The capital of Poland")
    torch.testing.assert_close(at_word, shorter, rtol=0, atol=1e-3)  # logits near 20 through 30 blocks in float32
