"""Charts of an autoencoder's features: what an index has, single features, searches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import altair as alt
import pandas as pd

from patchclamp.charts.examples import unit_chart
from patchclamp.charts.style import CATEGORY, CONTROL, EFFECT, styled, visible

if TYPE_CHECKING:
    from patchclamp.sae.attribute import FeatureAttribution
    from patchclamp.sae.browse import Browsed
    from patchclamp.sae.index import IndexedFeatures
    from patchclamp.sae.search import Searched
    from patchclamp.sae.show import Shown, ShownFeature
    from patchclamp.sae.steer import Steered

SHOWN = 4
"""Features that are drawn."""
OFTEN: dict[str, Any] = {"scale": alt.Scale(type="log"), "title": "active at this share of tokens",
                         "axis": alt.Axis(format="~g")}


def density_chart(edges: list[float], counts: list[int], title: str) -> alt.Chart:
    """How often latents are active, on a logarithmic scale; the first bin, below the first edge, holds the dead."""
    ends = [edges[0] ** 2 / edges[1], *edges]
    rows = [{"from": low, "to": high, "latents": count}
            for low, high, count in zip(ends[:-1], ends[1:], counts, strict=False)]
    return alt.Chart(pd.DataFrame(rows), title=title).mark_bar(color=EFFECT, stroke="white").encode(
        alt.X("from:Q", **OFTEN),
        x2="to:Q", y=alt.Y("latents:Q"), y2=alt.datum(0), tooltip=["from", "to", "latents"],
    ).properties(width=520, height=150)


def indexed_chart(result: IndexedFeatures) -> alt.TopLevelMixin:
    """How often features are active."""
    title = f"{result.site}: {result.features:,} features over {result.tokens:,} tokens, {result.dead:,} never active"
    return styled(density_chart(result.density_edges, result.density, title))


def shown_chart(result: Shown) -> alt.TopLevelMixin:
    """Every feature's histogram and windows, what it writes, its neighbours."""
    rows: list[Any] = []
    for one in result.features[:SHOWN]:
        rows += [unit_chart(one.examples), _written(one)]
    return styled(alt.vconcat(*rows).resolve_scale(color="independent"))


def _written(one: ShownFeature) -> alt.HConcatChart:
    words = [{"token": visible(word.name), "logit": word.value, "rank": rank}
             for rank, word in enumerate((*one.promotes, *reversed(one.suppresses)))]
    others = [{"feature": word.name, "cosine": word.value} for word in one.neighbours]
    logits = alt.Chart(pd.DataFrame(words)).mark_bar().encode(
        alt.X("logit:Q", title="logits for one unit of activation"),
        alt.Y("rank:O", title=None, axis=alt.Axis(
            labelExpr=_labels([str(word["token"]) for word in words]), labelOverlap=False)),
        color=alt.condition("datum.logit > 0", alt.value(CATEGORY[0]), alt.value(CATEGORY[1])),
        tooltip=["token", "logit"]).properties(width=240, height=260)
    near = alt.Chart(pd.DataFrame(others)).mark_bar(color=CONTROL).encode(
        alt.X("cosine:Q", scale=alt.Scale(domain=[0, 1])), alt.Y("feature:N", sort=None, title=None),
        tooltip=["feature", "cosine"]).properties(width=200, height=90)
    return alt.hconcat(logits, near)


def _labels(names: list[str]) -> str:
    quoted = ("'" + name.replace("\\", "\\\\").replace("'", "\\'") + "'" for name in names)
    return f"[{','.join(quoted)}][datum.value]"


def browsed_chart(result: Browsed) -> alt.TopLevelMixin:
    """How often and how much the listed features are active."""
    rows = result.table()
    if rows.empty:
        return styled(alt.Chart(pd.DataFrame([{"text": "no feature goes with that text"}])).mark_text().encode(
            text="text:N"))
    title = f"{len(rows)} of {result.matching:,} features; {result.alive:,} of {result.total:,} are ever active"
    return styled(alt.Chart(rows, title=title).mark_point(filled=True, size=60, color=EFFECT).encode(
        alt.X("active:Q", **OFTEN),
        alt.Y("max:Q", title="greatest activation"), tooltip=["feature", "active", "max", "peaks at", "promotes"],
    ).properties(width=520, height=260))


def searched_chart(result: Searched) -> alt.TopLevelMixin:
    """Scores of the features of either kind."""
    rows = [{"feature": hit.feature, "score": hit.score, "by": hit.by, "token": visible(hit.at),
             "promotes": " ".join(hit.promotes)} for hit in result.hits]
    if not rows:
        return styled(alt.Chart(pd.DataFrame([{"text": f"no feature goes with {result.text!r}"}])).mark_text().encode(
            text="text:N"))
    return styled(alt.Chart(pd.DataFrame(rows)).mark_bar().encode(
        alt.X("score:Q"), alt.Y("feature:N", sort=None, title=None),
        alt.Color("by:N", scale=alt.Scale(range=[EFFECT, CATEGORY[3]])), alt.Row("by:N", title=None),
        tooltip=["feature", "token", "score", "promotes"],
    ).resolve_scale(x="independent", y="independent").properties(width=360))


def steered_chart(result: Steered) -> alt.TopLevelMixin:
    """What counts without steering, with it and with random features, and at every strength that was tried."""
    title = "share of texts with one of the words" if result.measure == "words" else "activation in the text, re-read"
    three = {"unsteered": result.base, "steered": result.steered, "random features": result.random}
    rows = [{"model": name, title: one.mean, "low": one.low, "high": one.high, "own": name == "steered"}
            for name, one in three.items()]
    base = alt.Chart(pd.DataFrame(rows)).encode(alt.Y("model:N", sort=None, title=None))
    beside = (base.mark_bar().encode(
        alt.X(f"{title}:Q"), color=alt.condition("datum.own", alt.value(EFFECT), alt.value(CONTROL)))
        + base.mark_rule().encode(alt.X("low:Q", title=title), x2="high:Q"))
    tried = pd.DataFrame([{"strength": one.strength, "value": value, "what": name} for one in result.tried
                          for name, value in (("concept", one.shown), ("says nothing", one.degenerate))])
    curve = alt.Chart(tried, title="on the prompts that choose").mark_line(point=True).encode(
        alt.X("strength:Q", title="strength, in greatest activations"), alt.Y("value:Q", title="mean"),
        alt.Color("what:N", scale=alt.Scale(range=[EFFECT, CATEGORY[1]]), title=None))
    return styled(alt.hconcat(beside.properties(width=320, height=110), curve.properties(width=260, height=110)))


def attribution_chart(result: FeatureAttribution) -> alt.TopLevelMixin:
    """Estimate against exact effect of each feature, and groups on other rows beside random features."""
    points = pd.DataFrame([{"estimate": one.attribution, "exact": one.exact_effect, "feature": one.site,
                            "active": one.active} for one in result.ranking])
    scatter = alt.Chart(points, title=f"on the finding rows, rank correlation {result.spearman:.2f}").mark_point(
        filled=True, size=50, color=EFFECT).encode(
        alt.X("estimate:Q", title="estimated effect of taking it out"), alt.Y("exact:Q", title="measured"),
        tooltip=["feature", "active", "estimate", "exact"]).properties(width=260, height=220)
    rows = [{"features": one.k, "effect": span.mean, "low": span.low, "high": span.high, "which": name}
            for one in result.groups for name, span in (("found", one.effect), ("random", one.random))]
    base = alt.Chart(pd.DataFrame(rows), title="on other rows").encode(
        alt.X("features:O"), alt.Color("which:N", scale=alt.Scale(domain=["found", "random"], range=[EFFECT, CONTROL])),
        alt.XOffset("which:N"))
    change = "change of the logit difference"
    groups = base.mark_bar().encode(alt.Y("effect:Q", title=change)) + base.mark_rule(color="#333333").encode(
        alt.Y("low:Q", title=change), y2="high:Q")
    return styled(alt.hconcat(scatter, groups.properties(width=220, height=220)))
