"""sparsify in `benchmarks/sae_training.py`.

Its Trainer takes a model and token ids and no activations, so the body of `Trainer.fit` is written out here with its
own parts: SparseCoder, SignSGD in ScheduleFreeWrapper (its default optimizer), the projection of the decoder's gradient
and its normalising. What is left out is the model, logging and saving. No triton on a CPU: it decodes with
`embedding_bag`, its fallback.
"""

from __future__ import annotations

import torch
from sae_common import Setup, Worker, serve
from schedulefree import ScheduleFreeWrapper
from sparsify import SparseCoder, SparseCoderConfig
from sparsify.sign_sgd import SignSGD


class Sparsify(Worker):
    packages = ("torch", "eai-sparsify", "schedulefree")
    how = "SparseCoder, Trainer.fit's loop written out"

    def build(self, setup: Setup) -> None:
        if setup.architecture != "topk":
            raise NotImplementedError("sparsify has no BatchTopK")
        torch.set_float32_matmul_precision("high")  # as Trainer.fit
        self.coder = SparseCoder(setup.width, SparseCoderConfig(num_latents=setup.latents, k=setup.k), "cpu",
                                 dtype=torch.float32)
        rate = setup.rate * 5e-3 / (setup.latents / 2**14) ** 0.5
        self.optimizer = ScheduleFreeWrapper(SignSGD([{"params": self.coder.parameters(), "lr": rate}]), momentum=0.95)
        self.optimizer.train()
        self.idle_L = torch.zeros(setup.latents, dtype=torch.long)
        self.fired_L = torch.zeros(setup.latents, dtype=torch.bool)
        self.settings = {"learning rate": rate, "optimizer": "signum, schedule-free (its default)",
                         "input": "as harvested (it scales nothing); its loss is the batch's FVU"}

    def step(self, number: int, x_BD: torch.Tensor) -> None:
        coder = self.coder
        if number == 0:
            coder.b_dec.data = x_BD.mean(0)
        coder.set_decoder_norm_to_unit_norm()
        total = (x_BD - x_BD.mean(0)).pow(2).sum()
        out = coder(x=x_BD, y=x_BD, dead_mask=None, total_variance=total)
        self.fired_L[out.latent_indices.flatten()] = True
        float(out.fvu.detach())
        out.fvu.backward()
        coder.remove_gradient_parallel_to_decoder_directions()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.idle_L += len(x_BD)
        self.idle_L[self.fired_L] = 0
        self.fired_L.zero_()

    def evaluating(self, is_on: bool) -> None:
        if is_on:
            self.optimizer.eval()
        else:
            self.optimizer.train()

    def reconstruct(self, x_ND: torch.Tensor) -> tuple[torch.Tensor, int]:
        values_NK, latents_NK, _ = self.coder.encode(x_ND)
        return self.coder.decode(values_NK, latents_NK), int((values_NK > 0).sum())


if __name__ == "__main__":
    serve(Sparsify())
