"""Editing a fact through the inverse of its relation's map, and what that is compared with.

    inverse   h_l + W⁺_l (z_target - z_source)      at the subject's last token
    swap      h_l of the target's subject in its place
    random    h_l + a random change as long as the inverse's

An edit works where the model's first choice becomes the target's object. Hernandez et al. 2023, arXiv 2308.09124,
section 5. Shape suffixes: P pairs, N samples, L layers (embeddings first, without the last block), D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from patchclamp.evidence.controls import rescale
from patchclamp.evidence.method import Progress
from patchclamp.forward import Edit, Model, Plan, Readout
from patchclamp.forward.streams import layer_sites
from patchclamp.relations.linear import LinearRelation
from patchclamp.relations.samples import Known

RANKS = (4, 8, 16, 32, 64, 128, 256)
"""Ranks of W that are tried."""
MIDDLE = 32
"""The rank with which layers are compared."""
LAYERS_KEPT = 3
"""Layers, the best at the middle rank, at which all ranks are tried."""


class Turn(NamedTuple):
    """A layer (-1: the embeddings) and a rank."""

    layer: int
    rank: int


class Pairs(NamedTuple):
    """Facts to edit, and whose object each is to get: two samples of one relation, [P] each, as indices."""

    known: Known
    source: list[int]
    target: list[int]

    @property
    def dz(self) -> Tensor:
        """z_target - z_source, [P, D]."""
        return self.known.z[self.target] - self.known.z[self.source]


def draw_pairs(known: Known, seed: int) -> Pairs:
    """Each sample with another one drawn at random whose object has another first token; those without one are left
    out."""
    generator = np.random.default_rng(seed)
    source, target = [], []
    for index, one in enumerate(known.facts):
        others = [i for i, other in enumerate(known.facts) if other.answer != one.answer]
        if others:
            source.append(index)
            target.append(others[int(generator.integers(len(others)))])
    return Pairs(known, source, target)


def changes(relation: LinearRelation, pairs: Pairs, turn: Turn) -> Tensor:
    """What the inverse adds for each pair, [P, D]."""
    return relation.change(pairs.dz, turn.layer, turn.rank)


def random_changes(h_ND: Tensor, like_PD: Tensor, seed: int) -> Tensor:
    """As many random changes as `like_PD` has, each as long, drawn with the covariance of subjects' streams, [P, D]."""
    generator = torch.Generator().manual_seed(seed)
    mixed_PD = torch.randn(len(like_PD), len(h_ND), generator=generator) @ (h_ND - h_ND.mean(0))
    return rescale(mixed_PD, like_PD.norm(dim=-1))


def stream_edit(model: Model, how: str, layer: int, value: Tensor, position: int) -> Edit:
    """The edit that adds a value to the stream at a layer (-1: the embeddings) and token, or sets it (`add`, `set`)."""
    site = layer_sites(model, position)[layer + 1]
    return Edit.add(site, value, 1.0, "raw") if how == "add" else Edit.set(site, value)


def succeed(
    model: Model, pairs: Pairs, settings: Sequence[tuple[str, int, Tensor]], progress: Progress
) -> np.ndarray:
    """Whether each pair's target answer becomes the first choice under each setting, [settings, P]. A setting is how
    its tensor [P, D] is used at a layer's stream of the subject: `add` or `set`."""
    rows = []
    for pair, (source, target) in enumerate(zip(pairs.source, pairs.target, strict=True)):
        asked, answer = pairs.known.facts[source], pairs.known.facts[target].answer
        for how, layer, value_PD in settings:
            edit = stream_edit(model, how, layer, value_PD[pair], asked.position)
            rows.append((asked.ids, [edit], [Readout.rank(answer)]))
    ranks = model.execute(Plan.of(rows), track=progress.track)
    return np.array([int(rank) == 0 for (rank,) in ranks]).reshape(-1, len(settings)).T


def choose_turn(
    model: Model, relation: LinearRelation, pairs: Pairs, progress: Progress, layer: int | None = None,
    rank: int | None = None,
) -> Turn:
    """The block and rank whose edits work most often on validation pairs, of equals the deepest block and the lowest
    rank: all blocks are tried at the middle rank, then all ranks at the best blocks; only those not given.

    Not the embeddings: another one in their place is another subject, not an edited fact. Without a pair the block in
    the middle and the middle rank."""
    middle = rank or min(MIDDLE, model.d_model)
    if not pairs.source:
        return Turn(model.n_layers // 2 - 1 if layer is None else layer, middle)
    tried: dict[Turn, float] = {}

    def measure(turns: Sequence[Turn]) -> None:
        settings = [("add", turn.layer, changes(relation, pairs, turn)) for turn in turns]
        tried.update(zip(turns, succeed(model, pairs, settings, progress).mean(1).tolist(), strict=True))

    layers = range(model.n_layers - 1) if layer is None else [layer]
    measure([Turn(one, middle) for one in layers])
    if rank is None:
        best = sorted(layers, key=lambda one: (-tried[Turn(one, middle)], -one))[:LAYERS_KEPT]
        measure([Turn(one, some) for one in best for some in RANKS if some != middle and some <= model.d_model])
    return max(tried, key=lambda turn: (tried[turn], turn.layer, -turn.rank))


def choose_block(model: Model, pairs: Pairs, progress: Progress) -> int:
    """The block at which another subject's stream most often brings its object, on validation pairs; of equals the
    deepest."""
    layers = range(model.n_layers - 1)
    settings = [("set", layer, pairs.known.h[pairs.target, layer + 1]) for layer in layers]
    shares = succeed(model, pairs, settings, progress).mean(1) if pairs.source else np.zeros(len(layers))
    return max(layers, key=lambda layer: (shares[layer], layer))
