"""Measure patchclamp beside other projects, every contender in turn, round after round, in one run.

    python -m benchmarks.run                                  # everything, five rounds
    python -m benchmarks.run --rounds 1 --tasks patch_last    # one task, quickly
    python -m benchmarks.run --write docs/benchmarks.md       # and put the tables into the page

Each contender is a worker process in its own environment (`benchmarks/envs.py` makes them) that stays alive for the
whole run. The numbers a worker computed are compared with plain Hugging Face's; a contender that disagrees by more
than the task's tolerance is reported as wrong, whatever its time.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
WORKERS = HERE / "workers"
sys.path[:0] = [str(HERE), str(WORKERS)]

from common import Setup  # noqa: E402
from envs import PEERS, ensure  # noqa: E402

OURS, REFERENCE = "patchclamp", "plain-hf"
CLEAN = "When John and Mary went to the park, John gave a drink to"
CORRUPTED = "When Mary and John went to the park, Mary gave a drink to"
OPENING = "My favourite place to spend a Sunday afternoon is"
LONG = (
    "The harbour froze early that year. Boats that should have been at sea lay side by side along the quay, and "
    "their owners, who had never before had an idle week in November, walked up and down looking at the ice as if "
    "it owed them money. The schoolmaster measured it every morning with a ruler and wrote the number on the "
    "blackboard. By the tenth day children were skating as far as the lighthouse. The keeper, an old man with a "
    "telescope and no visitors, counted them out and counted them back again, and lit his lamp an hour early so "
    "that nobody would lose the way. On the twelfth day a horse was led across to the island with a sledge of "
    "firewood, and the whole town came down to watch its ears. Nothing happened. The horse looked at the town, "
    "the town looked at the horse, and the wood was delivered. After that there was no holding anybody. A baker "
    "set up an oven on bricks in the middle of the bay and sold rolls that were hot on one side. Two cousins who "
    "had not spoken since a wedding met by accident halfway to the lighthouse, where there was nobody else to talk "
    "to. When the thaw came at last it came in one night, with a noise like furniture being moved upstairs, and in "
    "the morning the boats were rocking at their ropes and the blackboard said nothing at all."
)
SHORT_TOKENS, LONG_TOKENS = 14, 256
SAMPLED_NEURONS = {"loop": 64, "invokes": 64, "batched": 256, "skip": 256}
SLOW_SECONDS, SLOW_ROUNDS = 20.0, 3


@dataclass(frozen=True)
class Contender:
    """A worker, the way it does the task, and (where doing everything would take too long) the rows it does."""

    worker: str
    variant: str = ""
    sample: int | None = None


@dataclass(frozen=True)
class Task:
    """One row group of the table."""

    name: str
    title: str
    request: dict[str, Any]
    contenders: tuple[Contender, ...]
    tolerance: float
    """Largest accepted difference from plain Hugging Face. Eager attention against fused attention, or another
    number of rows in a batch, reorders float32 sums over 30 layers: logits (of order 10) move by 2e-5, values of
    the residual stream (of order 1,000) by 2e-4. Ten times that is allowed. Tokens must be equal."""
    model: str = "smollm2-135m-instruct"
    neurons: int = 0


ALL_LIBRARIES = tuple(Contender(name) for name in (OURS, REFERENCE, *PEERS))
SWEEPERS = (
    Contender(OURS),
    Contender(REFERENCE, "batched"),
    Contender(REFERENCE, "loop"),
    Contender("transformer-lens", "loop"),
    Contender("transformer-lens", "batched"),
    Contender("nnsight", "invokes"),
    Contender("nnsight", "batched"),
    Contender("nnsight", "skip"),
    Contender("interp-engine", "loop"),
    Contender("interp-engine", "batched"),
)
ABLATERS = (
    *SWEEPERS[:2],
    *(Contender(each.worker, each.variant, SAMPLED_NEURONS[each.variant]) for each in SWEEPERS[2:]),
)
TASKS = {
    task.name: task
    for task in (
        Task("forward_short", "forward pass, 14 tokens", {"task": "forward", "prompt": "short"}, ALL_LIBRARIES, 2e-4),
        Task("forward_long", "forward pass, 256 tokens", {"task": "forward", "prompt": "long"}, ALL_LIBRARIES, 2e-4),
        Task(
            "capture_short",
            "attention and MLP output of 30 blocks, 14 tokens",
            {"task": "capture_outputs", "prompt": "short"},
            (*ALL_LIBRARIES, Contender("nnsight", "cache")),
            2e-3,
        ),
        Task(
            "capture_long",
            "attention and MLP output of 30 blocks, 256 tokens",
            {"task": "capture_outputs", "prompt": "long"},
            (*ALL_LIBRARIES, Contender("nnsight", "cache")),
            2e-3,
        ),
        Task(
            "everything",
            "every value of every layer, 14 tokens",
            {"task": "capture_everything", "prompt": "short"},
            ALL_LIBRARIES,
            2e-4,
        ),
        Task("patch_last", "patch 30 layers at the last position", {"task": "patch", "positions": "last"}, SWEEPERS, 2e-4),
        Task("patch_all", "patch 30 layers x 14 positions", {"task": "patch", "positions": "all"}, SWEEPERS, 2e-4),
        Task(
            "ablate_last",
            "zero each of 1,536 neurons at the last position",
            {"task": "ablate", "positions": "last"},
            ABLATERS,
            2e-4,
            neurons=1536,
        ),
        Task(
            "ablate_all",
            "zero each of 1,536 neurons at every position",
            {"task": "ablate", "positions": "all"},
            ABLATERS,
            2e-4,
            neurons=1536,
        ),
        Task("steer", "64 steered tokens", {"task": "generate"}, ALL_LIBRARIES, 0.0),
        Task(
            "gemma_last",
            "Gemma 3 270M: logits at the last position",
            {"task": "last_logits"},
            (Contender(OURS, "last"), Contender(REFERENCE, "last"), Contender(REFERENCE, "all")),
            2e-4,
            model="gemma-3-270m",
        ),
    )
}


class Running:
    """A worker process: one JSON line in, one JSON line out."""

    def __init__(self, worker: str, log: Path) -> None:
        script = WORKERS / f"{worker.replace('-', '_')}_worker.py"
        python = str(ensure(PEERS[worker])) if worker in PEERS else sys.executable
        if worker == REFERENCE:
            script = WORKERS / "plain_hf_worker.py"
        offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TQDM_DISABLE": "1"}
        with log.open("w") as errors:
            self.process = subprocess.Popen(
                [python, str(script)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=os.environ | offline,
            )
        self.log = log

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send a request and wait for its answer; a worker that died answers with an error."""
        assert self.process.stdin and self.process.stdout
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            tail = self.log.read_text().strip().splitlines()[-1:]
            return {"error": f"the worker ended: {' '.join(tail)}"}
        return json.loads(line)

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait(timeout=60)


@contextmanager
def running(worker: str, logs: Path) -> Iterator[Running]:
    """A worker that is ended with the block."""
    started = Running(worker, logs / f"{worker}.log")
    try:
        yield started
    finally:
        started.close()


@dataclass
class Outcome:
    """What one contender did in one task."""

    worker: str
    variant: str
    how: str = ""
    seconds: list[float] = field(default_factory=list)
    scale: float = 1.0
    error: float | None = None
    wrong: bool = False
    tensors: int | None = None
    megabytes: float | None = None
    failure: str = ""

    @property
    def median(self) -> float | None:
        return statistics.median(self.seconds) * self.scale if self.seconds else None


def folder_of(model: str, given: dict[str, Path]) -> Path:
    """The model's Hugging Face folder: the one given, or the embedded one."""
    if model in given:
        return given[model]
    from patchclamp.model.embedded import fetch

    return fetch(model)


def make_setup(folder: Path, threads: int) -> Setup:
    """Tokenize once for everybody, and check that the prompts have the promised lengths."""
    from transformers import AutoConfig, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    clean, corrupted = tokenizer(CLEAN).input_ids, tokenizer(CORRUPTED).input_ids
    long = tokenizer(LONG).input_ids[:LONG_TOKENS]
    if len(clean) != len(corrupted) or len(long) != LONG_TOKENS:
        raise SystemExit(f"{folder}: {len(clean)} clean, {len(corrupted)} corrupted and {len(long)} long tokens")
    config = AutoConfig.from_pretrained(folder)
    draw = np.random.default_rng(0).standard_normal(config.hidden_size)
    (answer,), (distractor,) = (tokenizer(word, add_special_tokens=False).input_ids for word in (" Mary", " John"))
    return Setup(
        folder=str(folder),
        short=clean,
        long=long,
        corrupted=corrupted,
        answer=answer,
        distractor=distractor,
        opening=tokenizer(OPENING).input_ids,
        vector=[float(np.float32(value)) for value in draw * 4.0],
        threads=threads,
    )


def request_of(task: Task, contender: Contender) -> tuple[dict[str, Any], float]:
    """What to send, and by how much a sample's time is scaled up."""
    request = task.request | {"variant": contender.variant}
    if not task.neurons:
        return request, 1.0
    step = task.neurons // contender.sample if contender.sample else 1
    neurons = list(range(0, task.neurons, step))
    return request | {"neurons": neurons}, task.neurons / len(neurons)


def compare(outcome: Outcome, found: np.ndarray, reference: np.ndarray, tolerance: float) -> None:
    """Note the largest difference from the reference; a sample is compared with the same rows of it."""
    if found.ndim == 1 and reference.ndim == 1 and len(found) < len(reference):
        reference = reference[:: len(reference) // len(found)]
    if found.shape != reference.shape:
        outcome.failure = f"shape {found.shape}, expected {reference.shape}"
        outcome.wrong = True
        return
    outcome.error = float(np.abs(found - reference).max())
    outcome.wrong = not outcome.error <= tolerance


@dataclass
class Measured:
    """A task's outcomes, and the range of the reference's numbers: what a difference has to be small against."""

    outcomes: list[Outcome]
    low: float | None = None
    high: float | None = None


def measure(task: Task, workers: dict[str, Running], how: dict[str, dict[str, str]], options: Any) -> Measured:
    """All contenders of a task, one repetition each, `rounds` times over."""
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory() as scratch:
        checks: dict[int, Path] = {}
        for contender in task.contenders:
            if contender.worker in workers:
                explained = how[contender.worker]
                kind = task.request["task"]
                words = explained.get(f"{kind}/{contender.variant}", explained.get(kind, ""))
                outcomes.append(Outcome(contender.worker, contender.variant, words))
        entered = [each for each in task.contenders if each.worker in workers]
        for turn in range(options.rounds):
            for number, (contender, outcome) in enumerate(zip(entered, outcomes, strict=True)):
                slow = turn >= SLOW_ROUNDS and statistics.median(outcome.seconds or [0.0]) > SLOW_SECONDS
                if outcome.failure or slow:
                    continue
                request, outcome.scale = request_of(task, contender)
                if turn == 0:
                    checks[number] = Path(scratch) / f"{number}.npy"
                    request["check"] = str(checks[number])
                reply = workers[contender.worker].ask(request)
                if "seconds" not in reply:
                    outcome.failure = reply.get("error", "not supported")
                    continue
                outcome.seconds += reply["seconds"]
                outcome.tensors, outcome.megabytes = reply.get("tensors"), reply.get("megabytes")
                print(f"  {turn} {contender.worker:17}{contender.variant:9}{reply['seconds'][0]:9.3f} s", file=sys.stderr)
        arrays = {number: np.load(path, allow_pickle=False) for number, path in checks.items() if path.exists()}
        reference = next((arrays[n] for n, each in enumerate(entered) if each.worker == REFERENCE and n in arrays), None)
        for number, array in arrays.items():
            if reference is not None:
                compare(outcomes[number], array, reference, task.tolerance)
    if reference is None:
        return Measured(outcomes)
    return Measured(outcomes, float(reference.min()), float(reference.max()))


IMPORT_TIMER = """
import time, torch, transformers
{first}
start = time.perf_counter()
import patchclamp
print(time.perf_counter() - start)
"""


def import_times(rounds: int) -> dict[str, float]:
    """Median seconds `import patchclamp` adds, in a fresh process each time."""
    cases = {
        "over `import torch, transformers`": "",
        "over those with `AutoModelForCausalLM, AutoTokenizer` resolved": (
            "from transformers import AutoModelForCausalLM, AutoTokenizer"
        ),
    }
    found: dict[str, list[float]] = {case: [] for case in cases}
    for _ in range(rounds + 1):
        for case, first in cases.items():
            program = IMPORT_TIMER.format(first=first)
            done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
            if done.returncode:
                return {}
            found[case].append(float(done.stdout))
    return {case: statistics.median(times[1:]) for case, times in found.items()}


def as_time(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    return f"{seconds * 1000:,.0f} ms" if seconds < 10 else f"{seconds:,.1f} s"


def table(results: dict[str, Measured], imports: dict[str, float]) -> str:
    """The Markdown tables."""
    lines: list[str] = []
    for name, measured in results.items():
        outcomes = measured.outcomes
        ours = next((each.median for each in outcomes if each.worker == OURS), None)
        lines += [f"### {TASKS[name].title}", ""]
        if measured.low is not None and TASKS[name].tolerance:
            lines += [f"The numbers compared lie between {measured.low:.3g} and {measured.high:.3g}.", ""]
        lines += ["| who | how | time | times ours | largest difference |", "|---|---|--:|--:|--:|"]
        for each in outcomes:
            time = as_time(each.median) + (" (from a sample)" if each.scale != 1 else "")
            ratio = f"{each.median / ours:.2f}" if each.median and ours else "–"
            difference = "–" if each.error is None else f"{each.error:.1e}"
            if each.failure or each.wrong:
                difference = f"{difference} **{each.failure or 'wrong'}**"
            held = f" ({each.tensors:,} tensors, {each.megabytes:,.0f} MB)" if each.tensors else ""
            lines.append(f"| {each.worker} | {each.how}{held} | {time} | {ratio} | {difference} |")
        lines.append("")
    if imports:
        lines += ["### `import patchclamp`", "", "| | time |", "|---|--:|"]
        lines += [f"| {case} | {as_time(seconds)} |" for case, seconds in imports.items()]
        lines.append("")
    return "\n".join(lines)


START, END = "<!-- measured: start -->", "<!-- measured: end -->"


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


def processor() -> str:
    """The processor's name, as the system gives it."""
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="repetitions of every measurement (default 5)")
    parser.add_argument("--threads", type=int, default=2, help="threads a worker may use (default 2)")
    parser.add_argument("--tasks", nargs="+", choices=[*TASKS, "import"], default=[*TASKS, "import"])
    parser.add_argument("--workers", nargs="+", choices=[OURS, REFERENCE, *PEERS], default=[OURS, REFERENCE, *PEERS])
    parser.add_argument("--folder", nargs="*", default=[], metavar="MODEL=PATH", help="use these model folders")
    parser.add_argument("--write", type=Path, help="put the tables into this Markdown page")
    parser.add_argument("--results", type=Path, default=HERE / "results", help="folder for the raw numbers")
    return parser.parse_args()


def main() -> None:
    options = parse()
    given = {model: Path(path) for model, path in (pair.split("=", 1) for pair in options.folder)}
    chosen = [TASKS[name] for name in options.tasks if name != "import"]
    results: dict[str, Measured] = {}
    versions: dict[str, dict[str, str]] = {}
    logs = Path(tempfile.mkdtemp(prefix="benchmark-logs-"))
    load_before = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    for model in dict.fromkeys(task.model for task in chosen):
        tasks = [task for task in chosen if task.model == model]
        setup = make_setup(folder_of(model, given), options.threads)
        needed = {each.worker for task in tasks for each in task.contenders} & set(options.workers)
        with ExitStack() as stack:
            workers: dict[str, Running] = {}
            how: dict[str, dict[str, str]] = {}
            for name in [each for each in (OURS, REFERENCE, *PEERS) if each in needed]:
                worker = stack.enter_context(running(name, logs))
                reply = worker.ask({"setup": asdict(setup)})
                if "ready" not in reply:
                    print(f"{name} does not start: {reply['error']} ({worker.log})", file=sys.stderr)
                    continue
                workers[name], how[name], versions[name] = worker, reply["how"], reply["versions"]
            for task in tasks:
                print(task.title, file=sys.stderr)
                results[task.name] = measure(task, workers, how, options)
    imports = import_times(options.rounds) if "import" in options.tasks else {}
    now = datetime.datetime.now(datetime.UTC)
    conditions = {
        "date": now.isoformat(timespec="seconds"),
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": options.threads,
        "load before": load_before,
        "rounds": options.rounds,
        "versions": versions,
    }
    options.results.mkdir(parents=True, exist_ok=True)
    raw = options.results / f"{now:%Y-%m-%d}.json"
    tasks_json = {
        name: {
            "reference from": measured.low,
            "reference to": measured.high,
            "contenders": [asdict(each) | {"median": each.median} for each in measured.outcomes],
        }
        for name, measured in results.items()
    }
    raw.write_text(json.dumps({"conditions": conditions, "tasks": tasks_json, "import": imports}, indent=1) + "\n")
    peers = ", ".join(f"{name} {found.get(name, '')}".strip() for name, found in versions.items())
    preamble = (
        f"{now:%Y-%m-%d}, {conditions['processor']}, {conditions['cores']} cores, {options.threads} threads, float32, "
        f"medians of {options.rounds} alternating rounds; {peers}.\n\n"
    )
    text = preamble + table(results, imports)
    print(text)
    if options.write:
        write_page(options.write, text)
    if any(each.wrong for rows in results.values() for each in rows.outcomes if each.worker == OURS):
        raise SystemExit("patchclamp disagrees with plain Hugging Face")


if __name__ == "__main__":
    main()
