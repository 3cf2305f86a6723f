"""Gradients of readouts with respect to values inside the model, one backward pass for many prompts."""

from collections.abc import Iterator, Sequence

import torch

from patchclamp.errors import InputError
from patchclamp.forward.batch import Batch, Layout, inputs_of
from patchclamp.forward.execute import accepts_positions, rotary_sides
from patchclamp.forward.prepare import Job
from patchclamp.forward.read import Say, read_all
from patchclamp.forward.site import Site
from patchclamp.model.anatomy import Anatomy

GRAPH_TOKENS = 1024
"""Tokens whose activations are kept for one backward pass: about 1 MB a token in SmolLM2."""


def differentiate(anatomy: Anatomy, jobs: list[Job], sites: Sequence[Site], say: Say) -> None:
    """Each job's results become the gradients of its first readout at the sites, which its other readouts name.

    Rows of a batch do not touch each other, so the gradient of their readouts' sum is each one's own."""
    for layout in _batches(anatomy, jobs):
        batch = Batch(anatomy, layout, keep_graph=True)
        hidden = batch.run(inputs_of(anatomy, layout, accepts_positions(anatomy)))
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


def _batches(anatomy: Anatomy, jobs: list[Job]) -> Iterator[Layout]:
    """Whole rows of like length together, as many as the graph of a backward pass should hold."""
    for side in rotary_sides(anatomy, jobs):
        batch: list[Job] = []
        for job in sorted(side, key=lambda j: len(j.encoded)):
            longest = len(job.encoded)
            if batch and ((len(batch) + 1) * longest > GRAPH_TOKENS or longest > len(batch[0].encoded) * 1.25 + 8):
                yield Layout(batch)
                batch = []
            batch.append(job)
        if batch:
            yield Layout(batch)
