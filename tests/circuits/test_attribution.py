"""Attribution: the exact derivative of cutting an edge, in every family."""

import pytest
import torch
from cut import tiny_runs
from tiny import CONFIGS

from patchclamp.circuits.attribution import attribution

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


@pytest.mark.parametrize("limit", [1, 10_000])
def test_scores_do_not_depend_on_how_many_rows_run_together(limit, monkeypatch):
    runs = tiny_runs("gemma3").groups[0]
    usual = attribution(runs, steps=3)
    monkeypatch.setattr("patchclamp.circuits.attribution.GRAPH_TOKENS", limit)
    assert torch.allclose(attribution(runs, steps=3), usual, atol=1e-6)
