"""Detectors: a refusal says that it will not or cannot; repetition shows nothing; phrases are whole words."""

import pytest

from patchclamp.errors import SpecError
from patchclamp.tasks.behaviour import Recognised
from patchclamp.vectors.detect import count_phrases, is_degenerate, refuses, repetition, shows


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
    assert not shows(Recognised(kind="refusal"), text)


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
    assert shows(detector, "A lovely and nice, if awful, day.")
    assert not shows(detector, "A lovely, awful day.")


def test_choice_judges_no_text():
    with pytest.raises(SpecError, match="compares the likelihood"):
        shows(Recognised(kind="choice"), "text")
