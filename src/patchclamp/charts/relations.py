"""Charts of relations: how faithful their maps are and whether they edit, by relation and layer; what they read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import altair as alt
import pandas as pd

from patchclamp.charts.style import CATEGORY, CONTROL, EFFECT, heatmap_size, styled, visible

if TYPE_CHECKING:
    from patchclamp.relations.edit import EditResult
    from patchclamp.relations.evaluate import Relations
    from patchclamp.relations.fit import FitResult
    from patchclamp.relations.lens import LensResult
    from patchclamp.relations.measured import RelationRow
    from patchclamp.relations.table import TableResult

SHARE = alt.Scale(domain=[0, 1])


def relations_chart(result: Relations) -> alt.TopLevelMixin:
    """Of several relations bars with intervals and one share against the other; of one relation its layers."""
    if len(result.relations) == 1:
        return styled(_layers(result.relations[0]))
    plane = _plane([(result.model, one) for one in result.relations])
    return styled(alt.vconcat(_bars(result.relations), plane).resolve_scale(color="independent"))


def _bars(rows: list[RelationRow]) -> alt.LayerChart:
    data = pd.DataFrame([
        {"relation": f"{row.name} ({row.category})", "what": what, **interval.model_dump()}
        for row in rows for what, interval in (
            ("map", row.faithfulness),
            ("best baseline", row.baselines[row.best_baseline]),
            ("edit by inverse", row.causality), ("random change", row.random))
    ])
    order = [f"{row.name} ({row.category})" for row in sorted(rows, key=lambda r: -r.faithfulness.mean)]
    color = alt.Color("what:N", title=None, scale=alt.Scale(
        domain=["map", "best baseline", "edit by inverse", "random change"],
        range=[EFFECT, CONTROL, CATEGORY[1], "#c9c9c9"]))
    base = alt.Chart(data).encode(
        y=alt.Y("relation:N", sort=order, title=None, axis=alt.Axis(labelLimit=260)), yOffset="what:N")
    bars = base.mark_bar().encode(
        x=alt.X("mean:Q", title="share of test samples", scale=SHARE), color=color,
        tooltip=["relation", "what", *(alt.Tooltip(f"{name}:Q", format=".2f") for name in ("mean", "low", "high"))])
    rules = base.mark_rule().encode(x="low:Q", x2="high:Q")
    return (bars + rules).properties(width=460, height=alt.Step(9))


def _plane(rows: list[tuple[str, RelationRow]]) -> alt.LayerChart:
    """Causality against faithfulness, a point a relation."""
    data = pd.DataFrame([
        {"model": model, "relation": row.name, "category": row.category, "faithfulness": row.faithfulness.mean,
         "causality": row.causality.mean} for model, row in rows])
    line = alt.Chart(pd.DataFrame({"x": [0, 1], "y": [0, 1]})).mark_line(color=CONTROL, strokeDash=[4, 4]).encode(
        x="x:Q", y="y:Q")
    shape = alt.Shape("model:N", title=None) if data["model"].nunique() > 1 else alt.Undefined
    points = alt.Chart(data).mark_point(filled=True, size=70).encode(
        x=alt.X("faithfulness:Q", title="faithfulness: the map says what the model says", scale=SHARE),
        y=alt.Y("causality:Q", title="causality: the inverse edits the answer", scale=SHARE),
        color=alt.Color("category:N", title=None, scale=alt.Scale(range=list(CATEGORY))), shape=shape,
        tooltip=["model", "relation", "category", alt.Tooltip("faithfulness", format=".2f"),
                 alt.Tooltip("causality", format=".2f")])
    return (line + points).properties(width=360, height=360)


def _layers(row: RelationRow) -> alt.TopLevelMixin:
    """Faithfulness by the layer the subject is read at."""
    data = pd.DataFrame([
        {"layer": one.layer, "reader": name, "share": share, "beta": one.beta}
        for one in row.layers for name, share in ((f"linear map of {row.name}", one.faithfulness),
                                                  ("best baseline", one.best_baseline))])
    return alt.Chart(data).mark_line(point=True).encode(
        x=alt.X("layer:Q", title="block after which the subject is read (-1: embeddings)",
                axis=alt.Axis(tickMinStep=1)),
        y=alt.Y("share:Q", title="share of test samples read rightly", scale=SHARE),
        color=alt.Color("reader:N", title=None, sort=None, scale=alt.Scale(range=[EFFECT, CONTROL])),
        tooltip=["layer", "reader", alt.Tooltip("share", format=".2f"), "beta"],
    ).properties(width=560, height=280)


def fit_chart(result: FitResult) -> alt.TopLevelMixin:
    """By layer how often the map is right on validation samples; below how many directions it uses."""
    data = pd.DataFrame([one.model_dump() for one in result.layers])
    x = alt.X("layer:Q", title="block after which the subject is read (-1: embeddings)", axis=alt.Axis(tickMinStep=1))
    base = alt.Chart(data).mark_line(point=True, color=EFFECT)
    right = base.encode(x=x, y=alt.Y("validation:Q", title="right on validation samples", scale=SHARE),
                        tooltip=["layer", "beta", alt.Tooltip("validation", format=".2f")])
    rank = base.encode(x=x, y=alt.Y("effective_rank:Q", title="effective rank"),
                       tooltip=["layer", *(alt.Tooltip(name, format=".1f") for name in ("effective_rank", "norm"))])
    return styled(alt.vconcat(right.properties(width=560, height=200), rank.properties(width=560, height=140)))


def edit_chart(result: EditResult) -> alt.TopLevelMixin:
    """Probabilities of the old and the new answer, before and after; beside them how often such edits work."""
    data = pd.DataFrame([
        {"when": when, "answer": answer, "probability": value}
        for when, one in (("before", result.before), ("after", result.after), ("random change", result.random_answer))
        for answer, value in ((result.old, one.old), (result.new, one.new))])
    color = alt.Color("answer:N", title=None, sort=None, scale=alt.Scale(range=[CONTROL, EFFECT]))
    answers = alt.Chart(data).mark_bar().encode(
        x=alt.X("when:N", sort=None, title=f"{result.subject} → {result.new.strip()}", axis=alt.Axis(labelAngle=0)),
        xOffset=alt.XOffset("answer:N", sort=None),
        y=alt.Y("probability:Q", title="probability of the next token", scale=SHARE), color=color,
        tooltip=["when", "answer", alt.Tooltip("probability", format=".3f")])
    shares = pd.DataFrame([
        {"what": what, **interval.model_dump()} for what, interval in (
            (f"edited by {result.by}", result.success), ("other subject's state", result.swap),
            ("random", result.random), ("other relations kept", result.same_subject_kept),
            ("other subjects kept", result.other_subjects_kept)) if interval.exists or interval.mean == interval.mean])
    base = alt.Chart(shares).encode(y=alt.Y("what:N", sort=None, title=None, axis=alt.Axis(labelLimit=200)))
    bars = base.mark_bar(color=EFFECT).encode(
        x=alt.X("mean:Q", title="share", scale=SHARE),
        tooltip=["what", *(alt.Tooltip(f"{name}:Q", format=".2f") for name in ("mean", "low", "high"))])
    return styled(alt.hconcat(answers.properties(width=260, height=240),
                              (bars + base.mark_rule().encode(x="low:Q", x2="high:Q")).properties(width=260)))


def relation_lens_chart(result: LensResult) -> alt.TopLevelMixin:
    """What the map reads at each token and layer; below how often it reads the object, by layer."""
    cells = pd.DataFrame([
        {"layer": cell.layer, "position": cell.position, "token": f"{cell.position} {visible(cell.token)}",
         "says": visible(cell.top), "prob": cell.prob} for cell in result.cells])
    panels: list[alt.LayerChart | alt.FacetChart] = []
    if len(cells):
        base = alt.Chart(cells).encode(
            x=alt.X("token:N", sort=alt.SortField("position"), title=None, axis=alt.Axis(labelAngle=-40)),
            y=alt.Y("layer:O", sort="descending", title="block"))
        squares = base.mark_rect().encode(
            color=alt.Color("prob:Q", title="probability", scale=alt.Scale(scheme="blues", domain=[0, 1])),
            tooltip=["layer", "token", "says", alt.Tooltip("prob", format=".2f")])
        words = base.mark_text(fontSize=9).encode(
            text="says:N", color=alt.condition("datum.prob > 0.6", alt.value("white"), alt.value("black")))
        panels.append((squares + words).properties(
            width=heatmap_size(cells["position"].nunique(), cell=64), height=heatmap_size(cells["layer"].nunique())))
    data = pd.DataFrame([
        {"where": where, "reader": name, **interval.model_dump()}
        for where, some in result.recall.items() for name, interval in some.items()])
    base = alt.Chart(data).encode(
        y=alt.Y("reader:N", title=None, sort=None), color=alt.Color("reader:N", title=None, sort=None, legend=None,
                                                                    scale=alt.Scale(range=[EFFECT, CONTROL])))
    bars = base.mark_bar().encode(x=alt.X("mean:Q", title=f"object among the first {result.k}", scale=SHARE),
                                  tooltip=["where", "reader", alt.Tooltip("mean:Q", format=".2f")])
    rules = base.mark_rule(color="#333333").encode(x="low:Q", x2="high:Q")
    panels.append(alt.layer(bars, rules).properties(width=320).facet(
        row=alt.Row("where:N", title=None, sort=None, header=alt.Header(labelOrient="top", labelAnchor="start"))))
    return styled(alt.vconcat(*panels).resolve_scale(color="independent"))


def table_chart(result: TableResult) -> alt.TopLevelMixin:
    """All relations of all models: causality against faithfulness."""
    return styled(_plane([(one.model, one.row) for one in result.rows]))
