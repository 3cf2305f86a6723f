"""What every lens has in common: logits of all layers turned into readings.

Shapes: L layers (n blocks and the embeddings before them), D model width, V vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from patchclamp.evidence.method import Part
from patchclamp.forward import Model, metrics


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
