"""tuned-lens: its LogitLens, and its PredictionTrajectory. It needs an old transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import Setup, Worker, first_choice, serve
from transformers import AutoModelForCausalLM
from tuned_lens.nn.lenses import LogitLens
from tuned_lens.plotting import PredictionTrajectory


def load_model(folder: str) -> Any:
    """The model of a folder written by transformers 5, which keeps `rope_theta` where 4.46 does not look for it."""
    config = json.loads((Path(folder) / "config.json").read_text())
    theta = config["rope_parameters"]["rope_theta"]
    return AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float32, rope_theta=theta).eval()


class TunedLensProject(Worker):
    packages = ("torch", "transformers", "tuned-lens")
    how = {  # noqa: RUF012
        "lens_one/lens": "LogitLens on output_hidden_states, transformers 4.46",
        "lens_one/whole": "PredictionTrajectory (every position), transformers 4.46",
        "lens_many/lens": "LogitLens on output_hidden_states, prompt by prompt, transformers 4.46",
        "lens_many/whole": "PredictionTrajectory (every position), prompt by prompt, transformers 4.46",
    }

    def load(self, setup: Setup) -> None:
        self.setup = setup
        self.model = load_model(setup.folder)
        self.lens = LogitLens.from_model(self.model)

    def logits(self, prompt: list[int]) -> torch.Tensor:
        """The last position at every layer, [L, V]; the last is the model's own, as in PredictionTrajectory."""
        found = self.model(torch.tensor([prompt]), output_hidden_states=True, use_cache=False)
        early = [self.lens(hidden[0, -1], layer) for layer, hidden in enumerate(found.hidden_states[:-1])]
        return torch.stack([*early, found.logits[0, -1]])

    def log_probabilities(self, prompt: list[int]) -> np.ndarray:
        """The same through PredictionTrajectory, which cannot be made of one position alone."""
        return PredictionTrajectory.from_lens_and_model(self.lens, self.model, prompt).log_probs[:, -1]

    def lens_one(self, variant: str) -> Any:
        return self.logits(self.setup.short) if variant == "lens" else self.log_probabilities(self.setup.short)

    def lens_many(self, prompts: list[list[int]], variant: str) -> torch.Tensor:
        if variant == "lens":
            return torch.stack([first_choice(self.logits(prompt)) for prompt in prompts], dim=1)
        return torch.stack([torch.from_numpy(self.log_probabilities(p).max(-1)) for p in prompts], dim=1)


if __name__ == "__main__":
    serve(TunedLensProject())
