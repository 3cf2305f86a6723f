"""The prompts of a circuit: pairs to look for it on, and others to test it on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, model_validator

from patchclamp.circuits.graph import Graph
from patchclamp.circuits.references import Ablation
from patchclamp.circuits.runs import Runs
from patchclamp.errors import PromptError, SpecError
from patchclamp.evidence.cli_hints import Positional
from patchclamp.evidence.method import Part, Spec
from patchclamp.forward import Plan, Readout
from patchclamp.tasks.circuit import CircuitPair, circuit_task
from patchclamp.tasks.files import DataFile
from patchclamp.tasks.read import read_rows
from patchclamp.tasks.rows import PairRow

if TYPE_CHECKING:
    from patchclamp.forward import Model
    from patchclamp.model.tokens import Encoded

SOLVED = 0.6
"""Share of pairs that a model has to answer rightly for its circuit to mean something."""
LEAST_SPAN = 0.1
"""Of the mean logit difference, between the whole model and every edge cut."""
FEWEST = 4
LAST, REST = "last", "other words"
"""Tokens without a role."""


class PairsSpec(Spec):
    """A task, or a file of pairs."""

    task: Annotated[str | None, Positional()] = None
    """A task that comes along: ioi, ioi-others, greater-than, pronoun, agreement, capital, induction, docstring."""
    pairs: DataFile | None = None
    """Or a file of pairs: rows with clean, corrupted, answer and distractor."""
    prompts: int = Field(16, ge=FEWEST)
    """Pairs to look on."""
    templates: int = Field(2, ge=1)
    """On how many of the task's templates to look; the others are for testing."""
    heldout: int = Field(16, ge=FEWEST)
    """Pairs to test on, the same templates with other combinations of words; as many in templates not looked on."""

    @property
    def what(self) -> str:
        """The task in a word."""
        return self.task or Path(self.pairs or "").name

    @model_validator(mode="after")
    def _one_of_both(self) -> PairsSpec:
        if (self.task is None) == (self.pairs is None):
            raise ValueError("give either a task, e.g. ioi, or a file of pairs")
        return self


class TaskSpec(PairsSpec):
    """A task that the model should be able to do."""

    anyway: bool = False
    """Go on even if the model answers fewer than 60 % of the pairs rightly."""


class GraphSpec(TaskSpec):
    """Which edges, and what they carry once cut."""

    ablation: Ablation = "resample"
    """What a cut edge carries: what it carries on the corrupted prompt; the mean of that; nothing."""
    grouped: bool = True
    """Keys and values are the model's own, one for each key/value head; otherwise each query head has its own copies,
    as in much of the literature."""


class PromptPair(Part):
    """One pair of prompts."""

    clean: str
    corrupted: str
    answer: str
    distractor: str
    roles: dict[str, tuple[int, int]] = Field(default_factory=dict)
    """Where in `clean` the words stand that play a part: first character, and the one behind the last."""


@dataclass(frozen=True)
class ReadyPair:
    """A pair as token ids."""

    pair: CircuitPair
    clean: tuple[int, ...]
    corrupted: tuple[int, ...]
    choice: tuple[int, int]
    roles: dict[str, tuple[int, ...]]
    """The tokens of the words that play a part; of a file's pair those in which its prompts differ."""

    def numbered(self, names: Sequence[str]) -> list[int]:
        """By token the number of its role among `names`, of which the last two are the last token and all others."""
        number = [len(names) - 1] * len(self.clean)
        number[-1] = len(names) - 2
        for name, tokens in self.roles.items():
            for token in tokens if name in names else ():
                number[token] = names.index(name)
        return number


@dataclass(frozen=True)
class Material:
    """Pairs in three parts."""

    search: list[ReadyPair]
    heldout: list[ReadyPair]
    """The same templates, other combinations of words."""
    others: list[ReadyPair]
    """Templates that were not looked on; none of a file's."""
    skipped: int
    """Pairs whose prompts do not match token by token in this model's tokens, or whose answers begin alike; of a file
    those that come again."""


def material(model: Model, spec: PairsSpec) -> Material:
    """The pairs that a spec asks for. SpecError if too few of them suit the model's tokens, and for a file's row that
    does not."""
    if spec.pairs is not None:
        return _of_file(model, spec)
    task = circuit_task(spec.task or "")
    if spec.templates > len(task.templates):
        raise SpecError(f"{task.name} has {len(task.templates)} templates, not {spec.templates}")
    first, rest = task.templates[: spec.templates], task.templates[spec.templates :]
    every, skipped = _suiting(model, task.pairs(3 * (spec.prompts + spec.heldout), spec.seed, first))
    search, heldout = every[: spec.prompts], every[spec.prompts : spec.prompts + spec.heldout]
    others, more = (_suiting(model, task.pairs(3 * spec.heldout, spec.seed + 1, rest)) if rest else ([], 0))
    if len(search) < spec.prompts or len(heldout) < FEWEST:
        raise SpecError(f"{task.name}: only {len(every)} pairs suit this model's tokens, {spec.prompts} were asked for "
                        f"to look on and {spec.heldout} to test on")
    return Material(search, heldout, others[: spec.heldout], skipped + more)


def _of_file(model: Model, spec: PairsSpec) -> Material:
    assert spec.pairs is not None
    rows = read_rows(spec.pairs, PairRow)
    given = [CircuitPair(row.clean, row.corrupted, row.answer, row.distractor) for row in rows]
    ready = []
    for number, pair in enumerate(given, 1):
        try:
            ready.append(make_ready(model, pair))
        except PromptError as error:
            raise SpecError(f"{spec.pairs}, row {number}: {error}") from error
    different = list({frozenset((one.clean, one.corrupted)): one for one in reversed(ready)}.values())[::-1]
    if len(different) < 2 * FEWEST:
        raise SpecError(f"{spec.pairs} has {len(different)} different pairs; {FEWEST} are needed to look on and "
                        f"{FEWEST} to test on")
    n = min(spec.prompts, len(different) // 2)
    return Material(different[:n], different[n : n + spec.heldout], [], len(ready) - len(different))


def _suiting(model: Model, pairs: Iterable[CircuitPair]) -> tuple[list[ReadyPair], int]:
    found, skipped = [], 0
    for pair in pairs:
        try:
            found.append(make_ready(model, pair))
        except PromptError:
            skipped += 1
    return found, skipped


def make_ready(model: Model, pair: CircuitPair) -> ReadyPair:
    """A pair as token ids, its answers as their first tokens. PromptError if the prompts are not equally long or the
    answers begin alike."""
    clean, corrupted = model.encode(pair.clean), model.encode(pair.corrupted)
    if len(clean) != len(corrupted):
        raise PromptError(f"the clean prompt has {len(clean)} tokens and the corrupted one {len(corrupted)}, but every "
                          f"token's value has to find its counterpart. Clean: {list(clean.pieces)}; corrupted: "
                          f"{list(corrupted.pieces)}")
    if clean.ids == corrupted.ids:
        raise PromptError(f"clean and corrupted are the same tokens: {pair.clean!r}")
    answer, distractor = _first_token(model, pair.answer), _first_token(model, pair.distractor)
    if answer == distractor:
        raise PromptError(f"{pair.answer!r} and {pair.distractor!r} begin with the same token {model.say(answer)!r}, "
                          "whose logit says nothing about which of them it is")
    roles = {name: _tokens_of(clean, pair.clean, place) for name, place in pair.roles.items()}
    if any(_tokens_of(corrupted, pair.corrupted, place) != roles[name] for name, place in pair.counterparts.items()):
        raise PromptError(f"the words that play a part do not stand at the same tokens in {pair.clean!r} and "
                          f"{pair.corrupted!r}")
    differs = tuple(i for i, (a, b) in enumerate(zip(clean.ids, corrupted.ids, strict=True)) if a != b)
    return ReadyPair(pair, clean.ids, corrupted.ids, (answer, distractor), roles or {"what differs": differs})


def _tokens_of(encoded: Encoded, text: str, place: tuple[int, int]) -> tuple[int, ...]:
    """The tokens of the characters of a place."""
    first, behind = place
    if not 0 <= first < behind <= len(text):
        raise PromptError(f"characters {first} to {behind} are not in {text!r}")
    return tuple(range(encoded.token_ending(text, first + 1), encoded.token_ending(text, behind) + 1))


def _first_token(model: Model, text: str) -> int:
    ids = model.tokenizer.encode(text, add_special_tokens=False)
    if not ids:
        raise PromptError(f"the answer {text!r} has no tokens")
    return int(ids[0])


def role_names(pairs: Sequence[ReadyPair]) -> list[str]:
    """What tokens can be in some pairs: the roles, the last token, all others."""
    return [*dict.fromkeys(name for pair in pairs for name in pair.roles), LAST, REST]


def runs_of(
    model: Model, graph: Graph, pairs: Sequence[ReadyPair], ablation: Ablation = "resample",
    names: Sequence[str] | None = None,
) -> Runs:
    """The pairs, run; their roles are numbered as in `names`, or as `role_names` has them."""
    names = names or role_names(pairs)
    return Runs(model, graph, [p.clean for p in pairs], [p.corrupted for p in pairs], [p.choice for p in pairs],
                ablation, [p.numbered(names) for p in pairs])


def require_preferred(m_B: Sequence[float], spec: TaskSpec) -> float:
    """Share of pairs whose logit difference m is above 0: whose answer is likelier than the distractor. SpecError if it
    is below `SOLVED`."""
    share = sum(m > 0 for m in m_B) / len(m_B)
    if share < SOLVED and not spec.anyway:
        raise SpecError(f"the model answers {share:.0%} of the pairs of {spec.what} rightly, and how it does what it "
                        f"cannot do means nothing ({SOLVED:.0%} are asked for; --anyway goes on)")
    return share


def logit_differences(model: Model, pairs: Sequence[ReadyPair], corrupted: bool = False) -> list[float]:
    """m of the clean prompts, or of the corrupted ones."""
    plan = Plan.of([(pair.corrupted if corrupted else pair.clean, [], [Readout.logit_difference(*pair.choice)])
                    for pair in pairs])
    return [float(values[0]) for values in model.execute(plan)]


def require_solved(runs: Runs, spec: TaskSpec) -> float:
    """The same, and SpecError if the prompts do not differ in what they say about the answer."""
    share = require_preferred(runs.clean_B.tolist(), spec)
    require_span(runs, "prompts")
    return share


def require_span(runs: Runs, which: str) -> None:
    """SpecError if the prompts do not differ in what they say about the answer."""
    if runs.span < LEAST_SPAN:
        raise SpecError(f"the mean logit difference is {float(runs.clean_B.mean()):.2f} on the clean {which} and "
                        f"{float(runs.corrupted_B.mean()):.2f} with every edge cut: there is nothing that a circuit "
                        "could carry")


def example_pairs(pairs: Sequence[ReadyPair], n: int | None = None) -> list[PromptPair]:
    """The first pairs in words."""
    return [PromptPair(clean=p.pair.clean, corrupted=p.pair.corrupted, answer=p.pair.answer,
                       distractor=p.pair.distractor, roles=p.pair.roles) for p in islice(pairs, n)]
