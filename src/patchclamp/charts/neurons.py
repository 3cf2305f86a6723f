"""Charts of neurons."""

from typing import TYPE_CHECKING

import altair as alt
import pandas as pd

from patchclamp.charts.style import CONTROL, EFFECT, styled

if TYPE_CHECKING:
    from patchclamp.neurons.ablate import Ablation

NAMES = {
    "logprob": "log-probability of the answer",
    "logit_difference": "logit difference",
    "flips": "first choice flipped",
}


def ablation_chart(result: "Ablation") -> alt.TopLevelMixin:
    """For each measure the effect by group size (blue) against the range of random groups (grey)."""
    charts = []
    for measure, title in NAMES.items():
        data = pd.DataFrame([
            {"k": g.k, "effect": getattr(g.effect, measure), "mean": r.mean, "low": r.low, "high": r.high,
             "sites": " ".join(g.sites)}
            for g in result.groups for r in [getattr(g.random, measure)]
        ])
        x = alt.X("k:O", title="units ablated", axis=alt.Axis(labelAngle=0))
        base = alt.Chart(data).encode(x=x)
        band = base.mark_bar(color=CONTROL, opacity=0.5, width=22).encode(
            y=alt.Y("low:Q", title=title), y2="high:Q", tooltip=["k", "mean", "low", "high"])
        middle = base.mark_tick(color="#606060", width=22, thickness=2).encode(y="mean:Q")
        points = base.mark_point(color=EFFECT, filled=True, size=90, opacity=1).encode(
            y="effect:Q", tooltip=["k", "sites", alt.Tooltip("effect", format="+.4f")])
        zero = alt.Chart(pd.DataFrame({"y": [0.0]})).mark_rule(strokeDash=[3, 3], color="#909090").encode(y="y:Q")
        charts.append((zero + band + middle + points).properties(
            width=max(120, 34 * len(result.groups)), height=230, title=title))
    return styled(alt.hconcat(*charts))
