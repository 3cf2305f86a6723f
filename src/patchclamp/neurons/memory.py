"""A neuron, or a feature, as a key and a value: what its input weights match, what its output weights write, whether
that is seen.

Feed-forward layers as key-value memories: Geva et al. 2021, arXiv 2012.14913; values promote words: Geva et al. 2022,
arXiv 2203.14680. What the weights say is compared with what ablating the neuron takes away, since a value that is
written may be cancelled or overruled later. Shape suffixes: N places, V vocabulary, D model width, F neurons.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from patchclamp.evidence.bootstrap import bootstrap_mean, control_range
from patchclamp.evidence.method import Part, Progress
from patchclamp.evidence.verdict import NO_INTERVAL, Interval
from patchclamp.forward import Edit, Model, Plan, Readout, Site
from patchclamp.forward.decompose import neuron_direction, neuron_path
from patchclamp.forward.frozen import FrozenUnembedding
from patchclamp.model.anatomy import part

TOKENS = 10
TOKENS_AT_ONCE = 4096
Place = tuple[tuple[int, ...], int]
"""Token ids, and the position the neuron is active at, the last of them."""


class Word(Part):
    """A token and how far it is concerned."""

    token: str
    value: float


class Memory(Part):
    """What a neuron writes and reads."""

    promotes: list[Word]
    """Tokens whose logits its output weights raise most where it is most active, per unit of activation above its
    mean (below its mean there: the other way round)."""
    suppresses: list[Word]
    """Those they lower most."""
    raised: list[Word]
    """Tokens whose log-probability the neuron raises most at the places where it is most active: with it less with its
    mean in its place, mean over places, nats."""
    lowered: list[Word]
    agreement: Interval
    """Correlation over the vocabulary of what the weights write with what the neuron is seen to do, mean over
    places."""
    random_agreement: Interval
    """The same of what random neurons of the layer are seen to do at those places: mean and 95 % range."""
    matches: list[Word]
    """Tokens whose embedding alone, sent through the MLP's norm, makes the neuron most active; empty where the family
    has no such path, and for features. What the attention has added meanwhile is not in it, so it says most in early
    layers."""


def memory(
    model: Model, site: Site, places: Sequence[Place], controls: Sequence[Site], progress: Progress
) -> Memory:
    """Read a unit's weights, and set them against what its ablation does at these places. `controls`: random ones of
    the same site."""
    reads: list[str | Readout] = [str(site.whole.at("last")), f"resid.{model.n_layers - 1}@last", Readout.logits()]
    ablated = [one.at("last") for one in (site, *controls)]
    edits: list[list[Edit]] = [[], *([Edit.mean(one)] for one in ablated)]
    plan = Plan.of((ids, edit, [Readout.logits()] if edit else reads) for ids, _ in places for edit in edits)
    values = model.execute(plan, track=progress.track)
    usual = float(model.mean_values([site])[0])
    written, seen, random = [], [], []
    for i in range(len(places)):
        (acts_F, resid_D, clean_V), *rest = values[i * len(edits) : (i + 1) * len(edits)]
        direction_D = _direction(model, site, acts_F)
        written.append(FrozenUnembedding(model.anatomy, resid_D).written(direction_D[None])[0].float().cpu())
        changes = [(clean_V.float().log_softmax(0) - row[0].float().log_softmax(0)).cpu() for row in rest]
        sign = float(np.sign(float(acts_F[site.unit or 0]) - usual))
        seen.append(changes[0])
        random.append([_correlation(sign * written[-1], change) for change in changes[1:]])
        written[-1] = sign * written[-1]
    own = [_correlation(w, s) for w, s in zip(written, seen, strict=True)]
    value_V, seen_V = torch.stack(written).mean(0), torch.stack(seen).mean(0)
    return Memory(
        promotes=_words(model, value_V, True), suppresses=_words(model, value_V, False),
        raised=_words(model, seen_V, True), lowered=_words(model, seen_V, False),
        agreement=bootstrap_mean(np.array(own), 0),
        random_agreement=control_range(np.mean(random, axis=0)) if len(controls) > 1 else NO_INTERVAL,
        matches=_matches(model, site.layer or 0, site.unit or 0) if site.point == "neuron" else [],
    )


def _direction(model: Model, site: Site, acts_F: Tensor) -> Tensor:
    """What one unit of activation adds to the residual stream, [D]."""
    layer, unit = site.layer or 0, site.unit or 0
    if site.point == "feature":
        return model.autoencoder(site).directions[unit]
    path = neuron_path(model.anatomy, {f"neuron.{layer}": acts_F}, layer)
    return neuron_direction(model.anatomy, layer, unit, path)


def _words(model: Model, values_V: Tensor, highest: bool) -> list[Word]:
    named = values_V[: len(model.tokenizer)]
    best = named.topk(min(TOKENS, len(named)), largest=highest)
    return [Word(token=model.say(token), value=value)
            for token, value in zip(best.indices.tolist(), best.values.tolist(), strict=True)]


def _correlation(first_V: Tensor, second_V: Tensor) -> float:
    if not float(second_V.std()):
        return 0.0
    return float(torch.corrcoef(torch.stack([first_V, second_V]))[0, 1])


@torch.no_grad()
def _matches(model: Model, layer: int, unit: int) -> list[Word]:
    """Every token's embedding through the norm before the MLP and the MLP up to its neurons."""
    anatomy = model.anatomy
    norm = anatomy.mlp_norm(layer)
    if norm is None:
        return []
    core, down = part(anatomy.blocks[layer], anatomy.family.mlp_core), part(anatomy.blocks[layer],
                                                                           anatomy.family.down_proj)
    kept: list[Tensor] = []
    hook = down.register_forward_pre_hook(
        lambda module, args: kept.append(args[0].reshape(-1, args[0].shape[-1])[:, unit].float().cpu()))
    weight_VD: Tensor = model.hf.get_input_embeddings().weight.data  # type: ignore[assignment]
    try:
        for first in range(0, len(weight_VD), TOKENS_AT_ONCE):
            core(norm(weight_VD[None, first : first + TOKENS_AT_ONCE]))
    except (RuntimeError, TypeError):  # an embedding of another width, an MLP that takes more than the stream
        return []
    finally:
        hook.remove()
    return _words(model, torch.cat(kept), True)
