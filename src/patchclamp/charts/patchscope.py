"""Chart of Patchscopes."""

from typing import TYPE_CHECKING

import altair as alt
import pandas as pd

from patchclamp.charts.style import CATEGORY, CONTROL, EFFECT, styled

if TYPE_CHECKING:
    from patchclamp.lenses.patchscope import PatchscopeResult

SHOWN = 80


def patchscope_chart(result: "PatchscopeResult") -> alt.TopLevelMixin:
    """The continuations by source layer with the own next token's surprisal; or accuracy beside the baselines."""
    return styled(_accuracy(result) if result.accuracy_by_layer is not None else _texts(result))


def _texts(result: "PatchscopeResult") -> alt.HConcatChart:
    data = pd.DataFrame([
        {"layer": r.source_layer, "text": " ".join(r.text.split())[:SHOWN] or "∅", "surprisal": r.surprisal,
         "expected": "found" if r.found else "not found", "whole": r.text}
        for r in result.rows
    ])
    y = alt.Y("layer:O", sort="descending", title="state taken after block", axis=alt.Axis(labelOverlap=False))
    height = alt.Step(16)
    texts = alt.Chart(data).mark_text(align="left", fontSize=12).encode(
        y=y, x=alt.value(4), text="text:N", tooltip=["layer", "whole", alt.Tooltip("surprisal", format=".2f")],
        color=alt.Color("expected:N", scale=alt.Scale(domain=["found", "not found"], range=[EFFECT, "#333333"]),
                        title="expected words", legend=None if not any(r.found for r in result.rows) else alt.Legend()),
    ).properties(width=520, height=height, title="what it says in the target prompt")
    bars = alt.Chart(data).mark_bar(color=CONTROL).encode(
        y=alt.Y("layer:O", sort="descending", title=None), x=alt.X("surprisal:Q", title="nats"),
        tooltip=["layer", alt.Tooltip("surprisal", format=".2f")],
    ).properties(width=160, height=height, title="surprisal of the text's own next token")
    return alt.hconcat(texts, bars)


def _accuracy(result: "PatchscopeResult") -> alt.LayerChart:
    table = result.table()
    data = table.melt("source layer", var_name="method", value_name="accuracy").rename(
        columns={"source layer": "layer"})
    assert result.baselines is not None
    lines = alt.Chart(data).mark_line(point=True).encode(
        x=alt.X("layer:Q", title="state taken after block", axis=alt.Axis(tickMinStep=1)),
        y=alt.Y("accuracy:Q", scale=alt.Scale(domain=[0, 1])),
        color=alt.Color("method:N", sort=None, scale=alt.Scale(range=CATEGORY), title=None),
        tooltip=["method", "layer", alt.Tooltip("accuracy", format=".2f")])
    whole = pd.DataFrame({"accuracy": [result.baselines.model], "what": ["the model itself"]})
    rule = alt.Chart(whole).mark_rule(strokeDash=[4, 4], color=CONTROL, strokeWidth=2).encode(
        y="accuracy:Q", tooltip=["what", "accuracy"])
    return (rule + lines).properties(width=520, height=280, title="object found (dashed: the model asked directly)")
