"""Steering vectors from 256 prompts, all blocks: patchclamp beside repeng and steering-vectors, time and agreement.

    python -m benchmarks.steering_vectors                      # makes their environments once
    python -m benchmarks.steering_vectors --rounds 5 --models smollm2-135m-instruct

Every contender reads the same 128 pairs of texts at their last token and finds a direction in every block: repeng
the first principal component of the differences, steering-vectors the difference of means, patchclamp both. A bare
forward of the same texts (no logits but the last, nothing read) shows what reading costs. Contenders take turns,
another one first in each round. Printed: medians, ratios, peak memory of each process, and the smallest cosine over
blocks; with repeng without the last one, whose state repeng takes after the final norm and patchclamp before it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from benchmarks.envs import Peer, ensure
from patchclamp.model.embedded import fetch
from patchclamp.tasks.behaviour import read_behaviour

WORKERS = Path(__file__).parent / "workers"
OLD = "transformers==4.57.6"
"""steering-vectors wants a transformers below 5; repeng gets the same."""
PEERS = {
    "repeng": Peer("repeng", "repeng==0.4.0", "steering_worker.py", (OLD, "numpy<2")),
    "steering-vectors": Peer("steering-vectors", "steering-vectors==0.12.2", "steering_worker.py", (OLD,)),
}
PAIRS = 128
ROUNDS = 3


def texts() -> list[tuple[str, str]]:
    """Pairs of texts of both sides of several behaviours, as a user's message would be written without a template."""
    pairs = []
    for name in ("refusal", "french"):
        behaviour = read_behaviour(name)
        pairs += list(zip(behaviour.train.showing, behaviour.train.plain, strict=True))
    return [(str(a), str(b)) for a, b in pairs][:PAIRS]


class Running:
    """A contender's process: a line in, a line out."""

    def __init__(self, name: str, folder: str, out: Path, pairs: Path) -> None:
        python = str(ensure(PEERS[name])) if name in PEERS else sys.executable
        script = "steering_worker.py" if name in PEERS else "steering_own_worker.py"
        self.out = out / f"{name}.safetensors"
        command = [python, str(WORKERS / script), name, folder, str(self.out), str(pairs)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self) -> dict[str, Any]:
        """Find the directions once more: seconds, peak memory."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def end(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def agreement(ours: Path, theirs: Path, prefix: str, without: str = "") -> float:
    """Smallest cosine over the blocks both have."""
    a, b = load_file(ours), load_file(theirs)
    shared = [name for name in b if f"{prefix}.{name}" in a and name != without]
    return min(float(torch.cosine_similarity(a[f"{prefix}.{n}"].double(), b[n].double(), dim=0)) for n in shared)


def n_blocks(path: Path) -> int:
    return len(load_file(path))


def run(model: str, rounds: int) -> None:
    names = ["patchclamp", "patchclamp-pca", "bare", *PEERS]
    with tempfile.TemporaryDirectory() as scratch:
        pairs = Path(scratch) / "pairs.json"
        pairs.write_text(json.dumps(texts()))
        running = {name: Running(name, str(fetch(model)), Path(scratch), pairs) for name in names}
        for one in running.values():
            one.ask()
        seconds: dict[str, list[float]] = {name: [] for name in names}
        memory = {}
        for turn in range(rounds):
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                answer = running[name].ask()
                seconds[name].append(answer["seconds"])
                memory[name] = answer["peak_mb"]
        for one in running.values():
            one.end()
        base = statistics.median(seconds["patchclamp"])
        print(f"\n{model}, {2 * PAIRS} prompts, all blocks, medians of {rounds}")
        for name in names:
            middle = statistics.median(seconds[name])
            print(f"  {name:18} {middle:7.2f} s  {middle / base:5.2f}x  peak {memory[name]:.0f} MB over the model's")
        own = Path(scratch)
        last = f"resid.{n_blocks(own / 'patchclamp.safetensors') - 1}"
        print(f"  mean difference, smallest cosine with steering-vectors: "
              f"{agreement(own / 'patchclamp.safetensors', own / 'steering-vectors.safetensors', 'mean'):.7f}")
        print(f"  first component, smallest cosine with repeng: "
              f"{agreement(own / 'patchclamp-pca.safetensors', own / 'repeng.safetensors', 'pca', last):.7f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--models", nargs="+", default=["smollm2-135m-instruct", "gemma-3-270m"])
    options = parser.parse_args()
    for model in options.models:
        run(model, options.rounds)


if __name__ == "__main__":
    main()
