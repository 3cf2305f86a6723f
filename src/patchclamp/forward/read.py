"""Readouts evaluated: from final hidden states to numbers, unembedding only what is asked for."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from patchclamp.forward import metrics
from patchclamp.forward.batch import Batch
from patchclamp.forward.prepare import Job, ReadyRead
from patchclamp.forward.readout import Top
from patchclamp.model.anatomy import Anatomy

FEW = ("logit", "logit_difference")
"""Kinds that need only their own tokens' logits."""


def read_all(anatomy: Anatomy, batch: Batch, hidden: Tensor | None, say: Callable[[int], str]) -> list[list[Any]]:
    """The values of every job's readouts, in the layout's order. `say` spells a token id."""
    layout = batch.layout
    wanted: list[tuple[int, int]] = []
    for row, job in enumerate(layout.jobs):
        for read in job.reads:
            if read.needs_logits and read.read.kind not in FEW:
                rows = [row, layout.base[row]] if read.read.kind == "kl" else [row]
                wanted += [(r, c) for r in rows for c in layout.columns(row, read.tokens)]
    full = _unembed(anatomy, hidden, sorted(set(wanted))) if wanted else {}
    few = _few_logits(anatomy, batch, hidden)

    def value_of(row: int, index: int, read: ReadyRead) -> Any:
        if not read.needs_logits:
            return batch.values[row, index]
        if (row, index) in few:
            return few[row, index]
        columns = layout.columns(row, read.tokens)
        clean = full[layout.base[row], columns[0]] if read.read.kind == "kl" else None
        return evaluate(read, torch.stack([full[row, c] for c in columns]), layout.jobs[row], say, clean)

    return [[value_of(row, i, read) for i, read in enumerate(job.reads)] for row, job in enumerate(layout.jobs)]


def _unembed(anatomy: Anatomy, hidden: Tensor | None, wanted: list[tuple[int, int]]) -> dict[tuple[int, int], Tensor]:
    assert hidden is not None
    rows, columns = zip(*wanted, strict=True)
    logits = anatomy.head(hidden[list(rows), list(columns)])
    return dict(zip(wanted, logits, strict=True))


def _few_logits(anatomy: Anatomy, batch: Batch, hidden: Tensor | None) -> dict[tuple[int, int], Tensor]:
    """All `logit` and `logit_difference` readouts together: one product of hidden states and token weights."""
    keys, rows, columns, ids = [], [], [], []
    for row, job in enumerate(batch.layout.jobs):
        for index, read in enumerate(job.reads):
            if read.read.kind in FEW:
                keys.append((row, index, read))
                rows.append(row)
                columns.append(batch.layout.columns(row, read.tokens)[0])
                ids.append(read.ids)
    if not keys:
        return {}
    assert hidden is not None
    distinct = sorted({i for some in ids for i in some})
    place = {token: i for i, token in enumerate(distinct)}
    device = hidden.device
    logits = anatomy.head(hidden[rows, columns], torch.tensor(distinct, device=device))
    out = {}
    for line, (row, index, read) in enumerate(keys):
        own = logits[line, [place[i] for i in read.ids]]
        out[row, index] = own[0] - own[1] if read.read.kind == "logit_difference" else own
    return out


def evaluate(read: ReadyRead, logits_NV: Tensor, job: Job, say: Callable[[int], str], clean: Tensor | None) -> Any:
    """One readout from the logits at its positions [N,V]."""
    kind, last = read.read.kind, logits_NV[-1]
    if kind == "value":
        assert read.read.site is not None
        return last if read.read.site.positions.single else logits_NV
    if kind == "logits":
        return last
    if kind == "loss":
        targets = torch.tensor([job.encoded.ids[t + 1] for t in read.tokens], device=last.device)
        return -metrics.log_probability(logits_NV, targets).mean()
    if kind == "kl":
        assert clean is not None
        return metrics.kl_divergence(clean, last)
    if kind == "top":
        wide = last.float()
        least = wide.topk(min(read.read.k, len(wide))).values[-1]
        chosen = (wide >= least).nonzero().squeeze(-1)
        # ties go to the smaller id, as in `rank`; topk alone breaks them at random
        chosen = chosen[wide[chosen].argsort(descending=True, stable=True)][: read.read.k]
        return [Top(int(i), say(int(i)), float(p)) for i, p in zip(chosen, wide.softmax(-1)[chosen], strict=True)]
    ids = torch.tensor(read.ids, device=last.device)
    spread = last.expand(len(ids), -1)
    if kind == "logit":
        return last[ids]
    if kind == "logit_difference":
        return last[ids[0]] - last[ids[1]]
    measure = {"probability": metrics.probability, "log_probability": metrics.log_probability, "rank": metrics.rank}
    return measure[kind](spread, ids)
