"""What one row of each kind of data file holds. `docs/formats.md` shows an example of each.

A row is frozen data. The fields named here are checked; further columns a file has are kept, as attributes
and in `row.model_extra`, so that a user's own annotations survive. A relation alone is a whole file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

Text = Annotated[str, Field(strict=True, min_length=1)]
"""Text that may not be empty, kept as it is: a leading space is part of a continuation."""

_WHOLE_NUMBER = re.compile(r"-?(0|[1-9][0-9]{0,17})")
_LITERAL_ESCAPE = re.compile(r"\\u([0-9a-fA-F]{4})")


class Row(BaseModel):
    """One row of a data file. Subclasses name the fields that must be there."""

    model_config = ConfigDict(frozen=True, extra="allow", use_attribute_docstrings=True)

    kind: ClassVar[str] = "data"
    """What error messages call such a row."""

    @classmethod
    def from_cells(cls, cells: Mapping[str, str]) -> dict[str, Any]:
        """The fields meant by a row of a CSV or TSV file, where every cell is text.

        An empty cell of an optional field means the field is absent.
        """
        fields = cls.model_fields
        return {name: text for name, text in cells.items()
                if text or name not in fields or fields[name].is_required()}


class Message(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(frozen=True, extra="allow", use_attribute_docstrings=True)

    role: Text
    """Who speaks: `system`, `user`, `assistant`, or another role the model's chat template knows."""
    content: Annotated[str, Field(strict=True)]
    """What is said. It may be empty: an empty system message switches off a template's default one."""


def _messages(value: Any) -> Any:
    """A table cell holds a conversation as JSON text."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError as error:
        shape = '[{"role","content"}, …]'
        raise ValueError(f"must be a list {shape}, and this text is not JSON ({error})") from error


class PromptRow(Row):
    """A prompt: plain text, or a conversation for the model's chat template. Exactly one of both."""

    kind: ClassVar[str] = "prompt"

    prompt: Text | None = None
    """The text the model is given."""
    messages: Annotated[tuple[Message, ...] | None, BeforeValidator(_messages)] = None
    """The conversation so far, first turn first."""

    @model_validator(mode="after")
    def _one_of_both(self) -> PromptRow:
        if (self.prompt is None) == (self.messages is None):
            others = ", ".join(self.model_extra or {}) or "nothing"
            found = f"neither (it has: {others})" if self.prompt is None else "both"
            raise ValueError(f"a prompt row has either 'prompt' or 'messages'; this one has {found}")
        if self.messages == ():
            raise ValueError("field 'messages' is empty; it needs at least one turn")
        return self


class ChoiceRow(Row):
    """A prompt and two continuations: which one does the model find likelier?"""

    kind: ClassVar[str] = "choice"

    prompt: Text
    """The text before the choice."""
    answer: Text
    """The right continuation, with its own leading space where it has one (`" books"`)."""
    distractor: Text
    """The wrong continuation, written the same way."""

    @model_validator(mode="before")
    @classmethod
    def _from_sentences(cls, row: Any) -> Any:
        """A minimal pair of sentences (BLiMP, Warstadt et al. 2020): what they begin with in common is the prompt."""
        if not isinstance(row, dict) or "prompt" in row or not {"sentence_good", "sentence_bad"} <= row.keys():
            return row
        good, bad = str(row["sentence_good"]).split(" "), str(row["sentence_bad"]).split(" ")
        shared = next((i for i, (a, b) in enumerate(zip(good, bad, strict=False)) if a != b), min(len(good), len(bad)))
        if not shared or shared in (len(good), len(bad)):
            raise ValueError("fields 'sentence_good' and 'sentence_bad' have to begin alike and then differ by a word")
        answers = {name: f" {' '.join(words[shared:])}" for name, words in (("answer", good), ("distractor", bad))}
        return {**row, "prompt": " ".join(good[:shared]), **answers}

    @model_validator(mode="after")
    def _differ(self) -> ChoiceRow:
        _require_different(self.answer, self.distractor, "answer", "distractor")
        return self


class PairRow(Row):
    """Two prompts that differ in what decides the answer; patching asks where that difference is carried."""

    kind: ClassVar[str] = "pair"

    clean: Text
    """The prompt that `answer` continues."""
    corrupted: Text
    """The prompt changed so that `answer` no longer fits; as many tokens as `clean`, so positions match."""
    answer: Text
    """The continuation of `clean`, with its leading space."""
    distractor: Text
    """The continuation to compare with, often the one that `corrupted` asks for."""

    @model_validator(mode="after")
    def _differ(self) -> PairRow:
        _require_different(self.clean, self.corrupted, "clean", "corrupted")
        _require_different(self.answer, self.distractor, "answer", "distractor")
        return self


def _label(value: Any) -> Any:
    """Refuse floats and nulls: one missing value turns a whole column of class numbers into floats."""
    if not isinstance(value, (str, int)):
        raise ValueError(f"must be text, a whole number or true/false, found {value!r}")
    if value == "":
        raise ValueError("is empty")
    return value


class LabelledRow(Row):
    """A text and the class it belongs to."""

    kind: ClassVar[str] = "labelled"

    text: Text
    """The text."""
    label: Annotated[str | int | bool, BeforeValidator(_label)]
    """Its class, with the type it has in the file: text, whole number, or true/false."""

    @classmethod
    def from_cells(cls, cells: Mapping[str, str]) -> dict[str, Any]:
        """As for every row; a label cell that reads as a whole number or as true/false becomes one."""
        row = super().from_cells(cells)
        label = row.get("label", "")
        if _WHOLE_NUMBER.fullmatch(label):
            row["label"] = int(label)
        elif label in ("true", "True", "TRUE", "false", "False", "FALSE"):
            row["label"] = label.lower() == "true"
        return row


class TaskRow(Row):
    """One example of an in-context task: `hot` -> `cold`."""

    kind: ClassVar[str] = "task"

    input: Text
    """What is given."""
    output: Text
    """What the task makes of it."""


class BehaviourRow(Row):
    """A question with two answers, one showing a behaviour and one not; their difference gives a vector.

    The format of contrastive activation addition (Rimsky et al., https://arxiv.org/abs/2312.06681).
    """

    kind: ClassVar[str] = "behaviour"

    question: Text
    """The question, with its choices if it has any."""
    answer_matching_behavior: Text
    """The answer that shows the behaviour, e.g. `(A)`."""
    answer_not_matching_behavior: Text
    """The answer that does not."""

    @model_validator(mode="after")
    def _differ(self) -> BehaviourRow:
        _require_different(self.answer_matching_behavior, self.answer_not_matching_behavior,
                           "answer_matching_behavior", "answer_not_matching_behavior")
        return self


class WordRow(Row):
    """One concept and its word in several languages: every further column is a language."""

    kind: ClassVar[str] = "word"

    concept: Text
    """A name for the concept, the same whatever the language."""

    @property
    def words(self) -> dict[str, str]:
        """The word by language. A column that is empty or not text is no word."""
        return {language: word for language, word in (self.model_extra or {}).items()
                if isinstance(word, str) and word}

    @model_validator(mode="after")
    def _has_words(self) -> WordRow:
        if not self.words:
            raise ValueError('no word in any language: a word row has one column a language, e.g. "en", "fr"')
        return self


class HopRow(Row):
    """A question of two hops and the two facts it is made of: where the Eiffel Tower is, and that country's capital."""

    kind: ClassVar[str] = "two-hop"

    prompt: Text
    """The question as the beginning of a sentence, with `phrase` in it."""
    phrase: Text
    """The words that stand for the bridge: `the country where the Eiffel Tower is located`."""
    bridge: Text
    """What they stand for: `France`."""
    answer: Text
    """The answer, without a leading space: `Paris`."""
    first: Text
    """The first hop alone, which `bridge` continues."""
    second: Text
    """The second hop alone, which `answer` continues."""

    @model_validator(mode="after")
    def _check(self) -> HopRow:
        _require_different(self.bridge, self.answer, "bridge", "answer")
        if self.phrase not in self.prompt:
            raise ValueError(f"field 'phrase' is not part of field 'prompt': {self.phrase!r} in {self.prompt!r}")
        return self


class TextRow(Row):
    """One document of a corpus. It may be empty; empty documents are passed over."""

    kind: ClassVar[str] = "corpus"

    text: Annotated[str, Field(strict=True)]
    """The document."""


class ImageRow(Row):
    """A picture, the thing it shows, and how it shows it."""

    kind: ClassVar[str] = "image"

    image: Text
    """The picture's file; relative names are looked up beside the file of rows."""
    concept: Text
    """What it shows: `three`."""
    form: Text
    """How: `photo`, `drawing`, `text`, or any other word of yours."""


def _tidy(value: Any) -> Any:
    """Undo two defects that published relation files have: stray spaces at the ends, and characters escaped
    twice (a literal `\\u00ed` where í is meant). Both would silently change the tokens."""
    if not isinstance(value, str):
        return value
    return _LITERAL_ESCAPE.sub(lambda match: chr(int(match[1], 16)), value).strip()


class RelationSample(BaseModel):
    """One subject and the object the relation gives it: Poland, Warsaw."""

    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True)

    subject: Annotated[Text, BeforeValidator(_tidy)]
    """What is put in the template's `{}`."""
    object: Annotated[Text, BeforeValidator(_tidy)]
    """What the prompt's continuation should be, without a leading space."""


def _distinct(samples: tuple[RelationSample, ...]) -> tuple[RelationSample, ...]:
    return tuple(dict.fromkeys(samples))


class RelationFile(BaseModel):
    """A relation: templates that ask for it, and the pairs it holds for.

    The format of Hernandez et al. (https://arxiv.org/abs/2308.09124); other keys of their files are ignored.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True)

    name: Text
    """What the relation is called."""
    category: str | None = None
    """What kind of relation it is, e.g. factual, linguistic."""
    prompt_templates: Annotated[tuple[Text, ...], Field(min_length=1)]
    """Prompts with exactly one `{}` each, where the subject goes."""
    samples: Annotated[tuple[RelationSample, ...], Field(min_length=1), AfterValidator(_distinct)]
    """The distinct pairs in the file's order. A repeated pair is kept once, so that no pair can be both an
    example and a test."""

    @model_validator(mode="after")
    def _check(self) -> RelationFile:
        for template in self.prompt_templates:
            if template.count("{}") != 1:
                raise ValueError(f"template {template!r} has {template.count('{}')} places for the subject; "
                                 "write exactly one {}")
        return self


def _require_different(first: str, second: str, first_name: str, second_name: str) -> None:
    if first == second:
        raise ValueError(f"fields '{first_name}' and '{second_name}' are the same: {first!r}")
