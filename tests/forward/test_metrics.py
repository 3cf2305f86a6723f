"""Metrics: identities between them, then edge cases.

`F32` is the tolerance of float32 arithmetic on logits of magnitude ≤ 30: 30 × 2^-24 ≈ 2e-6, times a handful
of operations. `F64` is the same for float64: 30 × 2^-53 ≈ 3e-15, times a handful.
"""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

from patchclamp.errors import InputError, RunError
from patchclamp.forward import metrics
from patchclamp.forward.metrics import (
    cross_entropy,
    entropy,
    first_choice,
    flips,
    kl_divergence,
    log_probability,
    logit_difference,
    probability,
    rank,
)

few = settings(deadline=None, max_examples=20)

F32 = 2e-5
F64 = 1e-13

logits_lists = st.lists(
    st.lists(st.floats(-30, 30, width=32), min_size=5, max_size=5), min_size=1, max_size=4
)


def random_logits(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype) * 3


@few
@given(logits_lists)
def test_logit_difference_is_the_difference_of_log_probabilities(rows):
    logits_BV = torch.tensor(rows, dtype=torch.float64)
    answer, distractor = 1, 3

    expected_B = log_probability(logits_BV, answer) - log_probability(logits_BV, distractor)

    assert torch.allclose(logit_difference(logits_BV, answer, distractor), expected_B, rtol=0, atol=F64)


def test_logit_difference_takes_one_answer_a_row():
    logits_BV = torch.tensor([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]])
    assert logit_difference(logits_BV, torch.tensor([2, 0]), torch.tensor([0, 1])).tolist() == [3.0, -8.0]


@few
@given(logits_lists)
def test_probabilities_of_all_tokens_sum_to_one(rows):
    logits_BV = torch.tensor(rows)
    total_B = torch.stack([probability(logits_BV, token) for token in range(5)]).sum(dim=0)
    assert torch.allclose(total_B, torch.ones_like(total_B), rtol=0, atol=F32)


@few
@given(logits_lists)
def test_kl_is_cross_entropy_minus_entropy(rows):
    p_BV = torch.tensor(rows, dtype=torch.float64)
    q_BV = random_logits(*p_BV.shape)

    crossed_B = -(torch.softmax(p_BV, -1) * torch.log_softmax(q_BV, -1)).sum(-1)

    assert torch.allclose(kl_divergence(p_BV, q_BV), crossed_B - entropy(p_BV), rtol=0, atol=F64)


@few
@given(logits_lists, st.floats(-30, 30, width=32))
def test_kl_is_zero_for_equal_logits_and_ignores_a_constant(rows, constant):
    logits_BV = torch.tensor(rows, dtype=torch.float64)
    assert torch.equal(kl_divergence(logits_BV, logits_BV), torch.zeros(len(rows), dtype=torch.float64))
    assert kl_divergence(logits_BV, logits_BV + constant).abs().max() <= F64


@few
@given(logits_lists, logits_lists)
def test_kl_is_not_negative(p_rows, q_rows):
    size = min(len(p_rows), len(q_rows))
    assert (kl_divergence(torch.tensor(p_rows[:size]), torch.tensor(q_rows[:size])) >= 0).all()


def test_kl_of_a_small_change_follows_its_second_order_expansion():
    """KL(p‖p+δ) = Var_p(δ)/2 + O(δ³). With δ = 1e-5 the value is about 1e-10: float32 would have lost it
    (its rounding is about 1e-7), and the cubic term leaves a relative error of about 1e-5."""
    logits_BV = random_logits(3, 50).float().double()
    delta_BV = 1e-5 * random_logits(3, 50, seed=1)
    p_BV = torch.softmax(logits_BV, -1)
    variance_B = (p_BV * delta_BV**2).sum(-1) - (p_BV * delta_BV).sum(-1) ** 2

    assert torch.allclose(kl_divergence(logits_BV, logits_BV + delta_BV), variance_B / 2, rtol=1e-4, atol=0)


def test_kl_widens_half_precision_to_float64():
    logits_BV = random_logits(2, 7).bfloat16()
    assert kl_divergence(logits_BV, logits_BV.flip(-1)).dtype == torch.float64


def test_kl_with_ruled_out_tokens():
    open_V = torch.tensor([0.0, 0.0, 0.0])
    closed_V = torch.tensor([0.0, 0.0, -math.inf])
    assert float(kl_divergence(closed_V, closed_V)) == 0.0
    assert float(kl_divergence(closed_V, open_V)) == pytest.approx(math.log(3 / 2), abs=F64)
    assert float(kl_divergence(open_V, closed_V)) == math.inf


@pytest.mark.parametrize("size", [1, 2, 1000])
def test_entropy_runs_from_zero_to_log_of_the_vocabulary(size):
    assert float(entropy(torch.zeros(size, dtype=torch.float64))) == pytest.approx(math.log(size), abs=F64)
    certain_V = torch.full((size,), -math.inf)
    certain_V[0] = 0.0
    assert float(entropy(certain_V)) == 0.0


def test_cross_entropy_scores_each_token_by_the_position_before_it():
    logits_BTV = random_logits(2, 4, 6)
    tokens_BT = torch.tensor([[0, 1, 2, 3], [5, 4, 3, 2]])

    loss_BS = cross_entropy(logits_BTV, tokens_BT)

    assert loss_BS.shape == (2, 3)
    for row in range(2):
        for t in range(3):
            alone = -log_probability(logits_BTV[row, t], int(tokens_BT[row, t + 1]))
            assert float(loss_BS[row, t]) == pytest.approx(float(alone), abs=F64)


def test_cross_entropy_of_padded_rows_equals_that_of_the_rows_alone():
    logits_TV = random_logits(3, 6)
    tokens_T = torch.tensor([1, 2, 3])
    padded_TV = torch.cat([random_logits(2, 6, seed=1), logits_TV])
    padded_T = torch.cat([torch.tensor([0, 0]), tokens_T])
    mask_T = torch.tensor([0, 0, 1, 1, 1])

    loss_S = cross_entropy(padded_TV[None], padded_T[None], mask_T[None])[0]

    assert loss_S[:2].isnan().all(), "padding, and the first real token, which only padding precedes"
    assert torch.equal(loss_S[2:], cross_entropy(logits_TV[None], tokens_T[None])[0])


def test_masked_cross_entropy_keeps_gradients_finite():
    logits_BTV = random_logits(1, 4, 6).requires_grad_()
    mask_BT = torch.tensor([[0, 1, 1, 1]])

    cross_entropy(logits_BTV, torch.tensor([[0, 1, 2, 3]]), mask_BT).nanmean().backward()

    assert logits_BTV.grad is not None and logits_BTV.grad.isfinite().all()
    assert (logits_BTV.grad[0, 0] == 0).all()


@few
@given(
    st.lists(st.sampled_from([-1.0, 0.0, 0.5, 2.0]), min_size=1, max_size=8),
    st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_ranks_are_a_permutation_even_with_ties(values, dtype):
    logits_V = torch.tensor(values, dtype=dtype)
    ranks = [int(rank(logits_V, token)) for token in range(len(values))]
    assert sorted(ranks) == list(range(len(values)))
    assert ranks[int(first_choice(logits_V))] == 0


def test_rank_counts_strictly_greater_logits_and_breaks_ties_by_id():
    logits_V = torch.tensor([3.0, 7.0, 3.0, 1.0])
    assert [int(rank(logits_V, token)) for token in range(4)] == [1, 0, 2, 3]


def test_rank_agrees_with_a_stable_sort():
    logits_BV = random_logits(3, 200).bfloat16()
    order_BV = logits_BV.float().sort(dim=-1, descending=True, stable=True).indices
    for place in (0, 10, 199):
        assert rank(logits_BV, order_BV[:, place]).tolist() == [place] * 3


def test_flips_compares_first_choices():
    before_BV = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    after_BV = torch.tensor([[0.9, 0.0], [0.0, 0.1]])
    assert flips(before_BV, after_BV).tolist() == [False, True]


def test_metrics_are_differentiable():
    logits_BV = random_logits(2, 5).requires_grad_()
    other_BV = random_logits(2, 5, seed=1).requires_grad_()
    token_B = torch.tensor([0, 4])
    assert gradcheck(lambda x: logit_difference(x, token_B, 2), logits_BV)
    assert gradcheck(lambda x: probability(x, token_B), logits_BV)
    assert gradcheck(entropy, logits_BV)
    assert gradcheck(kl_divergence, (logits_BV, other_BV))


def test_gradients_stay_finite_beside_ruled_out_tokens():
    logits_V = torch.tensor([0.0, 1.0, -math.inf], requires_grad=True)
    (entropy(logits_V) + kl_divergence(logits_V, torch.tensor([1.0, 0.0, -math.inf]))).backward()
    assert logits_V.grad is not None and logits_V.grad.isfinite().all()


@pytest.mark.parametrize(
    ("token", "message"),
    [
        (5, "token id 5 is outside the vocabulary of 5 \\(0 to 4\\)"),
        (-1, "token id -1 is outside"),
        (torch.tensor([0, 1, 2]), "do not fit logits"),
        (torch.tensor([0.0, 1.0]), "whole numbers"),
    ],
)
def test_wrong_tokens_are_refused(token, message):
    with pytest.raises(InputError, match=message):
        probability(torch.zeros(2, 5), token)


def test_mismatched_shapes_are_refused():
    with pytest.raises(InputError, match="one shape"):
        kl_divergence(torch.zeros(2, 5), torch.zeros(1, 5))
    with pytest.raises(InputError, match="same rows"):
        flips(torch.zeros(2, 5), torch.zeros(3, 5))
    with pytest.raises(InputError, match="at least two tokens"):
        cross_entropy(torch.zeros(1, 1, 5), torch.zeros(1, 1, dtype=torch.long))
    with pytest.raises(InputError, match="the mask"):
        cross_entropy(torch.zeros(1, 3, 5), torch.zeros(1, 3, dtype=torch.long), torch.ones(3))


@pytest.mark.parametrize("metric", [first_choice, lambda logits: rank(logits, 0)])
def test_nan_logits_have_no_order(metric):
    with pytest.raises(RunError, match="NaN"):
        metric(torch.tensor([[0.0, math.nan]]))


class TestTop:
    @settings(max_examples=80)
    @given(st.lists(st.sampled_from([-900.0, 0.0, 1.0, 800.0]), min_size=1, max_size=9), st.integers(1, 9))
    def test_it_is_the_order_of_rank(self, logits, k):
        """Ties everywhere, and values whose probabilities underflow."""
        row = torch.tensor([logits])
        ranks = [int(metrics.rank(row, i)) for i in range(len(logits))]
        values, ids = metrics.top(row, k)
        assert ids[0].tolist() == sorted(range(len(logits)), key=ranks.__getitem__)[:k]
        assert torch.equal(values, row.gather(-1, ids))

    def test_a_smaller_count_is_the_beginning_of_a_larger_one(self):
        row = torch.tensor([[1000.0, 0.0, 500.0]])
        assert metrics.top(row, 2)[1].tolist() == [[0, 2]]
