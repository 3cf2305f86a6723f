"""Batches in an order that depends on a seed alone: a training that goes on at step n sees what it would have seen.

A pass over the store takes its shards in random order, some at once as a buffer; the buffer's rows are mixed and cut
into batches, and what is left over is put before the next buffer's. Rows that fill no batch at the end of a pass are
left out of that pass.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from patchclamp.errors import SpecError

Rows = tuple[Tensor, ...]
"""Rows of one site, or of what a transcoder reads and of what it writes: [N, D] each."""
Read = Callable[[int], Rows]
"""Gives the rows of a shard."""


@dataclass(frozen=True)
class Batches:
    """The order of a training."""

    counts: dict[int, int]
    """Rows of each shard that is trained on."""
    batch: int
    buffer: int
    """Shards mixed at once."""
    seed: int

    def __post_init__(self) -> None:
        if self.a_pass < 1:
            raise SpecError(f"the store has {sum(self.counts.values())} rows to train on, fewer than one batch of "
                            f"{self.batch}; harvest more text, or lower the batch")

    @property
    def a_pass(self) -> int:
        """Batches in one pass."""
        return sum(self.counts.values()) // self.batch

    def buffers(self, number: int) -> list[list[int]]:
        """The shards of each buffer of a pass."""
        shards = np.random.default_rng([self.seed, number]).permutation(sorted(self.counts)).tolist()
        return [shards[first : first + self.buffer] for first in range(0, len(shards), self.buffer)]

    def mixing(self) -> int:
        """Rows of the smallest buffer of the first pass but the last: what a row is mixed with."""
        sizes = [sum(self.counts[shard] for shard in buffer) for buffer in self.buffers(0)]
        return min(sizes[:-1] or sizes)

    def run(self, read: Read, first: int, last: int) -> Iterator[Rows]:
        """The batches first … last - 1. Shards that none of them needs are not read."""
        number, inside = divmod(first, self.a_pass)
        left = last - first
        while left > 0:
            for rows in self._pass(read, number, inside * self.batch):
                yield rows
                left -= 1
                if not left:
                    return
            number, inside = number + 1, 0

    def _pass(self, read: Read, number: int, start: int) -> Iterator[Rows]:
        position, held = 0, Rows()
        for index, shards in enumerate(self.buffers(number)):
            size = sum(self.counts[shard] for shard in shards)
            if position + size > start:
                mixed = self._mixed(read, shards, size, [self.seed, number, index])
                fresh = tuple(rows[max(0, start - position) :] for rows in mixed)
                if held and len(held[0]):
                    fresh = tuple(torch.cat(parts) for parts in zip(held, fresh, strict=True))
                whole = len(fresh[0]) // self.batch * self.batch
                for at in range(0, whole, self.batch):
                    yield tuple(rows[at : at + self.batch] for rows in fresh)
                held = tuple(rows[whole:].clone() for rows in fresh)
            position += size

    def _mixed(self, read: Read, shards: Sequence[int], size: int, seed: list[int]) -> Rows:
        """The rows of some shards, each at its place of a random order: one copy of them in memory, and one shard."""
        order_N = torch.from_numpy(np.random.default_rng(seed).permutation(size))
        mixed, first = Rows(), 0
        for shard in shards:
            own = read(shard)
            mixed = mixed or tuple(torch.empty(size, rows.shape[1], dtype=rows.dtype) for rows in own)
            for room, rows in zip(mixed, own, strict=True):
                room[order_N[first : first + len(rows)]] = rows
            first += self.counts[shard]
        return mixed
