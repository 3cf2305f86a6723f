"""Sparse autoencoders trained by patchclamp, SAELens, dictionary_learning and sparsify on the same rows in one order.

    python -m benchmarks.sae_training lay smollm2-135m-instruct STORE    # once a model: rows in training order, 2.9 GB
    python -m benchmarks.sae_training train                              # every run that is not in the results yet
    python -m benchmarks.sae_training time                               # all side by side, in turns; idle machine
    python -m benchmarks.sae_training write docs/benchmarks.md

A store that `sae harvest` made is laid out once: the shards trained on in the order of `sae train`'s batches, the last
shards, 100,000 rows at least, as held-out rows. Every worker (`workers/`, each in its library's environment) is fed
these rows, as harvested, by its own trainer; a run is one pass. The FVU is the same function for all. After each run
the results are written, so that an interrupted bench goes on where it was.

`time` starts all workers anew and lets them take turns of a few steps each.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import sae_report
from benchmarks.envs import Peer
from benchmarks.measure import Running
from benchmarks.run import RESULTS, processor
from patchclamp.sae.batches import Batches
from patchclamp.sae.store import ActivationStore

OURS = "patchclamp"
PEERS = {
    "sparsify": Peer("sparsify", "eai-sparsify==1.3.3", "sparsify_worker.py"),
    "dictionary-learning": Peer("dictionary-learning", "dictionary-learning==0.1.0", "dictionary_learning_worker.py",
                                ("transformers==4.57.6",), without=("torchvision",)),
    "sae-lens": Peer("sae-lens", "sae-lens==6.54.12", "sae_lens_worker.py"),
}
MODELS = ("smollm2-135m-instruct", "gemma-3-270m")
HELD_OUT = 100_000
K, EXPANSION, BATCH = 32, 16, 2048
CURVE = (16, 32, 64, 128, 256)
"""Steps after which the FVU is looked at on `GLANCE` held-out rows; at the end on all."""
GLANCE = 20_480
TURN, TURNS, WARM = 5, 6, 3
EMPTY: dict[str, Any] = {"runs": {}, "parts": {}, "times": {}, "harvest": {}}
"""parts: runs as far as they came, for the curious; they begin anew."""
OUTLIER = 10.0
"""Times the median norm: rows above it are left out of the FVU of ordinary rows."""


@dataclass(frozen=True)
class Case:
    """One run."""

    model: str
    architecture: str
    who: str
    seed: int = 0
    rate: float = 1.0
    """Times the library's own learning rate."""

    def __str__(self) -> str:
        rate = f" rate×{self.rate:g}" if self.rate != 1 else ""
        return f"{self.model} {self.architecture} {self.who} seed {self.seed}{rate}"


def cases(rates: tuple[float, ...] = ()) -> Iterator[Case]:
    """All runs, the most telling first."""
    everybody = (OURS, *PEERS)
    first = MODELS[0]
    yield from (Case(first, "topk", who) for who in everybody)
    yield from (Case(first, "topk", who, seed) for seed in (1, 2) for who in everybody)
    yield from (Case(first, "topk", who, 0, rate) for rate in rates for who in PEERS)
    for model, architecture in ((first, "batchtopk"), (MODELS[1], "topk"), (MODELS[1], "batchtopk")):
        yield from (Case(model, architecture, who) for who in everybody if who != "sparsify" or architecture == "topk")


class Data:
    """A store's rows in training order, and the held-out ones."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def lay(self, store: ActivationStore) -> None:
        """Write the rows down."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (site,) = store.manifest.sites
        held, rows = [], 0
        while rows < HELD_OUT:
            held.insert(0, len(store.counts) - 1 - len(held))
            rows += store.counts[held[0]]
        batches = Batches({shard: store.counts[shard] for shard in range(held[0])}, BATCH, 4, 0)
        with (self.folder / "train.f32").open("wb") as file:
            for (x_BD,) in batches.run(store.reader([site]), 0, batches.a_pass):
                x_BD.numpy().tofile(file)
        with (self.folder / "held_out.f32").open("wb") as file:
            norms = []
            for shard in held:
                x_ND = store.rows(shard, site)
                norms.append(x_ND.norm(dim=1).numpy())
                x_ND.numpy().tofile(file)
        median = float(np.median(np.concatenate(norms)))
        (self.folder / "about.json").write_text(json.dumps({
            "site": site, "width": x_ND.shape[1], "steps": batches.a_pass, "held out": rows,
            "outlier": OUTLIER * median, "store": store.manifest.identity}))

    @property
    def about(self) -> dict[str, Any]:
        """What was laid out."""
        return json.loads((self.folder / "about.json").read_text())

    def setup(self, case: Case, threads: int) -> dict[str, Any]:
        """What a worker is told."""
        about = self.about
        return {"train": str(self.folder / "train.f32"), "held_out": str(self.folder / "held_out.f32"),
                "width": about["width"], "latents": EXPANSION * about["width"], "k": K, "batch": BATCH,
                "steps": about["steps"], "architecture": case.architecture, "seed": case.seed, "threads": threads,
                "rate": case.rate, "outlier": about["outlier"]}


@contextmanager
def started(case: Case, data: Data, threads: int, logs: Path) -> Iterator[Running]:
    """A worker that has its trainer. RuntimeError if it has none."""
    peer = PEERS.get(case.who)
    worker = Running(peer, peer.worker if peer else "sae_own_worker.py", logs / f"{case}.log")
    try:
        worker.about = asked(worker, {"setup": data.setup(case, threads)})  # type: ignore[attr-defined]
        yield worker
    finally:
        worker.close()


def asked(worker: Running, request: dict[str, Any]) -> dict[str, Any]:
    """A worker's answer. RuntimeError for an error."""
    reply = worker.ask(request)
    if "error" in reply:
        raise RuntimeError(f"{worker.log.name}: {reply['error']}")
    return reply


def train(case: Case, data: Data, threads: int, logs: Path) -> Iterator[dict[str, Any]]:
    """One pass: the curve, times and memory, as far as they are known at each point of the curve."""
    steps, held_out = data.about["steps"], data.about["held out"]
    found: dict[str, Any] = {"case": asdict(case), "threads": threads, "steps": steps, "seconds": [], "processor": [],
                             "peak": 0.0, "curve": [], "load before": os.getloadavg()[0]}
    with started(case, data, threads, logs) as worker:
        found |= worker.about  # type: ignore[attr-defined]
        done = 0
        for stop in (*(step for step in CURVE if step < steps), steps):
            reply = asked(worker, {"steps": stop - done})
            for name in ("seconds", "processor"):
                found[name] += [round(value, 4) for value in reply[name]]
            found["peak"] = max(found["peak"], reply["peak"])
            seen = asked(worker, {"evaluate": held_out if stop == steps else GLANCE})
            found["curve"].append({"step": stop, "tokens": stop * BATCH, **seen})
            print(f"  {case} {stop:4}: FVU {seen['own']['fvu']:.4f}, of ordinary rows {seen['own']['ordinary']:.4f}, "
                  f"median step {np.median(found['seconds']):.3f} s", flush=True)
            done = stop
            yield found | {"load after": os.getloadavg()[0]}


def side_by_side(case: Case, data: Data, threads: int, logs: Path) -> dict[str, Any]:
    """Everybody's steps in turns, of a case of ours."""
    with ExitStack() as stack:
        workers = {}
        for who in (OURS, *PEERS):
            if who != "sparsify" or case.architecture == "topk":
                workers[who] = stack.enter_context(started(replace(case, who=who), data, threads, logs))
                asked(workers[who], {"steps": WARM})
        found: dict[str, Any] = {who: {"seconds": [], "processor": [], "peak": 0.0} for who in workers}
        names = list(workers)
        for turn in range(TURNS):
            first = turn % len(names)
            for who in names[first:] + names[:first]:
                reply = asked(workers[who], {"steps": TURN})
                for name in ("seconds", "processor"):
                    found[who][name] += reply[name]
                found[who]["peak"] = max(found[who]["peak"], reply["peak"])
                print(f"  {case.model} {case.architecture} {who:20} {np.median(reply['seconds']):.3f} s, load "
                      f"{os.getloadavg()[0]:.1f}", flush=True)
    return {"model": case.model, "architecture": case.architecture, "threads": threads, "processor": processor(),
            "load after": os.getloadavg()[0], "found": found}


def write(path: Path, results: dict[str, Any]) -> None:
    """The results, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".part")
    beside.write_text(json.dumps(results, indent=1) + "\n")
    beside.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what_to_do", choices=["lay", "train", "time", "write"])
    parser.add_argument("given", nargs="*", help="lay: MODEL STORE; write: the page")
    parser.add_argument("--data", type=Path, default=RESULTS / "sae_rows", help="folder for the rows in order")
    parser.add_argument("--results", type=Path, default=RESULTS / "sae_training.json")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", help="train, time: runs whose name has this in it, e.g. 'smollm2' or 'sparsify'")
    parser.add_argument("--rates", type=float, nargs="*", default=[], help="train: peers at so many times their rate")
    given = parser.parse_args()
    results = json.loads(given.results.read_text()) if given.results.exists() else dict(EMPTY)
    if given.what_to_do == "lay":
        model, store = given.given
        Data(given.data / model).lay(ActivationStore(store))
    elif given.what_to_do == "write":
        sae_report.write(Path(given.given[0]), results)
    with tempfile.TemporaryDirectory() as logs:
        if given.what_to_do == "train":
            for case in cases(tuple(given.rates)):
                if str(case) not in results["runs"] and (given.only or "") in str(case):
                    for found in train(case, Data(given.data / case.model), given.threads, Path(logs)):
                        is_done = found["curve"][-1]["step"] == found["steps"]
                        results = json.loads(given.results.read_text()) if given.results.exists() else results
                        results["runs" if is_done else "parts"][str(case)] = found
                        if is_done:
                            results["parts"].pop(str(case), None)
                        write(given.results, results)
        elif given.what_to_do == "time":
            for case in cases():
                name = f"{case.model} {case.architecture}"
                if case.who == OURS and name not in results["times"] and (given.only or "") in name:
                    data = Data(given.data / case.model)
                    results["times"][name] = side_by_side(case, data, given.threads, Path(logs))
                    write(given.results, results)


if __name__ == "__main__":
    main()
