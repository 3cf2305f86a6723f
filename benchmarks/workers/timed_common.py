"""What workers that compute one thing share: it is timed, its memory, its numbers. Of `benchmarks/relations.py` and
`benchmarks/circuits.py`.

    {"setup": {"folder", "text", "answer", "subject", "ids", "position", "threads"}}   -> {"ready": true, ...}
    {"way": "own", "given": [8], "check": "w.npy"}     -> {"seconds", "processor", "peak"}

Runs in every peer's environment and imports nothing but torch, numpy, `common` and the standard library.
"""

from __future__ import annotations

import gc
import json
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import peak_growth, private_stdout, versions

REPLIES = private_stdout()


def load_folder(folder: str) -> Any:
    """The model of a folder written by transformers 5, which keeps `rope_theta` where version 4 does not look."""
    from transformers import AutoModelForCausalLM

    config = json.loads((Path(folder) / "config.json").read_text())
    rope = config.get("rope_parameters", {})
    theta = {"rope_theta": rope["rope_theta"]} if "rope_theta" in rope else {}
    if "full_attention" in rope:
        theta = {"rope_theta": rope["full_attention"]["rope_theta"],
                 "rope_local_base_freq": rope["sliding_attention"]["rope_theta"]}
    return AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float32, **theta).eval()


Way = Callable[[Sequence[int]], torch.Tensor]
"""From what is given, e.g. layers, to numbers: their Jacobians, [layers, D, D]."""


def serve(packages: tuple[str, ...], build: Callable[[dict[str, Any]], dict[str, Way]]) -> None:
    """Answer requests until standard input closes; `build` makes the ways from the setup."""
    ways: dict[str, Way] = {}
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if "setup" in request:
                torch.set_num_threads(request["setup"]["threads"])
                ways = build(request["setup"])
                reply: dict[str, Any] = {"ready": True, "versions": versions(packages)}
            else:
                reply = measured(ways[request["way"]], request)
        except Exception as error:
            traceback.print_exc()
            reply = {"error": f"{type(error).__name__}: {error}"}
        REPLIES.write(json.dumps(reply) + "\n")


def measured(way: Way, request: dict[str, Any]) -> dict[str, Any]:
    """One run, timed; its memory is the kernel's peak in the same run."""
    found: dict[str, Any] = {}

    def timed() -> None:
        gc.collect()
        start, used = time.perf_counter(), time.process_time()
        found["numbers"] = way(request["given"])
        found["seconds"], found["processor"] = time.perf_counter() - start, time.process_time() - used

    peak = peak_growth(timed)
    if "check" in request:
        np.save(request["check"], found["numbers"].detach().float().numpy(), allow_pickle=False)
    return {"seconds": found["seconds"], "processor": found["processor"], "peak": peak}
