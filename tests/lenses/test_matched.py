"""Control tokens: like the given one in form and frequency, never the word itself."""

import pytest
from tiny import tiny_model

from patchclamp.errors import InputError
from patchclamp.lenses.matched import form, matched_tokens


def test_the_same_seed_draws_the_same_tokens_and_never_the_excluded():
    model = tiny_model("llama")
    drawn = matched_tokens(model, 50, 10, seed=1, exclude=[51])
    assert drawn == matched_tokens(model, 50, 10, seed=1, exclude=[51])
    assert drawn != matched_tokens(model, 50, 10, seed=2, exclude=[51])
    assert len(set(drawn)) == 10
    assert not {50, 51} & set(drawn)


def test_near_ids_are_preferred():
    drawn = matched_tokens(tiny_model("llama"), 50, 5, seed=0)
    assert all(abs(token - 50) <= 10 for token in drawn)


def test_more_than_the_vocabulary_holds_is_refused():
    with pytest.raises(InputError, match="fewer controls"):
        matched_tokens(tiny_model("llama"), 50, 200, seed=0)


@pytest.mark.weights
def test_real_controls_have_the_words_form(gemma):
    drawn = [gemma.say(t) for t in matched_tokens(gemma, gemma.token(" Warsaw"), 30, seed=0)]
    assert {form(word) for word in drawn} == {(True, True, True, True)}
    assert " Warsaw" not in drawn
