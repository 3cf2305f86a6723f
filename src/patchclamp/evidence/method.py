"""A method is one way to ask a model a question; commands, forms, JSON and records all derive from it.

Writing one is writing one file: a `Spec` (what is asked), a `Result` (what was measured) and a function
decorated with `@method`. See `lenses/logit.py` for the pattern.
"""

from __future__ import annotations

import difflib
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from patchclamp.errors import SpecError
from patchclamp.evidence.passage import Passage
from patchclamp.evidence.provenance import provenance_of
from patchclamp.evidence.record import Record
from patchclamp.evidence.verdict import Verdict
from patchclamp.tasks.files import noting_files

if TYPE_CHECKING:
    import altair
    import pandas

    from patchclamp.forward import Model

T = TypeVar("T")

ENTRY_POINT_GROUP = "patchclamp.methods"
BUILT_IN = (
    "patchclamp.plain.capture",
    "patchclamp.plain.generate",
    "patchclamp.lenses.logit",
    "patchclamp.lenses.attribute",
    "patchclamp.lenses.attention",
    "patchclamp.lenses.language",
    "patchclamp.lenses.stages",
    "patchclamp.lenses.patchscope",
    "patchclamp.lenses.multihop",
    "patchclamp.lenses.selfreport",
    "patchclamp.lenses.tuned",
    "patchclamp.lenses.jacobian",
    "patchclamp.neurons.find",
    "patchclamp.neurons.ablate",
    "patchclamp.neurons.attribute",
    "patchclamp.neurons.dose",
    "patchclamp.neurons.repair",
    "patchclamp.neurons.index",
    "patchclamp.neurons.examples",
    "patchclamp.neurons.explain",
    "patchclamp.neurons.multimodal",
    "patchclamp.vectors.find",
    "patchclamp.vectors.select",
    "patchclamp.vectors.evaluate",
    "patchclamp.vectors.read",
    "patchclamp.vectors.apply",
    "patchclamp.vectors.bake",
    "patchclamp.vectors.task",
    "patchclamp.vectors.compose",
    "patchclamp.vectors.show",
    "patchclamp.sae.harvest",
    "patchclamp.sae.train",
    "patchclamp.sae.evaluate",
    "patchclamp.sae.compare",
    "patchclamp.sae.index",
    "patchclamp.sae.browse",
    "patchclamp.sae.show",
    "patchclamp.sae.search",
    "patchclamp.sae.find",
    "patchclamp.sae.steer",
    "patchclamp.sae.attribute",
    "patchclamp.sae.plan",
    "patchclamp.sae.convert",
    "patchclamp.relations.fit",
    "patchclamp.relations.evaluate",
    "patchclamp.relations.edit",
    "patchclamp.relations.lens",
    "patchclamp.relations.table",
    "patchclamp.circuits.patch",
    "patchclamp.circuits.knockout",
    "patchclamp.circuits.task",
    "patchclamp.circuits.score",
    "patchclamp.circuits.find",
    "patchclamp.circuits.evaluate",
    "patchclamp.circuits.heads",
    "patchclamp.circuits.flow",
    "patchclamp.circuits.show",
    "patchclamp.circuits.verify",
)


class Spec(BaseModel):
    """What is asked of a model. Subclasses add fields, each with a docstring below it: the docstring is the
    help text of the command line, the web form and the docs page."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    seed: int = Field(0, ge=0)
    """Seed of everything random: controls, bootstrap, sampling."""


class Result(BaseModel):
    """What was measured. JSON both ways; `table` and `chart` are two views of the same numbers."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    def table(self) -> pandas.DataFrame:
        """The numbers as one tidy table."""
        raise NotImplementedError

    def chart(self) -> altair.TopLevelMixin:
        """The numbers as an Altair chart."""
        raise NotImplementedError

    def passages(self) -> list[Passage]:
        """Texts whose tokens are coloured by a number, if the result has such."""
        return []


class Part(BaseModel):
    """A part of a result, e.g. what was measured at one layer."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class Progress(Protocol):
    """How a run reports how far it is. `track` wraps the loop that takes the time."""

    def track(self, items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]: ...


class Silent:
    """The progress display of a library call: none."""

    def track(self, items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
        yield from items


Outcome = tuple[Result, Verdict | None]
Dtype = Literal["float32", "bfloat16", "float16", "float64", "auto"]
"""Number formats a model can be loaded in; auto: the checkpoint's own."""
Loader = Callable[..., Any]
"""What finds and reads a method's model: `(ref, *, dtype, device, device_map, trust_remote_code) -> model`."""


def load_language_model(ref: str, **options: Any) -> Model:
    """`patchclamp.forward.load`, imported when it is needed."""
    from patchclamp.forward import load

    return load(ref, **options)


@dataclass(frozen=True)
class NoModel:
    """What a record says of the model where none is asked."""

    ref: str = "none"
    name: str = "none"
    revision: None = None
    weights_hash: str = ""
    dtype: str = "float32"
    device: str = "cpu"


def load_nothing(ref: str, **options: Any) -> NoModel:
    """For a method that reads results and asks no model."""
    return NoModel()


@dataclass(frozen=True)
class Method:
    """A registered method. Call it with a model and the fields of its spec to get a `Record`."""

    name: str
    """Dotted name, e.g. `lens.logit`: the command is `patchclamp lens logit`."""
    summary: str
    """First line of the function's docstring."""
    description: str
    """The function's docstring."""
    spec: type[Spec]
    result: type[Result]
    function: Callable[[Model, Any, Progress], Outcome]
    load: Loader = load_language_model
    """Gets the kind of model the method asks: a causal language model, unless the decorator names another loader."""

    def __call__(self, model: Model, *, progress: Progress | None = None, **fields: Any) -> Record:
        """Ask the question of `model`; `fields` are those of `self.spec`. Raises SpecError on bad fields."""
        return self.run(model, self.make_spec(**fields), progress)

    def make_spec(self, **fields: Any) -> Spec:
        """Validate `fields` into this method's spec; SpecError names each wrong field."""
        try:
            return self.spec(**fields)
        except ValidationError as error:
            details = "; ".join(
                f"{'.'.join(map(str, e['loc'])) or 'spec'}: {e['msg'].removeprefix('Value error, ')}"
                for e in error.errors()
            )
            raise SpecError(f"{self.name}: {details}") from error

    def run(self, model: Model, spec: Spec, progress: Progress | None = None) -> Record:
        """Run on `model`; the record holds spec, result, verdict and provenance, and is not yet stored."""
        started = time.perf_counter()
        attaching = getattr(model, "attaching", nullcontext)  # a question leaves the model as it found it
        with noting_files() as files, attaching():
            result, verdict = self.function(model, spec, progress or Silent())
        duration = time.perf_counter() - started
        provenance = provenance_of(model, seed=spec.seed, duration=duration, inputs=files)
        return Record(method=self.name, spec=spec, result=result, verdict=verdict, provenance=provenance)


_registry: dict[str, Method] = {}


def method(
    name: str, *, spec: type[Spec], result: type[Result], load: Loader = load_language_model
) -> Callable[[Callable[..., Outcome]], Method]:
    """Register the decorated function `(model, spec, progress) -> (result, verdict or None)` as `name`; `load` gets its
    model where that is not a causal language model. The model needs what a record says of it: `ref`, `name`,
    `revision`, `weights_hash`, `dtype` and `device`."""

    def register(function: Callable[..., Outcome]) -> Method:
        description = (function.__doc__ or "").strip()
        made = Method(name, description.split("\n")[0], description, spec, result, function, load)
        existing = _registry.get(name)
        if existing is not None and existing.function.__module__ != function.__module__:
            raise SpecError(f"two methods are called {name}: one in {existing.function.__module__}, "
                            f"one in {function.__module__}; rename one of them")
        _registry[name] = made
        return made

    return register


def methods() -> dict[str, Method]:
    """All registered methods by name: the built-in ones and those of installed packages that declare the
    entry-point group `patchclamp.methods`."""
    for module in BUILT_IN:
        import_module(module)
    for entry in entry_points(group=ENTRY_POINT_GROUP):
        try:
            entry.load()
        except Exception as error:
            package = entry.dist.name if entry.dist else entry.value
            raise SpecError(
                f"the methods of the installed package {package} cannot be loaded ({type(error).__name__}: {error}); "
                "repair it or uninstall it"
            ) from error
    return dict(sorted(_registry.items()))


def get_method(name: str) -> Method:
    """The method called `name`; SpecError names the nearest ones if there is none."""
    if name in _registry:
        return _registry[name]
    known = methods()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3) or list(known)
        raise SpecError(f"there is no method {name!r}; did you mean {' or '.join(near)}?")
    return known[name]


def run(name: str, model: Model, *, progress: Progress | None = None, **fields: Any) -> Record:
    """Run the method called `name` on `model` with the fields of its spec: `pc.run("lens.logit", model,
    prompt="…", watch=[" Warsaw"])`."""
    return get_method(name)(model, progress=progress, **fields)
