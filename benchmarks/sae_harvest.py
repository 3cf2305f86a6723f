"""Harvesting activations to disk beside a bare forward of the same windows, and beside two peers' buffers.

    python -m benchmarks.sae_harvest CORPUS                                  # 40,000 tokens of SmolLM2's block 15
    python -m benchmarks.sae_harvest CORPUS --model gemma-3-270m --layer 9

The bare forward is plain Hugging Face without gradients, unembedding, final norm and the blocks above. In each turn
everybody gets through as many windows, another one first each time: the bare forward and the harvest in this process,
which makes a real store (shuffled, with checksums, on disk), SAELens' ActivationsStore and dictionary_learning's
ActivationBuffer in theirs, which keep rows in memory. Planning the store, tokenizing included, is given beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel

import patchclamp as pc
from benchmarks.measure import Running
from benchmarks.run import RESULTS, processor
from benchmarks.sae_training import EMPTY, PEERS, asked, write
from patchclamp.corpus.windows import window_ids
from patchclamp.model.embedded import fetch
from patchclamp.sae.harvest import TextSpec, planned

TURN = 64
"""Windows: two batches."""
COLLECTORS = ("sae-lens", "dictionary-learning")


def truncated(folder: Path, layer: int) -> torch.nn.Module:
    """The model up to a block."""
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    model.layers = model.layers[: layer + 1]
    model.norm = torch.nn.Identity()
    return model


def timed(work: Any) -> dict[str, float]:
    """Seconds, and seconds of processor time."""
    start, used = time.perf_counter(), time.process_time()
    work()
    return {"seconds": time.perf_counter() - start, "processor": time.process_time() - used}


def measure(given: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Everybody's turns."""
    folder = fetch(given.model)
    model, bare = pc.load(given.model), truncated(folder, given.layer)
    spec = TextSpec(tokens=given.tokens, windows=given.batch, shard=TURN)
    begun = time.perf_counter()
    job = planned(model, spec, given.corpus, (f"resid.{given.layer}",), scratch / "store", "float32")
    planning = time.perf_counter() - begun
    windows = [list(map(int, ids)) for ids in window_ids(job.folder, range(job.manifest.windows))]
    (scratch / "windows.json").write_text(json.dumps(windows))
    turns = len(windows) // TURN

    @torch.no_grad()
    def forward(turn: int) -> None:
        for first in range(turn * TURN, (turn + 1) * TURN, given.batch):
            bare(input_ids=torch.tensor(windows[first : first + given.batch]), use_cache=False)

    with ExitStack() as stack:
        work: dict[str, Any] = {"bare": lambda turn: timed(lambda: forward(turn)) | {"rows": TURN * spec.length},
                                "patchclamp": lambda turn: timed(lambda: job.do(model, turn)) | {
                                    "rows": TURN * spec.length}}
        for name in COLLECTORS if not given.alone else ():
            log = scratch / f"{name}.log"
            worker = Running(PEERS[name], "sae_harvest_worker.py", log, name)
            stack.callback(worker.close)
            asked(worker, {"folder": str(folder), "windows": str(scratch / "windows.json"), "layer": given.layer,
                           "width": bare.config.hidden_size, "batch": given.batch, "threads": given.threads})
            work[name] = lambda turn, worker=worker: asked(worker, {"count": TURN})
        found: dict[str, list[dict[str, float]]] = {name: [] for name in work}
        names = list(work)
        forward(0)
        for turn in range(turns):
            first = turn % len(names)
            for name in names[first:] + names[:first]:
                found[name].append(work[name](turn))
                last = found[name][-1]
                print(f"  {name:20} {last['rows'] / last['seconds']:8,.0f} tokens/s, "
                      f"{last['rows'] / last['processor']:8,.0f} a second of processor time", flush=True)
    return {"site": f"resid.{given.layer}", "windows": turns * TURN, "length": spec.length, "planning": planning,
            "turns": found, "processor": processor(), "threads": given.threads, "load after": os.getloadavg()[0],
            "tokens/s": rates(found, "seconds"), "tokens/s of processor time": rates(found, "processor")}


def rates(found: dict[str, list[dict[str, float]]], kind: str) -> dict[str, float]:
    """Median tokens a second. The first turn warms and does not count where there are more."""
    return {name: statistics.median(turn["rows"] / turn[kind] for turn in turns[1:] or turns)
            for name, turns in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpus")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--layer", type=int, default=15)
    parser.add_argument("--tokens", type=int, default=49_152)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--alone", action="store_true", help="without the peers")
    parser.add_argument("--results", type=Path, default=RESULTS / "sae_training.json")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as scratch:
        found = measure(given, Path(scratch))
    results = json.loads(given.results.read_text()) if given.results.exists() else dict(EMPTY)
    results["harvest"][given.model] = found
    write(given.results, results)
    print(json.dumps({key: found[key] for key in ("tokens/s", "tokens/s of processor time", "planning")}, indent=1))


if __name__ == "__main__":
    main()
