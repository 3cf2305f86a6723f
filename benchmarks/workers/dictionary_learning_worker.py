"""dictionary_learning in `benchmarks/sae_training.py`: TopKTrainer and BatchTopKTrainer, their update.

Its warm-up and the first step of its threshold are 1,000 steps, more than a pass has (it refuses such a warm-up). They
are set to a twentieth of the steps, and the last fifth decays, as with us. Values are divided by the root of their mean
square norm, as `trainSAE(normalize_activations=True)` does.
"""

from __future__ import annotations

import torch
from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
from dictionary_learning.trainers.top_k import TopKTrainer
from sae_common import Setup, Worker, serve


class DictionaryLearning(Worker):
    packages = ("torch", "dictionary-learning", "nnsight", "transformers")
    how = "update"

    def prepare(self, setup: Setup, first_ND: torch.Tensor) -> None:
        self.norm = float(first_ND.square().sum(1).mean().sqrt())

    def build(self, setup: Setup) -> None:
        kind = TopKTrainer if setup.architecture == "topk" else BatchTopKTrainer
        early, late = setup.steps // 20, setup.steps - setup.steps // 5
        rate = setup.rate * 2e-4 / (setup.latents / 2**14) ** 0.5
        self.trainer = kind(
            steps=setup.steps, activation_dim=setup.width, dict_size=setup.latents, k=setup.k, layer=0, lm_name="",
            lr=rate, warmup_steps=early, decay_start=late, threshold_start_step=early, seed=setup.seed, device="cpu",
        )
        self.is_topk = setup.architecture == "topk"
        self.settings = {"learning rate": rate, "warm-up": early, "decay from": late, "optimizer": "Adam",
                         "input": "mean square norm 1, not centred"}

    def step(self, number: int, x_BD: torch.Tensor) -> None:
        self.trainer.update(number, x_BD / self.norm)

    def _coded(self, x_ND: torch.Tensor, use_threshold: bool) -> tuple[torch.Tensor, int]:
        coder = self.trainer.ae
        codes_NL = coder.encode(x_ND / self.norm, use_threshold=use_threshold)
        return coder.decode(codes_NL) * self.norm, int((codes_NL != 0).sum())

    def reconstruct(self, x_ND: torch.Tensor) -> tuple[torch.Tensor, int]:
        return self._coded(x_ND, use_threshold=not self.is_topk)  # the defaults of both classes

    def reconstruct_batch(self, x_ND: torch.Tensor) -> tuple[torch.Tensor, int]:
        return self._coded(x_ND, use_threshold=False)


if __name__ == "__main__":
    serve(DictionaryLearning())
