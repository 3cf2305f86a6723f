"""Readouts: what is measured at the end of a run, as frozen data. JSON both ways."""

from functools import lru_cache
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from patchclamp.errors import SpecError
from patchclamp.forward.site import Positions, Site

Kind = Literal["logits", "logit", "probability", "log_probability", "logit_difference", "rank", "kl", "loss", "top",
               "value"]
_WITH_TOKENS = {"logit": 1, "probability": 1, "log_probability": 1, "rank": 1, "logit_difference": 2}
Token = str | int


class Top(NamedTuple):
    """One of the likeliest next tokens."""

    id: int
    text: str
    probability: float


class Readout(BaseModel):
    """What is measured. Build one with the class methods: `Readout.logit_difference(" Mary", " John")`.

    Tokens are strings that are one token of the model, or token ids.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    kind: Kind
    """The measure."""
    tokens: tuple[Token, ...] = ()
    """The tokens concerned; for `logit_difference` answer and distractor."""
    at: str = "last"
    """The token position whose prediction is measured, in the form of a site's positions."""
    site: Site | None = None
    """For `value`: the site whose value is returned."""
    k: int = 10
    """For `top`: how many tokens."""

    @model_validator(mode="after")
    def _consistent(self) -> "Readout":
        wanted = _WITH_TOKENS.get(self.kind, 0)
        if len(self.tokens) < wanted or (self.tokens and not wanted):
            raise ValueError(f"{self.kind} takes {wanted or 'no'} token{'s' * (wanted != 1)}, got {len(self.tokens)}")
        if (self.site is not None) != (self.kind == "value"):
            raise ValueError("a site belongs to the readout 'value', and only to it")
        if self.kind != "loss" and self.kind != "value" and not Positions.parse(self.at).single:
            raise ValueError(f"{self.kind} is measured at one position, not at @{self.at}")
        if self.k < 1:
            raise ValueError("top needs k of at least 1")
        return self

    @classmethod
    def _make(cls, **fields: Any) -> "Readout":
        try:
            return cls(**fields)
        except ValidationError as error:
            raise SpecError("; ".join(e["msg"].removeprefix("Value error, ") for e in error.errors())) from error

    @classmethod
    def logits(cls, at: str = "last") -> "Readout":
        """All logits at one position: [V]."""
        return cls._make(kind="logits", at=at)

    @classmethod
    def logit(cls, *tokens: Token, at: str = "last") -> "Readout":
        """Logits of the tokens: [N]. Only these tokens are unembedded."""
        return cls._make(kind="logit", tokens=tokens, at=at)

    @classmethod
    def probability(cls, *tokens: Token, at: str = "last") -> "Readout":
        """Probabilities of the tokens: [N]."""
        return cls._make(kind="probability", tokens=tokens, at=at)

    @classmethod
    def log_probability(cls, *tokens: Token, at: str = "last") -> "Readout":
        """Log-probabilities of the tokens, in nats: [N]."""
        return cls._make(kind="log_probability", tokens=tokens, at=at)

    @classmethod
    def logit_difference(cls, answer: Token, distractor: Token, at: str = "last") -> "Readout":
        """logit(answer) - logit(distractor): a scalar. Only these two tokens are unembedded."""
        return cls._make(kind="logit_difference", tokens=(answer, distractor), at=at)

    @classmethod
    def rank(cls, *tokens: Token, at: str = "last") -> "Readout":
        """Ranks of the tokens among all, from 0: [N]."""
        return cls._make(kind="rank", tokens=tokens, at=at)

    @classmethod
    def kl(cls, at: str = "last") -> "Readout":
        """KL(unedited ‖ edited) of the next-token distribution, in nats: a scalar."""
        return cls._make(kind="kl", at=at)

    @classmethod
    def loss(cls, at: str = "all") -> "Readout":
        """Mean cross-entropy of predicting the tokens `at` from those before, in nats: a scalar."""
        return cls._make(kind="loss", at=at)

    @classmethod
    def top(cls, k: int = 10, at: str = "last") -> "Readout":
        """The k likeliest tokens, as a list of `Top`."""
        return cls._make(kind="top", k=k, at=at)

    @classmethod
    def value(cls, site: str | Site) -> "Readout":
        """The value at a site, after any edit there."""
        return cls._value(Site.parse(site))

    @classmethod
    @lru_cache(maxsize=2**14)
    def _value(cls, site: Site) -> "Readout":
        return cls._make(kind="value", site=site)


def as_readout(read: "Readout | str | Site") -> Readout:
    """A site string stands for the value there."""
    return read if isinstance(read, Readout) else Readout.value(read)
