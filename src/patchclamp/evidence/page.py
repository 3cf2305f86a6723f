"""HTML pages of records: one file that works offline, with the scripts that draw its charts inside."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from patchclamp.evidence.passage import passages_html

if TYPE_CHECKING:
    from patchclamp.evidence.record import Record
    from patchclamp.evidence.verdict import Verdict

PAGE_ROWS = 500
"""Rows of a table shown on a page; the whole table is in the .csv and .parquet."""


@dataclass(frozen=True)
class Section:
    """One record on a page, under a heading and the question it answers."""

    heading: str
    question: str
    record: Record


def record_page(record: Record) -> str:
    """The page of a single record."""
    title = f"{record.method} on {record.provenance.name}"
    return _page(title, "", [_body(record, "chart", is_open=True)], any_chart=has_view(record, "chart"))


def report(title: str, introduction: str, sections: Sequence[Section]) -> str:
    """A page of several records, with a list of the verdicts on top."""
    contents = "\n".join(
        f'<li><a href="#section-{i}">{html.escape(s.heading)}</a>: {_outcome(s.record.verdict)}</li>'
        for i, s in enumerate(sections, 1)
    )
    bodies = [
        f'<h2 id="section-{i}">{i}. {html.escape(s.heading)}</h2>\n<p class="question">{html.escape(s.question)}</p>\n'
        f"{_body(s.record, f'chart-{i}', is_open=False)}"
        for i, s in enumerate(sections, 1)
    ]
    top = f"<p>{html.escape(introduction)}</p>\n<ol>{contents}</ol>"
    return _page(title, top, bodies, any_chart=any(has_view(s.record, "chart") for s in sections))


def notebook_view(record: Record) -> str:
    """What a notebook shows: verdict, chart as a picture, table."""
    chart = chart_as(record, "svg").decode() if has_view(record, "chart") else ""
    texts = passages_html(record.result.passages())
    return f"<h3>{html.escape(record.method)}</h3>{verdict_html(record.verdict)}{chart}{texts}{table_html(record)}"


def vega_lite(record: Record) -> tuple[dict[str, Any], str]:
    """The chart as a Vega-Lite specification with its data, and the Vega-Lite version it is written in."""
    import altair

    with altair.data_transformers.enable("default", max_rows=None):
        specification = record.chart().to_dict()
    return specification, _version()


def chart_as(record: Record, kind: str) -> bytes:
    """The chart as a picture: `png` or `svg`."""
    import vl_convert

    specification, version = vega_lite(record)
    if kind == "png":
        return vl_convert.vegalite_to_png(specification, vl_version=version, scale=2)
    return vl_convert.vegalite_to_svg(specification, vl_version=version).encode()


def verdict_html(verdict: Verdict | None) -> str:
    """The verdict in one line."""
    return "" if verdict is None else f"<p>{_outcome(verdict)} {html.escape(verdict.reason)}</p>"


def _version() -> str:
    import altair

    return ".".join(altair.SCHEMA_VERSION.removeprefix("v").split(".")[:2])


def _outcome(verdict: Verdict | None) -> str:
    if verdict is None:
        return "no claim"
    return f'<b class="{verdict.outcome.replace(" ", "-")}">{verdict.outcome.capitalize()}.</b>'


def has_view(record: Record, view: str) -> bool:
    """Whether the result defines `table` or `chart` itself."""
    from patchclamp.evidence.method import Result

    return getattr(type(record.result), view) is not getattr(Result, view)


def table_html(record: Record) -> str:
    """The result's table, cut after `PAGE_ROWS` rows."""
    if not has_view(record, "table"):
        return ""
    table = record.table()
    shown = f"<p>The first {PAGE_ROWS} of {len(table)} rows.</p>" if len(table) > PAGE_ROWS else ""
    return shown + table.head(PAGE_ROWS).to_html(index=False, border=0, float_format=lambda x: f"{x:.4g}")


def _chart_html(record: Record, name: str) -> str:
    from patchclamp.evidence.record import strict

    if not has_view(record, "chart"):
        return ""
    specification, _ = vega_lite(record)
    # A prompt may hold "</script>"; in JSON "<" only occurs in strings, where it can be escaped.
    safe = json.dumps(strict(specification)).replace("<", "\\u003c")
    return (
        f'<div class="chart" id="{name}"></div>\n<script>vegaEmbed("#{name}", {safe}, {{mode: "vega-lite", actions: '
        "{export: true, source: false, compiled: false, editor: false}});</script>"
    )


def _body(record: Record, name: str, *, is_open: bool) -> str:
    asked = {key: value for key, value in record.to_dict().items() if key in ("spec", "provenance")}
    return (
        f"{verdict_html(record.verdict)}\n{_chart_html(record, name)}\n{passages_html(record.result.passages())}\n"
        f"<details{' open' if is_open else ''}><summary>Numbers</summary><div class=\"wide\">{table_html(record)}</div>"
        f"</details>\n<details><summary>Specification and provenance of record {record.id} ({record.method} on "
        f"{html.escape(record.provenance.name)})</summary><pre>"
        f"{html.escape(json.dumps(asked, indent=1, ensure_ascii=False))}</pre></details>"
    )


def _page(title: str, top: str, bodies: Sequence[str], *, any_chart: bool) -> str:
    scripts = ""
    if any_chart:
        import vl_convert

        # Without a snippet it is Vega, Vega-Lite and Vega-Embed as globals; its type stub asks for one.
        scripts = f"<script>{vl_convert.javascript_bundle(vl_version=_version())}</script>"  # type: ignore[call-arg]
    return PAGE.format(title=html.escape(title), scripts=scripts, top=top, body="\n".join(bodies))


PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 72em; margin: 2em auto; padding: 0 1em; color: #222; }}
h2 {{ margin-top: 2.2em; border-top: 1px solid #ddd; padding-top: .8em; }}
.question {{ font-style: italic; }}
.chart, .wide {{ overflow-x: auto; }}
.supported {{ color: #1a7f37; }}
.not-supported {{ color: #b3261e; }}
.inconclusive {{ color: #8a6100; }}
table {{ border-collapse: collapse; font-size: 13px; }}
th, td {{ padding: .15em .7em; text-align: right; border-bottom: 1px solid #ddd; white-space: pre-wrap; }}
td.text {{ text-align: left; white-space: pre; }}
.passages {{ display: block; overflow-x: auto; }}
pre {{ overflow: auto; background: #f5f5f5; padding: 1em; font-size: 12px; }}
</style>
{scripts}
</head>
<body>
<h1>{title}</h1>
{top}
{body}
</body>
</html>
"""
