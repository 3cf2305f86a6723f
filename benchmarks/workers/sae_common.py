"""What every worker of `benchmarks/sae_training.py` shares: the rows, the conversation with the driver, the measures.

A worker is a process in its library's environment, one JSON object a line:

    {"setup": {...Setup...}}   -> {"ready": true, "versions": {...}, "how": "...", "settings": {...}}
    {"steps": 20}              -> {"seconds": [...], "processor": [...], "peak": MB over that before the trainer}
    {"evaluate": 20480}        -> {"own": {"fvu": ..., "ordinary": ..., "l0": ...}, "batch": {...}}

Rows come from a file of float32 numbers that the driver wrote in training order; no worker shuffles. This file runs in
every peer's environment and imports nothing but torch, numpy, `common` and the standard library.
"""

from __future__ import annotations

import ctypes
import gc
import json
import re
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import private_stdout, resident_peak, versions

REPLIES = private_stdout()  # before a worker imports its library, which may print
PIECE = 2048
"""Held-out rows that are coded at once, and among which a batch selection chooses."""
SCALED_ON = 65_536
"""Training rows that libraries which scale their input take the scale from."""


@dataclass(frozen=True)
class Setup:
    """One run."""

    train: str
    """File of float32 rows in training order."""
    held_out: str
    """File of float32 rows that nobody trains on."""
    width: int
    latents: int
    k: int
    batch: int
    steps: int
    architecture: str
    """topk or batchtopk."""
    seed: int
    threads: int
    rate: float
    """Times the library's own learning rate."""
    outlier: float
    """Norm above which a held-out row is left out of the second FVU."""


class Worker:
    """One library's trainer. Values are as harvested at every border: a library that scales them does so inside."""

    packages: tuple[str, ...] = ("torch",)
    how = ""
    settings: dict[str, Any]
    """What was left to the library or had to be chosen, for the report."""

    def prepare(self, setup: Setup, first_ND: torch.Tensor) -> None:
        """Look at the first rows, for a scale."""

    def build(self, setup: Setup) -> None:
        """Make the trainer."""
        raise NotImplementedError

    def step(self, number: int, x_BD: torch.Tensor) -> None:
        """Train on a batch."""
        raise NotImplementedError

    def evaluating(self, is_on: bool) -> None:
        """Told before and after an evaluation."""

    def reconstruct(self, x_ND: torch.Tensor) -> tuple[torch.Tensor, int]:
        """The library's own coding of single inputs: what it makes of the rows, and how many codes were not zero."""
        raise NotImplementedError

    def reconstruct_batch(self, x_ND: torch.Tensor) -> tuple[torch.Tensor, int]:
        """With the k·N greatest codes of all rows together, as BatchTopK trains."""
        raise NotImplementedError


class Rows:
    """A file of rows, read piece by piece into memory that is the process's own."""

    def __init__(self, path: str, width: int) -> None:
        self.file = Path(path).open("rb")  # noqa: SIM115 (open as long as the worker lives)
        self.width = width

    def at(self, first: int, count: int) -> torch.Tensor:
        self.file.seek(first * self.width * 4)
        return torch.from_numpy(np.fromfile(self.file, dtype=np.float32, count=count * self.width)).view(-1, self.width)

    def pieces(self, count: int) -> Iterator[torch.Tensor]:
        for first in range(0, count, PIECE):
            rows = self.at(first, min(PIECE, count - first))
            if not len(rows):
                return
            yield rows


class Sums:
    """FVU as `patchclamp.sae.quality` defines it: Σ‖y - ŷ‖² / Σ‖y - ȳ‖² over all rows, in float64."""

    def __init__(self) -> None:
        self.rows, self.error, self.square, self.total = 0, 0.0, 0.0, torch.zeros(())

    def add(self, y_ND: torch.Tensor, out_ND: torch.Tensor) -> None:
        y_ND = y_ND.double()
        self.rows += len(y_ND)
        self.error += float((y_ND - out_ND.double()).square().sum())
        self.square += float(y_ND.square().sum())
        self.total = self.total + y_ND.sum(0)

    @property
    def fvu(self) -> float:
        return self.error / (self.square - float(self.total.square().sum()) / self.rows)


class Run:
    """A worker on its way through the training rows."""

    def __init__(self, worker: Worker, setup: Setup) -> None:
        self.worker, self.setup, self.done = worker, setup, 0
        torch.set_num_threads(setup.threads)
        torch.manual_seed(setup.seed)
        self.train, self.held_out = Rows(setup.train, setup.width), Rows(setup.held_out, setup.width)
        worker.settings = {}
        worker.prepare(setup, self.train.at(0, SCALED_ON))
        torch.ones(256, 256) @ torch.ones(256, 256)  # the arithmetic library's own rooms are not the trainer's
        trim()
        self.held = resident()
        worker.build(setup)

    def steps(self, count: int) -> dict[str, Any]:
        """So many steps. Reading a batch is outside the clock."""
        seconds, processor = [], []
        trim()
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): forget the peak so far
        for _ in range(count):
            x_BD = self.train.at(self.done * self.setup.batch, self.setup.batch)
            start, used = time.perf_counter(), time.process_time()
            self.worker.step(self.done, x_BD)
            seconds.append(time.perf_counter() - start)
            processor.append(time.process_time() - used)
            self.done += 1
        return {"seconds": seconds, "processor": processor, "peak": resident_peak() - self.held}

    @torch.no_grad()
    def evaluate(self, count: int) -> dict[str, Any]:
        """FVU on the first held-out rows."""
        self.worker.evaluating(True)
        found = {"own": self._tally(self.worker.reconstruct, count)}
        if self.setup.architecture == "batchtopk":
            found["batch"] = self._tally(self.worker.reconstruct_batch, count)
        self.worker.evaluating(False)
        return found

    def _tally(self, reconstruct: Any, count: int) -> dict[str, float]:
        every, ordinary, active = Sums(), Sums(), 0
        for x_ND in self.held_out.pieces(count):
            out_ND, codes = reconstruct(x_ND)
            active += codes
            every.add(x_ND, out_ND)
            keep_N = x_ND.norm(dim=1) <= self.setup.outlier
            ordinary.add(x_ND[keep_N], out_ND[keep_N])
        return {"fvu": every.fvu, "ordinary": ordinary.fvu, "l0": active / every.rows, "rows": every.rows,
                "outliers": every.rows - ordinary.rows}


def trim() -> None:
    """Give freed memory back to the system."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def resident() -> float:
    """Resident memory now, in MB."""
    found = re.search(r"^VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found
    return int(found[1]) * 1024 / 1e6


def serve(worker: Worker) -> None:
    """Answer requests until standard input closes. An exception is an answer too: `{"error": ...}`."""
    run: Run | None = None
    for line in sys.stdin:
        request = json.loads(line)
        reply: dict[str, Any]
        try:
            if "setup" in request:
                run = Run(worker, Setup(**request["setup"]))
                reply = {"ready": True, "versions": versions(worker.packages), "how": worker.how,
                         "settings": worker.settings}
            elif run is None:
                raise ValueError("the first request must be the setup")
            else:
                reply = run.steps(request["steps"]) if "steps" in request else run.evaluate(request["evaluate"])
        except Exception as error:
            traceback.print_exc()
            reply = {"error": f"{type(error).__name__}: {error}"}
        REPLIES.write(json.dumps(reply) + "\n")
        REPLIES.flush()
