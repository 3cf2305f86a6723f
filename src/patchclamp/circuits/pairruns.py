"""Pairs of prompts run as they are and in part: how far the answer goes with edges cut.

    m = logit(answer) - logit(distractor) at the last token

Shape suffixes: B prompts, M subgraphs, R rows (a prompt under a subgraph), S sources, N destinations, T tokens from the
first on that differ, D model width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from patchclamp.circuits.memory import Parts
from patchclamp.circuits.references import Ablation, reference_of
from patchclamp.circuits.subgraphs import Known, SubgraphPass, behind, slopes, unit_slopes
from patchclamp.circuits.wiring import Visit, Wiring, prove
from patchclamp.model.tap import Tap

if TYPE_CHECKING:
    from patchclamp.forward.model import Model

ROW_TOKENS = 4096
"""Rows times tokens in one pass."""
HELD = 2**28
"""Numbers that the sources of one pass may write: 1 GB in float32."""

Track = Callable[[Iterable[Any], str, int | None], Iterator[Any]]


@dataclass
class _Whole:
    """A run of the whole model."""

    entered: list[Tensor]
    """The streams before the blocks, [B, T, D] each."""
    middle: list[Tensor]
    """Those that the MLPs read."""
    wrote: Tensor
    """What the sources wrote, [B, S, T, D]."""
    last: Tensor = field(default_factory=lambda: torch.empty(0))
    """The last stream at the last token, [B, D]."""


class PairRuns:
    """Clean and corrupted prompts of one length, run once whole; then as often as asked with edges cut."""

    def __init__(
        self, model: Model, wiring: Wiring, clean: Sequence[tuple[int, ...]], corrupted: Sequence[tuple[int, ...]],
        choices: Sequence[tuple[int, int]], ablation: Ablation = "resample",
        roles: Sequence[Sequence[int]] | None = None,
    ) -> None:
        """`choices`: each pair's answer and distractor as token ids. `roles`: the number of every token's role."""
        self.model, self.wiring, self.graph, self.ablation = model, wiring, wiring.graph, ablation
        device = model.device
        self.ids_BT = torch.tensor(clean, device=device)
        other_BT = torch.tensor(corrupted, device=device)
        self.choices_B2 = torch.tensor(choices, device=device)
        self.start = self._first_difference(other_BT) if ablation == "resample" else 0
        self.parts = Parts()
        self.unit_point = "neuron"
        self.units: dict[int, Tensor] = {}
        """By block, what the units of its MLP are in the reference, [B, T, units]; what `with_units` takes apart."""
        self._other_BT = other_BT
        self.role_BT = None if roles is None else torch.tensor(roles, device=device)[:, self.start :]
        with torch.no_grad(), model.in_turn():
            self.prefix = wiring.prefix(self.ids_BT, self.start)
            whole, other = self._whole(self.ids_BT, proved=True), self._whole(other_BT)
            self.entered, self.last_BD = whole.entered, whole.last
            self.clean_B, self.corrupted_B = self.measure(whole.last), self.measure(other.last)
        self._clean = whole if ablation == "mean" else None  # a mean may turn out to be over other lengths, too
        self.refer_to(reference_of(other.wrote, ablation), whole)

    def refer_to(self, reference_BSTD: Tensor, clean: _Whole | None = None) -> None:
        """Have cut edges carry this."""
        clean = clean or self._clean
        assert clean is not None
        self.reference_BSTD, self.delta_BSTD = reference_BSTD, clean.wrote - reference_BSTD
        self.start_BTD, self.ending_BTD = self._starts(clean)
        if self.ablation != "resample":
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

    def _whole(self, ids_BT: Tensor, proved: bool = False) -> _Whole:
        visit, anatomy, wiring, graph = Visit(), self.model.anatomy, self.wiring, self.graph
        weight = anatomy.unembedding.weight
        wrote_BSTD = torch.zeros(len(ids_BT), len(graph.sources), self.n_tokens, anatomy.d_model, dtype=weight.dtype,
                                 device=weight.device)
        whole = _Whole([], [], wrote_BSTD)
        for layer in range(graph.n_layers):
            heads = slice(graph.head(layer, 0), graph.mlp(layer))

            def put(out: Tensor, where: slice | int) -> None:
                wrote_BSTD[:, where] = out

            def middle(x_BTD: Tensor) -> Tensor:
                whole.middle.append(x_BTD)
                return x_BTD

            visit.before[anatomy.blocks[layer]].append(whole.entered.append)
            wiring.on_heads(visit, layer, range(graph.n_heads), self.n_tokens, partial(put, where=heads))
            wiring.put_mlp(visit, layer, middle)
            wiring.on_mlp(visit, layer, self.n_tokens, partial(put, where=graph.mlp(layer)))
        seen: dict[tuple[str, int], Tensor] = {}
        if proved:
            for layer in range(anatomy.n_layers):
                self._look(visit, layer, seen)
        with wiring.looking_at_mlps():
            whole.last = wiring.pass_through(ids_BT[:, self.start :], visit, self.prefix)[:, -1]
        wrote_BSTD[:, 0] = whole.entered[0]
        if proved:
            prove(wiring, whole.entered, wrote_BSTD, seen)
        return whole

    def _starts(self, whole: _Whole) -> tuple[dict[tuple[int, int], Tensor], Tensor]:
        """The reference's streams [B, T, D] before attention (0) and MLP (1) of every block, and the last one at the
        last token, [B, 1, D]."""
        graph, found = self.graph, {}
        for layer in range(graph.n_layers):
            reach = graph.before(layer)
            found[layer, 0] = whole.entered[layer] - self.delta_BSTD[:, :reach].sum(1)
            reach = graph.destinations[graph.feeds[graph.mlp(layer)][0]].reach
            found[layer, 1] = whole.middle[layer] - self.delta_BSTD[:, :reach].sum(1)
        return found, (whole.last - self.delta_BSTD[:, :, -1].sum(1))[:, None]

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
                cut = partial(self._cut_alone, layer, [edges[i] for i in some])
                out_EB[some] = torch.cat(self.parts.run(len(some), at_once, cut))
        return out_EB

    def _cut_alone(self, layer: int, edges: Sequence[tuple[int, int]], part: slice) -> Tensor:
        """m with each of some edges into one block cut, [edges, B]."""
        n, edges = self.n_prompts, edges[part]
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
        x_RTD = self.wiring.pass_through(self.ids_BT[rows_R, self.start :], visit, self.prefix, rows_R.tolist(),
                                         range(layer), self.entered[layer][rows_R])
        return self.measure(x_RTD[:, -1], rows_R).view(len(edges), n)

    # Subgraphs

    @torch.no_grad()
    def subgraphs(self, kept_MNS: Tensor) -> Tensor:
        """m of subgraphs, [M, B]: every edge of the graph that is not kept is cut. [M, N, S, P] keeps edges at the
        tokens of roles."""
        if kept_MNS.dim() == 3:
            kept_MNS = self.graph.connected(kept_MNS)
        known = Known(torch.tensor([0]), self.delta_BSTD[:, :1])
        with self.model.in_turn():
            measured = partial(self._measured, kept_MNS, known, None)
            return torch.cat(self.parts.run(len(kept_MNS), self._at_once(_computed(kept_MNS)), measured))

    @torch.no_grad()
    def without(self, kept_NS: Tensor, edges: Sequence[tuple[int, int]]) -> Tensor:
        """m of a subgraph without each of some of its edges (destination, source) alone, [edges, B]. Only what is
        behind the edge is computed anew."""
        kept_NS = self.graph.connected(kept_NS)
        out_EB = self.clean_B.new_empty(len(edges), self.n_prompts)
        by_layer: dict[int, list[int]] = {}
        for i, (d, _) in enumerate(edges):
            by_layer.setdefault(self.graph.destinations[d].layer, []).append(i)
        with self.model.in_turn():
            known = self._known(kept_NS)
            for mine in by_layer.values():
                fewer_MNS = kept_NS.repeat(len(mine), 1, 1)
                for row, number in enumerate(mine):
                    fewer_MNS[row, edges[number][0], edges[number][1]] = False
                if self.wiring.heads_together or self.ablation != "resample":  # what hangs loose would say something
                    fewer_MNS = self.graph.connected(fewer_MNS)
                places = (fewer_MNS != kept_NS).any(0).any(-1).nonzero()[:, 0].tolist()
                anew_S = behind(self.wiring, kept_NS, places)[known.sources]
                anew = known.sources[anew_S].tolist()
                rest = Known(known.sources[~anew_S], known.delta[:, ~anew_S])
                measured = partial(self._measured, fewer_MNS, rest, anew)
                out_EB[mine] = torch.cat(self.parts.run(len(mine), self._at_once(anew), measured))
        return out_EB

    def slopes(self, weights_NS: Tensor) -> tuple[Tensor, Tensor]:
        """m [B] of a subgraph whose edges are kept to so much (0 to 1), and the gradient of its sum by these weights,
        [N, S]: to first order what each edge contributes."""
        with self.model.in_turn():
            return slopes(self, weights_NS)

    def along_edges(self, steps: int) -> Tensor:
        """Integrated gradients by how much all edges are kept at once, from none to whole: what cutting each edge would
        change, [N, S, B]. They add up to the whole change of m, but for the error of so few steps."""
        with self.model.in_turn():
            return -torch.stack([slopes(self, self.graph.edges * ((k + 0.5) / steps), singly=True)[1]
                                 for k in range(steps)]).mean(0)

    def unit_tap(self, layer: int) -> Tap:
        """Where the units of a block's MLP pass."""
        return self.model.anatomy.tap(self.unit_point, layer)

    @torch.no_grad()
    def take_apart(self, point: str, layers: Sequence[int]) -> None:
        """Have the MLPs of some blocks ready unit by unit: neurons, or an autoencoder's features. SiteError if they
        have none."""
        self.unit_point, visit, found = point, Visit(), {}

        def keep(raw: Tensor, layer: int) -> None:
            found[layer] = self.unit_tap(layer).read(raw, self.n_tokens).clone()

        for layer in layers:
            tap = self.unit_tap(layer)
            (visit.before if tap.side == "in" else visit.after)[tap.module].append(partial(keep, layer=layer))
        with self.model.in_turn():
            self.wiring.pass_through(self._other_BT[:, self.start :], visit, self.prefix)
        self.units = {layer: reference_of(there_BTU[:, None], self.ablation)[:, 0]
                      for layer, there_BTU in found.items()}

    @torch.no_grad()
    def with_units(self, kept_NS: Tensor, units: dict[int, Tensor]) -> Tensor:
        """m [M, B] of one subgraph with some of its MLPs' units kept, by block [M, units]: the others are what they are
        in the reference."""
        kept_NS = self.graph.connected(kept_NS)
        computed, known = _computed(kept_NS[None]), Known(torch.tensor([0]), self.delta_BSTD[:, :1])
        n = len(next(iter(units.values())))

        def work(part: slice) -> Tensor:
            some = {layer: kept_MU[part] for layer, kept_MU in units.items()}
            weights_MNS = kept_NS.to(self.delta_BSTD).expand(len(next(iter(some.values()))), -1, -1)
            return SubgraphPass(self, weights_MNS, computed, known, units=some).measured()

        with self.model.in_turn():
            return torch.cat(self.parts.run(n, self._at_once(computed), work))

    def unit_slopes(self, kept_NS: Tensor, units: dict[int, Tensor]) -> tuple[Tensor, dict[int, Tensor]]:
        """m [B] of a subgraph whose MLPs' units are kept to so much, and the gradient of its sum by that, [units]."""
        with self.model.in_turn():
            return unit_slopes(self, self.graph.connected(kept_NS), units)

    def _known(self, kept_NS: Tensor) -> Known:
        """What all sources of a subgraph write."""
        computed = _computed(kept_NS[None])
        one = self._pass(kept_NS[None], computed, Known(torch.tensor([0]), self.delta_BSTD[:, :1]))
        one.measured()
        assert one.written.whole is not None
        return Known(torch.tensor([0, *computed]), torch.cat([self.delta_BSTD[:, :1], one.written.whole], 1))

    def _measured(self, kept_MNS: Tensor, known: Known, computed: Sequence[int] | None, part: slice) -> Tensor:
        """m of some of the subgraphs, [part of M, B]; `computed` all sources that they have if not given."""
        some_MNS = kept_MNS[part]
        return self._pass(some_MNS, _computed(some_MNS) if computed is None else computed, known).measured()

    def _pass(self, kept_MNS: Tensor, computed: Sequence[int], known: Known) -> SubgraphPass:
        return SubgraphPass(self, kept_MNS.to(self.delta_BSTD), computed, known)

    def _at_once(self, computed: Sequence[int]) -> int:
        each = max(1, len(computed)) * self.n_tokens * self.model.d_model * self.n_prompts
        return max(1, min(HELD // each, ROW_TOKENS // (self.n_tokens * self.n_prompts)))


def _computed(kept_MNS: Tensor) -> list[int]:
    """Sources of connected subgraphs but the embeddings."""
    whole_MNS = kept_MNS if kept_MNS.dim() == 3 else kept_MNS.any(-1)
    return [s for s in whole_MNS.any(0).any(0).nonzero()[:, 0].tolist() if s]
