"""How to ask a recorded question again: as a command, and in Python."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from keyword import iskeyword
from typing import Any

from patchclamp.errors import SpecError
from patchclamp.evidence.method import NoModel, Spec, get_method, load_language_model
from patchclamp.evidence.options import Option, options_of, written
from patchclamp.tasks.files import DEFAULT_MODEL

Said = tuple[str, str | None]
"""An option as it is written, and the text behind it; None behind a flag."""


def command_line(name: str, spec: Spec, model: str, dtype: str = "float32") -> str:
    """The command that asks `spec` of `model` by the method called `name`, as a shell reads it. Only what differs from
    the defaults is written. SpecError for a value that no command line can say."""
    placed, named = list[str](), list[str]()
    for option, said in said_of(name, spec):
        for word, text in said:
            if text is None:
                named.append(word)
            elif option.positional:
                placed.append(text)
            else:
                named += [f"{word}={text}"] if text.startswith("-") else [word, text]
    named += ["--model", model] * (model not in (DEFAULT_MODEL, NoModel.ref))
    named += ["--dtype", dtype] * (dtype != "float32")
    start = ["patchclamp", *name.split(".")]
    if any(text.startswith("-") for text in placed):  # behind -- it is no option
        return shlex.join([*start, *named, "--", *placed])
    return shlex.join([*start, *placed, *named])


def said_of(name: str, spec: Spec) -> list[tuple[Option, list[Said]]]:
    """How each field that is not as by default is said: options with their texts. SpecError as `command_line`."""
    values = asked(spec)
    return [(option, saying(option, values[option.field])) for option in options_of(type(spec), name)
            if option.field in values]


def python_code(name: str, spec: Spec, model: str, dtype: str = "float32") -> str:
    """A program that asks `spec` of `model` by the method called `name`, and shows chart and verdict."""
    fields = asked(spec)
    lines = [f"    {key}={value!r}," for key, value in fields.items() if not iskeyword(key)]
    if reserved := {key: value for key, value in fields.items() if iskeyword(key)}:
        lines.append(f"    **{reserved!r},")
    load = "pc.load" if get_method(name).load is load_language_model else f"pc.get_method({name!r}).load"
    kind = "" if dtype == "float32" else f", dtype={dtype!r}"
    before = ["import patchclamp as pc", "", f"model = {load}({model!r}{kind})", "record = pc.run("]
    return "\n".join([*before, f"    {name!r}, model,", *lines, ")", "print(record.verdict)", "record.chart()", ""])


def asked(spec: Spec) -> dict[str, Any]:
    """The fields of a specification that differ from their defaults, as JSON values, under the names its constructor
    takes."""
    values = spec.model_dump(mode="json", by_alias=True)
    return {option.field: values[option.field] for option in options_of(type(spec), type(spec).__name__)
            if option.required or values[option.field] != option.default}


def saying(option: Option, value: Any) -> list[Said]:
    """What is said for a field to have this JSON value. SpecError if no text says it."""
    if option.is_flag and value is not None:
        return [(option.name if value else f"--no-{option.name[2:]}", None)]
    if value is None:
        return [(option.none_flag, None)] if option.none_flag else []
    if value == [] and option.empty_flag:
        return [(option.empty_flag, None)]
    texts = next((texts for texts in _candidates(option, value) if _reads_as(option, texts, value)), None)
    if texts is None:
        raise SpecError(f"{option.name}: no command line says {json.dumps(value, ensure_ascii=False)}; ask in Python")
    return [(option.name, text) for text in texts]


def _candidates(option: Option, value: Any) -> Iterator[list[str]]:
    """Ways to write a value, the plainest first."""
    if isinstance(value, list) and option.repeats:
        if option.comma and not option.shape.is_json:
            yield [",".join(map(written, value))]
        yield [item if isinstance(item, str) else json.dumps(item, ensure_ascii=False) for item in value]
        yield [json.dumps(item, ensure_ascii=False) for item in value]
    elif not isinstance(value, dict | list):
        yield [written(value)]
    yield [json.dumps(value, ensure_ascii=False)]


def _reads_as(option: Option, texts: list[str], value: Any) -> bool:
    try:
        return bool(texts) and option.value(texts) == value
    except SpecError:
        return False
