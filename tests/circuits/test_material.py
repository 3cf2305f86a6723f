"""Prompts to look on and prompts to test on are different ones."""

import json

import pytest
from tiny import tiny_model

from patchclamp.circuits.find import FindSpec
from patchclamp.circuits.material import make_ready, material
from patchclamp.errors import PromptError, SpecError
from patchclamp.tasks.circuit import TASKS, CircuitPair, circuit_task


@pytest.mark.parametrize("name", sorted(TASKS))
def test_no_prompt_comes_twice_nor_a_pair_the_other_way_round(name):
    pairs = list(circuit_task(name).pairs(300, 0))
    assert len({pair.clean for pair in pairs}) == len(pairs)
    assert len({frozenset((pair.clean, pair.corrupted)) for pair in pairs}) == len(pairs)


@pytest.mark.weights
def test_a_task_with_too_few_different_prompts_says_so(smollm2):
    with pytest.raises(SpecError, match=r"only \d+ pairs suit"):
        material(smollm2, FindSpec(task="capital", prompts=64, heldout=64))


def test_rows_that_come_again_are_neither_looked_on_nor_tested_on(good_pairs, tmp_path):
    rows = good_pairs.read_text().splitlines()[:8]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(f"{row}\n" for row in [*rows, *rows]))
    found = material(tiny_model("llama"), FindSpec(pairs=str(path), prompts=4, heldout=16))
    assert (len(found.search), len(found.heldout), found.skipped) == (4, 4, 8)
    assert {one.clean for one in found.search}.isdisjoint(one.clean for one in found.heldout)
    path.write_text("".join(f"{rows[0]}\n" for _ in range(20)))
    with pytest.raises(SpecError, match="1 different pairs"):
        material(tiny_model("llama"), FindSpec(pairs=str(path)))


def test_a_word_that_comes_again_has_a_role_of_its_own():
    pair = next(iter(circuit_task("docstring").pairs(1)))
    first, again = (pair.clean[slice(*pair.roles[name])] for name in ("FIRST", "FIRST again"))
    assert first == again and pair.roles["FIRST"][0] < pair.clean.index("):") < pair.roles["FIRST again"][0]


def test_words_that_play_a_part_stand_at_the_same_tokens():
    fine = CircuitPair("w1 w2 w3", "w1 w4 w3", "w5", "w6", roles={"X": (3, 5)}, counterparts={"X": (3, 5)})
    assert make_ready(tiny_model("llama"), fine).roles == {"X": (1,)}
    moved = CircuitPair("w1 w2 w3", "w4 w2 w5", "w5", "w6", roles={"X": (3, 5)}, counterparts={"X": (0, 2)})
    with pytest.raises(PromptError, match="do not stand at the same tokens"):
        make_ready(tiny_model("llama"), moved)


def test_a_files_rows_are_read_in_their_order(good_pairs):
    rows = [json.loads(line) for line in good_pairs.read_text().splitlines()]
    found = material(tiny_model("llama"), FindSpec(pairs=str(good_pairs), prompts=4, heldout=4))
    assert [one.pair.clean for one in (*found.search, *found.heldout)] == [row["clean"] for row in rows[:8]]
