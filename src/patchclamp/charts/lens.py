"""Charts of lenses that read tokens at every layer."""

from typing import TYPE_CHECKING, Any

import altair as alt
import pandas as pd

from patchclamp.charts.style import CATEGORY, heatmap_size, styled, visible

if TYPE_CHECKING:
    from patchclamp.lenses.logit import LogitLens
    from patchclamp.lenses.reading import Layer

AXIS: dict[str, Any] = {"title": "after block (-1: embeddings)", "labelOverlap": False}
UNTITLED = AXIS | {"title": None}
BELOW = alt.Legend(orient="bottom", columns=2)


def logit_lens_chart(result: "LogitLens") -> alt.TopLevelMixin:
    """Each layer's likeliest tokens, the watched tokens' probabilities, entropy and KL; a second prompt below, and
    below that every token of the prompt."""
    rows: list[Any] = [_panels(result.layers, f"at {visible(result.token)}")]
    if result.beside:
        rows.append(_panels(result.beside.layers, f"beside it, at {visible(result.beside.token)}"))
    if result.cells:
        rows.append(_grid(result))
    stacked = alt.vconcat(*rows).resolve_scale(color="independent") if len(rows) > 1 else rows[0]
    return styled(stacked)


def _panels(layers: "list[Layer]", title: str) -> alt.HConcatChart:
    height = heatmap_size(len(layers), cell=20)
    panels: list[Any] = [tokens_by_layer(layers, title, height)]
    if layers[0].watch:
        panels.append(watched_by_layer(layers, height))
    panels.append(_distance(layers, height))
    return alt.hconcat(*panels).resolve_scale(color="independent", y="independent")


def tokens_by_layer(layers: "list[Layer]", title: str, height: int) -> alt.LayerChart:
    """The likeliest tokens of each layer, coloured by probability."""
    data = pd.DataFrame([
        {"layer": layer.layer, "choice": place + 1, "token": visible(t.token), "probability": t.prob}
        for layer in layers for place, t in enumerate(layer.top)
    ])
    base = alt.Chart(data).encode(
        x=alt.X("choice:O", title="choice", axis=alt.Axis(labelAngle=0)),
        y=alt.Y("layer:O", sort=_order(layers), axis=alt.Axis(**AXIS)),
        tooltip=["layer", "choice", "token", alt.Tooltip("probability", format=".4f")],
    )
    cells = base.mark_rect().encode(
        color=alt.Color("probability:Q", scale=alt.Scale(scheme="blues", domain=[0, 1]), title="probability"))
    words = base.mark_text(fontSize=11).encode(
        text="token:N", color=alt.condition("datum.probability > 0.55", alt.value("white"), alt.value("black")))
    width = heatmap_size(len(layers[0].top), cell=84)
    return (cells + words).properties(width=width, height=height, title=title)


def watched_by_layer(layers: "list[Layer]", height: int) -> alt.Chart:
    """The watched tokens' probabilities through the layers."""
    data = pd.DataFrame([
        {"layer": layer.layer, "token": visible(text), "probability": seen.prob, "rank": seen.rank}
        for layer in layers for text, seen in layer.watch.items()
    ])
    return alt.Chart(data).mark_line(point=True).encode(
        x=alt.X("probability:Q", scale=alt.Scale(domain=[0, 1])),
        y=alt.Y("layer:O", sort=_order(layers), axis=alt.Axis(**UNTITLED)), order="layer:Q",
        color=alt.Color("token:N", sort=None, scale=alt.Scale(range=CATEGORY), title="watched", legend=BELOW),
        tooltip=["token", "layer", alt.Tooltip("probability", format=".4f"), "rank"],
    ).properties(width=220, height=height, title="watched tokens")


def _distance(layers: "list[Layer]", height: int) -> alt.Chart:
    data = pd.DataFrame([
        {"layer": layer.layer, "measure": name, "nats": value}
        for layer in layers for name, value in (("entropy", layer.entropy), ("KL to the last layer", layer.kl))
    ])
    return alt.Chart(data).mark_line(point=True).encode(
        x=alt.X("nats:Q", title="nats", scale=alt.Scale(type="symlog")), order="layer:Q",
        y=alt.Y("layer:O", sort=_order(layers), axis=alt.Axis(**UNTITLED)),
        color=alt.Color("measure:N", scale=alt.Scale(range=CATEGORY[2:]), title=None, legend=BELOW),
        tooltip=["layer", "measure", alt.Tooltip("nats", format=".3f")],
    ).properties(width=150, height=height, title="how far from the end")


def _grid(result: "LogitLens") -> alt.LayerChart:
    """Layers × tokens: the first choice, coloured by its probability."""
    names = [f"{i} {visible(token)}" for i, token in enumerate(result.tokens)]
    data = pd.DataFrame([
        {"layer": c.layer, "token": names[c.position], "first choice": visible(c.top), "probability": c.prob,
         "entropy": c.entropy, **{f"p({visible(t)})": p for t, p in c.watch.items()}}
        for c in result.cells
    ])
    base = alt.Chart(data).encode(
        x=alt.X("token:N", sort=names, title="token", axis=alt.Axis(labelAngle=-45)),
        y=alt.Y("layer:O", sort="descending", axis=alt.Axis(**AXIS)), tooltip=list(data.columns))
    cells = base.mark_rect().encode(
        color=alt.Color("probability:Q", scale=alt.Scale(scheme="blues", domain=[0, 1])))
    words = base.mark_text(fontSize=9, limit=62).encode(
        text="first choice:N", color=alt.condition("datum.probability > 0.55", alt.value("white"), alt.value("black")))
    return (cells + words).properties(
        width=heatmap_size(len(names), cell=64, most=1600), height=heatmap_size(data["layer"].nunique(), cell=18),
        title="first choice at every token")


def _order(layers: "list[Layer]") -> list[int]:
    return [layer.layer for layer in reversed(layers)]
