"""Sums over active pairs are what matrix products give."""

import pytest
import torch

from patchclamp.forward.codes import Active, decode, encode_at, select_batch_top, select_top, select_where

B, D, L = 37, 24, 160
CLOSE = {"rtol": 1e-4, "atol": 1e-4}  # float32 sums of up to 160 numbers of size 10, in another order


@pytest.fixture
def given():
    torch.manual_seed(0)
    return torch.randn(B, D), torch.randn(L, D), torch.randn(L), torch.randn(D)


def patterns():
    torch.manual_seed(1)
    few = torch.rand(B, L) < 0.05
    few[3] = False
    few[-1] = False
    return {
        "k": Active.top(torch.rand(B, L).topk(5, 1, sorted=False).indices, L),
        "any": Active.where(few),
        "none": Active.where(torch.zeros(B, L, dtype=torch.bool)),
        "all": Active.where(torch.ones(B, L, dtype=torch.bool)),
    }


@pytest.mark.parametrize("kind", list(patterns()))
def test_decoding_and_its_gradients_are_a_matrix_product(given, kind):
    active = patterns()[kind]
    _, weight_LD, _, _ = given
    values_P = torch.randn(len(active.latents))
    weights = [weight_LD.clone().requires_grad_() for _ in range(2)]
    values = [values_P.clone().requires_grad_() for _ in range(2)]
    goal_BD = torch.randn(B, D)

    got_BD = decode(active, values[0], weights[0])
    want_BD = active.dense(values[1]) @ weights[1]
    for out_BD in (got_BD, want_BD):
        ((out_BD - goal_BD) ** 2).sum().backward()

    torch.testing.assert_close(got_BD, want_BD, **CLOSE)
    torch.testing.assert_close(weights[0].grad, weights[1].grad, **CLOSE)
    torch.testing.assert_close(values[0].grad, values[1].grad, **CLOSE)


@pytest.mark.parametrize("kind", list(patterns()))
def test_the_encoders_gradients_are_a_matrix_products(given, kind):
    active = patterns()[kind]
    x_BD, *parameters = given
    goal_BL = torch.randn(B, L)
    mask_BL = active.dense(torch.ones(len(active.latents)))
    ours, theirs = ([p.clone().requires_grad_() for p in parameters] for _ in range(2))
    dense_BL = (x_BD - theirs[2]) @ theirs[0].T + theirs[1]
    pre_P = dense_BL.detach()[active.inputs, active.latents]

    got_P = encode_at(active, pre_P, x_BD, *ours)
    ((got_P - goal_BL[active.inputs, active.latents]) ** 2).sum().backward()
    (((dense_BL - goal_BL) * mask_BL) ** 2).sum().backward()

    for name, one, other in zip(("weight", "bias", "shift"), ours, theirs, strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-3, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize(("n", "latents", "count"),
                         [(37, 160, 200), (16, 96, 40), (5, 50, 30), (4, 64, 256), (64, 320, 1)])
def test_the_greatest_of_a_batch_are_those_of_a_full_ranking(n, latents, count):
    torch.manual_seed(n)
    pre_BL = torch.randn(n, latents)
    values_P, active = select_batch_top(pre_BL, count)

    flat = pre_BL.flatten().topk(count)
    assert sorted((active.inputs * latents + active.latents).tolist()) == sorted(flat.indices.tolist())
    assert torch.equal(values_P, pre_BL[active.inputs, active.latents])
    assert active.inputs.tolist() == sorted(active.inputs.tolist())


def test_the_greatest_of_a_batch_may_all_be_one_inputs():
    pre_BL = torch.zeros(40, 320)
    pre_BL[7] = torch.arange(320) + 1.0
    _, active = select_batch_top(pre_BL, 100)

    assert set(active.inputs.tolist()) == {7}
    assert sorted(active.latents.tolist()) == list(range(220, 320))


def test_each_inputs_greatest_and_all_above_a_threshold():
    torch.manual_seed(0)
    pre_BL = torch.randn(6, 40)
    values_P, active = select_top(pre_BL, 3)
    assert torch.equal(active.dense(values_P), pre_BL * (pre_BL >= pre_BL.topk(3).values[:, -1:]))
    above_L = torch.rand(40)
    values_P, active = select_where(pre_BL, above_L)
    assert torch.equal(active.dense(values_P), pre_BL * (pre_BL > above_L))
