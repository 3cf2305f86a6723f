"""What is a neuron, or a feature, for, in words: an explanation, and whether it holds on text it was not made from.

Two explanations are made from one half of the windows and scored on the other half (`scoring`): the n-grams the neuron
fires at (`rules`), and, if a language model is at hand, one line by that model (`inwords`). Beside them stand the
scores of other neurons' explanations on the same windows. Most neurons do several things at once (Elhage et al. 2022,
arXiv 2209.10652; Bills et al. 2023), and then no short explanation scores well.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import numpy as np
from pydantic import Field, model_validator

from patchclamp.corpus.found import Found, TextSpec, Window, check_unit, read_text
from patchclamp.corpus.rules import Rule, learn
from patchclamp.corpus.scoring import Answers, Explanation, Score, Trial, active_from, answers, one_each, trial
from patchclamp.corpus.shown import UnitTexts, texts_of
from patchclamp.corpus.table import QUANTILES
from patchclamp.errors import ModelError, SpecError
from patchclamp.evidence.bootstrap import bootstrap_mean, control_range
from patchclamp.evidence.cli_hints import Positional
from patchclamp.evidence.controls import random_units
from patchclamp.evidence.endpoint import LONGEST, Asked, Endpoint
from patchclamp.evidence.method import Outcome, Part, Progress, Result, method
from patchclamp.evidence.passage import Passage
from patchclamp.evidence.verdict import NO_INTERVAL, Interval, Verdict, judge
from patchclamp.forward import Model, Site
from patchclamp.model.cache import cache_dir
from patchclamp.neurons.inwords import explain as explained_by
from patchclamp.neurons.local import LocalModel
from patchclamp.neurons.memory import Memory, memory
from patchclamp.tasks.files import NAMES_A_FILE, DataFile

if TYPE_CHECKING:
    import altair
    import pandas

CLEAN = 0.7
"""Mean of detection and fuzzing below which an explanation is no clean one, whatever others' score."""
SILENT = 0.5
"""Share of questions without a usable answer above which a language model's explanation does not count."""
A_TENTH = 2
KEPT = 40
"""Top windows that are looked at, and as many random ones; of the neurons beside it half of them."""
ASKED_ABOUT = 3
"""Other neurons that a language model explains too."""
MEMORY_PLACES, MEMORY_CONTROLS = 8, 10


class ExplainSpec(TextSpec):
    """Which neuron, on what text, explained by whom."""

    site: Annotated[Site, Positional()]
    """The neuron or feature, e.g. neuron.19.1044 or feature.15.88."""
    context: int = Field(24, ge=8, le=64)
    """Tokens of a window that are shown to the explainer and scored."""
    endpoint: str | None = None
    """Base of an OpenAI-compatible API, e.g. http://localhost:11434/v1, whose model explains and simulates too."""
    endpoint_model: str | None = None
    """That model's name there."""
    timeout: float = Field(120.0, gt=0, le=86_400)
    """Seconds to wait for a reply."""
    retries: int = Field(5, ge=0, le=20)
    """How often a request that may still succeed (no connection, too many requests) is made again, waiting longer each
    time."""
    thinking: bool = False
    """The endpoint's model thinks before it answers; its replies may then be longer."""
    replies: DataFile | None = None
    """Where the model's replies are kept, so that a run that was cut off goes on; in the cache folder if left out."""
    local: Annotated[str, NAMES_A_FILE] | None = None
    """Instead of an endpoint: a Hugging Face model, id or folder, or an embedded one, to explain and simulate."""
    shown: int = Field(10, ge=3, le=50)
    """Windows the explanation is made from; the rule sees more."""
    scored: int = Field(20, ge=3)
    """At most so many windows of each kind on which a language model is tried; the rule is tried on all."""
    others: int = Field(10, ge=2, le=100)
    """Neurons of the same layer whose explanations are tried on this one's windows; of a language model's the first
    three."""

    @model_validator(mode="after")
    def _one_model(self) -> "ExplainSpec":
        if bool(self.endpoint) != bool(self.endpoint_model):
            raise ValueError("endpoint and endpoint_model belong together")
        if self.endpoint and self.local:
            raise ValueError("endpoint and local were both given; one model explains")
        return self


class Explained(Part):
    """One explanation and its scores on held-out windows."""

    by: str
    """`rule`: n-grams. Else the name of the language model."""
    text: str
    score: Score
    accuracy: Interval
    """Detection and fuzzing together."""
    others: list[str]
    """Some other neurons' explanations."""
    others_accuracy: Interval
    """Of other neurons' explanations on this neuron's windows: mean and 95 % range."""
    others_simulation: Interval
    clean: bool
    """Whether it is right clearly more often than others' and at least .7 of the time."""


class ExplainResult(Result):
    """The explanations of one neuron."""

    site: str
    explanations: list[Explained]
    threshold: float
    """Activation from which the neuron counts as active: its 99 % quantile, or what is above that of a neuron that is
    silent more often."""
    memory: Memory
    """What its weights say."""
    shown: list[Window]
    """Windows the explanations were made from."""
    heldout: int
    """Active held-out windows, and as many inactive ones."""
    source: str

    def table(self) -> "pandas.DataFrame":
        """One row an explanation."""
        import pandas

        return pandas.DataFrame([
            {"by": e.by, "explanation": e.text, "accuracy": e.accuracy.mean, "others' accuracy": e.others_accuracy.mean,
             "detection": e.score.detection.mean, "fuzzing": e.score.fuzzing.mean,
             "simulation": e.score.simulation.mean, "others' simulation": e.others_simulation.mean, "clean": e.clean}
            for e in self.explanations
        ])

    def chart(self) -> "altair.TopLevelMixin":
        """Scores of each explanation beside those of other neurons' explanations; what the weights write."""
        from patchclamp.charts.neurons import explain_chart

        return explain_chart(self)

    def passages(self) -> list[Passage]:
        """The windows the explanations were made from."""
        most = max((w.value for w in self.shown), default=0.0)
        return [Passage(f"{self.site}, where it is most active", f"{w.value:.3g}", tuple(w.tokens),
                        tuple(w.activations), most, w.at) for w in self.shown]


class Material(NamedTuple):
    """One neuron's windows in both halves."""

    shown: UnitTexts
    threshold: float

    @property
    def firing(self) -> list[Window]:
        """Windows it is active in, the strongest first."""
        return [w for w in one_each((*self.shown.top, *self.shown.tenths)) if w.value >= self.threshold]


@method("neurons.explain", spec=ExplainSpec, result=ExplainResult)
def explain(model: Model, spec: ExplainSpec, progress: Progress) -> Outcome:
    """Explain a neuron or a feature in words, and score the explanation on text it was not made from.

    The verdict is on the better of the two explanations, of n-grams and of a language model if one is asked: does it
    tell active from inactive passages and words more often than explanations of other neurons do, and in at least .7 of
    the cases? If not there is no clean explanation (polysemantic).
    """
    whole, unit = check_unit(model, spec.site)
    asked = _asked(spec)
    layer = whole.layer or 0
    drawn = random_units([(layer, unit)], model.anatomy.n_units(whole.place, layer), spec.others, spec.seed)
    units = [unit, *(group[0][1] for group in drawn)]
    found = read_text(model, spec, {whole: units}, KEPT, progress)
    own, trials = _prepared(model, spec, replace(whole, unit=unit), found, progress)
    others = [replace(whole, unit=one) for one in units[1:]]
    beside = {site: other for site in others if (other := _material(model, spec, site, found, progress))}
    materials = [own, *beside.values()]
    ways: list[list[Explanation]] = [[_rule(one) for one in materials]]
    if asked is not None:
        shown = [one.firing[: spec.shown] for one in materials[: 1 + ASKED_ABOUT]]
        by_model = explained_by(asked, shown, [one.threshold for one in materials], progress)
        if not by_model[0].text:
            raise ModelError(f"{asked.name} gave no explanation: its reply holds no words; take a model that follows "
                             "instructions")
        ways.append([one for one in by_model if one.text])
    cut = [trials, trials.cut(spec.scored)]
    tried = [[answers(one, some) for one in way] for way, some in zip(ways, cut, strict=False)]
    explanations = [_explained(way, some, asked, spec.seed) for way, some in zip(ways, tried, strict=True)]
    places = [(found.windows([w.window])[0][: w.position + 1], w.position) for w in trials.active[:MEMORY_PLACES]]
    result = ExplainResult(
        site=str(spec.site), explanations=explanations, threshold=own.threshold,
        memory=memory(model, spec.site, places, list(beside)[:MEMORY_CONTROLS], progress),
        shown=own.firing[: spec.shown], heldout=len(trials.active), source=found.where,
    )
    usable = [i for i, one in enumerate(explanations) if one.score.unanswered <= SILENT]
    best = max(usable, key=lambda i: explanations[i].accuracy.mean)
    verdict = _verdict(spec, explanations[best], tried[best])
    if len(usable) < len(explanations):
        last = explanations[-1]
        said = (f"{last.by} left {last.score.unanswered:.0%} of the questions without a usable answer and was not "
                "counted.")
        verdict = verdict.model_copy(update={"reason": f"{verdict.reason} {said}"})
    return result, verdict


def _asked(spec: ExplainSpec) -> Asked | None:
    if spec.local:
        return LocalModel(spec.local)
    if not (spec.endpoint and spec.endpoint_model):
        return None
    keep = Path(spec.replies) if spec.replies else cache_dir() / "replies.jsonl"
    endpoint = Endpoint(spec.endpoint, spec.endpoint_model, timeout=spec.timeout, retries=spec.retries, keep=keep,
                        extra=LONGEST if spec.thinking else 0, who="The explainer")
    endpoint.check()
    return endpoint


def _prepared(
    model: Model, spec: ExplainSpec, site: Site, found: Found, progress: Progress
) -> tuple[Material, Trial]:
    own = _material(model, spec, site, found, progress, is_own=True)
    if own is None:
        raise SpecError(f"{spec.site} is constant over {found.where}; nothing tells its windows apart, so there is "
                        "nothing to explain")
    held = texts_of(model, site, found, "held out", top=KEPT, tenth=A_TENTH, random_windows=KEPT,
                    context=spec.context, seed=spec.seed, progress=progress)
    return own, trial(held.top, held.tenths, held.random, own.threshold, spec.seed)


def _material(
    model: Model, spec: ExplainSpec, site: Site, found: Found, progress: Progress, is_own: bool = False
) -> Material | None:
    known = found.units(site.whole, [site.unit or 0])[0]
    if known.constant:
        return None
    kept = KEPT if is_own else KEPT // 2
    shown = texts_of(model, site, found, "shown", top=kept, tenth=A_TENTH if is_own else 1,
                     random_windows=kept, context=spec.context, seed=spec.seed, progress=progress)
    quantiles = dict(zip(QUANTILES, known.quantiles, strict=True))
    return Material(shown, active_from(quantiles[0.99], quantiles[0.5]))


def _rule(one: Material) -> Rule:
    return learn([*one.shown.top, *one.shown.tenths, *one.shown.random], one.threshold)


def _explained(way: Sequence[Explanation], tried: Sequence[Answers], asked: Asked | None, seed: int) -> Explained:
    own, others = tried[0], tried[1:]
    score = own.score(seed)
    accuracy = bootstrap_mean(own.correct, seed)
    by_others = [float(one.correct.mean()) for one in others]
    beside = control_range(by_others, share=True) if len(by_others) > 1 else NO_INTERVAL
    simulated = [one.score(seed).simulation.mean for one in others]
    simulated = [value for value in simulated if np.isfinite(value)]
    clean = accuracy.mean >= CLEAN and accuracy.low > beside.high and score.unanswered <= SILENT
    return Explained(
        by="rule" if way[0].by == "rule" else asked.name if asked else way[0].by, text=way[0].text, score=score,
        accuracy=accuracy, others=[one.text for one in way[1:4]], others_accuracy=beside,
        others_simulation=control_range(simulated) if len(simulated) > 1 else NO_INTERVAL, clean=bool(clean),
    )


def _verdict(spec: ExplainSpec, best: Explained, tried: Sequence[Answers]) -> Verdict:
    verdict = judge(
        tried[0].correct, np.array([float(one.correct.mean()) for one in tried[1:]]),
        direction="greater", against="distribution", share=True, seed=spec.seed,
        claim=f"{spec.site} is active on: {best.text} (detection and fuzzing on held-out text, against explanations of "
              "other neurons)")
    if best.clean or verdict.outcome == "inconclusive":
        return verdict
    said = verdict.reason[0].lower() + verdict.reason[1:]
    return verdict.model_copy(update={
        "outcome": "not supported", "reason": f"No clean explanation (polysemantic): {said}"})
