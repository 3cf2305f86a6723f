"""Three small methods, to test the command line without a language model."""

import sys
from typing import Annotated, Literal

from pydantic import BaseModel, Field

from patchclamp.errors import RunError
from patchclamp.evidence.cli_hints import CommaList, Positional
from patchclamp.evidence.method import Progress, Result, Spec, method
from patchclamp.evidence.verdict import Interval, Verdict


class Change(BaseModel):
    op: Literal["zero", "scale"]
    site: str


class CountSpec(Spec):
    prompt: Annotated[str | list[str], Positional()]
    """The prompt, or several."""
    watch: tuple[str, ...] = ()
    """A word to watch, e.g. `" Warsaw"`; may be repeated."""
    top: int = Field(5, ge=1)
    """How many letters."""
    parts: Annotated[tuple[Literal["resid", "attn", "mlp"], ...], CommaList()] = ("resid", "attn")
    """Where to look."""
    window: int | Literal["all"] | None = "all"
    """How far back."""
    chat: bool = False
    """Whether to use the chat template."""
    edits: tuple[Change, ...] = ()
    """Edits to apply."""


class CountResult(Result):
    letters: list[str]
    """Letters, most frequent first."""
    counts: list[float]
    """How often each occurs."""

    def table(self):
        import pandas

        return pandas.DataFrame({"letter": self.letters, "count": self.counts})

    def chart(self):
        import altair

        return altair.Chart(self.table()).mark_bar().encode(x="letter:N", y="count:Q")


@method("text.count", spec=CountSpec, result=CountResult)
def count(model: object, spec: CountSpec, progress: Progress) -> tuple[CountResult, Verdict | None]:
    """Count the letters of a prompt.

    The most frequent ones come first.
    """
    print("noise on standard output")
    text = spec.prompt if isinstance(spec.prompt, str) else "".join(spec.prompt)
    letters = list(progress.track(sorted(set(text)), "letters"))
    letters = sorted(letters, key=text.count, reverse=True)[: spec.top]
    effect = Interval(mean=1, low=1, high=1)
    verdict = Verdict(
        outcome="not supported", reason="The letters are as frequent as any.", effect=effect, control=effect
    )
    return CountResult(letters=letters, counts=[text.count(letter) for letter in letters]), verdict


class FailSpec(Spec):
    how: Literal["run", "bug", "interrupt", "exit"] = "run"
    """The way to fail."""


class Nothing(Result):
    """No table, no chart."""


@method("fail", spec=FailSpec, result=Nothing)
def fail(model: object, spec: FailSpec, progress: Progress) -> tuple[Nothing, None]:
    """Fail in the way asked for."""
    if spec.how == "run":
        raise RunError("the loss is not a number at step 3")
    if spec.how == "bug":
        return [][1]
    if spec.how == "interrupt":
        raise KeyboardInterrupt
    sys.stdout.write("written through the interpreter\n")
    return Nothing(), None
