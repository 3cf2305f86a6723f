"""Sites: the addresses of values in a forward pass, as strings and as frozen values.

    point.layer[.unit][@positions]        resid.15   neuron.19.1044@last   head.9.6@:-1   mlp.12@"Poland"
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from patchclamp.errors import SiteError

UNIT_POINTS = ("head", "head_out", "q", "k", "v", "pattern", "neuron", "gate", "feature")
STREAM_POINTS = ("resid_pre", "resid_mid", "resid", "attn", "mlp")
POINTS = ("embed", *STREAM_POINTS, *UNIT_POINTS, "logits")

_SITE = re.compile(r"(?P<point>[a-z_]+)(?::(?P<name>[^.@\s]+))?(?P<numbers>(?:\.[^.@]*)*)(?:@(?P<positions>.*))?", re.S)
_FORM = "write point.layer[.unit][@positions], e.g. resid.15@last"
_NAMED = ("all", "last", "prompt", "response")


@dataclass(frozen=True, slots=True)
class Positions:
    """Which tokens of a prompt: `all`, `last`, `prompt`, `response`, an index, a slice, or a quoted substring
    (its last occurrence's last token). Indices count the prompt's own tokens; padding never shifts them."""

    kind: Literal["all", "last", "prompt", "response", "index", "slice", "text"] = "all"
    index: int = 0
    bounds: tuple[int | None, int | None, int | None] = (None, None, None)
    text: str = ""

    @classmethod
    def parse(cls, string: str) -> "Positions":
        """Read the part after `@`. Raises SiteError if it is none of the six forms."""
        if string in _NAMED:
            return cls(string)  # type: ignore[arg-type]
        if re.fullmatch(r"[+-]?\d{1,9}", string):
            return cls("index", index=int(string))
        if re.fullmatch(r"(-?\d{1,9})?:(-?\d{1,9})?(:(-?\d{1,9})?)?", string):
            start, stop, step = ([int(p) if p else None for p in string.split(":")] + [None])[:3]
            if step is not None and step < 1:
                raise SiteError(f"the slice @{string} has step {step}; a step is 1 or more")
            return cls("slice", bounds=(start, stop, step))
        if len(string) >= 3 and string[0] == string[-1] == '"':
            return cls("text", text=string[1:-1].replace('\\"', '"').replace("\\\\", "\\"))
        raise SiteError(
            f"@{string} names no positions: use @all, @last, @prompt, @response, an index (@3, @-2), "
            'a slice (@1:4) or a quoted substring (@"Poland")'
        )

    def __str__(self) -> str:
        if self.kind == "index":
            return str(self.index)
        if self.kind == "slice":
            start, stop, step = ("" if p is None else str(p) for p in self.bounds)
            return f"{start}:{stop}" + (f":{step}" if step else "")
        if self.kind == "text":
            return '"' + self.text.replace("\\", "\\\\").replace('"', '\\"') + '"'
        return self.kind

    @property
    def single(self) -> bool:
        """True where exactly one token is meant: values then have no token dimension."""
        return self.kind in ("last", "index", "text")


ALL = Positions()


@dataclass(frozen=True, slots=True)
class Site:
    """The address of a value. `str(site)` and `Site.parse` are inverse; two equal sites print alike."""

    point: str
    layer: int | None = None
    unit: int | None = None
    positions: Positions = ALL
    name: str | None = None
    """The autoencoder a `feature` belongs to."""

    @classmethod
    def parse(cls, string: "str | Site") -> "Site":
        """Read a site string; a `Site` passes through. Raises SiteError naming what is malformed."""
        if isinstance(string, Site):
            return string
        if not isinstance(string, str):
            raise SiteError(f"{string!r} is not a site: {_FORM}")
        return cls._parse(string)

    @classmethod
    @lru_cache(maxsize=2**14)
    def _parse(cls, string: str) -> "Site":
        match = _SITE.fullmatch(string)
        if match is None:
            raise SiteError(f"{string!r} is not a site: {_FORM}")
        point, name = match["point"], match["name"]
        if point not in POINTS:
            raise SiteError(f"{string!r}: there is no point {point!r}; points are {', '.join(POINTS)}")
        if name and point != "feature":
            raise SiteError(f"{string!r}: only a feature belongs to a named autoencoder")
        numbers = match["numbers"].split(".")[1:]
        if any(not re.fullmatch(r"\d{1,9}", n) for n in numbers):
            raise SiteError(f"{string!r}: layer and unit are whole numbers from 0, as in {point}.3")
        positions = ALL if match["positions"] is None else Positions.parse(match["positions"])
        return cls._checked(string, point, [int(n) for n in numbers], positions, name)

    @classmethod
    def _checked(
        cls, string: str, point: str, numbers: list[int], positions: Positions, name: str | None
    ) -> "Site":
        if point in ("embed", "logits"):
            if numbers:
                raise SiteError(f"{string!r}: {point} has no layer or unit")
            return cls(point, positions=positions)
        if not numbers:
            raise SiteError(f"{string!r}: {point} needs a layer, as in {point}.0")
        if len(numbers) > (2 if point in UNIT_POINTS else 1):
            raise SiteError(f"{string!r}: {point} takes a layer{' and a unit' * (point in UNIT_POINTS)}, no more")
        return cls(point, numbers[0], numbers[1] if len(numbers) == 2 else None, positions, name)

    def __str__(self) -> str:
        numbers = "".join(f".{n}" for n in (self.layer, self.unit) if n is not None)
        return self.place + numbers + ("" if self.positions == ALL else f"@{self.positions}")

    def at(self, positions: "str | Positions") -> "Site":
        """The same site at other positions."""
        return replace(self, positions=Positions.parse(positions) if isinstance(positions, str) else positions)

    @property
    def place(self) -> str:
        """The point, with its autoencoder's name if it has one: what a model looks up."""
        return f"{self.point}:{self.name}" if self.name else self.point

    @property
    def whole(self) -> "Site":
        """The same point and layer with every unit and position: what is captured to read this site."""
        return replace(self, unit=None, positions=ALL)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        def validate(value: Any) -> Site:
            try:
                return cls.parse(value)
            except SiteError as error:
                raise ValueError(str(error)) from error

        serialize: Callable[[Site], str] = str
        return core_schema.no_info_plain_validator_function(
            validate,
            serialization=core_schema.plain_serializer_function_ser_schema(serialize),
            json_schema_input_schema=core_schema.str_schema(),
        )
