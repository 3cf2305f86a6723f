"""Choosing where and how strongly to use a saved vector, on validation prompts; the choice is kept in its file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import numpy as np
from pydantic import Field

from patchclamp.errors import SpecError
from patchclamp.evidence.cli_hints import Positional
from patchclamp.evidence.method import Outcome, Part, Progress, Result, Spec, method
from patchclamp.evidence.verdict import Verdict, judge
from patchclamp.forward import Model
from patchclamp.tasks.behaviour import read_behaviour
from patchclamp.tasks.files import DataFile
from patchclamp.vectors.behave import Asking
from patchclamp.vectors.search import Bounds, Candidate, Use, choose, with_settings
from patchclamp.vectors.source import BehaviourName
from patchclamp.vectors.vector import Ablation, Setting, load_vector

if TYPE_CHECKING:
    import altair
    import pandas


class SelectSpec(Spec):
    """Which vector, and what its use may cost."""

    vector: Annotated[DataFile, Positional()]
    """A saved vector; the choice is written into it."""
    behaviour: BehaviourName | None = None
    """The behaviour whose validation prompts to choose on; by default the one it was found with."""
    max_perplexity: float = Field(3.0, gt=1)
    """How much less likely answers may become to the unedited model, as a ratio of perplexities."""
    max_repetition: float = Field(0.15, ge=0)
    """How much more answers may repeat themselves, as a share of word triples."""
    max_kl: float = Field(0.4, gt=0)
    """How far removing may move the model on unrelated text, nats a token."""
    max_new_tokens: int = Field(48, ge=4, le=500)
    """Length of an answer."""


class Tried(Part):
    """One way of using the vector, on all validation prompts."""

    use: Use
    sites: list[str]
    strength: float
    """Standard deviations of projections over a neutral corpus; of project_out always 1."""
    rate: float
    """Share of prompts that show the behaviour: plain ones under adding, showing ones under removing."""
    cost: float
    """Perplexity ratio of adding, KL on unrelated text of removing."""
    allowed: bool


class SelectResult(Result):
    """What was chosen."""

    add: Setting | None
    """Null: no direction found within the bounds."""
    subtract: Setting | None
    ablate: Ablation | None
    tried: list[Tried]
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
    vectors evaluate, on test prompts, proves it.
    """
    vector = load_vector(spec.vector, model)
    reference = spec.behaviour or vector.info.behaviour
    if reference is None:
        raise SpecError(f"{spec.vector} does not say which behaviour it is for; name one with behaviour (--behaviour)")
    behaviour = read_behaviour(reference)
    asking = Asking(model, behaviour.detector, behaviour.format, spec.max_new_tokens)
    cases = asking.cases(behaviour.validation)
    bounds = Bounds(spec.max_perplexity, spec.max_repetition, spec.max_kl)
    chosen, tried = choose(vector, asking, cases, ("add", "subtract", "project_out"), bounds, progress)
    vector = with_settings(vector, chosen).with_info(behaviour=reference)
    saved = vector.save(spec.vector)
    result = SelectResult(
        add=vector.info.add,
        subtract=vector.info.remove,
        ablate=vector.info.ablate,
        saved=str(saved),
        tried=[
            Tried(
                use=one.use,
                sites=list(one.sites),
                strength=one.strength,
                rate=one.rate,
                cost=one.cost,
                allowed=one.allowed,
            )
            for one in tried
        ],
    )
    return result, _verdict(chosen.get("add"), asking, cases, behaviour.name, spec.seed)


def _verdict(best: Candidate | None, asking: Asking, cases: list, name: str, seed: int) -> Verdict | None:
    if best is None:
        return None
    plain = [case for case in cases if case.kind == "plain"]
    base = asking.rate(plain).astype(float)
    return judge(
        np.array(best.shown, dtype=float),
        base,
        direction="greater",
        seed=seed,
        claim=f"adding the {name} vector as chosen changes the answers to validation prompts (share that shows "
        "the behaviour, against the unedited model; chosen on these prompts, so vectors evaluate has to "
        "prove it on others)",
    )
