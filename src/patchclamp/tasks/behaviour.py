"""Behaviours: prompts that show one and prompts that do not, parted into train, validation and test, and how it is
recognised in a text. One JSON file a behaviour; `docs/formats.md` shows an example.

    behaviour = read_behaviour("refusal")                 # one of the shipped ones
    behaviour = read_behaviour("my-behaviour.json")       # the same format
    examples = read_examples("showing.jsonl", "plain.jsonl")
    examples = read_examples("generate_dataset.json")     # question/answer pairs of contrastive steering
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, model_validator

from patchclamp.errors import FileError
from patchclamp.tasks.examples import EXAMPLE_PREFIX, example_names
from patchclamp.tasks.files import NAMES_A_FILE, ROW_SUFFIXES, absolute, locate_file, raw_rows, read_json
from patchclamp.tasks.read import read_rows, validated
from patchclamp.tasks.rows import BehaviourRow, Message, PromptRow, Text

BEHAVIOUR_PREFIX = "behaviour-"


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


Asked = Annotated[Text | tuple[Message, ...], BeforeValidator(_tuple)]
"""A user's message, the beginning of a text, or a whole conversation."""


class Recognised(BaseModel):
    """How a behaviour is told from its absence."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    kind: Literal["refusal", "phrases", "tokens", "choice", "classifier", "judge"]
    """`refusal`: the text says that it will not or cannot. `phrases`: more of `phrases` than of `against` are found in
    it. `tokens`: it begins with one of `tokens`. `choice`: of a pair's two answers the model finds the one that shows
    the behaviour likelier. `classifier`: a text classifier gives it `label`. `judge`: a language model behind an
    OpenAI-compatible endpoint says yes to `question`."""
    phrases: tuple[Text, ...] = ()
    """Words and phrases of the behaviour, lower case."""
    against: tuple[Text, ...] = ()
    """Words and phrases of its absence."""
    tokens: tuple[Text, ...] = ()
    """Beginnings of an answer that shows it."""
    model: Text | None = None
    """The classifier's Hugging Face id or folder, or the judge's name at its endpoint."""
    label: Text | None = None
    """The classifier's label of texts that show it."""
    url: Text | None = None
    """The judge's endpoint."""
    question: Text | None = None
    """What the judge is asked of a text, e.g. `Does the writer flatter the reader?`"""

    @model_validator(mode="after")
    def _has_its_fields(self) -> Recognised:
        needed, possible = FIELDS[self.kind]
        given = {name for name in type(self).model_fields if name != "kind" and getattr(self, name)}
        if missing := [name for name in needed if name not in given]:
            raise ValueError(f"a detector of kind {self.kind!r} needs {' and '.join(missing)}")
        if extra := sorted(given - {*needed, *possible}):
            raise ValueError(f"a detector of kind {self.kind!r} has no {' or '.join(extra)}")
        return self


FIELDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "refusal": ((), ()),
    "phrases": (("phrases",), ("against",)),
    "tokens": (("tokens",), ()),
    "choice": ((), ()),
    "classifier": (("model", "label"), ()),
    "judge": (("url", "model", "question"), ()),
}
"""A detector's fields by its kind: those it needs, and those it may have."""


class Examples(BaseModel):
    """Prompts on both sides of a behaviour: two lists, or pairs of answers to the same question."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    showing: tuple[Asked, ...] = ()
    """Prompts that are answered with the behaviour."""
    plain: tuple[Asked, ...] = ()
    """Prompts that are answered without it."""
    pairs: tuple[BehaviourRow, ...] = ()
    """Questions with an answer that shows it and one that does not."""

    @model_validator(mode="after")
    def _both_sides(self) -> Examples:
        if self.pairs and (self.showing or self.plain):
            raise ValueError("give either pairs, or the two lists showing and plain")
        if not self.pairs and not (self.showing and self.plain):
            empty = "showing" if not self.showing else "plain"
            raise ValueError(
                f"no prompt in '{empty}': a direction is the difference between two sides, so both need some"
            )
        both = set(self.showing) & set(self.plain)
        if both:
            raise ValueError(
                f"{len(both)} prompt(s) are on both sides, e.g. {str(next(iter(both)))[:60]!r}; a prompt "
                "either shows the behaviour or does not"
            )
        return self

    @property
    def questions(self) -> tuple[Asked, ...]:
        """Every prompt without an answer."""
        return tuple(pair.question for pair in self.pairs) or (*self.showing, *self.plain)

    def only(self, kept: Callable[[Asked], bool]) -> Examples:
        """Those of which `kept` says so of the question; ValidationError where a side has none."""
        return Examples(
            showing=tuple(one for one in self.showing if kept(one)),
            plain=tuple(one for one in self.plain if kept(one)),
            pairs=tuple(pair for pair in self.pairs if kept(pair.question)),
        )


class Behaviour(BaseModel):
    """A behaviour with its three sets of examples."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: Text
    """What it is called."""
    about: Text
    """One sentence that completes itself."""
    format: Literal["chat", "text"] = "chat"
    """`chat`: a prompt is a user's message. `text`: it is the beginning of a text, as it stands."""
    detector: Recognised
    """How it is recognised."""
    train: Examples
    """To find a direction with."""
    validation: Examples
    """To choose block and strength with."""
    test: Examples
    """To report on; no prompt of these is in another set."""

    @model_validator(mode="after")
    def _no_leak(self) -> Behaviour:
        sets = {name: set(getattr(self, name).questions) for name in ("train", "validation", "test")}
        for first, second in (("train", "validation"), ("train", "test"), ("validation", "test")):
            if both := sets[first] & sets[second]:
                raise ValueError(
                    f"{len(both)} prompt(s) are in {first} and in {second}, e.g. {str(next(iter(both)))[:60]!r}"
                )
        if self.detector.kind == "choice" and not all(getattr(self, name).pairs for name in sets):
            raise ValueError("the detector 'choice' compares two answers, so all sets have to be pairs")
        return self


    def with_detector(self, detector: Recognised) -> Behaviour:
        """The same prompts, recognised otherwise."""
        return validated(Behaviour, dict(self) | {"detector": detector}, f"the behaviour {self.name!r}")


FEWEST = 4
"""Prompts of each side that a part of the user's own prompts needs."""


def parted(
    examples: Examples,
    name: str,
    format: Literal["chat", "text"],
    detector: Recognised,
    shares: tuple[int, int, int],
    seed: int,
) -> Behaviour:
    """A behaviour of the user's own examples, dealt out to train, validation and test in these proportions.

    FileError where there are too few for that."""
    parts: dict[str, dict[str, Any]] = {"train": {}, "validation": {}, "test": {}}
    for side in ("showing", "plain", "pairs"):
        some = list({_question(one): one for one in getattr(examples, side)}.values())
        order = np.random.default_rng(seed).permutation(len(some))
        begin = 0
        for i, part in enumerate(parts):
            end = len(some) * sum(shares[: i + 1]) // sum(shares)
            parts[part][side] = tuple(some[j] for j in order[begin:end])
            if some and end - begin < FEWEST:
                needed = -(-FEWEST * sum(shares) // min(shares))
                raise FileError(
                    f"{name}: {len(some)} {side if side == 'pairs' else side + ' prompts'} are too few to find or "
                    f"choose with some and test on others; give {needed} or more"
                )
            begin = end
    sets = {part: Examples(**sides) for part, sides in parts.items()}
    whole = {"name": name, "about": f"{name}.", "format": format, "detector": detector, **sets}
    return validated(Behaviour, whole, name)


def _question(one: Asked | BehaviourRow) -> Any:
    return one.question if isinstance(one, BehaviourRow) else one


def behaviour_names() -> tuple[str, ...]:
    """The behaviours that come with patchclamp."""
    return tuple(n.removeprefix(BEHAVIOUR_PREFIX) for n in example_names() if n.startswith(BEHAVIOUR_PREFIX))


BehaviourName = Annotated[
    str, AfterValidator(lambda name: name if name in behaviour_names() else absolute(name)), NAMES_A_FILE
]
"""A shipped behaviour's name, or a path, kept absolute."""


def read_behaviour(name: str) -> Behaviour:
    """A shipped behaviour by its name, or the one in a `.json` file. Raises FileError, saying what is wrong where."""
    path = locate_file(f"{EXAMPLE_PREFIX}{BEHAVIOUR_PREFIX}{name}" if name in behaviour_names() else name)
    if path.suffix.lower() != ".json":
        raise FileError(
            f"{path}: a behaviour is one object in a .json file (shipped are {', '.join(behaviour_names())}); of two "
            "files of prompts give both, those that show it first"
        )
    value = read_json(path)
    if not isinstance(value, dict) or "train" not in value:
        raise FileError(
            f'{path}: a behaviour is one object {{"name", "about", "detector", "train", "validation", '
            '"test"}; a list of question/answer pairs is read by vectors find'
        )
    return validated(Behaviour, value, str(path))


def read_examples(showing: str | Path, plain: str | Path | None = None) -> Examples:
    """Both sides from two prompt files, or from one file of question/answer pairs. Raises FileError."""
    if plain is None:
        pairs = read_rows(showing, BehaviourRow)
        return Examples(pairs=tuple(pairs))
    sides = {"showing": prompts_in(showing), "plain": prompts_in(plain)}
    return validated(Examples, sides, f"{showing} and {plain}")


def prompts_in(path: str | Path) -> tuple[Asked, ...]:
    """The prompts of a file, each a text or a conversation; FileError for one that has none."""
    return tuple(row.prompt or row.messages or "" for row in read_rows(path, PromptRow))


def has_pairs(path: str | Path) -> bool:
    """Whether a file's first row is a question with two answers."""
    found = locate_file(path)
    if found.suffix.lower() == ".json":  # a list of rows, or one object: a behaviour
        value = read_json(found)
        first = value[0] if isinstance(value, list) and value else None
    elif found.suffix.lower() in ROW_SUFFIXES:
        _, first = next(iter(raw_rows(found)), ("", None))
    else:
        first = None
    return isinstance(first, dict) and "question" in first


def texts_of(asked: Sequence[Asked]) -> list[str]:
    """What is asked, as plain text: of a conversation its last message."""
    return [one if isinstance(one, str) else one[-1].content for one in asked]
