"""Jacobians of the last residual stream by every layer's: how it changes with the stream at one token.

    J_l = ∂h_final(end) / ∂h_l(t),   [D, D] a layer, rows are outputs

One backward sweep through the blocks gives a row of J for all layers at once; D of them run as batches of
vector-Jacobian products. Streams before t do not depend on the stream at t, nor does the last stream reach it through
them; so only the tokens from t on are computed, on the keys and values of those before.

Shape suffixes: L layers (embeddings first, without the last), D width, T tokens from t on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from patchclamp.errors import InputError, RunError
from patchclamp.forward.batch import Batch, KeyValues, Layout, inputs_of
from patchclamp.forward.execute import accepts_positions, may_share, prefix_of
from patchclamp.forward.prepare import Job, ready_read
from patchclamp.forward.prove import MISFITS
from patchclamp.forward.readout import Readout
from patchclamp.forward.streams import layer_sites
from patchclamp.forward.suffix import on_prefix, standing

if TYPE_CHECKING:
    from patchclamp.forward.model import Model

SAME = {torch.float32: 1e-4, torch.float64: 1e-5}
"""By the model's dtype, relative to the largest number: how near two runs' streams at the end have to be. In half
precision they are not near enough to tell one attention from another, so the general way is taken there."""
ROW_TOKENS = 4096
"""Output coordinates times tokens in one batch of vector-Jacobian products: about 200 MB in SmolLM2."""


def jacobians(
    model: Model, ids: tuple[int, ...], position: int = -1, layers: Sequence[int] | None = None
) -> Tensor:
    """J of every layer but the last, of the stream at the end of the tokens `ids` by that at `position`: [L, D, D] in
    the model's float type. Of some `layers` alone, -1 for the embeddings, the sweep ends at the first of them.

    The last layer's own is the identity or zero. InputError for a position or a layer out of range, RunError if a
    derivative is no number.
    """
    n = len(ids)
    if not -n <= position < n:
        raise InputError(f"position {position}: the prompt has {n} tokens (0 to {n - 1})")
    wanted = range(-1, model.n_layers - 1) if layers is None else layers
    if bad := [layer for layer in wanted if not -1 <= layer < model.n_layers - 1]:
        raise InputError(f"layer {bad[0]}: {model.name} has layers -1 to {model.n_layers - 2} before the last block")
    with model.in_turn():
        return _jacobians(model, ids, position % n, wanted)


def _jacobians(model: Model, ids: tuple[int, ...], token: int, layers: Sequence[int]) -> Tensor:
    encoded = model.encode(ids)
    reads = [ready_read(model.anatomy, model.tokenizer, Readout.value(site), encoded, model.name)
             for site in layer_sites(model, "all")]
    job = Job(encoded, [], reads)
    layout = Layout([job], start=token if may_share(model.anatomy, [job]) else 0)
    prefix = prefix_of(model.anatomy, layout)
    with torch.enable_grad():
        out_LDD = _sweep(model, layout, prefix, token - layout.start, layers)
    if not bool(out_LDD.isfinite().all()):
        raise RunError(f"the derivatives of {model.name} overflow in {model.dtype}: load the model in float32")
    return out_LDD


def _sweep(
    model: Model, layout: Layout, prefix: KeyValues | None, column: int, layers: Sequence[int]
) -> Tensor:
    """The Jacobians by some layers' streams at a computed column. Keys before it stand still, if that gives the same
    stream at the end."""
    plain = _run(model, layout, prefix)
    if prefix is not None and model.anatomy.family.common_attention and model.dtype in SAME:
        try:
            apart = _run(model, layout, prefix, stands=True)
        except MISFITS:
            apart = plain
        gap = (apart[-1] - plain[-1]).abs().max()
        if gap <= SAME[model.dtype] * plain[-1].abs().max():
            plain = apart
    return _rows(plain[-1].reshape(-1, model.d_model)[-1], [plain[layer + 1] for layer in layers], column, model)


def _run(model: Model, layout: Layout, prefix: KeyValues | None, stands: bool = False) -> list[Tensor]:
    """Streams at every layer with their graph."""
    anatomy = model.anatomy
    batch = Batch(anatomy, layout, None if stands else prefix, stop=model.n_layers - 1, keep_graph=True)
    inputs = inputs_of(anatomy, layout, accepts_positions(anatomy))
    if stands and prefix is not None:
        with on_prefix(anatomy, prefix):
            batch.run({**inputs, "past_key_values": standing(prefix)})
    else:
        batch.run(inputs)
    return [batch.raw[read.read.site][1] for read in layout.jobs[0].reads if read.read.site is not None]


def _rows(final_D: Tensor, early: list[Tensor], column: int, model: Model) -> Tensor:
    """The gradients of each of the final stream's numbers at one column of the earlier streams."""
    width = model.d_model
    unit_DD = torch.eye(width, dtype=final_D.dtype, device=final_D.device)
    n_tokens = early[0].numel() // width
    at_once = max(1, ROW_TOKENS // n_tokens)
    out_LDD = final_D.new_empty(len(early), width, width, device=model.device)
    for first in range(0, width, at_once):
        some_RD = unit_DD[first : first + at_once]
        grads = torch.autograd.grad(final_D, early, some_RD, retain_graph=True, is_grads_batched=True)
        for layer, grad in enumerate(grads):
            out_LDD[layer, first : first + at_once] = grad.reshape(len(some_RD), n_tokens, width)[:, column]
    return out_LDD
