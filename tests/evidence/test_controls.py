"""Controls: what a matched control may and may not contain."""

from collections import Counter
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from patchclamp.errors import InputError
from patchclamp.evidence.controls import (
    count_groups,
    matching_strengths,
    random_split_directions,
    random_units,
    rescale,
    shuffled_labels,
)

few = settings(deadline=None, max_examples=20)

units = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 19)), min_size=1, max_size=8, unique=True)


@few
@given(units, units, st.integers(0, 1000))
def test_groups_match_the_targets_layers_and_hold_none_of_them(targets, exclude, seed):
    for group in random_units(targets, 20, n_groups=2, seed=seed, exclude=exclude):
        assert [layer for layer, _ in group] == [layer for layer, _ in targets]
        assert len(set(group)) == len(group)
        assert not set(group) & {*targets, *exclude}
        assert all(0 <= unit < 20 for _, unit in group)


def test_same_seed_same_groups():
    targets = [(0, 1), (3, 7)]
    assert random_units(targets, 100, 5, seed=1) == random_units(targets, 100, 5, seed=1)
    assert random_units(targets, 100, 5, seed=1) != random_units(targets, 100, 5, seed=2)


def test_all_groups_can_be_asked_for_and_none_comes_twice():
    groups = random_units([(0, 0), (0, 1)], 6, n_groups=6, seed=0)
    expected = {frozenset(((0, a), (0, b))) for a, b in combinations(range(2, 6), 2)}
    assert {frozenset(group) for group in groups} == expected


def test_units_are_drawn_uniformly():
    """Each of 10 units is drawn 400 times on average with standard deviation 19; 5 of those is 95."""
    draws = Counter(random_units([(0, 10)], 11, 1, seed=seed)[0][0] for seed in range(4000))
    assert all(abs(draws[0, unit] - 400) < 95 for unit in range(10))


def test_layers_may_differ_in_size():
    groups = random_units([(0, 0), (1, 0)], lambda layer: 2 if layer == 0 else 5, n_groups=4, seed=0)
    assert all(group[0] == (0, 1) for group in groups)
    assert {group[1] for group in groups} == {(1, unit) for unit in range(1, 5)}


@pytest.mark.parametrize(
    ("targets", "n_groups", "message"),
    [
        ([(0, 0)], 9, "only 8 different control group"),
        ([(0, u) for u in range(5)], 1, "layer 0 has 4 unit\\(s\\) left .* needs 5"),
        ([(0, 9)], 1, "layer 0 has 9 units \\(0 to 8\\); target 9"),
        ([(0, 1), (0, 1)], 1, "unit 1 of layer 0 is a target twice"),
        ([], 1, "name at least one unit"),
        ([(0, 0)], 0, "at least 1"),
    ],
)
def test_impossible_groups_are_refused(targets, n_groups, message):
    with pytest.raises(InputError, match=message):
        random_units(targets, 9, n_groups, seed=0)


def test_count_groups_is_the_number_of_ways_to_choose():
    assert count_groups([(0, 0)], 9) == 8
    assert count_groups([(0, 0), (0, 1), (4, 2)], 9, exclude=[(0, 5)]) == 15 * 8


def test_split_directions_have_the_activations_covariance():
    """Over splits of N rows in halves, Cov = (1/N₁ + 1/N₂) Σ = 4/N Σ. 4000 directions know a covariance
    within 1/√4000 ≈ 1.6 % of the product of standard deviations; 8 % is five times that."""
    generator = torch.Generator().manual_seed(0)
    acts_ND = torch.randn(40, 3, generator=generator) * torch.tensor([100.0, 1.0, 0.1])
    acts_ND[:, 1] += acts_ND[:, 0] / 100

    directions_KD = random_split_directions(acts_ND + 1000, 4000, seed=0)

    expected_DD = torch.cov(acts_ND.T) * 4 / 40
    scale_D = expected_DD.diagonal().sqrt()
    assert ((torch.cov(directions_KD.T) - expected_DD).abs() < 0.08 * torch.outer(scale_D, scale_D)).all()


@pytest.mark.parametrize("rows", [2, 5, 8])
def test_each_split_direction_is_a_difference_of_two_halves_means(rows):
    acts_ND = torch.eye(rows, dtype=torch.float64)  # so that a direction spells out its weights
    for direction_D in random_split_directions(acts_ND, 3, seed=0):
        first, second = rows // 2, rows - rows // 2
        weights = sorted(direction_D.tolist())
        expected = [-1 / second] * second + [1 / first] * first
        assert weights == pytest.approx(expected, abs=1e-12)  # float64 sums of a few weights


def test_split_directions_lie_in_the_span_of_the_activations():
    acts_ND = torch.randn(30, 2, generator=torch.Generator().manual_seed(0)) @ torch.tensor(
        [[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]]
    )
    directions_KD = random_split_directions(acts_ND, 10, seed=0)
    # The third coordinate is the sum of the others; float32 output rounds at 6e-8 of values below 1.
    assert torch.allclose(directions_KD[:, 2], directions_KD[:, 0] + directions_KD[:, 1], atol=1e-6)


def test_split_directions_keep_dtype_but_not_half_precision():
    assert random_split_directions(torch.randn(4, 2), 1, seed=0).dtype == torch.float32
    assert random_split_directions(torch.randn(4, 2).double(), 1, seed=0).dtype == torch.float64
    assert random_split_directions(torch.randn(4, 2).bfloat16(), 1, seed=0).dtype == torch.float32


@pytest.mark.parametrize(
    ("acts", "message"),
    [(torch.zeros(1, 3), "at least 2"), (torch.zeros(3), "N, D"), (torch.full((3, 3), torch.nan), "NaN")],
)
def test_activations_that_cannot_be_split_are_refused(acts, message):
    with pytest.raises(InputError, match=message):
        random_split_directions(acts, 1, seed=0)


def test_rescale_sets_the_length_and_keeps_the_direction():
    directions_KD = torch.tensor([[3.0, 4.0], [0.0, 0.5]])
    assert rescale(directions_KD, 10.0).tolist() == [[6.0, 8.0], [0.0, 10.0]]
    assert rescale(directions_KD, torch.tensor([5.0, 1.0])).tolist() == [[3.0, 4.0], [0.0, 1.0]]
    with pytest.raises(InputError, match="length 0"):
        rescale(torch.zeros(1, 2), 1.0)


@few
@given(st.floats(1e-4, 1e4), st.lists(st.floats(0.5, 3), min_size=1, max_size=4), st.floats(1e-3, 1e3))
def test_matching_strengths_find_the_dose_of_each(target, powers, start):
    def measure(strengths: np.ndarray) -> np.ndarray:
        return strengths ** np.array(powers)

    found = matching_strengths(measure, target, len(powers), start=start, max_rounds=60, highest=1e12)
    assert measure(found) == pytest.approx(np.full(len(powers), target), rel=0.05)


def test_what_levels_off_below_the_dose_is_stretched_so_far_and_no_further():
    found = matching_strengths(lambda strengths: np.minimum(strengths, [1.0, 9.0]), 2.0, 2, highest=64)
    assert found[0] <= 64
    assert found[1] == pytest.approx(2, rel=0.05)


def test_a_dose_of_nothing_cannot_be_matched():
    with pytest.raises(InputError, match="positive"):
        matching_strengths(lambda strengths: strengths, 0.0, 1)


@few
@given(st.lists(st.sampled_from("abc"), min_size=2, max_size=12), st.integers(0, 100))
def test_shuffled_labels_keep_their_counts(labels, seed):
    if len(set(labels)) < 2:
        with pytest.raises(InputError, match="two different labels"):
            shuffled_labels(labels, 3, seed)
        return
    shuffles = shuffled_labels(labels, 3, seed)
    assert all(Counter(shuffle) == Counter(labels) for shuffle in shuffles)
    assert shuffles == shuffled_labels(labels, 3, seed)


def test_shuffled_labels_are_unrelated_to_the_rows():
    """Agreement with the true labels has mean 1/2 and standard deviation 0.05/√200 over 200 shuffles of 100
    balanced labels; 0.02 is more than five of those."""
    labels = [i % 2 for i in range(100)]
    agreement = np.mean(
        [np.equal(labels, shuffle).mean() for shuffle in shuffled_labels(labels, 200, seed=0)]
    )
    assert agreement == pytest.approx(0.5, abs=0.02)
