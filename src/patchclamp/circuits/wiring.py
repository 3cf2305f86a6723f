"""Runs in which every destination reads its own residual stream.

    x_d = x - Σ_s cut[d, s] (out_s - ref_s)

x is the stream as it is, out_s what source s wrote in this run, ref_s what it wrote in the reference run. So an edge
that is cut carries the reference's value (path patching: Goldowsky-Dill et al. 2023, arXiv 2304.05969; Conmy et al.
2023, arXiv 2304.14997), everything else goes on from what was really computed, and with every edge cut the answer is
the reference's. The model's own modules compute everything; blocks before the first cut are passed over.

Shape suffixes: B prompts, R rows, S sources, N destinations, T tokens from the first on that differ, D model width,
H heads, E head width.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from patchclamp.circuits.forwards import with_forwards
from patchclamp.circuits.graph import Graph
from patchclamp.circuits.inputs import Reading, mlp_entry, reading
from patchclamp.errors import UnsupportedModel
from patchclamp.forward.batch import KeyValues, Stop, compute_prefix, first_tensor, prefix_cache, with_first
from patchclamp.model.anatomy import Anatomy, part
from patchclamp.model.tap import Tap

SAME = {torch.float32: 1e-4, torch.float64: 1e-5, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""By the model's dtype, relative to the largest number: how near what is read off the stream has to be to the model's
own queries, keys and values."""

Change = Callable[[Tensor], Tensor | None]
"""Takes a module's hidden states and gives others in their place, or None."""


@dataclass
class Visit:
    """What happens in a pass: changes before and after modules."""

    before: dict[nn.Module, list[Change]] = field(default_factory=lambda: defaultdict(list))
    after: dict[nn.Module, list[Change]] = field(default_factory=lambda: defaultdict(list))


@contextmanager
def _visiting(visit: Visit) -> Iterator[None]:
    def enter(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        x = original = args[0] if args else kwargs["hidden_states"]
        for change in visit.before[module]:
            x = _or(change(x), x)
        if x is original:
            return None
        return ((x, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": x})

    def leave(module: nn.Module, args: tuple, output: Any) -> Any:
        x = original = first_tensor(output)
        for change in visit.after[module]:
            x = _or(change(x), x)
        return output if x is original else with_first(output, x)

    handles = [module.register_forward_pre_hook(enter, with_kwargs=True) for module in visit.before]
    handles += [module.register_forward_hook(leave) for module in visit.after]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _or(new: Tensor | None, old: Tensor) -> Tensor:
    return old if new is None else new


def _passed_over(modules: Sequence[Any], gives_tuple: bool) -> AbstractContextManager[None]:
    """Modules that hand on what they are given, blocks as the type of thing that they give."""
    def hand_on(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        return (hidden_states, None) if gives_tuple else hidden_states

    return with_forwards(modules, lambda _: hand_on)


class Wiring:
    """A model's modules as the graph's sources and destinations.

    In an ungrouped graph every query head has its own copy of the keys and values that the model computes once for
    several: they are copied as they leave their module, and attention is told that there is nothing left to copy.
    """

    def __init__(self, anatomy: Anatomy, graph: Graph) -> None:
        self.anatomy, self.graph = anatomy, graph
        self.reads: list[dict[str, Reading]] = [
            {point: reading(anatomy, point, layer) for point in "qkv"} for layer in range(anatomy.n_layers)]
        self.heads_together = anatomy.family.post_norm
        """A norm on the sum of a block's heads: what one of them adds to the stream hangs on the others."""
        self.gives_tuple = True
        self.spared: set[nn.Module] = set()
        """MLPs that give one tensor like the one they are given, so that they can be passed over."""
        self.copies = graph.n_keys // anatomy.n_kv_heads
        """Of each key and value."""
        if self.copies > 1:
            for layer in range(anatomy.n_layers):
                self._require_separate(layer)

    def _require_separate(self, layer: int) -> None:
        anatomy = self.anatomy
        taps = [anatomy.tap(point, layer) for point in "qkv"]
        attention = part(anatomy.blocks[layer], anatomy.family.attention)
        if len({tap.module for tap in taps}) < 3 or not hasattr(attention, "num_key_value_groups"):
            raise UnsupportedModel(f"the keys and values of a {anatomy.family.name} block leave one module together "
                                   "with its queries, so they cannot be copied for each query head: leave the graph "
                                   "grouped")

    def tap(self, point: str, layer: int) -> Tap:
        """Where a point passes, with one unit for each of the graph's destinations."""
        tap = self.anatomy.tap(point, layer)
        return replace(tap, units=self.graph.n_keys) if self.copies > 1 and point in ("k", "v") else tap

    def read(self, point: str, layer: int, x_RTD: Tensor, unit: int) -> Tensor:
        """What a destination makes of streams, [R, T, E]."""
        own = unit // self.copies if point in ("k", "v") else unit
        return self.reads[layer][point](x_RTD, own)

    def prefix(self, ids_BT: Tensor, start: int) -> KeyValues | None:
        """Keys and values of the tokens before `start`."""
        if not start:
            return None
        with torch.no_grad():
            found = compute_prefix(self.anatomy, {"input_ids": ids_BT}, start)
        return [(k.repeat_interleave(self.copies, 1), v.repeat_interleave(self.copies, 1)) for k, v in found]

    @contextmanager
    def _copied(self, visit: Visit) -> Iterator[None]:
        """For the time of a pass."""
        if self.copies == 1:
            yield
            return
        attentions = [part(block, self.anatomy.family.attention) for block in self.anatomy.blocks]
        usual = [attention.num_key_value_groups for attention in attentions]
        try:
            for layer, attention in enumerate(attentions):
                attention.num_key_value_groups = 1
                for point in "kv":
                    tap = self.anatomy.tap(point, layer)
                    visit.after[tap.module].insert(0, partial(self._copy, tap))
            yield
        finally:
            for attention, groups in zip(attentions, usual, strict=True):
                attention.num_key_value_groups = groups

    def _copy(self, tap: Tap, raw: Tensor) -> Tensor:
        if tap.layout in ("bhte", "bthe"):
            return raw.repeat_interleave(self.copies, 1 if tap.layout == "bhte" else 2)
        heads = raw.unflatten(-1, (self.anatomy.n_kv_heads, -1))
        return heads.repeat_interleave(self.copies, -2).flatten(-2)

    def pass_through(
        self, ids_RT: Tensor, visit: Visit, prefix: KeyValues | None = None, rows: Sequence[int] | None = None,
        idle: Sequence[int] = (), x_RTD: Tensor | None = None, last: int | None = None, without_mlp: Sequence[int] = (),
    ) -> Tensor:
        """The stream after the last block, or block `last`, [R, T, D]; `x_RTD` stands before the first block that is
        not `idle`. `prefix`: keys and values of the tokens before, `rows` which of them each row continues.
        `without_mlp`: blocks of whose MLP nothing is wanted."""
        anatomy, inputs = self.anatomy, {"input_ids": ids_RT}
        last = anatomy.n_layers - 1 if last is None else last
        if prefix is not None:
            chosen = list(range(len(ids_RT))) if rows is None else list(rows)
            inputs = {**inputs, "past_key_values": prefix_cache(prefix, lambda _: chosen)}
        if x_RTD is not None:
            first = next(layer for layer in range(anatomy.n_layers) if layer not in idle)
            visit.before[anatomy.blocks[first]].insert(0, lambda _: x_RTD)
        found: list[Tensor] = []

        def end(module: nn.Module, args: tuple, output: Any) -> None:
            self.gives_tuple = isinstance(output, tuple)
            found.append(first_tensor(output))
            raise Stop

        cores = [core for layer in without_mlp if (core := self._core(layer)) in self.spared]
        with (self._copied(visit), _passed_over([anatomy.blocks[layer] for layer in idle], self.gives_tuple),
              _passed_over(cores, False), _visiting(visit)):
            handle = anatomy.blocks[last].register_forward_hook(end)
            try:
                anatomy.base(**inputs, use_cache=prefix is not None)
            except Stop:
                pass
            finally:
                handle.remove()
        return found[0]

    def _core(self, layer: int) -> nn.Module:
        return part(self.anatomy.blocks[layer], self.anatomy.family.mlp_core)

    @contextmanager
    def looking_at_mlps(self) -> Iterator[None]:
        """For the time of a whole pass: see which MLPs can be passed over."""
        def look(module: nn.Module, args: tuple, output: Any) -> None:
            if args and isinstance(output, Tensor) and isinstance(args[0], Tensor) and output.shape == args[0].shape:
                self.spared.add(module)

        handles = [self._core(layer).register_forward_hook(look) for layer in range(self.anatomy.n_layers)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def head_outputs(self, layer: int, z: Tensor, raw: Tensor, n_tokens: int, heads: Sequence[int]) -> Tensor:
        """What some heads add to the stream [R, heads, T, D], of the output projection's input and output."""
        anatomy = self.anatomy
        w_HED = anatomy.head_weights(layer)[list(heads)]
        z_RTHE = anatomy.tap("head", layer).read(z, n_tokens)[:, :, list(heads)]
        n_rows = len(z_RTHE)
        z_HNE = z_RTHE.flatten(0, 1).transpose(0, 1)
        out_RHTD = torch.bmm(z_HNE, w_HED).unflatten(1, (n_rows, n_tokens)).transpose(0, 1)
        scale = anatomy.post_norm_scale(layer, raw.view(n_rows, n_tokens, -1))
        return out_RHTD * (scale[:, None] if isinstance(scale, Tensor) else scale)

    def on_heads(
        self, visit: Visit, layer: int, heads: Sequence[int], n_tokens: int, take: Callable[[Tensor], None]
    ) -> None:
        """Have a pass hand over what some heads of a block add to the stream, [R, heads, T, D]."""
        held: dict[str, Tensor] = {}
        out_proj = part(self.anatomy.blocks[layer], self.anatomy.family.out_proj)
        visit.before[out_proj].append(lambda z: held.update(z=z))
        visit.after[out_proj].append(lambda raw: take(self.head_outputs(layer, held.pop("z"), raw, n_tokens, heads)))

    def on_mlp(self, visit: Visit, layer: int, n_tokens: int, take: Callable[[Tensor], None]) -> None:
        """Have a pass hand over what a block's MLP adds to the stream, [R, T, D]."""
        tap = self.anatomy.tap("mlp", layer)
        visit.after[tap.module].append(lambda raw: take(tap.read(raw, n_tokens)))

    def put(self, visit: Visit, layer: int, values: Callable[[str, Tensor], Sequence[tuple[Any, Tensor]]]) -> None:
        """Have a pass put values in the place of a block's queries, keys and values: `values(point, x_RTD)` gives
        (where in [R, T, units, E], value) of each that changes, x the stream before the block."""
        anatomy = self.anatomy
        held: dict[str, Tensor] = {}
        visit.before[anatomy.blocks[layer]].append(lambda x: held.update(x=x))
        for point in "qkv":
            tap = self.tap(point, layer)

            def write(raw: Tensor, point: str = point, tap: Any = tap) -> Tensor | None:
                new = values(point, held["x"])
                if not new:
                    return None

                def change(value_RTUE: Tensor) -> None:
                    for where, value in new:
                        value_RTUE[where] = value

                return tap.write(raw, held["x"].shape[1], change)

            visit.after[tap.module].append(write)

    def put_mlp(self, visit: Visit, layer: int, stream: Callable[[Tensor], Tensor]) -> None:
        """Have a pass give a block's MLP another stream: `stream(x_RTD)` of the one it reads."""
        module, norm = mlp_entry(self.anatomy, layer)
        held: dict[str, Tensor] = {}
        visit.before[self.anatomy.blocks[layer]].append(lambda x: held.update(x=x))
        if norm is None:
            visit.before[module].append(lambda x: stream(x.view_as(held["x"])).view_as(x))
        else:
            visit.before[module].append(lambda x: norm(stream(held["x"])).view_as(x))


def prove(
    wiring: Wiring, entered: list[Tensor], wrote_RSTD: Tensor, seen: dict[tuple[str, int], Tensor]
) -> None:
    """UnsupportedModel unless what the readings make of the streams [R, T, D] of a run is what the model made of
    them (`seen`, by point and block, [R, T, units, E]), and what the sources wrote adds up to the streams."""
    anatomy, graph = wiring.anatomy, wiring.graph
    limit = SAME.get(anatomy.unembedding.weight.dtype, 1e-4)
    for (point, layer), value_RTUE in seen.items():
        own = torch.stack([wiring.read(point, layer, entered[layer], u) for u in range(value_RTUE.shape[2])], 2)
        _compare(own, value_RTUE, limit, f"{point}.{layer} is not what its projection makes of the residual stream")
    for layer in range(1, anatomy.n_layers):
        step_RTD = wrote_RSTD[:, graph.before(layer - 1) + (layer == 1) * -1 : graph.before(layer)].sum(1)
        if layer > 1:
            step_RTD = step_RTD + entered[layer - 1]
        bias = getattr(part(anatomy.blocks[layer - 1], anatomy.family.out_proj), "bias", None)
        if bias is None:
            _compare(step_RTD, entered[layer], limit, f"heads and MLP do not add up to what block {layer - 1} writes")


def _compare(own: Tensor, model: Tensor, limit: float, what: str) -> None:
    gap, size = float((own - model).abs().max()), float(model.abs().max())
    if not gap <= limit * size:
        raise UnsupportedModel(f"{what}: off by {gap:.1e} of {size:.1e} (tolerance {limit:.0e}), so "
                               "no edge of this model can be cut; circuits patch works without edges")
