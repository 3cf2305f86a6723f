"""Charts of circuits: patching and knockout."""

from typing import TYPE_CHECKING

import altair as alt
import pandas as pd

from patchclamp.charts.style import CATEGORY, CONTROL, DIVERGING, heatmap_size, styled, visible

if TYPE_CHECKING:
    from patchclamp.circuits.knockout import Knockout
    from patchclamp.circuits.patch import Patching


def patching_chart(result: "Patching") -> alt.TopLevelMixin:
    """A heatmap for each kind of site: blocks × token positions, or blocks × heads."""
    tokens = result.tokens_clean if result.reverse else result.tokens_corrupted
    charts = []
    for point in dict.fromkeys(c.point for c in result.cells):
        cells = [c for c in result.cells if c.point == point]
        is_head = point == "head"
        data = pd.DataFrame([
            {"block": c.layer, "column": str(c.unit) if is_head else f"{c.position} {visible(tokens[c.position or 0])}",
             "share": c.effect, "site": c.site}
            for c in cells
        ])
        columns = list(dict.fromkeys(data["column"]))
        charts.append(
            alt.Chart(data).mark_rect().encode(
                x=alt.X("column:N", sort=columns, title="head" if is_head else "token",
                        axis=alt.Axis(labelAngle=0 if is_head else -45)),
                y=alt.Y("block:O", sort="descending", axis=alt.Axis(labelOverlap=False)),
                color=alt.Color("share:Q", scale=DIVERGING, title="share of clean"),
                tooltip=["site", alt.Tooltip("share", format=".3f")],
            ).properties(
                width=heatmap_size(len(columns), cell=24), height=heatmap_size(data["block"].nunique(), cell=12),
                title=point,
            )
        )
    return styled(alt.hconcat(*charts).resolve_scale(color="shared"))


def knockout_chart(result: "Knockout") -> alt.TopLevelMixin:
    """Logit difference without each block; the dashed line is the whole model."""
    data = pd.DataFrame([c.model_dump() for c in result.cells])
    line = alt.Chart(pd.DataFrame({"whole": [result.base_logit_difference]})).mark_rule(
        strokeDash=[4, 4], color=CONTROL, strokeWidth=2).encode(y="whole:Q")
    bars = alt.Chart(data).mark_bar().encode(
        x=alt.X("layer:O", title="block taken away", axis=alt.Axis(labelAngle=0)), xOffset="point:N",
        y=alt.Y("logit_difference:Q", title="logit difference without it"),
        color=alt.Color("point:N", scale=alt.Scale(range=CATEGORY), title="kind"),
        tooltip=["site", alt.Tooltip("logit_difference", format=".3f"), alt.Tooltip("effect", format="+.3f")],
    )
    return styled((bars + line).properties(width=heatmap_size(data["layer"].nunique(), cell=26), height=260))
