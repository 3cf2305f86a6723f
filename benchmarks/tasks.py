"""What is measured: the tasks, who does each task and in which way."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.envs import PEERS
from benchmarks.workers.common import TABLE_TOKENS

OURS, REFERENCE = "patchclamp", "plain-hf"
WORKERS = (OURS, REFERENCE, *PEERS)
SMOLLM2, GEMMA = "smollm2-135m-instruct", "gemma-3-270m"
SAMPLE = {"loop": 64, "invokes": 64, "batched": 256, "skip": 256}
"""Neurons a slow way of ablating is measured on; its time is scaled up to all 1,536 and marked."""


@dataclass(frozen=True)
class Contender:
    """A worker, the way it does the task, and the rows it does where all would take too long."""

    worker: str
    variant: str = ""
    sample: int | None = None


@dataclass(frozen=True)
class Task:
    """One table: a request, and everybody who answers it."""

    name: str
    title: str
    request: dict[str, Any]
    contenders: tuple[Contender, ...]
    tolerance: float = 2e-4
    """Largest accepted difference from plain Hugging Face. Eager instead of fused attention, or another number
    of rows in a batch, reorders the float32 sums of 30 layers: that moves logits (within ±25) by 2e-5. Ten times
    that is allowed. Captured values reach 2e4 and may differ by more; tokens must be equal, those of the Patchscope
    table unless the reference's first choice is ahead of its second by no more than this."""
    model: str = SMOLLM2
    neurons: int = 0
    memory: bool = False
    """Whether to measure each contender's peak memory as well."""


def request_of(task: Task, contender: Contender) -> tuple[dict[str, Any], float]:
    """What to send, and by how much a sample's time is scaled up."""
    request = task.request | {"variant": contender.variant}
    if "prompts" in request:
        return request | {"prompts": contender.sample or PROMPTS}, PROMPTS / (contender.sample or PROMPTS)
    if not task.neurons:
        return request, 1.0
    step = task.neurons // contender.sample if contender.sample else 1
    neurons = list(range(0, task.neurons, step))
    return request | {"neurons": neurons}, task.neurons / len(neurons)


EVERYBODY = tuple(Contender(name) for name in (OURS, REFERENCE, "transformer-lens", "nnsight", "interp-engine"))
CAPTURERS = (*EVERYBODY, Contender("nnsight", "cache"))
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
    *(Contender(each.worker, each.variant, SAMPLE[each.variant]) for each in SWEEPERS[2:]),
)
PROMPTS = 64
LEAKY_SAMPLE = 2
"""Prompts interpreto is asked: nothing it computed for one is freed, 0.1 GB a prompt on SmolLM2 and 0.3 on Gemma."""
LENS_READERS = (
    Contender(OURS),
    Contender(REFERENCE, "hidden"),
    Contender(REFERENCE, "bare"),
    Contender("transformer-lens"),
    Contender("interp-engine", "last"),
    Contender("interp-engine", "whole"),
    Contender("nnterp"),
    Contender("interpreto"),
    Contender("tuned-lens", "lens"),
    Contender("tuned-lens", "whole"),
)
LENS_READERS_OF_MANY = (
    Contender(OURS),
    Contender(REFERENCE, "hidden"),
    Contender(REFERENCE, "batched"),
    Contender(REFERENCE, "bare"),
    Contender("transformer-lens", "loop"),
    Contender("transformer-lens", "batched"),
    Contender("interp-engine", "last"),
    Contender("nnterp", "loop"),
    Contender("nnterp", "batched"),
    Contender("interpreto", sample=LEAKY_SAMPLE),
    Contender("tuned-lens", "lens"),
    Contender("tuned-lens", "whole"),
)
NO_GEMMA = ("tuned-lens",)
SOFTMAX_TOLERANCE = 1e-3
"""Of log-probabilities over Gemma's 262,144 tokens: torch's float32 softmax and log_softmax, which some libraries call,
are off by 1.3e-4 there (against float64; logsumexp by 7e-6)."""
UNEMBEDDERS = (Contender(OURS, "last"), Contender(REFERENCE, "last"), Contender(REFERENCE, "all"))


def _lens_tasks(model: str, suffix: str, layers: str) -> list[Task]:
    one, many = (
        tuple(each for each in readers if model != GEMMA or each.worker not in NO_GEMMA)
        for readers in (LENS_READERS, LENS_READERS_OF_MANY)
    )
    title = f"Logit lens at the last position, {layers}"
    tolerance = SOFTMAX_TOLERANCE if model == GEMMA else Task.tolerance
    return [
        Task(f"lens_one{suffix}", f"{title}, one prompt", {"task": "lens_one"}, one, tolerance, model, memory=True),
        Task(
            f"lens_many{suffix}",
            f"{title}, {PROMPTS} prompts",
            {"task": "lens_many", "prompts": PROMPTS},
            many,
            tolerance,
            model,
            memory=True,
        ),
    ]


def _tasks() -> list[Task]:
    forward, outputs, everything = "forward", "capture_outputs", "capture_everything"
    each_output = "attention and MLP output of 30 blocks"
    each_neuron = "zero each of 1,536 neurons"
    return [
        Task("forward_short", "Forward, 14 tokens", {"task": forward, "prompt": "short"}, EVERYBODY),
        Task("forward_long", "Forward, 256 tokens", {"task": forward, "prompt": "long"}, EVERYBODY),
        Task(
            "capture_short",
            f"Capture the {each_output}, 14 tokens",
            {"task": outputs, "prompt": "short"},
            CAPTURERS,
            2e-2,
        ),
        Task(
            "capture_long",
            f"Capture the {each_output}, 256 tokens",
            {"task": outputs, "prompt": "long"},
            CAPTURERS,
            2e-2,
        ),
        Task(
            "everything",
            "Capture every value of every layer, 14 tokens",
            {"task": everything, "prompt": "short"},
            EVERYBODY,
        ),
        Task(
            "patch_last",
            "Patch 30 layers at the last position",
            {"task": "patch", "positions": "last"},
            SWEEPERS,
        ),
        Task(
            "patch_all",
            "Patch 30 layers x 14 positions",
            {"task": "patch", "positions": "all"},
            SWEEPERS,
        ),
        Task(
            "ablate_last",
            f"At the last position, {each_neuron}",
            {"task": "ablate", "positions": "last"},
            ABLATERS,
            neurons=1536,
        ),
        Task(
            "ablate_all",
            f"At every position, {each_neuron}",
            {"task": "ablate", "positions": "all"},
            ABLATERS,
            neurons=1536,
        ),
        Task("steer", "Generate 64 steered tokens", {"task": "generate"}, EVERYBODY, 0.0),
        Task(
            "gemma_last",
            "Logits at the last position of Gemma 3 270M",
            {"task": "last_logits"},
            UNEMBEDDERS,
            model=GEMMA,
        ),
        *_lens_tasks(SMOLLM2, "", "31 layers"),
        *_lens_tasks(GEMMA, "_gemma", "19 layers of Gemma 3 270M"),
        Task(
            "patchscope_table",
            f"A Patchscope of 30 layers, {TABLE_TOKENS} tokens each",
            {"task": "patchscope"},
            (Contender(OURS), Contender(REFERENCE)),
            memory=True,
        ),
    ]


TASKS = {task.name: task for task in _tasks()}


def folder_of(model: str, given: dict[str, Path]) -> Path:
    """The model's Hugging Face folder: the one given, or the embedded one."""
    if model in given:
        return given[model]
    from patchclamp.model.embedded import fetch

    return fetch(model)
