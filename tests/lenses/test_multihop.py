"""Two hops: back-patching against a hook written by hand, the split, the shipped questions, and bad input."""

import json
from collections import Counter

import numpy as np
import pytest
import torch

import patchclamp as pc
from patchclamp.errors import FileError, RunError
from patchclamp.forward.streams import streams
from patchclamp.lenses.backpatch import Asked, answers_after, best_pair, copied, pairs_of, random_instead
from patchclamp.lenses.multihop import _halves, _says
from patchclamp.tasks import HopRow, read_rows

PROMPT = "The capital of the country where the city of Osaka lies is the city of"
ROWS = read_rows("example:two-hop", HopRow)


def test_the_shipped_questions_are_two_hops_each():
    assert len({row.prompt for row in ROWS}) == len(ROWS) >= 150
    assert all(row.phrase in row.prompt and row.bridge in row.second for row in ROWS)
    assert all(row.bridge not in row.prompt and row.answer not in row.prompt + row.first for row in ROWS)
    assert all(row.second == row.prompt.replace(row.phrase, the(row)) for row in ROWS)


def the(row):
    return f"the {row.bridge}" if row.first.endswith(" the") else row.bridge


def test_a_bridge_has_one_capital():
    capitals = {(row.bridge, row.answer) for row in ROWS if "capital" in row.prompt}
    assert max(Counter(bridge for bridge, _ in capitals).values()) == 1


def test_words_are_found_whole():
    assert _says([["in Germany", "German beer"]], ["German"]).tolist() == [[False, True]]


def test_questions_about_one_subject_stay_together():
    phrases = [row.phrase for row in ROWS]
    sides = dict(zip(phrases, _halves(phrases, 0), strict=True))
    assert [sides[phrase] for phrase in phrases] == _halves(phrases, 0)
    assert 0.4 < np.mean(_halves(phrases, 0)) < 0.6


def test_the_best_pair_moves_the_state_least_among_equals():
    assert best_pair([(5, 1), (4, 3), (6, 2)], np.array([[True, True, False], [False, False, False]])) == (4, 3)


def test_every_second_block_keeps_the_last():
    assert len(pairs_of(18)) == 153
    assert pairs_of(6, 2) == [(3, 1), (5, 1), (5, 3)]
    assert pairs_of(2, 2) == []


@pytest.mark.weights
@pytest.mark.parametrize("at", [-1, 12])
def test_back_patching_is_a_hook_that_puts_the_state_in(gemma, at):
    """Against transformers alone, for pairs near and far apart."""
    ids = gemma.encode(PROMPT).ids
    at = at % len(ids)
    place_LD = streams(gemma, [PROMPT], at)[0]
    pairs = [(17, 0), (9, 8), (12, 3), (3, 0)]
    for pair in pairs:
        def put_in(_, __, output, pair=pair):
            whole = output[0] if isinstance(output, tuple) else output
            whole[0, at] = place_LD[pair[0] + 1]

        handle = gemma.anatomy.blocks[pair[1]].register_forward_hook(put_in)
        with torch.no_grad():
            choice = int(gemma.hf(torch.tensor([ids])).logits[0, -1].argmax())
        handle.remove()
        asked = Asked(PROMPT, at, choice, False, place_LD)
        assert answers_after(gemma, [asked], [pair]).tolist() == [[True]]


@pytest.mark.weights
def test_random_vectors_have_the_length_of_the_state_they_replace(gemma):
    asked = Asked(PROMPT, 3, 0, False, streams(gemma, [PROMPT], 3)[0])
    pair = pairs_of(18)[40]
    drawn = random_instead(0)(asked, pair)
    assert drawn.norm() == pytest.approx(float(copied(asked, pair).norm()), rel=1e-4)
    assert abs(float(torch.cosine_similarity(drawn, copied(asked, pair), dim=0))) < 0.2


@pytest.fixture(scope="module")
def two_hops(gemma):
    return pc.run("lens.multihop", gemma, limit=30, max_new_tokens=4, controls=19, step=3)


@pytest.mark.weights
def test_the_result_adds_up(gemma, two_hops):
    result = two_hops.result
    moved = result.backpatch
    assert result.right.questions + result.wrong.questions + result.unknown == result.asked == 30
    assert moved.development + moved.wrong + moved.right == result.right.questions + result.wrong.questions
    assert len(moved.pairs) == len(pairs_of(18, 3)) and moved.target_layer < moved.source_layer
    chosen = moved.pairs[pairs_of(18, 3).index((moved.source_layer, moved.target_layer))]
    if moved.wrong:
        assert chosen.repaired == pytest.approx(moved.repaired.mean)
        assert moved.repaired.mean <= moved.best_repaired.mean
    assert not result.norm_matched  # a state goes back to its own layer, whose lengths differ little


@pytest.mark.weights
def test_it_draws_and_comes_back_from_json(two_hops, tmp_path):
    assert two_hops.save(tmp_path / "chart.svg").read_text().startswith("<svg")
    assert pc.Record.from_json(two_hops.to_json()).to_json() == two_hops.to_json()


def write(path, **changes):
    rows = [{**{name: getattr(row, name) for name in HopRow.model_fields}, **changes} for row in ROWS[:40]]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.weights
@pytest.mark.parametrize(("changes", "error", "said"), [
    ({"phrase": "nowhere"}, FileError, "line 1: .*'phrase' is not part"),
    ({"answer": "France", "bridge": "France"}, FileError, "are the same"),
    ({"answer": "France Sud", "bridge": "France"}, FileError, "0 questions whose answers"),
    ({"phrase": "The capital", "prompt": "The capital is"}, FileError, "all questions are about 'The capital'"),
    ({"first": "Seven times eight is", "bridge": "Peru"}, RunError, "answers both hops of only 0 of"),
])
def test_bad_questions(gemma, tmp_path, changes, error, said):
    with pytest.raises(error, match=said):
        pc.run("lens.multihop", gemma, questions=write(tmp_path / "q.jsonl", **changes))
