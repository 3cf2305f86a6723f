"""One forward pass over a batch of jobs: hooks on an unmodified model, edits row by row, reads row by row.

Rows join late. A job whose first edit is in block L equals its unedited run before L, so its row is appended
to the batch as a copy of that run's row just before block L ("growing batch"). A prefix that no job changes
enters through the key/value cache. Both leave the model's own forward code in charge of every number.
"""

import inspect
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from patchclamp.errors import EditError
from patchclamp.forward.attention import attention_weights, change_weights
from patchclamp.forward.prepare import Job, ReadyEdit, ReadyRead
from patchclamp.forward.site import Site
from patchclamp.model.anatomy import Anatomy, part
from patchclamp.model.tap import Tap

KeyValues = list[tuple[Tensor, Tensor]]
Step = Callable[[Tensor, tuple, Any], Tensor]
"""What a hook does to a module's hidden states, given them, the module's arguments and its output."""
PER_ROW = ("attention_mask", "position_ids", "position_embeddings")


class Stop(BaseException):
    """Raised in a hook once nothing deeper is needed; not an Exception, so that no model code swallows it."""


def _stop_here(x: Tensor, args: tuple, output: Any) -> Tensor:
    raise Stop


def first_tensor(value: Any) -> Tensor:
    """A module's hidden states: its output, or the first of its outputs."""
    return value[0] if isinstance(value, tuple) else value


def with_first(value: Any, tensor: Tensor) -> Any:
    """The same output with other hidden states."""
    return (tensor, *value[1:]) if isinstance(value, tuple) else tensor


@dataclass
class Layout:
    """Where each job's tokens lie in the batch: `pad[row]` columns of padding, then its tokens; or, where all begin
    with the same tokens, the tokens first and padding behind them, which causal attention never sees."""

    roots: list[Job]
    """Rows present from the start."""
    joined: list[Job] = field(default_factory=list)
    """Rows that join later, in order of the block they join at."""
    base: list[int] = field(default_factory=list)
    """For each joined row the root it copies."""
    start: int = 0
    """The first column computed; those before it come from the prefix cache."""
    alike: bool = False
    """All rows begin with the same tokens up to `start`, so that one row's keys and values serve all."""

    def __post_init__(self) -> None:
        order = sorted(range(len(self.joined)), key=lambda i: self.joined[i].join)
        self.joined = [self.joined[i] for i in order]
        self.base = [*range(len(self.roots)), *(self.base[i] for i in order)]
        self.jobs = [*self.roots, *self.joined]
        self.n_columns = max(len(j.encoded) for j in self.roots)
        self.pad = [0 if self.alike else self.n_columns - len(j.encoded) for j in self.jobs]
        self.joins = [j.join for j in self.joined]

    def rows_at(self, block: int) -> int:
        """How many rows are live inside a block."""
        return len(self.roots) + sum(j <= block for j in self.joins)

    def columns(self, row: int, tokens: Sequence[int]) -> Sequence[int]:
        """Computed columns of a row's tokens."""
        shift = self.pad[row] - self.start
        if isinstance(tokens, range):
            return range(tokens.start + shift, tokens.stop + shift, tokens.step)
        return [t + shift for t in tokens]

    @property
    def padded(self) -> bool:
        return any(self.pad)


def inputs_of(anatomy: Anatomy, layout: Layout, accepts_positions: bool) -> dict[str, Tensor]:
    """input_ids and, where there is padding, mask and positions counted from each row's first real token."""
    device = anatomy.unembedding.weight.device
    n = len(layout.roots)
    ids = torch.zeros(n, layout.n_columns, dtype=torch.long)
    mask = torch.zeros(n, layout.n_columns, dtype=torch.long)
    for row, job in enumerate(layout.roots):
        here = slice(layout.pad[row], layout.pad[row] + len(job.encoded))
        ids[row, here] = torch.tensor(job.encoded.ids)
        mask[row, here] = 1
    inputs = {"input_ids": ids[:, layout.start :].to(device)}
    if layout.padded:
        inputs["attention_mask"] = mask.to(device)
        if accepts_positions:
            inputs["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)[:, layout.start :].to(device)
    return inputs


def compute_prefix(anatomy: Anatomy, inputs: dict[str, Tensor], length: int) -> KeyValues:
    """Keys and values of the first `length` columns, block by block."""
    from transformers import DynamicCache

    cache: Any = DynamicCache()
    anatomy.base(**{name: tensor[:, :length] for name, tensor in inputs.items()}, past_key_values=cache, use_cache=True)
    return [(layer.keys, layer.values) for layer in cache.layers]


def prefix_cache(prefix: KeyValues, rows: Callable[[int], Sequence[int]]) -> Any:
    """A cache to go on from; `rows` gives for each block which row of the prefix each live row continues."""
    from transformers import DynamicCache

    data = []
    for block, (keys, values) in enumerate(prefix):
        chosen = torch.tensor(rows(block), device=keys.device)
        if len(keys) == 1:
            data.append((keys.expand(len(chosen), -1, -1, -1), values.expand(len(chosen), -1, -1, -1)))
        else:
            data.append((keys[chosen], values[chosen]))
    return DynamicCache(data)


class Batch:
    """One execution. `run()` returns the hidden states after the final norm [rows, columns, D], or None if the
    pass was stopped early; values read at sites are in `values[row, read index]`."""

    def __init__(self, anatomy: Anatomy, layout: Layout, prefix: KeyValues | None = None, stop: int | None = None,
                 keep_graph: bool = False) -> None:
        self.anatomy = anatomy
        self.layout = layout
        self.prefix = prefix
        self.stop = stop
        self.keep_graph = keep_graph
        self.raw: dict[Site, tuple[Tap, Tensor]] = {}
        self.values: dict[tuple[int, int], Tensor] = {}
        self.n_tokens = layout.n_columns - layout.start
        self.edits: dict[tuple[str, int], list[tuple[int, ReadyEdit]]] = defaultdict(list)
        self.reads: dict[tuple[str, int], list[tuple[int, int, ReadyRead]]] = defaultdict(list)
        for row, job in enumerate(layout.jobs):
            for edit in job.edits:
                self.edits[edit.site.place, edit.layer].append((row, edit))
            for index, read in enumerate(job.reads):
                site = read.read.site
                if site is not None and site.point != "logits":
                    self.reads[site.place, site.layer or 0].append((row, index, read))

    def run(self, inputs: dict[str, Tensor]) -> Tensor | None:
        """Execute. Raises EditError if an edit did not fire."""
        if self.prefix is not None:
            cache = prefix_cache(self.prefix, lambda block: self.layout.base[: self.layout.rows_at(block)])
            inputs = {**inputs, "past_key_values": cache}
        with self._hooks(), attention_weights(self.anatomy, self._needs("pattern"), self._pattern_edits()):
            try:
                out = self.anatomy.base(**inputs, use_cache=self.prefix is not None)
                hidden = out[0] if isinstance(out, tuple) else out.last_hidden_state
            except Stop:
                hidden = None
        for row, job in enumerate(self.layout.jobs):
            for edit in job.edits:
                if not edit.fired:
                    raise EditError(f"{edit.edit.op} at {edit.site} did not fire in row {row}: the model never ran "
                                    "the module it belongs to")
        return hidden

    def _needs(self, point: str) -> bool:
        return any(p == point for p, _ in (*self.edits, *self.reads))

    @contextmanager
    def _hooks(self) -> Iterator[None]:
        before, after = self._steps()
        block_of = {block: i for i, block in enumerate(self.anatomy.blocks)}
        handles = []
        try:
            for module, steps in before.items():
                hook = self._before(steps, block_of.get(module))
                handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
            handles += [module.register_forward_hook(self._after(steps)) for module, steps in after.items()]
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _steps(self) -> tuple[dict[nn.Module, list[Step]], dict[nn.Module, list[Step]]]:
        """For each module that is touched, the steps on its input and on its output, in order."""
        before: dict[nn.Module, list[Step]] = defaultdict(list)
        after: dict[nn.Module, list[Step]] = defaultdict(list)
        blocks, family = self.anatomy.blocks, self.anatomy.family
        for join in sorted(set(self.layout.joins)):
            steps = before[blocks[0]] if join == 0 else after[blocks[join - 1]]
            steps.append(partial(self._grow, join))
        for point, layer in sorted(self.edits, key=partial(order_of, self.anatomy)):
            if point != "pattern":  # whose weights are edited where they are computed
                tap = self.anatomy.tap(point, layer)
                (before if tap.side == "in" else after)[tap.module].append(partial(self._write, tap, (point, layer)))
        for point, layer in sorted(self.reads, key=partial(order_of, self.anatomy)):
            if point == "pattern":
                after[part(blocks[layer], family.attention)].append(partial(self._read_pattern, layer))
            elif point == "head_out":
                after[part(blocks[layer], family.out_proj)].append(partial(self._read_head_out, layer))
            else:
                tap = self.anatomy.tap(point, layer)
                (before if tap.side == "in" else after)[tap.module].append(partial(self._look, tap, (point, layer)))
        if self.stop is not None:
            after[blocks[self.stop]].append(_stop_here)
        for block in blocks if self.layout.joined else blocks[: self.keep_graph]:
            before[block]
        return before, after

    def _before(self, steps: list[Step], block: int | None) -> Callable:
        def hook(_: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
            x = original = args[0] if args else kwargs["hidden_states"]
            if block == 0 and self.keep_graph and not x.requires_grad:
                x = x.detach().requires_grad_()
            for step in steps:
                x = step(x, args, None)
            if block is not None and self.layout.joined:
                args, kwargs = self._spread(block, args, kwargs)
            elif x is original:
                return None
            return ((x, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": x})

        return hook

    def _after(self, steps: list[Step]) -> Callable:
        def hook(_: nn.Module, args: tuple, output: Any) -> Any:
            x = original = first_tensor(output)
            for step in steps:
                x = step(x, args, output)
            return output if x is original else with_first(output, x)

        return hook

    def _grow(self, block: int, x: Tensor, args: tuple, output: Any) -> Tensor:
        """Append the rows that join before `block`, each a copy of its root's row."""
        rows = [self.layout.base[len(self.layout.roots) + i] for i, j in enumerate(self.layout.joins) if j == block]
        return torch.cat([x, x[rows]])

    def _spread(self, block: int, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        """Give per-row arguments (masks, positions) one entry for each live row."""
        n_roots, rows = len(self.layout.roots), self.layout.rows_at(block)
        if n_roots == 1 or rows == n_roots:
            return args, kwargs
        base = torch.tensor(self.layout.base[:rows])

        def spread(name: str, value: Any) -> Any:
            if name not in PER_ROW:
                return value
            if isinstance(value, tuple):
                return tuple(spread(name, v) for v in value)
            return value[base.to(value.device)] if isinstance(value, Tensor) and len(value) == n_roots else value

        names = list(inspect.signature(self.anatomy.blocks[block].forward).parameters)
        return (tuple(spread(name, value) for name, value in zip(names, args, strict=False)),
                {name: spread(name, value) for name, value in kwargs.items()})

    def _write(self, tap: Tap, key: tuple[str, int], raw: Tensor, args: tuple, output: Any) -> Tensor:
        """Apply the edits at a tap."""
        return tap.write(raw, self.n_tokens, lambda value: self._edit(value, self.edits[key]))

    def _look(self, tap: Tap, key: tuple[str, int], raw: Tensor, args: tuple, output: Any) -> Tensor:
        """Read a tap, after all edits at its module."""
        value = tap.read(raw, self.n_tokens)
        for row, index, read in self.reads[key]:
            self.values[row, index] = self.pick(value, row, read)
            if self.keep_graph:
                self.raw[read.read.site] = (tap, raw)  # type: ignore[index]
        return raw

    def _edit(self, value: Tensor, edits: list[tuple[int, ReadyEdit]]) -> None:
        for row, edit in edits:
            columns = _as_slice(self.layout.columns(row, edit.tokens))
            unit = edit.site.unit
            where = (row, columns) if unit is None else (row, columns, unit)
            value[where] = edit.change(value[where])
            edit.fired = True

    def _live(self, row: int, n_rows: int) -> int:
        """The row that holds a job's values now: its root's until it has joined."""
        return row if row < n_rows else self.layout.base[row]

    def pick(self, value: Tensor, row: int, read: ReadyRead) -> Tensor:
        picked = value[self._live(row, len(value))]
        site = read.read.site
        assert site is not None
        if len(read.tokens) == self.n_tokens and site.positions.kind == "all" and site.unit is None:
            return picked
        columns = self.layout.columns(row, read.tokens)
        is_part = len(columns) < self.n_tokens
        if is_part:
            picked = picked[_as_slice(columns)]
        if site.unit is not None:
            picked = picked[:, site.unit]
        if (is_part or site.unit is not None) and not self.keep_graph:
            picked = picked.clone()  # a view would keep the whole value in memory
        return picked[0] if site.positions.single else picked

    def _read_pattern(self, layer: int, x: Tensor, args: tuple, output: Any) -> Tensor:
        weights_RHTS = output[1]
        for row, index, read in self.reads["pattern", layer]:
            site = read.read.site
            assert site is not None
            own = weights_RHTS[self._live(row, len(weights_RHTS))][..., self.layout.pad[row] :]
            own = own if site.unit is None else own[site.unit : site.unit + 1]
            picked = own[:, _as_slice(self.layout.columns(row, read.tokens))]
            picked = picked[0] if site.unit is not None else picked
            self.values[row, index] = picked[..., 0, :] if site.positions.single else picked
        return x

    def _read_head_out(self, layer: int, x: Tensor, args: tuple, output: Any) -> Tensor:
        anatomy = self.anatomy
        w_HED = anatomy.head_weights(layer)
        z_RTHE = anatomy.tap("head", layer).read(args[0], self.n_tokens)
        scale = anatomy.post_norm_scale(layer, x)
        for row, index, read in self.reads["head_out", layer]:
            site = read.read.site
            assert site is not None
            live, columns = self._live(row, len(z_RTHE)), _as_slice(self.layout.columns(row, read.tokens))
            z_CHE = z_RTHE[live, columns]
            scale_CD = scale[live, columns] if isinstance(scale, Tensor) else torch.tensor(scale, dtype=x.dtype)
            if site.unit is None:
                value = torch.einsum("che,hed->chd", z_CHE, w_HED) * (scale_CD[:, None] if scale_CD.dim() else scale_CD)
            else:
                value = z_CHE[:, site.unit] @ w_HED[site.unit] * scale_CD
            self.values[row, index] = value[0] if site.positions.single else value
        return x

    def _pattern_edits(self) -> dict[nn.Module, Callable[[Tensor], None]]:
        """For each attention module with edited weights, the change made to them in place."""
        found: dict[nn.Module, Callable[[Tensor], None]] = {}
        for (point, layer), edits in self.edits.items():
            if point == "pattern":
                module = part(self.anatomy.blocks[layer], self.anatomy.family.attention)
                found[module] = partial(self._edit_pattern, edits)
        return found

    def _edit_pattern(self, edits: list[tuple[int, ReadyEdit]], weights_RHTS: Tensor) -> None:
        for row, edit in edits:
            columns = _as_slice(self.layout.columns(row, edit.tokens))
            change_weights(weights_RHTS[row], edit, columns, self.layout.pad[row])


ORDER = {p: i for i, p in enumerate((
    "embed", "resid_pre", "q", "k", "v", "pattern", "head", "head_out", "attn", "resid_mid", "gate", "neuron", "mlp",
    "resid"))}


def order_of(anatomy: Anatomy, key: tuple[str, int]) -> tuple[int, int, bool]:
    """What places in a pass, (point, layer), are sorted by: where their values pass, and features after the value they
    are made of."""
    point, layer = key
    base = anatomy.base_point(point, layer)
    return layer, ORDER[base], base != point


def _as_slice(columns: Sequence[int]) -> slice | list[int]:
    """Evenly spaced columns as a slice, which reads and writes without copying."""
    if isinstance(columns, range):
        return slice(columns.start, columns.stop, columns.step)
    return list(columns)
