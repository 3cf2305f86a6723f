"""Proving a vector: how often the model shows the behaviour with it and without it, beside random directions.

Found on training prompts, used as chosen on validation prompts, judged on test prompts that had no part in either:
added to prompts answered without the behaviour, subtracted and projected out on prompts answered with it. A random
direction of the same kind, stretched until it moves the model as far, shows what any push would do (`match.py`).

Arditi et al. 2024, arXiv 2406.11717; Rimsky et al. 2023, arXiv 2312.06681. Shape suffixes: N prompts, K controls.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor

from patchclamp.errors import SpecError
from patchclamp.evidence.cli_hints import CommaList, Positional
from patchclamp.evidence.method import Outcome, Progress, method
from patchclamp.forward import Model
from patchclamp.tasks.behaviour import Behaviour, prompts_in, read_behaviour
from patchclamp.tasks.files import DataFile
from patchclamp.vectors.behave import Asking, Case, Kind
from patchclamp.vectors.directions import How
from patchclamp.vectors.find import found_vector
from patchclamp.vectors.proof import EvaluateResult, Proof, Ready
from patchclamp.vectors.search import ChoosingSpec, Tried, choose
from patchclamp.vectors.source import BehaviourName, FindingSpec, behaviour_for, hashes, read_source
from patchclamp.vectors.states import examples_of, states
from patchclamp.vectors.vector import Setting, SteeringVector, load_vector


class EvaluateSpec(ChoosingSpec):
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
    controls: int = Field(20, ge=2, le=100)
    """Random directions."""
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
    plain, showing = _cases(ready, spec)
    return Proof(ready, plain, showing, progress).outcome()


def _prepare(model: Model, spec: EvaluateSpec, progress: Progress) -> Ready:
    """The vector, found if need be, with its settings chosen if need be."""
    if spec.what.endswith((".safetensors", ".gguf")):
        vector = load_vector(spec.what, model)
        behaviour = behaviour_for(vector)
    else:
        behaviour = read_behaviour(spec.what)
        behaving = spec.behaving and not behaviour.train.pairs
        finding = FindingSpec(
            source=spec.what, how=spec.how, max_new_tokens=spec.max_new_tokens, seed=spec.seed, behaving=behaving
        )
        vector, _, _ = found_vector(model, read_source(model, finding), finding, progress)
    asking = Asking(model, behaviour.detector, behaviour.format, spec.max_new_tokens)
    tried: list[Tried] = []
    if spec.strength is not None:
        vector.at(spec.sites)
        add, remove = (Setting(sites=spec.sites, strength=sign * spec.strength) for sign in (1, -1))
        vector = vector.with_info(add=add, remove=remove, ablate=vector.ablation(spec.sites[0], model))
    elif vector.info.add is None and vector.info.remove is None:
        vector, tried = choose(vector, asking, asking.cases(behaviour.validation), spec, progress)
    known = _states(model, vector, behaviour, progress)
    return Ready(vector, asking, behaviour, known, tried, spec.behaving, spec.controls, spec.curve, spec.seed)


def _states(model: Model, vector: SteeringVector, behaviour: Behaviour, progress: Progress) -> dict[str, Tensor]:
    """The training prompts' states, both sides, where the vector is used: what random directions are made of."""
    settings = [setting for setting in (vector.info.add, vector.info.remove) if setting]
    sites = list(dict.fromkeys(site for setting in settings for site in setting.sites))
    if not sites:
        return {}
    showing, plain = examples_of(model, behaviour.train, behaviour.format, vector.info.position)
    return dict(zip(sites, states(model, [*showing, *plain], sites, progress), strict=True))


def _cases(ready: Ready, spec: EvaluateSpec) -> tuple[list[Case], list[Case]]:
    """Test prompts of both kinds; where there are only questions they are both."""
    test, asking = ready.behaviour.test, ready.asking
    if test.pairs and spec.showing and not spec.plain:
        raise SpecError(f"the behaviour {ready.behaviour.name!r} is tested on questions alone; give them with plain")
    asked = asking.cases(test)
    own: tuple[tuple[Kind, str | None], ...] = (("plain", spec.plain), ("showing", spec.showing))
    for kind, path in own:
        if path is not None:
            asked = [case for case in asked if case.kind != kind] + asking.listed(prompts_in(path), kind)
    marks = hashes([case.asked for case in asked])
    used = [case.asked for case, mark in zip(asked, marks, strict=True) if mark in ready.vector.info.prompts]
    if used:
        raise SpecError(
            f"{len(used)} of the test prompts were used to find the vector, e.g. {str(used[0])[:60]!r}; give others"
        )
    plain, showing = ([case for case in asked if case.kind == kind] for kind, _ in own)
    return plain[: spec.limit], (showing or plain)[: spec.limit]
