"""Scores of units: agreement with brute force, ties, intervals, and dealings that leave no concept whole."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchclamp.neurons.selective import Ranked, dealings, halves, score_interval


def brute_force(mine, rivals):
    return np.mean([(one > other) + 0.5 * (one == other) for one in mine for other in rivals])


@given(st.integers(0, 10_000), st.integers(4, 30))
def test_scores_agree_with_counting_all_pairs(seed, n):
    """Values from few levels, so that ties are common."""
    generator = np.random.default_rng(seed)
    values_NU = generator.integers(0, 5, (n, 3)).astype(np.float32)
    is_rival = np.arange(n) >= 3
    shown = [np.array([0]), np.array([1, 2])]
    found = Ranked(values_NU).aurocs(shown, is_rival)
    for f, rows in enumerate(shown):
        for unit in range(3):
            assert found[f, unit] == pytest.approx(brute_force(values_NU[rows, unit], values_NU[is_rival, unit]))


def test_the_interval_is_around_the_smallest_auroc_and_narrows():
    generator = np.random.default_rng(0)

    def interval(n):
        values = np.concatenate([generator.normal(2, 1, n), generator.normal(1, 1, n), generator.normal(0, 1, 4 * n)])
        shown = [np.arange(n), np.arange(n, 2 * n)]
        is_rival = np.arange(6 * n) >= 2 * n
        found = score_interval(values, shown, is_rival, seed=0)
        assert found.mean == pytest.approx(min(brute_force(values[rows], values[is_rival]) for rows in shown))
        assert found.low < found.mean < found.high
        return found.high - found.low

    assert interval(100) < interval(10)


def test_the_interval_covers_the_truth():
    """The AUROC of two normals one standard deviation apart is Φ(1/√2) = .760."""
    held = 0
    for seed in range(60):
        generator = np.random.default_rng(seed)
        values = np.concatenate([generator.normal(1, 1, 25), generator.normal(0, 1, 75)])
        found = score_interval(values, [np.arange(25)], np.arange(100) >= 25, seed)
        held += found.low <= 0.7602 <= found.high
    assert held >= 52  # of 60: fewer happen once in 50 times where 95 % hold


def test_halves_split_every_category_alike_and_share_nothing():
    labels = ["a"] * 5 + ["b"] * 4 + ["c"]
    first, second = halves(labels, 0)
    assert sorted([*first, *second]) == list(range(10))
    assert [[labels[i] for i in half].count(name) for half in (first, second) for name in "abc"] == [2, 2, 0, 3, 2, 1]


def test_each_form_is_dealt_another_concept():
    found = dealings([["a", "b", "c", "d"]] * 3, 20, 0)
    assert len(found) == len(set(found)) == 20
    assert all(len(set(one)) == 3 for one in found)


def test_two_concepts_are_dealt_so_that_two_forms_differ():
    found = dealings([["a", "b"]] * 3, 20, 0)
    assert len(found) == 6
    assert ("a", "a", "a") not in found


@pytest.mark.parametrize("concepts", [[["a", "b", "c"]], [["a", "b"]] * 2, [["a"], ["a", "b"]]])
def test_one_form_or_too_few_concepts_cannot_be_dealt(concepts):
    assert dealings(concepts, 20, 0) == []


def test_very_many_ways_are_drawn_from():
    found = dealings([[f"c{i}" for i in range(40)]] * 5, 20, 0)
    assert len(set(found)) == 20
    assert all(len(set(one)) == 5 for one in found)
