"""What a direction is found from: a shipped behaviour, a behaviour file, two prompt files, or pairs of answers."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import Field, ValidationError

from patchclamp.errors import FileError, InputError, SpecError
from patchclamp.evidence.cli_hints import Positional
from patchclamp.evidence.method import Progress, Spec
from patchclamp.evidence.recognise import recognise
from patchclamp.evidence.written import answers
from patchclamp.forward import Model, Site
from patchclamp.forward.asked import as_prompt, auto_format
from patchclamp.forward.prepare import check_site
from patchclamp.tasks.behaviour import (
    Asked,
    Behaviour,
    BehaviourName,
    Examples,
    Recognised,
    behaviour_names,
    has_pairs,
    read_behaviour,
    read_examples,
    texts_of,
)
from patchclamp.tasks.files import NAMES_A_FILE, DataFile, locate_file, read_json
from patchclamp.vectors.directions import How
from patchclamp.vectors.vector import SteeringVector

Format = Literal["chat", "text"]
FEWEST = 4


class FindingSpec(Spec):
    """From which prompts a direction is found, and how."""

    source: Annotated[BehaviourName, Positional()]
    """A shipped behaviour (refusal, flattery, truth, sentiment, formality, french, ai), a behaviour's .json file, a
    file of question/answer pairs, or the file of the prompts that show the behaviour."""
    plain: Annotated[DataFile | None, Positional()] = None
    """The file of prompts that do not show it, if the first one holds those that do."""
    how: How = "mean"
    """The way of finding: difference of means, first principal component of paired differences, logistic regression, or
    mass-mean (the difference of means in units of the covariance)."""
    point: Literal["resid", "resid_mid", "attn", "mlp", "head"] = "resid"
    """Which values it is found in, in every block; head: in every head's output by itself."""
    position: str | None = None
    """At which token, or over which tokens the mean is taken: last, an index, a slice, a quoted word. By default the
    last of a prompt, and of a pair its answer."""
    format: Literal["auto", "chat", "text"] = "auto"
    """Whether prompts are a user's messages or texts as they stand; auto: as the behaviour says, of other files
    messages if the model has a chat template."""
    behaving: bool = False
    """Use only prompts on which the model does show the behaviour, and does not."""
    detector: Annotated[str, NAMES_A_FILE] | None = None
    """How the behaviour is recognised in an answer: refusal, choice, or a .json file of a detector (phrases, tokens,
    classifier, judge); by default the behaviour's own."""
    max_new_tokens: int = Field(48, ge=1, le=500)
    """Length of the answers in which the behaviour is looked for."""


class Source(NamedTuple):
    """Prompts on both sides, and all that is known about them."""

    name: str
    format: Format
    detector: Recognised | None
    examples: Examples
    behaviour: Behaviour | None
    reference: str | None
    """The behaviour's name or file."""


def read_source(model: Model, spec: FindingSpec) -> Source:
    """The prompts a specification asks for: of a behaviour its training prompts."""
    chosen = read_detector(spec.detector) if spec.detector else None
    if spec.plain is None and not is_pairs_file(spec.source):
        behaviour = read_behaviour(spec.source)
        format = behaviour.format if spec.format == "auto" else spec.format
        return Source(behaviour.name, format, chosen or behaviour.detector, behaviour.train, behaviour, spec.source)
    if spec.source in behaviour_names():
        raise SpecError(
            f"{spec.source!r} is a shipped behaviour and has its own plain prompts; give two files, or the "
            "behaviour alone"
        )
    format = auto_format(model) if spec.format == "auto" else spec.format
    return Source(Path(spec.source).stem, format, chosen, read_examples(spec.source, spec.plain), None, None)


def is_pairs_file(name: str) -> bool:
    """Whether this is no shipped behaviour and holds questions with two answers each."""
    return name not in behaviour_names() and has_pairs(name)


def read_detector(name: str) -> Recognised:
    """`refusal`, `choice`, or the detector in a .json file. FileError or SpecError if it is none of these."""
    if name in ("refusal", "choice"):
        return Recognised(kind=name)  # type: ignore[arg-type]
    path = locate_file(name)
    value = read_json(path)
    try:
        return Recognised.model_validate(value if isinstance(value, dict) else {})
    except ValidationError as error:
        wrong = "; ".join(str(one["msg"]).removeprefix("Value error, ") for one in error.errors())
        raise FileError(
            f'{path} is no detector, e.g. {{"kind": "phrases", "phrases": [...], "against": [...]}}: {wrong}'
        ) from error


def only_behaving(model: Model, source: Source, n: int, progress: Progress) -> tuple[Examples, dict[str, int]]:
    """The prompts of both lists on which the model does what the list says, and how many were left out."""
    if source.examples.pairs:
        raise SpecError("behaving chooses among prompts by the model's own answer; pairs come with theirs")
    if source.detector is None or source.detector.kind == "choice":
        raise SpecError("behaving needs a detector that reads answers: --detector refusal, or a file of phrases")
    kept, left_out = {}, {}
    for side in ("showing", "plain"):
        asked = getattr(source.examples, side)
        said = answers(
            model,
            [as_prompt(model, one, source.format) for one in asked],
            (),
            n,
            progress,
            f"asking the {side} prompts",
        )
        kept[side] = tuple(
            one
            for one, shown in zip(asked, recognise(source.detector, [answer.text for answer in said]), strict=True)
            if shown == (side == "showing")
        )
        left_out[side] = len(asked) - len(kept[side])
        if len(kept[side]) < FEWEST:
            raise InputError(
                f"{model.name} answers only {len(kept[side])} of {len(asked)} {side} prompts as they are "
                f"meant, where {FEWEST} are needed: it does not have this behaviour, or the prompts miss it"
            )
    return Examples(**kept), left_out


def behaviour_for(vector: SteeringVector, given: str | None = None) -> Behaviour:
    """The behaviour that is named, or the one the vector was found with. SpecError if there is neither."""
    reference = given or vector.info.behaviour
    if reference is None:
        raise SpecError(
            f"the vector {vector.info.name!r} does not say which behaviour it is for, so there are no prompts to try "
            "it on; find it with a behaviour's name or file, or select it with --behaviour"
        )
    return read_behaviour(reference)


def sites_of(model: Model, point: str) -> list[str]:
    """The sites of a point in every block: `resid.0`, …; of heads each by itself."""
    if point == "head":
        return [f"head.{layer}.{head}" for layer in range(model.n_layers) for head in range(model.n_heads)]
    sites = [f"{point}.{layer}" for layer in range(model.n_layers)]
    check_site(model.anatomy, Site.parse(sites[0]), model.name)
    return sites


def hashes(asked: Sequence[Asked]) -> tuple[str, ...]:
    """What prompts are told apart by, without keeping their texts."""
    return tuple(hashlib.sha256(text.encode()).hexdigest()[:12] for text in texts_of(asked))
