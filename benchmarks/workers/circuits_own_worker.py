"""patchclamp's edge scores: attribution patching, with integrated gradients, and every edge cut exactly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from timed_common import Way, serve

import patchclamp as pc
from patchclamp.circuits.graph import Graph
from patchclamp.circuits.runs import Runs


def build(setup: dict[str, Any]) -> dict[str, Way]:
    model = pc.load(setup["folder"])
    prompts = [[tuple(pair[name]) for pair in setup["pairs"]] for name in ("clean", "corrupted")]
    choices = [tuple(pair["choice"]) for pair in setup["pairs"]]

    def runs(grouped: bool) -> Runs:
        return Runs(model, Graph.of(model.anatomy, grouped), *prompts, choices)

    def attribution(given: Sequence[int]) -> torch.Tensor:
        """With so many steps; the runs it needs included. [N, S], the sum over prompts."""
        return runs(False).attribution(given[0]).sum(-1)

    def exact(given: Sequence[int]) -> torch.Tensor:
        """Numbers of edges among all; [edges], the sum over prompts. Grouped if the first number is 1."""
        own = runs(bool(given[0]))
        every = own.graph.edges.nonzero()
        some = every if len(given) == 1 else every[torch.tensor(given[1:])]
        return (own.some_edges([(int(d), int(s)) for d, s in some]) - own.clean_B).sum(-1)

    def pairs_of_passes(given: Sequence[int]) -> torch.Tensor:
        """So many plain passes of all clean and corrupted prompts, as Hugging Face does them."""
        ids = torch.tensor([*prompts[0], *prompts[1]])
        with torch.no_grad():
            for _ in range(given[0]):
                last = model.hf(ids, use_cache=False).logits[:, -1]
        return last[:, 0]

    return {"attribution": attribution, "exact": exact, "passes": pairs_of_passes}


if __name__ == "__main__":
    serve(("torch", "transformers", "patchclamp"), build)
