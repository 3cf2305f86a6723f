"""Charts of attention: one head token by token, or many heads on one page."""

import json
from typing import TYPE_CHECKING, Any

import altair as alt
import pandas as pd

from patchclamp.charts.style import CONTROL, heatmap_size, styled, visible

if TYPE_CHECKING:
    from patchclamp.lenses.attention import Attention, Head

FEW = 4
"""Up to so many heads are drawn with their tokens."""
LABELLED_TOKENS = 48
"""Longer prompts have no room for the tokens beside a heatmap."""
LEAST = 0.02
"""In a grid, weights below this, and norms below this share of the head's longest, are left blank."""
GAP = 1
"""Cells between two heads of a grid."""
PAGE = 640
"""Width in pixels that a grid's panel aims at."""


def attention_chart(result: "Attention") -> alt.TopLevelMixin:
    """Weights on the left, norms on the right: with tokens for a few heads, as a grid of blocks × heads for many."""
    if len(result.heads) <= FEW and len(result.tokens) <= LABELLED_TOKENS:
        return styled(alt.vconcat(*(_one_head(head, result.tokens) for head in result.heads)).resolve_scale(
            color="independent"))
    return styled(alt.hconcat(_grid(result, "weight"), _grid(result, "norm")).resolve_scale(color="independent"))


def _one_head(head: "Head", tokens: list[str]) -> alt.HConcatChart:
    labels = [f"{i} {visible(token)}" for i, token in enumerate(tokens)]
    data = pd.DataFrame([
        {"reads": labels[i], "from": labels[j], "weight": head.pattern[i][j], "norm": head.norms[i][j]}
        for i in range(len(tokens)) for j in range(i + 1)
    ])
    base = alt.Chart(data).mark_rect().encode(
        x=alt.X("from:N", sort=labels, title="reads from", axis=alt.Axis(labelAngle=-45)),
        y=alt.Y("reads:N", sort=labels, title="token"),
        tooltip=["reads", "from", alt.Tooltip("weight", format=".3f"), alt.Tooltip("norm", format=".3g")],
    ).properties(width=heatmap_size(len(tokens)), height=heatmap_size(len(tokens)))
    name = f"head {head.head} of block {head.layer}"
    whole = alt.Scale(scheme="blues", domain=[0, 1])
    return alt.hconcat(
        base.encode(color=alt.Color("weight:Q", scale=whole)).properties(title=f"{name}: weights"),
        base.encode(color=alt.Color("norm:Q", scale=alt.Scale(scheme="oranges", domainMin=0))).properties(
            title=f"{name}: norms of what is moved"),
    ).resolve_scale(color="independent")


def _grid(result: "Attention", kind: str) -> alt.LayerChart:
    """All heads in one view: every head a square of T × T cells, placed by plain arithmetic. One view of many
    rectangles is drawn in a fraction of the time and size of as many facets."""
    n = len(result.tokens)
    step = n + GAP
    layers = sorted({h.layer for h in result.heads}, reverse=True)
    units = sorted({h.head for h in result.heads})
    width, height = step * len(units), step * len(layers)
    pixels = max(1.0, min(6.0, PAGE / width))
    corners = [(step * units.index(h.head), step * layers.index(h.layer)) for h in result.heads]
    rows = [{"layer": h.layer, "head": h.head, "left": left, "top": top, **_visible_cells(h, kind)}
            for h, (left, top) in zip(result.heads, corners, strict=True)]
    x = alt.X("x:Q", title="head", axis=_axis(units, step), scale=alt.Scale(domain=[0, width], nice=False))
    y = alt.Y("y:Q", title="block", axis=_axis(layers, step),
              scale=alt.Scale(domain=[0, height], nice=False, reverse=True))
    squares = [{"x": left, "x2": left + n, "y": top, "y2": top + n} for left, top in corners]
    paper = alt.Chart(pd.DataFrame(squares)).mark_rect(color=CONTROL, opacity=0.2).encode(
        x=x, x2="x2:Q", y=y, y2="y2:Q")
    says = json.dumps([f"{i} {visible(token)}" for i, token in enumerate(result.tokens)], ensure_ascii=False)
    cells = alt.Chart(pd.DataFrame(rows)).transform_flatten(["cell", "value"]).transform_calculate(
        share="datum.value / datum.whole",
        x=f"datum.left + datum.cell % {n}", y=f"datum.top + floor(datum.cell / {n})", x2="datum.x + 1",
        y2="datum.y + 1", reads=f"{says}[floor(datum.cell / {n})]", source=f"{says}[datum.cell % {n}]",
    ).mark_rect(aria=False).encode(
        x=x, x2="x2:Q", y=y, y2="y2:Q", color=_color(kind),
        tooltip=["layer:Q", "head:Q", "reads:N", alt.Tooltip("source:N", title="from"),
                 alt.Tooltip("value:Q", title=kind)],
    )
    what = "attention weights" if kind == "weight" else "norms of what is moved, as shares of each head's longest"
    title = alt.TitleParams(what, subtitle=f"below {LEAST:g}: blank")
    return (paper + cells).properties(width=width * pixels, height=height * pixels, title=title)


def _visible_cells(head: "Head", kind: str) -> dict[str, Any]:
    """The cells worth drawing, numbered row by row, and what their values are shares of. Two lists a head are a
    tenth of the size of one row a cell."""
    table = head.pattern if kind == "weight" else head.norms
    n = len(table)
    whole = 1.0 if kind == "weight" else max(map(max, table)) or 1.0
    kept = [(i * n + j, table[i][j]) for i in range(n) for j in range(i + 1) if table[i][j] >= LEAST * whole]
    return {"cell": [cell for cell, _ in kept], "value": [float(f"{value:.3g}") for _, value in kept], "whole": whole}


def _color(kind: str) -> alt.Color:
    if kind == "weight":
        return alt.Color("share:Q", title="weight", scale=alt.Scale(scheme="blues", domain=[0, 1]))
    return alt.Color("share:Q", title="share", scale=alt.Scale(scheme="oranges", domain=[0, 1]))


def _axis(numbers: list[int], step: int) -> alt.Axis:
    """One label in the middle of each head's square."""
    middles = [i * step + (step - GAP) / 2 for i in range(len(numbers))]
    return alt.Axis(values=middles, labelExpr=f"{json.dumps(numbers)}[floor(datum.value / {step})]", ticks=False,
                    domain=False, labelAngle=0, labelOverlap="parity")
