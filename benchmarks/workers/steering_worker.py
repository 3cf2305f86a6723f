"""repeng and steering-vectors finding directions; runs in their environments. See `benchmarks/steering_vectors.py`."""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer


def load(folder: str) -> tuple:
    """A folder written by transformers 5, which keeps `rope_theta` where 4 does not look for it."""
    config = json.loads((Path(folder) / "config.json").read_text())
    rope = config.get("rope_parameters") or {}
    extra = {}
    if "rope_theta" in rope:
        extra["rope_theta"] = rope["rope_theta"]
    elif "full_attention" in rope:
        extra["rope_theta"] = rope["full_attention"]["rope_theta"]
        extra["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
    model = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float32, **extra).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.padding_side = "left"
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return model, tokenizer


def repeng(model, tokenizer, pairs):
    from repeng import ControlVector, DatasetEntry

    data = [DatasetEntry(positive=a, negative=b) for a, b in pairs]
    found = ControlVector.train(model, tokenizer, data, batch_size=32)
    return {f"resid.{layer}": torch.from_numpy(v.copy()) for layer, v in found.directions.items()}


def steering(model, tokenizer, pairs):
    from steering_vectors import train_steering_vector

    found = train_steering_vector(model, tokenizer, pairs, read_token_index=-1, batch_size=32)
    return {f"resid.{layer}": v.float().contiguous() for layer, v in found.layer_activations.items()}


def main(name: str, folder: str, out: str, pairs_file: str) -> None:
    torch.set_num_threads(2)
    model, tokenizer = load(folder)
    pairs = [tuple(pair) for pair in json.loads(Path(pairs_file).read_text())]
    find = repeng if name == "repeng" else steering
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in sys.stdin:
        begun = time.perf_counter()
        found = find(model, tokenizer, pairs)
        seconds = time.perf_counter() - begun
        save_file(found, out)
        peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        print(json.dumps({"seconds": seconds, "peak_mb": peak}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
