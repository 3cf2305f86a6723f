"""One cyclopts command per method: `lens.logit` becomes `patchclamp lens logit`.

cyclopts splits the line, suggests the nearest option and prints the help; every value reaches us as text, is
read by `evidence.options.Option.value` and judged by the method's spec. So cyclopts' own conversions (a rounded "1.5",
"none" for None) never touch a spec.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from cyclopts import App, Group, Parameter
from pydantic import BaseModel, ConfigDict, Field

from patchclamp.errors import SpecError
from patchclamp.evidence.method import Dtype, Method, Spec
from patchclamp.evidence.options import Option, options_of, refuse_clashes
from patchclamp.tasks.files import DEFAULT_MODEL

COMMON = Group("Common options", sort_key=9)
OUT = "out"
"""The common option that a method may have for itself: it writes into that folder, and the record goes there too."""


class RunOptions(BaseModel):
    """The options every method command has besides those of its spec."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    model: str = DEFAULT_MODEL
    """The model: an embedded one (`patchclamp models list`), a Hugging Face id, a folder or a .gguf file.
    +sae=FOLDER behind it attaches an autoencoder, whose features are then sites: feature.15.8821."""
    device: str | None = None
    """Where it runs: cpu (if left out), cuda, cuda:1, mps, or auto to spread it over what there is."""
    dtype: Dtype = "float32"
    """Number format of weights and activations: float32 to compare in, auto for the checkpoint's own."""
    trust_remote_code: bool = False
    """Run the Python code that comes with the model. Only for authors you trust."""
    as_json: bool = Field(default=False, alias="json")
    """Print one JSON object (method, spec, result, verdict, provenance) on standard output, nothing else."""
    html: Path | None = None
    """Write the chart as a self-contained HTML page to this file."""
    png: Path | None = None
    """Write the chart as an image to this file, .png or .svg."""
    out: Path | None = None
    """Write the record and its files into this folder instead of the user's store."""
    no_record: bool = False
    """Do not store a record of this run."""


Runner = Callable[[Method, Spec, RunOptions], None]
"""What a command does once its line is read."""


def build_command(method: Method, run: Runner) -> App:
    """The command of `method`; called, it hands the spec and the common options to `run`.

    Raises SpecError if two options of the method would have the same name."""
    question = options_of(method.spec, method.name)
    has_own_folder = OUT in method.spec.model_fields
    common = [option for option in options_of(RunOptions, method.name) if option.field != OUT or not has_own_folder]
    refuse_clashes([*question, *common], method.name)
    signature = inspect.Signature(
        [*_parameters(question, "spec_", _group), *_parameters(common, "run_", lambda _: COMMON)]
    )

    def command(*positional: Any, **named: Any) -> None:
        given = signature.bind(*positional, **named).arguments
        spec = method.make_spec(**_values(question, "spec_", given))
        own = {OUT: getattr(spec, OUT)} if has_own_folder and not given.get("run_no_record") else {}
        run(method, spec, RunOptions(**_values(common, "run_", given), **own))

    command.__signature__ = signature  # type: ignore[attr-defined]
    app = App(name=method.name.rsplit(".", 1)[-1], help=method.description)
    app.default(command)
    return app


def _group(option: Option) -> Group | str:
    """The panel of the help text; the two names are cyclopts' own."""
    if option.positional:
        return "Arguments"
    return COMMON if option.field == "seed" else "Parameters"


def _parameters(
    options: list[Option], prefix: str, group_of: Callable[[Option], Group | str]
) -> Iterator[inspect.Parameter]:
    """The function parameters cyclopts makes `options` from; positional ones come first."""
    for option in options:
        kind = inspect.Parameter.POSITIONAL_ONLY if option.positional else inspect.Parameter.KEYWORD_ONLY
        hint = _hint(option)
        yield inspect.Parameter(
            prefix + option.field,
            kind,
            default=_placeholder(hint),
            annotation=Annotated[hint, _settings(option, group_of(option))],
        )
    for option in options:
        if option.none_flag:
            settings = Parameter(
                name=option.none_flag,
                help=f"Leave {option.field} unset.",
                negative=(),
                required=False,
                show_default=False,
                group=group_of(option),
            )
            yield inspect.Parameter(
                f"{prefix}none_{option.field}",
                inspect.Parameter.KEYWORD_ONLY,
                default=False,
                annotation=Annotated[bool, settings],
            )


def _settings(option: Option, group: Group | str) -> Parameter:
    if option.is_flag:
        negative = () if group is COMMON else (f"--no-{option.name[2:]}",)
    else:
        negative = (option.empty_flag,) if option.empty_flag else ()
    choices = [] if _is_choice(option) else option.choices
    off = option.is_flag and group is COMMON  # a switch that is off, with no --no- form to show
    # Where --no-OPTION may stand for a required one, the spec itself will miss it.
    required = option.required and not option.none_flag
    return Parameter(
        name=option.field.upper() + "..." * option.repeats if option.positional else option.name,
        help=option.help + (f" Choices: {', '.join(choices)}." if choices else ""),
        negative=negative,
        metavar=None if option.is_flag or _is_choice(option) else option.metavar,
        required=required,
        show_default=(not off and option.default_text) or False,
        group=group,
    )


def _hint(option: Option) -> Any:
    """A type cyclopts takes for text, or for choices it can check and suggest from."""
    shape = option.shape
    if option.is_flag:
        return bool | None if shape.nullable else bool
    one: Any = Literal[tuple(option.choices)] if _is_choice(option) else str
    return list[one] if option.repeats else one


def _is_choice(option: Option) -> bool:
    """Whether cyclopts can check the option's values against its choices."""
    return bool(option.choices) and not (option.held.kinds or option.shape.is_json or option.comma)


def _placeholder(hint: Any) -> Any:
    """A default of the type of `hint`: cyclopts wants a valid one, and never hands it over."""
    if get_origin(hint) is Literal:
        return get_args(hint)[0]
    return [] if get_origin(hint) is list else False if hint is not str else ""


def _values(options: list[Option], prefix: str, given: dict[str, Any]) -> dict[str, Any]:
    """What was given on the line, by field; a field left out is left to its default."""
    values: dict[str, Any] = {}
    for option in options:
        name = prefix + option.field
        if given.get(f"{prefix}none_{option.field}"):
            if name in given:
                raise SpecError(f"{option.none_flag} and a value for {option.field} were both given; leave one out")
            values[option.field] = None
        elif name in given:
            raw = given[name]
            is_text = isinstance(raw, str) or (isinstance(raw, list) and raw)
            values[option.field] = option.value([raw] if isinstance(raw, str) else raw) if is_text else raw
    return values
