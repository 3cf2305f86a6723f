"""The relations measured so far, of all models, as one table: what `relations evaluate --store` kept."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from patchclamp.errors import FileError
from patchclamp.evidence.cli_hints import Positional
from patchclamp.evidence.method import NoModel, Outcome, Part, Progress, Result, Spec, load_nothing, method
from patchclamp.relations.evaluate import Category, best_baseline, category_of
from patchclamp.relations.measured import Missed, RelationRow, Stored, read_stored
from patchclamp.tasks.files import DataFile

if TYPE_CHECKING:
    import altair
    import pandas


class TableSpec(Spec):
    """Which measurements."""

    stores: Annotated[tuple[DataFile, ...], Positional()] = Field(min_length=1)
    """Folders that `relations evaluate --store` filled, for one model or several."""


class TableRow(Part):
    """A relation in a model."""

    model: str
    row: RelationRow


class MissedRow(Part):
    """A relation that a model does not know well enough."""

    model: str
    row: Missed


class ModelCategory(Part):
    """Relations of one kind in a model."""

    model: str
    category: Category


class TableResult(Result):
    """All relations of all models."""

    rows: list[TableRow]
    missed: list[MissedRow]
    categories: list[ModelCategory]

    def table(self) -> pandas.DataFrame:
        """One row a relation; for each model faithfulness, the best baseline's, and causality."""
        import pandas

        rows: dict[tuple[str, str], dict[str, str]] = {}
        for one in self.rows:
            row = rows.setdefault((one.row.category, one.row.name), {})
            row |= {
                f"{one.model}: known": f"{one.row.known} of {one.row.asked}",
                f"{one.model}: faithfulness": f"{one.row.faithfulness.mean:.2f}",
                f"{one.model}: best baseline": f"{best_baseline(one.row):.2f}",
                f"{one.model}: mark": one.row.mark, f"{one.model}: causality": f"{one.row.causality.mean:.2f}",
                f"{one.model}: random": f"{one.row.random.mean:.2f}",
            }
        for other in self.missed:
            rows.setdefault((other.row.category, other.row.name), {})[f"{other.model}: mark"] = "knows too few"
        return pandas.DataFrame([{"category": category, "relation": name, **row}
                                 for (category, name), row in sorted(rows.items())]).fillna("")

    def chart(self) -> altair.TopLevelMixin:
        """Causality against faithfulness, a point a relation and model."""
        from patchclamp.charts.relations import table_chart

        return table_chart(self)


@method("relations.table", spec=TableSpec, result=TableResult, load=load_nothing)
def table_of_relations(model: NoModel, spec: TableSpec, progress: Progress) -> Outcome:
    """Put the relations measured so far, of one model or several, into one table and one chart.

    Nothing new is claimed; each relation's verdict belongs to `relations evaluate`.
    """
    measured, seen = list[tuple[str, Stored]](), set[Path]()
    for name in spec.stores:
        folder = Path(name).expanduser()
        files = sorted(folder.rglob("*.json"))
        if not files:
            raise FileError(f"{folder} holds no measured relation; `patchclamp relations evaluate FILES --store "
                            f"{name}` fills it")
        measured += [(path.parent.name, read_stored(path)) for path in files if path.resolve() not in seen]
        seen.update(path.resolve() for path in files)
    found = _told_apart(measured)
    rows = [TableRow(model=one.model, row=one.row) for one in found if isinstance(one.row, RelationRow)]
    missed = [MissedRow(model=one.model, row=one.row) for one in found if isinstance(one.row, Missed)]
    if not rows:
        raise FileError(f"of the {len(missed)} relations in {', '.join(spec.stores)} none could be measured; the "
                        f"first: {missed[0].row.why}")
    kinds = sorted({(one.model, one.row.category) for one in rows})
    categories = [
        ModelCategory(model=name, category=category_of(
            kind, [one.row for one in rows if (one.model, one.row.category) == (name, kind)], spec.seed))
        for name, kind in kinds
    ]
    return TableResult(rows=rows, missed=missed, categories=categories), None


def _told_apart(measured: list[tuple[str, Stored]]) -> list[Stored]:
    """Measurements by the weights they are of; models of one name and other weights get both into their name."""
    weights: dict[str, set[str]] = {}
    for of, one in measured:
        weights.setdefault(one.model, set()).add(of)
    return [one if len(weights[one.model]) == 1 else one.model_copy(update={"model": f"{one.model} ({of[:6]})"})
            for of, one in measured]
