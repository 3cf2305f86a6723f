"""Gradients of readouts with respect to values inside the model, one backward pass for many prompts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from patchclamp.errors import InputError
from patchclamp.forward.batch import Batch, Layout, inputs_of
from patchclamp.forward.edit import Edit
from patchclamp.forward.execute import PREFIX_TOKENS, accepts_positions, may_share, prefix_of, rotary_sides
from patchclamp.forward.prepare import Job
from patchclamp.forward.read import Say, read_all
from patchclamp.forward.readout import Readout
from patchclamp.forward.site import Site
from patchclamp.model.anatomy import Anatomy

if TYPE_CHECKING:
    from patchclamp.forward.model import Model

GRAPH_TOKENS = 1024
"""Tokens whose activations are kept for one backward pass: about 1 MB a token in SmolLM2."""


def differentiate(anatomy: Anatomy, jobs: list[Job], sites: Sequence[Site], say: Say) -> None:
    """Each job's results become the gradients of its first readout at the sites, which its other readouts name.

    Rows of a batch do not touch each other, so the gradient of their readouts' sum is each one's own."""
    for layout in _batches(anatomy, jobs):
        inputs = inputs_of(anatomy, layout, accepts_positions(anatomy))
        batch = Batch(anatomy, layout, prefix_of(anatomy, layout), keep_graph=True)
        hidden = batch.run(inputs)
        measured = [row[0] for row in read_all(anatomy, batch, hidden, say)]
        for job, value in zip(layout.jobs, measured, strict=True):
            job.results = []
            if value.numel() != 1:
                kind = job.reads[0].read.kind
                raise InputError(f"the readout {kind} gives {value.numel()} numbers; a gradient is of one")
        kept = [batch.raw[site] for site in sites]
        total = torch.stack([value.sum() for value in measured]).sum()
        raws = torch.autograd.grad(total, [raw for _, raw in kept], allow_unused=True)
        for index, ((tap, raw), gradient) in enumerate(zip(kept, raws, strict=True)):
            whole = tap.gradient(torch.zeros_like(raw) if gradient is None else gradient, batch.n_tokens)
            for row, job in enumerate(layout.jobs):
                job.results.append(batch.pick(whole, row, job.reads[index + 1]).detach().clone())


def path_gradients(
    model: Model, prompts: Sequence[tuple[int, ...]], reads: Sequence[Readout], site: Site, ends: Sequence[Tensor],
    values: Sequence[Tensor], steps: int,
) -> list[Tensor]:
    """Each prompt's mean gradient of its readout at a site, on the straight way from its value there to an end, by the
    midpoint rule with so many steps (integrated gradients: Sundararajan et al. 2017, arXiv 1703.01365, equation 3)."""
    shares = [(step + 0.5) / steps for step in range(steps)]
    edits = [[Edit.set(site, value + share * (end.to(value) - value))]
             for value, end in zip(values, ends, strict=True) for share in shares]
    prompts_R = [prompt for prompt in prompts for _ in shares]
    found = model.gradients(prompts_R, [read for read in reads for _ in shares], site, edits).rows(site)
    return [torch.stack(found[i : i + steps]).mean(0) for i in range(0, len(found), steps)]


def _batches(anatomy: Anatomy, jobs: list[Job]) -> Iterator[Layout]:
    """Rows together, as many as the graph of a backward pass should hold: those on one prompt behind the tokens that
    none of them reads or edits, others whole with rows of like length."""
    on_prompt: dict[tuple[int, ...], list[Job]] = defaultdict(list)
    for job in jobs:
        on_prompt[job.encoded.ids].append(job)
    whole = []
    for same in on_prompt.values():
        start = min(job.start for job in same)
        if len(same) > 1 and start > 0 and may_share(anatomy, same):
            n = len(same[0].encoded)
            size = max(1, min(GRAPH_TOKENS // (n - start), PREFIX_TOKENS // n))
            yield from (Layout(same[i : i + size], start=start, alike=True) for i in range(0, len(same), size))
        else:
            whole += same
    for side in rotary_sides(anatomy, whole):
        batch: list[Job] = []
        for job in sorted(side, key=lambda j: len(j.encoded)):
            longest = len(job.encoded)
            if batch and ((len(batch) + 1) * longest > GRAPH_TOKENS or longest > len(batch[0].encoded) * 1.25 + 8):
                yield Layout(batch)
                batch = []
            batch.append(job)
        if batch:
            yield Layout(batch)
