"""patchclamp itself, through its public interface only."""

from __future__ import annotations

from typing import Any

import torch
from common import ABLATED_LAYER, NEW_TOKENS, STEERED_LAYER, Setup, Worker, serve

import patchclamp as pc


class Patchclamp(Worker):
    packages = ("torch", "transformers", "patchclamp")
    how = {  # noqa: RUF012
        "forward": "model.capture(prompt, ['logits'])",
        "capture_outputs": "model.capture(prompt, 60 sites)",
        "capture_everything": "model.capture(prompt, every point of every layer)",
        "patch": "one Plan of swap edits",
        "ablate": "one Plan of zero edits",
        "generate": "model.generate() with an add edit",
        "last_logits": "one Plan row with a logits readout",
    }

    def load(self, setup: Setup) -> None:
        self.setup = setup
        self.model: Any = pc.load(setup.folder)
        self.layers: int = self.model.n_layers
        self.vector = torch.tensor(setup.vector)

    def forward(self, tokens: torch.Tensor) -> Any:
        return self.model.capture(tokens, ["logits"])["logits"][0, -1]

    def capture_outputs(self, tokens: torch.Tensor, variant: str) -> list[torch.Tensor]:
        sites = [f"{part}.{layer}" for layer in range(self.layers) for part in ("attn", "mlp")]
        values = self.model.capture(tokens, sites)
        return [values[site] for site in sites]

    def capture_everything(self, tokens: torch.Tensor, variant: str) -> list[torch.Tensor]:
        raise NotImplementedError  # every point the family serves at every layer, then the logits' last row

    def patch(self, positions: str, variant: str) -> Any:
        raise NotImplementedError  # Plan: corrupted prompt x swap at resid.L@p, logit difference readout

    def ablate(self, positions: str, neurons: list[int], variant: str) -> Any:
        raise NotImplementedError  # Plan: short prompt x zero at neuron.ABLATED_LAYER.i, logit difference readout

    def generate(self, variant: str) -> Any:
        raise NotImplementedError  # NEW_TOKENS greedy tokens, add at resid.STEERED_LAYER at every position

    def last_logits(self, variant: str) -> Any:
        raise NotImplementedError  # a readout of all logits at the last position


if __name__ == "__main__":
    serve(Patchclamp())
