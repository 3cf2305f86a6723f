"""What an index of neurons costs over the bare forward, and whether it is what brute force finds.

    python -m benchmarks.neuron_index time CORPUS --folder INDEX    # a whole index, each batch beside the bare forward
    python -m benchmarks.neuron_index check CORPUS --folder INDEX   # a sample of its neurons against brute force
    python -m benchmarks.neuron_index memory CORPUS --tokens 40000  # peak memory of either, in processes of their own

`time` makes a real index, planning, shards' files and merging included. Before or after every batch, in turns, the same
windows go through the model's base in plain Hugging Face (no unembedding, no gradients); that time is taken off the
index's. Both are given in seconds and in seconds of processor time, which other processes on the machine disturb less
(with one thread; two that wait for each other burn time). `check` runs all windows once more in plain Hugging Face,
with hooks on the down projections that keep everything of the sampled neurons, and compares with what the index says.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import patchclamp as pc
from benchmarks.run import processor
from patchclamp.corpus.indexing import make_index
from patchclamp.corpus.sketch import BINS, MAGNITUDES, STEPS
from patchclamp.corpus.table import Index, IndexManifest
from patchclamp.corpus.windows import plan, window_ids
from patchclamp.evidence.method import Silent
from patchclamp.neurons.index import IndexSpec, settings_of


def now() -> np.ndarray:
    """Seconds, and seconds of processor time."""
    return np.array([time.perf_counter(), time.process_time()])


def bare(model: pc.Model, windows: Any) -> np.ndarray:
    """What the bare forward takes."""
    ids_WT = torch.tensor(windows)
    start = now()
    with torch.no_grad():
        model.hf.base_model(input_ids=ids_WT, use_cache=False)
    return now() - start


def measure_time(model: pc.Model, given: argparse.Namespace) -> dict[str, Any]:
    """An index beside the bare forward."""
    spec = IndexSpec(corpus=given.corpus, save=str(given.folder), tokens=given.tokens)
    scan = model.scan
    forward: list[np.ndarray] = []
    scans: list[np.ndarray] = []

    def beside(windows: Any, sites: Any, consume: Any) -> None:
        is_first = len(forward) % 2 == 0
        if is_first:
            forward.append(bare(model, windows))
        start = now()
        scan(windows, sites, consume)
        scans.append(now() - start)
        if not is_first:
            forward.append(bare(model, windows))
        print(len(scans), "bare", forward[-1], "scan", scans[-1], file=sys.stderr, flush=True)

    bare(model, window_of(model, spec, given.folder))  # warm
    model.scan = beside  # type: ignore[method-assign]
    start = now()
    found = make_index(model, settings_of(model, spec), given.folder, Silent())
    whole = now() - start - sum(forward)
    tokens = found.manifest.windows * found.manifest.length
    return {"tokens": tokens, "index MB": (given.folder / "index.parquet").stat().st_size / 2**20} | {
        kind: {
            "bare": total, "index": whole[k], "scans": sum(scans)[k], "bare tokens/s": tokens / total,
            "index tokens/s": tokens / whole[k], "ratio": total / whole[k],
            "ratio of the scans alone": total / sum(scans)[k],
            "ratio of a batch, median": float(np.median([f[k] / s[k] for f, s in zip(forward, scans, strict=True)])),
        }
        for k, kind in enumerate(("seconds", "processor seconds")) for total in [sum(forward)[k]]
    }


def window_of(model: pc.Model, spec: IndexSpec, folder: Path) -> Any:
    """The first windows of an index, planned now."""
    manifest = plan(model, settings_of(model, spec), folder, IndexManifest)
    return window_ids(folder, range(min(manifest.batch, manifest.windows)))


def check(model: pc.Model, given: argparse.Namespace) -> dict[str, Any]:
    """A sample of neurons of every layer against everything they did."""
    found = Index(given.folder)
    manifest = found.manifest
    units = sorted(random.Random(0).sample(range(model.n_neurons(0)), given.neurons))
    kept: dict[int, list[np.ndarray]] = {layer: [] for layer in manifest.layers}

    def keep(layer: int, value: torch.Tensor) -> None:
        kept[layer].append(value[:, 1:, units].numpy())

    for layer in manifest.layers:
        model.anatomy.blocks[layer].mlp.down_proj.register_forward_pre_hook(
            lambda _, args, layer=layer: keep(layer, args[0]))
    for first in range(0, manifest.windows, manifest.batch):
        numbers = range(first, min(first + manifest.batch, manifest.windows))
        bare(model, found.windows(list(numbers)))
    wrong: dict[str, int] = {"top": 0, "bottom": 0, "active": 0, "histogram": 0}
    apart = {"value": 0.0, "mean/sd": 0.0, "sd": 0.0}
    for layer in manifest.layers:
        values_WTF = np.concatenate(kept[layer])
        for column, unit in enumerate(found.units(layer, units)):
            values_WT = values_WTF[..., column]
            for name, sign, peaks in (("top", 1, unit.top), ("bottom", -1, unit.bottom)):
                best_W = (sign * values_WT).max(1)
                order = np.argsort(-best_W, kind="stable")[: manifest.top]
                places = list(zip(order.tolist(), ((sign * values_WT[order]).argmax(1) + 1).tolist(), strict=True))
                wrong[name] += places != [(p.window, p.position) for p in peaks]
                difference = np.abs(sign * best_W[order] - [p.value for p in peaks])
                apart["value"] = max(apart["value"], float(difference.max()))
            wrong["active"] += unit.active != float((values_WT > 0).mean())
            wrong["histogram"] += histogram(values_WT) != unit.histogram
            sd = float(values_WT.std(dtype=np.float64))
            apart["mean/sd"] = max(apart["mean/sd"], abs(float(values_WT.mean(dtype=np.float64)) - unit.mean) / sd)
            apart["sd"] = max(apart["sd"], abs(unit.sd / sd - 1))
    return {"neurons": len(units) * len(manifest.layers), "tokens": manifest.windows * manifest.length,
            "neurons that differ": wrong, "largest difference": apart}


def histogram(values: np.ndarray) -> list[int]:
    """By search among the edges; one of them belongs to the bin farther from zero, as numpy's do only above it."""
    steps = np.searchsorted(MAGNITUDES, np.abs(values), side="right") * np.where(values < 0, -1, 1)
    return np.bincount((steps + STEPS).reshape(-1), minlength=BINS).tolist()


def measure_memory(given: argparse.Namespace) -> dict[str, Any]:
    """Peak memory, MB, of loading the model, of the bare forward and of the index."""
    peaks = {}
    for what in ("load", "bare", "index"):
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "benchmarks.neuron_index", "peak", given.corpus, "--tokens",
                       str(given.tokens), "--folder", folder, "--what", what, "--model", given.model, "--threads",
                       str(given.threads)]
            peaks[what] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)["peak"]
    return {"peak MB": peaks, "index over bare": peaks["index"] - peaks["bare"], "tokens": given.tokens}


def peak(model: pc.Model, given: argparse.Namespace) -> dict[str, Any]:
    """What this process had at most."""
    spec = IndexSpec(corpus=given.corpus, save=str(given.folder), tokens=given.tokens)
    if given.what == "bare":
        manifest = plan(model, settings_of(model, spec), given.folder, IndexManifest)
        for first in range(0, manifest.windows, manifest.batch):
            bare(model, window_ids(given.folder, range(first, min(first + manifest.batch, manifest.windows))))
    elif given.what == "index":
        make_index(model, settings_of(model, spec), given.folder, Silent())
    return {"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what_to_do", choices=["time", "check", "memory", "peak"])
    parser.add_argument("corpus")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--tokens", type=int, default=200_000)
    parser.add_argument("--neurons", type=int, default=32, help="of each layer, for check")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--what", choices=["load", "bare", "index"])
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.what_to_do == "memory":
        found = measure_memory(given)
    else:
        work = {"time": measure_time, "check": check, "peak": peak}[given.what_to_do]
        found = work(pc.load(given.model), given)
    if given.what_to_do != "peak":
        found |= {"processor": processor(), "threads": given.threads, "load after": os.getloadavg()}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
