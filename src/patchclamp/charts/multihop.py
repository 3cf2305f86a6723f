"""Charts of two-hop questions."""

from typing import TYPE_CHECKING

import altair as alt
import pandas as pd

from patchclamp.charts.style import CATEGORY, CONTROL, styled

if TYPE_CHECKING:
    from patchclamp.lenses.backpatch import Backpatch
    from patchclamp.lenses.multihop import MultihopResult

PANELS = {"bridge": "the bridge, at the words that stand for it", "answer": "the answer, at the last token"}
GROUPS = {"right": "answered right", "wrong": "answered wrong", "control": "another question's (control)"}


def multihop_chart(result: "MultihopResult") -> alt.TopLevelMixin:
    """Above: bridge and answer by layer. Below: the share of wrong answers each pair of layers repairs, and the chosen
    pair beside its controls."""
    above = alt.hconcat(*(_said(result, name) for name in PANELS))
    return styled(alt.vconcat(above, alt.hconcat(_pairs(result.backpatch), _bars(result.backpatch)).resolve_scale(
        color="independent")).resolve_scale(color="independent"))


def _said(result: "MultihopResult", name: str) -> alt.Chart:
    data = pd.DataFrame([
        {"layer": layer.layer, "questions": title, "share": getattr(layer, f"{name}_{group}")}
        for layer in result.layers for group, title in GROUPS.items()
    ]).dropna()
    names = list(GROUPS.values())
    return alt.Chart(data).mark_line(point=True).encode(
        x=alt.X("layer:Q", title="state taken after block", axis=alt.Axis(tickMinStep=1)),
        y=alt.Y("share:Q", title="share of questions", scale=alt.Scale(domain=[0, 1])),
        color=alt.Color("questions:N", sort=names, title=None,
                        scale=alt.Scale(domain=names, range=[*CATEGORY[:2], CONTROL])),
        tooltip=["questions", "layer", alt.Tooltip("share", format=".2f")],
    ).properties(width=300, height=220, title=PANELS[name])


def _pairs(moved: "Backpatch") -> alt.LayerChart:
    data = pd.DataFrame([cell.model_dump() for cell in moved.pairs])
    base = alt.Chart(data).encode(
        x=alt.X("source_layer:O", title="state taken after block"),
        y=alt.Y("target_layer:O", sort="descending", title="put in after block"))
    cells = base.mark_rect().encode(
        color=alt.Color("repaired:Q", scale=alt.Scale(scheme="blues", domain=[0, 1]), title="repaired"),
        tooltip=["source_layer", "target_layer", alt.Tooltip("repaired", format=".2f"),
                 alt.Tooltip("kept", format=".2f")])
    chosen = base.transform_filter(
        f"datum.source_layer == {moved.source_layer} && datum.target_layer == {moved.target_layer}"
    ).mark_rect(fill=None, stroke=CATEGORY[1], strokeWidth=2)
    return (cells + chosen).properties(width=300, height=260,
                                       title="wrong answers repaired (framed: pair chosen on other questions)")


def _bars(moved: "Backpatch") -> alt.LayerChart:
    chosen = f"block {moved.source_layer} to {moved.target_layer}"
    rows = [
        ("repaired", chosen, moved.repaired), ("repaired", "random vectors there", moved.random_repaired),
        ("repaired", "best of all pairs", moved.best_repaired),
        ("repaired", "best of as many random", moved.best_random),
        ("kept", chosen, moved.kept), ("kept", "random vectors there", moved.random_kept),
    ]
    data = pd.DataFrame([{"what": f"{what}: {how}", "kind": what, **interval.model_dump()}
                         for what, how, interval in rows]).dropna(subset=["mean"])
    base = alt.Chart(data).encode(y=alt.Y("what:N", sort=None, title=None, axis=alt.Axis(labelLimit=260)))
    bars = base.mark_bar().encode(
        x=alt.X("mean:Q", title="share of questions", scale=alt.Scale(domain=[0, 1])),
        color=alt.Color("kind:N", scale=alt.Scale(range=CATEGORY), legend=None),
        tooltip=["what", alt.Tooltip("mean", format=".2f"), alt.Tooltip("low", format=".2f"),
                 alt.Tooltip("high", format=".2f")])
    rules = base.mark_rule(color="#333333").encode(x="low:Q", x2="high:Q")
    return (bars + rules).properties(width=240, height=260,
                                     title=f"{moved.wrong} wrong and {moved.right} right answers")
