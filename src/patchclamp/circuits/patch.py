"""Activation patching: which values, carried from one run into another, carry the answer with them.

    effect = (d_patched - d_corrupted) / (d_clean - d_corrupted)        d = logit(answer) - logit(distractor)

0: the patched run answers as the corrupted one; 1: as the clean one. So a site that matters has an effect near 1 where
clean values are put into the corrupted run, and near 0 in reverse, where the other sites stay near 1. Vig et al. 2020;
Meng et al. 2022 ("causal tracing"); Heimersheim & Nanda 2024, arXiv 2404.15255, on reading it.
"""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, Field

from patchclamp.errors import SpecError
from patchclamp.evidence.cli_hints import CommaList, Positional
from patchclamp.evidence.method import Outcome, Progress, Result, Spec, method
from patchclamp.evidence.verdict import Verdict, judge
from patchclamp.forward import Edit, Model, Plan, Readout, Site
from patchclamp.forward.site import Positions
from patchclamp.tasks.neutral import neutral_texts

if TYPE_CHECKING:
    import altair
    import pandas

Point = Literal["resid_pre", "resid_mid", "resid", "attn", "mlp", "head"]


class PatchSpec(Spec):
    """Two prompts of equal length that differ in what decides the answer."""

    clean: Annotated[str, Positional()]
    """The prompt on which the model gives the answer."""
    corrupted: Annotated[str, Positional()]
    """The prompt on which it does not; as many tokens."""
    answer: str
    """The answer on the clean prompt: one token, with its leading space."""
    distractor: str
    """The answer on the corrupted prompt: one token."""
    sites: Annotated[tuple[Point, ...], CommaList()] = ("resid",)
    """What is patched: blocks' residual streams, attention or MLP outputs at each position, or heads."""
    positions: Literal["all", "last"] = "all"
    """Every token position in turn, or only the last. A head is patched at all of them at once, or at the last."""
    reverse: bool = False
    """Put corrupted values into the clean run instead: which are needed rather than which suffice. Effects then run
    from 1, nothing lost, to 0, all lost."""
    controls: int = Field(12, ge=0, le=60)
    """With how many unrelated prompts the strongest site is patched as a control; 0 for no verdict."""


class Cell(BaseModel):
    """One patched site."""

    site: str
    """The site with its position, e.g. resid.12@9."""
    effect: float
    """Share of the clean-corrupted difference that the patched run has: 0 as the corrupted run, 1 as the clean one."""
    point: str
    layer: int
    unit: int | None
    """The head."""
    position: int | None
    """The token index; None where all positions are patched at once."""


class Patching(Result):
    """Every patched site and what it moved."""

    cells: list[Cell]
    clean_logit_difference: float
    corrupted_logit_difference: float
    tokens_clean: list[str]
    tokens_corrupted: list[str]
    reverse: bool

    def table(self) -> "pandas.DataFrame":
        """One row a site, the one that moved most first."""
        import pandas

        rows = [{**c.model_dump(), "token": self._token(c)} for c in self.cells]
        return pandas.DataFrame(rows).sort_values("effect", ascending=self.reverse, ignore_index=True)

    def _token(self, cell: Cell) -> str:
        tokens = self.tokens_clean if self.reverse else self.tokens_corrupted
        return "" if cell.position is None else tokens[cell.position]

    def chart(self) -> "altair.TopLevelMixin":
        """A heatmap for each kind of site: blocks × positions, or blocks × heads."""
        from patchclamp.charts.circuits import patching_chart

        return patching_chart(self)


@method("circuits.patch", spec=PatchSpec, result=Patching)
def patch(model: Model, spec: PatchSpec, progress: Progress) -> Outcome:
    """Carry values from a clean run into a corrupted one, site by site, and see how much of the answer comes along.

    The verdict takes the strongest site that is not the last token's residual stream (which trivially holds the
    answer at the end) and asks whether values from unrelated prompts at the same site do as much.
    """
    clean, corrupted = model.encode(spec.clean), model.encode(spec.corrupted)
    if len(clean) != len(corrupted):
        raise SpecError(
            f"the clean prompt has {len(clean)} tokens and the corrupted one {len(corrupted)}: patching position by "
            f"position needs equally many. Clean: {list(clean.pieces)}; corrupted: {list(corrupted.pieces)}"
        )
    source, target = (spec.corrupted, spec.clean) if spec.reverse else (spec.clean, spec.corrupted)
    readout = Readout.logit_difference(spec.answer, spec.distractor)
    sites = _sites(model, spec, len(clean))
    rows = [(spec.clean, [], [readout]), (spec.corrupted, [], [readout]),
            *((target, [Edit.swap(site, source)], [readout]) for site in sites)]
    d_clean, d_corrupted, *patched = [float(v[0]) for v in model.execute(Plan.of(rows), track=progress.track)]
    span = d_clean - d_corrupted
    if abs(span) < 1e-3:
        raise SpecError(
            f"the logit difference is {d_clean:.3f} on the clean and {d_corrupted:.3f} on the corrupted prompt: there "
            "is nothing to move. Choose prompts that the model answers differently"
        )
    cells = [
        Cell(site=str(site), effect=(d - d_corrupted) / span, point=site.point, layer=site.layer or 0,
             unit=site.unit, position=site.positions.index if site.positions.kind == "index" else None)
        for site, d in zip(sites, patched, strict=True)
    ]
    result = Patching(
        cells=cells, clean_logit_difference=d_clean, corrupted_logit_difference=d_corrupted,
        tokens_clean=list(clean.pieces), tokens_corrupted=list(corrupted.pieces), reverse=spec.reverse,
    )
    return result, _verdict(model, spec, cells, target, readout, (d_corrupted, span)) if spec.controls else None


def _sites(model: Model, spec: PatchSpec, n_tokens: int) -> list[Site]:
    positions = [n_tokens - 1] if spec.positions == "last" else list(range(n_tokens))
    out = []
    for point in dict.fromkeys(spec.sites):
        for layer in range(model.n_layers):
            if point == "head":
                where = Positions("index", index=n_tokens - 1) if spec.positions == "last" else Positions()
                out += [Site("head", layer, head, where) for head in range(model.n_heads)]
            else:
                out += [Site(point, layer, None, Positions("index", index=p)) for p in positions]
    return out


def _verdict(
    model: Model, spec: PatchSpec, cells: list[Cell], target: str, readout: Readout, scale: tuple[float, float]
) -> Verdict:
    """The strongest site against the same site patched from neutral texts of the same length."""
    n = len(model.encode(target))
    trivial = [c for c in cells if c.point.startswith("resid") and c.position == n - 1]
    best = (min if spec.reverse else max)([c for c in cells if c not in trivial] or cells, key=lambda c: c.effect)
    texts = [ids for t in neutral_texts() if len(ids := model.encode(t).ids) >= n][: spec.controls]
    rows = [(target, [Edit.swap(best.site, ids[:n])], [readout]) for ids in texts]
    control = [(float(v[0]) - scale[0]) / scale[1] for v in model.execute(Plan.of(rows))]
    return judge(
        best.effect, control, direction="less" if spec.reverse else "greater", against="distribution", seed=spec.seed,
        claim=f"{best.site} carries what decides between {spec.answer!r} and {spec.distractor!r} (share of the logit "
              "difference kept, against values from unrelated texts at the same site)",
    )
