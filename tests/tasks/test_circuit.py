"""Generators of pairs: what they hold, and what they must not."""

import pytest

from patchclamp.errors import InputError
from patchclamp.tasks.circuit import TASKS, circuit_task, filled


@pytest.mark.parametrize("name", TASKS)
def test_pairs_differ_in_what_decides_and_in_nothing_else(name):
    pairs = list(TASKS[name].pairs(40))
    assert len({pair.clean for pair in pairs}) == 40
    for pair in pairs:
        clean, corrupted = pair.clean.split(), pair.corrupted.split()
        assert len(clean) == len(corrupted)
        assert 1 <= sum(a != b for a, b in zip(clean, corrupted, strict=True)) <= 3
        assert pair.answer != pair.distractor


@pytest.mark.parametrize("name", TASKS)
def test_every_template_is_used_and_the_seed_decides(name):
    task = TASKS[name]
    assert {pair.template for pair in task.pairs(12)} == set(task.templates)
    assert len(task.templates) >= 4
    assert list(task.pairs(6, seed=1)) == list(task.pairs(6, seed=1)) != list(task.pairs(6, seed=2))


@pytest.mark.parametrize("name", TASKS)
def test_roles_are_where_the_words_stand(name):
    for pair in TASKS[name].pairs(8):
        assert pair.roles
        for first, behind in pair.roles.values():
            assert pair.clean[first:behind].strip() == pair.clean[first:behind] != ""


def test_indirect_objects_are_the_names_that_do_not_come_again():
    for pair in TASKS["ioi"].pairs(30):
        again = pair.clean[slice(*pair.roles["S2"])]
        assert pair.distractor == f" {again}" and pair.clean.count(again) == 2
        assert pair.clean.count(pair.answer.strip()) == 1
        assert pair.corrupted.count(pair.answer.strip()) == 2


def test_a_later_year_is_later_and_the_other_is_not():
    for pair in TASKS["greater-than"].pairs(50):
        tens = int(pair.clean[slice(*pair.roles["TENS"])])
        assert int(pair.answer) > tens > int(pair.distractor)


def test_an_induction_goes_on_with_what_came_after():
    for pair in TASKS["induction"].pairs(30):
        again = pair.clean[slice(*pair.roles["AGAIN"])]
        assert f" {again}{pair.answer}" in pair.clean
        assert f" {pair.corrupted.split()[-1]}{pair.distractor}" in pair.corrupted


def test_an_unknown_task_names_those_there_are():
    with pytest.raises(InputError, match="ioi"):
        circuit_task("nothing")


def test_words_are_filled_in_where_their_names_stand():
    assert filled("a {NAME} b {thing}", {"NAME": "Ann", "thing": "cup"}) == ("a Ann b cup", {"NAME": (2, 5)})
