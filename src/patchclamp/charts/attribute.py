"""Charts of direct logit attribution."""

from typing import TYPE_CHECKING

import altair as alt
import pandas as pd

from patchclamp.charts.style import CATEGORY, DIVERGING, EFFECT, heatmap_size, styled, visible

if TYPE_CHECKING:
    from patchclamp.lenses.attribute import Attribution


def attribution_chart(result: "Attribution") -> alt.TopLevelMixin:
    """Blocks as bars; below them heads as a heatmap and the listed neurons as bars, with the tokens they raise."""
    parts = {t.part for t in result.terms}
    heads = [_heads(result)] if "head" in parts else []
    neurons = [_neurons(result)] if "neuron" in parts else []
    below = [alt.hconcat(*heads, *neurons).resolve_scale(color="independent")] if heads or neurons else []
    blocks = [_blocks(result)] if "mlp" in parts else []
    return styled(alt.vconcat(*blocks, *below).resolve_scale(color="independent"))


def _asked(result: "Attribution") -> str:
    answer = f"logit({visible(result.answer)})"
    return answer if result.distractor is None else f"{answer} - logit({visible(result.distractor)})"


def _blocks(result: "Attribution") -> alt.Chart:
    data = pd.DataFrame([
        {"block": "constants" if t.part == "bias" else "embed" if t.layer is None else str(t.layer),
         "part": t.part, "site": t.site, "contribution": t.contribution}
        for t in result.terms if t.part in ("embed", "attn", "mlp") or (t.part == "bias" and t.layer is None)
    ])
    order = list(dict.fromkeys(data["block"]))
    names = [p for p in ("attn", "mlp", "embed", "bias") if p in set(data["part"])]
    cap = "" if result.softcap is None else f", before the softcap of {result.softcap:g}"
    return alt.Chart(data).mark_bar().encode(
        x=alt.X("block:N", sort=order, axis=alt.Axis(labelAngle=0, labelOverlap=True)),
        xOffset=alt.XOffset("part:N", sort=names), y=alt.Y("contribution:Q", title="adds to the logit"),
        color=alt.Color("part:N", sort=names, scale=alt.Scale(domain=names, range=CATEGORY)),
        tooltip=["site", alt.Tooltip("contribution", format="+.3f")],
    ).properties(width=heatmap_size(len(order), cell=26), height=220,
                 title=f"{_asked(result)} after {visible(result.token)} = {result.total:.3f}{cap}")


def _heads(result: "Attribution") -> alt.Chart:
    data = pd.DataFrame([{"block": t.layer, "head": t.unit, "contribution": t.contribution, "site": t.site}
                         for t in result.terms if t.part == "head"])
    return alt.Chart(data).mark_rect().encode(
        x=alt.X("head:O", axis=alt.Axis(labelAngle=0)),
        y=alt.Y("block:O", sort="descending", axis=alt.Axis(labelOverlap=False)),
        color=alt.Color("contribution:Q", scale=DIVERGING, title="adds"),
        tooltip=["site", alt.Tooltip("contribution", format="+.3f")],
    ).properties(width=heatmap_size(data["head"].nunique(), cell=24),
                 height=heatmap_size(data["block"].nunique(), cell=13), title="heads")


def _neurons(result: "Attribution") -> alt.Chart:
    data = pd.DataFrame([
        {"neuron": f"{w.site.removeprefix('neuron.')}  " + " ".join(map(visible, says[:3])), "site": w.site,
         "contribution": w.contribution, "activation": w.activation, "raises": " ".join(map(visible, says))}
        for w in result.written for says in [w.raises if w.activation > 0 else w.lowers]
    ])
    return alt.Chart(data).mark_bar(color=EFFECT).encode(
        y=alt.Y("neuron:N", sort=None, title=None, axis=alt.Axis(labelLimit=320)),
        x=alt.X("contribution:Q", title="adds to the logit"),
        tooltip=["site", alt.Tooltip("contribution", format="+.3f"), alt.Tooltip("activation", format=".3f"), "raises"],
    ).properties(width=300, height=heatmap_size(len(data)), title="neurons, and the tokens they raise here")
