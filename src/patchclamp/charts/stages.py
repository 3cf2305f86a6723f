"""Chart of an answer's stages."""

from typing import TYPE_CHECKING

import altair as alt
import pandas as pd

from patchclamp.charts.style import CATEGORY, CONTROL, styled

if TYPE_CHECKING:
    from patchclamp.lenses.stages import StagesResult

NAMES = {"subject": "the subject", "object": "the object", "other": "another fact's subject (control)"}
TITLES = ("asked for the fact", "asked after a passage that states it")


def stages_chart(result: "StagesResult") -> alt.TopLevelMixin:
    """Mean reciprocal rank of subject, object and control by layer, with 95 % intervals; one panel a format."""
    panels = [_panel(stages, title) for stages, title in zip((result.layers, result.passage_layers), TITLES,
                                                             strict=True) if stages]
    return styled(alt.hconcat(*panels) if len(panels) > 1 else panels[0])


def _panel(stages: list, title: str) -> alt.LayerChart:
    data = pd.DataFrame([
        {"layer": stage.layer, "token": name, **getattr(stage, role).model_dump()}
        for stage in stages for role, name in NAMES.items()
    ])
    names = list(NAMES.values())
    base = alt.Chart(data).encode(
        x=alt.X("layer:Q", title="after block (-1: embeddings)", axis=alt.Axis(tickMinStep=1)),
        color=alt.Color("token:N", sort=names, title=None,
                        scale=alt.Scale(domain=names, range=[*CATEGORY[:2], CONTROL])))
    band = base.mark_area(opacity=0.2).encode(
        y=alt.Y("low:Q", title="reciprocal rank", scale=alt.Scale(domain=[0, 1])), y2="high:Q")
    line = base.mark_line(point=True).encode(
        y="mean:Q", tooltip=["token", "layer", alt.Tooltip("mean", format=".3f"), alt.Tooltip("low", format=".3f"),
                             alt.Tooltip("high", format=".3f")])
    return (band + line).properties(width=380, height=280, title=title)
