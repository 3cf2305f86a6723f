"""A question as an address has it: a method, a model, and the fields that differ from the defaults, each written as the
command line writes it.

    /lens?method=lens.logit&model=gemma-3-270m&prompt=The+capital+of+Poland+is&watch=+Warsaw&position=all
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

from patchclamp.errors import FileError, SpecError
from patchclamp.evidence.code import command_line, python_code, said_of
from patchclamp.evidence.method import Dtype, Method, NoModel, Spec, get_method, load_nothing
from patchclamp.evidence.options import Option, options_of
from patchclamp.evidence.record import strict
from patchclamp.tasks.examples import EXAMPLE_PREFIX
from patchclamp.tasks.files import ATTACHED, DEFAULT_MODEL, HUB_PREFIX

Given = Mapping[str, Sequence[str]]
"""Texts by the option's name without its dashes."""
DTYPES = tuple(name for name in get_args(Dtype) if name != "auto")
"""What a record says of a model loaded as `auto` is the format it came to, so the question could not be found again."""
LONGEST = 200_000
"""Characters of a field."""
HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?(:[\w.\[\]%+-]+)?")
"""A dataset of the Hub with its split; what else the library behind it takes may be a folder anywhere."""


@dataclass(frozen=True)
class Question:
    """What is asked of which model."""

    method: Method
    spec: Spec
    model: str
    dtype: str = "float32"

    @cached_property
    def id(self) -> str:
        """The same for the same question, whenever it is asked."""
        return question_id(self.method.name, self.spec.model_dump(mode="json"), self.model, self.dtype)

    @property
    def query(self) -> list[tuple[str, str]]:
        """The question as the parameters of an address."""
        pairs = [("method", self.method.name), ("model", self.model)]
        pairs += [("dtype", self.dtype)] * (self.dtype != "float32")
        said = (pair for _, some in said_of(self.method.name, self.spec) for pair in some)
        return pairs + [(word.removeprefix("--"), text or "") for word, text in said]

    @property
    def code(self) -> dict[str, str]:
        """The command line and the program that ask it."""
        try:
            command = command_line(self.method.name, self.spec, self.model, self.dtype)
        except SpecError as error:
            command = f"# {error}"
        return {"command": command, "python": python_code(self.method.name, self.spec, self.model, self.dtype)}


def question_id(method: str, spec: dict[str, Any], model: str, dtype: str) -> str:
    """24 hexadecimal digits of the SHA-256 of a question's content."""
    content = json.dumps([method, strict(spec), model, dtype], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(content.encode()).hexdigest()[:24]


def read_question(given: Given, folders: Sequence[Path], offered: Sequence[str] = ()) -> Question:
    """The question that an address or a form says. Raises SpecError for what is not a field or has no such value, and
    FileError for a file outside `folders`, or a model there that is not among those `offered`."""
    given = dict(given)
    for name, texts in given.items():
        _check_texts(name, texts)
    method = get_method(_last(given.pop("method", ())) or "")
    model = _last(given.pop("model", ())) or DEFAULT_MODEL
    dtype = _last(given.pop("dtype", ())) or "float32"
    if dtype not in DTYPES:
        raise SpecError(f"there is no number format {dtype!r}; there are {', '.join(DTYPES)}")
    options = options_of(method.spec, method.name)
    for option in options:
        for text in given.get(option.name.removeprefix("--"), ()):
            if text.startswith("@") and "string" not in option.held.kinds:  # JSON in a file
                check_inside(text[1:], folders)
    spec = method.make_spec(**_values(method.name, options, given))
    try:
        json.dumps([model, spec.model_dump(mode="json")], ensure_ascii=False).encode()
    except ValueError as error:
        raise SpecError("a field holds half of a character (a surrogate), as a cut emoji leaves it; write it anew"
                        ) from error
    for name in files_named(method, spec):
        check_inside(name, folders)
    ref = NoModel.ref if method.load is load_nothing else read_model(model, folders, offered)
    return Question(method, spec, ref, dtype)


def _check_texts(name: str, texts: Sequence[str]) -> None:
    for text in texts:
        if len(text) > LONGEST:
            raise SpecError(f"{name[:40]}: {len(text)} characters are too many for a question, which may have "
                            f"{LONGEST} in a field; put them into a file")


def files_named(method: Method, spec: Spec) -> list[str]:
    """What a question's fields name of files and folders, as they are in the specification."""
    values = spec.model_dump(mode="json", by_alias=True)
    held = [values[option.field] for option in options_of(method.spec, method.name) if option.held.path]
    return [name for value in held for name in (value if isinstance(value, list) else [value]) if name is not None]


def read_model(ref: str, folders: Sequence[Path], offered: Sequence[str] = ()) -> str:
    """A model's reference with the folders in it absolute; a name that is no folder here is an embedded model or one of
    the Hub. FileError for a folder outside `folders` that is not among those `offered`."""
    name, *attached = ref.split(ATTACHED)
    if ref in offered or (name in offered and not attached):
        return ref
    if name in offered:
        return ATTACHED.join([name, *(read_model(folder, folders) for folder in attached)])
    parts = [name, *attached]
    for name in parts:
        check_inside(name, folders)
    places = [folders[0] / Path(name).expanduser() for name in parts]
    return ATTACHED.join(str(place) if place.exists() else name for name, place in zip(parts, places, strict=True))


def check_inside(name: str, folders: Sequence[Path]) -> None:
    """Raise FileError if a file or folder of this name lies outside all of `folders`, of which the first is current."""
    if name.startswith(EXAMPLE_PREFIX):
        return
    if name.startswith(HUB_PREFIX):
        if not HUB_NAME.fullmatch(name.removeprefix(HUB_PREFIX)):
            raise FileError(f"{name} is no dataset of the Hub; write hf:OWNER/NAME, or hf:OWNER/NAME:SPLIT")
        return
    try:
        place = (folders[0] / Path(name).expanduser()).resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise FileError(f"{name!r} cannot be a file's name: {error}") from error
    if not any(place.is_relative_to(folder.resolve()) for folder in folders):
        raise FileError(f"{name} lies outside the workbench's folder {folders[0]}; upload the file, give a name inside "
                        "that folder, or start the workbench with --files FOLDER")


def _values(method: str, options: Sequence[Option], given: dict[str, Sequence[str]]) -> dict[str, Any]:
    """Field values; what is not given is left to its default."""
    values: dict[str, Any] = {}
    for option in options:
        name = option.name.removeprefix("--")
        none, empty = (flag and flag.removeprefix("--") for flag in (option.none_flag, option.empty_flag))
        if none and given.pop(none, None) is not None:
            values[option.field] = None
        if empty and given.pop(empty, None) is not None:
            values[option.field] = []
        if option.is_flag and given.pop(f"no-{name}", None) is not None:
            values[option.field] = False
        texts = given.pop(name, None)
        if texts:
            values[option.field] = _last(texts) != "false" if option.is_flag else option.value(list(texts))
    if given:
        unknown = next(iter(given))
        near = difflib.get_close_matches(unknown, [option.name.removeprefix("--") for option in options], n=1)
        raise SpecError(f"{method} has no field {unknown!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
    return values


def _last(texts: Sequence[str]) -> str | None:
    return texts[-1] if texts else None
