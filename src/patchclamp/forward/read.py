"""Readouts evaluated: from final hidden states to numbers, unembedding only what is asked for."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from patchclamp.forward import metrics
from patchclamp.forward.batch import Batch
from patchclamp.forward.prepare import ReadyRead
from patchclamp.forward.readout import Top
from patchclamp.model.anatomy import Anatomy

FEW = ("logit", "logit_difference")
"""Kinds that need only their own tokens' logits."""
NUMBERS_AT_ONCE = 2**24
"""Logits held at once: 64 MB in float32."""

Say = Callable[[int], str]
"""Spells a token id."""
Place = tuple[int, int]
"""Row and column of a hidden state."""


class Ask(NamedTuple):
    """One readout of one row."""

    row: int
    number: int
    read: ReadyRead
    columns: Sequence[int]

    @property
    def last(self) -> Place:
        """Where the readout's one position is."""
        return self.row, self.columns[-1]


def read_all(anatomy: Anatomy, batch: Batch, hidden: Tensor | None, say: Say) -> list[list[Any]]:
    """The values of every job's readouts, in the layout's order."""
    layout = batch.layout
    values: dict[tuple[int, int], Any] = dict(batch.values)
    few: list[Ask] = []
    full: list[Ask] = []
    for row, job in enumerate(layout.jobs):
        for index, read in enumerate(job.reads):
            if read.needs_logits:
                ask = Ask(row, index, read, layout.columns(row, read.tokens))
                (few if read.read.kind in FEW else full).append(ask)
    if few:
        values |= _few(anatomy, few, hidden)
    for chunk in _chunks(full, anatomy.n_vocab):
        values |= _full(anatomy, batch, chunk, hidden, say)
    return [[values[row, i] for i in range(len(job.reads))] for row, job in enumerate(layout.jobs)]


def _few(anatomy: Anatomy, asks: list[Ask], hidden: Tensor | None) -> dict[tuple[int, int], Tensor]:
    """All `logit` and `logit_difference` readouts together: one product of hidden states and token weights."""
    assert hidden is not None
    distinct = sorted({token for ask in asks for token in ask.read.ids})
    line = {token: i for i, token in enumerate(distinct)}
    rows, columns = zip(*(ask.last for ask in asks), strict=True)
    logits = anatomy.head(hidden[list(rows), list(columns)], torch.tensor(distinct, device=hidden.device))
    out = {}
    for own_N, ask in zip(logits, asks, strict=True):
        own = own_N[[line[token] for token in ask.read.ids]]
        out[ask.row, ask.number] = own[0] - own[1] if ask.read.read.kind == "logit_difference" else own
    return out


def _chunks(asks: list[Ask], n_vocab: int) -> Iterator[list[Ask]]:
    """Readouts in portions whose logits fit in `NUMBERS_AT_ONCE`; at least one in each."""
    chunk: list[Ask] = []
    size = 0
    for ask in asks:
        size += len(ask.columns)
        if chunk and size * n_vocab > NUMBERS_AT_ONCE:
            yield chunk
            chunk, size = [], len(ask.columns)
        chunk.append(ask)
    if chunk:
        yield chunk


def _full(
    anatomy: Anatomy, batch: Batch, asks: list[Ask], hidden: Tensor | None, say: Say
) -> dict[tuple[int, int], Any]:
    """Readouts that need the whole vocabulary, each kind for all rows at once."""
    assert hidden is not None
    base = batch.layout.base
    places = {(ask.row, column) for ask in asks for column in ask.columns}
    places |= {(base[ask.row], ask.last[1]) for ask in asks if ask.read.read.kind == "kl"}
    line = {place: i for i, place in enumerate(sorted(places))}
    rows, columns = zip(*line, strict=True)
    logits_NV = anatomy.head(hidden[list(rows), list(columns)])
    by_kind: dict[str, list[Ask]] = defaultdict(list)
    for ask in asks:
        by_kind[ask.read.read.kind].append(ask)
    out: dict[tuple[int, int], Any] = {}
    for kind, some in by_kind.items():
        last_NV = logits_NV[[line[ask.last] for ask in some]]
        values: list[Any]
        if kind in ("probability", "log_probability", "rank"):
            values = _of_tokens(kind, some, last_NV)
        elif kind == "kl":
            values = list(metrics.kl_divergence(logits_NV[[line[base[a.row], a.last[1]] for a in some]], last_NV))
        elif kind == "top":
            values = _top(last_NV, [ask.read.read.k for ask in some], say)
        elif kind == "loss":
            values = [_loss(logits_NV[[line[a.row, c] for c in a.columns]], a, batch) for a in some]
        elif kind == "logits":
            values = list(last_NV)
        else:  # the values at the site `logits`
            values = [logits_NV[[line[a.row, c] for c in a.columns]] for a in some]
            values = [v[0] if a.read.read.site.positions.single else v  # type: ignore[union-attr]
                      for v, a in zip(values, some, strict=True)]
        out |= {(ask.row, ask.number): value for ask, value in zip(some, values, strict=True)}
    return out


def _of_tokens(kind: str, asks: list[Ask], last_NV: Tensor) -> list[Tensor]:
    """Probabilities or ranks of each readout's own tokens."""
    counts = [len(ask.read.ids) for ask in asks]
    ids = torch.tensor([token for ask in asks for token in ask.read.ids], device=last_NV.device)
    lines = torch.repeat_interleave(torch.arange(len(asks)), torch.tensor(counts))
    measure = {"probability": metrics.probability, "log_probability": metrics.log_probability, "rank": metrics.rank}
    return list(measure[kind](last_NV[lines.to(last_NV.device)], ids).split(counts))


def _top(last_NV: Tensor, counts: list[int], say: Say) -> list[list[Top]]:
    """The likeliest tokens of each line."""
    wide_NV = last_NV.float()
    values_NK, ids_NK = metrics.top(wide_NV, max(counts))
    probs_NK = (values_NK - wide_NV.logsumexp(1, keepdim=True)).exp()
    return [[Top(token, say(token), prob) for token, prob in zip(ids[:count], probs[:count], strict=True)]
            for ids, probs, count in zip(ids_NK.tolist(), probs_NK.tolist(), counts, strict=True)]


def _loss(logits_TV: Tensor, ask: Ask, batch: Batch) -> Tensor:
    ids = batch.layout.jobs[ask.row].encoded.ids
    targets = torch.tensor([ids[t + 1] for t in ask.read.tokens], device=logits_TV.device)
    return -metrics.log_probability(logits_TV, targets).mean()
