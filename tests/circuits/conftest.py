"""A circuit of a tiny model, found once."""

import json

import pytest
from tiny import tiny_model

import patchclamp as pc


@pytest.fixture(scope="package")
def good_pairs(tmp_path_factory):
    """Pairs in words of the tiny tokenizer, each with the answer that the tiny model prefers on the clean prompt."""
    model, path, rows = tiny_model("llama"), tmp_path_factory.mktemp("pairs") / "pairs.jsonl", []
    for i in range(60):
        clean, corrupted = f"w{i} w{i + 9} w3 w4", f"w{i} w{(i * 7) % 40 + 40} w3 w4"
        read = pc.Readout.logit_difference("w50", "w51")
        a, b = (float(v) for v in model.run([clean, corrupted], read=read))
        if a > b + 0.3 and a > 0:
            rows.append({"clean": clean, "corrupted": corrupted, "answer": "w50", "distractor": "w51"})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert len(rows) >= 10
    return path


@pytest.fixture(scope="package")
def found(good_pairs, tmp_path_factory):
    """The record of a circuit with its neurons, and the folder of its certificate."""
    folder = tmp_path_factory.mktemp("found")
    return pc.find_circuit(tiny_model("llama"), pairs=str(good_pairs), prompts=6, heldout=4, controls=4, max_edges=1.0,
                           units="neuron", out=str(folder)), folder
