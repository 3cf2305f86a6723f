"""The results as Markdown tables, as a page's part, and as raw JSON."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.measure import Measured, Outcome
from benchmarks.tasks import OURS, TASKS

START, END = "<!-- measured: start -->", "<!-- measured: end -->"
PACKAGE = {"plain-hf": "transformers"}


def as_time(seconds: float | None) -> str:
    """Milliseconds below ten seconds, seconds above."""
    if seconds is None:
        return "–"
    return f"{seconds * 1000:,.0f} ms" if seconds < 10 else f"{seconds:,.1f} s"


def row(outcome: Outcome, ours: float | None, memory: bool) -> str:
    """One contender's line, with its peak memory if the table has that column."""
    sampled = " (from a sample)" if outcome.scale != 1 else ""
    ratio = f"{outcome.median / ours:.2f}" if outcome.median and ours else "–"
    difference = "–" if outcome.error is None else f"{outcome.error:.1e}"
    if outcome.part:
        difference += f" ({outcome.part})"
    if outcome.failure or outcome.wrong:
        difference += f" **{outcome.failure or 'wrong'}**"
    held = f" ({outcome.tensors:,} tensors, {outcome.megabytes:,.0f} MB)" if outcome.tensors else ""
    cells = [outcome.worker, outcome.how + held, as_time(outcome.median) + sampled, ratio]
    if memory:
        cells.append("–" if outcome.peak is None else f"{outcome.peak:,.0f} MB{' (of a sample)' if sampled else ''}")
    return f"| {' | '.join([*cells, difference])} |"


def tables(results: dict[str, Measured], imports: dict[str, float]) -> str:
    """A table a task; `times ours` is a contender's median over patchclamp's."""
    lines: list[str] = []
    for name, measured in results.items():
        ours = next((each.median for each in measured.outcomes if each.worker == OURS), None)
        lines += [f"### {TASKS[name].title}", ""]
        if measured.low is not None and TASKS[name].tolerance:
            lines += [f"The numbers compared lie between {measured.low:.3g} and {measured.high:.3g}.", ""]
        memory = any(each.peak is not None for each in measured.outcomes)
        columns = ["time", "times ours", *(["peak memory"] if memory else []), "largest difference"]
        lines += [f"| who | how | {' | '.join(columns)} |", "|---|---|" + "--:|" * len(columns)]
        lines += [row(each, ours, memory) for each in measured.outcomes]
        lines.append("")
    if imports:
        lines += ["### What `import patchclamp` adds", "", "| | time |", "|---|--:|"]
        lines += [f"| {case} | {as_time(seconds)} |" for case, seconds in imports.items()]
        lines.append("")
    return "\n".join(lines)


def preamble(conditions: dict[str, Any]) -> str:
    """When, where and with which versions."""
    versions = conditions["versions"]
    named = ", ".join(f"{PACKAGE.get(who, who)} {of.get(PACKAGE.get(who, who), '')}" for who, of in versions.items())
    torch = sorted({of["torch"] for of in versions.values()})
    return (
        f"{conditions['date'][:10]}, {conditions['processor']}, {conditions['cores']} cores, "
        f"{conditions['threads']} threads, float32, medians of {conditions['rounds']} alternating rounds; "
        f"{named}; torch {', '.join(torch)}.\n"
    )


def as_json(conditions: dict[str, Any], results: dict[str, Measured], imports: dict[str, float]) -> str:
    """Every single time, with the conditions."""
    tasks = {
        name: {
            "reference from": measured.low,
            "reference to": measured.high,
            "contenders": [asdict(each) | {"median": each.median} for each in measured.outcomes],
        }
        for name, measured in results.items()
    }
    return json.dumps({"conditions": conditions, "tasks": tasks, "import": imports}, indent=1) + "\n"


def write_page(path: Path, text: str) -> None:
    """Put the tables between the page's markers; a page without them is begun afresh."""
    page = path.read_text() if path.exists() else ""
    if START not in page:
        page = f"# Benchmarks\n\nHow to read and repeat this: `benchmarks/README.md`.\n\n{START}\n{END}\n"
    before, rest = page.split(START, 1)
    after = rest.split(END, 1)[1]
    beside = path.with_suffix(path.suffix + ".part")
    beside.write_text(f"{before}{START}\n{text}\n{END}{after}")
    beside.replace(path)
