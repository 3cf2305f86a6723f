"""In-context vectors: does one vector, put into a bare question, do what the examples did?

The vectors and their sources are in `incontext.py`. Each is put in after every block in turn: such vectors work in some
blocks and not in others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from patchclamp.errors import SpecError
from patchclamp.evidence.bootstrap import bootstrap_mean
from patchclamp.evidence.cli_hints import Positional
from patchclamp.evidence.method import Outcome, Part, Progress, Result, Spec, method
from patchclamp.evidence.verdict import Interval, Verdict, judge
from patchclamp.forward import Edit, Model
from patchclamp.tasks.files import DataFile
from patchclamp.tasks.read import read_task
from patchclamp.tasks.rows import TaskRow
from patchclamp.vectors.incontext import (
    HEAD_PROMPTS,
    TEMPLATES,
    Asked,
    Split,
    Template,
    check_template,
    few_shot,
    function_vector,
    head_means,
    indirect_effects,
    last_states,
    neutral_states,
    right,
    right_under,
    split_rows,
)

if TYPE_CHECKING:
    import altair
    import pandas

WEAK = 0.2
"""In-context accuracy under which there is no task to take a vector from."""
ADDED = (1.0, 3.0, 8.0)
"""Strengths at which a vector is added, as multiples of its length; chosen with the block."""

Way = Literal["replace", "add", "function_vector"]
WAYS: tuple[Way, ...] = ("replace", "add", "function_vector")


class TaskSpec(Spec):
    """Which task, and how it is shown to the model."""

    file: Annotated[DataFile, Positional()]
    """A task file: rows of input and output, or a relation."""
    shots: int = Field(8, ge=1, le=50)
    """Examples in a prompt."""
    template: str = "auto"
    """How examples are written: question (Q: A:), colon (hot: cold), arrow (hot -> cold), your own text with two {}, or
    auto: the one with which the model is right most often on validation rows."""
    prompts: int = Field(40, ge=4, le=500)
    """In-context prompts a vector is the mean of."""
    limit: int = Field(60, ge=12, le=1000)
    """At most this many test rows, and as many to choose block and strength on."""
    heads: int = Field(10, ge=1, le=200)
    """Heads that make up the function vector."""
    controls: int = Field(20, ge=2, le=100)
    """Random vectors in the verdict; a tenth of them at every block."""


class TaskLayer(Part):
    """Zero-shot accuracy on test rows with a vector put in after one block."""

    layer: int
    replace: float
    """The task vector in the last token's place."""
    add: float
    """The mean difference to shuffled examples, added."""
    function_vector: float
    """The function vector, added."""
    random: float
    """The state of a random token of neutral text in the last token's place, mean over several."""
    random_heads: float
    """The sum of as many random heads' mean outputs, added."""


class Head(Part):
    """One head's causal indirect effect."""

    layer: int
    head: int
    effect: float
    """Rise of the answer's probability in prompts with shuffled examples."""


class Best(Part):
    """The way and block that were best on validation rows, on test rows."""

    way: Way
    layer: int
    strength: float
    """Multiple of the vector's length; of replace always 1."""
    accuracy: Interval
    random: Interval
    """The control of the same kind: mean, and the range of 95 % of such vectors."""


class TaskResult(Result):
    """What the task's vectors do."""

    icl_accuracy: float
    """Of test rows after examples."""
    zero_shot_accuracy: float
    """Of test rows asked bare."""
    template: str
    by_layer: list[TaskLayer]
    """Empty where in-context learning is too weak."""
    best: Best | None
    place: Verdict | None
    """Whether it matters where it is put in: after the chosen block against the mean over all others."""
    heads: list[Head]
    test: int
    """Test rows."""

    def table(self) -> pandas.DataFrame:
        """One row a block."""
        import pandas

        return pandas.DataFrame([layer.model_dump() for layer in self.by_layer])

    def chart(self) -> altair.TopLevelMixin:
        """Accuracy by block of every way, and the heads' indirect effects."""
        from patchclamp.charts.incontext import task_chart

        return task_chart(self)


@method("vectors.task", spec=TaskSpec, result=TaskResult)
def task_vectors(model: Model, spec: TaskSpec, progress: Progress) -> Outcome:
    """Take a task's vector out of prompts with examples, and put it into bare questions, block by block.

    The verdict asks whether the best way and block, chosen on validation rows, make the model right on test rows more
    often than random vectors put in in the same way.
    """
    split, template, icl, zero, bare = in_context(model, spec, progress)
    result = TaskResult(
        icl_accuracy=float(icl.mean()),
        zero_shot_accuracy=float(zero.mean()),
        template=template.text,
        by_layer=[],
        best=None,
        place=None,
        heads=[],
        test=len(split.test),
    )
    if icl.mean() < WEAK:
        return result, _weak(icl, zero, spec.seed)
    if 2 * spec.heads > (all_heads := model.n_layers * model.n_heads):
        raise SpecError(
            f"{spec.heads} heads are more than half of the {all_heads} {model.name} has, and as many others are the "
            "control; ask for fewer (--heads)"
        )
    vectors = TaskVectors(template, spec, split.train, progress)
    trial = [template.prompt((), row) for row in split.validation]
    choices = [
        (way, layer, strength)
        for way in WAYS
        for layer in range(model.n_layers)
        for strength in ((1.0,) if way == "replace" else ADDED)
    ]
    scores = right_under(model, trial, [vectors.edits(*choice) for choice in choices], progress).mean(1)
    way, layer, strength = choices[int(scores.argmax())]
    strengths = {
        one: max(((scores[i], -choice[2]) for i, choice in enumerate(choices) if choice[0] == one))[1] * -1
        for one in WAYS
    }
    by_layer, hits_LN = vectors.by_layer(bare, strengths, way)
    hits = right(model, bare, vectors.edits(way, layer, strength)).astype(float)
    control = right_under(model, bare, vectors.random(way, layer, strength, spec.controls)).astype(float)
    verdict = judge(
        hits,
        control,
        direction="greater",
        against="distribution",
        share=True,
        seed=spec.seed,
        claim=f"one vector does what {spec.shots} examples do ({way.replace('_', ' ')} after block {layer}, chosen "
        f"on other rows; share of {len(bare)} bare questions answered right, against random vectors in the same "
        f"place; with examples {icl.mean():.2f}, bare {zero.mean():.2f})",
    )
    best = Best(way=way, layer=layer, strength=strength, accuracy=verdict.effect, random=verdict.control)
    place = judge(
        hits,
        np.delete(hits_LN, layer, axis=0).mean(0),
        direction="greater",
        seed=spec.seed,
        claim=f"it matters where the vector is put in (share of {len(bare)} bare questions answered right after block "
        f"{layer}, chosen on other rows, against the mean over the {model.n_layers - 1} other blocks)",
    )
    more = {"by_layer": by_layer, "heads": vectors.heads(), "best": best, "place": place}
    return result.model_copy(update=more), verdict


class InContext(NamedTuple):
    """A task's rows, and what the model makes of them with examples and without."""

    split: Split
    template: Template
    icl: np.ndarray
    """Whether each test row is answered right after examples, [N]."""
    zero: np.ndarray
    """The same asked bare, [N]."""
    bare: list[Asked]
    """Test rows without examples."""


def in_context(model: Model, spec: TaskSpec, progress: Progress) -> InContext:
    """How well the model does the task with examples and without; FileError where there are too few rows."""
    split = split_rows(read_task(spec.file), spec.shots, spec.limit, spec.seed, spec.file)
    template = _template(model, spec, split.validation, split.train)
    shown = few_shot(template, split.test, split.train, spec.shots, spec.seed)
    bare = [template.prompt((), row) for row in split.test]
    icl, zero = (right(model, asked, progress=progress) for asked in (shown, bare))
    return InContext(split, template, icl, zero, bare)


def _template(model: Model, spec: TaskSpec, rows: Sequence[TaskRow], pool: Sequence[TaskRow]) -> Template:
    """The template asked for, or the one the model does best with on validation rows."""
    if spec.template != "auto":
        return Template(model, check_template(spec.template))
    tried = [Template(model, text) for text in TEMPLATES.values()]
    scores = [right(model, few_shot(one, rows, pool, spec.shots, spec.seed)).mean() for one in tried]
    return tried[int(np.argmax(scores))]


def _weak(icl: np.ndarray, zero: np.ndarray, seed: int) -> Verdict:
    effect, control = (bootstrap_mean(hits.astype(float), seed) for hits in (icl, zero))
    return Verdict(
        outcome="inconclusive",
        effect=effect,
        control=control,
        reason=(
            f"In-context learning too weak: with examples {effect} of the answers are right, under {WEAK:.0%}, so "
            "there is no task to take a vector from, which leaves open whether one vector does what the examples do."
        ),
    )


class TaskVectors:
    """The vectors of one task, from prompts with examples."""

    def __init__(self, template: Template, spec: TaskSpec, rows: Sequence[TaskRow], progress: Progress) -> None:
        self.model, self.spec, self.progress = template.model, spec, progress
        generator = np.random.default_rng(spec.seed + 1)
        asked = [rows[i] for i in generator.integers(0, len(rows), spec.prompts)]
        shown = few_shot(template, asked, rows, spec.shots, spec.seed + 1)
        mixed = few_shot(template, asked, rows, spec.shots, spec.seed + 1, shuffled=True)
        states_LND = last_states(self.model, shown, progress=progress)
        self.replaced_LD = states_LND.mean(1).float()
        self.added_LD = self.replaced_LD - last_states(self.model, mixed, progress=progress).mean(1).float()
        outputs_LHE, self.parts_LHD = head_means(self.model, shown)
        self.effects_LH = indirect_effects(self.model, mixed[:HEAD_PROMPTS], outputs_LHE.float(), progress)
        order = self.effects_LH.flatten().argsort(descending=True)[: spec.heads].tolist()
        self.top = [divmod(index, self.model.n_heads) for index in order]
        self.function_D = function_vector(self.parts_LHD, self.top).float()
        self.generator = np.random.default_rng(spec.seed + 2)
        self.neutral = neutral_states(self.model, spec.controls, self.generator)

    def edits(self, way: Way, layer: int, strength: float = 1.0) -> list[Edit]:
        """The vector put in after a block."""
        if way == "replace":
            return [Edit.set(f"resid.{layer}@last", self.replaced_LD[layer])]
        vector = self.added_LD[layer] if way == "add" else self.function_D
        return [Edit.add(f"resid.{layer}@last", vector, strength, "raw")]

    def random(self, way: Way, layer: int, strength: float, n: int) -> list[list[Edit]]:
        """Controls put in in the same way: states of random tokens of neutral text to replace or, as long as the
        vector, to add; sums of random heads for the function vector."""
        if way == "function_vector":
            return [[Edit.add(f"resid.{layer}@last", vector_D, strength, "raw")] for vector_D in self._random_heads(n)]
        states = [self.neutral[i][layer] for i in range(n)]
        if way == "replace":
            return [[Edit.set(f"resid.{layer}@last", state_D)] for state_D in states]
        mean_D = torch.stack([one[layer] for one in self.neutral]).mean(0)
        size = float(self.added_LD[layer].norm())
        return [
            [Edit.add(f"resid.{layer}@last", (state_D - mean_D) * (size / (state_D - mean_D).norm()), strength, "raw")]
            for state_D in states
        ]

    def _random_heads(self, n: int) -> list[Tensor]:
        others = [divmod(i, self.model.n_heads) for i in range(self.effects_LH.numel())]
        others = [head for head in others if head not in self.top]
        count = min(len(self.top), len(others))
        drawn = [self.generator.choice(len(others), count, replace=False) for _ in range(n)]
        return [function_vector(self.parts_LHD, [others[i] for i in some]).float() for some in drawn]

    def by_layer(
        self, bare: Sequence[Asked], strengths: dict[Any, float], way: Way
    ) -> tuple[list[TaskLayer], np.ndarray]:
        """Accuracy with every vector after every block, each at its chosen strength; and whether each question is
        answered right after each block in one way, [L,N]."""
        n = max(1, self.spec.controls // 10)
        settings = []
        for layer in range(self.model.n_layers):
            settings += [self.edits(way, layer, strengths[way]) for way in WAYS]
            settings += self.random("replace", layer, 1.0, n)
            settings += self.random("function_vector", layer, strengths["function_vector"], n)
        hits_LSN = right_under(self.model, bare, settings, self.progress).reshape(self.model.n_layers, -1, len(bare))
        layers = [
            TaskLayer(
                layer=layer,
                replace=row[0],
                add=row[1],
                function_vector=row[2],
                random=row[3 : 3 + n].mean(),
                random_heads=row[3 + n :].mean(),
            )
            for layer, row in enumerate(hits_LSN.mean(2))
        ]
        return layers, hits_LSN[:, WAYS.index(way)].astype(float)

    def heads(self) -> list[Head]:
        """Every head's indirect effect."""
        return [
            Head(layer=layer, head=head, effect=float(self.effects_LH[layer, head]))
            for layer in range(self.model.n_layers)
            for head in range(self.model.n_heads)
        ]
