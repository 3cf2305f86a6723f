"""Two sides of prompts to tell apart: with a label and without it."""

from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np
from pydantic import Field

from patchclamp.errors import FileError, SpecError
from patchclamp.evidence.cli_hints import Positional
from patchclamp.evidence.method import Spec
from patchclamp.forward import Model
from patchclamp.forward.asked import as_prompt, auto_format
from patchclamp.tasks.behaviour import Asked, BehaviourName, behaviour_names, prompts_in, read_behaviour
from patchclamp.tasks.files import DataFile, locate_file, read_json
from patchclamp.tasks.read import read_rows
from patchclamp.tasks.rows import LabelledRow


class SidesSpec(Spec):
    """Which prompts to tell apart."""

    source: Annotated[BehaviourName, Positional()]
    """A labelled file (rows with text and label), the file of the prompts on which the unit should be active, or a
    shipped behaviour (refusal, sentiment, french, …)."""
    plain: Annotated[DataFile | None, Positional()] = None
    """The file of the other prompts, if the first one holds those of one side."""
    label: str | None = None
    """Of a labelled file the label asked about; all others are the other side. Needed with more than two labels."""
    format: Literal["auto", "chat", "text"] = "auto"
    """Whether prompts are a user's messages or texts as they stand; auto: a behaviour's own, prompt files as messages
    if the model has a chat template, labelled texts as they stand."""
    limit: int = Field(500, ge=8)
    """At most so many prompts of each side."""


class Sides(NamedTuple):
    """Prompts as the model reads them, with and without the label."""

    label: str
    showing: list
    plain: list


def read_sides(model: Model, spec: SidesSpec) -> Sides:
    """The two sides' prompts, at most `limit` of each, none on both. FileError, SpecError."""
    if spec.plain is not None:
        label, format = Path(spec.source).stem, spec.format if spec.format != "auto" else auto_format(model)
        showing, plain = prompts_in(spec.source), prompts_in(spec.plain)
    elif spec.source in behaviour_names() or _is_object(spec.source):
        behaviour = read_behaviour(spec.source)
        label, format = behaviour.name, spec.format if spec.format != "auto" else behaviour.format
        if behaviour.train.pairs:
            raise SpecError(f"{spec.source} holds pairs of answers; they are told apart on two sides of prompts")
        showing, plain = behaviour.train.showing, behaviour.train.plain
    else:
        label, showing, plain = _labelled(spec)
        format = "text" if spec.format == "auto" else spec.format
    if both := {*showing} & {*plain}:
        raise FileError(f"{len(both)} prompts are on both sides, e.g. {str(next(iter(both)))[:60]!r}; a prompt has the "
                        "label or not")
    sides = [[as_prompt(model, one, format) for one in dict.fromkeys(side)] for side in (showing, plain)]
    return Sides(label, *(_drawn(side, spec) for side in sides))


def _drawn(side: list, spec: SidesSpec) -> list:
    order = np.random.default_rng(spec.seed).permutation(len(side))[: spec.limit]
    return [side[i] for i in sorted(order)]


def _is_object(name: str) -> bool:
    path = locate_file(name)
    return path.suffix.lower() == ".json" and isinstance(read_json(path), dict)


def _labelled(spec: SidesSpec) -> tuple[str, tuple[Asked, ...], tuple[Asked, ...]]:
    rows = read_rows(spec.source, LabelledRow)
    labels = sorted({str(row.label) for row in rows})
    if len(labels) < 2:
        raise FileError(f"{spec.source}: every row has the label {labels[0]!r}; telling apart needs two")
    if spec.label is None and len(labels) > 2:
        raise SpecError(f"{spec.source} has {len(labels)} labels; say which one is asked about, e.g. --label "
                        f"{labels[0]}")
    label = labels[-1] if spec.label is None else spec.label
    if label not in labels:
        raise SpecError(f"{spec.source} has no label {label!r}; it has {', '.join(labels[:10])}")
    showing, plain = ([row.text for row in rows if (str(row.label) == label) is side] for side in (True, False))
    return label, tuple(showing), tuple(plain)
