"""The picture of a circuit: roles across, blocks upwards."""

from typing import TYPE_CHECKING

import altair as alt
import pandas as pd

from patchclamp.charts.style import CATEGORY, CONTROL, EFFECT, styled

if TYPE_CHECKING:
    from patchclamp.circuits.drawing import Drawing
    from patchclamp.circuits.show import Picture

BESIDE, ROW = 76, 17
"""Pixels for a node beside another and for a block."""
SIGNS = ["faithfulness falls", "faithfulness rises"]
LINES = 14
"""Of a part, listed after a click."""


def picture_chart(result: "Picture") -> alt.TopLevelMixin:
    """The circuit with a slider for how many edges are shown; a click on a part lists its edges and, of a head, the
    words it looks at."""
    drawing = result.drawing
    heads = [line for line in drawing.lines if drawing.nodes[line.source].part.startswith("head.")] or drawing.lines
    first = max(heads, key=lambda line: abs(line.effect))
    picked = alt.selection_point(name="picked", fields=["part"], empty=False, on="click",
                                 value=[{"part": drawing.nodes[first.source].part}])
    most = max(line.rank for line in drawing.lines)
    shown = alt.param(name="shown", value=result.shown,
                      bind=alt.binding_range(min=1, max=most, step=1, name="edges shown "))
    graph = drawing_chart(drawing, picked, shown).properties(
        title=f"{result.task}: what is left of {result.edges_total} edges, at the tokens they are needed at")
    beside = alt.vconcat(_lines(drawing, picked), _looks(result, picked))
    return styled(alt.hconcat(graph, beside).add_params(shown).resolve_scale(
        color="independent", strokeWidth="independent", strokeDash="independent"))


def drawing_chart(
    drawing: "Drawing", picked: alt.Parameter | None = None, shown: alt.Parameter | None = None
) -> alt.LayerChart:
    """Points and lines, with a selection of parts and a largest rank if given."""
    nodes = drawing.nodes
    lines = pd.DataFrame([
        {"edge": line.edge, "at": line.role, "into": line.into, "rank": line.rank, "effect": line.effect,
         "size": abs(line.effect), "sign": SIGNS[line.effect < 0], "x": nodes[line.source].x, "y": nodes[line.source].y,
         "x2": nodes[line.destination].x, "y2": nodes[line.destination].y} for line in drawing.lines])
    ranks: dict[int, int] = {}
    for line in drawing.lines:
        for end in (line.source, line.destination):
            ranks[end] = min(line.rank, ranks.get(end, line.rank))
    points = pd.DataFrame([{"part": node.part, "role": node.role, "kind": _kind(node.part), "x": node.x, "y": node.y,
                            "rank": ranks.get(i, 1)} for i, node in enumerate(nodes)])
    named = zip(drawing.centres, drawing.columns, strict=True)
    names = " : ".join(f"datum.value == {centre} ? '{_safe(name)}'" for centre, name in named) + " : ''"
    x = alt.X("x:Q", title=None, scale=alt.Scale(domain=[0, drawing.width], nice=False),
              axis=alt.Axis(values=drawing.centres, labelExpr=names, orient="bottom", ticks=False, domain=False,
                            labelFontWeight="bold"))
    top = max(node.y for node in nodes)
    y = alt.Y("y:Q", title="block", scale=alt.Scale(domain=[-1.7, top + 0.7], nice=False), axis=alt.Axis(tickMinStep=1))
    rules = alt.Chart(lines).mark_rule(opacity=0.75).encode(
        x=x, y=y, x2="x2:Q", y2="y2:Q",
        color=alt.Color("sign:N", title="without it", scale=alt.Scale(domain=SIGNS, range=CATEGORY[:2])),
        strokeWidth=alt.StrokeWidth("size:Q", scale=alt.Scale(range=[1, 7]), legend=None),
        strokeDash=alt.StrokeDash("into:N", title="read as", scale=alt.Scale(
            domain=["query", "key", "value", "MLP", "logits"], range=[[1, 0], [6, 3], [2, 2], [1, 0], [1, 0]])),
        tooltip=["edge", "at", "into", alt.Tooltip("effect", format="+.3f")])
    dots = alt.Chart(points).mark_point(filled=True, size=110, opacity=1, cursor="pointer").encode(
        x=x, y=y, tooltip=["part", "role"],
        color=alt.Color("kind:N", title="part", scale=alt.Scale(domain=["head", "MLP", "embeddings, logits"],
                                                              range=[CATEGORY[0], CATEGORY[3], CATEGORY[5]])))
    words = alt.Chart(points).mark_text(align="left", dx=8, fontSize=11).encode(x=x, y=y, text="part:N")
    if shown is not None:
        rules, dots, words = (layer.transform_filter("datum.rank <= shown") for layer in (rules, dots, words))
    layers: list[alt.Chart] = [rules, dots, words]
    if picked is not None:
        layers[1] = dots.encode(stroke=alt.condition(picked, alt.value("#000000"), alt.value("#ffffff")),
                                strokeWidth=alt.value(2)).add_params(picked)
    return alt.layer(*layers).resolve_scale(color="independent").properties(
        width=int(BESIDE * drawing.width), height=max(240, int(ROW * (top + 3))))


def _lines(drawing: "Drawing", picked: alt.Parameter) -> alt.Chart:
    """The certificate's lines of the part that was clicked."""
    rows = []
    for part in dict.fromkeys(node.part for node in drawing.nodes):
        mine = [line for line in drawing.lines if part in (drawing.nodes[line.source].part,
                                                           drawing.nodes[line.destination].part)]
        rows += [{"part": part, "row": i, "text": f"{line.edge} at {line.role}: {line.effect:+.3f} [{line.low:+.3f}, "
                                                  f"{line.high:+.3f}]"} for i, line in enumerate(mine[:LINES])]
        if len(mine) > LINES:
            rows.append({"part": part, "row": LINES, "text": f"and {len(mine) - LINES} more, in the table"})
    return alt.Chart(pd.DataFrame(rows)).mark_text(align="left", fontSize=11).encode(
        y=alt.Y("row:O", axis=None), x=alt.value(0), text="text:N",
    ).transform_filter(picked).properties(width=360, height=(LINES + 1) * 14,
                                      title="click a part: what is lost without its edges")


def _looks(result: "Picture", picked: alt.Parameter) -> alt.Chart:
    """Where the head that was clicked looks."""
    data = pd.DataFrame([{"part": one.head, "reader": one.reader, "role": one.role, "share": one.share}
                         for one in result.looks] or [{"part": "", "reader": "", "role": "", "share": 0.0}])
    order = list(dict.fromkeys(one.role for one in result.looks))
    return alt.Chart(data).mark_bar(color=EFFECT).encode(
        y=alt.Y("role:N", sort=order, title="looks at"),
        x=alt.X("share:Q", title="attention", scale=alt.Scale(domain=[0, 1])),
        color=alt.Color("reader:N", title="from", scale=alt.Scale(range=[*CATEGORY[:1], CONTROL, *CATEGORY[1:]])),
        yOffset="reader:N", tooltip=["part", "reader", "role", alt.Tooltip("share", format=".2f")],
    ).transform_filter(picked).properties(width=300, height=150, title="and where the head looks")


def _kind(part: str) -> str:
    return {"mlp": "MLP", "head": "head"}.get(part.split(".")[0], "embeddings, logits")


def _safe(text: str) -> str:
    return text.replace("\\", "\\\\").replace("'", "\\'")
