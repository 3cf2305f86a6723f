"""Charts of plain runs: captured values and generated text."""

from typing import TYPE_CHECKING

import altair as alt
import pandas as pd

from patchclamp.charts.style import CATEGORY, styled, visible

if TYPE_CHECKING:
    from patchclamp.plain.capture import CaptureResult
    from patchclamp.plain.generate import Generation

LINE = 90


def capture_chart(result: "CaptureResult") -> alt.TopLevelMixin:
    """The value where it is one number, else its length, token by token."""
    data = pd.DataFrame([
        {"token": f"{r.position} {visible(r.token)}", "prompt": f"prompt {r.prompt}", "site": r.site,
         "value": r.values if isinstance(r.values, float) else r.norm, "order": r.position}
        for r in result.rows
    ])
    title = "value" if all(isinstance(r.values, float) for r in result.rows) else "length of the value"
    order = list(dict.fromkeys(data.sort_values("order")["token"]))
    return styled(alt.Chart(data).mark_line(point=True).encode(
        x=alt.X("token:N", sort=order, title="token", axis=alt.Axis(labelAngle=-45)), y=alt.Y("value:Q", title=title),
        color=alt.Color("site:N", scale=alt.Scale(range=CATEGORY)), tooltip=["prompt", "site", "token", "value"],
    ).properties(width=max(160, 28 * len(order)), height=240).facet("prompt:N", columns=1))


def generation_chart(result: "Generation") -> alt.TopLevelMixin:
    """Each answer as lines of text, with the edits and without."""
    rows = []
    for number, answer in enumerate(result.rows):
        for kind, text in (("edited", answer.text), ("unedited", answer.unedited)):
            if text is not None:
                flat = " ".join(text.split())
                lines = [flat[i : i + LINE] for i in range(0, len(flat), LINE)] or [""]
                rows.append({"text": lines, "kind": kind, "line": f"{number} {kind}", "prompt": answer.prompt})
    data = pd.DataFrame(rows)
    most = max(len(r["text"]) for r in rows)
    return styled(alt.Chart(data).mark_text(align="left", baseline="top", lineHeight=15, fontSize=12).encode(
        y=alt.Y("line:N", sort=None, title=None), x=alt.value(4), text="text:N", tooltip=["prompt:N"],
        color=alt.Color("kind:N", scale=alt.Scale(range=CATEGORY), title=None),
    ).properties(width=680, height=alt.Step(18 + 15 * most)))
