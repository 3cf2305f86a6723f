"""A method's fields as widgets, made from its specification."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from patchclamp.evidence.code import saying
from patchclamp.evidence.method import Method
from patchclamp.evidence.options import Option, options_of, written

Widget = Literal["check", "choice", "choices", "number", "file", "files", "lines", "json", "area", "text"]
LONG = ("prompt", "prompts", "text", "clean", "corrupted", "passage", "beside", "question")
"""Fields whose text is rather a paragraph."""
NOT_UPLOADED = ("save", "out", "dot", "store", "stores", "index", "sae", "saes")
"""Fields whose file is written, or which name a folder: there is nothing for a browser to upload."""
FIRST = {"sae.train": ("store", "out", "latents", "k", "steps")}
"""Fields that come first where a specification begins with others, those of all corpora."""
SHOWN = 5
"""Fields that are shown at once, and all that have to be given."""


@dataclass(frozen=True)
class Field:
    """One widget."""

    name: str
    """The option's name without dashes, as addresses have it."""
    help: str
    widget: Widget
    required: bool
    default: str
    """What the field holds if nothing is given, as it would be written; lines for several."""
    choices: tuple[str, ...] = ()
    least: float | None = None
    most: float | None = None
    step: str = "any"
    none: str | None = None
    """The parameter that leaves the field unset."""
    beyond: bool = False
    """Whether it is one of the settings that most leave alone."""

    @property
    def label(self) -> str:
        return self.name.replace("-", " ")

    @property
    def uploaded(self) -> bool:
        """Whether a file can be uploaded for it."""
        return self.widget in ("file", "files") and self.name not in NOT_UPLOADED


def fields_of(method: Method) -> list[Field]:
    """The method's fields, those that have to be given first."""
    properties = method.spec.model_json_schema(mode="validation")["properties"]
    fields = [_field(option, properties[option.field]) for option in options_of(method.spec, method.name)]
    first = FIRST.get(method.name, ())
    place_of = {name: place for place, name in enumerate(first)}
    ordered = sorted(fields, key=lambda field: (field.name == "seed", place_of.get(field.name, len(first)),
                                                not field.required))
    return [replace(field, beyond=not field.required and place >= SHOWN) for place, field in enumerate(ordered)]


def _field(option: Option, schema: dict[str, Any]) -> Field:
    default = saying(option, option.default) if option.default not in (None, []) else []
    least, most = _bounds(schema)
    return Field(
        name=option.name.removeprefix("--"), help=option.help, widget=_widget(option), required=option.required,
        default="true" if option.is_flag and option.default else "\n".join(text or "" for _, text in default),
        choices=tuple(map(written, option.held.choices)), least=least, most=most,
        step="1" if option.shape.kinds == {"integer"} else "any",
        none=option.none_flag and option.none_flag.removeprefix("--"),
    )


def _widget(option: Option) -> Widget:
    shape, held = option.shape, option.held
    if option.is_flag:
        return "check"
    if held.path:
        return "files" if option.repeats and not option.comma else "file"
    if held.choices and not held.kinds:
        return "choices" if option.comma or option.repeats else "choice"
    if shape.kinds and shape.kinds <= {"integer", "number"} and not shape.items:
        return "number"
    if option.field in LONG and "string" in held.kinds:
        return "lines" if option.repeats else "area"
    if shape.is_json:
        return "json"
    return "lines" if option.repeats and not option.comma else "text"


def _bounds(schema: dict[str, Any]) -> tuple[float | None, float | None]:
    """The least and greatest number a field takes, where its schema says so."""
    found = {key: value for member in (schema, *schema.get("anyOf", ())) for key, value in member.items()}
    least, most = (found.get(name, found.get(f"exclusive{name.capitalize()}")) for name in ("minimum", "maximum"))
    return least, most
