"""Learners trained by several processes: what one of them runs, and the same alone.

    torchrun --nproc-per-node 4 tests/ranked.py FOLDER 1,2      data shares to try
    torchrun --nproc-per-node 2 tests/ranked.py silent -
"""

import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from patchclamp.sae.checkpoints import Checkpoints
from patchclamp.sae.learner import ALONE, Learner
from patchclamp.sae.parameters import Recipe, Scaling
from patchclamp.sae.ranks import CPU, Ranks

D, OUT, L, B, STEPS = 20, 12, 96, 64, 20
CASES = {
    "topk": {}, "batchtopk": {}, "relu": {}, "jumprelu": {}, "gated": {},
    # with seed 0 Adam divides a gradient of almost nothing by itself: one process alone then differs by 1e-4 from
    # itself with the rows of its batches in another order
    "matryoshka": {"seed": 1},
    "topk, more asked for than a share has": {"k": 30}, "topk, gradients clipped": {"clip": 0.05},
    "topk, dead latents": {"dead_after": 3 * B, "aux_k": 8, "k": 2},
    "relu, folded": {"unit_norm": False}, "relu, few active": {"l1": 40.0},
    "topk, transcoder with a skip": {"skip": True},
}
HANDED_ON = ("gated", "topk, transcoder with a skip")


def recipe(case):
    kind = case.split(",")[0]
    return Recipe(**{
        "architecture": kind, "latents": L, "k": 6, "l1": 0.7, "learning_rate": 3e-3, "dead_after": 10**9, "aux_k": 0,
        "clip": 1.0, "bandwidth": 0.3, "prefixes": (16, 40, L), "skip": False, "unit_norm": True, "seed": 0,
        **CASES[case]})


def rows(n, seed, width=D):
    torch.manual_seed(11)
    basis_LD = torch.randn(L, width)
    torch.manual_seed(seed)
    return (torch.rand(n, L) < 0.05).float() * torch.rand(n, L) * 9 @ basis_LD + 40


def learned(case, ranks=ALONE, steps=STEPS):
    """A learner after some steps, and what the last of them saw."""
    tied = "transcoder" not in case

    def pair(n, seed):
        return (rows(n, seed),) if tied else (rows(n, seed), rows(n, seed + 1000, OUT))

    made = Learner(recipe(case), Scaling.of(pair(500, 0)), tied, ranks)
    own = B // ranks.data
    part = slice(ranks.datum * own, (ranks.datum + 1) * own)
    seen = [made.step(tuple(values[part] for values in pair(B, step))) for step in range(1, steps + 1)]
    return made, seen[-1] if seen else None


def results(made, seen):
    """All that can be compared, as tensors; None where only another process has them."""
    whole = made.whole()
    if whole is None:
        return None
    return {**{name: tensor.clone() for name, tensor in whole.items()},
            "seen": torch.tensor([seen.fvu, seen.l0, seen.loss, seen.dead]), "least": made.buffers["threshold"].clone()}


def passed_on(folder, ranks):
    """Two processes write checkpoints of learners; four read them and write them again."""
    for case in HANDED_ON:
        checkpoints = Checkpoints(Path(folder) / f"from {ranks.latents} {case}", ranks)
        if ranks.latents == 2:
            made = learned(case, ranks)[0]
        else:
            made = learned(case, ranks, steps=0)[0]
            earlier = Checkpoints(Path(folder) / f"from 2 {case}", ranks)
            earlier.read(earlier.at(earlier.newest()), made.state())
        checkpoints.save(STEPS, made.state(), {"step": STEPS})


def silent():
    """One of two processes does not answer."""
    with Ranks.joined(1, CPU, patience=2) as ranks:
        if not ranks.is_first:
            time.sleep(600)
        ranks.over_latents(torch.ones(1))


def main(folder, shares):
    if folder == "silent":
        return silent()
    dist.init_process_group("gloo")
    for data in map(int, shares.split(",")):
        with Ranks.joined(data, CPU, 60) as ranks:
            for case in CASES:
                found = results(*learned(case, ranks))
                if found:
                    save_file(found, Path(folder) / f"{ranks.latents}x{data} {case}.safetensors")
            if data == 1:
                passed_on(folder, ranks)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
