"""Proving a vector: how often the model shows the behaviour with it and without it, beside random directions.

Found on training prompts, used as chosen on validation prompts, judged on test prompts that had no part in either:
added to prompts answered without the behaviour, subtracted and projected out on prompts answered with it. A random
direction of the same kind, stretched until it moves the model as far, shows what any push would do (`match.py`).

Arditi et al. 2024, arXiv 2406.11717; Rimsky et al. 2023, arXiv 2312.06681. Shape suffixes: N prompts, K controls.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from patchclamp.errors import SpecError
from patchclamp.evidence.cli_hints import CommaList, Positional
from patchclamp.evidence.method import Outcome, Progress, Spec, method
from patchclamp.forward import Model
from patchclamp.tasks.behaviour import Examples, prompts_in, read_behaviour, texts_of
from patchclamp.tasks.files import DataFile
from patchclamp.vectors.behave import Asking, Case, Kind
from patchclamp.vectors.directions import How
from patchclamp.vectors.find import found_vector
from patchclamp.vectors.match import pooled
from patchclamp.vectors.proof import EvaluateResult, Proof, Ready
from patchclamp.vectors.search import Bounds, Candidate, choose, with_settings
from patchclamp.vectors.source import BehaviourName, FindingSpec, Source, hashes, read_source
from patchclamp.vectors.states import has_template
from patchclamp.vectors.vector import Ablation, Setting, load_vector

if TYPE_CHECKING:
    pass



class EvaluateSpec(Spec):
    """Which vector to put to the test, and on which prompts."""

    what: Annotated[BehaviourName, Positional()]
    """A shipped behaviour (its vector is found, chosen and tested), a behaviour's .json file, or a saved vector."""
    plain: DataFile | None = None
    """Your own prompts that the model answers without the behaviour, in place of the test prompts."""
    showing: DataFile | None = None
    """Your own prompts that the model answers with it, in place of the test prompts."""
    how: How = "mean"
    """The way of finding, unless a saved vector is given."""
    behaving: bool = True
    """Find and judge only on prompts on which the unedited model does what they are there for (pairs: all)."""
    sites: Annotated[tuple[str, ...], CommaList()] = ()
    """Use these sites instead of choosing on validation prompts."""
    strength: float | None = None
    """Strength at these sites, in standard deviations of projections over a neutral corpus."""
    max_perplexity: float = Field(3.0, gt=1)
    """Choosing: how much less likely answers may become to the unedited model, as a ratio of perplexities."""
    max_repetition: float = Field(0.15, ge=0)
    """Choosing: how much more answers may repeat themselves, as a share of word triples."""
    max_kl: float = Field(0.4, gt=0)
    """Choosing: how far removing may move the model on unrelated text, nats a token."""
    controls: int = Field(20, ge=2, le=100)
    """Random directions."""
    max_new_tokens: int = Field(48, ge=4, le=500)
    """Length of an answer."""
    curve: bool = True
    """Ask at several strengths as well."""
    limit: int | None = Field(None, ge=6)
    """At most this many test prompts of each kind."""


@method("vectors.evaluate", spec=EvaluateSpec, result=EvaluateResult)
def evaluate_vector(model: Model, spec: EvaluateSpec, progress: Progress) -> Outcome:
    """Add, subtract and project out a vector on prompts it was not found with, and count how often the behaviour shows.

    The verdict asks whether adding it makes plain prompts show the behaviour more often than matched random directions
    do; `result.removal` asks the same of subtracting it. Beside them: KL on unrelated text, perplexity, repetition.
    """
    if (spec.strength is None) != (not spec.sites):
        raise SpecError("give sites and strength together, or neither to have them chosen")
    ready = _prepare(model, spec, progress)
    plain, showing, left_out = _cases(ready, spec, progress)
    return Proof(ready, plain, showing, left_out, progress).outcome()


def _prepare(model: Model, spec: EvaluateSpec, progress: Progress) -> Ready:
    """The vector, found if need be, with its settings chosen if need be."""
    saved = load_vector(spec.what, model) if spec.what.endswith((".safetensors", ".gguf")) else None
    reference = saved.info.behaviour if saved else spec.what
    if reference is None:
        raise SpecError(
            f"{spec.what} does not say which behaviour it is for, so there are no prompts to test it on; find "
            "it with vectors find BEHAVIOUR, or write a behaviour file"
        )
    behaviour = read_behaviour(reference)
    asking = Asking(model, behaviour.detector, behaviour.format, spec.max_new_tokens)
    if behaviour.format == "chat" and not has_template(model):
        raise SpecError(
            f"the behaviour {behaviour.name!r} is asked for in chat messages and {model.name} has no chat "
            "template; use a chat model, or a behaviour of texts such as french or sentiment"
        )
    finding = FindingSpec(
        source=reference,
        how=spec.how,
        max_new_tokens=spec.max_new_tokens,
        seed=spec.seed,
        behaving=spec.behaving and not behaviour.train.pairs,
        position=saved.info.position if saved else None,
    )
    source: Source = read_source(model, finding)
    vector, (showing_SNW, plain_SNW), _ = found_vector(model, source, finding, progress)
    sites = list(vector.directions)
    vector = saved or vector
    tried: list[Candidate] = []
    if spec.sites:
        setting = Setting(sites=spec.sites, strength=spec.strength or 0.0)
        vector.at(spec.sites)
        vector = vector.with_info(
            add=setting,
            remove=setting.model_copy(update={"strength": -setting.strength}),
            ablate=Ablation(site=spec.sites[0]),
        )
    elif vector.info.add is None and vector.info.remove is None:
        bounds = Bounds(spec.max_perplexity, spec.max_repetition, spec.max_kl)
        chosen, tried = choose(
            vector, asking, asking.cases(behaviour.validation), ("add", "subtract", "project_out"), bounds, progress
        )
        vector = with_settings(vector, chosen)
    used = {site for s in (vector.info.add, vector.info.remove) if s for site in s.sites}
    known = pooled(showing_SNW, plain_SNW, sites, list(used))
    return Ready(vector, asking, behaviour, known, tried, spec.behaving, spec.controls, spec.curve, spec.seed)


def _cases(ready: Ready, spec: EvaluateSpec, progress: Progress) -> tuple[list[Case], list[Case], dict[str, int]]:
    """Test prompts of both kinds; of pairs all questions are both."""
    assert ready.behaviour is not None
    test = ready.behaviour.test
    if spec.plain or spec.showing:
        if test.pairs and spec.showing and not spec.plain:
            raise SpecError(
                f"the behaviour {ready.behaviour.name!r} is tested on questions alone; give them with plain"
            )
        sides = {
            "plain": prompts_in(spec.plain) if spec.plain else test.plain or texts_of(test.questions),
            "showing": prompts_in(spec.showing) if spec.showing else test.showing or (),
        }
        if not sides["showing"]:
            sides["showing"] = sides["plain"]
        asked = [case for kind in ("plain", "showing") for case in _own(ready, sides[kind], kind)]
    else:
        asked = ready.asking.cases(test)
    used = {
        case.asked
        for case, mark in zip(asked, hashes([c.asked for c in asked]), strict=True)
        if mark in ready.vector.info.prompts
    }
    if used:
        raise SpecError(
            f"{len(used)} of the test prompts were used to find the vector, e.g. {str(next(iter(used)))[:60]!r}; "
            "give others"
        )
    plain = [case for case in asked if case.kind == "plain"][: spec.limit]
    showing = ([case for case in asked if case.kind == "showing"] or list(plain))[: spec.limit]
    return plain, showing, {}


def _own(ready: Ready, asked: Sequence[Any], kind: Kind) -> list[Case]:
    cases = ready.asking.cases(Examples(showing=("-",), plain=tuple(asked)))
    return [case._replace(kind=kind) for case in cases if case.kind == "plain"]
