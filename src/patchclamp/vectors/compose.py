"""Arithmetic of in-context vectors: is the vector of one task the sum of others'?

    D̂ = A + B - C     e.g. capital of the last of a list = capital of the first + copy the last - copy the first

Todd et al. 2023, arXiv 2310.15213, section 3.3. The four tasks are made from one task file: the input is a list of its
words, the output what the file says of the first or last word (`first`, `last`), or that word itself. What one MLP
writes is added up in `wordvector.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from patchclamp.errors import SpecError
from patchclamp.evidence.bootstrap import bootstrap_mean
from patchclamp.evidence.method import Outcome, Progress, method
from patchclamp.evidence.verdict import judge
from patchclamp.forward import Edit, Model
from patchclamp.tasks.read import read_task
from patchclamp.tasks.rows import TaskRow
from patchclamp.vectors.composed import ComposedLayer, ComposeResult, ComposeSpec
from patchclamp.vectors.incontext import Template, check_template, few_shot, last_states, right, right_under, split_rows
from patchclamp.vectors.wordvector import add_word_vectors

PARTS = ("first_task", "last_copy", "first_copy")
"""A, B and C."""
WRONG = {"first_task+first_copy-last_copy": (1, -1, 1), "last_copy+first_copy-first_task": (-1, 1, 1)}
"""Sums of the same three with other signs."""


class Lists(NamedTuple):
    """Lists of rows, those of one set made of that set's rows alone."""

    train: list[list[TaskRow]]
    validation: list[list[TaskRow]]
    test: list[list[TaskRow]]


@method("vectors.compose", spec=ComposeSpec, result=ComposeResult)
def compose_vectors(model: Model, spec: ComposeSpec, progress: Progress) -> Outcome:
    """Build the vector of 'what the file says of the last word' from three others; compare with the measured one.

    The verdict asks whether the composed vector makes the model answer bare lists right more often than the best of the
    parts it is made of and of their sums with other signs. By mlp: whether the difference of one MLP's outputs
    between two tasks, a mean over other words, turns the prompt of one into the other more often than random vectors
    do.
    """
    rows = read_task(spec.file)
    if spec.by == "mlp":
        return add_word_vectors(model, rows, spec, progress)
    template = Template(model, check_template(spec.template))
    lists = _lists(rows, spec)
    vectors_LD = {}
    for name in progress.track(("last_task", *PARTS), "prompts with examples", 4):
        made = [_row(words, name) for words in lists.train]
        generator = np.random.default_rng(spec.seed + 1)
        asked = [made[i] for i in generator.integers(0, len(made), spec.prompts)]
        vectors_LD[name] = (
            last_states(model, few_shot(template, asked, made, spec.shots, spec.seed + 1)).mean(1).float()
        )
    composed_LD = vectors_LD["first_task"] + vectors_LD["last_copy"] - vectors_LD["first_copy"]
    vectors_LD["composed"] = composed_LD
    pool = [_row(words, "last_task") for words in lists.train]
    test, trial = (
        [template.prompt((), _row(words, "last_task")) for words in some] for some in (lists.test, lists.validation)
    )
    for name, signs in WRONG.items():
        vectors_LD[name] = torch.stack([s * vectors_LD[p] for s, p in zip(signs, PARTS, strict=True)]).sum(0)
    names = ("composed", "last_task", *PARTS, *WRONG)
    settings = [
        [Edit.set(f"resid.{layer}@last", vectors_LD[name][layer])] for name in names for layer in range(model.n_layers)
    ]
    chosen = right_under(model, trial, settings, progress).mean(1).reshape(len(names), -1)
    hits = right_under(model, test, settings, progress).reshape(len(names), model.n_layers, -1).astype(float)
    hits = _by_word(hits, [words[-1].input for words in lists.test])
    layer = int(chosen[0].argmax())
    center_LD = torch.stack([vectors_LD[name] for name in ("last_task", *PARTS)]).mean(0)
    cosines = torch.cosine_similarity(composed_LD - center_LD, vectors_LD["last_task"] - center_LD, dim=-1)
    controls = {name: hits[names.index(name), int(chosen[names.index(name)].argmax())] for name in (*PARTS, *WRONG)}
    best = max(controls, key=lambda name: controls[name].mean())
    examples = few_shot(template, [_row(words, "last_task") for words in lists.test], pool, spec.shots, spec.seed)
    result = ComposeResult(
        layer=layer,
        cosine=float(cosines[layer]),
        accuracy_composed=bootstrap_mean(hits[0, layer], spec.seed),
        accuracy_direct=bootstrap_mean(hits[1, int(chosen[1].argmax())], spec.seed),
        accuracy_control=bootstrap_mean(controls[best], spec.seed),
        icl_accuracy=float(right(model, examples).mean()),
        zero_shot_accuracy=float(right(model, test).mean()),
        test=len(test),
        layers=[
            ComposedLayer(
                layer=i,
                cosine=float(cosines[i]),
                composed=hits[0, i].mean(),
                direct=hits[1, i].mean(),
                part=hits[2, i].mean(),
            )
            for i in range(model.n_layers)
        ],
    )
    verdict = judge(
        hits[0, layer],
        controls[best],
        direction="greater",
        seed=spec.seed,
        claim=f"task vectors add (the composed vector after block {layer}, chosen on other lists; share of {len(test)} "
        f"bare lists answered right, mean over {hits.shape[-1]} last words, against {best.replace('_', ' ')}, the best "
        "of its parts alone and of their sums with other signs)",
    )
    return result, verdict


def _by_word(hits: np.ndarray, words: Sequence[str]) -> np.ndarray:
    """Mean of the lists that end with the same word, [..., N] -> [..., words]: they are no independent observations."""
    places = {word: [i for i, other in enumerate(words) if other == word] for word in dict.fromkeys(words)}
    return np.stack([hits[..., some].mean(-1) for some in places.values()], axis=-1)


def _lists(rows: Sequence[TaskRow], spec: ComposeSpec) -> Lists:
    split = split_rows(rows, spec.shots, spec.limit, spec.seed, spec.file)
    generator = np.random.default_rng(spec.seed)

    fewest = min(map(len, split))
    if fewest < spec.length:
        raise SpecError(
            f"lists of {spec.length} words need as many rows to test and to choose on, and {spec.file} gives {fewest}; "
            "use a smaller --length or more rows"
        )

    def draw(some: Sequence[TaskRow], n: int) -> list[list[TaskRow]]:
        return [[some[i] for i in generator.choice(len(some), spec.length, replace=False)] for _ in range(n)]

    return Lists(
        draw(split.train, 4 * spec.prompts), draw(split.validation, spec.limit // 2), draw(split.test, spec.limit)
    )


def _row(words: Sequence[TaskRow], name: str) -> TaskRow:
    """The list as a row of one of the four tasks."""
    which = words[0] if name.startswith("first") else words[-1]
    return TaskRow(
        input=", ".join(word.input for word in words), output=which.output if name.endswith("task") else which.input
    )
