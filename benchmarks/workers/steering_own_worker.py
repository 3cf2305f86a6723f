"""patchclamp's side of `benchmarks/steering_vectors.py`, and a bare Hugging Face forward of the same texts."""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

import patchclamp as pc
from patchclamp.vectors.directions import direction
from patchclamp.vectors.states import Example, states


def ours(model: pc.Model, pairs: list[tuple[str, str]], how: str) -> dict[str, torch.Tensor]:
    sites = [f"resid.{layer}" for layer in range(model.n_layers)]
    both = states(model, [Example(text, "last") for side in zip(*pairs, strict=True) for text in side], sites)
    halves = both[:, : len(pairs)], both[:, len(pairs) :]
    return {f"{how}.{site}": direction(how, *sides).float() for site, *sides in zip(sites, *halves, strict=True)}


@torch.no_grad()
def bare(model: pc.Model, pairs: list[tuple[str, str]]) -> dict[str, torch.Tensor]:
    """All texts through the model, batched by length without padding waste, only the last position unembedded."""
    ids = sorted((list(model.encode(text).ids) for pair in pairs for text in pair), key=len)
    for first in range(0, len(ids), 64):
        some = ids[first : first + 64]
        width = max(map(len, some))
        batch = torch.tensor([[0] * (width - len(one)) + one for one in some])
        mask = torch.tensor([[0] * (width - len(one)) + [1] * len(one) for one in some])
        model.hf(input_ids=batch, attention_mask=mask, logits_to_keep=1, use_cache=False)
    return {}


def main(name: str, folder: str, out: str, pairs_file: str) -> None:
    torch.set_num_threads(2)
    model = pc.load(folder)
    pairs = [tuple(pair) for pair in json.loads(Path(pairs_file).read_text())]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in sys.stdin:
        begun = time.perf_counter()
        found = bare(model, pairs) if name == "bare" else ours(model, pairs, "pca" if name.endswith("pca") else "mean")
        seconds = time.perf_counter() - begun
        if found:
            save_file({key: value.contiguous() for key, value in found.items()}, out)
        peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        print(json.dumps({"seconds": seconds, "peak_mb": peak}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
