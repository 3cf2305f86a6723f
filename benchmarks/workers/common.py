"""What every worker shares: the experiment's fixed inputs and the conversation with the driver.

A worker is a process in its own environment that loads one model once and answers requests, one JSON object a line:

    {"setup": {...Setup...}}                                  -> {"ready": true, "versions": {...}, "how": {...}}
    {"task": "patch", "variant": "loop", "positions": "last"} -> {"seconds": [0.41], "shape": [30]}

The numbers a task computed are written to the request's `check` file (.npy), so that the driver can compare them
with plain Hugging Face. Prompts arrive as token ids: no worker tokenizes, so all see the same tokens.
This file runs in every peer's environment and imports nothing but torch, numpy and the standard library.
"""

from __future__ import annotations

import ctypes
import gc
import importlib.metadata
import json
import os
import platform
import re
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch

ABLATED_LAYER = 15
STEERED_LAYER = 15
NEW_TOKENS = 64
ROWS_PER_BATCH = 64
NEURONS_AT_ONCE = 32
"""Of a sweep over neurons, each on all choices: with eight choices 256 rows a forward."""
TABLE_TOKENS = 20
"""Length of each continuation of the Patchscope table."""
LEAST = -80.0
"""Smaller log-probabilities count as this: some libraries return probabilities, and float32 has none below e^-87."""


@dataclass(frozen=True)
class Setup:
    """The experiment: which model, which tokens, which two answers, which steering vector."""

    folder: str
    """A Hugging Face folder (config, safetensors, tokenizer)."""
    short: list[int]
    """The short prompt's token ids; also the clean prompt of the patch sweep and the prompt of the ablation."""
    long: list[int]
    """The long prompt's token ids."""
    corrupted: list[int]
    """The corrupted prompt, as long as `short`."""
    answer: int
    """Token whose logit counts positively."""
    distractor: int
    """Token whose logit counts negatively."""
    opening: list[int]
    """The prompt that is continued with the steering vector."""
    prompts: list[list[int]]
    """The many prompts of the logit lens, of different lengths."""
    source: list[int]
    """The prompt whose last token's states the Patchscope table reads."""
    target: list[int]
    """The prompt these states are put into."""
    placeholder: int
    """The position in `target` they are put at."""
    vector: list[float]
    """The steering vector, [D]."""
    threads: int
    """How many threads torch may use."""
    choices: list[tuple[list[int], int, int]] = field(default_factory=list)
    """For `neuron_sweep.py`: prompts of one length, with answers and distractors."""


class Worker:
    """One project driven through its own interface. Subclasses implement the tasks they can do.

    A task method returns whatever its library returns; `numbers` turns that into an array after the clock stopped:
    of a lens its log-probabilities, which every library can give.
    """

    packages: tuple[str, ...] = ("torch", "transformers")
    how: dict[str, str] = {}  # noqa: RUF012 - "task" or "task/variant" -> the interface used, in one line

    def load(self, setup: Setup) -> None:
        """Load the model and keep what the tasks need."""
        raise NotImplementedError

    def forward(self, tokens: torch.Tensor) -> Any:
        """The model run without looking inside: the last position's logits, [V]."""
        raise NotImplementedError

    def capture_outputs(self, tokens: torch.Tensor, variant: str) -> list[torch.Tensor]:
        """The attention and MLP output of every block, attention first: 2 x layers tensors [1, T, D]."""
        raise NotImplementedError

    def capture_everything(self, tokens: torch.Tensor, variant: str) -> list[torch.Tensor]:
        """Every value of every layer that the library names; the logits' last row [V] comes last."""
        raise NotImplementedError

    def patch(self, positions: str, variant: str) -> Any:
        """Logit difference of the corrupted prompt with one clean residual patched in: [layers] or [layers, T]."""
        raise NotImplementedError

    def ablate(self, positions: str, neurons: list[int], variant: str) -> Any:
        """Logit difference of the short prompt with one neuron of `ABLATED_LAYER` set to zero: [neurons]."""
        raise NotImplementedError

    def sweep(self, neurons: list[tuple[int, int]], variant: str) -> Any:
        """What setting one neuron (layer, unit) to zero at the last position adds to the choices' logit difference:
        mean over the choices, [neurons]."""
        raise NotImplementedError

    def generate(self, variant: str) -> Any:
        """`NEW_TOKENS` greedy tokens with the steering vector added to the residual after `STEERED_LAYER`."""
        raise NotImplementedError

    def last_logits(self, variant: str) -> Any:
        """The short prompt's logits at the last position, [V]; `variant` says how many positions are unembedded."""
        raise NotImplementedError

    def lens_one(self, variant: str) -> Any:
        """The short prompt's last position at every layer, unembedded: logits [L, V], the embeddings first.

        A library that does not read the embeddings returns the other rows.
        """
        raise NotImplementedError

    def lens_many(self, prompts: list[list[int]], variant: str) -> Any:
        """The same for many prompts, and of each only the first choice's log-probability: [L, prompts]."""
        raise NotImplementedError

    def patchscope(self, variant: str) -> Any:
        """The source's last token after each block, put after block 0 at the target's placeholder, read aloud.

        `TABLE_TOKENS` greedy tokens each, [layers, tokens]; see `as_table`.
        """
        raise NotImplementedError

    def perform(self, request: dict[str, Any], setup: Setup) -> Any:
        """Run the task a request names."""
        task, variant = request["task"], request.get("variant", "")
        if task == "forward":
            return self.forward(torch.tensor([getattr(setup, request["prompt"])]))
        if task in ("capture_outputs", "capture_everything"):
            return getattr(self, task)(torch.tensor([getattr(setup, request["prompt"])]), variant)
        if task == "patch":
            return self.patch(request["positions"], variant)
        if task == "ablate":
            return self.ablate(request["positions"], request["neurons"], variant)
        if task == "sweep":
            return self.sweep([(layer, unit) for layer, unit in request["neurons"]], variant)
        if task == "lens_many":
            return self.lens_many(setup.prompts[: request["prompts"]], variant)
        if task in ("generate", "last_logits", "lens_one", "patchscope"):
            return getattr(self, task)(variant)
        raise ValueError(f"no task called {task!r}")

    def numbers(self, result: Any, task: str) -> np.ndarray:
        """A task's result as one array for the agreement check."""
        if task == "capture_everything":
            result = result[-1]
        elif isinstance(result, list):
            result = torch.stack([value.reshape(-1, value.shape[-1]) for value in result])
        array = torch.as_tensor(result).detach().float()
        if task == "lens_one":
            array = (array - array.logsumexp(-1, keepdim=True)).clamp(min=LEAST)
        return array.numpy()


def logit_difference(logits_BV: torch.Tensor, setup: Setup) -> torch.Tensor:
    """answer - distractor, [B]."""
    return logits_BV[..., setup.answer] - logits_BV[..., setup.distractor]


def choice_tokens(setup: Setup) -> torch.Tensor:
    """The choices' prompts as one batch, [N, T]."""
    return torch.tensor([prompt for prompt, _, _ in setup.choices])


def choice_differences(logits_RV: torch.Tensor, setup: Setup) -> torch.Tensor:
    """answer - distractor of rows that repeat the choices, choice after choice: [R / N, N]."""
    answers, distractors = (torch.tensor(ids) for ids in list(zip(*setup.choices, strict=True))[1:])
    logits = logits_RV.unflatten(0, (-1, len(setup.choices)))
    rows = torch.arange(len(answers))
    return logits[:, rows, answers] - logits[:, rows, distractors]


def chunks(rows: list[Any], size: int = ROWS_PER_BATCH) -> list[list[Any]]:
    """`rows` cut into batches."""
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def cells(layers: int, length: int, positions: str) -> list[tuple[int, int]]:
    """The (layer, position) pairs of a patch sweep, layer by layer."""
    wanted = [length - 1] if positions == "last" else list(range(length))
    return [(layer, position) for layer in range(layers) for position in wanted]


def as_grid(differences: list[torch.Tensor], layers: int, positions: str) -> torch.Tensor:
    """A sweep's results as [layers] or [layers, T]."""
    flat = torch.cat([piece.reshape(-1) for piece in differences])
    return flat if positions == "last" else flat.reshape(layers, -1)


def first_choice(logits: torch.Tensor) -> torch.Tensor:
    """Log-probability of the likeliest token: [..., V] -> [...]."""
    return logits.amax(-1) - logits.logsumexp(-1)


def same_lengths(prompts: list[list[int]]) -> list[list[int]]:
    """The prompts' indices, those of one length together: what can be run as one batch without padding."""
    groups: dict[int, list[int]] = {}
    for index, prompt in enumerate(prompts):
        groups.setdefault(len(prompt), []).append(index)
    return list(groups.values())


def as_table(continuations: Sequence[Sequence[int]]) -> torch.Tensor:
    """Token ids [rows, `TABLE_TOKENS`], filled up with -1 where a continuation ended by itself."""
    return torch.tensor([[*row, *[-1] * (TABLE_TOKENS - len(row))] for row in continuations])


def size_of(result: Any) -> dict[str, float]:
    """How much a capture holds."""
    if not isinstance(result, list):
        return {}
    held = sum(value.numel() * value.element_size() for value in result)
    return {"tensors": len(result), "megabytes": round(held / 1e6, 1)}


def resident_peak() -> float:
    """Highest resident memory since the last reset, in MB."""
    status = Path("/proc/self/status").read_text()
    found = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
    if not found:
        raise OSError("the system does not say VmHWM")
    return int(found[1]) * 1024 / 1e6


def peak_growth(work: Callable[[], Any]) -> float | None:
    """By how many MB resident memory grew at most while `work` ran; None where the system cannot tell.

    Memory that earlier work freed is given back to the system first: kept by the allocator and used again, it would
    not count.
    """
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): forget the peak so far
        before = resident_peak()
    except (AttributeError, OSError, TypeError):
        return None
    work()
    return round(resident_peak() - before, 1)


def versions(packages: tuple[str, ...]) -> dict[str, str]:
    """Installed versions of `packages`, and Python's."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "source"
    return found


def fewer(request: dict[str, Any]) -> dict[str, Any]:
    """What makes a request short enough for a warm-up: two neurons or prompts, or one position of a patch sweep."""
    if request["task"] in ("ablate", "sweep"):
        return {"neurons": request["neurons"][:2]}
    if request["task"] == "lens_many":
        return {"prompts": 2}
    return {"positions": "last"} if request["task"] == "patch" else {}


def answer(worker: Worker, setup: Setup, request: dict[str, Any], warmed: set[str]) -> dict[str, Any]:
    """Time one request. The first of its kind is run once beforehand, with fewer rows where it has many.

    Memory, where asked for, is measured in a run of its own before the clock starts, or "meanwhile".
    """
    key = json.dumps({name: request.get(name) for name in ("task", "variant", "prompt", "positions")})
    if key not in warmed:
        worker.perform(request | fewer(request), setup)
        warmed.add(key)
    seconds: list[float] = []
    processor: list[float] = []
    result: Any = None

    def timed() -> None:
        nonlocal result
        result = None
        gc.collect()
        start, used = time.perf_counter(), time.process_time()
        result = worker.perform(request, setup)
        seconds.append(time.perf_counter() - start)
        processor.append(time.process_time() - used)

    if request.get("memory") == "meanwhile":
        peak = peak_growth(timed)
    else:
        peak = peak_growth(lambda: worker.perform(request, setup)) if request.get("memory") else None
        for _ in range(request.get("repeat", 1)):
            timed()
    array = worker.numbers(result, request["task"])
    if "check" in request:
        np.save(request["check"], array, allow_pickle=False)
    return {"seconds": seconds, "processor": processor, "shape": list(array.shape), "peak": peak, **size_of(result)}


def private_stdout() -> TextIO:
    """The real standard output, kept for answers; what libraries print goes to standard error from now on."""
    sys.stdout.flush()
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return replies


def serve(worker: Worker) -> None:
    """Answer requests until standard input closes. An exception is an answer too: `{"error": ...}`."""
    replies = private_stdout()
    setup: Setup | None = None
    warmed: set[str] = set()
    for line in sys.stdin:
        request = json.loads(line)
        reply: dict[str, Any]
        try:
            with torch.no_grad():
                if "setup" in request:
                    setup = Setup(**request["setup"])
                    torch.set_num_threads(setup.threads)
                    worker.load(setup)
                    reply = {"ready": True, "versions": versions(worker.packages), "how": worker.how}
                elif setup is None:
                    raise ValueError("the first request must be the setup")
                else:
                    reply = answer(worker, setup, request, warmed)
        except NotImplementedError:
            reply = {"unsupported": True}
        except Exception as error:
            traceback.print_exc()
            reply = {"error": f"{type(error).__name__}: {error}"}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()
