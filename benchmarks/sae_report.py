"""The results of `sae_training.py` and `sae_harvest.py` as a part of a Markdown page."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

START, END = "<!-- autoencoders: start -->", "<!-- autoencoders: end -->"
Run = dict[str, Any]


def write(path: Path, results: dict[str, Any]) -> None:
    """Put the section between the page's markers, or at its end."""
    page = path.read_text()
    if START not in page:
        page += f"\n{START}\n{END}\n"
    before, rest = page.split(START, 1)
    after = rest.split(END, 1)[1]
    path.write_text(f"{before}{START}\n{section(results)}\n{END}{after}")


def section(results: dict[str, Any]) -> str:
    """All tables."""
    runs = list(results["runs"].values())
    lines = ["## Sparse autoencoders", "", versions(runs), ""]
    for model, architecture in dict.fromkeys((run["case"]["model"], run["case"]["architecture"]) for run in runs):
        own = [run for run in runs if (run["case"]["model"], run["case"]["architecture"]) == (model, architecture)]
        lines += [f"### {architecture}, {model}, {own[0]['steps']} steps", "", *quality_table(own, architecture), "",
                  *curve_table(own), ""]
    for name, time in results["times"].items():
        lines += [f"### Time and memory of a step, {name}", "", *time_table(time), ""]
    if results["harvest"]:
        lines += ["### Harvest", "", *harvest_table(results["harvest"]), ""]
    return "\n".join(lines)


def versions(runs: Iterable[Run]) -> str:
    """Whose, and what was left to each library."""
    said = {}
    for run in runs:
        settings = ", ".join(f"{key} {short(value)}" for key, value in run["settings"].items())
        of = ", ".join(f"{name} {number}" for name, number in run["versions"].items() if name != "python")
        said.setdefault(run["case"]["who"], f"- {run['case']['who']} ({of}; {run['how']}): {settings}")
    return "\n".join(said.values())


def short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def grouped(runs: Iterable[Run]) -> dict[tuple[str, float], list[Run]]:
    """Runs that differ in their seed alone."""
    groups: dict[tuple[str, float], list[Run]] = {}
    for run in runs:
        groups.setdefault((run["case"]["who"], run["case"]["rate"]), []).append(run)
    return groups


def spread(values: list[float]) -> str:
    """Mean, and from lowest to highest where there are several."""
    mean = f"{statistics.mean(values):.4f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.4f} to {max(values):.4f})"


def quality_table(runs: list[Run], architecture: str) -> list[str]:
    """FVU at the end, on all held-out rows."""
    is_batch = architecture == "batchtopk"
    columns = ["learning rate", "seeds", "FVU", "FVU, ordinary rows", "L0",
               *(["FVU, ordinary rows, k·B of a batch", "L0"] if is_batch else [])]
    lines = [f"| who | {' | '.join(columns)} |", "|---|" + "--:|" * len(columns)]
    for (who, rate), group in grouped(runs).items():
        ends = [run["curve"][-1] for run in group]
        cells = [f"{group[0]['settings']['learning rate']:.2g}{f' ({rate:g}× its own)' if rate != 1 else ''}",
                 str(len(group)), spread([end["own"]["fvu"] for end in ends]),
                 spread([end["own"]["ordinary"] for end in ends]),
                 f"{statistics.mean(end['own']['l0'] for end in ends):.1f}"]
        if is_batch:
            cells += [spread([end["batch"]["ordinary"] for end in ends]),
                      f"{statistics.mean(end['batch']['l0'] for end in ends):.1f}"]
        lines.append(f"| {who} | {' | '.join(cells)} |")
    return lines


def curve_table(runs: list[Run]) -> list[str]:
    """FVU of ordinary rows against tokens, of the first seed."""
    first = [group[0] for group in grouped(runs).values()]
    tokens = [point["tokens"] for point in first[0]["curve"]]
    kind = "batch" if "batch" in first[0]["curve"][0] else "own"
    lines = ["FVU of ordinary rows after so many tokens" + (", k·B of a batch" if kind == "batch" else "") + ":", "",
             f"| who | {' | '.join(f'{number:,}' for number in tokens)} |", "|---|" + "--:|" * len(tokens)]
    for run in first:
        rate = f" ({run['case']['rate']:g}× its rate)" if run["case"]["rate"] != 1 else ""
        cells = [run["case"]["who"] + rate, *(f"{point[kind]['ordinary']:.4f}" for point in run["curve"])]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def time_table(time: dict[str, Any]) -> list[str]:
    """Steps in turns."""
    found = time["found"]
    ours = found["patchclamp"]
    lines = [f"{time['processor']}, {time['threads']} threads, medians of {len(ours['seconds'])} steps in turns; load "
             f"after {time['load after']:.1f}.", "",
             "| who | step | times ours | processor time | times ours | memory added | times ours |",
             "|---|" + "--:|" * 6]
    for who, one in found.items():
        wall, used = (statistics.median(one[kind]) for kind in ("seconds", "processor"))
        own_wall, own_used = (statistics.median(ours[kind]) for kind in ("seconds", "processor"))
        lines.append(f"| {who} | {wall * 1000:,.0f} ms | {wall / own_wall:.2f} | {used * 1000:,.0f} ms | "
                     f"{used / own_used:.2f} | {one['peak']:,.0f} MB | {one['peak'] / ours['peak']:.2f} |")
    return lines


def harvest_table(harvest: dict[str, Any]) -> list[str]:
    """Tokens a second."""
    lines = ["| model | who | tokens/s | of the bare forward's |", "|---|---|--:|--:|"]
    for model, found in harvest.items():
        for who, rate in found["tokens/s"].items():
            lines.append(f"| {model} | {who} | {rate:,.0f} | {rate / found['tokens/s']['bare']:.2f} |")
    return lines
