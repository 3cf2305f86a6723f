"""Is what the model knows of a relation a linear map, and does its inverse edit the model? For any number of relations.

Settings (layer, β, layer and rank of the edits) are chosen on validation samples; every share is over test samples
that the model itself answers rightly. Hernandez et al. 2023, arXiv 2308.09124, sections 4 and 5.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
from pydantic import Field

from patchclamp.errors import FileError, SpecError
from patchclamp.evidence.bootstrap import mean_if_any
from patchclamp.evidence.cli_hints import Positional
from patchclamp.evidence.method import Outcome, Part, Progress, Result, method
from patchclamp.evidence.verdict import Interval, Verdict, judge
from patchclamp.forward import Model
from patchclamp.relations.measured import Missed, RelationRow, measure
from patchclamp.relations.samples import SamplesSpec
from patchclamp.tasks.files import DataFile, locate
from patchclamp.tasks.read import is_relation, read_relation

if TYPE_CHECKING:
    import altair
    import pandas


class EvaluateSpec(SamplesSpec):
    """Which relations."""

    files: Annotated[tuple[DataFile, ...], Positional()] = Field(min_length=1)
    """Relation files, or folders of them; `example:relations` are the ones that come along."""
    store: DataFile | None = None
    """Where to keep each relation's numbers once measured. What is there already, asked in the same way, is used."""
    fits: DataFile | None = None
    """Where to keep the fitted maps, and take them from."""


class Category(Part):
    """Relations of one kind."""

    name: str
    relations: int
    faithfulness: Interval
    """Mean over relations."""
    best_baseline: Interval
    """Mean over relations of each one's best baseline."""
    causality: Interval
    random: Interval


class Relations(Result):
    """Relations side by side."""

    model: str
    relations: list[RelationRow]
    missed: list[Missed]
    """Those of which the model knows too little."""
    categories: list[Category]

    def table(self) -> pandas.DataFrame:
        """One row a relation."""
        import pandas

        rows = []
        for one in self.relations:
            best = one.best_baseline
            rows.append({
                "relation": one.name, "category": one.category, "known": f"{one.known} of {one.asked}",
                "layer": one.layer, "beta": one.beta, "faithfulness": one.faithfulness.mean,
                "best baseline": f"{one.baselines[best].mean:.2f} {best}", "mark": one.mark,
                "edit layer": one.edit_layer, "rank": one.rank, "causality": one.causality.mean,
                "swap": one.swap.mean, "random": one.random.mean,
            })
        rows += [{"relation": one.name, "category": one.category, "known": one.why.split(": ", 1)[-1].split(",")[0],
                  "mark": "not measured"} for one in self.missed]
        return pandas.DataFrame(rows)

    def chart(self) -> altair.TopLevelMixin:
        """Faithfulness and causality of each relation, and one against the other."""
        from patchclamp.charts.relations import relations_chart

        return relations_chart(self)


@method("relations.evaluate", spec=EvaluateSpec, result=Relations)
def evaluate_relations(model: Model, spec: EvaluateSpec, progress: Progress) -> Outcome:
    """Fit relations as linear maps; say how faithful they are, beside baselines, and whether their inverses edit facts.

    The verdict asks whether the maps are more often right than the best baseline of each relation: of one relation over
    its test samples, of several over relations.
    """
    found = [(path, read_relation(path)) for path in relation_files(spec.files)]
    for folder in (spec.store, spec.fits):
        if folder and Path(folder).expanduser().is_file():
            raise SpecError(f"{folder} is a file; name a folder")
    rows = [measure(model, relation, path, spec, progress, spec.store, spec.fits) for path, relation in found]
    measured = [row for row in rows if isinstance(row, RelationRow)]
    missed = [row for row in rows if isinstance(row, Missed)]
    if not measured:
        raise FileError(missed[0].why if len(missed) == 1 else
                        f"the model knows none of the {len(missed)} relations well enough; the first: {missed[0].why}")
    names = sorted({row.category for row in measured})
    result = Relations(
        model=model.name, relations=measured, missed=missed,
        categories=[category_of(name, [row for row in measured if row.category == name], spec.seed) for name in names],
    )
    return result, verdict_of(measured, spec.seed)


def relation_files(given: tuple[str, ...]) -> list[Path]:
    """The relation files that files and folders name. FileError for a folder without one."""
    found: list[Path] = []
    for name in given:
        place = locate(name)
        inside = [path for path in sorted(place.rglob("*.json")) if is_relation(path)] if place.is_dir() else [place]
        if not inside:
            raise FileError(f"{place} holds no relation file (.json)")
        found += [path for path in inside if path not in found]
    return found


def category_of(name: str, rows: list[RelationRow], seed: int) -> Category:
    """Means over the relations of one kind."""
    edited = [row for row in rows if row.causality.exists]
    return Category(
        name=name, relations=len(rows), faithfulness=mean_if_any([r.faithfulness.mean for r in rows], seed),
        best_baseline=mean_if_any([best_baseline(r) for r in rows], seed),
        causality=mean_if_any([r.causality.mean for r in edited], seed),
        random=mean_if_any([r.random.mean for r in edited], seed),
    )


def best_baseline(row: RelationRow) -> float:
    """The share of the best baseline."""
    return row.baselines[row.best_baseline].mean


def verdict_of(rows: list[RelationRow], seed: int) -> Verdict:
    """Maps against the best baselines."""
    if len(rows) == 1:
        (row,) = rows
        return judge(
            np.array(row.hits), np.array(row.baseline_hits), direction="greater", seed=seed,
            claim=f"'{row.name}' is a linear map of the subject after {_place(row.layer)} (β {row.beta:g}, both chosen "
                  f"on other samples; share of {row.tested} test samples on which its first choice is the model's, "
                  "against the best baseline)")
    return judge(
        [row.faithfulness.mean for row in rows], [best_baseline(row) for row in rows], direction="greater", seed=seed,
        claim=f"relations are linear maps (mean over {len(rows)} relations of the share of test samples on which the "
              "map's first choice is the model's, against each relation's best baseline)")


def _place(layer: int) -> str:
    return "the embeddings" if layer < 0 else f"block {layer}"
