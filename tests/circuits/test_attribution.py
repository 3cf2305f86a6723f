"""Attribution: the exact derivative of cutting an edge, in every family."""

import pytest
import torch
from cut import tiny_runs
from tiny import CONFIGS, tiny_model

from patchclamp.circuits.attribution import attribution
from patchclamp.circuits.frozen_norms import frozen_norms, is_norm

STEP = 2e-3
"""Of the change that an edge carries: large beside the float32 that norms and softmax are computed in, small enough for
the third derivative, and a ReLU on its way through zero, to matter less than the tolerance."""


@pytest.mark.parametrize("name", CONFIGS)
def test_a_score_is_the_derivative_of_cutting_the_edge_a_little(name):
    runs = tiny_runs(name).groups[1]
    scores = attribution(runs)
    delta, there = runs.delta_BSTD, {}
    for step in (STEP, -STEP):
        runs.delta_BSTD = delta * step
        there[step] = runs.each_edge()
    runs.delta_BSTD = delta
    change = (there[STEP] - there[-STEP]) / (2 * STEP)
    edges = runs.graph.edges
    assert (scores[~edges] == 0).all()
    error = (scores - change)[edges].abs().max() / change[edges].abs().max()
    assert error < 5e-3


def test_edges_into_the_logits_add_up_to_the_gradient_there():
    """Cutting all of them changes m, to first order, by the gradient times all that differs in the stream."""
    runs = tiny_runs("gpt2").groups[0]
    x = runs.last_BD.clone().requires_grad_()
    gradient = torch.autograd.grad(runs.measure(x).sum(), x)[0]
    differs = runs.delta_BSTD[:, :, -1].sum(1)
    assert torch.allclose(attribution(runs)[-1].sum(0), -(gradient * differs).sum(-1))


def test_integrated_gradients_are_the_mean_over_the_way():
    """Of one step, the gradient at its end, which is the clean run."""
    runs = tiny_runs("llama").groups[0]
    assert torch.allclose(attribution(runs, steps=1), attribution(runs))
    assert not torch.allclose(attribution(runs, steps=4), attribution(runs))


@pytest.mark.parametrize("name", CONFIGS)
def test_frozen_norms_say_the_same_and_have_no_gradient_along_their_input(name):
    model = tiny_model(name, double=True) if "moe" not in name else tiny_model(name)
    norms = [module for module in model.anatomy.base.modules() if is_norm(module)]
    assert norms
    for norm in norms:
        shape = tuple(norm.weight.shape)
        x = torch.randn(2, 3, *shape, dtype=norm.weight.dtype, generator=torch.Generator().manual_seed(0)) + 0.3
        x.requires_grad_()
        usual, want = norm(x), torch.linspace(-1, 1, shape[-1], dtype=x.dtype)
        with frozen_norms(model.anatomy.base):
            held = norm(x)
            slope = torch.autograd.grad((held * want).sum(), x)[0]
        assert torch.allclose(held, usual, atol=1e-6)
        bias = getattr(norm, "bias", None)
        linear = ((held - (0 if bias is None else bias)) * want).sum()
        # the gradient of something linear in x, times x, is that thing
        assert float((slope * x).sum()) == pytest.approx(float(linear), rel=1e-4)
    assert not any("forward" in vars(norm) for norm in norms)


def test_frozen_scores_are_others_and_leave_the_model_alone():
    runs = tiny_runs("gemma3").groups[0]
    usual = attribution(runs)
    frozen = attribution(runs, frozen=True)
    assert not torch.allclose(frozen, usual) and torch.allclose(attribution(runs), usual)


@pytest.mark.parametrize("limit", [1, 10_000])
def test_scores_do_not_depend_on_how_many_rows_run_together(limit, monkeypatch):
    runs = tiny_runs("gemma3").groups[0]
    usual = attribution(runs, steps=3)
    monkeypatch.setattr("patchclamp.circuits.attribution.GRAPH_TOKENS", limit)
    assert torch.allclose(attribution(runs, steps=3), usual, atol=1e-6)


@pytest.mark.parametrize("name", ["llama", "gptj", "gpt2"])
def test_integrated_over_all_activations_the_scores_add_up_to_the_whole_change(name):
    """The gradient theorem, by many steps."""
    runs = tiny_runs(name)
    scores = runs.along_edges(40)
    assert scores.shape == (*runs.graph.edges.shape, 3)
    assert torch.allclose(-scores.sum((0, 1)), runs.clean_B - runs.corrupted_B, atol=2e-3)
    one = runs.groups[1].along_edges(1)
    half = runs.groups[1].slopes(runs.graph.edges * 0.5)[1]
    assert torch.allclose(-one.sum(-1), half, atol=1e-6)
