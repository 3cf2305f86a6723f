"""captum's LayerFeatureAblation over the input of `down_proj`: its way of setting hidden neurons to zero."""

from __future__ import annotations

from typing import Any

import torch
from captum.attr import LayerFeatureAblation
from common import NEURONS_AT_ONCE, Setup, Worker, choice_differences, choice_tokens, serve
from transformers import AutoModelForCausalLM


class Captum(Worker):
    packages = ("torch", "transformers", "captum")
    how = {  # noqa: RUF012
        "sweep": f"LayerFeatureAblation, perturbations_per_eval={NEURONS_AT_ONCE}, logits_to_keep=1",
    }

    def load(self, setup: Setup) -> None:
        self.setup = setup
        self.model = AutoModelForCausalLM.from_pretrained(setup.folder, dtype=torch.float32).eval()

    def sweep(self, neurons: list[tuple[int, int]], variant: str) -> torch.Tensor:
        tokens = choice_tokens(self.setup)

        def difference(ids: torch.Tensor) -> torch.Tensor:
            logits = self.model(ids, logits_to_keep=1, use_cache=False).logits[:, -1]
            return choice_differences(logits, self.setup).flatten()

        found: dict[tuple[int, int], torch.Tensor] = {}
        for layer in dict.fromkeys(layer for layer, _ in neurons):
            units = [unit for at, unit in neurons if at == layer]
            down = self.model.model.layers[layer].mlp.down_proj
            lost = LayerFeatureAblation(difference, down).attribute(
                tokens,
                layer_mask=self.features(units, tokens.shape[1], down.in_features),
                attribute_to_layer_input=True,
                perturbations_per_eval=NEURONS_AT_ONCE,
            )
            found |= {(layer, unit): -lost[:, -1, unit].mean() for unit in units}
        return torch.stack([found[neuron] for neuron in neurons])

    def features(self, units: list[int], length: int, width: int) -> Any:
        """Each unit at the last position is a feature of its own. captum ablates every feature of the mask, so the
        rest, feature 0, is one more."""
        mask = torch.zeros(1, length, width, dtype=torch.long)
        mask[0, -1, units] = torch.arange(1, len(units) + 1)
        return mask


if __name__ == "__main__":
    serve(Captum())
