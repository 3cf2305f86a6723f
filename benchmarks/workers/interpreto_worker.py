"""interpreto's LogitLens, over nnsight, run locally: it reads every position, one text at a time."""

from __future__ import annotations

from typing import Any

import torch
from common import Setup, Worker, serve
from interpreto import LogitLens
from interpreto.concepts.splitters import AllLayersSplitter


class Interpreto(Worker):
    packages = ("torch", "transformers", "nnsight", "interpreto")
    how = {  # noqa: RUF012
        "lens_one": "LogitLens._get_logits(), what explain() sorts; every position",
        "lens_many": "LogitLens(top_k=1).explain(), prompt by prompt; every position",
    }

    def load(self, setup: Setup) -> None:
        self.setup = setup
        splitter: Any = AllLayersSplitter(setup.folder, device_map="cpu", dtype=torch.float32)
        self.lens = LogitLens(splitter, top_k=1)

    def lens_one(self, variant: str) -> torch.Tensor:
        return self.lens._get_logits(torch.tensor([self.setup.short]))[:, -1]

    def lens_many(self, prompts: list[list[int]], variant: str) -> torch.Tensor:
        found: list[torch.Tensor] = []
        for prompt in prompts:
            layers: Any = self.lens.explain(torch.tensor([prompt]), align=False)
            found.append(torch.stack([layer["top_scores"][0, -1, 0] for layer in layers.values()]))
        return torch.stack(found, dim=1).log()


if __name__ == "__main__":
    serve(Interpreto())
