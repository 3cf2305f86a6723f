"""One evaluation of a vector: every condition asked once, and what the answers come to.

Shape suffixes: N prompts, K controls.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from patchclamp.evidence.bootstrap import bootstrap_mean, control_range, mean_if_any
from patchclamp.evidence.method import Outcome, Progress
from patchclamp.evidence.rater import Rater
from patchclamp.evidence.recognise import repetition
from patchclamp.evidence.verdict import NO_INTERVAL, Interval, Verdict, judge
from patchclamp.evidence.written import kl_on, perplexity_ratio, surprise, unrelated_texts
from patchclamp.forward import Edit
from patchclamp.tasks.behaviour import Behaviour, texts_of
from patchclamp.vectors.behave import Asking, Case
from patchclamp.vectors.choices import ChoiceShift, choice_shift
from patchclamp.vectors.choose import Choice
from patchclamp.vectors.evaluated import Answered, Dose, EvaluateResult, Moved
from patchclamp.vectors.match import control_edits
from patchclamp.vectors.rated import RatedCondition, rated
from patchclamp.vectors.search import projected_out
from patchclamp.vectors.vector import SteeringVector

CONTROL_CASES = 12
"""Prompts on which random directions and other strengths are asked."""
CURVE = (-1.5, -1.0, -0.5, 0.5, 1.0, 1.5)
"""Strengths of the dose-response curve, as parts of the chosen ones; 0 is the base."""


class Ready(NamedTuple):
    """What an evaluation is made of."""

    vector: SteeringVector
    asking: Asking
    behaviour: Behaviour
    states: dict[str, Tensor]
    """States within either side at the sites that are used, for random directions."""
    choice: Choice
    """What was tried on validation prompts."""
    behaving: bool
    """Count only prompts on which the unedited model does what they are there for."""
    controls: int
    curve: bool
    seed: int
    rater: Rater | None
    concept: str
    """What the rater looks for."""


class Control(NamedTuple):
    """What random directions do."""

    shown: np.ndarray
    """Whether prompts show the behaviour under each, [K,N]: some of them under the first, the next under the second,
    and so on round all of them, so that together they are asked the same prompts as the vector."""
    said: dict[int, str]
    """Case -> its answer under the first direction it was asked under."""


NO_CONTROL = Control(np.zeros((0, 0), dtype=bool), {})


class Proof:
    """One evaluation: every condition asked once."""

    def __init__(
        self,
        ready: Ready,
        plain: list[Case],
        showing: list[Case],
        progress: Progress,
    ) -> None:
        self.ready, self.progress = ready, progress
        self.left_out = {"plain": 0, "showing": 0}
        self.model, self.asking, self.vector = ready.asking.model, ready.asking, ready.vector
        info = ready.vector.info
        self.edits: dict[str, list[Edit] | None] = {
            "base": [],
            "added": self.vector.edits(info.add) if info.add else None,
            "subtracted": self.vector.edits(info.remove) if info.remove else None,
            "ablated": projected_out(self.model, self.vector, info.ablate) if info.ablate else None,
        }
        self.same = [c.asked for c in plain] == [c.asked for c in showing]
        self.cases = plain if self.same else plain + showing
        self.said = {
            name: self.asking.answers(self.cases, edits, progress=progress, description=f"answering, {name}")
            for name, edits in self.edits.items()
            if edits is not None
        }
        self.shown = {
            name: self.asking.shown(self.cases, said, self.edits[name] or ()) for name, said in self.said.items()
        }
        self.plain, self.showing = self._sides(len(plain))

    def _sides(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        """Indices of the prompts that count on either side."""
        everything = np.arange(len(self.cases))
        if self.same:
            return everything, everything
        plain, showing = everything[:n], everything[n:]
        if self.ready.behaving:
            base = self.shown["base"]
            kept = plain[~base[plain]], showing[base[showing]]
            self.left_out = {"plain": len(plain) - len(kept[0]), "showing": len(showing) - len(kept[1])}
            return kept
        return plain, showing

    def outcome(self) -> Outcome:
        """The result, and the verdict on adding."""
        random = {
            "added": self._random("added", self.plain),
            "subtracted": self._random("subtracted", self.showing),
        }
        info = self.vector.info
        texts = self._texts(random)
        ratings = self._rated(texts)
        result = EvaluateResult(
            name=info.name,
            add=info.add,
            subtract=info.remove,
            ablate=info.ablate,
            rate_base=self._rate("base", self.plain),
            rate_added=self._rate("added", self.plain),
            rate_random=_range(random["added"]),
            rate_base_showing=self._rate("base", self.showing),
            rate_subtracted=self._rate("subtracted", self.showing),
            rate_ablated=self._rate("ablated", self.showing),
            rate_random_subtracted=_range(random["subtracted"]),
            kl_unrelated=self._kl(),
            perplexity_ratio=self._perplexity(),
            repetition=self._repetition(),
            strength_curve=self._curve() if self.ready.curve else [],
            removal=self._judge("subtracted", self.showing, random["subtracted"].shown),
            choices=self._choices(),
            ratings=ratings,
            texts=texts,
            left_out=self.left_out,
            tried=self.ready.choice.tried,
            position=info.position,
            positions=self.ready.choice.positions,
        )
        return result, self._judge("added", self.plain, random["added"].shown)

    def _rate(self, name: str, index: np.ndarray) -> Interval:
        return mean_if_any(self.shown[name][index], self.ready.seed) if name in self.shown else NO_INTERVAL

    def _random(self, name: str, index: np.ndarray) -> Control:
        """Some prompts under every control direction, others under each."""
        setting = self.vector.info.add if name == "added" else self.vector.info.remove
        if setting is None or not len(index):
            return NO_CONTROL
        states = {site: self.ready.states[site] for site in setting.sites}
        prompts, edits = [self.cases[i].prompt for i in index], self.edits[name] or []
        settings = control_edits(self.model, states, setting, edits, prompts, self.ready.controls, self.ready.seed)
        n = min(len(index), CONTROL_CASES)
        asked = [int(index[(k * n + j) % len(index)]) for k in range(len(settings)) for j in range(n)]
        cases, each = [self.cases[i] for i in asked], [one for one in settings for _ in range(n)]
        if not self.asking.reads_answers:
            return Control(self.asking.shown(cases, None, each).reshape(len(settings), n), {})
        described = f"random directions, {name}"
        said = self.asking.answers(cases, each, progress=self.progress, description=described)
        first = {i: answer.text for i, answer in reversed(list(zip(asked, said, strict=True)))}
        return Control(self.asking.shown(cases, said).reshape(len(settings), n), first)

    def _judge(self, name: str, index: np.ndarray, control_KN: np.ndarray) -> Verdict | None:
        if not len(index):
            return None
        adding = name == "added"
        against = (
            f", against {len(control_KN)} random directions that move the model as far, each on "
            f"{min(len(index), CONTROL_CASES)} of them"
        )
        claim = (
            f"{'adding' if adding else 'subtracting'} the {self.vector.info.name} vector makes the model show the "
            f"behaviour {'more' if adding else 'less'} often (share of {len(index)} "
            f"{'plain' if adding or self.same else 'showing'} prompts{against if len(control_KN) else ''})"
        )
        if name not in self.shown:
            base = self._rate("base", index)
            return Verdict(
                outcome="not supported",
                effect=base,
                control=base,
                reason=(
                    "No direction found: no block and strength within the bounds changes more validation answers than "
                    f"chance would, which does not support that {claim}."
                ),
            )
        return judge(
            self.shown[name][index].astype(float),
            control_KN.astype(float),
            claim=claim,
            direction="greater" if adding else "less",
            against="distribution",
            share=True,
            seed=self.ready.seed,
        )

    def _each(self, measure: Any) -> Moved:
        return Moved(
            **{name: measure(name) if name in self.said else None for name in ("added", "subtracted", "ablated")}
        )

    def _kl(self) -> Moved:
        texts = unrelated_texts(self.model)
        return self._each(lambda name: float(kl_on(self.model, texts, [self.edits[name] or []]).mean()))

    def _side(self, name: str) -> np.ndarray:
        return self.plain if name == "added" else self.showing

    def _perplexity(self) -> Moved:
        def measure(name: str) -> float | None:
            index = self._side(name)
            if not len(index):
                return None
            prompts = [self.cases[i].prompt for i in index]
            edited, base = (surprise(self.model, prompts, [self.said[n][i] for i in index]) for n in (name, "base"))
            return perplexity_ratio(edited, base)

        return self._each(measure)

    def _repetition(self) -> Moved:
        return self._each(
            lambda name: (
                float(np.mean([repetition(self.said[name][i].text) for i in self._side(name)]))
                if len(self._side(name))
                else None
            )
        )

    def _curve(self) -> list[Dose]:
        """What other strengths do, each on the first prompts of its side."""
        doses = []
        for factor in CURVE:
            setting = self.vector.info.add if factor > 0 else self.vector.info.remove
            index = (self.plain if factor > 0 else self.showing)[:CONTROL_CASES]
            if setting is not None and len(index):
                strength = setting.strength * abs(factor)
                doses.append((strength, index, self.vector.edits(setting.model_copy(update={"strength": strength}))))
        rows = [(self.cases[i], edits) for _, index, edits in doses for i in index]
        cases, each = [case for case, _ in rows], [edits for _, edits in rows]
        said = self.asking.answers(cases, each, progress=self.progress, description="other strengths")
        shown = self.asking.shown(cases, said, each).astype(float)
        costs = kl_on(self.model, unrelated_texts(self.model), [edits for _, _, edits in doses]).mean(1)
        found, start = [], 0
        for (strength, index, _), kl in zip(doses, costs, strict=True):
            part = slice(start, start := start + len(index))
            prompts, base = [case.prompt for case in cases[part]], [self.said["base"][i] for i in index]
            ratio = perplexity_ratio(surprise(self.model, prompts, said[part]), surprise(self.model, prompts, base))
            found.append(
                Dose(
                    strength=strength,
                    rate=bootstrap_mean(shown[part], self.ready.seed),
                    kl=float(kl),
                    perplexity_ratio=ratio,
                    repetition=float(np.mean([repetition(answer.text) for answer in said[part]])),
                )
            )
        return sorted(found, key=lambda dose: dose.strength)

    def _choices(self) -> ChoiceShift | None:
        pairs = [case.pair for case in self.cases if case.pair is not None]
        conditions = {name: edits for name, edits in self.edits.items() if edits is not None and name != "ablated"}
        return choice_shift(self.asking, pairs, conditions, self.ready.seed) if pairs else None

    def _texts(self, random: dict[str, Control]) -> list[Answered]:
        prompts = texts_of([case.asked for case in self.cases])
        return [
            Answered(
                prompt=prompt,
                kind=case.kind,
                **{name: self.said[name][i].text if name in self.said else None for name in self.edits},  # type: ignore[arg-type]
                random_added=random["added"].said.get(i),
                random_subtracted=random["subtracted"].said.get(i),
            )
            for i, (prompt, case) in enumerate(zip(prompts, self.cases, strict=True))
        ]

    def _rated(self, texts: list[Answered]) -> list[RatedCondition]:
        """What the rater says of every condition, on the prompts that count."""
        if self.ready.rater is None:
            return []
        counted = {"plain": [texts[i] for i in self.plain], "showing": [texts[i] for i in self.showing]}
        return rated(self.ready.rater, self.ready.concept, counted, self.ready.seed, self.progress)


def _range(control: Control) -> Interval:
    return control_range(control.shown.mean(1), share=True) if control.shown.size else NO_INTERVAL
