"""The graph of one model: what writes to the residual stream, what reads it, and which of the writers each reader has
before it.

    sources       embed, head.L.h, mlp.L              (S of them, in the order of the pass)
    destinations  q.L.h, k.L.h, v.L.h, mlp.L, logits  (N of them)

An edge joins a source to a destination behind it: the stream that a destination reads is the sum of what its sources
wrote (Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits"), so every source before it has one.
Keys and values are the model's own, one for each key/value head; `grouped=False` counts them once for each query head,
as models whose keys and values were copied for every head are counted in the literature.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from patchclamp.errors import InputError
from patchclamp.model.anatomy import Anatomy


@dataclass(frozen=True)
class Destination:
    """One reader of the residual stream."""

    point: str
    """q, k, v, mlp or logits."""
    layer: int
    """The number of blocks for the logits."""
    unit: int
    """The head, or 0."""
    reach: int
    """How many sources it has before it; they are the first so many of the graph's."""

    def __str__(self) -> str:
        if self.point == "logits":
            return self.point
        return f"mlp.{self.layer}" if self.point == "mlp" else f"{self.point}.{self.layer}.{self.unit}"


@dataclass(frozen=True)
class Graph:
    """All sources, destinations and edges of a model of this shape."""

    n_layers: int
    n_heads: int
    n_kv_heads: int
    parallel: bool
    """Attention and MLP of a block read the same stream, so that no head is before its own block's MLP."""
    grouped: bool = True

    @classmethod
    def of(cls, anatomy: Anatomy, grouped: bool = True) -> "Graph":
        """The graph of a loaded model."""
        return cls(anatomy.n_layers, anatomy.n_heads, anatomy.n_kv_heads, anatomy.parallel, grouped)

    @property
    def n_keys(self) -> int:
        """Key and value destinations a block."""
        return self.n_kv_heads if self.grouped else self.n_heads

    @cached_property
    def sources(self) -> tuple[str, ...]:
        """Their names, as sites; a head's is `head.L.h`."""
        blocks = ([*(f"head.{layer}.{head}" for head in range(self.n_heads)), f"mlp.{layer}"]
                  for layer in range(self.n_layers))
        return ("embed", *(name for block in blocks for name in block))

    @cached_property
    def destinations(self) -> tuple[Destination, ...]:
        """All of them, in the order of the pass."""
        return tuple(self._destinations())

    def _destinations(self) -> Iterator[Destination]:
        for layer in range(self.n_layers):
            before = self.before(layer)
            yield from (Destination("q", layer, unit, before) for unit in range(self.n_heads))
            yield from (Destination("k", layer, unit, before) for unit in range(self.n_keys))
            yield from (Destination("v", layer, unit, before) for unit in range(self.n_keys))
            yield Destination("mlp", layer, 0, before if self.parallel else before + self.n_heads)
        yield Destination("logits", self.n_layers, 0, self.before(self.n_layers))

    def before(self, layer: int) -> int:
        """How many sources a block has before it."""
        return 1 + layer * (self.n_heads + 1)

    def head(self, layer: int, head: int) -> int:
        """The number of a head among the sources."""
        return self.before(layer) + head

    def mlp(self, layer: int) -> int:
        """The number of an MLP among the sources."""
        return self.before(layer) + self.n_heads

    def at(self, layer: int) -> slice:
        """Where a block's destinations are; the logits' at the number of blocks."""
        each = self.n_heads + 2 * self.n_keys + 1
        return slice(layer * each, min((layer + 1) * each, len(self.destinations)))

    @cached_property
    def edges(self) -> Tensor:
        """Which source is before which destination, [N, S] of bool."""
        reach_N = torch.tensor([d.reach for d in self.destinations])
        return torch.arange(len(self.sources))[None] < reach_N[:, None]

    @cached_property
    def n_edges(self) -> int:
        """How many edges there are."""
        return int(self.edges.sum())

    def name(self, destination: int, source: int) -> str:
        """An edge in words: `head.3.1->q.5.2`."""
        return f"{self.sources[source]}->{self.destinations[destination]}"

    def find(self, name: str) -> tuple[int, int]:
        """The numbers of destination and source of an edge named as `name` does. InputError if there is none."""
        source, _, destination = name.partition("->")
        places = {str(d): i for i, d in enumerate(self.destinations)}
        numbers = {s: i for i, s in enumerate(self.sources)}
        if source not in numbers or destination not in places:
            raise InputError(f"{name!r} is no edge: write it as {self.sources[0]}->{self.destinations[-1]}, from embed,"
                             " head.L.h or mlp.L to q.L.h, k.L.h, v.L.h, mlp.L or logits, within the model")
        if numbers[source] >= self.destinations[places[destination]].reach:
            raise InputError(f"{name}: {source} is not before {destination} in the model")
        return places[destination], numbers[source]

    @cached_property
    def feeds(self) -> tuple[tuple[int, ...], ...]:
        """By source, the destinations that it is computed from; none for the embeddings."""
        places = {(d.point, d.layer, d.unit): i for i, d in enumerate(self.destinations)}
        found: list[tuple[int, ...]] = [()]
        for layer in range(self.n_layers):
            for head in range(self.n_heads):
                key = head * self.n_keys // self.n_heads
                found.append((places["q", layer, head], places["k", layer, key], places["v", layer, key]))
            found.append((places["mlp", layer, 0],))
        return tuple(found)

    def connected(self, kept_NS: Tensor) -> Tensor:
        """The edges of subgraphs that lie on a way from the embeddings to the logits, [..., N, S]: what else they have
        cannot move the answer. A head is on such a way through any one of its query, key and value."""
        kept = kept_NS & self.edges
        each = [self._on_a_way(one) for one in kept.reshape(-1, *kept.shape[-2:])]
        fed = torch.tensor([fed for fed, _ in each], dtype=torch.bool).view(*kept.shape[:-2], kept.shape[-1])
        used = torch.tensor([used for _, used in each], dtype=torch.bool).view(kept.shape[:-1])
        return kept & fed[..., None, :] & used[..., None]

    def _on_a_way(self, kept_NS: Tensor) -> tuple[list[bool], list[bool]]:
        """Which sources the embeddings reach, and which destinations reach the logits; in sets of bits, which is
        several times faster than tensors this small."""
        from_sources, to_destinations = _bits(kept_NS), _bits(kept_NS.T)
        fed, used = 1, 1 << (len(self.destinations) - 1)
        for source, places in enumerate(self.feeds[1:], 1):
            if any(from_sources[place] & fed for place in places):
                fed |= 1 << source
        for source in reversed(range(1, len(self.sources))):
            if to_destinations[source] & used:
                for place in self.feeds[source]:
                    used |= 1 << place
        return ([bool(fed >> i & 1) for i in range(len(self.sources))],
                [bool(used >> i & 1) for i in range(len(self.destinations))])


def _bits(flags_RC: Tensor) -> list[int]:
    """Each row's flags as the bits of a number, the first one the lowest."""
    return [int.from_bytes(row.tobytes(), "little") for row in np.packbits(flags_RC.numpy(), 1, bitorder="little")]
