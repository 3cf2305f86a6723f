"""Intervals: exact properties of resampling, then how often they cover, then refusals."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from patchclamp.errors import InputError
from patchclamp.evidence.bootstrap import bootstrap_groups, bootstrap_mean, control_range, paired_difference

few = settings(deadline=None, max_examples=20)

numbers = st.floats(-1e6, 1e6)
samples = st.lists(numbers, min_size=2, max_size=20)


@few
@given(samples, st.integers(0, 2**32))
def test_interval_holds_between_the_smallest_and_the_largest_value(values, seed):
    interval = bootstrap_mean(values, seed, n=100)
    # A mean of values up to 1e6 is rounded at 1e6 × 2^-53 ≈ 1e-10, a few times over.
    slack = 1e-9
    assert min(values) - slack <= interval.low <= interval.high <= max(values) + slack
    assert interval.mean == pytest.approx(float(np.mean(values)), abs=slack)


def test_same_seed_same_interval_other_seed_another():
    values = np.random.default_rng(0).normal(size=30)
    assert bootstrap_mean(values, seed=1) == bootstrap_mean(values, seed=1)
    assert bootstrap_mean(values, seed=1) != bootstrap_mean(values, seed=2)


@few
@given(numbers, st.integers(2, 20), st.integers(2, 30))
def test_equal_values_have_exactly_their_own_mean(value, few, many):
    first, second = bootstrap_mean([value] * few, 0, n=20), bootstrap_mean([value] * many, 0, n=20)
    assert (first.mean, first.low, first.high) == (value, value, value)
    assert first == second, "rounding must not tell equal samples apart"


def test_interval_shifts_and_scales_with_the_values():
    values = np.random.default_rng(0).normal(size=30)
    plain, moved = bootstrap_mean(values, seed=3), bootstrap_mean(10 * values + 5, seed=3)
    for end in ("mean", "low", "high"):
        assert getattr(moved, end) == pytest.approx(10 * getattr(plain, end) + 5, abs=1e-12)


def test_interval_width_approaches_the_normal_one():
    """Width → 2 · 1.96 · s/√N. 2000 resamples know their 2.5 % quantile within about 4 %; 10 % is allowed."""
    values = np.random.default_rng(0).normal(size=400)
    interval = bootstrap_mean(values, seed=0)
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)


def test_intervals_cover_the_true_mean_about_as_often_as_promised():
    """300 samples of 30 normal values: the bootstrap covers a little under 95 % (about 93.5 %), and 300
    trials scatter by ±1.4 %, so anything from 88 to 98 % is as it should be."""
    generator = np.random.default_rng(0)
    intervals = [bootstrap_mean(generator.normal(size=30), seed, n=400) for seed in range(300)]
    assert 0.88 <= np.mean([i.low <= 0 <= i.high for i in intervals]) <= 0.98


def test_long_samples_are_resampled_in_blocks(monkeypatch):
    values = np.random.default_rng(0).normal(size=50)
    monkeypatch.setattr("patchclamp.evidence.bootstrap.BLOCK", 120)
    interval = bootstrap_mean(values, seed=0, n=101)
    assert interval.low < interval.mean < interval.high


def test_one_observation_has_no_interval():
    interval = bootstrap_mean([3.0], seed=0)
    assert interval.mean == 3.0
    assert math.isnan(interval.low) and math.isnan(interval.high) and not interval.exists


def test_level_sets_the_width():
    values = np.random.default_rng(0).normal(size=30)
    wide, narrow = bootstrap_mean(values, 0, level=0.99), bootstrap_mean(values, 0, level=0.5)
    assert wide.low < narrow.low < narrow.high < wide.high


def test_paired_difference_ignores_what_pairs_share():
    generator = np.random.default_rng(0)
    shared = 100 * generator.normal(size=20)
    gain = 1 + 0.1 * generator.normal(size=20)

    paired = paired_difference(shared + gain, shared, seed=0)

    assert paired.low > 0.9 and paired.high < 1.1
    assert bootstrap_mean(shared + gain, seed=0).low < 0, "unpaired, the prompts' spread would hide it"


def test_paired_difference_needs_pairs():
    with pytest.raises(InputError, match="equally many values on both sides; got 2 and 3"):
        paired_difference([1, 2], [1, 2, 3], seed=0)


def test_one_group_is_a_plain_bootstrap_of_prompts():
    """Both draw with replacement, by different means: they agree as two seeds do, within 5 % of the width."""
    values = np.random.default_rng(0).normal(size=40)
    crossed, plain = bootstrap_groups(values[None], seed=0), bootstrap_mean(values, seed=0)
    assert crossed.mean == pytest.approx(plain.mean, abs=1e-12)
    assert crossed.low == pytest.approx(plain.low, abs=0.05 * (plain.high - plain.low))


def test_interval_of_groups_counts_both_kinds_of_chance():
    """Variance of the grand mean: group variance / G + prompt variance / N. With effects of size 1 for 10
    groups and 10 prompts the interval is √2 as wide as if prompts had been all the chance there is."""
    generator = np.random.default_rng(0)
    groups_G, prompts_N = generator.normal(size=10), generator.normal(size=10)
    groups_G, prompts_N = groups_G / groups_G.std(), prompts_N / prompts_N.std()
    both = bootstrap_groups(groups_G[:, None] + prompts_N, seed=0)
    prompts_only = bootstrap_groups(np.zeros((10, 1)) + prompts_N, seed=0)
    ratio = (both.high - both.low) / (prompts_only.high - prompts_only.low)
    assert ratio == pytest.approx(math.sqrt(2), rel=0.1)


def test_one_value_of_one_group_has_no_interval():
    assert not bootstrap_groups([[1.0]], seed=0).exists


def test_control_range_is_the_prediction_interval_of_one_more_group():
    values = np.random.default_rng(0).normal(size=12)
    half = stats.t.ppf(0.975, 11) * stats.sem(values) * math.sqrt(13)  # s·√(1 + 1/G) = (s/√G)·√(G + 1)
    interval = control_range(values)
    assert interval.high - interval.mean == pytest.approx(half, rel=1e-9)
    assert interval.mean - interval.low == pytest.approx(half, rel=1e-9)


@pytest.mark.parametrize("groups", [3, 10, 40])
def test_control_range_holds_one_more_group_as_often_as_promised(groups):
    """The interval is exact for normal groups; 1000 trials scatter by 0.7 %, so 3 % is four times that."""
    generator = np.random.default_rng(groups)
    draws = generator.normal(size=(1000, groups + 1))
    ranges = [control_range(row[:-1]) for row in draws]
    inside = [r.low <= row[-1] <= r.high for r, row in zip(ranges, draws, strict=True)]
    assert np.mean(inside) == pytest.approx(0.95, abs=0.03)


def test_one_group_has_no_range():
    assert not control_range([1.0]).exists
    assert control_range([0.0, 0.1, 0.0], share=True).low == 0.0
    assert control_range([0.9, 0.0, 0.8], share=True).high == 1.0
    assert control_range([0.9, 0.0, 0.8]).high > 1.0


def test_tensors_of_any_dtype_are_taken():
    values = torch.tensor([1.0, 2.0, 4.0], dtype=torch.bfloat16, requires_grad=True)
    assert bootstrap_mean(values, seed=0) == bootstrap_mean([1.0, 2.0, 4.0], seed=0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], "at least one value"),
        ([1.0, math.nan], r"1 of 2 values are not finite \(the first is nan, at \[1\]\)"),
        ([math.inf, 1.0], "not finite"),
        ([[1.0, 2.0]], "1 dimension"),
        (["a"], "rectangle of numbers"),
        ([[1.0], [1.0, 2.0]], "rectangle of numbers"),
    ],
)
def test_wrong_samples_are_refused(values, message):
    with pytest.raises(InputError, match=message):
        bootstrap_mean(values, seed=0)


def test_wrong_level_is_refused():
    with pytest.raises(InputError, match="between 0 and 1"):
        bootstrap_mean([1.0, 2.0], seed=0, level=95)
