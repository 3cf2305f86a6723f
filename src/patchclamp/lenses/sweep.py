"""Average Jacobians of the last residual stream by every layer's, at one and the same token.

    J_l = E[∂h_final(t) / ∂h_l(t)],   [D, D] a layer, rows are outputs

One backward sweep through the blocks gives a row of J for all layers at once; D of them run as one batch of
vector-Jacobian products. A stream at t reaches the last stream at t through position t alone, since no later position
is read and no earlier one changes; so only that token is computed, on the keys and values of those before it.

Shape suffixes: L layers (embeddings first, without the last), D width, T tokens.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from patchclamp.corpus.pack import Ids
from patchclamp.errors import RunError
from patchclamp.evidence.method import Progress
from patchclamp.forward import Model, Readout
from patchclamp.forward.batch import Batch, KeyValues, Layout, inputs_of
from patchclamp.forward.execute import accepts_positions
from patchclamp.forward.prepare import Job, ready_read
from patchclamp.lenses.reading import layer_sites


def jacobians(model: Model, ids: Ids) -> Tensor:
    """J of every layer but the last, at the last of the tokens `ids`: [L, D, D] in the model's float type.

    The last layer's own is the identity. Raises RunError if a derivative is no number.
    """
    encoded = model.encode(ids)
    reads = [ready_read(model.anatomy, model.tokenizer, Readout.value(site), encoded, model.name)
             for site in layer_sites(model, "all")]
    layout = Layout([Job(encoded, [], reads)])
    prefix = _prefix(model, layout) if model.anatomy.family.rows_may_join and len(ids) > 1 else None
    layout.start = len(ids) - 1 if prefix is not None else 0
    with torch.enable_grad():
        batch = Batch(model.anatomy, layout, prefix, stop=model.n_layers - 1, keep_graph=True)
        batch.run(inputs_of(model.anatomy, layout, accepts_positions(model.anatomy)))
        *early, final = [batch.raw[read.read.site][1] for read in reads if read.read.site is not None]
        width = model.d_model
        unit_DD = torch.eye(width, dtype=final.dtype, device=final.device)
        rows = torch.autograd.grad(final.reshape(-1, width)[-1], early, unit_DD, is_grads_batched=True)
    out_LDD = torch.stack([row.reshape(width, -1, width)[:, -1].to(model.device) for row in rows])
    if not bool(out_LDD.isfinite().all()):
        raise RunError(f"the derivatives of {model.name} overflow in {model.dtype}: load the model in float32")
    return out_LDD


@torch.no_grad()
def _prefix(model: Model, layout: Layout) -> KeyValues:
    """Keys and values of all tokens but the last."""
    from transformers import DynamicCache

    whole = inputs_of(model.anatomy, layout, accepts_positions(model.anatomy))
    cache: Any = DynamicCache()
    model.anatomy.base(**{name: value[:, :-1] for name, value in whole.items()}, past_key_values=cache, use_cache=True)
    return [(layer.keys, layer.values) for layer in cache.layers]


def average_jacobians(model: Model, samples: Sequence[Ids], progress: Progress) -> Tensor:
    """Mean over samples, each a sequence read at its last token, [L, D, D] in float32; summed in float64."""
    total = torch.zeros(model.n_layers, model.d_model, model.d_model, dtype=torch.float64)
    for ids in progress.track(samples, "Jacobians", len(samples)):
        total += jacobians(model, ids).cpu()
    return (total / len(samples)).float()
