"""What a process needs when several train one autoencoder, and what a step takes beside what `sae plan` says.

    python -m benchmarks.sae_ranks                 # memory at 1, 2 and 4 processes, then times of one
    python -m benchmarks.sae_ranks --times

One thread a process. Seconds are the process's own processor time, so that other work on the machine hardly counts.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from patchclamp.sae.cost import Machine, Shape
from patchclamp.sae.learner import Learner
from patchclamp.sae.parameters import Recipe, Scaling
from patchclamp.sae.ranks import CPU, Ranks

LATENTS, WIDTH, BATCH, K, STEPS = 65_536, 576, 2048, 32, 4
ROUNDS = 5


def recipe(latents: int, width: int, k: int, dead_after: int) -> Recipe:
    """TopK, as `sae train` makes it."""
    return Recipe("topk", latents, k, 0.0, 1e-4, dead_after, width // 2, 1.0, 0.1, (latents,), False, True, 0)


def rows(n: int, width: int, seed: int) -> torch.Tensor:
    """Values of no meaning."""
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed))


def resident(what: str) -> float:
    """Megabytes the kernel counts as ours: now (`VmRSS`) or at most (`VmHWM`)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(what))


def one_of_many(out: str) -> None:
    """A process among others: steps with and without dead latents."""
    torch.set_num_threads(1)
    with Ranks.joined(1, CPU, 600) as ranks:
        x_ND = rows(STEPS * BATCH, WIDTH, 1)
        for _ in range(2):  # so that the code itself is in memory
            Learner(recipe(512, WIDTH, K, 0), Scaling.of((x_ND[:BATCH],)), True, ranks).step((x_ND[:64],))
        ranks.meet()
        before = resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        learner = Learner(recipe(LATENTS, WIDTH, K, 2 * BATCH), Scaling.of((x_ND[:BATCH],)), True, ranks)
        dead = [learner.step((x_BD,)).dead for x_BD in x_ND.split(BATCH)]
        tensors = {"state": list(learner.state().values()), "gradients": [p.grad for p in learner.parameters.values()],
                   "room": [learner.losses.room]}
        shape = Shape("topk", LATENTS, WIDTH, BATCH, K, ranks.latents, 1, WIDTH // 2)
        found = {"peak": resident("VmHWM") - before, "dead": dead, "planned": sum(shape.memory().values()) / 2**20,
                 **{name: sum(t.nbytes for t in some if t is not None) / 2**20 for name, some in tensors.items()}}
        Path(out, f"{ranks.rank}.json").write_text(json.dumps(found))


def memory() -> None:
    """A table: megabytes of each process, by how many there are."""
    print(f"{LATENTS:,} latents x {WIDTH}, topk, batch {BATCH}, k {K}; MB of a process, the largest of them\n")
    print("| processes | parameters, moments, idle counts | gradients | pre-activations | planned, all | peak of "
          "resident memory over start | share of one process's |\n|--:|--:|--:|--:|--:|--:|--:|")
    first = 0.0
    for processes in (1, 2, 4):
        with tempfile.TemporaryDirectory() as out:
            subprocess.run([sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes), "-m",
                            "benchmarks.sae_ranks", "--worker", out], check=True,
                           env={**os.environ, "OMP_NUM_THREADS": "1"})
            found = [json.loads(path.read_text()) for path in sorted(Path(out).iterdir())]
        most = {name: max(one[name] for one in found) for name in found[0]}
        first = first or most["peak"]
        print(f"| {processes} | {most['state']:,.1f} | {most['gradients']:,.1f} | {most['room']:,.1f} | "
              f"{most['planned']:,.1f} | {most['peak']:,.1f} | {most['peak'] / first:.3f} |", flush=True)


def timed(work: Callable[[], object]) -> float:
    """The median of some runs, processor seconds."""
    work()
    seconds = []
    for _ in range(ROUNDS):
        started = time.process_time()
        work()
        seconds.append(time.process_time() - started)
    return statistics.median(seconds)


def machine(latents: int, width: int) -> Machine:
    """This machine's speed on one thread, in products and copies of these sizes."""
    x_BD, weight_LD, out_BL = rows(512, width, 1), rows(latents, width, 2), torch.empty(512, latents)
    product = timed(lambda: torch.mm(x_BD, weight_LD.T, out=out_BL))
    other_LD = rows(latents, width, 3)
    added = timed(lambda: other_LD.add_(weight_LD))
    return Machine(2 * 512 * latents * width / product, 3 * weight_LD.nbytes / added, 1.0)


def times() -> None:
    """A table: a step beside what `sae plan` says of it."""
    torch.set_num_threads(1)
    print("| latents | width | batch | k | GFLOP/s | memory GB/s | step, processor s | planned | ratio |\n"
          "|--:|--:|--:|--:|--:|--:|--:|--:|--:|")
    ratios = []
    for latents, width, batch, k in ((9216, 576, 512, 32), (9216, 576, 2048, 32), (9216, 576, 2048, 128),
                                     (32768, 576, 512, 32), (32768, 576, 2048, 32), (32768, 576, 2048, 64),
                                     (16384, 1536, 512, 32), (16384, 1536, 2048, 32), (65536, 576, 2048, 32)):
        here = machine(latents, width)
        x_BD = rows(batch, width, 5)
        learner = Learner(recipe(latents, width, k, 10**12), Scaling.of((x_BD,)), True)
        took = timed(lambda made=learner, seen=x_BD: made.step((seen,)))
        planned = sum(Shape("topk", latents, width, batch, k).seconds(here).values())
        ratios.append(took / planned)
        print(f"| {latents:,} | {width} | {batch} | {k} | {here.flops / 1e9:.1f} | {here.bandwidth / 1e9:.1f} | "
              f"{took:.3f} | {planned:.3f} | {ratios[-1]:.2f} |", flush=True)
    print(f"\nmedian ratio {statistics.median(ratios):.2f}, {min(ratios):.2f} to {max(ratios):.2f}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--worker")
    parser.add_argument("--times", action="store_true")
    asked = parser.parse_args()
    if asked.worker:
        one_of_many(asked.worker)
        return
    if not asked.times:
        memory()
    times()


if __name__ == "__main__":
    main()
