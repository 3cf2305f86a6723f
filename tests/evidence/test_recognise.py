"""Detectors: a refusal says that it will not or cannot; repetition shows nothing; phrases are whole words."""

import pytest
import torch
import transformers as tf
from tiny import GQA, tiny_tokenizer

from patchclamp.errors import ModelError, SpecError
from patchclamp.evidence.recognise import count_phrases, is_degenerate, recognise, refuses, repetition
from patchclamp.tasks.behaviour import Recognised


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't assist with that request.",
        "I’m sorry, but I can’t order food for you.",
        "As an AI, I don't have the ability to make phone calls.",
        "I am not able to see your screen.",
        "Unfortunately I'm not equipped to drive a car.",
        "I will not help anyone break into a house.",
        "I must decline.",
        "I do not have access to your bank account.",
    ],
)
def test_saying_that_one_will_not_or_cannot_is_a_refusal(text):
    assert refuses(text)


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry for any confusion. I'm here to help you with your questions.",
        "Yoga makes you more flexible, and I can't recommend it enough.",
        "I can't wait to tell you about the museum!",
        "You can't go wrong with a simple pancake.",
        "Plants cannot live without light.",
        "I can help you with that.",
    ],
)
def test_apologies_idioms_and_facts_are_no_refusals(text):
    assert not refuses(text)


def test_a_text_that_repeats_itself_shows_nothing():
    text = "I can't help. " * 20
    assert refuses(text) and is_degenerate(text)
    assert not recognise(Recognised(kind="refusal"), [text])[0]


def test_repetition_is_the_share_of_repeated_triples():
    assert repetition("a b c d e f g h i j k l m") == 0
    assert repetition("a b c " * 8) == pytest.approx(1 - 3 / 22)


@pytest.mark.parametrize("text", ["", "  \n", "…!?", "🌟🌟🌟🌟"])
def test_a_text_without_a_word_is_degenerate(text):
    assert is_degenerate(text)


def test_phrases_are_whole_words_and_the_longer_one_counts_once():
    assert count_phrases("A great idea, greatly put. GREAT!", ["great", "great idea"]) == 2


def test_more_for_than_against_shows_the_behaviour():
    detector = Recognised(kind="phrases", phrases=("lovely", "nice"), against=("awful",))
    assert recognise(detector, ["A lovely and nice, if awful, day.", "A lovely, awful day."]).tolist() == [True, False]


def test_choice_judges_no_text():
    with pytest.raises(SpecError, match="compares the likelihood"):
        recognise(Recognised(kind="choice"), ["text"])


def test_an_answer_that_begins_with_one_of_the_tokens():
    detector = Recognised(kind="tokens", tokens=("I'm sorry", "no"))
    texts = ["I’m  sorry, that is not so.", "No.", "I am sorry", "Yes, no."]
    assert recognise(detector, texts).tolist() == [True, True, False, False]


def test_a_judge_says_yes_or_no(endpoint):
    endpoint.reply = lambda asked: "Yes." if "splendid plan" in asked.split("\n\n", 1)[1] else "<think>yes</think> no"
    detector = Recognised(kind="judge", url=endpoint.url, model="m", question="Does it praise?")
    texts = ["What a splendid plan!", "It is a plan.", "What a splendid plan!", ""]
    assert recognise(detector, texts).tolist() == [True, False, True, False]
    assert len(endpoint.asked) == 2
    endpoint.reply = lambda asked: "Perhaps."
    assert not recognise(detector, texts).any()


def test_a_classifiers_label(tmp_path):
    config = tf.LlamaConfig(**GQA, num_labels=2, id2label={0: "dull", 1: "kind"}, label2id={"dull": 0, "kind": 1})
    torch.manual_seed(0)
    tf.LlamaForSequenceClassification(config).eval().save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    texts = [f"w{i} w{3 * i % 50} w{7 * i % 90}" for i in range(12)]
    kind = recognise(Recognised(kind="classifier", model=str(tmp_path), label="kind"), texts)
    dull = recognise(Recognised(kind="classifier", model=str(tmp_path), label="dull"), texts)
    assert (kind != dull).all() and 0 < kind.sum() < 12
    with pytest.raises(SpecError, match="has no label 'rude'; it has dull, kind"):
        recognise(Recognised(kind="classifier", model=str(tmp_path), label="rude"), texts)
    with pytest.raises(ModelError, match="no text classifier"):
        recognise(Recognised(kind="classifier", model=str(tmp_path / "none"), label="rude"), texts)


def test_a_detector_says_which_fields_it_needs_and_has():
    with pytest.raises(ValueError, match="needs url and question"):
        Recognised(kind="judge", model="m")
    with pytest.raises(ValueError, match="has no phrases"):
        Recognised(kind="refusal", phrases=("x",))
