"""Runs of subgraphs in which nothing is computed that no kept edge leads to.

    x_d = ref + Σ_s w[d, s] (out_s - ref_s)

The stream of destination d is the reference's, and what its kept sources wrote besides. Where tokens have roles, an
edge may be kept at the tokens of some of them only: w[d, s, p]. w is 1 for an edge that is kept and 0 for one that is
cut; the sum is the same as the stream less what cut edges carry (`wiring.py`), but of a small subgraph only the parts
on a way from the embeddings to the logits have to be run, and the blocks between are passed over. Weights between 0 and
1 have a gradient: what every edge contributes to the answer within the subgraph.

Shape suffixes: B prompts, M subgraphs, R rows (a prompt under a subgraph), S sources, K of them known beforehand,
N destinations, P roles, T tokens from the first on that differ, D model width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from patchclamp.circuits.wiring import Visit, Wiring

if TYPE_CHECKING:
    from patchclamp.circuits.pairruns import PairRuns

GRADED = 2**25
"""Numbers that sources write in one pass with a gradient, which keeps about ten times as many."""


@dataclass
class Known:
    """What some sources wrote less the reference's, of a run that has been made."""

    sources: Tensor
    """Their numbers, ascending."""
    delta: Tensor
    """[B, K, T, D]."""


@dataclass
class Step:
    """What one block has to do with a subgraph."""

    heads: list[int]
    """Heads that are computed."""
    mlp: bool
    streams: list[int]
    """Queries, keys and values to be given, as numbers of destinations. Where the heads' sum is normed, what one of
    them writes hangs on all: then those of the others, too, which read the reference."""


@dataclass
class Written:
    """What the sources that are computed wrote less the reference's, in the order of the pass. Where gradients are
    wanted every part stays a tensor of its own; elsewhere they lie in one."""

    whole: Tensor | None
    parts: list[Tensor] = field(default_factory=list)
    n: int = 0

    def add(self, delta_RATD: Tensor) -> None:
        n = delta_RATD.shape[1]
        if self.whole is None:
            self.parts.append(delta_RATD)
        else:
            self.whole[:, self.n : self.n + n] = delta_RATD
        self.n += n

    def mixed(self, weights_RNA: Tensor) -> Tensor:
        """Σ w (out - ref) of what is there, [R, N, T, D]."""
        if self.whole is not None:
            return _mix(weights_RNA, self.whole[:, : self.n])
        shares = weights_RNA.split([part.shape[1] for part in self.parts], -1)
        return torch.stack([_mix(w, part) for w, part in zip(shares, self.parts, strict=True)]).sum(0)


def _mix(weights_RNA: Tensor, delta_RATD: Tensor) -> Tensor:
    n_rows, n, n_tokens, width = delta_RATD.shape
    return torch.bmm(weights_RNA, delta_RATD.reshape(n_rows, n, -1)).view(n_rows, -1, n_tokens, width)


class SubgraphPass:
    """One pass of all prompts under some subgraphs."""

    def __init__(
        self, runs: PairRuns, weights_MNS: Tensor, computed: Sequence[int], known: Known,
        prompts: Tensor | None = None, units: Mapping[int, Tensor] | None = None,
    ) -> None:
        """`weights_MNS`: or by role, [M, N, S, P], with the runs' `role_BT`. `computed`: numbers of the sources to be
        run, ascending; others than these and the known ones write what they write in the reference. `prompts`: the
        numbers of those that are run and known; all if not given. `units`: by block, to how much each unit of its MLP
        is kept, [M, units]; what is not kept is what it is in the reference (`PairRuns.units`)."""
        self.runs, self.graph, self.wiring = runs, runs.graph, runs.wiring
        self.weights_MNS, self.known, self.units = weights_MNS, known, units or {}
        prompts = torch.arange(runs.n_prompts) if prompts is None else prompts
        self.n_prompts = len(prompts)
        self.rows_R = prompts.repeat(len(weights_MNS))
        self.computed = torch.tensor(list(computed), dtype=torch.long)
        self.known_KX = known.delta.transpose(0, 1).flatten(1)
        shape = (len(self.rows_R), len(self.computed), runs.n_tokens, runs.model.d_model)
        with_gradient = weights_MNS.requires_grad or any(kept_MU.requires_grad for kept_MU in self.units.values())
        self.written = Written(None if with_gradient else known.delta.new_empty(shape))

    def measured(self) -> Tensor:
        """m of every subgraph and prompt, [M, B]."""
        runs, visit = self.runs, Visit()
        steps = {layer: step for layer in range(self.graph.n_layers) if (step := self._step(layer)) is not None}
        for layer, step in steps.items():
            self._visit(visit, layer, step)
        if steps:
            first, last = min(steps), max(steps)
            idle = [layer for layer in range(last) if layer not in steps]
            without_mlp = [layer for layer, step in steps.items() if not step.mlp]
            self.wiring.pass_through(runs.ids_BT[self.rows_R, runs.start :], visit, runs.prefix, self.rows_R.tolist(),
                                     idle, runs.start_BTD[first, 0][self.rows_R], last, without_mlp)
        ending_RD = self._stream([len(self.graph.destinations) - 1], self.graph.n_layers, 0, last=True)[:, 0, 0]
        return runs.measure(ending_RD, self.rows_R).view(len(self.weights_MNS), -1)

    def _step(self, layer: int) -> Step | None:
        graph = self.graph
        mine = self.computed[(self.computed >= graph.before(layer)) & (self.computed < graph.before(layer + 1))]
        if not len(mine):
            return None
        heads = [int(s) - graph.before(layer) for s in mine if int(s) != graph.mlp(layer)]
        read = range(graph.n_heads) if heads and self.wiring.heads_together else heads
        streams = sorted({place for head in read for place in graph.feeds[graph.head(layer, head)]})
        return Step(heads, int(mine[-1]) == graph.mlp(layer), streams)

    def _visit(self, visit: Visit, layer: int, step: Step) -> None:
        graph, wiring, runs = self.graph, self.wiring, self.runs
        held: dict[str, Tensor] = {}

        def values(point: str, x_RTD: Tensor) -> list[tuple[Any, Tensor]]:
            if "streams" not in held:
                held["streams"] = self._stream(step.streams, layer, 0)
            return [((slice(None), slice(None), graph.destinations[place].unit),
                     wiring.read(point, layer, stream_RTD, graph.destinations[place].unit))
                    for place, stream_RTD in zip(step.streams, held["streams"].unbind(1), strict=True)
                    if graph.destinations[place].point == point]

        def wrote(out_RATD: Tensor, sources: list[int]) -> None:
            self.written.add(out_RATD - runs.reference_BSTD[:, sources][self.rows_R])

        if step.heads:
            wiring.put(visit, layer, values)
            wiring.on_heads(visit, layer, step.heads, runs.n_tokens, lambda out_RATD: wrote(
                out_RATD, [graph.head(layer, head) for head in step.heads]))
        if step.mlp:
            place = graph.feeds[graph.mlp(layer)][0]
            wiring.put_mlp(visit, layer, lambda _: self._stream([place], layer, 1)[:, 0])
            if layer in self.units:
                self._keep_units(visit, layer)
            wiring.on_mlp(visit, layer, runs.n_tokens, lambda out_RTD: wrote(out_RTD[:, None], [graph.mlp(layer)]))

    def _keep_units(self, visit: Visit, layer: int) -> None:
        """Have a pass give the units of a block's MLP what they are kept to."""
        tap = self.runs.unit_tap(layer)
        there_RTU = self.runs.units[layer][self.rows_R]
        kept_RU = self.units[layer].to(there_RTU).repeat_interleave(self.n_prompts, 0)

        def change(value_RTU: Tensor) -> None:
            value_RTU.copy_(there_RTU + kept_RU[:, None] * (value_RTU - there_RTU))

        hooks = visit.before if tap.side == "in" else visit.after
        hooks[tap.module].append(lambda raw: tap.write(raw, self.runs.n_tokens, change))

    def _stream(self, places: list[int], layer: int, which: int, last: bool = False) -> Tensor:
        """What some destinations read, [R, N, T, D]; of the last token alone, [R, N, 1, D]."""
        runs, rows_R, weights = self.runs, self.rows_R, self.weights_MNS[:, places]
        base_BTD = runs.ending_BTD if last else runs.start_BTD[layer, which]
        stream = base_BTD[rows_R][:, None]
        if weights.dim() == 3:
            return stream + self._carried(weights, last)
        assert runs.role_BT is not None
        role_RT = runs.role_BT[rows_R][:, -1:] if last else runs.role_BT[rows_R]
        for role in range(weights.shape[-1]):
            here_RT = role_RT == role
            if here_RT.any() and (weights[..., role] != 0).any():
                stream = stream + self._carried(weights[..., role], last) * here_RT[:, None, :, None]
        return stream.expand(-1, len(places), -1, -1)

    def _carried(self, weights_MNS: Tensor, last: bool) -> Tensor:
        """What kept edges carry into some destinations, [R, N, T, D]."""
        known = self.known.delta
        known_KX = known[:, :, -1].transpose(0, 1).flatten(1) if last else self.known_KX
        known_MNX = weights_MNS[:, :, self.known.sources] @ known_KX
        n_tokens = 1 if last else self.runs.n_tokens
        carried = known_MNX.unflatten(2, (self.n_prompts, n_tokens, -1)).transpose(1, 2).flatten(0, 1)
        if self.written.n:
            weights_RNA = weights_MNS[:, :, self.computed[: self.written.n]].repeat_interleave(self.n_prompts, 0)
            written = self.written_last() if last else self.written
            carried = carried + written.mixed(weights_RNA)
        return carried

    def written_last(self) -> Written:
        """What was written at the last token."""
        written = self.written
        return Written(None if written.whole is None else written.whole[:, :, -1:],
                       [part[:, :, -1:] for part in written.parts], written.n)


def behind(wiring: Wiring, kept_NS: Tensor, places: Sequence[int]) -> Tensor:
    """Which sources of a subgraph change when some destinations read something else, [S]."""
    graph = wiring.graph
    changed_N = torch.zeros(len(graph.destinations), dtype=torch.bool)
    changed_N[list(places)] = True
    found_S = torch.zeros(len(graph.sources), dtype=torch.bool)
    for layer in range(graph.n_layers):
        heads = list(range(graph.head(layer, 0), graph.mlp(layer)))
        for sources in (*([heads] if wiring.heads_together else [[head] for head in heads]), [graph.mlp(layer)]):
            if any(bool(changed_N[list(graph.feeds[source])].any()) for source in sources):
                found_S[sources] = True
                changed_N |= kept_NS[:, sources].any(1)
    return found_S


def unit_slopes(runs: PairRuns, kept_NS: Tensor, units: Mapping[int, Tensor]) -> tuple[Tensor, dict[int, Tensor]]:
    """m [B] of a subgraph whose MLPs' units are kept to so much, and the gradient of its sum by that, [units]."""
    computed = [s for s in kept_NS.any(0).nonzero()[:, 0].tolist() if s]
    with torch.enable_grad():
        leaves = {layer: kept_U.detach().to(runs.delta_BSTD)[None].requires_grad_() for layer, kept_U in units.items()}
        known = Known(torch.tensor([0]), runs.delta_BSTD[:, :1])
        m_B = SubgraphPass(runs, kept_NS.to(runs.delta_BSTD)[None], computed, known, units=leaves).measured()[0]
        found = torch.autograd.grad(m_B.sum(), list(leaves.values()))
    return m_B.detach(), {layer: gradient[0] for layer, gradient in zip(leaves, found, strict=True)}


def slopes(runs: PairRuns, weights_NS: Tensor, singly: bool = False) -> tuple[Tensor, Tensor]:
    """m [B] of a subgraph whose edges are kept to so much, and the gradient of its sum by these weights, [N, S]; of
    each prompt's, [N, S, B], if `singly`."""
    used_S = (weights_NS != 0).any(0)
    used_S[0] = False
    computed = used_S.nonzero()[:, 0].tolist()
    each = (len(computed) + 1) * runs.n_tokens * runs.model.d_model

    def part(some: slice) -> tuple[Tensor, Tensor]:
        prompts = torch.arange(runs.n_prompts)[some]
        with torch.enable_grad():
            leaf_MNS = weights_NS.detach().to(runs.delta_BSTD)[None].requires_grad_()
            known = Known(torch.tensor([0]), runs.delta_BSTD[prompts, :1])
            m_B = SubgraphPass(runs, leaf_MNS, computed, known, prompts).measured()[0]
            (gradient,) = torch.autograd.grad(m_B.sum(), leaf_MNS)
        return m_B.detach(), gradient[0].cpu() * runs.graph.edges

    found = runs.parts.run(runs.n_prompts, 1 if singly else max(1, GRADED // each), part)
    gradients = torch.stack([slope_NS for _, slope_NS in found], -1)
    return torch.cat([m_B for m_B, _ in found]), gradients if singly else gradients.sum(-1)
