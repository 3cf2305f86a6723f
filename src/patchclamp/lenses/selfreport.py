"""Self-report: the model is asked at which layer it knew, and its answer is held against its inside.

Measured: the first block after which the logit lens gives the answer as its first choice and goes on giving it to the
end (`lens.logit`). Reported: the number the chat model names when it is told of its own layers and asked.
"""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import Field

from patchclamp.errors import RunError, SpecError
from patchclamp.evidence.bootstrap import mean_if_any
from patchclamp.evidence.cli_hints import Positional
from patchclamp.evidence.method import Outcome, Part, Progress, Result, Spec, method
from patchclamp.evidence.verdict import NO_INTERVAL, Interval, Verdict, judge
from patchclamp.forward import Model, metrics
from patchclamp.forward.streams import decoded, streams
from patchclamp.lenses.reading import word_tokens
from patchclamp.tasks.files import DataFile
from patchclamp.tasks.read import read_relation
from patchclamp.tasks.rows import RelationSample

if TYPE_CHECKING:
    import altair
    import pandas

FEWEST = 6
AT_ONCE = 32
QUESTION = ("You are a language model with {layers} layers, numbered from 0 (the first) to {last} (the last). At the "
            "number of which layer did you know that the answer is {answer}? Answer with the number of one layer.")


class SelfreportSpec(Spec):
    """Which facts to ask for, and how to ask for the layer."""

    relation: Annotated[DataFile, Positional()] = "example:country-capital"
    """A relation file; its first prompt template is asked."""
    question: str = QUESTION
    """How the model is asked; {layers}, {last} and {answer} are filled in."""
    limit: int = Field(60, ge=FEWEST)
    """At most this many facts."""
    max_new_tokens: int = Field(40, ge=4, le=400)
    """Length of the model's account."""
    controls: int = Field(200, ge=20, le=2000)
    """How often stated and measured layers are paired at random."""


class Account(Part):
    """One fact: the layer at which it shows, and the layer the model names."""

    subject: str
    answer: str
    measured: int
    """The block from which on the logit lens's first choice is the answer."""
    stated: int | None
    """The number in the model's account; null if it names none of its layers."""
    said: str


class SelfreportResult(Result):
    """What the model says of its layers beside what is measured."""

    accounts: list[Account]
    facts: int
    """Facts the model gets right."""
    unknown: int
    """Facts it does not, left out."""
    stated: float
    """Share of accounts that name one of the model's layers."""
    error: Interval
    """Mean distance between stated and measured layer, in layers."""
    shuffled_error: Interval
    """The same with the stated layers dealt to other facts: mean and 95 % range."""
    constant_error: Interval
    """The distance one would make by always naming the layer measured most often in the middle (the median)."""

    def table(self) -> "pandas.DataFrame":
        """One row a fact."""
        import pandas

        return pandas.DataFrame([account.model_dump() for account in self.accounts])

    def chart(self) -> "altair.TopLevelMixin":
        """Stated against measured layers."""
        from patchclamp.charts.selfreport import selfreport_chart

        return selfreport_chart(self)


@method("lens.selfreport", spec=SelfreportSpec, result=SelfreportResult)
def selfreport(model: Model, spec: SelfreportSpec, progress: Progress) -> Outcome:
    """Ask a chat model at which layer it knew an answer, and look.

    The verdict asks whether the stated layers lie nearer to the measured ones than the same numbers dealt to other
    facts do: a textbook answer, the same for all, does not.
    """
    if getattr(model.tokenizer, "chat_template", None) is None:
        raise SpecError(f"{model.name} has no chat template, and only a chat model can be asked; try "
                        "smollm2-135m-instruct")
    relation = read_relation(spec.relation)
    template = relation.prompt_templates[0]
    order = np.random.default_rng(spec.seed).permutation(len(relation.samples))[: spec.limit]
    asked = [relation.samples[i] for i in order]
    known, measured = _measured(model, template, asked, progress)
    if len(known) < FEWEST:
        raise RunError(f"{model.name} gets {len(known)} of {len(asked)} facts right, where {FEWEST} are needed; give "
                       "facts it knows")
    said = _say(model, spec, [_asked(model, spec, template, sample) for sample in known], progress)
    accounts = [
        Account(subject=sample.subject, answer=sample.object, measured=layer, said=text,
                stated=stated_layer(text, model.n_layers))
        for sample, layer, text in zip(known, measured, said, strict=True)
    ]
    pairs = np.array([(a.stated, a.measured) for a in accounts if a.stated is not None], dtype=float).reshape(-1, 2)
    return _compared(model, accounts, pairs, len(asked), spec)


def stated_layer(text: str, n_layers: int) -> int | None:
    """The first number in a text that can be one of the layers; None if there is none."""
    numbers = (int(digits) for digits in re.findall(r"(?<![\d.])\d{1,4}(?![\d.]*\d)", text))
    return next((number for number in numbers if number < n_layers), None)


def _measured(
    model: Model, template: str, samples: Sequence[RelationSample], progress: Progress
) -> tuple[list[RelationSample], list[int]]:
    """The facts whose object's first token is the model's first choice, and since which block it has been."""
    places = streams(model, [template.format(s.subject) for s in samples], track=progress.track)
    known, layers = [], []
    for sample, logits_LV in zip(samples, decoded(model, places), strict=True):
        token = word_tokens(model, sample.object)[0]
        is_first = (metrics.first_choice(logits_LV) == token).tolist()
        if is_first[-1]:
            known.append(sample)
            layers.append(since(is_first))
    return known, layers


def since(is_first: Sequence[bool]) -> int:
    """The block from which on it is true to the end, of one value a layer, embeddings first."""
    return len(is_first) - 1 - next(i for i, one in enumerate([*reversed(is_first), False]) if not one)


def _asked(model: Model, spec: SelfreportSpec, template: str, sample: RelationSample) -> list[dict[str, str]]:
    """The conversation: the fact asked for and given, then the question about the layer."""
    question = spec.question
    for name, value in (("layers", model.n_layers), ("last", model.n_layers - 1), ("answer", sample.object)):
        question = question.replace(f"{{{name}}}", str(value))
    return [
        {"role": "user", "content": f"Complete the sentence: {template.format(sample.subject)}"},
        {"role": "assistant", "content": sample.object},
        {"role": "user", "content": question},
    ]


def _say(model: Model, spec: SelfreportSpec, conversations: list[Any], progress: Progress) -> list[str]:
    """The model's answers."""
    starts = range(0, len(conversations), AT_ONCE)
    return [answer.text for first in progress.track(starts, "asking the model", len(starts))
            for answer in model.generate(conversations[first : first + AT_ONCE], max_new_tokens=spec.max_new_tokens)]


def _compared(
    model: Model, accounts: list[Account], pairs_N2: np.ndarray, asked: int, spec: SelfreportSpec
) -> Outcome:
    stated_N, measured_N = pairs_N2[:, 0], pairs_N2[:, 1]
    errors_N = np.abs(stated_N - measured_N)
    generator = np.random.default_rng(spec.seed)
    shuffled_KN = np.array([np.abs(generator.permutation(stated_N) - measured_N) for _ in range(spec.controls)])
    low, high = np.quantile(shuffled_KN.mean(1), [0.025, 0.975]) if len(errors_N) else (np.nan, np.nan)
    shuffled = Interval(mean=float(shuffled_KN.mean()), low=float(low), high=float(high)) if len(errors_N) else (
        NO_INTERVAL)
    constant_N = np.abs(np.median(measured_N) - measured_N) if len(errors_N) else errors_N
    result = SelfreportResult(
        accounts=accounts, facts=len(accounts), unknown=asked - len(accounts), stated=len(errors_N) / len(accounts),
        error=mean_if_any(errors_N, spec.seed), shuffled_error=shuffled,
        constant_error=mean_if_any(constant_N, spec.seed),
    )
    claim = (f"{model.name} can tell at which layer it knew (distance between stated and measured layer, against the "
             "stated layers dealt to other facts)")
    if len(errors_N) < FEWEST:
        return result, Verdict(
            outcome="inconclusive", effect=result.error, control=shuffled,
            reason=f"The model names one of its layers in {len(errors_N)} of {len(accounts)} accounts, where {FEWEST} "
                   f"are needed, which leaves open whether {claim}.")
    return result, judge(result.error, shuffled, claim=claim, direction="less")

