"""Editing by knowledge neurons: those that wrote the old answer write the new one's embedding instead.

    attribution_i = a_i · mean over α of ∂P(answer) / ∂a_i at α · a        one block at a time, at the prompt's end
    v_i  ->  v_i + λ · s_i (e_new - e_old)                                 of the neurons with the largest attributions

Dai et al. 2022, "Knowledge Neurons in Pretrained Transformers", arXiv 2104.08696, sections 3 and 4. Here e is an
answer's unembedding at length one, λ is in lengths of a mean value vector and chosen on validation pairs, and s_i is
the sign of the activation, since in gated MLPs a neuron may be active on either side. Where a norm follows the MLP,
scaling all neurons changes nothing until its end, so the gradient at a itself is taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from patchclamp.forward import Model, Readout, Site
from patchclamp.forward.gradient import path_gradients
from patchclamp.forward.rewrite import MovedValues
from patchclamp.forward.site import Positions
from patchclamp.model.anatomy import part, weight_in_out
from patchclamp.relations.prompts import Fact

STEPS = 8
SHARE, MOST = 0.2, 20
"""Neurons kept: those with at least this share of the largest attribution, and at most so many."""
STRENGTHS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)


class Found(NamedTuple):
    """The knowledge neurons of a fact."""

    neurons: list[tuple[int, int]]
    """Block and neuron, the largest attribution first."""
    signs: list[float]
    """Of their activations at the prompt's end."""
    attributions: list[float]


def find(model: Model, asked: Sequence[Fact]) -> Found:
    """The neurons that wrote a fact's answer: attributions are means over the ways it is asked."""
    prompts = [one.ids for one in asked]
    reads = [Readout.probability(one.answer) for one in asked]
    sites = [Site("neuron", layer, None, Positions.parse("last")) for layer in range(model.n_layers)]
    values = model.capture(prompts, sites)
    if model.anatomy.family.post_norm:
        gradients = model.gradients(prompts, reads, sites)
        slopes = [gradients.rows(site) for site in sites]
    else:
        slopes = [path_gradients(model, prompts, reads, site, [torch.zeros_like(v) for v in values.rows(site)],
                                 values.rows(site), STEPS) for site in sites]
    attributed = [sum(value.float() * slope.float() for value, slope in zip(values.rows(site), some, strict=True))
                  / len(asked) for site, some in zip(sites, slopes, strict=True)]
    flat = torch.cat([torch.as_tensor(one).cpu() for one in attributed])
    starts = torch.tensor([0, *(model.n_neurons(layer) for layer in range(model.n_layers))]).cumsum(0)
    order = [int(i) for i in flat.argsort(descending=True)[:MOST] if flat[i] >= SHARE * flat.max()]
    neurons = []
    for index in order:
        layer = int((starts <= index).sum()) - 1
        neurons.append((layer, index - int(starts[layer])))
    signs = [1.0 if float(values.rows(sites[layer])[0][unit]) >= 0 else -1.0 for layer, unit in neurons]
    return Found(neurons, signs, [float(flat[i]) for i in order])


def moved(model: Model, found: Found, old: int, new: int, strength: float) -> MovedValues:
    """The change that makes these neurons write the token `new` instead of `old`."""
    vectors = [_value(model, layer)[unit].float().to(model.device) for layer, unit in found.neurons]
    length = torch.stack(vectors).norm(dim=-1).mean()
    rows_2D = model.anatomy.unembedding.weight[[new, old]].detach().float()
    new_D, old_D = rows_2D / rows_2D.norm(dim=-1, keepdim=True)
    shares: dict[int, dict[int, float]] = {}
    for (layer, unit), sign in zip(found.neurons, found.signs, strict=True):
        shares.setdefault(layer, {})[unit] = sign
    return MovedValues(shares, strength * length * (new_D - old_D))


def at_random(model: Model, change: MovedValues, seed: int) -> MovedValues:
    """The same change of as many random neurons of the same blocks."""
    generator = torch.Generator().manual_seed(seed)
    shares = {}
    for layer, own in change.shares.items():
        drawn = torch.randperm(model.n_neurons(layer), generator=generator)[: len(own)].tolist()
        shares[layer] = dict(zip(drawn, own.values(), strict=True))
    return MovedValues(shares, change.vector)


def _value(model: Model, layer: int) -> Tensor:
    """Value vectors of a block, [F, D]."""
    return weight_in_out(part(model.anatomy.blocks[layer], model.anatomy.family.down_proj)).detach()
