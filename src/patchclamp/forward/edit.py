"""Edits: one operation at a site, as frozen data. JSON both ways.

With x the value at the site and v̂ a direction of length one:

    zero         x -> 0
    mean         x -> its mean over texts, their first token left out
    set          x -> value
    scale        x -> factor · x
    add          x -> x + strength · sd · v̂     sd: standard deviation of x·v̂ over a neutral corpus (`unit="sd"`)
                 x -> x + strength · v           (`unit="raw"`)
    project_out  x -> x - (x·v̂) v̂
    clamp        x -> x + (value - x·v̂) v̂
    swap         x -> the value at `source.site` in a run on `source.prompt`
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from patchclamp.errors import EditError, SiteError
from patchclamp.forward.site import Site
from patchclamp.forward.values import Values
from patchclamp.model.tokens import Prompt

Op = Literal["zero", "mean", "set", "scale", "add", "project_out", "clamp", "swap"]
_NEEDS = {"set": ("value",), "scale": ("value",), "add": ("direction",), "project_out": ("direction",),
          "clamp": ("direction", "value"), "swap": ("source",)}
_MAY = {"mean": ("texts",), "add": ("strength", "unit", "when"), "project_out": ("when",), "clamp": ("when",),
        "zero": ("keys", "renormalize"),
        "scale": ("keys", "renormalize"), "set": ("keys", "renormalize")}
_READ_ONLY = {
    "logits": "change the residual stream that is unembedded instead, e.g. resid of the last block",
    "head_out": "it is the head times its output weights; edit head.L.h",
}


class Source(BaseModel):
    """Where a swapped value comes from: a site in a run on another prompt."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    prompt: Prompt
    """The prompt of the other run."""
    site: Site
    """The site there, with its own positions; as many tokens as the edited site has."""


class When(BaseModel):
    """A condition on each token: its coordinate x·ŵ along another direction lies above a value."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    direction: Values
    """A vector as wide as the site; only its direction counts."""
    above: float = Field(allow_inf_nan=False)
    """The coordinate above which the edit is applied to a token; that none is above it is no error."""


class Edit(BaseModel):
    """One operation at a site. Build one with the class methods: `Edit.zero("mlp.3@last")`."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    op: Op
    """The operation."""
    site: Site
    """Where it is applied."""
    value: Values | None = None
    """For `set` the new value, for `scale` the factor, for `clamp` the coordinate along the direction."""
    direction: Values | None = None
    """For `add`, `project_out` and `clamp`: a vector as wide as the site."""
    strength: float = 1.0
    """For `add`: how much, in `unit`."""
    unit: Literal["sd", "raw"] = "sd"
    """Unit of `strength`: standard deviations of projections over a neutral corpus, or the vector as it is."""
    texts: tuple[str, ...] = ()
    """For `mean`: the texts averaged over; the built-in neutral corpus if there are none."""
    source: Source | None = None
    """For `swap`: where the value comes from."""
    keys: str = "all"
    """On `pattern`: the attended tokens concerned, in the form of a site's positions."""
    when: When | None = None
    """For `add`, `project_out` and `clamp`: only at tokens whose value at the site lies far along another direction
    (conditional steering, Lee et al. 2024, arXiv 2409.05907)."""
    renormalize: bool = False
    """On `pattern`: rescale each row to sum to one again, as masking before the softmax would."""

    @model_validator(mode="after")
    def _consistent(self) -> "Edit":
        given = {n for n in ("value", "direction", "texts", "source", "when") if getattr(self, n) not in (None, ())}
        given |= self.model_fields_set & {"strength", "unit", "keys", "renormalize"}
        needs, may = _NEEDS.get(self.op, ()), _MAY.get(self.op, ())
        missing = [n for n in needs if n not in given]
        if missing:
            raise ValueError(f"{self.op} at {self.site} needs {' and '.join(missing)}")
        defaults = type(self).model_fields
        extra = [n for n in sorted(given - {*needs, *may}) if getattr(self, n) != defaults[n].default]
        if extra:
            raise ValueError(f"{self.op} at {self.site} takes no {' or '.join(extra)}")
        if self.site.point in _READ_ONLY:
            raise ValueError(f"{self.site} can be read but not edited: {_READ_ONLY[self.site.point]}")
        if (self.keys != "all" or self.renormalize) and self.site.point != "pattern":
            raise ValueError(f"keys and renormalize belong to pattern, not to {self.site}")
        if self.site.point == "pattern" and self.op not in ("zero", "scale", "set"):
            raise ValueError(f"{self.op} is not defined on attention weights; use zero, scale or set")
        if not math.isfinite(self.strength):
            raise ValueError(f"{self.op} at {self.site}: the strength is {self.strength}, not a finite number")
        for name in ("value", "direction"):
            self._check_shape(name)
        return self

    def _check_shape(self, name: str) -> None:
        values = getattr(self, name)
        if values is None:
            return
        if name == "direction":
            if values.tensor.dim() != 1:
                raise ValueError(f"a direction is one vector, not shape {list(values.tensor.shape)}")
            if self.op != "add" and not values.tensor.any():
                raise ValueError("the direction is all zeros, so it points nowhere")
            condition = None if self.when is None else self.when.direction.tensor
            if condition is not None and (condition.shape != values.tensor.shape or not condition.any()):
                raise ValueError(f"the condition's direction has shape {list(condition.shape)}, the edit's has "
                                 f"{list(values.tensor.shape)}; both are vectors at the same site, neither all zeros")
        elif self.op in ("scale", "clamp") and values.tensor.dim() != 0:
            raise ValueError(f"{self.op} takes one number, not shape {list(values.tensor.shape)}")

    @classmethod
    def _make(cls, op: Op, site: str | Site, **fields: Any) -> "Edit":
        try:
            return cls(op=op, site=Site.parse(site), **fields)
        except ValidationError as error:
            said = "; ".join(e["msg"].removeprefix("Value error, ") for e in error.errors())
            raise EditError(said) from error

    @classmethod
    def zero(cls, site: str | Site) -> "Edit":
        """Put zero in the value's place."""
        return cls._make("zero", site)

    @classmethod
    def mean(cls, site: str | Site, texts: Sequence[str] = ()) -> "Edit":
        """Put the value's mean over `texts` in its place (default: the built-in neutral corpus)."""
        if isinstance(texts, str):
            raise EditError(f"mean at {site} is taken over a list of texts, not over one text: write [{texts!r}]")
        return cls._make("mean", site, texts=tuple(texts))

    @classmethod
    def set(cls, site: str | Site, value: Any) -> "Edit":
        """Put `value` in its place: a number, a vector [width], or one vector per token [tokens, width]."""
        return cls._make("set", site, value=value)

    @classmethod
    def scale(cls, site: str | Site, factor: float) -> "Edit":
        """Multiply the value."""
        return cls._make("scale", site, value=factor)

    @classmethod
    def add(cls, site: str | Site, direction: Any, strength: float = 1.0, unit: Literal["sd", "raw"] = "sd",
            when: When | None = None) -> "Edit":
        """Add a direction [width]; see the module's table for the unit of `strength`."""
        return cls._make("add", site, direction=direction, strength=strength, unit=unit, when=when)

    @classmethod
    def project_out(cls, site: str | Site, direction: Any, when: When | None = None) -> "Edit":
        """Remove the component along a direction [width]."""
        return cls._make("project_out", site, direction=direction, when=when)

    @classmethod
    def clamp(cls, site: str | Site, direction: Any, value: float, when: When | None = None) -> "Edit":
        """Give the coordinate along the unit direction [width] this value and leave the rest."""
        return cls._make("clamp", site, direction=direction, value=value, when=when)

    @classmethod
    def swap(cls, site: str | Site, prompt: Any, source: str | Site | None = None) -> "Edit":
        """Patch in the value at `source` (default: the same site) of a run on `prompt`."""
        where = Site.parse(source) if source is not None else Site.parse(site)
        return cls._make("swap", site, source={"prompt": prompt, "site": where})

    @classmethod
    def block(cls, site: str | Site, keys: str = "all") -> "Edit":
        """Block attention from the site's positions to `keys`: `Edit.block("pattern.5@last", '"Poland"')`.

        The blocked weights are zero and the others rescaled to sum to one, which is what masking the scores
        with -inf before the softmax gives (attention knockout, Geva et al. 2023, arXiv 2304.14767). A token that
        has nothing left to attend to is an EditError.
        """
        if Site.parse(site).point != "pattern":
            raise SiteError(f"attention is blocked at pattern.L[.h], not at {site}")
        return cls._make("zero", site, keys=keys, renormalize=True)
