"""Two hops: the capital of the country where the Eiffel Tower is. Which hop is made where, and is the second too late?

Biran et al. 2024, "Hopping Too Late", arXiv 2406.12775. The bridge (France) is read off the state of the last token of
the words that stand for it, the answer (Paris) off the last token, both by Patchscope (`lens.patchscope`), at every
layer. Then a later state is copied to an earlier layer (`backpatch`), and the answer asked for again.
"""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from patchclamp.errors import FileError, RunError, SpecError
from patchclamp.evidence.bootstrap import mean_if_any
from patchclamp.evidence.cli_hints import Positional
from patchclamp.evidence.method import Outcome, Part, Progress, Result, method
from patchclamp.evidence.verdict import Interval
from patchclamp.forward import Model, Plan, Readout
from patchclamp.forward.streams import streams
from patchclamp.lenses.backpatch import Asked, Backpatch, move_back, pairs_of, shares_of
from patchclamp.lenses.patchscope import TARGETS, StateReading, continuations, make_target, maps_for
from patchclamp.lenses.reading import word_tokens
from patchclamp.tasks.files import DataFile
from patchclamp.tasks.read import read_rows
from patchclamp.tasks.rows import HopRow

if TYPE_CHECKING:
    import altair
    import pandas

SHORTEST = 2
"""Letters of an answer's first token below which it gives nothing away."""
FEWEST = 12


class MultihopSpec(StateReading):
    """Which questions to ask, and how to read states aloud."""

    questions: Annotated[DataFile, Positional()] = "example:two-hop"
    """A file of two-hop questions."""
    limit: int | None = Field(None, ge=FEWEST)
    """Ask at most this many of them, drawn at random."""
    max_new_tokens: int = Field(8, ge=1, le=50)
    """Length of each continuation."""
    known: bool = True
    """Count only questions both of whose hops the model answers when asked alone."""
    at: Literal["last", "bridge"] = "last"
    """Whose state is copied back: the last token's, or that of the words that stand for the bridge."""
    step: int = Field(1, ge=1, le=8)
    """Copy states between every block (1), every second (2), …: the work grows with the square of their number."""
    controls: int = Field(20, ge=1, le=100)
    """How many random vectors are put in instead."""


class HopLayer(Part):
    """Share of questions whose state says the bridge, or the answer, after one block."""

    layer: int
    bridge_right: float | None
    """At the bridge's words, of the questions answered right; null if there is none."""
    bridge_wrong: float | None
    answer_right: float | None
    """At the last token."""
    answer_wrong: float | None
    bridge_control: float
    """The bridge of another question."""
    answer_control: float


class Resolved(Part):
    """Where one of the two is first said."""

    share: Interval
    """Share of questions in which some layer says it."""
    first_layer: Interval
    """The first such layer, over those."""


class Hops(Part):
    """The questions answered right, or wrong."""

    questions: int
    bridge: Resolved
    answer: Resolved


class MultihopResult(Result):
    """Where the two hops are made, and what moving a state back does."""

    layers: list[HopLayer]
    right: Hops
    wrong: Hops
    backpatch: Backpatch
    asked: int
    """Questions asked."""
    unknown: int
    """Of these, questions one of whose hops the model does not know; left out unless asked for."""
    excluded: dict[str, str]
    """Questions left out because their answer could not be told by its first token, and why."""
    norm_matched: bool
    """Whether states were rescaled to the placeholder's norm for reading."""

    def table(self) -> "pandas.DataFrame":
        """One row a layer: the share of questions whose bridge and answer the state says there."""
        import pandas

        return pandas.DataFrame([layer.model_dump() for layer in self.layers])

    def chart(self) -> "altair.TopLevelMixin":
        """Bridge and answer by layer, and the share repaired by every pair of layers."""
        from patchclamp.charts.multihop import multihop_chart

        return multihop_chart(self)


class Question(NamedTuple):
    """A question with its tokens, and whether the model answers it."""

    row: HopRow
    bridge_at: int
    last: int
    answer: int
    right: bool


@method("lens.multihop", spec=MultihopSpec, result=MultihopResult)
def multihop(model: Model, spec: MultihopSpec, progress: Progress) -> Outcome:
    """Ask questions of two hops, read off the states where each hop is made, and copy late states back.

    The pair of layers is chosen on one half of the questions (split by the words for the bridge) and judged on the
    other: does it repair more wrong answers than random vectors of the same length in the same place?
    """
    pairs = pairs_of(model.n_layers, spec.step)
    if not pairs:
        raise SpecError(f"step {spec.step} leaves no two of the {model.n_layers} blocks to move states between")
    questions, asked, excluded = _questions(model, spec)
    prompts = [q.row.prompt for q in questions]
    at_bridge = streams(model, prompts, [q.bridge_at for q in questions], progress.track)
    at_last = streams(model, prompts, track=progress.track)
    layers, right, wrong, matched = _hops(model, spec, questions, at_bridge, at_last, progress)
    moved = at_bridge if spec.at == "bridge" else at_last
    places = [Asked(q.row.prompt, q.bridge_at if spec.at == "bridge" else q.last, q.answer, q.right, place_LD)
              for q, place_LD in zip(questions, moved, strict=True)]
    halves = _halves([q.row.phrase for q in questions], spec.seed)
    development, test = ([one for one, is_first in zip(places, halves, strict=True) if is_first is first]
                         for first in (True, False))
    backpatch, verdict = move_back(model, pairs, development, test, spec.controls, spec.seed, progress)
    result = MultihopResult(layers=layers, right=right, wrong=wrong, backpatch=backpatch, asked=asked,
                            unknown=asked - len(questions) if spec.known else 0, excluded=excluded,
                            norm_matched=matched)
    return result, verdict


def _questions(model: Model, spec: MultihopSpec) -> tuple[list[Question], int, dict[str, str]]:
    """The questions that count, how many were asked, and those left out."""
    rows = read_rows(spec.questions, HopRow)
    order = np.random.default_rng(spec.seed).permutation(len(rows))
    usable: list[tuple[HopRow, int, int]] = []
    excluded: dict[str, str] = {}
    for row in (rows[i] for i in order):
        first, bridge = (word_tokens(model, word)[0] for word in (row.answer, row.bridge))
        said = model.say(first)
        if first == bridge:
            excluded[row.prompt] = f"{row.answer} and {row.bridge} begin with the same token {said!r}"
        elif len(re.sub(r"\W", "", said)) < SHORTEST:
            excluded[row.prompt] = f"the first token of {row.answer}, {said!r}, is too short to be told by"
        elif spec.limit is None or len(usable) < spec.limit:
            usable.append((row, first, bridge))
    if len({row.phrase for row, _, _ in usable}) == 1:
        raise FileError(f"{spec.questions}: all questions are about {usable[0][0].phrase!r}; some have to be about "
                        "something else, to choose layers on")
    if len(usable) < FEWEST:
        raise FileError(f"{spec.questions} has {len(usable)} questions whose answers can be told by their first token; "
                        f"at least {FEWEST} are needed")
    read = [(text, (), [Readout.rank(token)])
            for row, first, bridge in usable
            for text, token in ((row.prompt, first), (row.first, bridge), (row.second, first))]
    top = np.array([int(rank) == 0 for (rank,) in model.execute(Plan.of(read))]).reshape(-1, 3)
    questions = []
    for (row, first, _), (is_right, *hops) in zip(usable, top.tolist(), strict=True):
        if all(hops) or not spec.known:
            encoded = model.encode(row.prompt)
            questions.append(Question(row, encoded.find(row.phrase), len(encoded) - 1, first, is_right))
    if len(questions) < FEWEST:
        raise RunError(f"{model.name} answers both hops of only {len(questions)} of {len(usable)} questions, where "
                       f"{FEWEST} are needed; give more questions, or count those it does not know with known=False "
                       "(--no-known)")
    return questions, len(usable), excluded


def _hops(
    model: Model, spec: MultihopSpec, questions: Sequence[Question], at_bridge: Sequence[Tensor],
    at_last: Sequence[Tensor], progress: Progress,
) -> tuple[list[HopLayer], Hops, Hops, bool]:
    """At which layers the states say the bridge and the answer."""
    is_right = np.array([q.right for q in questions])
    mean_LD = torch.stack([*at_bridge, *at_last]).mean(0)
    target = make_target(model, spec, TARGETS.get(spec.target, spec.target), mean_LD,
                         maps=maps_for(model, spec, progress))
    texts = continuations(model, target, [*at_bridge, *at_last], spec.max_new_tokens, progress)
    n = len(questions)
    said: dict[str, np.ndarray] = {}
    for name, some in (("bridge", texts[:n]), ("answer", texts[n:])):
        words = [getattr(q.row, name) for q in questions]
        said[name] = _says(some, words)
        said[f"{name}_control"] = _says(some, _others(words, spec.seed))
    shares = {f"{name}_{group}": shares_of(said[name][chosen]) for name in ("bridge", "answer")
              for group, chosen in (("right", is_right), ("wrong", ~is_right))}
    shares |= {f"{name}_control": said[f"{name}_control"].mean(0).tolist() for name in ("bridge", "answer")}
    layers = [HopLayer(layer=i, **{name: values[i] for name, values in shares.items()}) for i in range(model.n_layers)]
    right, wrong = (
        Hops(questions=int(chosen.sum()), bridge=_resolved(said["bridge"][chosen], spec.seed),
             answer=_resolved(said["answer"][chosen], spec.seed))
        for chosen in (is_right, ~is_right)
    )
    return layers, right, wrong, target.matched


def _says(texts: Sequence[Sequence[str]], words: Sequence[str]) -> np.ndarray:
    """Whether each continuation holds its word as a whole word, [N,L]."""
    patterns = [re.compile(rf"(?<!\w){re.escape(word.casefold())}(?!\w)") for word in words]
    return np.array([[bool(pattern.search(text.casefold())) for text in some]
                     for some, pattern in zip(texts, patterns, strict=True)])


def _others(words: Sequence[str], seed: int) -> list[str]:
    """For each word another one of the list, drawn at random."""
    generator = np.random.default_rng(seed)
    return [str(generator.choice([other for other in words if other != word] or [word])) for word in words]


def _resolved(said_NL: np.ndarray, seed: int) -> Resolved:
    some = np.any(said_NL, axis=1)
    return Resolved(share=mean_if_any(some, seed), first_layer=mean_if_any(said_NL[some].argmax(1), seed))


def _halves(phrases: Sequence[str], seed: int) -> list[bool]:
    """Which questions are for development: about half of them, all about one subject on the same side."""
    distinct = list(dict.fromkeys(phrases))
    order = np.random.default_rng(seed).permutation(len(distinct))
    first = {distinct[i] for i in order[: len(order) // 2]}
    return [phrase in first for phrase in phrases]
