"""The verdict: each line of its rule, and how often it is fooled."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchclamp.errors import InputError
from patchclamp.evidence.bootstrap import bootstrap_groups, bootstrap_mean, control_range
from patchclamp.evidence.verdict import Interval, Verdict, judge

few = settings(deadline=None, max_examples=20)


def interval(mean: float, half: float) -> Interval:
    return Interval(mean=mean, low=mean - half, high=mean + half)


CONTROL = interval(0, 1)


@pytest.mark.parametrize(
    ("effect", "direction", "outcome"),
    [
        (interval(3, 1), "differs", "supported"),
        (interval(-3, 1), "differs", "supported"),
        (interval(3, 1), "greater", "supported"),
        (interval(-3, 1), "greater", "not supported"),
        (interval(-3, 1), "less", "supported"),
        (interval(3, 1), "less", "not supported"),
        (interval(0.5, 0.1), "differs", "not supported"),
        (interval(0.5, 10), "greater", "not supported"),
        (interval(2, 1), "differs", "inconclusive"),  # the ends touch
        (interval(1.5, 1), "greater", "inconclusive"),
    ],
)
def test_two_intervals_decide(effect, direction, outcome):
    assert judge(effect, CONTROL, claim="x", direction=direction).outcome == outcome


@few
@given(
    *[st.floats(-10, 10)] * 2,
    *[st.floats(0, 5)] * 2,
    st.sampled_from(["differs", "greater", "less"]),
    st.sampled_from(["mean", "distribution"]),
)
def test_mirrored_numbers_mirror_the_verdict(effect, control, effect_half, control_half, direction, against):
    opposite = {"greater": "less", "less": "greater", "differs": "differs"}[direction]
    plain = judge(
        interval(effect, effect_half),
        interval(control, control_half),
        claim="x",
        direction=direction,
        against=against,
    )
    mirrored = judge(
        interval(-effect, effect_half),
        interval(-control, control_half),
        claim="x",
        direction=opposite,
        against=against,
    )
    assert plain.outcome == mirrored.outcome


def test_values_are_judged_by_their_bootstrap_intervals():
    generator = np.random.default_rng(0)
    effect, control = generator.normal(5, 1, size=20), generator.normal(0, 1, size=20)
    verdict = judge(effect, control, claim="x", seed=7)
    assert verdict.effect == bootstrap_mean(effect, 7)
    assert verdict.control == bootstrap_mean(control, 7)
    assert verdict.outcome == "supported"


def test_groups_prompt_by_prompt_become_an_interval_or_a_range():
    control_GN = np.random.default_rng(0).normal(size=(8, 10))
    assert judge([5.0] * 10, control_GN, claim="x").control == bootstrap_groups(control_GN, 0)
    ranged = judge([5.0] * 10, control_GN, claim="x", against="distribution")
    assert ranged.control == control_range(control_GN.mean(axis=1))


def test_one_observation_against_a_mean_is_inconclusive():
    verdict = judge(1e9, [0.0] * 10, claim="x")
    assert verdict.outcome == "inconclusive"
    assert "rests on 1 observation, where 6 are needed" in verdict.reason


def test_one_observation_can_be_judged_against_a_distribution():
    groups = np.random.default_rng(0).normal(size=30)
    assert judge(100.0, groups, claim="x", against="distribution").outcome == "supported"
    verdict = judge(0.1, groups, claim="x", against="distribution")
    assert verdict.outcome == "not supported"
    assert "of one observation" in verdict.reason


@pytest.mark.parametrize("size", range(1, 6))
def test_fewer_than_six_observations_decide_nothing_against_a_mean(size):
    many = [0.0, 0.1] * 10
    assert judge([9.0] * size, many, claim="x").outcome == "inconclusive"
    assert judge(many, [9.0] * size, claim="x").outcome == "inconclusive"
    assert judge([9.0] * 6, many, claim="x").outcome == "supported"


def test_one_control_group_is_no_distribution():
    verdict = judge([9.0] * 20, [0.0], claim="x", against="distribution")
    assert verdict.outcome == "inconclusive"


def test_interval_without_ends_is_inconclusive():
    missing = Interval(mean=9, low=math.nan, high=math.nan)
    assert judge(missing, CONTROL, claim="x").outcome == "inconclusive"
    assert judge(CONTROL, missing, claim="x", against="distribution").outcome == "inconclusive"


def test_equal_constant_samples_are_not_told_apart():
    assert judge([0.1] * 6, [0.1] * 23, claim="x").outcome == "not supported"


@pytest.mark.parametrize(("size", "most"), [(6, 0.08), (20, 0.04)])
def test_two_samples_of_one_distribution_are_seldom_told_apart(size, most):
    """The rule promises few false findings: about 3 % with six observations a side, 1 % with twenty. 300
    trials scatter by about 1 %, and the bounds leave room for four times that."""
    generator = np.random.default_rng(size)
    outcomes = [
        judge(generator.normal(size=size), generator.normal(size=size), claim="x", seed=seed).outcome
        for seed in range(300)
    ]
    assert outcomes.count("supported") / 300 <= most


def test_a_random_group_seldom_stands_out_among_random_groups():
    """A group that is one of many: against their distribution it stands out in at most 5 % of 300 trials
    (plus 3.5 %, three times their scatter), though with 50 prompts it differs from the mean group in most."""
    generator = np.random.default_rng(0)
    stands_out = differs = 0
    for seed in range(300):
        groups_G1 = generator.normal(size=(21, 1))
        values_GN = groups_G1 + 0.2 * generator.normal(size=(21, 50))
        effect, control = values_GN[0], values_GN[1:]
        stands_out += (
            judge(effect, control, claim="x", against="distribution", seed=seed).outcome == "supported"
        )
        differs += judge(effect, control.mean(axis=0), claim="x", seed=seed).outcome == "supported"
    assert stands_out / 300 <= 0.085
    assert differs / 300 > 0.5


def test_reason_is_one_sentence_with_the_numbers():
    verdict = judge(interval(3, 1), CONTROL, claim="x lowers the loss.")
    assert verdict.reason == (
        "The effect 3 [2, 4] lies above the control, 0 [-1, 1], which supports that x lowers the loss."
    )


def test_interval_without_ends_is_null_in_json_and_comes_back():
    verdict = judge(1.0, CONTROL, claim="x")
    text = verdict.model_dump_json()
    assert '"effect":{"mean":1.0,"low":null,"high":null}' in text
    again = Verdict.model_validate_json(text)
    assert math.isnan(again.effect.low) and again.model_dump_json() == text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"direction": "bigger"}, "differs, greater or less"),
        ({"against": "median"}, "mean or its distribution"),
        ({"effect": [1.0, math.nan]}, "not finite"),
        ({"control": [[[1.0]]]}, "0 or 1 or 2 dimension"),
    ],
)
def test_wrong_input_is_refused(change, message):
    arguments = {"effect": [1.0], "control": [1.0], "claim": "x"} | change
    with pytest.raises(InputError, match=message):
        judge(**arguments)


def test_controls_that_all_came_out_the_same_show_no_spread():
    """Six groups at exactly 0 are exceeded by chance once in seven trials; nineteen once in twenty."""
    assert judge(0.3, [0.0] * 6, claim="x", against="distribution").outcome == "inconclusive"
    assert judge(0.3, [0.0] * 19, claim="x", against="distribution").outcome == "supported"
