"""patchclamp's side of `benchmarks/sae_training.py`: its learner and schedule with `sae train`'s defaults."""

from __future__ import annotations

import torch
from sae_common import Setup, Worker, serve

from patchclamp.forward.autoencoder import Autoencoder, AutoencoderInfo
from patchclamp.forward.codes import decode, select_batch_top
from patchclamp.sae.learner import Learner, Recipe, Scaling
from patchclamp.sae.train import MOST_IDLE, TrainSpec, default_rate
from patchclamp.sae.training import Schedule


class Own(Worker):
    packages = ("torch", "patchclamp")
    how = "Learner.step"

    def prepare(self, setup: Setup, first_ND: torch.Tensor) -> None:
        self.scaling = Scaling.of((first_ND,))

    def build(self, setup: Setup) -> None:
        spec = TrainSpec(store="none", out="none", latents=setup.latents, k=(setup.k,), seed=setup.seed,
                         architecture=setup.architecture)
        rate = setup.rate * default_rate(spec.architecture, setup.latents, setup.steps)
        idle = max(1, min(MOST_IDLE, setup.steps * setup.batch // 10))
        recipe = Recipe(
            architecture=spec.architecture, latents=spec.latents, k=setup.k, l1=0.0, learning_rate=rate,
            dead_after=idle, aux_k=setup.width // 2, clip=spec.clip, bandwidth=spec.bandwidth,
            prefixes=(spec.latents,), skip=False, unit_norm=True, seed=spec.seed,
        )
        self.k = setup.k
        self.learner = Learner(recipe, self.scaling, tied=True)
        self.schedule = Schedule(setup.steps, spec.warm_up, spec.decay)
        self.settings = {"learning rate": rate, "warm-up": spec.warm_up, "decay": spec.decay, "dead after": idle,
                         "input": "centred, mean square norm D"}

    def step(self, number: int, x_BD: torch.Tensor) -> None:
        self.learner.step((x_BD,), self.schedule.rate(number))

    def evaluating(self, is_on: bool) -> None:
        recipe = self.learner.recipe
        info = AutoencoderInfo(name="bench", architecture=recipe.architecture, k=recipe.k, site="resid.0", model="",
                               weights="")
        self.autoencoder = Autoencoder(info, self.learner.folded()) if is_on else None

    def reconstruct(self, x_ND: torch.Tensor) -> tuple[torch.Tensor, int]:
        out_ND, counts_L = self.autoencoder.looked_at(x_ND)
        return out_ND, int(counts_L.sum())

    def reconstruct_batch(self, x_ND: torch.Tensor) -> tuple[torch.Tensor, int]:
        one = self.autoencoder
        values_P, active = select_batch_top(torch.addmm(one.b_enc, x_ND, one.W_enc.T), self.k * len(x_ND))
        values_P = values_P.relu()
        return decode(active, values_P, one.W_dec) + one.b_dec, int((values_P > 0).sum())


if __name__ == "__main__":
    serve(Own())
