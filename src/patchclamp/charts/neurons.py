"""Charts of neurons."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import altair as alt
import pandas as pd

from patchclamp.charts.style import CATEGORY, CONTROL, EFFECT, styled

if TYPE_CHECKING:
    from patchclamp.evidence.finding import FoundUnits
    from patchclamp.neurons.ablate import Ablation
    from patchclamp.neurons.attribute import Attribution
    from patchclamp.neurons.dose import DoseResult
    from patchclamp.neurons.explain import ExplainResult
    from patchclamp.neurons.groups import Group
    from patchclamp.neurons.repair import RepairResult

NAMES = {
    "logprob": "log-probability of the answer",
    "probability": "probability of the answer",
    "logit_difference": "logit difference",
    "accuracy": "answer preferred",
    "flips": "first choice flipped",
}


def ablation_chart(result: "Ablation") -> alt.TopLevelMixin:
    """For each measure the effect by group size (blue) against the range of random groups (grey); a row of panels for
    each way of ablating, and for other choices."""
    groups = result.groups + result.other_ways
    ways = list(dict.fromkeys(g.by for g in groups))
    rows = [panels([g for g in groups if g.by == by], f"by {by}" if len(ways) > 1 else "") for by in ways]
    for other in result.off_target:
        rows += [panels([g for g in other.groups if g.by == by], f"{other.name}, by {by}") for by in ways]
    return styled(alt.vconcat(*rows))


def found_chart(result: "FoundUnits") -> alt.TopLevelMixin:
    """The best neurons' AUROC, where they were found (hollow) and on other prompts (filled), beside the ranges of
    random neurons and of the best with shuffled labels; by layer how many neurons stand out."""
    data = pd.DataFrame([
        {"site": one.site, "auroc": value, "on": on, "p": one.p_adjusted}
        for one in result.ranking for on, value in (("finding", one.auroc), ("held out", one.auroc_heldout))
    ])
    sites = [one.site for one in result.ranking]
    x = alt.X("auroc:Q", title=f"AUROC ({result.label})", scale=alt.Scale(domain=[0, 1]))
    points = alt.Chart(data).mark_point(size=70, color=EFFECT).encode(
        x=x, y=alt.Y("site:N", sort=sites, title=None, axis=alt.Axis(labelLimit=220)),
        fill=alt.condition("datum.on == 'held out'", alt.value(EFFECT), alt.value("transparent")),
        tooltip=["site", "on", alt.Tooltip("auroc", format=".3f"), alt.Tooltip("p", format=".3g")])
    ranges = pd.DataFrame([
        {"of": name, "low": min(1 - one.high, one.low), "high": one.high, "mean": one.mean}
        for name, one in (("random neurons", result.random), ("best with shuffled labels", result.shuffled))
    ])
    shade = alt.Color("of:N", title=None, scale=alt.Scale(range=["#8a8a8a", "#d8d8d8"]),
                      legend=alt.Legend(orient="bottom"))
    bands = alt.Chart(ranges).mark_rect(opacity=0.45).encode(
        x="low:Q", x2="high:Q", color=shade, tooltip=["of", "mean"])
    left = (bands + points).properties(width=360, height=max(240, 17 * len(sites)))
    counts = pd.DataFrame([{"block": layer, "neurons": n} for layer, n in result.significant.items()],
                          columns=["block", "neurons"])
    right = alt.Chart(counts).mark_bar(color=EFFECT).encode(
        x=alt.X("block:O", title="block", axis=alt.Axis(labelAngle=0, labelOverlap=True)),
        y=alt.Y("neurons:Q", title="neurons with p < .05"), tooltip=["block", "neurons"])
    return styled(alt.hconcat(left, right.properties(width=300, height=240)))


def dose_chart(result: "DoseResult") -> alt.TopLevelMixin:
    """Readout by dose with its interval (blue), beside the range of random neurons (grey)."""
    data = pd.DataFrame([
        {"dose": d.dose, "mean": d.readout.mean, "low": d.readout.low, "high": d.readout.high,
         "random": d.random.mean, "random low": d.random.low, "random high": d.random.high} for d in result.curve])
    title = "times the activation" if result.by == "scale" else "standard deviations from the mean"
    base = alt.Chart(data).encode(x=alt.X("dose:Q", title=title))
    band = base.mark_area(color=CONTROL, opacity=0.5).encode(y=alt.Y("random low:Q", title=None), y2="random high:Q")
    middle = base.mark_line(color="#606060", strokeDash=[3, 3]).encode(y="random:Q")
    line = base.mark_line(point=True, color=EFFECT).encode(
        y="mean:Q", tooltip=["dose", *(alt.Tooltip(n, format=".4f") for n in ("mean", "low", "high", "random"))])
    rule = base.mark_rule(color=EFFECT).encode(y="low:Q", y2="high:Q")
    about = alt.Title(result.readout, subtitle=f"Spearman {result.spearman}", anchor="start")
    return styled((band + middle + rule + line).properties(width=460, height=280, title=about))


def attribution_chart(result: "Attribution") -> alt.TopLevelMixin:
    """Estimate against exact effect of each neuron, by layer; below the groups on other rows."""
    data = pd.DataFrame([one.model_dump() for one in result.ranking])
    data["layer"] = data["site"].str.split(".").str[1].astype(int)
    most = max(data["exact_effect"].abs().max(), data["attribution"].abs().max(), 1e-9) * 1.05
    scale = alt.Scale(domain=[-most, most])
    tooltip = ["site", alt.Tooltip("attribution", format="+.4f"), alt.Tooltip("exact_effect", format="+.4f")]
    points = alt.Chart(data).mark_point(color=EFFECT, filled=True, size=45, opacity=0.8)
    against = points.encode(
        x=alt.X("attribution:Q", title="estimated effect", scale=scale),
        y=alt.Y("exact_effect:Q", title="effect of ablating it", scale=scale), tooltip=tooltip)
    equal = alt.Chart(pd.DataFrame({"x": [-most, most], "y": [-most, most]})).mark_line(
        strokeDash=[3, 3], color="#909090").encode(x="x:Q", y="y:Q")
    where = points.encode(
        x=alt.X("layer:Q", title="block"), y=alt.Y("exact_effect:Q", title="effect of ablating it"), tooltip=tooltip)
    top = alt.hconcat((equal + against).properties(width=300, height=260),
                      where.properties(width=420, height=260, title="logit(answer) - logit(distractor)"))
    rows: list[alt.HConcatChart] = [top, panels(result.groups, "ablated together, on other prompts")]
    if result.others:
        rows.append(panels(result.others, "the same, where the condition does not hold"))
    return styled(alt.vconcat(*rows))


def repair_chart(result: "RepairResult") -> alt.TopLevelMixin:
    """Direct effect (hollow) and total (filled) of each neuron and of all; below what each block does in answer."""
    both = [result.together, *result.neurons]
    data = pd.DataFrame([{"site": one.site, "effect": value, "which": which, "repaired": one.repaired}
                         for one in both for which, value in (("direct", one.direct), ("total", one.total))])
    points = alt.Chart(data).mark_point(size=70, color=EFFECT).encode(
        x=alt.X("effect:Q", title="effect on logit(answer) - logit(distractor)"),
        y=alt.Y("site:N", sort=[one.site for one in both], title=None, axis=alt.Axis(labelLimit=220)),
        fill=alt.condition("datum.which == 'total'", alt.value(EFFECT), alt.value("transparent")),
        tooltip=["site", "which", alt.Tooltip("effect", format="+.4f"), alt.Tooltip("repaired", format=".2f")])
    zero = alt.Chart(pd.DataFrame({"x": [0.0]})).mark_rule(strokeDash=[3, 3], color="#909090").encode(x="x:Q")
    top = (zero + points).properties(width=420, height=17 * len(both), title="direct ○ and total ● effect")
    blocks = pd.DataFrame([{"block": one.block, "part": part, "response": getattr(one, part)}
                           for one in result.responses for part in ("attn", "mlp")])
    bars = alt.Chart(blocks).mark_bar().encode(
        x=alt.X("block:O", axis=alt.Axis(labelAngle=0, labelOverlap=True)),
        y=alt.Y("response:Q", title="response"), tooltip=["block", "part", alt.Tooltip("response", format="+.4f")],
        color=alt.Color("part:N", scale=alt.Scale(range=CATEGORY[:2]), title=None))
    about = alt.Title("what each block does in answer to ablating all", subtitle=f"final norm {result.norm:+.3f}",
                      anchor="start")
    return styled(alt.vconcat(top, bars.properties(width=560, height=200, title=about)))


def explain_chart(result: "ExplainResult") -> alt.TopLevelMixin:
    """Scores of each explanation (blue) beside other neurons' explanations on the same windows (grey)."""
    rows = []
    for one in result.explanations:
        scores = (("detection and fuzzing", one.accuracy, one.others_accuracy),
                  ("simulation", one.score.simulation, one.others_simulation))
        rows += [{"score": name, "by": one.by, "mean": own.mean, "low": own.low, "high": own.high, "others": other.mean,
                  "others low": other.low, "others high": other.high} for name, own, other in scores]
    data = pd.DataFrame(rows)
    base = alt.Chart(data).encode(y=alt.Y("by:N", title=None))
    band = base.mark_bar(color=CONTROL, opacity=0.5, height=16).encode(
        x=alt.X("others low:Q", title=None, scale=alt.Scale(domain=[-0.25, 1])), x2="others high:Q",
        tooltip=["by", alt.Tooltip("others", format=".3f")])
    rule = base.mark_rule(color=EFFECT).encode(x="low:Q", x2="high:Q")
    points = base.mark_point(color=EFFECT, filled=True, size=80, opacity=1).encode(
        x="mean:Q", tooltip=["by", alt.Tooltip("mean", format=".3f")])
    charts = [(band + rule + points).transform_filter(alt.datum.score == name).properties(
        width=260, height=40 * len(result.explanations), title=name) for name in data["score"].unique()]
    words = pd.DataFrame([{"token": repr(word.token), "value": word.value, "what": what}
                          for what, some in (("weights write", result.memory.promotes),
                                             ("seen to raise", result.memory.raised)) for word in some])
    written = [alt.Chart(words).transform_filter(alt.datum.what == what).mark_bar(color=EFFECT).encode(
        x=alt.X("value:Q", title=None), y=alt.Y("token:N", sort="-x", title=None), tooltip=["token", "value"]
    ).properties(width=200, height=170, title=what) for what in ("weights write", "seen to raise")]
    title = alt.Title([f"{one.by}: {one.text}"[:150] for one in result.explanations], anchor="start")
    return styled(alt.vconcat(alt.hconcat(*charts), alt.hconcat(*written), title=title))


def panels(groups: Sequence["Group"], about: str = "", x: str = "units ablated") -> alt.HConcatChart:
    """One panel a measure."""
    charts = []
    for measure, title in NAMES.items():
        data = pd.DataFrame([
            {"k": g.k, "effect": getattr(g.effect, measure), "mean": r.mean, "low": r.low, "high": r.high,
             "sites": " ".join(g.sites)}
            for g in groups for r in [getattr(g.random, measure)]
        ])
        base = alt.Chart(data).encode(x=alt.X("k:O", title=x, axis=alt.Axis(labelAngle=0)))
        band = base.mark_bar(color=CONTROL, opacity=0.5, width=12).encode(
            y=alt.Y("low:Q", title=None), y2="high:Q", tooltip=["k", "mean", "low", "high"])
        middle = base.mark_tick(color="#606060", width=12, thickness=2).encode(y="mean:Q")
        points = base.mark_point(color=EFFECT, filled=True, size=55, opacity=1).encode(
            y="effect:Q", tooltip=["k", "sites", alt.Tooltip("effect", format="+.4f")])
        zero = alt.Chart(pd.DataFrame({"y": [0.0]})).mark_rule(strokeDash=[3, 3], color="#909090").encode(y="y:Q")
        charts.append((zero + band + middle + points).properties(
            width=max(90, min(135, 20 * len(groups))), height=170, title=alt.Title(title, fontSize=11)))
    return alt.hconcat(*charts, title=alt.Title(about, anchor="start") if about else alt.Undefined)
