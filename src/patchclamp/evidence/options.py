"""From a pydantic model's fields to command-line options, and from the text given back to field values.

What an option accepts follows from the field's JSON schema (`Shape`), so any type that pydantic can describe
works, third-party ones included:

| the schema says           | on the command line                                                        |
|---------------------------|----------------------------------------------------------------------------|
| boolean                   | `--flag` / `--no-flag`                                                     |
| integer, number, string   | `--option VALUE`, read by that type                                        |
| enum                      | `--option CHOICE`, one of the choices                                      |
| array of those            | `--option A --option B`; `--option A,B` if marked `CommaList`              |
| object, array of objects  | `--option JSON` or `--option @FILE.json`, items also one by one            |
| a union                   | the first of choice, integer, number, boolean, string that fits the text   |
| text or an object         | JSON if it looks it (`{…`, `[{…`), else the text                           |
| null, if not the default  | `--no-option`                                                              |
| empty array, likewise     | `--empty-option`                                                           |

Values are only read here; whether they are right is for pydantic to say.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined, to_jsonable_python

from patchclamp.errors import FileError, SpecError
from patchclamp.evidence.cli_hints import CommaList, Positional

SCALARS = ("integer", "number", "boolean", "string")
METAVARS = {"integer": "INT", "number": "FLOAT", "boolean": "BOOL", "string": "TEXT"}
NESTED = re.compile(r"\s*(\{|\[\s*[\[{])")
LISTED = re.compile(r'(?:[^",]+|"[^"]*"|")+')
"""A value of a list parted by commas; those within quotes part nothing: resid.1@"w1, w2",mlp.3."""
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


@dataclass(frozen=True)
class Shape:
    """The JSON values a field accepts, as far as a command line cares."""

    kinds: frozenset[str] = frozenset()
    """Which of `SCALARS`."""
    choices: tuple[Any, ...] = ()
    """The members of an enum."""
    items: Shape | None = None
    """What an array holds, if it may be an array."""
    structured: bool = False
    """Whether an object is possible: such a value is written as JSON."""
    nullable: bool = False
    path: bool = False
    """Whether a string is the path of a file."""
    may_be_empty: bool = True
    """Whether an array may have no items."""

    @property
    def is_json(self) -> bool:
        """Whether one occurrence of the option is JSON text."""
        items = self.items
        return self.structured or (items is not None and (items.is_json or items.nullable or items.items is not None))

    @property
    def is_scalar(self) -> bool:
        """Whether a single text, number or choice is possible."""
        return bool(self.kinds or self.choices)

    @property
    def is_flag(self) -> bool:
        return self.kinds == {"boolean"} and not (self.choices or self.items or self.structured)

    def union(self, other: Shape) -> Shape:
        """What either of two shapes accepts."""
        items = self.items.union(other.items) if self.items and other.items else self.items or other.items
        return Shape(
            kinds=self.kinds | other.kinds,
            choices=(*self.choices, *(c for c in other.choices if c not in self.choices)),
            items=items,
            structured=self.structured or other.structured,
            nullable=self.nullable or other.nullable,
            path=self.path or other.path,
            may_be_empty=self.may_be_empty and other.may_be_empty,
        )


ANYTHING = Shape(structured=True, nullable=True, items=Shape(structured=True))


def shape_of(schema: dict[str, Any], definitions: dict[str, Any], inside: frozenset[str] = frozenset()) -> Shape:
    """Read a field's JSON schema.

    `inside` holds the names of the definitions being read: a recursive one is structured."""
    if (reference := schema.get("$ref")) is not None:
        name = reference.rsplit("/", 1)[-1]
        if name in inside:
            return Shape(structured=True)
        return shape_of(definitions[name], definitions, inside | {name})
    members = schema.get("anyOf") or schema.get("oneOf") or schema.get("allOf")
    if members:
        return _union([shape_of(member, definitions, inside) for member in members])
    if "enum" in schema or "const" in schema:
        values = schema.get("enum", [schema.get("const")])
        return Shape(choices=tuple(v for v in values if v is not None), nullable=None in values)
    match schema.get("type"):
        case "null":
            return Shape(nullable=True)
        case "array":
            held = [
                *schema.get("prefixItems", ()),
                *([schema["items"]] if isinstance(schema.get("items"), dict) else ()),
            ]
            items = _union([shape_of(s, definitions, inside) for s in held]) if held else ANYTHING
            return Shape(items=items, may_be_empty=schema.get("minItems", 0) == 0)
        case "object":
            return Shape(structured=True)
        case str(kind) if kind in SCALARS:
            return Shape(kinds=frozenset({kind}), path=schema.get("format", "").endswith("path"))
    return ANYTHING


def _union(shapes: Sequence[Shape]) -> Shape:
    total = shapes[0]
    for shape in shapes[1:]:
        total = total.union(shape)
    return total


@dataclass(frozen=True)
class Option:
    """One field of a model as the command line sees it."""

    field: str
    """The name the model's constructor takes: the field's name or its alias."""
    name: str
    """As written, e.g. `--max-tokens`."""
    help: str
    shape: Shape
    required: bool
    default: Any
    """The default as JSON; None if there is none."""
    positional: bool = False
    comma: bool = False

    @property
    def is_flag(self) -> bool:
        return self.shape.is_flag and not self.positional

    @property
    def repeats(self) -> bool:
        """Whether the option may be given several times. Not where one value can be something else than an
        item, such as a prompt that is a text or a list of messages."""
        shape = self.shape
        return shape.items is not None and not (shape.is_json and (shape.structured or shape.is_scalar))

    @property
    def none_flag(self) -> str | None:
        """The flag that says null, where leaving the option out does not say it."""
        default_is_null = self.default is None and not self.required
        return None if not self.shape.nullable or default_is_null or self.is_flag else f"--no-{self.name[2:]}"

    @property
    def empty_flag(self) -> str | None:
        """The flag that says empty list, where leaving the option out does not say it."""
        items = self.shape.items if self.repeats else None
        if items is None or self.positional or self.default == [] or not self.shape.may_be_empty:
            return None
        says_it_itself = items.items is None if self.shape.is_json else self.comma  # with [], or with nothing
        return None if says_it_itself else f"--empty-{self.name[2:]}"

    @property
    def held(self) -> Shape:
        """What one occurrence of the option may be: the field's own scalars and its items."""
        return self.shape.union(self.shape.items) if self.shape.items else self.shape

    @property
    def choices(self) -> list[str]:
        """The members of an enum as they are written."""
        return [written(choice) for choice in self.held.choices]

    @property
    def metavar(self) -> str:
        """What stands for the value in the help text."""
        held = self.shape if self.shape.is_json else self.held
        words = ["CHOICE"] * bool(held.choices)
        words += [
            "PATH" if kind == "string" and held.path else METAVARS[kind] for kind in SCALARS if kind in held.kinds
        ]
        words += ["JSON"] * self.shape.is_json
        return "|".join(words) + (",…" if self.comma and not self.shape.is_json else "")

    @property
    def default_text(self) -> str | None:
        """The default as it would be written."""
        if self.default is None or self.default == []:
            return None
        if self.is_flag:
            return self.name if self.default else f"--no-{self.name[2:]}"
        if self.shape.is_json:
            return json.dumps(self.default, ensure_ascii=False)
        if isinstance(self.default, list):
            return (",".join if self.comma else " ".join)(_visible(v) for v in self.default)
        return _visible(self.default)

    def value(self, texts: list[str]) -> Any:
        """The field's value from the text of every occurrence of the option.

        Raises SpecError for malformed JSON and FileError for an unreadable `@FILE`."""
        shape = self.shape
        if shape.is_json:
            return self._json_value(texts)
        if shape.items is None:
            return scalar(texts[-1], shape)
        if self.comma:
            texts = [part.strip() for text in texts for part in LISTED.findall(text) if part.strip()]
        if len(texts) == 1 and shape.is_scalar:
            return scalar(texts[0], shape)
        return [scalar(text, shape.items) for text in texts]

    def _json_value(self, texts: list[str]) -> Any:
        """Each occurrence is an item; if items are no arrays themselves, it may also be an array of items."""
        items = self.shape.items
        if items is None or not self.repeats:
            return self._read_json(texts[-1], self.shape)
        values = [self._read_json(text, items) for text in texts]
        if items.items is not None:
            return values
        return [item for value in values for item in (value if isinstance(value, list) else [value])]

    def _read_json(self, text: str, shape: Shape) -> Any:
        """One JSON value.

        Where a plain text is as good, only what plainly is an object, or an array of objects or arrays, is
        taken for JSON: a prompt may begin with a bracket, a quote or an @."""
        if "string" in shape.kinds and not NESTED.match(text):
            return scalar(text, shape)
        if text in map(written, shape.choices):
            return scalar(text, shape)
        source = self.name
        if text.startswith("@"):
            source = text[1:]
            text = _read_file(self.name, Path(source))
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:  # the latter of brackets nested too deep
            if "string" in shape.kinds:
                return text
            raise SpecError(f"{source} has to hold JSON and does not: {error}") from error


def _read_file(option: str, path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise FileError(f"{option}: {path} is not UTF-8 (byte {error.start})") from error
    except OSError as error:
        raise FileError(f"{option}: cannot read {path}: {error.strerror}") from error


def scalar(text: str, shape: Shape) -> Any:
    """Read one value: the first of choice, integer, number, boolean and string that `text` is.

    Text that is none of what the shape accepts stays text, for pydantic to refuse by name."""
    for choice in shape.choices:
        if text == written(choice):
            return choice
    try:
        if "integer" in shape.kinds and re.fullmatch(r"\s*[+-]?\d+\s*", text):
            return int(text)
        # Where a string is possible too, "inf" and "nan" are words.
        if "number" in shape.kinds and (NUMBER.fullmatch(text) or "string" not in shape.kinds):
            return float(text)
    except ValueError:
        return text
    if "boolean" in shape.kinds and text in ("true", "false"):
        return text == "true"
    return text


def written(value: Any) -> str:
    """A JSON scalar as the command line writes it."""
    return value if isinstance(value, str) else json.dumps(value)


def _visible(value: Any) -> str:
    """`written`, in quotes where blanks would be lost to the eye."""
    text = written(value)
    return json.dumps(text, ensure_ascii=False) if text != text.strip() or not text else text


def options_of(model: type[BaseModel], owner: str) -> list[Option]:
    """The options of a pydantic model, in the order of its fields, the positional ones first.

    Raises SpecError, naming `owner`, if two of them would have the same name."""
    return list(_options_of(model, owner))


@lru_cache(maxsize=512)
def _options_of(model: type[BaseModel], owner: str) -> tuple[Option, ...]:
    schema = model.model_json_schema(mode="validation")
    definitions = schema.get("$defs", {})
    options = [
        _option(field, info, shape_of(schema["properties"][info.alias or field], definitions))
        for field, info in model.model_fields.items()
    ]
    refuse_clashes(options, owner)
    return tuple(sorted(options, key=lambda option: not option.positional))


def _option(field: str, info: FieldInfo, shape: Shape) -> Option:
    name = info.alias or field
    default = info.get_default(call_default_factory=True, validated_data={})
    return Option(
        field=name,
        name="--" + name.replace("_", "-"),
        help=" ".join((info.description or "").split()),
        shape=shape,
        required=info.is_required(),
        default=None if default is PydanticUndefined else to_jsonable_python(default, fallback=str),
        positional=any(isinstance(mark, Positional) for mark in info.metadata),
        comma=any(isinstance(mark, CommaList) for mark in info.metadata),
    )


def refuse_clashes(options: Sequence[Option], owner: str) -> None:
    """Raise SpecError if a name, with the flags derived from names, stands for two things."""
    taken = {"--help": "the help text", "--version": "the version", "--debug": "the traceback"}
    for option in options:
        negation = f"--no-{option.name[2:]}" if option.is_flag else None
        for name in filter(None, (option.name, negation, option.none_flag, option.empty_flag)):
            if name in taken:
                raise SpecError(
                    f"{owner}: {name} would mean both {taken[name]} and the field {option.field!r}; rename the field"
                )
            taken[name] = f"the field {option.field!r}"
