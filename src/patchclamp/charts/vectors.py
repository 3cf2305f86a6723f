"""Charts of steering vectors: how well each block tells a behaviour, what strength does, how the answers come out."""

from textwrap import wrap
from typing import TYPE_CHECKING

import altair as alt
import pandas as pd

from patchclamp.charts.style import CATEGORY, CONTROL, EFFECT, styled, visible
from patchclamp.forward.site import Site

if TYPE_CHECKING:
    from patchclamp.vectors.apply import ApplyResult
    from patchclamp.vectors.bake import BakeResult
    from patchclamp.vectors.evaluated import EvaluateResult
    from patchclamp.vectors.find import FindResult
    from patchclamp.vectors.read import ReadResult
    from patchclamp.vectors.select import SelectResult
    from patchclamp.vectors.show import ShowResult


def find_chart(result: "FindResult") -> alt.TopLevelMixin:
    """Held-out AUROC by block; of heads a heatmap of block and head."""
    data = pd.DataFrame(
        [
            {**site.model_dump(), "layer": Site.parse(site.site).layer, "head": Site.parse(site.site).unit}
            for site in result.sites
        ]
    )
    tooltip = [
        "site",
        alt.Tooltip("auroc", format=".3f"),
        alt.Tooltip("gap", format=".2f"),
        alt.Tooltip("norm", format=".3g"),
    ]
    if data["head"].notna().any():
        chart: alt.Chart = (
            alt.Chart(data)
            .mark_rect()
            .encode(
                x=alt.X("layer:O", title="block"),
                y=alt.Y("head:O", title="head"),
                tooltip=tooltip,
                color=alt.Color("auroc:Q", title="held-out AUROC", scale=alt.Scale(domain=[0.5, 1], scheme="blues")),
            )
        )
        return styled(chart.properties(width=560))
    chance = alt.Chart(pd.DataFrame({"auroc": [0.5]})).mark_rule(color=CONTROL, strokeDash=[4, 4]).encode(y="auroc:Q")
    line = (
        alt.Chart(data)
        .mark_line(point=True, color=EFFECT)
        .encode(
            x=alt.X("layer:Q", title="block", axis=alt.Axis(tickMinStep=1)),
            y=alt.Y("auroc:Q", title="held-out AUROC", scale=alt.Scale(zero=False)),
            tooltip=tooltip,
        )
    )
    return styled((chance + line).properties(width=560, height=280))


RATES = {
    "base": "plain, unedited",
    "added": "plain, added",
    "random": "plain, random direction",
    "base_showing": "showing, unedited",
    "subtracted": "showing, subtracted",
    "ablated": "showing, projected out",
    "random_subtracted": "showing, random direction",
}


def evaluate_chart(result: "EvaluateResult") -> alt.TopLevelMixin:
    """Rates with intervals by condition; beside them rate and perplexity by strength."""
    rows = [
        {
            "condition": said,
            "control": "random" in name or "base" in name,
            **getattr(result, f"rate_{name}").model_dump(),
        }
        for name, said in RATES.items()
    ]
    data = pd.DataFrame(rows).dropna(subset=["mean"])
    data[["low", "high"]] = data[["low", "high"]].clip(0, 1)
    names = [said for said in RATES.values() if said in set(data["condition"])]
    y = alt.Y("condition:N", sort=names, title=None, axis=alt.Axis(labelLimit=220))
    share = alt.Scale(domain=[0, 1])
    bars = (
        alt.Chart(data)
        .mark_bar()
        .encode(
            y=y,
            x=alt.X("mean:Q", title="share of answers that show the behaviour", scale=share),
            color=alt.condition("datum.control", alt.value(CONTROL), alt.value(EFFECT)),
            tooltip=["condition", *(alt.Tooltip(n, format=".3f") for n in ("mean", "low", "high"))],
        )
    )
    ranges = alt.Chart(data).mark_rule(color="#333333").encode(y=y, x="low:Q", x2="high:Q")
    left = (bars + ranges).properties(width=300, height=alt.Step(26), title=result.name)
    if not result.strength_curve:
        return styled(left)
    doses = pd.DataFrame(
        [
            {
                "strength": d.strength,
                "asked": "plain, added" if d.strength > 0 else "showing, subtracted",
                "perplexity ratio": d.perplexity_ratio,
                "KL": d.kl,
                **d.rate.model_dump(),
            }
            for d in result.strength_curve
        ]
    )
    x = alt.X("strength:Q", title="showing prompts ← strength (standard deviations) → plain prompts")
    base = alt.Chart(doses).encode(x=x, detail="asked:N")
    tooltip = [
        "strength",
        "asked",
        alt.Tooltip("mean", format=".3f"),
        alt.Tooltip("perplexity ratio", format=".2f"),
        alt.Tooltip("KL", format=".3f"),
    ]
    curve = base.mark_line(point=True, color=EFFECT).encode(
        y=alt.Y("mean:Q", title="share", scale=share), tooltip=tooltip
    )
    spread = base.mark_rule(color=EFFECT).encode(y="low:Q", y2="high:Q")
    cost = base.mark_line(point=True, color=CATEGORY[1]).encode(
        y=alt.Y("perplexity ratio:Q", title="perplexity ratio"), tooltip=tooltip
    )
    right = alt.vconcat((spread + curve).properties(width=320, height=130), cost.properties(width=320, height=90))
    return styled(alt.hconcat(left, right))


def apply_chart(result: "ApplyResult") -> alt.TopLevelMixin:
    """The answers as text, line by line."""
    said = {"unedited": result.base, "with the vector": result.steered}
    if result.random is not None:
        said["random direction"] = result.random
    rows = [
        {"condition": name, "line": i, "text": line}
        for name, text in said.items()
        for i, line in enumerate(wrap(" ".join(text.split()), 90) or ["∅"])
    ]
    names = list(said)
    text = (
        alt.Chart(pd.DataFrame(rows))
        .mark_text(align="left", fontSize=12, x=0)
        .encode(
            y=alt.Y("line:O", axis=None),
            text="text:N",
            color=alt.Color(
                "condition:N",
                legend=None,
                sort=names,
                scale=alt.Scale(domain=names, range=["#333333", EFFECT, "#777777"]),
            ),
        )
    )
    return styled(
        text.properties(width=640)
        .facet(
            row=alt.Row(
                "condition:N",
                sort=names,
                title=None,
                header=alt.Header(labelAngle=0, labelAlign="left", labelFontSize=12),
            ),
        )
        .resolve_scale(y="independent")
    )


def select_chart(result: "SelectResult") -> alt.TopLevelMixin:
    """Each way that was tried: what it does across, what it costs up."""
    data = pd.DataFrame([{**one.model_dump(), "sites": "+".join(one.sites)} for one in result.tried])
    points = (
        alt.Chart(data)
        .mark_point(filled=True, size=70)
        .encode(
            x=alt.X("rate:Q", title="share that shows the behaviour", scale=alt.Scale(domain=[0, 1])),
            y=alt.Y("cost:Q", title="perplexity ratio, or KL"),
            color=alt.Color("use:N", scale=alt.Scale(range=CATEGORY[:3])),
            shape=alt.Shape(
                "allowed:N", title="within bounds", scale=alt.Scale(domain=[True, False], range=["circle", "cross"])
            ),
            tooltip=["use", "sites", "strength", alt.Tooltip("rate", format=".2f"), alt.Tooltip("cost", format=".3g")],
        )
    )
    return styled(points.properties(width=300, height=220).facet("use:N").resolve_scale(y="independent"))


def read_chart(result: "ReadResult") -> alt.TopLevelMixin:
    """AUROC of vector, probe and random direction by site; below, the prompt's tokens."""
    names = {"vector": "the vector", "probe": "logistic probe", "random": "random direction"}
    data = pd.DataFrame([{"layer": Site.parse(s.site).layer, **s.model_dump()} for s in result.sites])
    long = data.melt(["layer", "site"], list(names), "detector", "auroc").replace({"detector": names})
    lines = (
        alt.Chart(long)
        .mark_line(point=True)
        .encode(
            x=alt.X("layer:Q", title="block", axis=alt.Axis(tickMinStep=1)),
            y=alt.Y("auroc:Q", title="AUROC on test prompts", scale=alt.Scale(domain=[0, 1])),
            color=alt.Color(
                "detector:N",
                title=None,
                sort=list(names.values()),
                scale=alt.Scale(domain=list(names.values()), range=[*CATEGORY[:2], CONTROL]),
            ),
            tooltip=["site", "detector", alt.Tooltip("auroc", format=".3f")],
        )
        .properties(width=560, height=240)
    )
    if not result.tokens:
        return styled(lines)
    tokens = pd.DataFrame(
        [{"index": i, "said": visible(t.token), **t.model_dump()} for i, t in enumerate(result.tokens)]
    )
    cells = (
        alt.Chart(tokens)
        .mark_rect()
        .encode(
            x=alt.X("index:O", title="token", axis=None),
            color=alt.Color("cosine:Q", scale=alt.Scale(scheme="redblue", domainMid=0, reverse=True)),
            tooltip=["said", alt.Tooltip("cosine", format=".3f"), "answer"],
        )
        .properties(width=560, height=26, title=result.site)
    )
    return styled(alt.vconcat(lines, cells).resolve_scale(color="independent"))


def show_chart(result: "ShowResult") -> alt.TopLevelMixin:
    """Strength by site, and the cosine with the next site's direction."""
    data = pd.DataFrame(
        [
            {
                "place": i,
                **s.model_dump(),
                "promotes": " ".join(map(visible, s.promotes)),
                "suppresses": " ".join(map(visible, s.suppresses)),
            }
            for i, s in enumerate(result.sites)
        ]
    )
    base = alt.Chart(data).encode(
        x=alt.X("place:Q", title="site, in the order of blocks"),
        tooltip=[
            "site",
            alt.Tooltip("strength", format=".2f"),
            alt.Tooltip("norm", format=".3g"),
            "promotes",
            "suppresses",
        ],
    )
    size = base.mark_line(point=True, color=EFFECT).encode(y=alt.Y("strength:Q", title="length (standard deviations)"))
    turn = base.mark_line(point=True, color=CATEGORY[2]).encode(y=alt.Y("next_cosine:Q", title="cosine with the next"))
    return styled(
        alt.vconcat(
            size.properties(width=560, height=180, title=result.info.name), turn.properties(width=560, height=120)
        )
    )


def bake_chart(result: "BakeResult") -> alt.TopLevelMixin:
    """The largest difference beside the spread, on a logarithmic scale."""
    data = pd.DataFrame(
        {
            "what": ["difference from the edited model", "spread of the logits"],
            "size": [max(result.difference, 1e-9), result.spread],
        }
    )
    bars = (
        alt.Chart(data)
        .mark_point(filled=True, size=90, color=EFFECT)
        .encode(
            y=alt.Y("what:N", title=None, axis=alt.Axis(labelLimit=240)),
            x=alt.X("size:Q", title="logits", scale=alt.Scale(type="log")),
            tooltip=["what", alt.Tooltip("size", format=".3g")],
        )
    )
    return styled(bars.properties(width=400, height=80))
