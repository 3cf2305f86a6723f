"""What the editing of a fact is asked, and what it finds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from patchclamp.evidence.cli_hints import Positional
from patchclamp.evidence.method import Part, Result
from patchclamp.evidence.verdict import FEWEST, Interval
from patchclamp.relations.fit import OneRelationSpec
from patchclamp.tasks.files import DataFile

if TYPE_CHECKING:
    import altair
    import pandas

By = Literal["inverse", "swap", "neurons"]
Kind = Literal["same subject", "other subject"]


class EditSpec(OneRelationSpec):
    """Which fact to edit, and how."""

    subject: Annotated[str, Positional()]
    """Whose object is to change."""
    to_object_of: str
    """Whose object it is to become."""
    relation: DataFile
    """A relation file; `example:relations/country-capital` is one that comes along."""
    by: By = "inverse"
    """inverse: add W⁺ (z_target - z_source) to the subject's stream. swap: put the other subject's stream in its place.
    neurons: rewrite the value vectors of the neurons that wrote the old answer."""
    layer: int | None = Field(None, ge=-1)
    """The block after which the subject's stream is edited, -1 for the embeddings; chosen on validation pairs if not
    given. Not used by neurons."""
    rank: int | None = Field(None, ge=1)
    """Singular values of W that are inverted; chosen on validation pairs if not given."""
    pairs: int = Field(20, ge=FEWEST)
    """At most so many other facts, which had no part in fitting and choosing, are edited for the verdict."""
    controls: int = Field(20, ge=2)
    """Random changes that each edit is compared with."""
    others: tuple[DataFile, ...] = ()
    """Relation files in which other facts on the subject are looked up; those beside the relation's own if none."""
    max_new_tokens: int = Field(12, ge=1)
    """Length of the answers shown."""


class Answer(Part):
    """What the model says."""

    text: str
    old: float
    """Probability of the old answer's first token."""
    new: float
    """Probability of the new answer's first token."""


class SideEffect(Part):
    """Another fact that the model knows, asked with the edit made."""

    kind: Kind
    relation: str
    subject: str
    before: str
    """The first choice without the edit, which is right."""
    after: str
    kept: bool


class EditResult(Result):
    """A fact edited, and how well such edits work on other facts."""

    relation: str
    subject: str
    target: str
    """The subject whose object was to be said."""
    by: By
    template: str
    old: str
    """The model's answer before; its first token."""
    new: str
    """Its answer for the other subject."""
    layer: int | None
    rank: int | None
    neurons: list[str]
    """The neurons whose value vectors were rewritten."""
    strength: float | None
    """Of that, in lengths of a mean value vector."""
    before: Answer
    after: Answer
    random_answer: Answer
    """With a random change as long, or of as many random neurons."""
    pairs: int
    success: Interval
    """Share of other facts whose edit makes the other object the first choice."""
    swap: Interval
    """The same with the other subject's stream at the same layer; empty for neurons."""
    random: Interval
    """The same with random changes."""
    side_effects: list[SideEffect]
    same_subject_kept: Interval
    """Share of the subject's other facts that stay right."""
    other_subjects_kept: Interval
    """Share of other subjects' facts of this relation that stay right with the same change made."""

    def table(self) -> pandas.DataFrame:
        """The answers, and the other facts."""
        import pandas

        rows = [{"what": name, "text": one.text, self.old: one.old, self.new: one.new} for name, one in (
            ("before", self.before), ("after", self.after), ("random change", self.random_answer))]
        rows += [{"what": f"{one.kind}: {one.relation} of {one.subject}", "text": f"{one.before} → {one.after}"}
                 for one in self.side_effects]
        return pandas.DataFrame(rows).astype(object).fillna("")

    def chart(self) -> altair.TopLevelMixin:
        """Probabilities of both answers before and after, and how often such edits work."""
        from patchclamp.charts.relations import edit_chart

        return edit_chart(self)
