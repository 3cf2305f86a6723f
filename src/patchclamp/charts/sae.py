"""Charts of autoencoders."""

from __future__ import annotations

from typing import TYPE_CHECKING

import altair as alt
import pandas as pd

if TYPE_CHECKING:
    from patchclamp.sae.convert import Converted
    from patchclamp.sae.harvest import Harvested
    from patchclamp.sae.train import TrainResult


def harvest_chart(result: Harvested) -> alt.LayerChart | alt.Chart:
    """What each site takes on disk."""
    data = pd.DataFrame([{"site": one.site, "MB": one.megabytes, "width": one.width} for one in result.sites])
    return alt.Chart(data, title=f"{result.rows:,} rows in {result.shards} shards").mark_bar().encode(
        alt.X("MB:Q"), alt.Y("site:N", sort=None), tooltip=["site", "width", "MB"],
    ).properties(width=420)


def train_chart(result: TrainResult) -> alt.TopLevelMixin:
    """FVU and L0 by step and, of several autoencoders, held-out FVU against L0."""
    rows = [
        {"step": step, "autoencoder": one.name, "FVU": fvu, "L0": l0}
        for one in result.autoencoders
        for step, fvu, l0 in zip(one.curve_steps, one.curve_fvu, one.curve_l0, strict=True)
    ]
    base = alt.Chart(pd.DataFrame(rows)).mark_line().encode(alt.X("step:Q"), alt.Color("autoencoder:N", sort=None))
    # the first steps' FVU would hide all others
    later = [fvu for one in result.autoencoders for fvu in one.curve_fvu[len(one.curve_fvu) // 50 :]]
    top = min(1.0, max(later, default=1.0))
    charts: list[alt.Chart] = [
        base.encode(alt.Y("FVU:Q", title="FVU of the batch", scale=alt.Scale(domain=[0, top], clamp=True)))
        .properties(width=420, height=220),
        base.encode(alt.Y("L0:Q", title="active latents")).properties(width=420, height=140),
    ]
    held = [{"autoencoder": one.name, "FVU": one.held_out.fvu, "L0": one.held_out.l0}
            for one in result.autoencoders if one.held_out]
    if len(held) > 1:
        charts.append(alt.Chart(pd.DataFrame(held), title="held out").mark_point(filled=True, size=80).encode(
            alt.X("L0:Q", title="active latents"), alt.Y("FVU:Q"), alt.Color("autoencoder:N", sort=None),
            tooltip=["autoencoder", "L0", "FVU"]).properties(width=420, height=220))
    return alt.vconcat(*charts)


ROUNDING = 2**-23
"""float32's: the distance from 1 to the next number."""


def convert_chart(result: Converted) -> alt.Chart:
    """The largest difference of a code before and after, by kind of input."""
    rows = [{"inputs": one.inputs, "difference": one.difference / ROUNDING, "rows": one.rows, "active latents": one.l0,
             "only in one": one.changed} for one in result.compared]
    changed = sum(one.changed for one in result.compared)
    title = alt.Title(f"{result.name}: {result.origin} to {result.target}",
                      subtitle="the same tensors" if result.same_tensors else f"{changed} codes in only one of the two")
    return alt.Chart(pd.DataFrame(rows), title=title).mark_bar().encode(
        alt.X("difference:Q", title="largest difference over largest code, in units of float32's rounding (1.2e-07)",
              scale=alt.Scale(domainMin=0)),
        alt.Y("inputs:N", sort=None, title=None),
        tooltip=["inputs", "rows", "active latents", "difference", "only in one"],
    ).properties(width=420)
