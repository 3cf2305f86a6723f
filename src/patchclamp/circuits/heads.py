"""What each head does in a task: where it looks, what it copies, and what the answer loses without it.

    effect     m with the head's output from the corrupted prompt, less m          m: logit difference
    direct     what the head adds to m through the unembedding alone, norms frozen
    attention  of the last token to the words of each role
    copying    how often the answer's token is among the 5 first that the head's output-value circuit promotes where it
               reads that token; -1 for each time among the 5 last

and over all tokens the shares of attention on the token before, on an earlier occurrence of the same token, and on the
token behind one. A label is proposed where these are clear (Wang et al. 2022, arXiv 2211.00593, sections 3 and 4;
Olsson et al. 2022, arXiv 2209.11895).

Shape suffixes: B prompts, H heads, T reading tokens, S tokens read, E head width, D model width, V vocabulary.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from patchclamp.circuits.material import ReadyPair, TaskSpec, logit_differences, material, require_preferred
from patchclamp.evidence.bootstrap import bootstrap_mean
from patchclamp.evidence.method import Outcome, Part, Progress, Result, method
from patchclamp.evidence.verdict import Interval, Verdict, judge
from patchclamp.forward import Edit, Model, Plan, Readout
from patchclamp.forward.decompose import direct_run, take_apart
from patchclamp.forward.frozen import FrozenUnembedding, exact, into_stream
from patchclamp.model.anatomy import part

if TYPE_CHECKING:
    import altair
    import pandas

CLEAR = {"looks": 0.2, "copies": 0.5, "before": 0.4, "again": 0.3}
"""From where on a share counts as clear."""
FIRST_FEW = 5
LEAST_OTHERS = 12
"""Heads without a label that those with one are compared with, where there are fewer of these."""


class HeadsSpec(TaskSpec):
    """How many heads are shown."""

    prompts: int = Field(8, ge=4)
    """Pairs that everything is a mean over."""
    top: int = Field(20, ge=1)
    """How many heads, those of the largest effect first."""


class HeadRow(Part):
    """One head."""

    head: str
    """As a site: head.9.6."""
    layer: int
    unit: int
    effect: Interval
    direct: Interval
    attention: dict[str, float]
    """Of the last token, by role."""
    copying: float | None
    """None where the answer is not a word of the prompt."""
    previous: float
    duplicate: float | None
    """None where no token comes twice."""
    induction: float | None
    label: str
    """What it might be called; empty if nothing is clear."""
    why: str


class Heads(Result):
    """The heads of a task."""

    heads: list[HeadRow]
    logit_difference: float
    total: int
    """Heads of the model."""
    prompts: int
    """Pairs that everything is a mean over."""

    def table(self) -> pandas.DataFrame:
        """One row a head."""
        import pandas

        return pandas.DataFrame([
            {"head": one.head, "effect": one.effect.mean, "direct": one.direct.mean,
             **{f"looks at {role}": share for role, share in one.attention.items()}, "copying": one.copying,
             "previous": one.previous, "duplicate": one.duplicate, "induction": one.induction, "label": one.label}
            for one in self.heads])

    def chart(self) -> altair.TopLevelMixin:
        """Effects by head, and where each looks."""
        from patchclamp.charts.circuits import heads_chart

        return heads_chart(self)


@method("circuits.heads", spec=HeadsSpec, result=Heads)
def read_heads(model: Model, spec: HeadsSpec, progress: Progress) -> Outcome:
    """Say what each head does in a task: its effect, where it looks, what it copies, and a label where that is clear.

    The verdict asks whether the heads that got a label change the answer more, on prompts that the labels were not
    given on, than others do.
    """
    found = material(model, spec)
    pairs = found.search
    require_preferred(logit_differences(model, pairs), spec)
    layers, units = range(model.n_layers), range(model.n_heads)
    effects_BX, clean = _effects(model, pairs, [f"head.{layer}.{unit}" for layer in layers for unit in units], progress)
    effects_BLH = effects_BX.reshape(len(pairs), model.n_layers, model.n_heads)
    seen = [_Seen(model, pair) for pair in progress.track(pairs, "reading heads", len(pairs))]
    rows = [_row(seen, effects_BLH, layer, unit, spec.seed)
            for layer in layers for unit in units]
    rows.sort(key=lambda row: -abs(row.effect.mean))
    result = Heads(heads=rows[: spec.top], logit_difference=clean, total=len(rows), prompts=len(pairs))
    return result, _verdict(model, rows, found.heldout[: len(pairs)], spec, progress)


def _verdict(
    model: Model, rows: Sequence[HeadRow], heldout: Sequence[ReadyPair], spec: HeadsSpec, progress: Progress
) -> Verdict | None:
    """Labelled heads against others, both on prompts that no label was given on."""
    labelled, others = ([row.head for row in rows if bool(row.label) == which] for which in (True, False))
    if not labelled or not others:
        return None
    drawn = random.Random(spec.seed).sample(others, min(len(others), max(len(labelled), LEAST_OTHERS)))
    effects_BX, _ = _effects(model, heldout, [*labelled, *drawn], progress)
    size_X = np.abs(effects_BX.mean(0))
    return judge(size_X[: len(labelled)], size_X[len(labelled) :], direction="greater", seed=spec.seed,
                 claim=f"the {len(labelled)} heads with a label do the task (absolute change of the logit difference "
                       f"without one on {len(heldout)} other prompts, against {len(drawn)} heads without a label)")


def _effects(
    model: Model, pairs: Sequence[ReadyPair], sites: Sequence[str], progress: Progress
) -> tuple[np.ndarray, float]:
    """Change of m with each head's output from the corrupted prompt, [B, sites], and the mean m."""
    rows = [(pair.clean, edits, [Readout.logit_difference(*pair.choice)]) for pair in pairs
            for edits in ([], *([Edit.swap(site, pair.corrupted)] for site in sites))]
    values = np.array([float(v[0]) for v in model.execute(Plan.of(rows), track=progress.track)])
    values = values.reshape(len(pairs), 1 + len(sites))
    return values[:, 1:] - values[:, :1], float(values[:, 0].mean())


class _Seen:
    """One prompt: patterns, direct contributions and what the heads would copy."""

    def __init__(self, model: Model, pair: ReadyPair) -> None:
        layers = range(model.n_layers)
        reads = [Readout.value(f"{point}.{i}") for point in ("pattern", "v") for i in layers]
        reads += [Readout.value(f"head.{i}@last") for i in layers]
        values = model.execute(Plan.of([(pair.clean, [], reads)]))[0]
        n = model.n_layers
        self.pattern_LHTS = torch.stack([exact(v) for v in values[:n]])
        self.roles = {name: list(tokens) for name, tokens in pair.roles.items()}
        self.ids = torch.tensor(pair.clean)
        run = direct_run(model, pair.clean, "last", list(pair.choice), heads=True)
        unembedding = FrozenUnembedding(model.anatomy, run[f"resid.{n - 1}"])
        parts = take_apart(model.anatomy, run, unembedding.read(list(pair.choice)))
        self.direct_LH = torch.stack([heads.contributions for heads in parts.heads])
        where = (self.ids[:-1] == pair.choice[0]).nonzero()[:, 0].tolist()
        self.copies_LH = _copies(model, values[n : 2 * n], values[2 * n :], where[-1], pair.choice[0],
                                 unembedding) if where else None

    @cached_property
    def previous_token(self) -> Tensor:
        """Attention on the token before, a mean over tokens from the third on, [L, H]."""
        return self.pattern_LHTS.diagonal(-1, 2, 3)[..., 1:].mean(-1)

    @cached_property
    def duplicate(self) -> Tensor | None:
        """Attention on earlier occurrences of the reading token, [L, H]; None if no token comes again."""
        return self._earlier_token(0)

    @cached_property
    def induction(self) -> Tensor | None:
        """Attention on the tokens behind earlier occurrences of the reading token, [L, H]."""
        return self._earlier_token(1)

    def _earlier_token(self, behind: int) -> Tensor | None:
        same_TT = (self.ids[:, None] == self.ids[None]).tril(-1)
        if not same_TT.any():
            return None
        readers = same_TT.any(1)
        read_TS = same_TT.roll(behind, 1) if behind else same_TT
        return (self.pattern_LHTS * read_TS)[:, :, readers].sum(-1).mean(-1)


@torch.no_grad()
def _copies(
    model: Model, v_LTKE: Sequence[Tensor], z_LHE: Sequence[Tensor], token: int, answer: int,
    unembedding: FrozenUnembedding,
) -> Tensor:
    """By head, 1 where reading the token at its place promotes that token among the first few, -1 where among the last,
    [L, H]."""
    anatomy, out = model.anatomy, []
    for layer in range(model.n_layers):
        out_proj = part(anatomy.blocks[layer], anatomy.family.out_proj)
        w_HED = anatomy.head_weights(layer)
        v_HE = v_LTKE[layer][token].repeat_interleave(anatomy.n_heads // anatomy.n_kv_heads, 0)
        path = into_stream(anatomy, layer, "attn", out_proj(z_LHE[layer].reshape(1, -1))[0])
        written_HV = unembedding.written(path.linear(exact(torch.einsum("he,hed->hd", v_HE, w_HED))).to(w_HED))
        own_H1 = written_HV[:, answer : answer + 1]
        above, below = (written_HV > own_H1).sum(1), (written_HV < own_H1).sum(1)
        out.append((above < FIRST_FEW).double() - (below < FIRST_FEW).double())
    return torch.stack(out).cpu()


def _row(seen: Sequence[_Seen], effects_BLH: np.ndarray, layer: int, unit: int, seed: int) -> HeadRow:
    at = (layer, unit)
    last = [one.pattern_LHTS[layer, unit, -1] for one in seen]
    looks = {role: [float(row_S[one.roles[role]].sum()) for row_S, one in zip(last, seen, strict=True)]
             for role in seen[0].roles}
    direct = bootstrap_mean([float(one.direct_LH[at]) for one in seen], seed)
    copied = [float(one.copies_LH[at]) for one in seen if one.copies_LH is not None]
    duplicate, induction = _mean([one.duplicate for one in seen], at), _mean([one.induction for one in seen], at)
    row = HeadRow(
        head=f"head.{layer}.{unit}", layer=layer, unit=unit, effect=bootstrap_mean(effects_BLH[:, layer, unit], seed),
        direct=direct, attention={role: float(np.mean(shares)) for role, shares in looks.items()},
        copying=float(np.mean(copied)) if copied else None,
        previous=float(np.mean([float(one.previous_token[at]) for one in seen])), duplicate=duplicate,
        induction=induction, label="", why="")
    label, why = label_of(row)
    return row.model_copy(update={"label": label, "why": why})


def _mean(values: Sequence[Tensor | None], at: tuple[int, int]) -> float | None:
    there = [float(value[at]) for value in values if value is not None]
    return float(np.mean(there)) if there else None


def label_of(row: HeadRow) -> tuple[str, str]:
    """What a head might be called, and the numbers that say so. Only heads whose effect's interval leaves out 0 get a
    label."""
    role, looks = max(row.attention.items(), key=lambda item: item[1])
    if row.effect.low <= 0 <= row.effect.high:
        return "", ""
    if row.copying is not None and looks >= CLEAR["looks"] and abs(row.copying) >= CLEAR["copies"]:
        if row.direct.low > 0 and row.copying > 0:
            return "mover", f"the last token looks at {role} ({looks:.2f}), it copies ({row.copying:.2f}) and writes " \
                            f"{row.direct.mean:+.2f} to the logit difference itself"
        if row.direct.high < 0 and row.copying < 0:
            return "negative mover", f"the last token looks at {role} ({looks:.2f}), it takes off what it reads " \
                                     f"({row.copying:.2f}) and writes {row.direct.mean:+.2f}"
    if row.duplicate is not None and row.duplicate >= CLEAR["again"]:
        return "duplicate token", f"tokens that come again look at their earlier occurrence ({row.duplicate:.2f})"
    if row.induction is not None and row.induction >= CLEAR["again"]:
        return "induction", f"tokens that come again look at what came behind ({row.induction:.2f})"
    if row.previous >= CLEAR["before"]:
        return "previous token", f"tokens look at the one before ({row.previous:.2f})"
    if looks >= CLEAR["looks"]:
        return f"reads {role}", f"the last token looks at {role} ({looks:.2f})"
    return "", ""
