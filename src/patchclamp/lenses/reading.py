"""What every lens has in common: residual streams taken at all layers, and logits turned into readings.

Shapes: L layers (n blocks and the embeddings before them), D model width, V vocabulary.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from patchclamp.errors import SpecError
from patchclamp.evidence.method import Part, Progress
from patchclamp.forward import Model, metrics
from patchclamp.forward.plan import Plan
from patchclamp.forward.readout import Readout
from patchclamp.forward.site import Positions
from patchclamp.model.tokens import Encoded

ROWS_AT_ONCE = 128
"""Rows unembedded at once. Fewer, and reading the unembedding's weights costs more than the arithmetic; more only need
memory (SmolLM2's logits 25 MB, Gemma's 134)."""

Decode = Callable[[Tensor], Tensor]
"""From residual streams [...,L,D], layer by layer, to logits [...,L,V]: what makes one lens differ from another."""


class TopToken(Part):
    """A token and its probability."""

    token: str
    prob: float


class Watched(Part):
    """A watched token at one layer."""

    rank: int
    """Among all tokens, from 0."""
    reciprocal_rank: float
    """1 / (rank + 1): 1 for the first choice, 1/2 for the second."""
    prob: float
    logit: float


class Layer(Part):
    """What one layer says."""

    layer: int
    """-1 for the embeddings, then the block after which the stream is read."""
    top: list[TopToken]
    watch: dict[str, Watched]
    entropy: float
    """Of the lens's distribution, in nats."""
    kl: float
    """KL(final layer ‖ this layer) in nats: what is still missing."""


def layer_sites(model: Model, position: str | int) -> list[str]:
    """The residual stream at every layer, from the embeddings (-1) to the last block."""
    return [f"embed@{position}", *(f"resid.{layer}@{position}" for layer in range(model.n_layers))]


def streams(model: Model, prompts: Sequence[Any], position: str | int | Sequence[int] = "last",
            progress: Progress | None = None) -> list[Tensor]:
    """The residual stream of each prompt at one token, at every layer: [L,D] each, L = blocks + 1.

    `position` is one for all prompts, or an index for each. Raises SpecError if it is several tokens.
    """
    each = [position] * len(prompts) if isinstance(position, str | int) else position
    for one in dict.fromkeys(each):
        if not Positions.parse(str(one)).single:
            raise SpecError(f"position {one!r} is several tokens; the lens reads one: last, an index or a quoted word")
    plan = Plan.of([(prompt, (), [Readout.value(site) for site in layer_sites(model, one)])
                    for prompt, one in zip(prompts, each, strict=True)])
    return [torch.stack(row) for row in model.execute(plan, track=progress.track if progress else None)]


@torch.no_grad()
def decoded(model: Model, places: Iterable[Tensor], decode: Decode | None = None) -> Iterator[Tensor]:
    """Logits [L,V] of residual streams [L,D], place by place; as many places at once as memory allows.

    Without `decode` this is the logit lens: the model's own final norm, unembedding, scale and softcap.
    """
    held: list[Tensor] = []
    decode_all = decode or model.anatomy.unembed
    for place_LD in places:
        held.append(place_LD)
        if (len(held) + 1) * len(place_LD) > ROWS_AT_ONCE:
            yield from decode_all(torch.stack(held))
            held = []
    if held:
        yield from decode_all(torch.stack(held))


def read_layers(model: Model, logits_LV: Tensor, watch: dict[str, int], top: int) -> list[Layer]:
    """What each layer says, from its logits; the last layer is the model's output."""
    wide_LV = logits_LV.float()
    norm_L = wide_LV.logsumexp(-1)
    log_p_LV = wide_LV - norm_L[:, None]
    p_LV = log_p_LV.exp()
    entropy_L = norm_L - (p_LV * wide_LV).sum(-1)
    kl_L = (p_LV[-1] * (log_p_LV[-1] - log_p_LV)).sum(-1).clamp(min=0)
    values_LK, tokens_LK = metrics.top(wide_LV, top)
    probs_LK = (values_LK - norm_L[:, None]).exp()
    ids_W = torch.tensor(list(watch.values()), dtype=torch.long, device=wide_LV.device)
    out = []
    for index in range(len(wide_LV)):
        ranks = metrics.rank(logits_LV[index].expand(len(watch), -1), ids_W).tolist() if watch else []
        out.append(Layer(
            layer=index - 1,
            top=[TopToken(token=model.say(int(t)), prob=float(p))
                 for t, p in zip(tokens_LK[index], probs_LK[index], strict=True)],
            watch={text: Watched(rank=rank, reciprocal_rank=1 / (rank + 1), prob=float(p_LV[index, token]),
                                 logit=float(logits_LV[index, token]))
                   for (text, token), rank in zip(watch.items(), ranks, strict=True)},
            entropy=float(entropy_L[index]), kl=float(kl_L[index]),
        ))
    return out


def word_tokens(model: Model, word: str) -> list[int]:
    """The tokens of a word within a sentence: with a space before it."""
    return list(model.tokenizer(f" {word}", add_special_tokens=False)["input_ids"])


def first_top(layers: Sequence[Layer], token: str) -> int | None:
    """The first layer at which a watched token is the first choice, or None."""
    return next((layer.layer for layer in layers if layer.watch[token].rank == 0), None)


def token_at(encoded: Encoded, position: str | int) -> str:
    """What the token says that a position names."""
    from patchclamp.forward.prepare import token_indices

    return encoded.pieces[token_indices(Positions.parse(str(position)), encoded, f"@{position}")[0]]
