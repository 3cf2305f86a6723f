"""Pairs of prompts run as they are and in part: how far the answer goes with edges cut.

    m = logit(answer) - logit(distractor) at the last token

Shape suffixes: B prompts, M subgraphs, R rows (a prompt under a subgraph), S sources, N destinations, T tokens from the
first on that differ, D model width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from patchclamp.circuits.wiring import Visit, Wiring, prove

if TYPE_CHECKING:
    from patchclamp.forward.model import Model

ROW_TOKENS = 4096
"""Rows times tokens in one pass."""
HELD = 2**28
"""Numbers that the sources of one pass may write: 1 GB in float32."""

Ablation = Literal["resample", "mean", "mean-per-position", "zero"]
"""What a cut edge carries: what its source wrote on the corrupted prompt; the mean of that over prompts and tokens, or
over prompts of the same length at the same token; nothing."""

Track = Callable[[Iterable[Any], str, int | None], Iterator[Any]]


@dataclass
class _Base:
    """One subgraph's run, to go on from."""

    entered: list[Tensor]
    """The streams before the blocks, [B, T, D] each."""
    delta: Tensor
    """What the sources wrote less the reference's, [B, S, T, D]."""
    last: Tensor
    """The last stream at the last token, [B, D]."""


class PairRuns:
    """Clean and corrupted prompts of one length, run once whole; then as often as asked with edges cut."""

    def __init__(
        self, model: Model, wiring: Wiring, clean: Sequence[tuple[int, ...]], corrupted: Sequence[tuple[int, ...]],
        choices: Sequence[tuple[int, int]], ablation: Ablation = "resample",
    ) -> None:
        """`choices`: each pair's answer and distractor as token ids."""
        self.model, self.wiring, self.graph, self.ablation = model, wiring, wiring.graph, ablation
        device = model.device
        self.ids_BT = torch.tensor(clean, device=device)
        other_BT = torch.tensor(corrupted, device=device)
        self.choices_B2 = torch.tensor(choices, device=device)
        self.start = self._first_difference(other_BT) if ablation == "resample" else 0
        with torch.no_grad(), model.in_turn():
            self.prefix = wiring.prefix(self.ids_BT, self.start)
            self.entered, self.delta_BSTD, last_BD = self._whole(self.ids_BT, proved=True)
            self.clean_B = self.measure(last_BD)
            self.last_BD = last_BD
            _, wrote_BSTD, last_BD = self._whole(other_BT)
            self.reference_BSTD = _reference(wrote_BSTD, ablation)
            self.delta_BSTD -= self.reference_BSTD
            self.corrupted_B = self.measure(last_BD)
        if ablation != "resample":
            self.corrupted_B = self.subgraphs(torch.zeros_like(self.graph.edges)[None])[0]

    def _first_difference(self, other_BT: Tensor) -> int:
        anatomy, differs_T = self.model.anatomy, (self.ids_BT != other_BT).any(0)
        if not anatomy.family.rows_may_join or anatomy.rope_side(self.ids_BT.shape[1]):
            return 0
        return int(differs_T.float().argmax()) if differs_T.any() else 0

    @property
    def n_prompts(self) -> int:
        return len(self.ids_BT)

    @property
    def n_tokens(self) -> int:
        """Tokens computed."""
        return self.ids_BT.shape[1] - self.start

    def _whole(self, ids_BT: Tensor, proved: bool = False) -> tuple[list[Tensor], Tensor, Tensor]:
        """Streams before the blocks, what all sources wrote, and the last stream at the last token."""
        visit, anatomy = Visit(), self.model.anatomy
        weight = anatomy.unembedding.weight
        wrote_BSTD = torch.zeros(len(ids_BT), len(self.graph.sources), self.n_tokens, anatomy.d_model,
                                 dtype=weight.dtype, device=weight.device)
        entered = self.wiring.keep(visit, wrote_BSTD)
        seen: dict[tuple[str, int], Tensor] = {}
        if proved:
            for layer in range(anatomy.n_layers):
                self._look(visit, layer, seen)
        x_BTD = self.wiring.pass_through(ids_BT[:, self.start :], visit, self.prefix)
        if proved:
            prove(self.wiring, entered, wrote_BSTD, seen)
        return entered, wrote_BSTD, x_BTD[:, -1]

    def _look(self, visit: Visit, layer: int, seen: dict[tuple[str, int], Tensor]) -> None:
        for point in "qkv":
            tap = self.wiring.tap(point, layer)

            def read(raw: Tensor, point: str = point, tap: Any = tap) -> None:
                seen[point, layer] = tap.read(raw, self.n_tokens)

            visit.after[tap.module].append(read)

    def measure(self, last_RD: Tensor, rows: Tensor | None = None) -> Tensor:
        """m of last streams [R, D], of the prompts `rows`."""
        tokens_R2 = self.choices_B2 if rows is None else self.choices_B2[rows]
        logits_R2 = self.model.anatomy.unembed(last_RD, tokens_R2)
        return logits_R2[:, 0] - logits_R2[:, 1]

    # One edge at a time

    def each_edge(self, track: Track | None = None) -> Tensor:
        """m with each edge of the graph cut alone, [N, S, B]; NaN where there is no edge."""
        edges = self.graph.edges
        out_NSB = self.clean_B.new_full((*edges.shape, self.n_prompts), torch.nan)
        out_NSB[edges] = self.some_edges([(int(d), int(s)) for d, s in edges.nonzero()], track)
        return out_NSB

    @torch.no_grad()
    def some_edges(self, edges: Sequence[tuple[int, int]], track: Track | None = None) -> Tensor:
        """m with each of some edges (destination, source) cut alone, [edges, B]. Exact: everything behind the edge's
        destination is computed anew."""
        out_EB = self.clean_B.new_empty(len(edges), self.n_prompts)
        by_layer: dict[int, list[int]] = {}
        for i, (d, _) in enumerate(edges):
            by_layer.setdefault(self.graph.destinations[d].layer, []).append(i)
        at_once = max(1, ROW_TOKENS // (self.n_tokens * self.n_prompts))
        parts = [(layer, mine[i : i + at_once]) for layer, of_layer in by_layer.items()
                 for mine in (sorted(of_layer, key=lambda i: edges[i]),) for i in range(0, len(mine), at_once)]
        with self.model.in_turn():
            for layer, some in track(parts, "cutting edges", len(parts)) if track else parts:
                out_EB[some] = self._cut_alone(layer, [edges[i] for i in some])
        return out_EB

    def _cut_alone(self, layer: int, edges: Sequence[tuple[int, int]]) -> Tensor:
        """m with each of some edges into one block cut, [edges, B]."""
        n = self.n_prompts
        sources_E = torch.tensor([s for _, s in edges])
        if layer == self.graph.n_layers:
            last_BED = self.last_BD[:, None] - self.delta_BSTD[:, sources_E, -1]
            return torch.stack([self.measure(last_BD) for last_BD in last_BED.unbind(1)])
        rows_R = torch.arange(n).repeat(len(edges))
        of_unit: dict[tuple[str, int], list[int]] = {}
        for i, (d, _) in enumerate(edges):
            destination = self.graph.destinations[d]
            of_unit.setdefault((destination.point, destination.unit), []).append(i)

        def less(x_RTD: Tensor, mine: list[int]) -> tuple[slice, Tensor]:
            """The rows of some edges, which lie side by side, and their streams without what the edges carry."""
            here = slice(mine[0] * n, (mine[-1] + 1) * n)
            carried = self.delta_BSTD[:, sources_E[mine]].transpose(0, 1).flatten(0, 1)
            return here, x_RTD[here] - carried

        def values(point: str, x_RTD: Tensor) -> list[tuple[Any, Tensor]]:
            found = []
            for (kind, unit), mine in of_unit.items():
                if kind == point:
                    here, stream = less(x_RTD, mine)
                    found.append(((here, slice(None), unit), self.wiring.read(point, layer, stream, unit)))
            return found

        def mlp(x_RTD: Tensor) -> Tensor:
            here, stream = less(x_RTD, of_unit["mlp", 0])
            return torch.cat([x_RTD[: here.start], stream, x_RTD[here.stop :]])

        visit = Visit()
        self.wiring.put(visit, layer, values)
        if ("mlp", 0) in of_unit:
            self.wiring.put_mlp(visit, layer, mlp)
        return self._from_block(layer, visit, rows_R, self.entered[layer][rows_R]).view(len(edges), n)

    def _from_block(self, layer: int, visit: Visit, rows_R: Tensor, x_RTD: Tensor) -> Tensor:
        ids_RT = self.ids_BT[rows_R, self.start :]
        x_RTD = self.wiring.pass_through(ids_RT, visit, self.prefix, rows_R.tolist(), layer, x_RTD)
        return self.measure(x_RTD[:, -1], rows_R)

    # Subgraphs

    @torch.no_grad()
    def subgraphs(self, kept_MNS: Tensor) -> Tensor:
        """m of subgraphs, [M, B]: every edge of the graph that is not kept is cut."""
        cut_MNS = self._cut(kept_MNS)
        with self.model.in_turn():
            return torch.cat([self._subgraphs(some_MNS) for some_MNS in cut_MNS.split(self._at_once())])

    @torch.no_grad()
    def without(self, kept_NS: Tensor, edges: Sequence[tuple[int, int]]) -> Tensor:
        """m of a subgraph without each of some of its edges (destination, source) alone, [edges, B]. What is before the
        edge's destination is computed once."""
        graph, at_once = self.graph, self._at_once()
        cut_NS = self._cut(kept_NS[None])[0]
        out_EB = self.clean_B.new_empty(len(edges), self.n_prompts)
        by_layer: dict[int, list[int]] = {}
        for i, (d, _) in enumerate(edges):
            by_layer.setdefault(graph.destinations[d].layer, []).append(i)
        with self.model.in_turn():
            base = _Base([], -self.reference_BSTD, self.last_BD)
            self._subgraphs(cut_NS[None], base=base)
            for layer, mine in by_layer.items():
                for i in range(0, len(mine), at_once):
                    some = mine[i : i + at_once]
                    fewer_MNS = kept_NS.repeat(len(some), 1, 1)
                    for row, number in enumerate(some):
                        fewer_MNS[row, edges[number][0], edges[number][1]] = False
                    out_EB[some] = self._subgraphs(self._cut(fewer_MNS), layer, base)
        return out_EB

    def _cut(self, kept_MNS: Tensor) -> Tensor:
        """The edges that are not kept, as numbers. A part that nothing feeds counts as cut off: in a resampled run it
        writes what the reference says anyway, elsewhere it would write something of its own."""
        if self.ablation != "resample":
            kept_MNS = torch.stack([self.graph.connected(kept_NS) for kept_NS in kept_MNS])
        return (~kept_MNS & self.graph.edges).to(self.delta_BSTD)

    def _at_once(self) -> int:
        each = len(self.graph.sources) * self.n_tokens * self.model.d_model * self.n_prompts
        return max(1, min(HELD // each, ROW_TOKENS // (self.n_tokens * self.n_prompts)))

    def _subgraphs(self, cut_MNS: Tensor, first: int = 0, base: _Base | None = None) -> Tensor:
        """m of subgraphs, [M, B]. An empty base is filled; with a full one they are computed from block `first` on."""
        n, graph = self.n_prompts, self.graph
        rows_R = torch.arange(n).repeat(len(cut_MNS))
        if first == graph.n_layers and base is not None:
            last_RD, delta_RSTD = base.last[rows_R], base.delta[rows_R, :, -1:]
        else:
            delta_RSTD = -self.reference_BSTD[rows_R] if base is None or base.entered else base.delta
            x_RTD, filling, visit = None, base is not None and not base.entered, Visit()
            if base is not None and not filling:
                x_RTD = base.entered[first][rows_R]
                known = graph.before(first) if first else 0  # the embeddings enter with block 0
                delta_RSTD[:, :known] = base.delta[rows_R, :known]
            entered = self.wiring.keep(visit, delta_RSTD, first)
            for layer in range(first, graph.n_layers):
                self._rewire(visit, layer, cut_MNS, delta_RSTD)
            last_RD = self.wiring.pass_through(self.ids_BT[rows_R, self.start :], visit, self.prefix, rows_R.tolist(),
                                               first, x_RTD)[:, -1]
            if base is not None and filling:
                base.entered, base.last = entered, last_RD
        off_RD = self._carried(cut_MNS[:, -1:], delta_RSTD[:, :, -1:])[:, 0, 0]
        return self.measure(last_RD - off_RD, rows_R).view(len(cut_MNS), n)

    def _carried(self, cut_MNS: Tensor, delta_RSTD: Tensor) -> Tensor:
        """What cut edges into some destinations carry, [R, N, T, D]."""
        n_rows, n_sources, n_tokens, width = delta_RSTD.shape
        n = n_rows // len(cut_MNS)
        flat = delta_RSTD.reshape(n_rows, n_sources, n_tokens * width)
        cut_RNS = cut_MNS.repeat_interleave(n, 0)
        return torch.bmm(cut_RNS, flat).view(n_rows, -1, n_tokens, width)

    def _rewire(self, visit: Visit, layer: int, cut_MNS: Tensor, delta_RSTD: Tensor) -> None:
        """Have a pass give each destination of a block its own stream."""
        graph = self.graph
        here = graph.at(layer)
        places = graph.destinations[here]
        reach = graph.before(layer)
        held: dict[str, Tensor] = {}

        def values(point: str, x_RTD: Tensor) -> list[tuple[Any, Tensor]]:
            if "off" not in held:
                held["off"] = self._carried(cut_MNS[:, here, :reach][:, :-1], delta_RSTD[:, :reach])
            return [((slice(None), slice(None), d.unit), self.wiring.read(point, layer, x_RTD - off, d.unit))
                    for d, off in zip(places[:-1], held["off"].unbind(1), strict=True) if d.point == point]

        def mlp(x_RTD: Tensor) -> Tensor:
            reach = places[-1].reach
            cut_M1S = cut_MNS[:, here.stop - 1 : here.stop, :reach]
            return x_RTD - self._carried(cut_M1S, delta_RSTD[:, :reach])[:, 0]

        self.wiring.put(visit, layer, values)
        self.wiring.put_mlp(visit, layer, mlp)


def _reference(wrote_BSTD: Tensor, ablation: Ablation) -> Tensor:
    """What cut edges carry, of what the sources wrote in the corrupted runs."""
    if ablation == "resample":
        return wrote_BSTD
    if ablation == "zero":
        return torch.zeros_like(wrote_BSTD)
    mean = wrote_BSTD.mean((0, 2) if ablation == "mean" else 0, keepdim=True)
    return mean.expand_as(wrote_BSTD).contiguous()
