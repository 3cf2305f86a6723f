"""Scores of a circuit's edges: patchclamp beside circuitkit, whose attribution is the EAP-IG authors', in turns.

    python -m benchmarks.circuits                               # about half an hour; idle machine
    python -m benchmarks.circuits --models gemma-3-270m --exact 0

Eight pairs of prompts of one length, keys and values copied for every head (`grouped=False`), as the peer does it.
Times and peak memory of attribution patching (EAP) and of five steps of integrated gradients (EAP-IG), everything from
loaded models to scores; their correlation with each other, and with exact patching of random edges and of those that
either of both ranks first. Then every edge of the grouped graph cut exactly, timed beside plain passes of the same
pairs. At the end CMD: the circuits of both rankings, run exactly, on held-out prompts.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import pearsonr, spearmanr

import patchclamp as pc
from benchmarks.envs import Peer
from benchmarks.measure import Running
from benchmarks.run import RESULTS, processor
from patchclamp.circuits.evaluate import areas
from patchclamp.circuits.graph import Graph
from patchclamp.circuits.material import ReadyPair, TaskSpec, material, runs_of
from patchclamp.circuits.search import greedy, ranked_by_pruning
from patchclamp.model.embedded import fetch

KIT = Peer("circuitkit", "circuitkit==0.2.0", "circuitkit_worker.py", ("transformers==5.23.0",))
OURS, THEIRS = "patchclamp", "circuitkit"
CALLED = {"gemma-3-270m": "google/gemma-3-270m"}
"""What TransformerLens calls a model; else its folder."""
PAIRS, STEPS, PASSES = 8, (0, 5), 20
FIRST, RANDOM = 100, 300
"""Edges cut exactly to compare with."""
FRACTIONS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


def alike(model: Any, spec: TaskSpec) -> tuple[list[ReadyPair], list[ReadyPair]]:
    """Pairs to look on whose prompts have one length, and held-out ones."""
    found = material(model, spec)
    lengths = [len(pair.clean) for pair in found.search]
    most = max(set(lengths), key=lengths.count)
    return [pair for pair in found.search if len(pair.clean) == most][:PAIRS], found.heldout


def measure(name: str, rounds: int, threads: int, exact: bool) -> dict[str, Any]:
    model = pc.load(name)
    looked, heldout = alike(model, TaskSpec(task="ioi", prompts=4 * PAIRS))
    setup = {"folder": str(fetch(name)), "called": CALLED.get(name, str(fetch(name))), "threads": threads, "pairs": [
        {"clean": pair.clean, "corrupted": pair.corrupted, "choice": pair.choice,
         "text": {"clean": pair.pair.clean, "corrupted": pair.pair.corrupted}} for pair in looked]}
    found: dict[str, Any] = {"model": name, "tokens": len(looked[0].clean), "pairs": len(looked), "threads": threads,
                             "processor": processor(), "times": {}, "failures": {}}
    scores: dict[str, dict[int, torch.Tensor]] = {OURS: {}, THEIRS: {}}
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        workers = {OURS: Running(None, "circuits_own_worker.py", scratch / "own.log"),
                   THEIRS: Running(KIT, KIT.worker, scratch / "kit.log")}
        for who, worker in workers.items():
            stack.callback(worker.close)
            reply = worker.ask({"setup": setup})
            if "error" in reply:
                found["failures"][who] = reply["error"]
            else:
                found[f"versions of {who}"] = reply["versions"]
        for turn in range(rounds):
            for who in [*workers][:: 1 if turn % 2 else -1]:
                for steps in STEPS if who not in found["failures"] else ():
                    path = scratch / f"{who} {steps}.npy"
                    reply = workers[who].ask({"way": "attribution", "given": [steps], "check": str(path)})
                    if "error" in reply:
                        found["failures"][who] = reply["error"]
                        break
                    found["times"].setdefault(f"{who} {steps}", []).append(reply)
                    scores[who][steps] = torch.from_numpy(np.load(path)).double()
                    print(f"  {name} {who} {steps} steps: {reply['seconds']:.2f} s, {reply['peak']:.0f} MB", flush=True)
        if exact:
            found["exact"] = timed_exactly(workers[OURS], Graph.of(model.anatomy))
    found["load after"] = os.getloadavg()[0]
    wide = Graph.of(model.anatomy, grouped=False)
    found["agreement"] = agreement(runs_of(model, wide, looked), wide, scores)
    found["cmd"] = distances(model, looked, heldout, scores)
    return found


def timed_exactly(worker: Running, graph: Graph) -> dict[str, Any]:
    """All edges cut one by one, and plain passes."""
    passes = worker.ask({"way": "passes", "given": [PASSES]})
    whole = worker.ask({"way": "exact", "given": [1]})
    pair = passes["seconds"] / PASSES
    print(f"  all {graph.n_edges} edges exactly: {whole}, a pass of all pairs {pair:.3f} s", flush=True)
    return {"edges": graph.n_edges, "seconds": whole["seconds"], "peak": whole["peak"], "passes": pair,
            "share": whole["seconds"] / graph.n_edges / pair}


def agreement(runs: Any, graph: Graph, scores: dict[str, dict[int, torch.Tensor]]) -> dict[str, Any]:
    """Correlation of scores with each other over all edges, and with exact patching over some."""
    every, found = graph.edges.nonzero(), {}
    generator = torch.Generator().manual_seed(0)
    for steps in STEPS:
        there = {who: of[steps][graph.edges] for who, of in scores.items() if steps in of}
        if len(there) == 2:
            found[f"{steps} each other"] = float(pearsonr(there[OURS], there[THEIRS])[0])
        firsts = [one.abs().argsort(descending=True)[:FIRST] for one in there.values()]
        some = torch.cat([*firsts, torch.randperm(len(every), generator=generator)[:RANDOM]]).unique()
        exact = (runs.some_edges([(int(d), int(s)) for d, s in every[some]]) - runs.clean_B).sum(-1).double()
        for who, one in there.items():
            sign = float(torch.sign((one[some] * exact).sum()))  # circuitkit scores with the other sign
            found[f"{steps} {who}"] = {"pearson": float(pearsonr(sign * one[some], exact)[0]),
                                       "spearman": float(spearmanr(sign * one[some], exact)[0])}
    return found


def distances(
    model: Any, looked: list[ReadyPair], heldout: list[ReadyPair], scores: dict[str, dict[int, torch.Tensor]]
) -> dict[str, Any]:
    """CMD and CPR of rankings at equal numbers of edges, on held-out prompts."""
    graph = Graph.of(model.anatomy, grouped=False)
    looking, testing = runs_of(model, graph, looked), runs_of(model, graph, heldout)
    ranks = {f"{who} EAP-IG": of[5] for who, of in scores.items() if 5 in of}
    ranks["patchclamp pruned"] = ranked_by_pruning(looking, scores[OURS][5], 0.9)
    sizes = [max(1, round(fraction * graph.n_edges)) for fraction in FRACTIONS]
    found = {}
    for name, rank in ranks.items():
        curve = testing.faithfulness(greedy(graph, rank, sizes))
        cpr, cmd = areas(FRACTIONS, curve)
        found[name] = {"cpr": cpr, "cmd": cmd, "curve": dict(zip(sizes, curve, strict=True))}
        print(f"  {name}: CMD {cmd:.4f}, CPR {cpr:.4f}, {[round(f, 3) for f in curve]}", flush=True)
    return found


def table(result: dict[str, Any]) -> str:
    """One model's numbers as Markdown."""
    lines = [f"{result['model']}: {result['pairs']} pairs of {result['tokens']} tokens, {result['threads']} threads, "
             f"{result['processor']}, load {result['load after']:.1f}", "",
             "| | seconds | × | peak MB | × | Pearson with exact | Spearman |", "|---|--:|--:|--:|--:|--:|--:|"]
    for steps in STEPS:
        own = result["times"][f"{OURS} {steps}"]
        base = statistics.median(one["seconds"] for one in own), max(one["peak"] for one in own)
        for who in (OURS, THEIRS):
            found = result["times"].get(f"{who} {steps}")
            label = f"{who} EAP{f'-IG({steps})' if steps else ''}"
            if not found:
                lines.append(f"| {label} | {result['failures'].get(who)} | | | | | |")
                continue
            seconds, peak = statistics.median(one["seconds"] for one in found), max(one["peak"] for one in found)
            near = result["agreement"][f"{steps} {who}"]
            lines.append(f"| {label} | {seconds:.2f} | {seconds / base[0]:.1f} | {peak:.0f} | {peak / base[1]:.1f} | "
                         f"{near['pearson']:.4f} | {near['spearman']:.4f} |")
    each = {steps: result["agreement"].get(f"{steps} each other") for steps in STEPS}
    lines += ["", f"Pearson with each other, all edges: {each}."]
    if "exact" in result:
        one = result["exact"]
        lines.append(f"All {one['edges']} edges exactly: {one['seconds'] / 60:.1f} minutes, {one['peak']:.0f} MB, an "
                     f"edge {one['share']:.3f} of a plain pass of all pairs ({one['passes']:.3f} s).")
    lines += [f"{name}: CMD {one['cmd']:.4f}, CPR {one['cpr']:.4f}." for name, one in result["cmd"].items()]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="*", default=["gemma-3-270m", "smollm2-135m-instruct"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--exact", type=int, default=1, help="1: cut every edge of Gemma's graph exactly, 0: do not")
    parser.add_argument("--results", type=Path, default=RESULTS / "circuits.json")
    given = parser.parse_args()
    results = [measure(name, given.rounds, given.threads, bool(given.exact) and name.startswith("gemma"))
               for name in given.models]
    given.results.parent.mkdir(parents=True, exist_ok=True)
    given.results.write_text(json.dumps(results, indent=1) + "\n")
    print("\n\n".join(map(table, results)))


if __name__ == "__main__":
    main()
