"""In-context prompts: examples of a task, then a question; and the vectors that stand for the task.

    task vector       mean state of the last token after k examples, put in its place    Hendel et al. 2023, 2310.15916
    mean difference   that mean minus the mean with the examples' outputs shuffled, added
    function vector   sum of the mean outputs of the heads that cause most of it, added    Todd et al. 2023, 2310.15213

Shape suffixes: N prompts, L blocks, H heads, D width, E head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from patchclamp.errors import FileError, SpecError
from patchclamp.evidence.method import Progress
from patchclamp.forward import Edit, Model, Plan, Readout
from patchclamp.forward.answer import Asked, ask
from patchclamp.tasks.neutral import neutral_texts
from patchclamp.tasks.rows import TaskRow
from patchclamp.vectors.states import Example, states

TEMPLATES = {"question": "Q: {}\nA: {}\n\n", "colon": "{}: {}\n", "arrow": "{} -> {}\n"}
"""How examples are written, one after another; the last one's output is left out."""
HEAD_PROMPTS = 24
"""Prompts on which each head's indirect effect is measured."""


class Template(NamedTuple):
    """One way of writing examples, for one model."""

    model: Model
    text: str

    def prompt(self, shots: Sequence[tuple[str, str]], row: TaskRow) -> Asked:
        """The examples, then the question, and the first token of the answer. PromptError as `ask`."""
        before, after = self.text.split("{}", 1)[0], self.text.split("{}", 2)[1]
        told = "".join(filled(self.text, *shot) for shot in shots)
        return ask(self.model, told + before + row.input + after, row.output)


def filled(template: str, *words: str) -> str:
    """A template with words in its places; other braces stay."""
    parts = template.split("{}")
    return "".join(part + word for part, word in zip(parts, (*words, ""), strict=True))


def check_template(text: str) -> str:
    """The template's text: a shipped one by its name, or one with two places. SpecError otherwise."""
    text = TEMPLATES.get(text, text.replace("\\n", "\n"))
    if text.count("{}") != 2:
        raise SpecError(
            f"the template {text!r} has {text.count('{}')} places; write two {{}}, for input and output, or name "
            f"one of {', '.join(TEMPLATES)}"
        )
    return text


class Split(NamedTuple):
    """Rows for examples, to choose on and to report on."""

    train: list[TaskRow]
    validation: list[TaskRow]
    test: list[TaskRow]


def split_rows(rows: Sequence[TaskRow], shots: int, limit: int, seed: int, name: str) -> Split:
    """Distinct inputs parted at random: at most `limit` to test and to choose on, the rest for examples."""
    distinct = list({row.input: row for row in rows}.values())
    least = 3 * shots if shots > 3 else 12
    if len(distinct) < least:
        raise FileError(
            f"{name} has {len(distinct)} different inputs; {least} are needed for {shots} examples a prompt and "
            "others to choose and test on"
        )
    order = np.random.default_rng(seed).permutation(len(distinct))
    mixed = [distinct[i] for i in order]
    n_test = min(limit, len(mixed) // 3)
    n_validation = min(limit, len(mixed) // 4)
    return Split(mixed[n_test + n_validation :], mixed[n_test : n_test + n_validation], mixed[:n_test])


def few_shot(
    template: Template, rows: Sequence[TaskRow], pool: Sequence[TaskRow], shots: int, seed: int, shuffled: bool = False
) -> list[Asked]:
    """Each row asked after `shots` other rows drawn at random; with their outputs shuffled among them if asked for."""
    generator = np.random.default_rng(seed)
    prompts = []
    for row in rows:
        others = [other for other in pool if other.input != row.input]
        drawn = [others[i] for i in generator.choice(len(others), shots, replace=False)]
        outputs = [one.output for one in drawn]
        if shuffled:
            outputs = [outputs[i] for i in _derangement(outputs, generator)]
        prompts.append(template.prompt([(one.input, out) for one, out in zip(drawn, outputs, strict=True)], row))
    return prompts


def _derangement(outputs: Sequence[str], generator: np.random.Generator) -> np.ndarray:
    """An order in which as few outputs as possible stay where they were: of 20 random ones the best."""
    orders = [generator.permutation(len(outputs)) for _ in range(20)]
    return min(orders, key=lambda order: sum(outputs[i] == outputs[j] for i, j in enumerate(order)))


def right(
    model: Model, prompts: Sequence[Asked], edits: Sequence[Edit] = (), progress: Progress | None = None
) -> np.ndarray:
    """Whether the answer's first token is the first choice, [N]."""
    return right_under(model, prompts, [edits], progress)[0]


def right_under(
    model: Model, prompts: Sequence[Asked], settings: Sequence[Sequence[Edit]], progress: Progress | None = None
) -> np.ndarray:
    """The same for several sets of edits, [settings, N]."""
    plan = Plan.of([(one.ids, edits, [Readout.rank(one.answer)]) for one in prompts for edits in settings])
    ranks = model.execute(plan, track=progress.track if progress else None)
    return np.array([int(rank) == 0 for (rank,) in ranks]).reshape(len(prompts), len(settings)).T


def last_states(
    model: Model, prompts: Sequence[Asked], point: str = "resid", progress: Progress | None = None
) -> Tensor:
    """The last token's state in every block, [L,N,D]."""
    sites = [f"{point}.{layer}" for layer in range(model.n_layers)]
    return states(model, [Example(one.ids, "last") for one in prompts], sites, progress)


def neutral_states(
    model: Model, n: int, generator: np.random.Generator, point: str = "resid"
) -> list[Tensor]:
    """States of random tokens of neutral text, each [L,D]; never a text's first token."""
    texts = neutral_texts()
    asked = []
    for i in generator.integers(0, len(texts), n):
        ids = model.encode(texts[i]).ids
        asked.append(Asked(ids[: int(generator.integers(2, min(40, len(ids)) + 1))], 0))
    return list(last_states(model, asked, point).float().unbind(1))


def head_means(model: Model, prompts: Sequence[Asked]) -> tuple[Tensor, Tensor]:
    """Every head's mean at the last token: its output [L,H,E], and its contribution to the residual stream [L,H,D]."""
    sites = [f"{point}.{layer}@last" for point in ("head", "head_out") for layer in range(model.n_layers)]
    totals: list[Tensor] | None = None
    for one in prompts:
        values = [value.double().cpu() for value in model.execute(Plan.of([(one.ids, (), sites)]))[0]]
        totals = values if totals is None else [a + b for a, b in zip(totals, values, strict=True)]
    assert totals is not None
    means = [total / len(prompts) for total in totals]
    return torch.stack(means[: model.n_layers]), torch.stack(means[model.n_layers :])


def indirect_effects(model: Model, prompts: Sequence[Asked], means_LHE: Tensor, progress: Progress) -> Tensor:
    """How much each head's mean output, put into prompts with shuffled examples, raises the answer's probability,
    [L,H] (causal indirect effect, Todd et al. 2023, equation 3)."""
    heads = [(layer, head) for layer in range(model.n_layers) for head in range(model.n_heads)]
    settings: list[list[Edit]] = [
        [],
        *([Edit.set(f"head.{layer}.{head}@last", means_LHE[layer, head])] for layer, head in heads),
    ]
    plan = Plan.of([(one.ids, edits, [Readout.probability(one.answer)]) for one in prompts for edits in settings])
    values = torch.tensor([float(p) for (p,) in model.execute(plan, track=progress.track)]).view(len(prompts), -1)
    return (values[:, 1:] - values[:, :1]).mean(0).view(model.n_layers, model.n_heads)


def function_vector(parts_LHD: Tensor, heads: Sequence[tuple[int, int]]) -> Tensor:
    """Sum of the heads' mean contributions to the residual stream, [D] (Todd et al. 2023, equation 5)."""
    return torch.stack([parts_LHD[layer, head] for layer, head in heads]).sum(0)
