"""One evaluation of a vector: every condition asked once, and what the answers come to.

Shape suffixes: N prompts, K controls.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from torch import Tensor

from patchclamp.evidence.bootstrap import bootstrap_mean, control_range, mean_if_any
from patchclamp.evidence.method import Outcome, Part, Progress, Result
from patchclamp.evidence.verdict import NO_INTERVAL, Interval, Verdict, judge
from patchclamp.forward import Edit, Generated
from patchclamp.tasks.behaviour import Behaviour, texts_of
from patchclamp.vectors.behave import Asking, Case, Kind
from patchclamp.vectors.choices import ChoiceShift, choice_shift
from patchclamp.vectors.detect import repetition
from patchclamp.vectors.match import PROMPTS, added, matched, random_directions
from patchclamp.vectors.measure import kl_on, perplexity_ratio, surprise, unrelated_texts
from patchclamp.vectors.search import Tried, projected_out
from patchclamp.vectors.vector import Ablation, Setting, SteeringVector

if TYPE_CHECKING:
    import altair
    import pandas

CONTROL_CASES = 12
"""Prompts on which random directions and other strengths are asked."""
CURVE = (-1.5, -1.0, -0.5, 0.5, 1.0, 1.5)
"""Strengths of the dose-response curve, as parts of the chosen ones; 0 is the base."""


class Answered(Part):
    """A test prompt and its answers."""

    prompt: str
    kind: Kind
    base: str
    added: str
    subtracted: str
    ablated: str


class Dose(Part):
    """One strength."""

    strength: float
    rate: Interval
    """Share of answers that show the behaviour: of plain prompts above 0, of showing ones below."""
    kl: float
    """On unrelated text, nats."""
    perplexity_ratio: float
    repetition: float


class Moved(Part):
    """One number each for adding, subtracting and projecting out; null where it was not done."""

    added: float | None
    subtracted: float | None
    ablated: float | None


class EvaluateResult(Result):
    """Rates of the behaviour, what they cost, and every answer."""

    name: str
    add: Setting | None
    """How the vector was added; null: no direction found within the bounds."""
    subtract: Setting | None
    ablate: Ablation | None
    """How it was projected out."""
    rate_base: Interval
    """On plain prompts, without the vector."""
    rate_added: Interval
    rate_random: Interval
    """Random directions added to plain prompts: mean, and the range of 95 % of such directions."""
    rate_base_showing: Interval
    """On showing prompts (of pairs: all), without the vector."""
    rate_subtracted: Interval
    rate_ablated: Interval
    rate_random_subtracted: Interval
    """Random directions subtracted on showing prompts."""
    kl_unrelated: Moved
    """On neutral text, nats a token."""
    perplexity_ratio: Moved
    """Of the answers under the unedited model, over its own answers."""
    repetition: Moved
    """Share of repeated word triples."""
    strength_curve: list[Dose]
    removal: Verdict | None
    """Whether subtracting removes the behaviour, against random directions."""
    choices: ChoiceShift | None
    """Of pairs: how the choice between the two answers moves, with the letters in both orders."""
    texts: list[Answered]
    left_out: dict[str, int]
    """Test prompts on which the unedited model did not do what they are there for."""
    tried: list[Tried]
    """What was tried on validation prompts, in the order of trying; empty where the settings were given."""

    def table(self) -> pandas.DataFrame:
        """The rates."""
        import pandas

        names = ("base", "added", "random", "base_showing", "subtracted", "ablated", "random_subtracted")
        return pandas.DataFrame([{"condition": n, **getattr(self, f"rate_{n}").model_dump()} for n in names])

    def chart(self) -> altair.TopLevelMixin:
        """Rates by condition, and the dose-response curve."""
        from patchclamp.charts.vectors import evaluate_chart

        return evaluate_chart(self)


class Ready(NamedTuple):
    """What an evaluation is made of."""

    vector: SteeringVector
    asking: Asking
    behaviour: Behaviour
    states: dict[str, Tensor]
    """Both sides' states at the sites that are used, for random directions."""
    tried: list[Tried]
    behaving: bool
    """Count only prompts on which the unedited model does what they are there for."""
    controls: int
    curve: bool
    seed: int


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
        random_added, random_subtracted = self._random("added", self.plain), self._random("subtracted", self.showing)
        rates = {
            name: self._rate(name, index)
            for name, index in (
                ("base", self.plain),
                ("added", self.plain),
                ("subtracted", self.showing),
                ("ablated", self.showing),
            )
        }
        info = self.vector.info
        result = EvaluateResult(
            name=info.name,
            add=info.add,
            subtract=info.remove,
            ablate=info.ablate,
            rate_base=rates["base"],
            rate_added=rates["added"],
            rate_random=_range(random_added),
            rate_subtracted=rates["subtracted"],
            rate_base_showing=self._rate("base", self.showing),
            rate_ablated=rates["ablated"],
            rate_random_subtracted=_range(random_subtracted),
            kl_unrelated=self._kl(),
            perplexity_ratio=self._perplexity(),
            repetition=self._repetition(),
            strength_curve=self._curve() if self.ready.curve else [],
            removal=self._judge("subtracted", self.showing, random_subtracted),
            choices=self._choices(),
            texts=self._texts(),
            left_out=self.left_out,
            tried=self.ready.tried,
        )
        return result, self._judge("added", self.plain, random_added)

    def _rate(self, name: str, index: np.ndarray) -> Interval:
        return mean_if_any(self.shown[name][index], self.ready.seed) if name in self.shown else NO_INTERVAL

    def _random(self, name: str, index: np.ndarray) -> np.ndarray:
        """Whether each prompt shows the behaviour under each control direction, [K,N]; [0,0] where nothing was done."""
        setting = self.vector.info.add if name == "added" else self.vector.info.remove
        if setting is None or not len(index):
            return np.zeros((0, 0), dtype=bool)
        states = {site: self.ready.states[site] for site in setting.sites}
        directions = random_directions(states, self.ready.controls, self.ready.seed)
        cases = [self.cases[i] for i in index[:CONTROL_CASES]]
        prompts = [case.prompt for case in cases]
        target = float(kl_on(self.model, prompts[:PROMPTS], [self.edits[name] or []]).mean())
        strengths = matched(self.model, directions, target, setting.strength, prompts, setting.positions)
        pairs = self.progress.track(
            list(zip(directions, strengths, strict=True)), f"random directions, {name}", len(directions)
        )
        return np.array([self.asking.rate(cases, added(one, strength, setting.positions)) for one, strength in pairs])

    def _judge(self, name: str, index: np.ndarray, control_KN: np.ndarray) -> Verdict | None:
        adding = name == "added"
        claim = (
            f"{'adding' if adding else 'subtracting'} the {self.vector.info.name} vector makes the model show the "
            f"behaviour {'more' if adding else 'less'} often (share of {len(index)} "
            f"{'plain' if adding or self.same else 'showing'} prompts, against {len(control_KN)} random directions "
            f"that move the model as far, on {min(len(index), CONTROL_CASES)} of them)"
        )
        if not len(index):
            return None
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
        found = []
        texts = unrelated_texts(self.model)
        for factor in self.progress.track(CURVE, "strengths", len(CURVE)):
            setting = self.vector.info.add if factor > 0 else self.vector.info.remove
            index = (self.plain if factor > 0 else self.showing)[:CONTROL_CASES]
            if setting is None or not len(index):
                continue
            strength = setting.strength * abs(factor)
            edits = self.vector.edits(setting.model_copy(update={"strength": strength}))
            cases = [self.cases[i] for i in index]
            prompts = [case.prompt for case in cases]
            said = self.asking.answers(cases, edits)
            base: list[Generated] = [self.said["base"][i] for i in index]
            ratio = perplexity_ratio(surprise(self.model, prompts, said), surprise(self.model, prompts, base))
            found.append(
                Dose(
                    strength=strength,
                    rate=bootstrap_mean(self.asking.shown(cases, said, edits).astype(float), self.ready.seed),
                    kl=float(kl_on(self.model, texts, [edits]).mean()),
                    perplexity_ratio=ratio,
                    repetition=float(np.mean([repetition(answer.text) for answer in said])),
                )
            )
        return sorted(found, key=lambda dose: dose.strength)

    def _choices(self) -> ChoiceShift | None:
        pairs = [case.pair for case in self.cases if case.pair is not None]
        conditions = {name: edits for name, edits in self.edits.items() if edits is not None and name != "ablated"}
        return choice_shift(self.asking, pairs, conditions, self.ready.seed) if pairs else None

    def _texts(self) -> list[Answered]:
        texts = texts_of([case.asked for case in self.cases])
        return [
            Answered(
                prompt=text,
                kind=case.kind,
                **{name: self.said[name][i].text if name in self.said else "" for name in self.edits},
            )
            for i, (text, case) in enumerate(zip(texts, self.cases, strict=True))
        ]


def _range(shown_KN: np.ndarray) -> Interval:
    return control_range(shown_KN.mean(1)) if shown_KN.size else NO_INTERVAL
