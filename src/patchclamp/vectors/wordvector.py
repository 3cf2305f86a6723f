"""Word-vector arithmetic inside the model: capital(Poland) = Poland + o, o what one MLP writes for other countries.

    o_l = mean over other rows (MLP_l after examples of the task - MLP_l after examples of repeating the word)
    h_l + s · o_l      at the last token of a prompt that makes the model repeat its word

Merullo et al. 2023, arXiv 2305.16130, who take o from one row; the mean and the difference leave out what the MLP
writes for the row itself and for any list of examples. Shape suffixes: L blocks, N rows, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from patchclamp.evidence.bootstrap import bootstrap_mean
from patchclamp.evidence.method import Outcome, Progress
from patchclamp.evidence.verdict import judge
from patchclamp.forward import Edit, Model, Plan, Readout
from patchclamp.forward.answer import Asked
from patchclamp.tasks.rows import TaskRow
from patchclamp.vectors.composed import ComposedLayer, ComposeResult, ComposeSpec
from patchclamp.vectors.incontext import (
    Template,
    check_template,
    few_shot,
    last_states,
    neutral_states,
    right,
    right_under,
    split_rows,
)

STRENGTHS = (1.0, 2.0, 4.0)
"""Multiples of the difference that are tried."""
CONTROLS = 20


class Prompts(NamedTuple):
    """The same rows asked for in two ways."""

    task: list[Asked]
    """After examples of the task."""
    repeat: list[Asked]
    """After examples of repeating the word."""
    turned: list[Asked]
    """As `repeat`, with the task's answer as the right one."""


def add_word_vectors(model: Model, rows: Sequence[TaskRow], spec: ComposeSpec, progress: Progress) -> Outcome:
    """The arithmetic by block, on rows that had no part in the vector."""
    template = Template(model, check_template(spec.template))
    split = split_rows(rows, spec.shots, spec.limit, spec.seed, spec.file)
    train, trial, test = (
        _prompts(template, some, split.train, spec, seed)
        for seed, some in enumerate((split.train[: spec.prompts], split.validation[: spec.limit // 2], split.test))
    )
    mean_LD, own_LND = _differences(model, train, progress).mean(1), _differences(model, test, progress)
    choices = [(layer, strength) for layer in range(model.n_layers) for strength in STRENGTHS]
    scores = right_under(
        model, trial.turned, [_add(layer, mean_LD[layer], s) for layer, s in choices], progress
    ).mean(1)
    layer, strength = choices[int(scores.argmax())]
    at_layer = {place: max((scores[i], -s) for i, (p, s) in enumerate(choices) if p == place) for place, _ in choices}
    strengths = [-at_layer[place][1] for place in range(model.n_layers)]
    random_KLD = _random(model, mean_LD, spec.seed)
    settings = [
        _add(place, vector_LD[place], strengths[place])
        for place in range(model.n_layers)
        for vector_LD in (mean_LD, random_KLD[0])
    ]
    composed, part = right_under(model, test.turned, settings, progress).reshape(model.n_layers, 2, -1).swapaxes(0, 1)
    direct_LN = _own(model, test.turned, own_LND, strengths)
    control = right_under(model, test.turned, [_add(layer, one[layer], strength) for one in random_KLD], progress)
    cosines_L = torch.cosine_similarity(own_LND, mean_LD[:, None], dim=-1).mean(1)
    verdict = judge(
        composed[layer].astype(float),
        control.astype(float),
        direction="greater",
        against="distribution",
        share=True,
        seed=spec.seed,
        claim=f"what the MLP of block {layer} writes adds up like word vectors ({strength:g} times its mean difference "
        f"over other rows, chosen on validation rows; share of {len(split.test)} words whose answer comes in place of "
        "the word itself, against random vectors as long)",
    )
    layers = [
        ComposedLayer(
            layer=i,
            cosine=float(cosines_L[i]),
            composed=composed[i].mean(),
            direct=direct_LN[i].mean(),
            part=part[i].mean(),
        )
        for i in range(model.n_layers)
    ]
    return ComposeResult(
        layer=layer,
        cosine=layers[layer].cosine,
        accuracy_composed=verdict.effect,
        accuracy_direct=bootstrap_mean(direct_LN[layer].astype(float), spec.seed),
        accuracy_control=verdict.control,
        icl_accuracy=float(right(model, test.task).mean()),
        zero_shot_accuracy=float(right(model, test.turned).mean()),
        layers=layers,
        test=len(split.test),
    ), verdict


def _prompts(
    template: Template, rows: Sequence[TaskRow], pool: Sequence[TaskRow], spec: ComposeSpec, seed: int
) -> Prompts:
    def same(some: Sequence[TaskRow]) -> list[TaskRow]:
        return [TaskRow(input=row.input, output=row.input) for row in some]

    task = few_shot(template, rows, pool, spec.shots, spec.seed + seed)
    repeat = few_shot(template, same(rows), same(pool), spec.shots, spec.seed + seed)
    return Prompts(task, repeat, [Asked(b.ids, a.answer) for a, b in zip(task, repeat, strict=True)])


def _differences(model: Model, prompts: Prompts, progress: Progress) -> Tensor:
    """What every MLP writes at the last token more on the way to the answer than to the word, [L,N,D]."""
    task, repeat = (last_states(model, some, "mlp", progress) for some in (prompts.task, prompts.repeat))
    return (task - repeat).float()


def _add(layer: int, vector_D: Tensor, strength: float) -> list[Edit]:
    return [Edit.add(f"mlp.{layer}@last", vector_D, strength, "raw")]


def _own(model: Model, turned: Sequence[Asked], own_LND: Tensor, strengths: Sequence[float]) -> np.ndarray:
    """Whether each row is answered right with its own difference added, [L,N]."""
    plan = Plan.of(
        [
            (one.ids, _add(layer, own_LND[layer, i], strength), [Readout.rank(one.answer)])
            for i, one in enumerate(turned)
            for layer, strength in enumerate(strengths)
        ]
    )
    ranks = [int(rank) for (rank,) in model.execute(plan)]
    return (np.array(ranks).reshape(len(turned), -1) == 0).T


def _random(model: Model, mean_LD: Tensor, seed: int) -> list[Tensor]:
    """What the MLPs write for random tokens of neutral text, less its mean, as long as the difference, each [L,D]."""
    written_KLD = torch.stack(neutral_states(model, CONTROLS, np.random.default_rng(seed), "mlp"))
    gaps_KLD = written_KLD - written_KLD.mean(0)
    return list(gaps_KLD * (mean_LD.norm(dim=-1) / gaps_KLD.norm(dim=-1)).unsqueeze(-1))
