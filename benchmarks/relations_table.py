"""The table of relations in docs/relations.md: what `relations evaluate --store` kept, beside the published numbers.

    patchclamp relations evaluate FOLDER --store STORE --model gemma-3-270m    # and for the other model; resumable
    python -m benchmarks.relations_table STORE docs/relations.md

Published are faithfulness and causality of GPT-J, GPT2-XL and LLaMA-13B on the same files (`published_relations.json`
says where they stand), with settings chosen on the samples that were reported.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from patchclamp.evidence.method import NoModel
from patchclamp.evidence.verdict import Interval
from patchclamp.relations.evaluate import best_baseline
from patchclamp.relations.measured import RelationRow
from patchclamp.relations.table import ModelCategory, TableResult, table_of_relations

PUBLISHED: dict[str, Any] = json.loads((Path(__file__).parent / "published_relations.json").read_text())
THEIRS = {"gptj": "GPT-J", "gpt2-xl": "GPT2-XL", "llama-13b": "LLaMA-13B"}
BEGIN, END = "<!-- relations: begin -->", "<!-- relations: end -->"
MARKS = {"beats every baseline": "+", "not linear here": "−", "open": "?"}
FAITHFUL = 0.6
KINDS = ("linguistic", "factual", "commonsense", "bias")


def share(interval: Interval) -> str:
    """A share without its leading zero."""
    return f"{interval.mean:.2f}".lstrip("0") if interval.mean == interval.mean else "–"


def published(model: str, group: str, name: str) -> str:
    """Their faithfulness / causality."""
    one = PUBLISHED[group][model].get(name)
    return "/".join(f"{one[key]:.2f}".lstrip("0") for key in ("faithfulness", "causality")) if one else ""


def head(first: str, models: list[str], columns: str) -> list[str]:
    """A table's first two lines."""
    each = list(enumerate(columns.split(",")))
    names = [column if i else f"{model}: {column}" for model in models for i, column in each]
    line = " | ".join([first, *names, *THEIRS.values()])
    return [f"| {line} |", "|---" * (1 + len(names) + len(THEIRS)) + "|"]


def cells(row: RelationRow | None, is_missed: bool) -> list[str]:
    """One model's columns for a relation."""
    if row is None:
        return ["knows too few" if is_missed else "", "", "", ""]
    between = f"{row.faithfulness.low:.2f}, {row.faithfulness.high:.2f}"
    return [f"{row.known}/{row.asked}", f"{share(row.faithfulness)} [{between}] {MARKS[row.mark]}",
            f"{best_baseline(row):.2f}", f"{share(row.causality)} ({share(row.random)})"]


def means(one: ModelCategory | None) -> list[str]:
    """One model's columns for a kind of relation."""
    if one is None:
        return ["", "", "", ""]
    kind = one.category
    return [str(kind.relations), share(kind.faithfulness), share(kind.best_baseline),
            f"{share(kind.causality)} ({share(kind.random)})"]


def whole(result: TableResult) -> str:
    """Means by kind, then every relation, then what the targets were and what came out."""
    models = sorted({one.model for one in result.rows})
    kinds = {(one.model, one.category.name): one for one in result.categories}
    lines = head("kind", models, "relations,faithfulness,best baseline,causality (random)")
    for kind in KINDS:
        own = [cell for model in models for cell in means(kinds.get((model, kind)))]
        lines.append(f"| {' | '.join([kind, *own, *(published(name, 'categories', kind) for name in THEIRS)])} |")
    lines += ["", *head("relation", models, "known,faithfulness,best baseline,causality (random)")]
    rows = {(one.model, one.row.name): one.row for one in result.rows}
    missed = {(one.model, one.row.name) for one in result.missed}
    of = {one.row.name: one.row.category for one in (*result.rows, *result.missed)}
    for name in sorted(of, key=lambda name: (KINDS.index(of[name]), name)):
        own = [cell for model in models for cell in cells(rows.get((model, name)), (model, name) in missed)]
        lines.append(f"| {' | '.join([name, *own, *(published(one, 'relations', name) for one in THEIRS)])} |")
    return "\n".join([*lines, "", *(sentence(result, model) for model in models)])


def sentence(result: TableResult, model: str) -> str:
    """One model in one sentence."""
    rows = [one.row for one in result.rows if one.model == model]
    faithful = [row for row in rows if row.faithfulness.mean >= FAITHFUL and row.causality.exists]
    linguistic = [row.faithfulness.mean for row in rows if row.category == "linguistic"]
    numbers = [float(np.mean(some)) if some else float("nan") for some in (
        linguistic, [row.causality.mean for row in faithful], [row.random.mean for row in faithful])]
    beats = sum(row.mark == "beats every baseline" for row in rows)
    return (f"- {model}: {len(rows)} relations known well enough; {beats} beat every baseline. Linguistic ones: mean "
            f"faithfulness {numbers[0]:.2f}. Of the {len(faithful)} with faithfulness of {FAITHFUL} or more the mean "
            f"causality is {numbers[1]:.2f}, with random changes {numbers[2]:.3f}.")


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    store, page = sys.argv[1], Path(sys.argv[2])
    record = table_of_relations(NoModel(), stores=[store])  # type: ignore[arg-type]
    before, rest = page.read_text().split(BEGIN)
    _, after = rest.split(END)
    page.write_text(f"{before}{BEGIN}\n\n{whole(record.result)}\n\n{END}{after}")  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
