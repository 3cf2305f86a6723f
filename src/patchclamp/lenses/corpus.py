"""A corpus as sequences, its residual streams layer by layer, and how far from the model's output each layer still is.

Shape suffixes: N places (tokens of sequences), S layers (n blocks and the embeddings before them), D model width,
V vocabulary.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from patchclamp.corpus.pack import Ids
from patchclamp.errors import SpecError
from patchclamp.evidence.method import Progress
from patchclamp.forward import Model, Plan, metrics
from patchclamp.forward.streams import ROWS_AT_ONCE, layer_sites
from patchclamp.lenses.transport import Transport

SEQUENCES_AT_ONCE = 4


def refuse_other_run(theirs: dict[str, Any], ours: dict[str, Any], folder: Path) -> None:
    """SpecError, naming what differs, unless a folder's training had the same settings, corpus and model."""
    differing = [f"{key} {theirs.get(key)!r}, not {ours.get(key)!r}" for key in ours if theirs.get(key) != ours[key]]
    if differing:
        raise SpecError(f"{folder} holds a lens trained with other settings: {'; '.join(differing)}. Ask for the same "
                        "ones to go on with it, or save to another folder")


def sample_positions(length: int, share: float, generator: torch.Generator) -> list[int]:
    """A random `share` of a sequence's positions, in order; never the first, whose stream is like no other's."""
    count = min(length - 1, max(1, round(share * length)))
    return sorted((torch.randperm(length - 1, generator=generator)[:count] + 1).tolist())


def read_places(model: Model, sequences: Sequence[Ids], positions: Sequence[Sequence[int]]) -> Tensor:
    """The residual streams at each sequence's own positions, one sequence after another: [N, S, D]."""
    reads = layer_sites(model, "all")
    rows = model.execute(Plan.of([(ids, (), reads) for ids in sequences]))
    return torch.cat([
        torch.stack([value_TD[list(places)].to(model.device) for value_TD in row], dim=1)
        for row, places in zip(rows, positions, strict=True)
    ])


def read_many(
    model: Model, sequences: Sequence[Ids], positions: Sequence[Sequence[int]], progress: Progress
) -> Tensor:
    """The same, a few sequences at a time: a run holds the streams at all positions until it is over."""
    starts = range(0, len(sequences), SEQUENCES_AT_ONCE)
    return torch.cat([
        read_places(model, sequences[start : start + SEQUENCES_AT_ONCE], positions[start : start + SEQUENCES_AT_ONCE])
        for start in progress.track(starts, "reading held-out text", len(starts))
    ])


def portions(n: int) -> list[slice]:
    """Slices of `n` rows, as many as are unembedded at once."""
    return [slice(start, start + ROWS_AT_ONCE) for start in range(0, n, ROWS_AT_ONCE)]


@torch.no_grad()
def kl_to_output(
    model: Model, lenses: Mapping[str, Transport | None], places_NSD: Tensor, progress: Progress
) -> dict[str, Tensor]:
    """KL(model's output ‖ lens) of every lens at every layer and place, [S, N] in nats; None is the logit lens."""
    slices = portions(len(places_NSD))
    out: dict[str, list[Tensor]] = {name: [] for name in lenses}
    for rows in progress.track(slices, "held-out text", len(slices)):
        some_NSD = places_NSD[rows]
        final_NV = model.anatomy.unembed(some_NSD[:, -1])
        for name, lens in lenses.items():
            moved_NSD = some_NSD if lens is None else lens(some_NSD)
            logits_of = (model.anatomy.unembed(moved_NSD[:, layer]) for layer in range(moved_NSD.shape[1]))
            out[name].append(torch.stack([metrics.kl_divergence(final_NV, logits_NV) for logits_NV in logits_of]))
    return {name: torch.cat(parts, dim=1).cpu() for name, parts in out.items()}
