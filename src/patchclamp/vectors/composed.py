"""What the arithmetic of in-context vectors is asked, and what it finds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from patchclamp.evidence.cli_hints import Positional
from patchclamp.evidence.method import Part, Result, Spec
from patchclamp.evidence.verdict import Interval
from patchclamp.tasks.files import DataFile

if TYPE_CHECKING:
    import altair
    import pandas


class ComposeSpec(Spec):
    """Which task the arithmetic is about."""

    file: Annotated[DataFile, Positional()]
    """A task file: rows of input and output, or a relation, e.g. countries and capitals."""
    by: Literal["tasks", "mlp"] = "tasks"
    """What is added up. tasks: vectors of whole tasks, last-of-list = first-of-list + copy last - copy first. mlp: what
    one MLP writes, capital(Poland) = Poland + MLP on the way to a capital - MLP on the way to the country itself."""
    length: int = Field(3, ge=2, le=8)
    """Words in a list; not used by mlp."""
    shots: int = Field(8, ge=1, le=50)
    """Examples in a prompt."""
    template: str = "question"
    """How examples are written: question, colon, arrow, or your own text with two {}."""
    prompts: int = Field(60, ge=4, le=500)
    """In-context prompts each vector is the mean of."""
    limit: int = Field(60, ge=12, le=1000)
    """At most this many test lists (by mlp: rows), and half as many to choose the block on."""


class ComposedLayer(Part):
    """One block."""

    layer: int
    cosine: float
    """Of the composed and the measured vector, each less the mean of all four; by mlp of a row's own difference and the
    mean difference of other rows, mean over rows."""
    composed: float
    """Accuracy on test lists asked bare, with the composed vector in the last token's place; by mlp on prompts that
    make the model repeat the word, with the mean difference of other rows added."""
    direct: float
    """The same with the measured vector."""
    part: float
    """The same with A alone; by mlp with a random vector as long."""


class ComposeResult(Result):
    """The composed vector beside the measured one."""

    layer: int
    """The block chosen on other lists."""
    cosine: float
    accuracy_composed: Interval
    accuracy_direct: Interval
    accuracy_control: Interval
    """The best of the three parts alone and of their sums with other signs; by mlp random vectors as long."""
    icl_accuracy: float
    """After examples of the task itself."""
    zero_shot_accuracy: float
    """Without any vector: bare, by mlp after examples of repeating the word."""
    layers: list[ComposedLayer]
    test: int

    def table(self) -> pandas.DataFrame:
        """One row a block."""
        import pandas

        return pandas.DataFrame([layer.model_dump() for layer in self.layers])

    def chart(self) -> altair.TopLevelMixin:
        """Accuracy and cosine by block."""
        from patchclamp.charts.incontext import compose_chart

        return compose_chart(self)
