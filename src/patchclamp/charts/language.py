"""Chart of the language of thought."""

from typing import TYPE_CHECKING

import altair as alt
import pandas as pd

from patchclamp.charts.style import CATEGORY, styled

if TYPE_CHECKING:
    from patchclamp.lenses.language import LanguageResult

ORDER = ("source", "target", "pivot", "control")


def language_chart(result: "LanguageResult") -> alt.TopLevelMixin:
    """The probability of the word in each language by layer, with the mean's 95 % interval."""
    names = [f"{result.languages[role]} ({role})" for role in ORDER]
    data = pd.DataFrame([
        {"layer": layer.layer, "language": name, **getattr(layer, role).model_dump()}
        for layer in result.layers for role, name in zip(ORDER, names, strict=True)
    ])
    base = alt.Chart(data).encode(
        x=alt.X("layer:Q", title="after block (-1: embeddings)", axis=alt.Axis(tickMinStep=1)),
        color=alt.Color("language:N", sort=names, scale=alt.Scale(domain=names, range=CATEGORY)))
    band = base.mark_area(opacity=0.2).encode(y=alt.Y("low:Q", title="probability of the word"), y2="high:Q")
    line = base.mark_line(point=True).encode(
        y="mean:Q", tooltip=["language", "layer", alt.Tooltip("mean", format=".3f"), alt.Tooltip("low", format=".3f"),
                             alt.Tooltip("high", format=".3f")])
    return styled((band + line).properties(width=560, height=280))
