"""The Jacobian of one relation prompt: patchclamp, linear-relational 0.6.2 and torch's own, in turns, same numbers.

    python -m benchmarks.relations                          # about ten minutes a model; idle machine
    python -m benchmarks.relations --models gemma-3-270m --rounds 1

The prompt is a country asked for after seven examples. Of one block in the middle every contender's Jacobian is timed;
of all blocks patchclamp's one sweep beside their runs one after another, which is their time at the middle block times
the blocks. Processor time stands beside wall time, and the peak of resident memory over what the process held.
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

import patchclamp as pc
from benchmarks.envs import Peer
from benchmarks.measure import Running
from benchmarks.run import RESULTS, processor
from patchclamp.forward.answer import ask
from patchclamp.model.embedded import fetch
from patchclamp.relations.prompts import question
from patchclamp.tasks.read import read_relation

LINEAR = Peer("linear-relational", "linear-relational==0.6.2", "relations_linear_worker.py",
              ("transformers==4.46.3", "numpy<2.3"))
"""With transformers 4.57 it runs and differs by more than the largest entry (1.4 times it on SmolLM2); 4.46 does not
know Gemma 3."""
WAYS = {"patchclamp": None, "torch": None, "torch, vectorized": None, "linear-relational": LINEAR}
EXAMPLES = 7
SLOW, SLOW_ROUNDS = "torch", 1
"""Row by row, minutes a Jacobian: measured once."""


def setup_of(name: str, threads: int) -> tuple[dict[str, Any], int]:
    """What workers are told, and the number of layers: the embeddings and all blocks but the last."""
    model = pc.load(name)
    relation = read_relation("example:relations/country-capital")
    sample, *others = relation.samples
    template = relation.prompt_templates[0]
    asked = question(model, template, sample.subject, others[:EXAMPLES])
    ask(model, f"{asked.text} ", sample.object)
    return {"folder": str(fetch(name)), "text": asked.text, "answer": f" {sample.object}", "subject": sample.subject,
            "ids": list(asked.ids), "position": asked.position, "threads": threads}, model.n_layers


def measure(name: str, rounds: int, threads: int) -> dict[str, Any]:
    """Every way at the middle block, in turns; patchclamp's sweep of all blocks."""
    setup, n_layers = setup_of(name, threads)
    middle = n_layers // 2
    found: dict[str, Any] = {way: {"seconds": [], "processor": [], "peak": []} for way in WAYS}
    found["all blocks"] = {"seconds": [], "processor": [], "peak": []}
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        workers = {}
        for way, peer in WAYS.items():
            script = peer.worker if peer else "relations_own_worker.py"
            workers[way] = Running(peer, script, scratch / f"{way}.log")
            stack.callback(workers[way].close)
            reply = workers[way].ask({"setup": setup})
            found[way]["failure"] = reply.get("error")
        for turn in range(rounds):
            for way in WAYS:
                if found[way]["failure"] or (way == SLOW and turn >= SLOW_ROUNDS):
                    continue
                reply = workers[way].ask({"way": way, "given": [middle], "check": str(scratch / f"{way}.npy")})
                keep(found[way], reply, f"{name} {way} block {middle}")
            reply = workers["patchclamp"].ask({"way": "patchclamp", "given": list(range(-1, n_layers - 1))})
            keep(found["all blocks"], reply, f"{name} patchclamp all {n_layers} layers")
        own = np.load(scratch / "patchclamp.npy")
        for way in WAYS:
            path = scratch / f"{way}.npy"
            if path.exists():
                found[way]["error"] = float(np.abs(np.load(path) - own).max() / np.abs(own).max())
    return {"model": name, "tokens": len(setup["ids"]), "suffix": len(setup["ids"]) - setup["position"],
            "layers": n_layers, "middle": middle, "threads": threads, "processor": processor(),
            "load after": os.getloadavg()[0], "found": found}


def keep(into: dict[str, Any], reply: dict[str, Any], said: str) -> None:
    """A reply's numbers, or why there are none."""
    if "error" in reply:
        into["failure"] = reply["error"]
        print(f"  {said}: {reply['error']}", flush=True)
        return
    for name in ("seconds", "processor", "peak"):
        into[name].append(reply[name])
    print(f"  {said}: {reply['seconds']:.2f} s, peak {reply['peak']:.0f} MB", flush=True)


def table(result: dict[str, Any]) -> str:
    """One model's times as Markdown."""
    found = result["found"]
    own = statistics.median(found["patchclamp"]["seconds"])
    every = statistics.median(found["all blocks"]["seconds"])
    lines = [f"{result['model']}: {result['tokens']} tokens, {result['suffix']} from the subject's last on, block "
             f"{result['middle']} of {result['layers']}, {result['threads']} threads, {result['processor']}, load "
             f"{result['load after']:.1f}", "",
             "| | seconds | × patchclamp | processor s | peak MB | all blocks, s | × | largest difference |",
             "|---|---|---|---|---|---|---|---|"]
    for way in WAYS:
        one = found[way]
        if not one["seconds"]:
            lines.append(f"| {way} | {one.get('failure')} | | | | | | |")
            continue
        seconds = statistics.median(one["seconds"])
        whole = every if way == "patchclamp" else seconds * result["layers"]
        lines.append(f"| {way} | {seconds:.2f} | {seconds / own:.1f} | {statistics.median(one['processor']):.2f} | "
                     f"{max(one['peak']):.0f} | {whole:.1f} | {whole / every:.1f} | {one['error']:.1e} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="*", default=["smollm2-135m-instruct", "gemma-3-270m"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--results", type=Path, default=RESULTS / "relations.json")
    given = parser.parse_args()
    results = [measure(name, given.rounds, given.threads) for name in given.models]
    given.results.parent.mkdir(parents=True, exist_ok=True)
    given.results.write_text(json.dumps(results, indent=1) + "\n")
    print("\n\n".join(map(table, results)))


if __name__ == "__main__":
    main()
