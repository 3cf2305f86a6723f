"""Worker processes, taking turns, and the comparison of their numbers with the reference."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.envs import PEERS, Peer, ensure
from benchmarks.tasks import OURS, REFERENCE, Task, request_of

SCRIPTS = Path(__file__).resolve().parent / "workers"
OWN_SCRIPTS = {OURS: "patchclamp_worker.py", REFERENCE: "plain_hf_worker.py"}
QUIET = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TQDM_DISABLE": "1", "WANDB_MODE": "disabled"}
SLOW_SECONDS, SLOW_ROUNDS = 20.0, 3
"""A contender slower than this is measured no more often than this."""


class Running:
    """A worker process: one JSON line in, one JSON line out."""

    def __init__(self, peer: Peer | None, script: str, log: Path, *arguments: str) -> None:
        """`script` of the folder of workers, in the peer's environment or, without one, in this one."""
        python = str(ensure(peer)) if peer else sys.executable
        self.log = log
        with log.open("w") as errors:
            self.process = subprocess.Popen(
                [python, str(SCRIPTS / script), *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=os.environ | QUIET,
            )

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
            said = self.log.read_text().strip().splitlines()[-1:]
            return {"error": f"the worker ended: {' '.join(said)}"}
        return json.loads(line)

    def close(self) -> None:
        assert self.process.stdin
        try:
            self.process.stdin.close()
            self.process.wait(timeout=60)
        except (BrokenPipeError, subprocess.TimeoutExpired):
            self.process.kill()


@contextmanager
def running(worker: str, logs: Path) -> Iterator[Running]:
    """A worker that is ended with the block."""
    peer = PEERS.get(worker)
    started = Running(peer, peer.worker if peer else OWN_SCRIPTS[worker], logs / f"{worker}.log")
    try:
        yield started
    finally:
        started.close()


@dataclass
class Outcome:
    """What one contender did in one task."""

    worker: str
    variant: str
    how: str
    seconds: list[float] = field(default_factory=list)
    scale: float = 1.0
    """All rows over the rows measured; `median` is scaled by it, `seconds` are not."""
    error: float | None = None
    """Largest absolute difference from the reference; where tokens differ, by how much the reference's was ahead."""
    wrong: bool = False
    part: str = ""
    """How many of the answer's rows were given, or are equal, where that is worth knowing."""
    peak: float | None = None
    """Highest growth of resident memory in MB."""
    tensors: int | None = None
    megabytes: float | None = None
    failure: str = ""

    @property
    def median(self) -> float | None:
        return statistics.median(self.seconds) * self.scale if self.seconds else None

    @property
    def done(self) -> bool:
        """No need for another round: it failed, or is slow and was measured often enough."""
        slow = len(self.seconds) >= SLOW_ROUNDS and statistics.median(self.seconds) > SLOW_SECONDS
        return bool(self.failure) or slow


@dataclass
class Measured:
    """A task's outcomes, and the range of the reference's numbers: what a difference has to be small against."""

    outcomes: list[Outcome]
    low: float | None = None
    high: float | None = None


def measure(task: Task, workers: dict[str, Running], how: dict[str, dict[str, str]], rounds: int) -> Measured:
    """All contenders of a task, one repetition each, round after round; every round begins with another one."""
    kind = task.request["task"]
    entered = [each for each in task.contenders if each.worker in workers]
    outcomes = []
    for each in entered:
        explained = how[each.worker]
        said = explained.get(f"{kind}/{each.variant}", explained.get(kind, ""))
        outcomes.append(Outcome(each.worker, each.variant, said))
    with tempfile.TemporaryDirectory() as scratch:
        checks = [Path(scratch) / f"{number}.npy" for number in range(len(entered))]
        turns = list(zip(entered, outcomes, checks, strict=True))
        for turn in range(rounds):
            first = turn % max(1, len(turns))  # nobody is always the first of a round
            for contender, outcome, check in turns[first:] + turns[:first]:
                if outcome.done:
                    continue
                request, outcome.scale = request_of(task, contender)
                if turn == 0:
                    request |= {"check": str(check), "memory": task.memory}
                note(outcome, workers[contender.worker].ask(request))
        found = [np.load(check, allow_pickle=False) if check.exists() else None for check in checks]
    return compared(task, outcomes, found)


def note(outcome: Outcome, reply: dict[str, Any]) -> None:
    """Add one answer to a contender's outcome."""
    if "seconds" not in reply:
        outcome.failure = reply.get("error", "not supported")
        print(f"  {outcome.worker:17}{outcome.variant:9}{outcome.failure}", file=sys.stderr)
        return
    outcome.seconds += reply["seconds"]
    outcome.tensors, outcome.megabytes = reply.get("tensors"), reply.get("megabytes")
    outcome.peak = reply["peak"] if outcome.peak is None else outcome.peak
    print(f"  {outcome.worker:17}{outcome.variant:9}{reply['seconds'][-1]:9.3f} s", file=sys.stderr)


def compared(task: Task, outcomes: list[Outcome], found: list[np.ndarray | None]) -> Measured:
    """Each contender's numbers against the reference's."""
    given = [(outcome, array) for outcome, array in zip(outcomes, found, strict=True) if array is not None]
    reference = next((array for outcome, array in given if outcome.worker == REFERENCE), None)
    if reference is None:
        return Measured(outcomes)
    tokens = task.request["task"] == "patchscope"
    for outcome, array in given:
        (compare_tokens if tokens else compare)(outcome, array, reference)
        outcome.wrong = outcome.error is not None and not outcome.error <= task.tolerance
    return Measured(outcomes) if tokens else Measured(outcomes, float(reference.min()), float(reference.max()))


def compare(outcome: Outcome, array: np.ndarray, reference: np.ndarray) -> None:
    """The largest difference. A sample of neurons or prompts is compared with the same ones, a lens without the first
    layers with the last ones."""
    expected, all_rows = reference, len(reference)
    if len(array) < all_rows:
        expected = reference[:: all_rows // len(array)] if array.ndim == 1 else reference[-len(array) :]
        outcome.part = f"last {len(array)} of {all_rows} layers" if array.ndim > 1 else ""
    if outcome.scale != 1 and array.ndim > 1:
        expected = expected[:, : array.shape[1]]
    if array.shape != expected.shape:
        outcome.failure = f"shape {array.shape}, expected {expected.shape}"
        return
    outcome.error = float(np.abs(array - expected).max())


def compare_tokens(outcome: Outcome, array: np.ndarray, reference: np.ndarray) -> None:
    """How many continuations are equal, and where one is not, whether the first other token is explained by a tie."""
    expected, ahead = reference[..., 0], reference[..., 1]
    tokens = array[..., 0] if array.ndim == reference.ndim else array
    if tokens.shape != expected.shape:
        outcome.failure = f"shape {tokens.shape}, expected {expected.shape}"
        return
    other = tokens != expected
    differing = np.flatnonzero(other.any(1))
    outcome.part = f"{len(tokens) - len(differing)} of {len(tokens)} rows equal"
    outcome.error = float(max((ahead[row, other[row].argmax()] for row in differing), default=0.0))


IMPORT_TIMER = """
import time, torch, transformers
{first}
start = time.perf_counter()
import patchclamp
{then}
print(time.perf_counter() - start)
"""
RESOLVE = "from transformers import AutoModelForCausalLM, AutoTokenizer"
IMPORTS = {
    "`import patchclamp`, over `import torch, transformers`": ("", ""),
    "`patchclamp.load` looked up as well (public names are imported on first use)": ("", "patchclamp.load"),
    "the same, over `from transformers import AutoModelForCausalLM, AutoTokenizer`": (RESOLVE, "patchclamp.load"),
}


def import_times(rounds: int) -> dict[str, float]:
    """Median seconds `import patchclamp` adds, in a fresh process each time, the first round thrown away."""
    found: dict[str, list[float]] = {case: [] for case in IMPORTS}
    for _ in range(rounds + 1):
        for case, (first, then) in IMPORTS.items():
            program = IMPORT_TIMER.format(first=first, then=then)
            done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
            if done.returncode:
                print(done.stderr, file=sys.stderr)
                return {}
            found[case].append(float(done.stdout))
    return {case: statistics.median(times[1:]) for case, times in found.items()}
