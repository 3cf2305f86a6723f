"""Knockout: every attention and MLP block taken away in turn, and what that does to one choice.

    effect = d_ablated - d        d = logit(answer) - logit(distractor)
"""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel

from patchclamp.evidence.cli_hints import CommaList, Positional
from patchclamp.evidence.method import Outcome, Progress, Result, Spec, method
from patchclamp.evidence.verdict import judge
from patchclamp.forward import Edit, Model, Plan, Readout

if TYPE_CHECKING:
    import altair
    import pandas


class KnockoutSpec(Spec):
    """One prompt with two possible continuations."""

    prompt: Annotated[str, Positional()]
    """The text the model continues."""
    answer: str
    """The right next token, with its leading space."""
    distractor: str
    """The other one."""
    points: Annotated[tuple[Literal["attn", "mlp"], ...], CommaList()] = ("attn", "mlp")
    """Which kinds of block to take away."""
    how: Literal["zero", "mean"] = "zero"
    """Put zero in the output's place, or its mean over a neutral corpus."""


class Knocked(BaseModel):
    """One block taken away."""

    site: str
    point: str
    layer: int
    logit_difference: float
    """Without the block."""
    effect: float
    """Edited minus unedited logit difference."""


class Knockout(Result):
    """Every block taken away in turn."""

    cells: list[Knocked]
    base_logit_difference: float
    """Of the unedited model."""

    def table(self) -> "pandas.DataFrame":
        """One row a block, strongest effect first."""
        import pandas

        rows = pandas.DataFrame([c.model_dump() for c in self.cells])
        return rows.sort_values("effect", key=abs, ascending=False, ignore_index=True)

    def chart(self) -> "altair.TopLevelMixin":
        """Logit difference without each block, attention and MLP side by side."""
        from patchclamp.charts.circuits import knockout_chart

        return knockout_chart(self)


@method("circuits.knockout", spec=KnockoutSpec, result=Knockout)
def knockout(model: Model, spec: KnockoutSpec, progress: Progress) -> Outcome:
    """Take every attention and MLP block away in turn and see how the choice between two tokens changes.

    The verdict asks whether the block with the largest effect stands out from all the other blocks.
    """
    readout = Readout.logit_difference(spec.answer, spec.distractor)
    make = Edit.zero if spec.how == "zero" else Edit.mean
    sites = [(point, layer) for point in dict.fromkeys(spec.points) for layer in range(model.n_layers)]
    rows = [(spec.prompt, [], [readout]),
            *((spec.prompt, [make(f"{point}.{layer}")], [readout]) for point, layer in sites)]
    base, *without = [float(v[0]) for v in model.execute(Plan.of(rows), track=progress.track)]
    cells = [Knocked(site=f"{point}.{layer}", point=point, layer=layer, logit_difference=d, effect=d - base)
             for (point, layer), d in zip(sites, without, strict=True)]
    result = Knockout(cells=cells, base_logit_difference=base)
    if len(cells) < 3:
        return result, None
    best = max(cells, key=lambda c: abs(c.effect))
    verdict = judge(
        best.effect, [c.effect for c in cells if c is not best], against="distribution", seed=spec.seed,
        claim=f"{best.site} matters to {spec.answer!r} over {spec.distractor!r} more than the other blocks do "
              "(change of the logit difference)",
    )
    return result, verdict
