"""In-context vectors of every task file in a folder, one row a task: which of them one vector does as well as examples.

    .venv/bin/python -m benchmarks.incontext_tasks ../shared/data/function_vectors --model gemma-3-270m --out FILE.jsonl

Tasks whose in-context accuracy is below `--least` are listed with that alone.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import patchclamp as pc
from patchclamp.errors import PatchclampError
from patchclamp.evidence.method import Silent
from patchclamp.vectors.task import TaskSpec, in_context


def one_task(model: pc.Model, path: Path, least: float, fields: dict[str, Any]) -> dict[str, Any]:
    """A row of the table."""
    found: dict[str, Any] = {"task": path.stem}
    try:
        asked = in_context(model, TaskSpec(file=str(path), **fields), Silent())
    except PatchclampError as error:
        return found | {"error": str(error)}
    found |= {"icl": float(asked.icl.mean()), "zero_shot": float(asked.zero.mean()), "template": asked.template.text}
    if found["icl"] < least:
        return found
    record = pc.task_vectors(model, file=str(path), **fields)
    best = record.result.best
    if best is None:
        return found
    rows = {row.layer: row for row in record.result.by_layer}
    return found | {
        "way": best.way, "layer": best.layer, "strength": best.strength, "accuracy": best.accuracy.mean,
        "random": best.random.mean, "share": best.accuracy.mean / found["icl"],
        "best_replace": max(row.replace for row in rows.values()), "best_add": max(row.add for row in rows.values()),
        "best_function_vector": max(row.function_vector for row in rows.values()),
        "most_random_heads": max(row.random_heads for row in rows.values()),
        "verdict": record.verdict.outcome,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="gemma-3-270m")
    parser.add_argument("--least", type=float, default=0.5)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="*", help="names of tasks")
    parser.add_argument("--fields", type=json.loads, default={}, help="fields of vectors task, as JSON")
    given = parser.parse_args()
    model = pc.load(given.model)
    with given.out.open("a") as out:
        for path in sorted(given.folder.rglob("*.json")):
            if given.only and path.stem not in given.only:
                continue
            start = time.perf_counter()
            row = one_task(model, path, given.least, given.fields) | {"seconds": time.perf_counter() - start}
            print(json.dumps(row), file=out, flush=True)
            print(row, flush=True)


if __name__ == "__main__":
    main()
