"""Choosing where and how strongly to use a saved vector, on validation prompts; the choice is kept in its file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from patchclamp.evidence.cli_hints import Positional
from patchclamp.evidence.method import Outcome, Progress, Result, method
from patchclamp.evidence.verdict import judge
from patchclamp.forward import Model
from patchclamp.tasks.behaviour import BehaviourName
from patchclamp.tasks.files import DataFile
from patchclamp.vectors.behave import Asking
from patchclamp.vectors.choose import TriedPosition, choose_all
from patchclamp.vectors.search import ChoosingSpec, Tried
from patchclamp.vectors.source import behaviour_for
from patchclamp.vectors.vector import Ablation, Setting, load_vector

if TYPE_CHECKING:
    import altair
    import pandas


class SelectSpec(ChoosingSpec):
    """Which vector, and what its use may cost."""

    vector: Annotated[DataFile, Positional()]
    """A saved vector; the choice is written into it."""
    behaviour: BehaviourName | None = None
    """The behaviour whose validation prompts to choose on; by default the one it was found with."""


class SelectResult(Result):
    """What was chosen."""

    add: Setting | None
    """Null: no direction found within the bounds."""
    subtract: Setting | None
    ablate: Ablation | None
    tried: list[Tried]
    position: str | None
    """The token at which the vector was found; null: the last of a prompt, the answer of a pair."""
    positions: list[TriedPosition]
    """The tokens that were tried, if several were given."""
    saved: str

    def table(self) -> pandas.DataFrame:
        """One row a way that was tried on all prompts."""
        import pandas

        return pandas.DataFrame([{**one.model_dump(), "sites": "+".join(one.sites)} for one in self.tried])

    def chart(self) -> altair.TopLevelMixin:
        """Effect against cost."""
        from patchclamp.charts.vectors import select_chart

        return select_chart(self)


@method("vectors.select", spec=SelectSpec, result=SelectResult)
def select_vector(model: Model, spec: SelectSpec, progress: Progress) -> Outcome:
    """Choose block and strength for adding, subtracting and projecting out a vector, within bounds on their cost.

    The verdict asks whether adding as chosen changes validation answers; they were chosen on these, so only
    `vectors evaluate`, on test prompts, proves it.
    """
    vector = load_vector(spec.vector, model)
    behaviour = behaviour_for(vector, spec.behaviour)
    asking = Asking(model, behaviour.detector, behaviour.format, spec.max_new_tokens)
    cases = asking.cases(behaviour.validation)
    vector, choice = choose_all(vector, asking, behaviour, cases, spec, progress)
    info = vector.info
    saved = vector.with_info(behaviour=spec.behaviour or info.behaviour).save(spec.vector)
    result = SelectResult(
        add=info.add, subtract=info.remove, ablate=info.ablate, tried=choice.tried,
        position=info.position, positions=choice.positions, saved=str(saved),
    )
    if info.add is None:
        return result, None
    plain = [case for case in cases if case.kind == "plain"]
    verdict = judge(
        asking.rate(plain, vector.edits(info.add)).astype(float),
        asking.rate(plain).astype(float),
        direction="greater",
        seed=spec.seed,
        claim=f"adding the {behaviour.name} vector as chosen changes the answers to validation prompts (share that "
        "shows the behaviour, against the unedited model; chosen on these prompts, so vectors evaluate has to prove it "
        "on others)",
    )
    return result, verdict
