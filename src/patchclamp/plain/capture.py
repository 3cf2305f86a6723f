"""Capture as a method: the values at sites, with the numbers that describe them."""

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, Field

from patchclamp.errors import SpecError
from patchclamp.evidence.cli_hints import CommaList, Positional
from patchclamp.evidence.method import Outcome, Progress, Result, Spec, method
from patchclamp.forward import Edit, Model, Plan, Readout, Site
from patchclamp.forward.prepare import token_indices
from patchclamp.model.tokens import Prompt

if TYPE_CHECKING:
    import altair
    import pandas

MOST_NUMBERS = 2_000_000


class CaptureSpec(Spec):
    """What to capture, and where."""

    prompts: Annotated[tuple[Prompt, ...], Positional()] = Field(min_length=1)
    """The texts the model reads."""
    sites: Annotated[tuple[Site, ...], CommaList()] = Field(min_length=1)
    """The sites, e.g. resid.15@last,neuron.19.1044."""
    edits: tuple[Edit, ...] = ()
    """Edits in force during the run."""


class Captured(BaseModel):
    """The value at one token of one site."""

    prompt: int
    """Which prompt, from 0."""
    site: str
    position: int
    """Which token, from 0."""
    token: str
    """What the token says."""
    norm: float
    """Euclidean length of the value."""
    values: Any
    """The value: a number, a list, or nested lists."""


class CaptureResult(Result):
    """All captured values."""

    rows: list[Captured]

    def table(self) -> "pandas.DataFrame":
        """One row a token and site, with the value's length and, where it is one number, the value."""
        import pandas

        return pandas.DataFrame([
            {**row.model_dump(exclude={"values"}), "value": row.values if isinstance(row.values, float) else None}
            for row in self.rows
        ])

    def chart(self) -> "altair.TopLevelMixin":
        """The value, or its length, token by token."""
        from patchclamp.charts.plain import capture_chart

        return capture_chart(self)


@method("forward.capture", spec=CaptureSpec, result=CaptureResult)
def capture(model: Model, spec: CaptureSpec, progress: Progress) -> Outcome:
    """Read the values at sites while the model reads the prompts.

    There is no verdict: nothing is claimed.
    """
    plan = Plan.of([(p, spec.edits, [Readout.value(s) for s in spec.sites]) for p in spec.prompts])
    results = model.execute(plan, track=progress.track)
    if sum(value.numel() for row in results for value in row) > MOST_NUMBERS:
        raise SpecError(f"this would be more than {MOST_NUMBERS:,} numbers in one record; capture fewer positions, or "
                        "use model.capture in Python")
    rows = []
    for index, (prompt, values) in enumerate(zip(spec.prompts, results, strict=True)):
        encoded = model.encode(prompt)
        for site, value in zip(spec.sites, values, strict=True):
            by_token = value[None] if site.positions.single else value
            if site.point == "pattern" and site.unit is None:
                by_token = value[None] if site.positions.single else value.transpose(0, 1)
            for position, one in zip(token_indices(site.positions, encoded, site), by_token, strict=True):
                rows.append(Captured(
                    prompt=index, site=str(site), position=position, token=encoded.pieces[position],
                    norm=float(one.float().norm()), values=one.float().tolist(),
                ))
    return CaptureResult(rows=rows), None
