"""Charts of an index of neurons, and of one neuron's examples."""

from typing import TYPE_CHECKING, Literal

import altair as alt
import pandas as pd

from patchclamp.charts.style import CONTROL, EFFECT, heatmap_size, styled, visible

if TYPE_CHECKING:
    from patchclamp.corpus.found import Window
    from patchclamp.corpus.shown import UnitExamples
    from patchclamp.neurons.examples import Examples
    from patchclamp.neurons.index import IndexedNeurons

NEURONS, TOP, BOTTOM = 6, 8, 4
"""How many neurons are drawn, and how many windows of each sign."""
BEFORE, AFTER = -9, 3
"""Columns around the peak that fit on a page; the whole windows are in the passages below."""
LETTERS = 9
"""Longer tokens are cut."""
WIDE, HIGH = 56, 18
"""A token's cell, pixels."""
ORANGE_BLUE = ["#1b6ca8", "#ffffff", "#e68c28"]


def index_chart(result: "IndexedNeurons") -> alt.TopLevelMixin:
    """By layer: the share of tokens at which neurons are above 0, and their peaks: median and 10 to 90 % of neurons."""
    return styled(alt.hconcat(_by_layer(result, "active", "share of tokens above 0", "linear"),
                              _by_layer(result, "peak", "greatest |activation| / sd", "log")))


def _by_layer(
    result: "IndexedNeurons", field: str, title: str, scale: Literal["linear", "log"]
) -> alt.LayerChart:
    data = pd.DataFrame([
        {"layer": one.layer, "low": low, "median": middle, "high": high, "constant": one.constant}
        for one in result.layers for low, middle, high in [getattr(one, field)]
    ])
    y = alt.Scale(type=scale, zero=False, nice=False, padding=8)
    base = alt.Chart(data).encode(x=alt.X("layer:O", axis=alt.Axis(labelAngle=0, labelOverlap=True)))
    band = base.mark_rule(color=CONTROL, strokeWidth=9).encode(y=alt.Y("low:Q", title=None, scale=y), y2="high:Q")
    middle = base.mark_point(color=EFFECT, filled=True, size=60).encode(
        y=alt.Y("median:Q", scale=y),
        tooltip=["layer", "constant", *(alt.Tooltip(name, format=".3g") for name in ("low", "median", "high"))])
    return (band + middle).properties(width=heatmap_size(len(data), cell=16), height=220, title=title)


def examples_chart(result: "Examples") -> alt.TopLevelMixin:
    """For each of the first neurons its histogram and its windows, tokens coloured by activation."""
    drawn = [unit_chart(neuron) for neuron in result.neurons[:NEURONS]]
    return styled(alt.vconcat(*drawn).resolve_scale(color="independent"))


def unit_chart(neuron: "UnitExamples") -> alt.Chart | alt.VConcatChart:
    histogram = _histogram(neuron)
    windows = [*neuron.top[:TOP], *neuron.bottom[:BOTTOM]]
    return alt.vconcat(histogram, _windows(neuron, windows)) if windows else histogram


def _histogram(neuron: "UnitExamples") -> alt.Chart:
    """Both axes are linear near 0 and logarithmic beyond, or nothing but the bulk would be seen."""
    ends = [neuron.low, *neuron.edges, neuron.high]
    rows = [{"from": max(low, neuron.low), "to": min(high, neuron.high), "tokens": count}
            for low, high, count in zip(ends[:-1], ends[1:], neuron.histogram, strict=True) if count]
    scale = alt.Scale(type="symlog", constant=neuron.edges[len(neuron.edges) // 2] * 4)
    title = f"{neuron.site}: above 0 at {100 * neuron.active:.3g} % of {neuron.tokens:,} tokens, sd {neuron.sd:.3g}"
    return alt.Chart(pd.DataFrame(rows)).mark_bar(color=EFFECT, stroke="white", strokeWidth=0.5).encode(
        x=alt.X("from:Q", title="activation", scale=scale, axis=alt.Axis(values=_ticks(neuron), format=".3~g")),
        x2="to:Q",
        y=alt.Y("tokens:Q", scale=alt.Scale(type="symlog"), axis=alt.Axis(values=[0, 1, 10, 100, 1000, 10**4, 10**5])),
        y2=alt.datum(0),
        tooltip=[alt.Tooltip("from", format=".3g"), alt.Tooltip("to", format=".3g"), "tokens"],
    ).properties(width=520, height=140, title=title)


def _ticks(neuron: "UnitExamples") -> list[float]:
    powers = [10.0**n for n in range(-2, 5)]
    return [t for t in (*(-p for p in reversed(powers)), 0.0, *powers) if neuron.low <= t <= neuron.high]


def _windows(neuron: "UnitExamples", windows: "list[Window]") -> alt.LayerChart:
    most = max(abs(neuron.low), abs(neuron.high))
    data = pd.DataFrame([
        {"row": row, "column": index - w.at, "text": _short(token), "token": visible(token),
         "activation": value, "peak": index == w.at}
        for row, w in enumerate(windows)
        for index, (token, value) in enumerate(zip(w.tokens, w.activations, strict=True))
        if BEFORE <= index - w.at <= AFTER
    ])
    names = "[" + ",".join(f"'{w.value:.3g}'" for w in windows) + "][datum.value]"
    base = alt.Chart(data).encode(
        x=alt.X("column:O", axis=None),
        y=alt.Y("row:O", title=None, axis=alt.Axis(labelExpr=names, domain=False, ticks=False)))
    cells = base.mark_rect().encode(
        color=alt.Color("activation:Q", scale=alt.Scale(
            domain=[-most, 0, most], range=ORANGE_BLUE, interpolate="rgb", clamp=True)),
        tooltip=["token", alt.Tooltip("activation", format=".4g")])
    text = base.mark_text(fontSize=10).encode(
        text="text:N", color=alt.condition(f"datum.activation < {-0.6 * most}", alt.value("white"), alt.value("black")))
    peaks = base.transform_filter("datum.peak").mark_rect(fill=None, stroke="#303030")
    return (cells + text + peaks).properties(width=alt.Step(WIDE), height=alt.Step(HIGH))


def _short(token: str) -> str:
    shown = visible(token)
    return shown if len(shown) <= LETTERS else shown[: LETTERS - 1] + "…"
