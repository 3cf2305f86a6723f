"""Charts of circuits: patching, knockout, and the graph that is left."""

from typing import TYPE_CHECKING

import altair as alt
import pandas as pd

from patchclamp.charts.circuit_picture import drawing_chart
from patchclamp.charts.style import CATEGORY, CONTROL, DIVERGING, heatmap_size, styled, visible

if TYPE_CHECKING:
    from patchclamp.circuits.evaluate import CircuitCurve
    from patchclamp.circuits.find import Circuit
    from patchclamp.circuits.flow import Flow
    from patchclamp.circuits.heads import Heads
    from patchclamp.circuits.knockout import Knockout
    from patchclamp.circuits.patch import Patching
    from patchclamp.circuits.score import EdgeScores
    from patchclamp.circuits.task import TaskPairs
    from patchclamp.circuits.verify import Verified


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


def circuit_chart(result: "Circuit") -> alt.TopLevelMixin:
    """The circuit with roles across and blocks upwards, and its faithfulness beside that of random circuits."""
    graph = drawing_chart(result.drawing).properties(title=f"{result.edges_kept} of {result.edges_total} edges")
    return styled(alt.hconcat(graph, _faithfulness(result)).resolve_scale(color="independent"))


def _faithfulness(result: "Circuit") -> alt.LayerChart | alt.FacetChart:
    found = result.certificate
    sets = {"looked on": found.search, "held out": found.heldout, "other templates": found.others}
    data = pd.DataFrame([{"prompts": name, **one.faithfulness.model_dump()} for name, one in sets.items() if one])
    order = [*data["prompts"], "random circuits"]
    random = pd.DataFrame([{"prompts": "random circuits", "mean": value} for value in result.random])
    x = alt.X("prompts:N", sort=order, title=None, axis=alt.Axis(labelAngle=-30))
    points = alt.Chart(data).mark_point(filled=True, size=80, color=CATEGORY[0]).encode(
        x=x, y=alt.Y("mean:Q", title="faithfulness"), tooltip=["prompts", alt.Tooltip("mean", format=".3f")])
    spans = alt.Chart(data).mark_rule(color=CATEGORY[0]).encode(x=x, y="low:Q", y2="high:Q")
    one = alt.Chart(pd.DataFrame({"whole": [1.0]})).mark_rule(strokeDash=[4, 4], color=CONTROL).encode(y="whole:Q")
    each = pd.DataFrame([{"prompts": name, "value": value} for name, part in sets.items() if part
                         for value in part.each])
    prompts = alt.Chart(each).mark_point(size=14, opacity=0.4, color=CATEGORY[0]).encode(
        x=x, y="value:Q", tooltip=["prompts", alt.Tooltip("value", title="one prompt", format=".3f")])
    layers = [one, prompts, spans, points]
    if len(random):
        layers.append(alt.Chart(random).mark_tick(color=CONTROL, thickness=2).encode(x=x, y="mean:Q"))
    return alt.layer(*layers).properties(width=200, height=360, title="faithfulness")


def verified_chart(result: "Verified") -> alt.TopLevelMixin:
    """Every number of a certificate as it was and as it is."""
    data = pd.DataFrame([one.model_dump() for one in result.numbers])
    ends = [float(data[["certified", "measured"]].min().min()), float(data[["certified", "measured"]].max().max())]
    line = alt.Chart(pd.DataFrame({"certified": ends, "measured": ends})).mark_line(color=CONTROL).encode(
        x="certified:Q", y="measured:Q")
    points = alt.Chart(data).mark_point(filled=True, color=CATEGORY[0]).encode(
        x="certified:Q", y="measured:Q", tooltip=["name", "certified", "measured"])
    return styled((line + points).properties(width=320, height=320))


def task_chart(result: "TaskPairs") -> alt.TopLevelMixin:
    """Every pair's logit differences, by template."""
    data = pd.DataFrame([{"clean": one.clean, "corrupted": one.corrupted, "prompt": one.pair.clean,
                          "template": one.template or "the file's"} for one in result.pairs])
    zero = alt.Chart(pd.DataFrame({"clean": [0.0]})).mark_rule(color=CONTROL, strokeDash=[4, 4]).encode(x="clean:Q")
    points = alt.Chart(data).mark_point(filled=True, size=60).encode(
        x=alt.X("clean:Q", title="logit difference, clean prompt"),
        y=alt.Y("corrupted:Q", title="corrupted prompt"),
        color=alt.Color("template:N", scale=alt.Scale(range=CATEGORY), legend=alt.Legend(labelLimit=420)),
        tooltip=["prompt", alt.Tooltip("clean", format="+.2f"), alt.Tooltip("corrupted", format="+.2f")])
    return styled((zero + points).properties(width=340, height=300, title=f"{result.solved.mean:.0%} solved"))


def scores_chart(result: "EdgeScores") -> alt.TopLevelMixin:
    """Scores beside exact ones."""
    data = pd.DataFrame([one.model_dump() for one in result.edges if one.exact is not None])
    ends = [float(data[["score", "exact"]].min().min()), float(data[["score", "exact"]].max().max())]
    line = alt.Chart(pd.DataFrame({"score": ends, "exact": ends})).mark_line(color=CONTROL, strokeDash=[4, 4]).encode(
        x="score:Q", y="exact:Q")
    points = alt.Chart(data).mark_point(filled=True, size=50).encode(
        x=alt.X("score:Q", title=f"score by {result.method}"), y=alt.Y("exact:Q", title="change when cut exactly"),
        color=alt.Color("chosen:N", scale=alt.Scale(range=CATEGORY), title="edge"),
        tooltip=["edge", alt.Tooltip("score", format="+.4f"), alt.Tooltip("exact", format="+.4f")])
    return styled((line + points).properties(width=340, height=340))


def curve_chart(result: "CircuitCurve") -> alt.TopLevelMixin:
    """Faithfulness by size, beside random circuits and the whole model."""
    own = pd.DataFrame([{"share": p.fraction, "faithfulness": p.faithfulness, "edges": p.edges} for p in result.curve])
    x = alt.X("share:Q", scale=alt.Scale(type="log"), title="share of edges")
    whole = alt.Chart(pd.DataFrame({"faithfulness": [1.0]})).mark_rule(strokeDash=[4, 4], color=CONTROL).encode(
        y="faithfulness:Q")
    line = alt.Chart(own).mark_line(point=True, color=CATEGORY[0]).encode(
        x=x, y="faithfulness:Q", tooltip=["edges", alt.Tooltip("faithfulness", format=".3f")])
    layers = [whole, line]
    if result.random:
        random = pd.DataFrame([{"share": p.fraction, **p.faithfulness.model_dump()} for p in result.random])
        layers.insert(0, alt.Chart(random).mark_area(opacity=0.3, color=CONTROL).encode(x=x, y="low:Q", y2="high:Q"))
    return styled(alt.layer(*layers).properties(
        width=420, height=300, title=f"CPR {result.cpr:.2f}, CMD {result.cmd:.3f}; grey: random circuits"))


def heads_chart(result: "Heads") -> alt.TopLevelMixin:
    """Each head's effect, and the words that the last token looks at through it."""
    order = [one.head for one in result.heads]
    data = pd.DataFrame([{"head": one.head, "label": one.label or "no label", "why": one.why,
                          **one.effect.model_dump()} for one in result.heads])
    bars = alt.Chart(data).mark_bar().encode(
        y=alt.Y("head:N", sort=order, title=None), x=alt.X("mean:Q", title="change of the logit difference without it"),
        color=alt.Color("label:N", title=None), tooltip=["head", "label", "why", alt.Tooltip("mean", format="+.3f")])
    looks = pd.DataFrame([{"head": one.head, "role": role, "share": share}
                          for one in result.heads for role, share in one.attention.items()])
    map_ = alt.Chart(looks).mark_rect().encode(
        y=alt.Y("head:N", sort=order, title=None, axis=None), x=alt.X("role:N", title="last token looks at"),
        color=alt.Color("share:Q", scale=alt.Scale(scheme="blues"), title="attention"),
        tooltip=["head", "role", alt.Tooltip("share", format=".2f")])
    height = heatmap_size(len(order), cell=16)
    return styled(alt.hconcat(bars.properties(width=320, height=height), map_.properties(width=140, height=height))
                  .resolve_scale(color="independent"))


def flow_chart(result: "Flow") -> alt.TopLevelMixin:
    """What is lost of the answer's probability by block, a line a role."""
    data = pd.DataFrame([{"role": one.role, "block": p.layer, **p.effect.model_dump()}
                         for one in result.roles for p in one.points])
    order = [one.role for one in result.roles]
    color = alt.Color("role:N", sort=order, scale=alt.Scale(range=CATEGORY), title="blocked")
    band = alt.Chart(data).mark_area(opacity=0.15).encode(x="block:Q", y="low:Q", y2="high:Q", color=color)
    line = alt.Chart(data).mark_line().encode(
        x=alt.X("block:Q", title=f"middle of {result.window} blocks"),
        y=alt.Y("mean:Q", title="change of the answer's probability", axis=alt.Axis(format="%")), color=color,
        tooltip=["role", "block", alt.Tooltip("mean", format=".1%")])
    return styled((band + line).properties(width=460, height=300, title=f"attention from {result.to} blocked"))
