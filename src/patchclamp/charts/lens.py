"""Charts of lenses."""

from typing import TYPE_CHECKING

import altair as alt
import pandas as pd

from patchclamp.charts.style import CATEGORY, heatmap_size, styled, visible

if TYPE_CHECKING:
    from patchclamp.lenses.logit import LogitLens


def logit_lens_chart(result: "LogitLens") -> alt.TopLevelMixin:
    """Each layer's likeliest tokens, and beside it the watched tokens' probabilities through the layers."""
    height = heatmap_size(len(result.layers), cell=20)
    order = [layer.layer for layer in reversed(result.layers)]
    axis = alt.Axis(title="after block (-1: embeddings)", labelOverlap=False)
    top = pd.DataFrame([
        {"layer": layer.layer, "choice": place + 1, "token": visible(t.token), "probability": t.prob}
        for layer in result.layers for place, t in enumerate(layer.top)
    ])
    base = alt.Chart(top).encode(
        x=alt.X("choice:O", title="choice", axis=alt.Axis(labelAngle=0)), y=alt.Y("layer:O", sort=order, axis=axis),
        tooltip=["layer", "choice", "token", alt.Tooltip("probability", format=".4f")],
    )
    cells = base.mark_rect().encode(
        color=alt.Color("probability:Q", scale=alt.Scale(scheme="blues", domain=[0, 1]), title="probability"))
    words = base.mark_text(fontSize=11).encode(
        text="token:N", color=alt.condition("datum.probability > 0.55", alt.value("white"), alt.value("black")))
    width = heatmap_size(len(result.layers[0].top), cell=90)
    left = (cells + words).properties(width=width, height=height, title=f"at {visible(result.token)}")
    if not result.layers[0].watch:
        return styled(left)
    watched = pd.DataFrame([
        {"layer": layer.layer, "token": visible(text), "probability": seen.prob, "rank": seen.rank}
        for layer in result.layers for text, seen in layer.watch.items()
    ])
    right = alt.Chart(watched).mark_line(point=True).encode(
        x=alt.X("probability:Q", scale=alt.Scale(domain=[0, 1])), y=alt.Y("layer:O", sort=order, axis=axis),
        order="layer:Q", color=alt.Color("token:N", scale=alt.Scale(range=CATEGORY), title="watched"),
        tooltip=["token", "layer", alt.Tooltip("probability", format=".4f"), "rank"],
    ).properties(width=260, height=height, title="watched tokens")
    return styled(alt.hconcat(left, right).resolve_scale(color="independent", y="independent"))
