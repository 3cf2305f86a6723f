"""Graded readouts: one number a prompt that says how much of a behaviour there is."""

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from pydantic import Field, model_validator

from patchclamp.errors import FileError, SpecError
from patchclamp.evidence.choices import drawn, read_choices
from patchclamp.evidence.method import Progress, Spec
from patchclamp.evidence.rater import Rater
from patchclamp.forward import Edit, Model, Plan, Readout
from patchclamp.forward.asked import as_prompt, auto_format
from patchclamp.tasks.behaviour import prompts_in, texts_of
from patchclamp.tasks.files import DataFile, locate_file, text_lines

FEWEST = 4
"""Prompts with a reading."""
_WORD = re.compile(r"\w+(?:['’]\w+)?")


class GradedSpec(Spec):
    """On which prompts what is measured."""

    prompts: DataFile
    """A choice file (prompt, answer, distractor), or a file of prompts with one of the readouts below."""
    where: tuple[str, ...] = ()
    """Of a choice file only rows with this value in a field, e.g. number=plural."""
    tokens: tuple[str, ...] = ()
    """Measure the probability of these next tokens together, each with its leading space if it has one."""
    words: DataFile | None = None
    """Measure how many of the words that the model writes are in this list, a text file with one a line."""
    judge: str | None = None
    """Measure how far the answer shows a concept, 0 to 2, as the model behind this OpenAI-compatible endpoint says."""
    judge_model: str | None = None
    """That model's name."""
    concept: str | None = None
    """What that model looks for, in words."""
    max_new_tokens: int = Field(32, ge=1, le=500)
    """Length of an answer, for words and judge."""
    limit: int = Field(60, ge=FEWEST)
    """At most so many prompts; of answers 16 are usually enough."""

    @model_validator(mode="after")
    def _one_readout(self) -> "GradedSpec":
        given = [name for name in ("tokens", "words", "judge") if getattr(self, name)]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} are two readouts; give one")
        if bool(self.judge) != bool(self.judge_model) or bool(self.judge) != bool(self.concept):
            raise ValueError("judge, judge_model and concept belong together")
        return self


class Readings(NamedTuple):
    """What was measured: [settings, prompts]."""

    name: str
    values: np.ndarray
    texts: list[str]
    """Of answers the first prompt's, setting by setting."""


def graded(model: Model, spec: GradedSpec, settings: Sequence[Sequence[Edit]], progress: Progress) -> Readings:
    """The readout of every prompt under every setting."""
    if spec.where and (spec.tokens or spec.words or spec.judge):
        raise SpecError("where chooses among the rows of a choice file, and tokens, words and judge take a file of "
                        "prompts; leave one of them out")
    if spec.tokens:
        prompts = _prompts(model, spec)
        read = Readout.probability(*(model.token(token) for token in spec.tokens))
        values = _measured(model, [(p, [read]) for p in prompts], settings, progress)
        return Readings(f"the probability of {', '.join(map(repr, spec.tokens))}", values, [])
    if spec.words or spec.judge:
        return _of_answers(model, spec, settings, progress)
    choices = drawn(read_choices(model, spec.prompts, spec.where).kept, spec.limit, spec.seed)
    rows = [(c.prompt, [Readout.logit_difference(c.answer, c.distractor)]) for c in choices]
    return Readings("logit(answer) - logit(distractor)", _measured(model, rows, settings, progress), [])


def _measured(
    model: Model, rows: Sequence[tuple], settings: Sequence[Sequence[Edit]], progress: Progress
) -> np.ndarray:
    """[settings, prompts]: of several tokens the sum."""
    plan = Plan.of((prompt, edits, reads) for edits in settings for prompt, reads in rows)
    values = [float(row[0].sum()) for row in model.execute(plan, track=progress.track)]
    return np.array(values).reshape(len(settings), len(rows))


def _prompts(model: Model, spec: GradedSpec) -> list:
    format = auto_format(model) if spec.words or spec.judge else "text"
    listed = prompts_in(spec.prompts)
    if len(listed) < FEWEST:
        raise SpecError(f"{spec.prompts} has {len(listed)} prompts; a curve needs {FEWEST} or more")
    return [as_prompt(model, one, format) for one in drawn(listed, spec.limit, spec.seed)]


def _of_answers(model: Model, spec: GradedSpec, settings: Sequence[Sequence[Edit]], progress: Progress) -> Readings:
    prompts, answers = _prompts(model, spec), list[str]()
    words = _lexicon(spec.words) if spec.words else frozenset[str]()
    rater = Rater(spec.judge, spec.judge_model) if spec.judge and spec.judge_model else None
    if rater:
        rater.check()
    for edits in progress.track(settings, "answering", len(settings)):
        answers += [one.text for one in model.generate(prompts, edits, spec.max_new_tokens)]
    if rater:
        asked = texts_of(drawn(prompts_in(spec.prompts), spec.limit, spec.seed)) * len(settings)
        items = [(spec.concept or "", question, answer) for question, answer in zip(asked, answers, strict=True)]
        ratings = rater.rate(items, progress)
        values = [float(rating.concept) if rating else math.nan for rating in ratings]
        name = f"how far answers show {spec.concept!r}"
    else:
        values = [in_lexicon(answer, words) for answer in answers]
        name = f"the share of words that are in {spec.words}"
    n = len(prompts)
    values_SN = np.array(values).reshape(len(settings), n)
    rated_N = np.isfinite(values_SN).all(0)
    if rated_N.sum() < FEWEST:
        raise SpecError(f"{spec.judge_model} gave three scores for the answers to only {rated_N.sum()} of {n} prompts, "
                        f"where {FEWEST} are needed; take a model that follows the form")
    return Readings(name, values_SN[:, rated_N], answers[::n])


def in_lexicon(text: str, words: frozenset[str]) -> float:
    """Share of a text's words that are in the list; 0 for a text without words."""
    found = [word.casefold() for word in _WORD.findall(text)]
    return sum(word in words for word in found) / len(found) if found else 0.0


def _lexicon(file: str) -> frozenset[str]:
    path = locate_file(file)
    words = frozenset(line.strip().casefold() for _, line in text_lines(path) if line.strip())
    if not words:
        raise FileError(f"{file} has no words; write one a line")
    return words
