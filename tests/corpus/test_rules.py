"""N-gram rules, learnt and applied."""

from itertools import count

import pytest

from patchclamp.corpus.found import Window
from patchclamp.corpus.rules import learn, normal

NUMBERS = count()


def window(text, active):
    number = next(NUMBERS)
    tokens = text.split(" ")
    values = [5.0 if i in active else 0.1 for i in range(len(tokens))]
    at = active[0] if active else 0
    return Window(tokens=tokens, activations=values, at=at, value=values[at], window=number, position=at)


def test_a_word_that_always_fires_is_the_rule():
    rule = learn([window("we saw these books", [2]), window("These are old", [0]), window("a book is here", [])], 1.0)
    assert list(rule.grams) == [("these",)] and rule.text == "at the end of “these”"
    new = window("under these trees", [1])
    assert rule.activations([new]) == [pytest.approx([0.1, 5.0, 0.1])]
    assert rule.fires([new, window("under that tree", [])]) == [True, False]
    assert rule.fits([new, new], [[1], [0]]) == [True, False]


def test_a_phrase_is_told_from_its_last_word():
    texts = [window("out of school", [2]), window("go out of school", [3]), window("the school", []),
             window("a school here", [])]
    assert list(learn(texts, 1.0).grams) in ([("of", "school")], [("out", "of", "school")])


def test_a_neuron_without_a_pattern_has_no_rule():
    texts = [window(f"word{i} other{i} thing{i}", [i % 3]) for i in range(9)]
    rule = learn(texts, 1.0)
    assert not rule.grams and "no word" in rule.text
    assert rule.fires(texts) == [False] * 9


def test_blank_tokens_stay_themselves():
    assert [normal(token) for token in (" These", "\n", "  ", "Ok")] == ["these", "\n", "  ", "ok"]


def test_a_place_that_is_in_two_windows_counts_once():
    once = window("so these books", [1])
    assert not learn([once, once.model_copy(update={"tenth": 3})], 1.0).grams
