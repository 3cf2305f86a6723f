"""What is measured: the prompts, the tasks, who does each task and in which way."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.envs import PEERS
from benchmarks.workers.common import Setup

OURS, REFERENCE = "patchclamp", "plain-hf"
WORKERS = (OURS, REFERENCE, *PEERS)
SMOLLM2, GEMMA = "smollm2-135m-instruct", "gemma-3-270m"

CLEAN = "When John and Mary went to the park, John gave a drink to"
CORRUPTED = "When Mary and John went to the park, Mary gave a drink to"
OPENING = "My favourite place to spend a Sunday afternoon is"
LONG = """The harbour froze early that year. Boats that should have been at sea lay side by side along the quay, \
and their owners, who had never before had an idle week in November, walked up and down looking at the ice as if \
it owed them money. The schoolmaster measured it every morning with a ruler and wrote the number on the \
blackboard. By the tenth day children were skating as far as the lighthouse. The keeper, an old man with a \
telescope and no visitors, counted them out and counted them back again, and lit his lamp an hour early so that \
nobody would lose the way. On the twelfth day a horse was led across to the island with a sledge of firewood, and \
the whole town came down to watch its ears. Nothing happened. The horse looked at the town, the town looked at \
the horse, and the wood was delivered. After that there was no holding anybody. A baker set up an oven on bricks \
in the middle of the bay and sold rolls that were hot on one side. Two cousins who had not spoken since a wedding \
met by accident halfway to the lighthouse, where there was nobody else to talk to. When the thaw came at last it \
came in one night, with a noise like furniture being moved upstairs, and in the morning the boats were rocking at \
their ropes and the blackboard said nothing at all."""
LONG_TOKENS = 256
STEERING_LENGTH = 2.0
"""Standard deviation of the steering vector's coordinates: enough to change the text, not to destroy it."""
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
    that is allowed. Captured values reach 2e4 and may differ by more; tokens must be equal."""
    model: str = SMOLLM2
    neurons: int = 0


def request_of(task: Task, contender: Contender) -> tuple[dict[str, Any], float]:
    """What to send, and by how much a sample's time is scaled up."""
    request = task.request | {"variant": contender.variant}
    if not task.neurons:
        return request, 1.0
    step = task.neurons // contender.sample if contender.sample else 1
    neurons = list(range(0, task.neurons, step))
    return request | {"neurons": neurons}, task.neurons / len(neurons)


EVERYBODY = tuple(Contender(name) for name in WORKERS)
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
UNEMBEDDERS = (Contender(OURS, "last"), Contender(REFERENCE, "last"), Contender(REFERENCE, "all"))


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
    ]


TASKS = {task.name: task for task in _tasks()}


def folder_of(model: str, given: dict[str, Path]) -> Path:
    """The model's Hugging Face folder: the one given, or the embedded one."""
    if model in given:
        return given[model]
    from patchclamp.model.embedded import fetch

    return fetch(model)


def make_setup(folder: Path, threads: int) -> Setup:
    """Tokenize once for everybody, and check that the prompts compare position by position."""
    from transformers import AutoConfig, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    clean, corrupted = tokenizer(CLEAN).input_ids, tokenizer(CORRUPTED).input_ids
    long = tokenizer(LONG).input_ids[:LONG_TOKENS]
    if len(clean) != len(corrupted):
        raise SystemExit(f"{folder}: the clean prompt has {len(clean)} tokens, the corrupted {len(corrupted)}")
    if len(long) != LONG_TOKENS:
        raise SystemExit(f"{folder}: the long prompt has {len(long)} tokens, not {LONG_TOKENS}")
    width = AutoConfig.from_pretrained(folder).hidden_size
    vector = STEERING_LENGTH * np.random.default_rng(0).standard_normal(width).astype(np.float32)
    names = (tokenizer(name, add_special_tokens=False).input_ids for name in (" Mary", " John"))
    (answer,), (distractor,) = names
    return Setup(
        folder=str(folder),
        short=clean,
        long=long,
        corrupted=corrupted,
        answer=answer,
        distractor=distractor,
        opening=tokenizer(OPENING).input_ids,
        vector=vector.tolist(),
        threads=threads,
    )
