"""Choices scored: prompts with an answer and a distractor, and how far edits move the model between the two.

Shape suffixes: G settings (groups of edits), N choices.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np

from patchclamp.errors import PromptError, SpecError
from patchclamp.evidence.method import Progress, Spec
from patchclamp.forward import Edit, Model, Plan, Readout
from patchclamp.model.tokens import first_difference
from patchclamp.tasks.files import DataFile
from patchclamp.tasks.read import read_rows, split_where
from patchclamp.tasks.rows import ChoiceRow

RowT = TypeVar("RowT")
FEWEST = 4
"""Rows that finding and testing need each."""


class ChoicesSpec(Spec):
    """Which choices are scored."""

    prompts: DataFile
    """A choice file: rows with prompt, answer and distractor. `example:agreement` is a built-in one."""
    where: tuple[str, ...] = ()
    """Only rows with this value in a field of the file, e.g. number=plural; several must all hold."""


class Choice(NamedTuple):
    """One row, scored at the first token in which answer and distractor differ."""

    prompt: tuple[int, ...]
    answer: int
    distractor: int


class Choices(NamedTuple):
    """The rows of a file that can be scored."""

    kept: list[Choice]
    others: list[Choice]
    """Those that `where` leaves out."""
    skipped: int
    """Rows in neither: one answer is a prefix of the other, or nothing stands before their first difference."""


@dataclass(frozen=True)
class Scores:
    """What runs gave, each [N], or [G, N] over settings."""

    logprob: np.ndarray
    """Log-probability of the answer, nats."""
    logit_difference: np.ndarray
    """logit(answer) - logit(distractor)."""
    first: np.ndarray
    """Id of the most likely next token."""

    @property
    def right(self) -> np.ndarray:
        """Whether the answer is likelier than the distractor."""
        return self.logit_difference > 0

    def changes(self, base: "Scores") -> dict[str, np.ndarray]:
        """Edited minus unedited by measure, each of this one's shape; `base` is [N]."""
        return {
            "logprob": self.logprob - base.logprob,
            "probability": np.exp(self.logprob) - np.exp(base.logprob),
            "logit_difference": self.logit_difference - base.logit_difference,
            "accuracy": self.right.astype(float) - base.right,
            "flips": (self.first != base.first).astype(float),
        }


def read_choices(model: Model, file: str, where: Sequence[str] = ()) -> Choices:
    """The rows of a choice file as tokens. Errors name the row; SpecError where nothing can be scored."""
    kept, others = split_where(read_rows(file, ChoiceRow), where, file)
    scored = [[_choice(model, row, file, number) for number, row in some] for some in (kept, others)]
    found = [[choice for choice in some if choice is not None] for some in scored]
    if not found[0]:
        raise SpecError(f"{file}: in every row one answer is a prefix of the other, or nothing stands before their "
                        "first difference, so nothing can be scored")
    return Choices(found[0], found[1], sum(map(len, scored)) - sum(map(len, found)))


def _choice(model: Model, row: ChoiceRow, file: str, number: int) -> Choice | None:
    scored = first_difference(model.tokenizer, row.prompt, row.answer, row.distractor)
    if scored is None or not scored[0]:
        return None
    try:
        model.encode(row.prompt)
        model.encode(scored[0])
    except PromptError as error:
        raise PromptError(f"{file}, row {number}: {error}") from error
    return Choice(*scored)


def drawn(rows: Sequence[RowT], limit: int, seed: int) -> list[RowT]:
    """At most `limit` of the rows, drawn at random, in their order."""
    return [rows[i] for i in sorted(np.random.default_rng(seed).permutation(len(rows))[:limit].tolist())]


def halves(choices: Sequence[Choice], seed: int, limit: int, file: str) -> tuple[list[Choice], list[Choice]]:
    """Rows to find with and other rows to test on, at most `limit` each, drawn at random; equal prompts stay on one
    side. SpecError if there are too few."""
    prompts = list(dict.fromkeys(choice.prompt for choice in choices))
    order = np.random.default_rng(seed).permutation(len(prompts))
    first = {prompts[i] for i in order[: (len(prompts) + 1) // 2]}
    sides = [drawn([c for c in choices if (c.prompt in first) is side], limit, seed) for side in (True, False)]
    if min(map(len, sides)) < FEWEST:
        raise SpecError(f"{file}: {len(choices)} rows with {len(prompts)} different prompts are too few; half of them "
                        f"are for finding and half for testing, at least {FEWEST} each")
    return sides[0], sides[1]


def score(
    model: Model, choices: Sequence[Choice], settings: Sequence[Sequence[Sequence[Edit]]], progress: Progress
) -> Scores:
    """Every setting, a list of edits for each choice, in one plan: scores [G, N]."""
    plan = Plan.of(
        (choice.prompt, edits, [
            Readout.log_probability(choice.answer), Readout.logit_difference(choice.answer, choice.distractor),
            Readout.top(1),
        ])
        for setting in settings for choice, edits in zip(choices, setting, strict=True)
    )
    values = model.execute(plan, track=progress.track)
    shape = (len(settings), len(choices))
    return Scores(
        np.array([float(v[0]) for v in values]).reshape(shape),
        np.array([float(v[1]) for v in values]).reshape(shape),
        np.array([v[2][0].id for v in values]).reshape(shape),
    )


def score_unedited(model: Model, choices: Sequence[Choice], progress: Progress) -> Scores:
    """The unedited model's scores, [N]."""
    got = score(model, choices, [[()] * len(choices)], progress)
    return Scores(got.logprob[0], got.logit_difference[0], got.first[0])
