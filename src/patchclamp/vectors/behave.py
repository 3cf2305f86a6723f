"""Does the model show the behaviour? Prompts of a test asked under edits, and the answers judged.

Shape suffixes: N prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from patchclamp.evidence.method import Progress
from patchclamp.evidence.recognise import recognise
from patchclamp.evidence.written import answers
from patchclamp.forward import Edit, Generated, Model, Plan, Readout
from patchclamp.forward.asked import as_prompt
from patchclamp.forward.calls import edits_by_prompt
from patchclamp.tasks.behaviour import Asked, Examples, Recognised
from patchclamp.tasks.rows import BehaviourRow
from patchclamp.vectors.states import answered

Kind = Literal["plain", "showing"]


class Case(NamedTuple):
    """One prompt of a test."""

    asked: Asked
    prompt: Any
    """As the model reads it."""
    kind: Kind
    """Whether it is meant to be answered with the behaviour; questions of pairs count as plain."""
    pair: BehaviourRow | None


class Asking(NamedTuple):
    """How a behaviour is asked for and recognised."""

    model: Model
    detector: Recognised
    format: str
    max_new_tokens: int = 48

    @property
    def reads_answers(self) -> bool:
        """Whether the behaviour is told from answers, which then have to be generated."""
        return self.detector.kind != "choice"

    def listed(self, asked: Sequence[Asked], kind: Kind) -> list[Case]:
        """Prompts of one kind."""
        return [Case(one, as_prompt(self.model, one, self.format), kind, None) for one in asked]

    def cases(self, examples: Examples) -> list[Case]:
        """The prompts of a set of examples."""
        if examples.pairs:
            return [
                Case(p.question, as_prompt(self.model, p.question, self.format), "plain", p) for p in examples.pairs
            ]
        return self.listed(examples.plain, "plain") + self.listed(examples.showing, "showing")

    def answers(
        self,
        cases: Sequence[Case],
        edits: Sequence[Edit] | Sequence[Sequence[Edit]] = (),
        n: int | None = None,
        progress: Progress | None = None,
        description: str = "answering",
    ) -> list[Generated]:
        """What the model says to each case, under the same edits or each under its own."""
        prompts = [case.prompt for case in cases]
        return answers(self.model, prompts, edits, n or self.max_new_tokens, progress, description)

    def shown(
        self,
        cases: Sequence[Case],
        said: Sequence[Generated] | None,
        edits: Sequence[Edit] | Sequence[Sequence[Edit]] = (),
    ) -> np.ndarray:
        """Whether each case shows the behaviour, [N]: by its answer, or by which of a pair's answers is likelier."""
        if not self.reads_answers:
            return self.leaning(cases, edits) > 0
        assert said is not None
        return recognise(self.detector, [answer.text for answer in said])

    def rate(self, cases: Sequence[Case], edits: Sequence[Edit] = ()) -> np.ndarray:
        """`shown`, asking as much as is needed for it, [N]."""
        shown_N: np.ndarray = self.rates(cases, [edits])[0]
        return shown_N

    def rates(
        self,
        cases: Sequence[Case],
        settings: Sequence[Sequence[Edit]],
        n: int | None = None,
        progress: Progress | None = None,
        description: str = "answering",
    ) -> np.ndarray:
        """Whether each case shows the behaviour under each of several sets of edits, [settings,N], asked together."""
        rows, edits = [*cases] * len(settings), [one for one in settings for _ in cases]
        if self.reads_answers:
            shown = self.shown(rows, self.answers(rows, edits, n, progress, description))
        else:
            shown = self.leaning(rows, edits) > 0
        return shown.reshape(len(settings), len(cases))

    def leaning(
        self, cases: Sequence[Case], edits: Sequence[Edit] | Sequence[Sequence[Edit]] = ()
    ) -> np.ndarray:
        """Mean log-probability a token of the answer that shows the behaviour minus that of the other, nats, [N]."""
        rows = []
        for case, own in zip(cases, edits_by_prompt(edits, len(cases)), strict=True):
            assert case.pair is not None
            for answer in (case.pair.answer_matching_behavior, case.pair.answer_not_matching_behavior):
                prompt, positions = answered(self.model, case.asked, answer, self.format)
                rows.append((prompt, own, [Readout.loss(positions)]))
        losses = np.array([float(loss) for (loss,) in self.model.execute(Plan.of(rows))]).reshape(-1, 2)
        return losses[:, 1] - losses[:, 0]
