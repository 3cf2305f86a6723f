"""Edge attribution patching: what cutting each edge would change, to first order, all edges in one backward pass.

    score(s -> d) = (ref_s - out_s) · ∂m/∂x_d        summed over tokens, averaged over prompts

The gradient is that by what destination d reads alone. `eap` takes it at the clean run (Nanda 2023; Syed et al. 2023,
arXiv 2310.10348); `eap-ig` averages it over runs whose embeddings lie on the straight way from the reference's to the
clean ones, z' + k/m (z - z') for k = 1 … m (Hanna et al. 2024, arXiv 2403.17806, equation 3). Either may hold norms
still (`frozen_norms.py`). `PairRuns.along_edges` integrates over all activations at once instead: over subgraphs in
which every edge is kept to the same share, from none to the whole (Sundararajan et al. 2017, arXiv 1703.01365, on the
weights of edges).

Shape suffixes: B prompts, R rows, S sources, N destinations, T tokens, D model width, U units, E head width.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from patchclamp.circuits.frozen_norms import frozen_norms
from patchclamp.circuits.pairruns import PairRuns
from patchclamp.circuits.wiring import Visit

GRAPH_TOKENS = 512
"""Rows times tokens whose activations are kept for one backward pass."""


def attribution(runs: PairRuns, steps: int = 0, frozen: bool = False) -> Tensor:
    """The score of every edge for each prompt, [N, S, B]; 0 where there is no edge. `steps`: of integrated gradients;
    0 for the gradient at the clean run. `frozen`: norms are held still for the gradient."""
    graph, n = runs.graph, runs.n_prompts
    out_NSB = runs.delta_BSTD.new_zeros(len(graph.destinations), len(graph.sources), n)
    shares = [k / steps for k in range(1, steps + 1)] if steps else [1.0]
    at_once = max(1, GRAPH_TOKENS // runs.n_tokens)
    rows = [(b, share) for b in range(n) for share in shares]
    with runs.model.in_turn(), frozen_norms(runs.model.anatomy.base) if frozen else nullcontext():
        for i in range(0, len(rows), at_once):
            some = rows[i : i + at_once]
            _add(runs, torch.tensor([b for b, _ in some]), torch.tensor([share for _, share in some]), out_NSB)
    return -out_NSB / len(shares)


def _add(runs: PairRuns, rows_R: Tensor, shares_R: Tensor, out_NSB: Tensor) -> None:
    """Add what some rows' gradients give to their prompts' scores, the sign not turned yet."""
    graph = runs.graph
    trace = _Trace(runs, rows_R, shares_R)
    for layer in range(graph.n_layers):
        here = graph.at(layer)
        for place, destination in enumerate(graph.destinations[here], here.start):
            gradient_RTD = trace.by_stream(destination.point, layer, destination.unit)
            _credit(runs, rows_R, gradient_RTD, place, out_NSB)
    _credit(runs, rows_R, trace.last, len(graph.destinations) - 1, out_NSB)


def _credit(runs: PairRuns, rows_R: Tensor, gradient_RTD: Tensor, place: int, out_NSB: Tensor) -> None:
    reach = runs.graph.destinations[place].reach
    for prompt in rows_R.unique().tolist():
        mine_TD = gradient_RTD[rows_R == prompt].sum(0)
        out_NSB[place, :reach, prompt] += runs.delta_BSTD[prompt, :reach].flatten(1) @ mine_TD.flatten()


class _Trace:
    """One run with its graph, and the gradients of m by what its queries, keys, values and MLPs are made from."""

    def __init__(self, runs: PairRuns, rows_R: Tensor, shares_R: Tensor) -> None:
        self.runs = runs
        self.entered: dict[int, Tensor] = {}
        share_R11 = shares_R.to(runs.delta_BSTD)[:, None, None]
        embed_RTD = runs.reference_BSTD[rows_R, 0] + share_R11 * runs.delta_BSTD[rows_R, 0]
        visit, wiring = Visit(), runs.wiring
        self.kept: dict[Any, Tensor] = {}
        for layer in range(runs.graph.n_layers):
            self._watch(visit, layer)
        with torch.enable_grad():
            x_RTD = wiring.pass_through(runs.ids_BT[rows_R, runs.start :], visit, runs.prefix, rows_R.tolist(), (),
                                        embed_RTD.detach().requires_grad_())
            m_R = runs.measure(x_RTD[:, -1], rows_R)
            names = list(self.kept)
            found = torch.autograd.grad(m_R.sum(), [*self.kept.values(), x_RTD], allow_unused=True)
        self.gradients = dict(zip(names, found, strict=False))
        self.last = found[-1]

    def _watch(self, visit: Visit, layer: int) -> None:
        anatomy = self.runs.model.anatomy

        def enter(x: Tensor) -> None:
            self.entered[layer] = x.detach()

        def apart(x: Tensor) -> Tensor:
            self.kept["mlp", layer] = x.view_as(x)  # the same numbers, whose gradient is the MLP's alone
            return self.kept["mlp", layer]

        visit.before[anatomy.blocks[layer]].append(enter)
        for point in "qkv":
            module = anatomy.tap(point, layer).module

            def keep(raw: Tensor, module: Any = module) -> None:
                self.kept[module] = raw

            if not any(module is other for other in self.kept):
                visit.after[module].append(keep)
        self.runs.wiring.put_mlp(visit, layer, apart)

    def by_stream(self, point: str, layer: int, unit: int) -> Tensor:
        """∂m/∂x of the stream that one destination reads, [R, T, D]."""
        if point == "mlp":
            return self.gradients["mlp", layer]
        tap = self.runs.wiring.tap(point, layer)
        raw = self.gradients[tap.module]
        with torch.enable_grad():
            x_RTD = self.entered[layer].requires_grad_()
            value_RTE = self.runs.wiring.read(point, layer, x_RTD, unit)
            by_value_RTE = tap.gradient(raw, self.runs.n_tokens)[:, :, unit]
            return torch.autograd.grad(value_RTE, x_RTD, by_value_RTE)[0]
