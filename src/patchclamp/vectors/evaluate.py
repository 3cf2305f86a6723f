"""Proving a vector: how often the model shows the behaviour with it and without it, beside random directions.

Found on training prompts, used as chosen on validation prompts, judged on test prompts that had no part in either:
added to prompts answered without the behaviour, subtracted and projected out on prompts answered with it. A random
direction of the same kind, stretched until it moves the model as far, shows what any push would do (`match.py`).

Arditi et al. 2024, arXiv 2406.11717; Rimsky et al. 2023, arXiv 2312.06681. Shape suffixes: N prompts, K controls.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field
from torch import Tensor

from patchclamp.errors import SpecError
from patchclamp.evidence.cli_hints import CommaList, Positional
from patchclamp.evidence.method import Outcome, Progress, method
from patchclamp.evidence.rater import Rater
from patchclamp.forward import Model
from patchclamp.forward.asked import auto_format
from patchclamp.tasks.behaviour import (
    Behaviour,
    BehaviourName,
    Recognised,
    parted,
    prompts_in,
    read_behaviour,
    read_examples,
)
from patchclamp.tasks.files import NAMES_A_FILE, DataFile
from patchclamp.vectors.behave import Asking, Case, Kind
from patchclamp.vectors.choose import Choice, choose_all
from patchclamp.vectors.directions import How
from patchclamp.vectors.evaluated import EvaluateResult
from patchclamp.vectors.find import found_vector
from patchclamp.vectors.match import within_sides
from patchclamp.vectors.proof import Proof, Ready
from patchclamp.vectors.search import ChoosingSpec
from patchclamp.vectors.source import (
    FindingSpec,
    Source,
    behaviour_for,
    hashes,
    is_pairs_file,
    read_detector,
)
from patchclamp.vectors.states import examples_of, states
from patchclamp.vectors.vector import Setting, SteeringVector, load_vector


class EvaluateSpec(ChoosingSpec):
    """Which vector to put to the test, and on which prompts."""

    what: Annotated[BehaviourName, Positional()]
    """A shipped behaviour (its vector is found, chosen and tested), a behaviour's .json file, a file of question/answer
    pairs (of which half are for finding, a quarter each for choosing and testing), or a saved vector."""
    plain: DataFile | None = None
    """Your own prompts that the model answers without the behaviour, in place of the test prompts. With `showing` they
    make a test of a vector that is not of a known behaviour: half of them to test on, a quarter to choose on, a quarter
    for random directions."""
    showing: DataFile | None = None
    """Your own prompts that the model answers with it, in place of the test prompts."""
    detector: Annotated[str, NAMES_A_FILE] | None = None
    """How the behaviour is recognised in an answer: refusal, choice, or a .json file of a detector (phrases, tokens,
    classifier, judge); by default the behaviour's own."""
    how: How = "mean"
    """The way of finding, unless a saved vector is given."""
    behaving: bool = True
    """Find and judge only on prompts on which the unedited model does what they are there for (pairs: all)."""
    sites: Annotated[tuple[str, ...], CommaList()] = ()
    """Use these sites instead of choosing on validation prompts."""
    strength: float | None = None
    """Strength at these sites, in standard deviations of projections over a neutral corpus."""
    controls: int = Field(20, ge=2, le=100)
    """Random directions."""
    curve: bool = True
    """Ask at several strengths as well."""
    limit: int | None = Field(None, ge=6)
    """At most this many prompts of each kind, to choose on and to test on."""
    judge: str | None = None
    """Address of an OpenAI-compatible endpoint whose model rates the answers too, e.g. http://127.0.0.1:8080/v1; the
    key is taken from OPENAI_API_KEY."""
    judge_model: str | None = None
    """The name of the model there."""
    concept: str | None = None
    """What that model looks for in an answer, in words; by default the behaviour's own description."""


@method("vectors.evaluate", spec=EvaluateSpec, result=EvaluateResult)
def evaluate_vector(model: Model, spec: EvaluateSpec, progress: Progress) -> Outcome:
    """Add, subtract and project out a vector on prompts it was not found with, and count how often the behaviour shows.

    The verdict asks whether adding it makes plain prompts show the behaviour more often than matched random directions
    do; `result.removal` asks the same of subtracting it. Beside them: KL on unrelated text, perplexity, repetition.
    """
    if (spec.strength is None) != (not spec.sites):
        raise SpecError("give sites and strength together, or neither to have them chosen")
    if spec.sites and spec.positions:
        raise SpecError("positions are chosen among with sites and strength; give either these or --positions")
    if (spec.judge is None) != (spec.judge_model is None):
        raise SpecError("give the judge's address and the name of its model together (--judge, --judge-model)")
    rater = Rater(spec.judge, spec.judge_model) if spec.judge and spec.judge_model else None
    if rater is not None:
        rater.check()
    vector, behaviour, spec = _subject(model, spec, progress)
    if rater is not None and not (spec.concept or vector.info.behaviour):
        raise SpecError("the judge has to know what to look for: describe the behaviour in words (--concept)")
    asking = Asking(model, behaviour.detector, behaviour.format, spec.max_new_tokens)
    plain, showing = _cases(asking, behaviour, vector, spec)
    vector, choice = _settled(vector, asking, behaviour, spec, progress)
    known = _states(model, vector, behaviour, progress)
    concept = spec.concept or behaviour.about
    ready = Ready(
        vector, asking, behaviour, known, choice, spec.behaving, spec.controls, spec.curve, spec.seed, rater, concept
    )
    return Proof(ready, plain, showing, progress).outcome()


def _subject(model: Model, spec: EvaluateSpec, progress: Progress) -> tuple[SteeringVector, Behaviour, EvaluateSpec]:
    """The vector, found if need be, the behaviour it is tested on, and the specification without the user's own prompts
    where these are the behaviour."""
    if not spec.what.endswith((".safetensors", ".gguf")):
        pairs = is_pairs_file(spec.what)
        behaviour = _of_pairs(model, spec) if pairs else _detected(read_behaviour(spec.what), spec)
        finding = FindingSpec(
            source=spec.what, how=spec.how, max_new_tokens=spec.max_new_tokens, seed=spec.seed,
            behaving=spec.behaving and not behaviour.train.pairs,
        )
        reference = None if pairs else spec.what
        source = Source(
            behaviour.name, behaviour.format, behaviour.detector, behaviour.train, behaviour, reference)
        return found_vector(model, source, finding, progress)[0], behaviour, spec
    vector = load_vector(spec.what, model)
    if vector.info.behaviour is not None or not (spec.plain and spec.showing):
        return vector, _detected(behaviour_for(vector), spec), spec
    if spec.detector is None:
        raise SpecError(
            f"the vector {vector.info.name!r} does not say how its behaviour is recognised: give --detector refusal, "
            "or a detector's file"
        )
    examples = read_examples(spec.showing, spec.plain)
    format = vector.info.format or auto_format(model)
    behaviour = parted(examples, vector.info.name, format, read_detector(spec.detector), (1, 1, 2), spec.seed)
    return vector, behaviour, spec.model_copy(update={"plain": None, "showing": None})


def _detected(behaviour: Behaviour, spec: EvaluateSpec) -> Behaviour:
    return behaviour.with_detector(read_detector(spec.detector)) if spec.detector else behaviour


def _of_pairs(model: Model, spec: EvaluateSpec) -> Behaviour:
    examples, name = read_examples(spec.what), Path(spec.what).stem
    detector = read_detector(spec.detector) if spec.detector else Recognised(kind="choice")
    return parted(examples, name, auto_format(model), detector, (2, 1, 1), spec.seed)


def _settled(
    vector: SteeringVector, asking: Asking, behaviour: Behaviour, spec: EvaluateSpec, progress: Progress
) -> tuple[SteeringVector, Choice]:
    """The vector with the settings asked for, its own, or those chosen on validation prompts."""
    if spec.strength is not None:
        vector.at(spec.sites)
        add, remove = (Setting(sites=spec.sites, strength=sign * spec.strength) for sign in (1, -1))
        ablate = vector.ablation(spec.sites[0], asking.model)
        return vector.with_info(add=add, remove=remove, ablate=ablate), Choice([], [])
    if spec.positions or (vector.info.add is None and vector.info.remove is None):
        cases = asking.cases(behaviour.validation)
        kinds = [[case for case in cases if case.kind == kind][: spec.limit] for kind in ("plain", "showing")]
        return choose_all(vector, asking, behaviour, [*kinds[0], *kinds[1]], spec, progress)
    return vector, Choice([], [])


def _states(model: Model, vector: SteeringVector, behaviour: Behaviour, progress: Progress) -> dict[str, Tensor]:
    """The training prompts' states within either side, where the vector is used: what random directions are made of."""
    settings = [setting for setting in (vector.info.add, vector.info.remove) if setting]
    sites = list(dict.fromkeys(site for setting in settings for site in setting.sites))
    if not sites:
        return {}
    sides = examples_of(model, behaviour.train, behaviour.format, vector.info.position)
    pairs = zip(*(states(model, side, sites, progress) for side in sides), strict=True)
    return {site: within_sides(*pair) for site, pair in zip(sites, pairs, strict=True)}


def _cases(
    asking: Asking, behaviour: Behaviour, vector: SteeringVector, spec: EvaluateSpec
) -> tuple[list[Case], list[Case]]:
    """Test prompts of both kinds; where there are only questions they are both."""
    if behaviour.test.pairs and spec.showing and not spec.plain:
        raise SpecError(f"the behaviour {behaviour.name!r} is tested on questions alone; give them with plain")
    if not asking.reads_answers and (spec.plain or spec.showing):
        raise SpecError(
            f"the behaviour {behaviour.name!r} is told from which of two answers is likelier, and prompts have none; "
            "give a detector that reads answers as well (--detector)"
        )
    asked = asking.cases(behaviour.test)
    own: tuple[tuple[Kind, str | None], ...] = (("plain", spec.plain), ("showing", spec.showing))
    for kind, path in own:
        if path is not None:
            asked = [case for case in asked if case.kind != kind] + asking.listed(prompts_in(path), kind)
    marks = hashes([case.asked for case in asked])
    chosen_on = set(hashes(behaviour.validation.questions))
    for known, what in ((set(vector.info.prompts), "find the vector"), (chosen_on, "choose on")):
        used = [case.asked for case, mark in zip(asked, marks, strict=True) if mark in known]
        if used:
            raise SpecError(
                f"{len(used)} of the test prompts were used to {what}, e.g. {str(used[0])[:60]!r}; give others"
            )
    plain, showing = ([case for case in asked if case.kind == kind] for kind, _ in own)
    return plain[: spec.limit], (showing or plain)[: spec.limit]
