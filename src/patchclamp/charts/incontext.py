"""Charts of in-context vectors."""

from typing import TYPE_CHECKING

import altair as alt
import pandas as pd

from patchclamp.charts.style import CATEGORY, CONTROL, styled

if TYPE_CHECKING:
    from patchclamp.vectors.composed import ComposeResult
    from patchclamp.vectors.task import TaskResult

LINES = {
    "replace": "task vector, replaced",
    "add": "mean difference, added",
    "function_vector": "function vector, added",
    "random": "random state, replaced",
    "random_heads": "random heads, added",
}


def task_chart(result: "TaskResult") -> alt.TopLevelMixin:
    """Zero-shot accuracy by block for each vector, in-context and bare accuracy as lines; below, heads' effects."""
    levels = pd.DataFrame(
        [
            {"accuracy": result.icl_accuracy, "what": "with examples"},
            {"accuracy": result.zero_shot_accuracy, "what": "bare"},
        ]
    )
    rules = (
        alt.Chart(levels)
        .mark_rule(strokeDash=[5, 4])
        .encode(
            y=alt.Y("accuracy:Q", title="bare questions answered right", scale=alt.Scale(domain=[0, 1])),
            tooltip=["what", alt.Tooltip("accuracy", format=".3f")],
        )
    )
    words = alt.Chart(levels).mark_text(align="left", dy=-6, x=4).encode(y="accuracy:Q", text="what")
    if not result.by_layer:
        return styled((rules + words).properties(width=560, height=260, title="in-context learning too weak"))
    data = pd.DataFrame(
        [
            {"block": layer.layer, "vector": said, "accuracy": getattr(layer, name)}
            for layer in result.by_layer
            for name, said in LINES.items()
        ]
    )
    names = list(LINES.values())
    lines = (
        alt.Chart(data)
        .mark_line(point=True)
        .encode(
            x=alt.X("block:Q", title="after block", axis=alt.Axis(tickMinStep=1)),
            y="accuracy:Q",
            color=alt.Color(
                "vector:N",
                sort=names,
                title=None,
                scale=alt.Scale(domain=names, range=[*CATEGORY[:3], CONTROL, "#d8d8d8"]),
            ),
            tooltip=["vector", "block", alt.Tooltip("accuracy", format=".3f")],
        )
    )
    top = (rules + words + lines).properties(width=560, height=260)
    heads = pd.DataFrame([head.model_dump() for head in result.heads])
    grid = (
        alt.Chart(heads)
        .mark_rect()
        .encode(
            x=alt.X("layer:O", title="block"),
            y=alt.Y("head:O", title="head"),
            color=alt.Color("effect:Q", title="indirect effect", scale=alt.Scale(scheme="redblue", domainMid=0)),
            tooltip=["layer", "head", alt.Tooltip("effect", format=".4f")],
        )
    )
    return styled(
        alt.vconcat(top, grid.properties(width=560, title="causal indirect effect of each head")).resolve_scale(
            color="independent"
        )
    )


def compose_chart(result: "ComposeResult") -> alt.TopLevelMixin:
    """Accuracy of composed and measured vector and of a part alone by block, and their cosine."""
    data = pd.DataFrame([layer.model_dump() for layer in result.layers])
    names = {"composed": "composed", "direct": "measured", "part": "a part alone, or a random vector"}
    long = data.melt("layer", list(names), "vector", "accuracy").replace({"vector": names})
    x = alt.X("layer:Q", title="after block", axis=alt.Axis(tickMinStep=1))
    lines = (
        alt.Chart(long)
        .mark_line(point=True)
        .encode(
            x=x,
            y=alt.Y("accuracy:Q", title="answered right", scale=alt.Scale(domain=[0, 1])),
            color=alt.Color(
                "vector:N",
                sort=list(names.values()),
                title=None,
                scale=alt.Scale(domain=list(names.values()), range=[*CATEGORY[:2], CONTROL]),
            ),
            tooltip=["vector", "layer", alt.Tooltip("accuracy", format=".3f")],
        )
    )
    cosine = (
        alt.Chart(data)
        .mark_line(point=True, color=CATEGORY[2])
        .encode(x=x, y=alt.Y("cosine:Q", title="cosine"), tooltip=["layer", alt.Tooltip("cosine", format=".3f")])
    )
    return styled(alt.vconcat(lines.properties(width=560, height=240), cosine.properties(width=560, height=90)))
