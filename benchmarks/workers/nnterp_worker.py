"""nnterp, a layer over nnsight, run locally: its logit lens reads the blocks, not the embeddings."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from common import Setup, Worker, serve
from nnterp import StandardizedTransformer
from nnterp.interventions import logit_lens


class NNterp(Worker):
    packages = ("torch", "transformers", "nnsight", "nnterp")
    how = {  # noqa: RUF012
        "lens_one": "logit_lens(): probabilities, blocks only",
        "lens_many/loop": "logit_lens(), one prompt a call, blocks only",
        "lens_many/batched": "logit_lens(), all prompts in one call, blocks only",
    }

    def load(self, setup: Setup) -> None:
        self.setup = setup
        self.model: Any = StandardizedTransformer(setup.folder, dtype=torch.float32, device_map="cpu")

    def lens_one(self, variant: str) -> torch.Tensor:
        return logit_lens(self.model, [self.setup.short])[0]

    def lens_many(self, prompts: list[list[int]], variant: str) -> torch.Tensor:
        batches = [prompts] if variant == "batched" else [[prompt] for prompt in prompts]
        return torch.cat([logit_lens(self.model, batch).amax(-1) for batch in batches]).log().T

    def numbers(self, result: Any, task: str) -> np.ndarray:
        return super().numbers(result.log() if task == "lens_one" else result, task)


if __name__ == "__main__":
    serve(NNterp())
