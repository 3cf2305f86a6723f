"""Charts of trained and measured lenses."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import altair as alt
import pandas as pd

from patchclamp.charts.style import CATEGORY, styled, visible

if TYPE_CHECKING:
    from patchclamp.evidence.verdict import Interval
    from patchclamp.lenses.jacobian import JacobianLens
    from patchclamp.lenses.tuned import TrainedLens

ORDER = ["logit", "jacobian", "tuned"]
LAYER = alt.X("layer:Q", title="after block (-1: embeddings)", scale=alt.Scale(nice=False),
              axis=alt.Axis(tickMinStep=1))


def trained_lens_chart(result: "TrainedLens") -> alt.TopLevelMixin:
    """KL to the output on held-out text, by layer, of logit and tuned lens; beside it the training's course."""
    held_out = {"logit": [layer.logit for layer in result.layers], "tuned": [layer.tuned for layer in result.layers]}
    course = pd.DataFrame({"step": range(1, len(result.training) + 1), "KL": result.training})
    right = alt.Chart(course).mark_line(color=CATEGORY[ORDER.index("tuned")]).encode(
        x=alt.X("step:Q"), y=alt.Y("KL:Q", title="KL in training, mean over layers (nats)"),
        tooltip=["step", alt.Tooltip("KL", format=".4f")],
    ).properties(width=260, height=300, title="training")
    return styled(alt.hconcat(_kl_chart(held_out, [layer.layer for layer in result.layers]), right))


def jacobian_lens_chart(result: "JacobianLens") -> alt.TopLevelMixin:
    """KL to the output on held-out text, by layer and lens; beside it the ranks of the prompt's watched tokens."""
    left = _kl_chart(result.held_out, [layer.layer for layer in result.layers])
    if not result.layers[0].watch:
        return styled(left)
    ranks = pd.DataFrame([
        {"layer": layer.layer, "lens": name, "token": visible(text), "rank": seen.rank, "place": seen.rank + 1}
        for name, layers in result.readings.items() for layer in layers for text, seen in layer.watch.items()
    ])
    charts = [
        alt.Chart(ranks[ranks["token"] == token]).mark_line(point=True).encode(
            x=LAYER, color=_color(result.readings),
            y=alt.Y("place:Q", scale=alt.Scale(type="log", reverse=True), title="place among all tokens (1: first)"),
            tooltip=["lens", "layer", "token", "rank"],
        ).properties(width=260, height=300, title=f"{token} at {visible(result.token)}")
        for token in dict.fromkeys(ranks["token"])
    ]
    return styled(alt.hconcat(left, *charts))


def _color(lenses: Iterable[str]) -> alt.Color:
    """A lens has the same colour in every chart, beside whichever others."""
    shown = [name for name in ORDER if name in set(lenses)]
    scale = alt.Scale(domain=shown, range=[CATEGORY[ORDER.index(name)] for name in shown])
    return alt.Color("lens:N", scale=scale, title="lens")


def _kl_chart(held_out: Mapping[str, Iterable["Interval"]], layers: Sequence[int]) -> alt.LayerChart:
    """Mean and interval of the KL to the output, a line a lens."""
    data = pd.DataFrame([
        {"layer": layer, "lens": name, "KL": interval.mean, "low": interval.low, "high": interval.high}
        for name, intervals in held_out.items() for layer, interval in zip(layers, intervals, strict=True)
    ])
    base = alt.Chart(data).encode(x=LAYER, color=_color(held_out))
    band = base.mark_area(opacity=0.2).encode(
        y=alt.Y("low:Q", scale=alt.Scale(type="symlog"), title="KL to the output (nats; log scale above 1)"),
        y2="high:Q")
    line = base.mark_line(point=True).encode(
        y="KL:Q", tooltip=["lens", "layer", *(alt.Tooltip(name, format=".3f") for name in ("KL", "low", "high"))])
    return (band + line).properties(width=380, height=300, title="on held-out text")
