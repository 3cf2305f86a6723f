"""SAELens in `benchmarks/sae_training.py`: its training SAEs, its SAETrainer's step."""

from __future__ import annotations

from typing import Any

import torch
from sae_common import Setup, Worker, serve
from sae_lens import (
    BatchTopKTrainingSAE,
    BatchTopKTrainingSAEConfig,
    TopKTrainingSAE,
    TopKTrainingSAEConfig,
)
from sae_lens.config import SAETrainerConfig
from sae_lens.training.activation_scaler import ActivationScaler
from sae_lens.training.sae_trainer import SAETrainer

NORM = "expected_average_only_in"
KINDS: dict[str, Any] = {"topk": (TopKTrainingSAE, TopKTrainingSAEConfig),
                         "batchtopk": (BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig)}


class SaeLens(Worker):
    packages = ("torch", "sae-lens", "transformer-lens", "transformers")
    how = "SAETrainer.step"

    def prepare(self, setup: Setup, first_ND: torch.Tensor) -> None:
        self.scaler = ActivationScaler()
        batches = first_ND.split(setup.batch)
        self.scaler.estimate_scaling_factor(setup.width, iter(batches), len(batches))

    def build(self, setup: Setup) -> None:
        kind, config = KINDS[setup.architecture]
        self.sae = kind(config(d_in=setup.width, d_sae=setup.latents, k=setup.k, normalize_activations=NORM))
        rate = setup.rate * SAETrainerConfig(1, 1).lr
        trainer = SAETrainerConfig(total_training_samples=setup.steps * setup.batch,
                                   train_batch_size_samples=setup.batch, lr=rate,
                                   lr_end=rate / 10)  # used by cosine annealing alone, but demanded
        self.trainer = SAETrainer(trainer, self.sae, iter(()))
        self.trainer.activation_scaler, self.scale = self.scaler, self.scaler.scaling_factor
        self.settings = {"learning rate": rate, "schedule": "constant (its default)", "optimizer": "Adam",
                         "input": f"{NORM}: mean norm √D, not centred"}

    def step(self, number: int, x_BD: torch.Tensor) -> None:
        self.trainer.step(x_BD)
        self.trainer.n_training_steps += 1

    def _pre(self, x_ND: torch.Tensor) -> torch.Tensor:
        return self.sae.encode_with_hidden_pre(x_ND * self.scale)[1]

    def _decoded(self, codes_NL: torch.Tensor) -> tuple[torch.Tensor, int]:
        return self.sae.decode(codes_NL) / self.scale, int((codes_NL != 0).sum())

    def reconstruct(self, x_ND: torch.Tensor) -> tuple[torch.Tensor, int]:
        if not hasattr(self.sae, "topk_threshold"):
            return self._decoded(self.sae.encode(x_ND * self.scale))
        pre_NL = self._pre(x_ND)  # saved as a JumpReLU with this threshold
        return self._decoded(pre_NL.relu() * (pre_NL > self.sae.topk_threshold))

    def reconstruct_batch(self, x_ND: torch.Tensor) -> tuple[torch.Tensor, int]:
        return self._decoded(self.sae.activation_fn(self._pre(x_ND)))


if __name__ == "__main__":
    serve(SaeLens())
