"""Charts of what a vision model's unit answers to."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import TYPE_CHECKING

import altair as alt
import pandas as pd

from patchclamp.charts.style import CATEGORY, CONTROL, EFFECT, heatmap_size, styled
from patchclamp.errors import FileError
from patchclamp.tasks.files import hash_of_file
from patchclamp.tasks.images import open_image

if TYPE_CHECKING:
    from patchclamp.neurons.multimodal import ImagesResult, TopPicture

THUMBNAIL = 56
"""Side of a small picture in pixels."""
ACROSS = 12
"""Small pictures in a row."""
MOST_CONCEPTS = 30
ROLES = {"concept": EFFECT, "related": "#edae49", "rival": CONTROL}


def images_chart(result: ImagesResult) -> alt.TopLevelMixin:
    """Mean activation by concept and form, whose pictures are above each threshold, and the most active pictures."""
    above = alt.hconcat(_activation(result), _shares(result)).resolve_scale(color="independent")
    return styled(alt.vconcat(above, _top(result), spacing=25).resolve_scale(color="independent"))


def _activation(result: ImagesResult) -> alt.LayerChart:
    """Means with 95 % intervals in standard deviations; the concept first, then the others from high to low."""
    data = pd.DataFrame([
        {"concept": c.concept + " (related)" * (c.role == "related"), "form": c.form, "role": c.role,
         "pictures": c.pictures, **c.activation.model_dump()} for c in result.categories
    ])
    rank = {"concept": 0, "related": 1, "rival": 2}
    means = data.groupby(["role", "concept"])["mean"].mean().reset_index()
    means["rank"] = means["role"].map(rank)
    names = means.sort_values(["rank", "mean"], ascending=[True, False])["concept"].tolist()[:MOST_CONCEPTS]
    data = data[data["concept"].isin(names)]
    forms = sorted(data["form"].unique())
    base = alt.Chart(data).encode(
        y=alt.Y("concept:N", sort=names, title=None),
        yOffset=alt.YOffset("form:N", sort=forms),
        color=alt.Color("form:N", sort=forms, title="form", scale=alt.Scale(domain=forms, range=CATEGORY)))
    x = alt.X("low:Q", title="activation, standard deviations of the reference pictures")
    bars = base.mark_rule(strokeWidth=2).encode(x=x, x2="high:Q")
    points = base.mark_point(filled=True, size=45, opacity=1).encode(
        x="mean:Q", tooltip=["concept", "form", "role", "pictures", alt.Tooltip("mean", format=".2f"),
                             alt.Tooltip("low", format=".2f"), alt.Tooltip("high", format=".2f")])
    zero = alt.Chart(pd.DataFrame({"x": [0.0]})).mark_rule(strokeDash=[3, 3], color="#909090").encode(x="x:Q")
    return (zero + bars + points).properties(
        width=380, height=heatmap_size(len(names), cell=6 + 8 * len(forms)), title=f"{result.unit}: mean activation")


def _shares(result: ImagesResult) -> alt.LayerChart:
    """Of the pictures above each threshold the shares of the concept, the related and the rivals, and how many."""
    data = pd.DataFrame([
        {"above": f"{t.above:g}", "role": role, "count": count, "share": count / total, "order": place}
        for t in result.thresholds for total in [t.concept + t.related + t.rival] if total
        for place, (role, count) in enumerate((("concept", t.concept), ("related", t.related), ("rival", t.rival)))
    ], columns=["above", "role", "count", "share", "order"])
    totals = pd.DataFrame([{"above": f"{t.above:g}", "n": f"{t.concept + t.related + t.rival}", "y": 1.0}
                           for t in result.thresholds])
    x = alt.X("above:N", sort=[f"{t.above:g}" for t in result.thresholds], title="above (standard deviations)",
              axis=alt.Axis(labelAngle=0))
    bars = alt.Chart(data).mark_bar().encode(
        x=x, y=alt.Y("share:Q", title="share of the pictures above", scale=alt.Scale(domain=[0, 1.08]),
                     axis=alt.Axis(values=[0, 0.25, 0.5, 0.75, 1], format=".0%")),
        color=alt.Color("role:N", title=None, sort=list(ROLES),
                        scale=alt.Scale(domain=list(ROLES), range=list(ROLES.values()))),
        order="order:Q", tooltip=["above", "role", "count", alt.Tooltip("share", format=".2f")])
    numbers = alt.Chart(totals).mark_text(dy=-7, fontSize=10).encode(x=x, y="y:Q", text="n:N")
    base = alt.Chart(pd.DataFrame({"share": [result.base_share]})).mark_rule(strokeDash=[4, 3], color="#333333").encode(
        y="share:Q", tooltip=[alt.Tooltip("share", format=".3f")])
    return (numbers + base if data.empty else bars + numbers + base).properties(
        width=alt.Step(38), height=220, title="who is above (dashed: the concept's share of all)")


def _top(result: ImagesResult) -> alt.LayerChart:
    """The most active pictures, small; the name alone where a file is no longer the one that was read."""
    data = pd.DataFrame([
        {"column": i % ACROSS, "row": i // ACROSS, "url": thumbnail(one), "name": Path(one.image).name,
         "concept": one.concept, "form": one.form, "label": f"{one.concept} {one.activation:.1f}",
         "activation": one.activation}
        for i, one in enumerate(result.top)
    ])
    base = alt.Chart(data).encode(
        x=alt.X("column:O", axis=None), y=alt.Y("row:O", axis=None),
        tooltip=["concept", "form", "name", alt.Tooltip("activation", format=".2f")])
    shown = base.transform_filter("datum.url != ''").mark_image(
        width=THUMBNAIL, height=THUMBNAIL, aria=False).encode(url="url:N")
    names = base.transform_filter("datum.url == ''").mark_text(fontSize=9, angle=315).encode(text="name:N")
    labels = base.mark_text(dy=THUMBNAIL / 2 + 8, fontSize=9).encode(text="label:N")
    return (shown + names + labels).properties(
        width=alt.Step(THUMBNAIL + 14), height=alt.Step(THUMBNAIL + 26),
        title="most active pictures (standard deviations)")


def thumbnail(one: TopPicture) -> str:
    """A picture as a small data URI; empty where its file is gone or was changed since it was read."""
    from PIL import Image

    path = Path(one.image)
    try:
        if not path.is_file() or hash_of_file(path) != one.sha256:
            return ""
        image = open_image(path)
    except (OSError, FileError):
        return ""
    image.thumbnail((2 * THUMBNAIL, 2 * THUMBNAIL), Image.Resampling.LANCZOS)
    held = io.BytesIO()
    image.save(held, "PNG")
    return f"data:image/png;base64,{base64.b64encode(held.getvalue()).decode()}"
