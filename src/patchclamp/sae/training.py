"""The loop of a training: several autoencoders on one stream of batches, a log, and checkpoints.

    log.jsonl      one line a logged step and autoencoder
    checkpoint/    weights, Adam's moments, idle counts (`checkpoints.py`). Gone when training is done

What a step does depends on its number and the state alone, so that a run taken up again is the uninterrupted run, bit
for bit on the same machine and number of threads. Of several processes the first writes; all must be there.
"""

import json
import math
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from patchclamp.errors import PatchclampError, RunError, SpecError, StoreError
from patchclamp.evidence.method import Progress
from patchclamp.evidence.record import write_whole
from patchclamp.sae.batches import Batches, Read, Rows
from patchclamp.sae.checkpoints import Checkpoints
from patchclamp.sae.learner import ALONE, Learner, Step
from patchclamp.sae.ranks import RankLost, Ranks

LOG = "log.jsonl"
POINTS = 400
"""Steps that are logged, at most, besides the last."""


@dataclass(frozen=True)
class Schedule:
    """Learning rate and penalty over a training, as shares of their highest."""

    steps: int
    warm_up: float
    """Share of the steps in which the rate rises from nothing, and the penalty with it."""
    decay: float
    """Share of the steps, at the end, in which the rate falls to nothing."""

    def rate(self, step: int) -> float:
        """At a step, counted from 0."""
        rise = (step + 1) / (self.warm_up * self.steps) if self.warm_up else 1.0
        fall = (self.steps - step) / (self.decay * self.steps) if self.decay else 1.0
        return min(1.0, rise, fall)

    def penalty(self, step: int) -> float:
        """At a step, counted from 0."""
        return min(1.0, (step + 1) / (self.warm_up * self.steps)) if self.warm_up else 1.0


class Training:
    """Learners that see the same batches. `identity`: what a checkpoint belongs to; `folder`: where it is kept."""

    def __init__(
        self, learners: Sequence[tuple[str, Learner]], batches: Batches, schedule: Schedule, folder: Path,
        identity: dict[str, Any], ranks: Ranks = ALONE,
    ) -> None:
        self.learners, self.batches, self.schedule = list(learners), batches, schedule
        self.folder, self.identity, self.ranks = folder, identity, ranks
        self.checkpoints = Checkpoints(folder, ranks)
        self.step = 0
        self.seconds = 0.0
        """Spent in steps so far, reading and resumed parts included."""

    def run(self, read: Read, checkpoint_seconds: float, progress: Progress, board: Any = None) -> None:
        """All steps that are left. Raises RunError if a loss is no number or a process is lost, and as `read`."""
        try:
            with told_to_stop(self.ranks):
                self._run(read, checkpoint_seconds, progress, board)
        except RankLost as error:
            raise RunError(f"a process died or fell silent at step {self.step + 1} of {self.schedule.steps}; "
                           f"{self._left()} ({error.said})") from error

    def _left(self) -> str:
        newest = self.checkpoints.newest()
        if newest is None:
            return "there is no checkpoint yet: the same command begins anew"
        return (f"the checkpoint of step {newest} goes on: run the same command, with as many processes as you "
                "like")

    def _run(self, read: Read, checkpoint_seconds: float, progress: Progress, board: Any) -> None:
        saved = started = time.monotonic()
        before = self.seconds
        own = self.batches.batch // self.ranks.data
        part = slice(self.ranks.datum * own, (self.ranks.datum + 1) * own)
        steps = self.batches.run(read, self.step, self.schedule.steps)
        between = True
        try:
            for rows in progress.track(steps, "training", self.schedule.steps - self.step):
                between = False
                self._take(tuple(values[part] for values in rows), board)
                between = True
                self.seconds = before + time.monotonic() - started
                due = time.monotonic() - saved >= checkpoint_seconds and self.step < self.schedule.steps
                if self.ranks.first_says(due):
                    self.save()
                    saved = time.monotonic()
        except BaseException:
            alone = self.ranks.latents * self.ranks.data == 1
            if between and alone and self.step < self.schedule.steps:  # told to end: nothing is lost
                with suppress(PatchclampError):
                    self.save()
            raise

    def _take(self, rows: Rows, board: Any) -> None:
        rate, penalty = self.schedule.rate(self.step), self.schedule.penalty(self.step)
        every = max(1, self.schedule.steps // POINTS)
        is_logged = self.step % every == 0 or self.step == self.schedule.steps - 1
        for name, learner in self.learners:
            seen = learner.step(rows, rate, penalty)
            if not math.isfinite(seen.loss):
                raise RunError(f"the loss of {name} is not a number at step {self.step + 1} of {self.schedule.steps}; "
                               f"lower learning_rate ({learner.recipe.learning_rate:g})")
            if is_logged and self.ranks.is_first:
                self._log(name, seen, rate, board)
        self.step += 1

    # The log

    def _log(self, name: str, seen: Step, rate: float, board: Any) -> None:
        line = {"step": self.step, "name": name, "fvu": seen.fvu, "l0": seen.l0, "loss": seen.loss, "dead": seen.dead,
                "rate": rate}
        try:
            with (self.folder / LOG).open("a") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise StoreError(f"cannot write {self.folder / LOG}: {error.strerror or error}") from error
        if board is not None:
            for key in ("fvu", "l0", "loss", "dead"):
                board.add_scalar(f"{name or 'sae'}/{key}", line[key], self.step)

    def _cut_log(self) -> None:
        kept = [json.dumps(line) + "\n" for line in read_log(self.folder) if line["step"] < self.step]
        write_whole(self.folder / LOG, "".join(kept).encode())

    # Checkpoints

    def _tensors(self) -> dict[str, Tensor]:
        return {f"{number}.{name}": tensor for number, (_, learner) in enumerate(self.learners)
                for name, tensor in learner.state().items()}

    def save(self) -> None:
        """Write the state, whole or not at all."""
        self.checkpoints.save(self.step, self._tensors(),
                              {"identity": self.identity, "step": self.step, "seconds": self.seconds})

    def resume(self) -> None:
        """Take up the folder's checkpoint, if there is one. SpecError, saying what differs, if it is of another
        training; FileError if it cannot be read."""
        newest = self.checkpoints.newest()
        step = self.ranks.first_says(-1 if newest is None else newest)
        if step >= 0:
            place = self.checkpoints.at(step)
            state = self.checkpoints.state(place)
            refuse_other(state["identity"], self.identity, self.folder)
            self.checkpoints.read(place, self._tensors())
            self.step, self.seconds = state["step"], state["seconds"]
        if self.ranks.is_first:
            self._cut_log()


@contextmanager
def told_to_stop(ranks: Ranks) -> Iterator[None]:
    """Inside, of several processes, the signal by which torchrun ends those that are left raises RankLost: it comes
    when another died, and there is something to say."""
    if not ranks.is_many or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise RankLost("torchrun ended this process")

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGTERM) is stop:
            signal.signal(signal.SIGTERM, before)


def read_log(folder: Path) -> Iterator[dict[str, Any]]:
    """The lines written so far."""
    path = folder / LOG
    for text in path.read_text().splitlines() if path.is_file() else []:
        with suppress(ValueError):  # a line half-written when the process was killed
            yield json.loads(text)


def refuse_other(found: dict[str, Any], wanted: dict[str, Any], folder: Path) -> None:
    """SpecError, saying what differs, if a folder's training is not the one asked for."""
    differing = sorted(key for key in {*found, *wanted} if found.get(key) != wanted.get(key))
    if differing:
        said = "; ".join(f"{key} {_short(found.get(key))}, not {_short(wanted.get(key))}" for key in differing)
        raise SpecError(f"{folder} holds another training: {said}. Ask for the same, or choose another folder")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:24]}…{text[-12:]}"
