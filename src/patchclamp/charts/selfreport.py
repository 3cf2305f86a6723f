"""Chart of what a model says of its layers."""

from typing import TYPE_CHECKING

import altair as alt
import pandas as pd

from patchclamp.charts.style import CONTROL, EFFECT, styled

if TYPE_CHECKING:
    from patchclamp.lenses.selfreport import SelfreportResult


def selfreport_chart(result: "SelfreportResult") -> alt.TopLevelMixin:
    """Each fact as a point, measured layer across and stated layer up, larger where several facts meet; the diagonal
    is where an account would be true. Below it the accounts that name no layer are counted in the title."""
    named = pd.DataFrame([a.model_dump() for a in result.accounts if a.stated is not None],
                         columns=["measured", "stated", "subject", "answer", "said"])
    counted = named.groupby(["measured", "stated"], as_index=False).agg(
        facts=("subject", "size"), which=("subject", ", ".join), said=("said", "first"))
    top = int(max([1, *named["measured"], *named["stated"]]))
    layer = alt.Scale(domain=[0, top])
    diagonal = alt.Chart(pd.DataFrame({"measured": [0, top], "stated": [0, top]})).mark_line(
        color=CONTROL, strokeDash=[4, 4]).encode(x="measured:Q", y="stated:Q")
    points = alt.Chart(counted).mark_circle(color=EFFECT, opacity=0.8).encode(
        x=alt.X("measured:Q", title="measured: the answer is first choice from this block on", scale=layer),
        y=alt.Y("stated:Q", title="stated by the model", scale=layer),
        size=alt.Size("facts:Q", scale=alt.Scale(range=[40, 400]), legend=alt.Legend(tickMinStep=1)),
        tooltip=["measured", "stated", "facts", "which", "said"])
    unnamed = result.facts - len(named)
    title = f"{len(named)} accounts that name a layer" + (f", {unnamed} that name none" if unnamed else "")
    return styled((diagonal + points).properties(width=420, height=360, title=title))
