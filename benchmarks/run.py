"""Measure patchclamp beside other projects, every contender in turn, round after round, in one run.

    python -m benchmarks.run                                  # everything, five rounds
    python -m benchmarks.run --rounds 1 --tasks patch_last    # one task, quickly
    python -m benchmarks.run --write docs/benchmarks.md       # and put the tables into the page

Each contender is a worker process in its own environment (`benchmarks/envs.py` makes them) that stays alive
for the whole run. The numbers a worker computed are compared with plain Hugging Face's; a contender that
disagrees by more than the task's tolerance is reported as wrong, whatever its time.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

from filelock import FileLock, Timeout

from benchmarks.measure import Measured, Running, import_times, measure, running
from benchmarks.prompts import make_setup
from benchmarks.report import as_json, preamble, tables, write_page
from benchmarks.tasks import OURS, TASKS, WORKERS, Task, folder_of

RESULTS = Path(__file__).resolve().parent / "results"


def processor() -> str:
    """The processor's name, as the system gives it."""
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()


def load() -> list[float]:
    """The system's load averages: more than the workers' own threads at the end means that others disturbed."""
    return list(os.getloadavg()) if hasattr(os, "getloadavg") else []


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="repetitions of every measurement (default 5)")
    parser.add_argument("--threads", type=int, default=2, help="threads a worker may use (default 2)")
    parser.add_argument("--tasks", nargs="+", choices=[*TASKS, "import"], default=[*TASKS, "import"])
    parser.add_argument("--workers", nargs="+", choices=WORKERS, default=WORKERS)
    parser.add_argument("--folder", nargs="*", default=[], metavar="MODEL=PATH", help="take the model from there")
    parser.add_argument("--write", type=Path, help="put the tables into this Markdown page")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the raw numbers")
    return parser.parse_args()


def measure_model(
    tasks: list[Task], folder: Path, options: argparse.Namespace, logs: Path
) -> tuple[dict[str, Measured], dict[str, dict[str, str]]]:
    """The tasks of one model, with one worker a contender, and the versions the workers reported."""
    setup = make_setup(folder, options.threads)
    needed = {each.worker for task in tasks for each in task.contenders} & set(options.workers)
    versions: dict[str, dict[str, str]] = {}
    results: dict[str, Measured] = {}
    with ExitStack() as stack:
        workers: dict[str, Running] = {}
        how: dict[str, dict[str, str]] = {}
        for name in [each for each in WORKERS if each in needed]:
            worker = stack.enter_context(running(name, logs))
            reply = worker.ask({"setup": asdict(setup)})
            if "ready" not in reply:
                print(f"{name} does not start: {reply['error']} ({worker.log})", file=sys.stderr)
                continue
            workers[name], how[name], versions[name] = worker, reply["how"], reply["versions"]
        for task in tasks:
            print(task.title, file=sys.stderr)
            results[task.name] = measure(task, workers, how, options.rounds)
    return results, versions


def main() -> None:
    options = parse()
    lock = FileLock(Path(tempfile.gettempdir()) / "patchclamp-benchmark.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        sys.exit("another benchmark is running on this machine; two at once would measure each other. Try again later")
    given = {model: Path(path) for model, path in (pair.split("=", 1) for pair in options.folder)}
    chosen = [TASKS[name] for name in options.tasks if name != "import"]
    logs = Path(tempfile.mkdtemp(prefix="benchmark-logs-"))
    now = datetime.datetime.now(datetime.UTC)
    load_before = load()
    results: dict[str, Measured] = {}
    versions: dict[str, dict[str, str]] = {}
    for model in dict.fromkeys(task.model for task in chosen):
        tasks = [task for task in chosen if task.model == model]
        found, used = measure_model(tasks, folder_of(model, given), options, logs)
        results |= found
        versions |= used
    imports = import_times(options.rounds) if "import" in options.tasks else {}
    conditions = {
        "date": now.isoformat(timespec="seconds"),
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": options.threads,
        "load before": load_before,
        "load after": load(),
        "rounds": options.rounds,
        "versions": versions,
    }
    options.results.mkdir(parents=True, exist_ok=True)
    (options.results / f"{now:%Y-%m-%d}.json").write_text(as_json(conditions, results, imports))
    text = f"{preamble(conditions)}\n{tables(results, imports)}"
    print(text)
    if options.write:
        write_page(options.write, text)
    ours = [each for measured in results.values() for each in measured.outcomes if each.worker == OURS]
    if any(each.wrong for each in ours):
        raise SystemExit("patchclamp disagrees with plain Hugging Face")


if __name__ == "__main__":
    main()
