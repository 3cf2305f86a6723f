"""Charts of autoencoders."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import altair as alt
import pandas as pd

from patchclamp.charts.features import density_chart
from patchclamp.charts.style import CATEGORY, CONTROL, EFFECT, styled

if TYPE_CHECKING:
    from patchclamp.sae.compare import ComparedResult
    from patchclamp.sae.convert import Converted
    from patchclamp.sae.evaluate import Evaluated
    from patchclamp.sae.harvest import Harvested
    from patchclamp.sae.plan import PlanResult
    from patchclamp.sae.train import TrainResult

ROUNDING = 2**-23
"""float32's: the distance from 1 to the next number."""


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


def evaluated_chart(result: Evaluated) -> alt.TopLevelMixin:
    """FVU and loss recovered beside dictionaries nobody learned; how often latents are active; probes."""
    charts = [_beside(result, "fvu", "FVU (0 everything, 1 the mean)"),
              _beside(result, "fvu_by_row", "FVU by row")]
    if result.ce_recovered is not None:
        charts += [_beside(result, "ce_recovered", "CE recovered, from zero"),
                   _beside(result, "ce_recovered_from_mean", "CE recovered, from the mean")]
    title = (f"how often each of {result.latents:,} latents is active on {result.rows:,} held-out rows "
             f"({result.dead_fraction:.1%} never)")
    rows: list[Any] = [alt.hconcat(*charts), density_chart(result.density_edges, result.density, title)]
    if result.probes:
        rows.append(_probes(result))
    return styled(alt.vconcat(*rows))


def _beside(result: Evaluated, name: str, title: str) -> alt.LayerChart:
    found = {result.name: result.own, **result.baselines}
    data = pd.DataFrame([
        {"dictionary": key, title: getattr(one, name), "low": one.intervals[name].low, "high": one.intervals[name].high,
         "own": key == result.name} for key, one in found.items()])
    base = alt.Chart(data).encode(alt.Y("dictionary:N", sort=None, title=None))
    bars = base.mark_bar().encode(
        alt.X(f"{title}:Q", scale=alt.Scale(zero=True)), tooltip=["dictionary", alt.Tooltip(title, format=".4f")],
        color=alt.condition("datum.own", alt.value(EFFECT), alt.value(CONTROL)))
    spans = base.mark_rule().encode(alt.X("low:Q", title=title), x2="high:Q")
    return (bars + spans).properties(width=180, height=110)


def _probes(result: Evaluated) -> alt.Chart:
    rows = []
    for one in result.probes:
        for label in one.labels:
            what = f"{one.source.rsplit('/', 1)[-1]}: {label.label}"
            rows += [{"label": what, "k": str(probe.k), "numbers": kind, "AUROC": getattr(probe, kind)}
                     for probe in label.by_k for kind in ("latents", "neurons", "random")]
            rows.append({"label": what, "k": "all", "numbers": "neurons", "AUROC": label.dense})
    return alt.Chart(pd.DataFrame(rows)).mark_line(point=True).encode(
        alt.X("k:N", sort=None, title="numbers used"), alt.Y("AUROC:Q", scale=alt.Scale(domain=[0.4, 1], clamp=True)),
        alt.Color("numbers:N", sort=None, scale=alt.Scale(range=[CATEGORY[0], CATEGORY[1], CONTROL])),
        alt.Facet("label:N", columns=3, title=None), tooltip=["label", "k", "numbers", "AUROC"],
    ).properties(width=170, height=120)


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


def compared_chart(result: ComparedResult) -> alt.TopLevelMixin:
    """How much each dictionary reconstructs, how well its latents can be explained, which concepts it has."""
    names = [one.name for one in result.dictionaries]
    rows = [{"dictionary": one.name, "FVU": one.quality.fvu if one.quality else None,
             "L0": one.quality.l0 if one.quality else None, "latents": one.latents,
             "accuracy": one.accuracy.mean, "simulation": one.simulation.mean,
             "low": one.simulation.low, "high": one.simulation.high} for one in result.dictionaries]
    data, order = pd.DataFrame(rows), alt.Y("dictionary:N", sort=names, title=None)
    bars = alt.Chart(data).encode(order, tooltip=["dictionary", "latents", "FVU", "L0", "accuracy", "simulation"])
    drawn: list[Any] = [bars.mark_bar(color=CONTROL).encode(alt.X("FVU:Q")).properties(width=160, height=110),
                        bars.mark_bar(color=CONTROL).encode(alt.X("L0:Q", title="active latents")).properties(
                            width=160, height=110)]
    title = "correlation with n-gram explanations, other text"
    means = bars.mark_point(filled=True, size=70, color=EFFECT).encode(
        alt.X("simulation:Q", scale=alt.Scale(zero=True), title=title))
    spans = bars.mark_rule(color=EFFECT).encode(alt.X("low:Q", title=title), x2="high:Q")
    drawn.append((means + spans).properties(width=220, height=110))
    charts: list[Any] = [alt.hconcat(*drawn)]
    if result.concepts:
        found = [{"concept": one.label, "dictionary": name, "AUROC": auroc, "latent": one.best[name]}
                 for one in result.concepts for name, auroc in one.auroc.items()]
        charts.append(alt.Chart(pd.DataFrame(found), title="the best latent of each concept, on other texts").mark_rect(
        ).encode(alt.X("concept:N", title=None), alt.Y("dictionary:N", sort=names, title=None),
                 alt.Color("AUROC:Q", scale=alt.Scale(domain=[0.5, 1], clamp=True, scheme="blues")),
                 tooltip=["concept", "dictionary", "latent", "AUROC"]))
    return styled(alt.vconcat(*charts).resolve_scale(color="independent"))


def plan_chart(result: PlanResult) -> alt.TopLevelMixin:
    """What each item takes, a panel a kind of cost."""
    panels = {"memory": f"memory of a GPU: {result.memory_gb:,.1f} GB, {'fits' if result.fits else 'does not fit'}",
              "time": f"a step: {1000 * result.seconds_per_step:,.1f} ms, {result.hours:,.1f} hours in all",
              "traffic": f"traffic of a GPU: {result.traffic_gb:,.0f} GB in all",
              "storage": f"storage: {result.storage_gb:,.0f} GB"}
    charts = []
    for group, title in panels.items():
        own = pd.DataFrame([{"what": one.item, one.unit: one.value} for one in result.costs if one.group == group])
        if own.empty:  # one process alone has no traffic
            continue
        unit = own.columns[1]
        charts.append(alt.Chart(own, title=title).mark_bar().encode(
            alt.X(unit, type="quantitative"), alt.Y("what:N", sort=None, title=None), tooltip=["what", unit],
        ).properties(width=420))
    return alt.vconcat(*charts)
