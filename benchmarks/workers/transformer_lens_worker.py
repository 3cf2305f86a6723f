"""TransformerLens through its TransformerBridge: raw Hugging Face weights, no folding, no compatibility mode."""

from __future__ import annotations

from functools import partial
from typing import Any

import pandas as pd
import torch
from common import (
    ABLATED_LAYER,
    NEURONS_AT_ONCE,
    NEW_TOKENS,
    STEERED_LAYER,
    Setup,
    Worker,
    as_grid,
    cells,
    choice_differences,
    choice_tokens,
    chunks,
    logit_difference,
    same_lengths,
    serve,
)
from transformer_lens import patching
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.tools.analysis import logit_lens


class TransformerLens(Worker):
    packages = ("torch", "transformers", "transformer-lens")
    how = {  # noqa: RUF012
        "forward": "bridge(ids)",
        "capture_outputs": "run_with_cache(names_filter=60 names)",
        "capture_everything": "run_with_cache()",
        "patch/loop": "patching.generic_activation_patch",
        "patch/batched": "run_with_hooks, 64 patches a forward",
        "ablate/loop": "run_with_hooks, one neuron a forward",
        "ablate/batched": "run_with_hooks, 64 neurons a forward",
        "sweep/loop": "run_with_hooks, one neuron a forward",
        "sweep/batched": f"run_with_hooks, {NEURONS_AT_ONCE} neurons a forward",
        "generate": "bridge.generate() inside bridge.hooks()",
        "lens_one": "tools.analysis.logit_lens()",
        "lens_many/loop": "logit_lens(top_k=1), one prompt a call",
        "lens_many/batched": "logit_lens(top_k=1), prompts of one length a call",
    }

    def load(self, setup: Setup) -> None:
        self.setup = setup
        self.model = TransformerBridge.boot_transformers(setup.folder, device="cpu", dtype=torch.float32)
        self.model.eval()
        self.layers = self.model.cfg.n_layers
        self.output_names = {
            f"blocks.{layer}.hook_{part}_out": None for layer in range(self.layers) for part in ("attn", "mlp")
        }
        self.vector = torch.tensor(setup.vector)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.model(tokens)[0, -1]

    def capture_outputs(self, tokens: torch.Tensor, variant: str) -> list[torch.Tensor]:
        _, cache = self.model.run_with_cache(tokens, names_filter=list(self.output_names))
        return [cache[name] for name in self.output_names]

    def capture_everything(self, tokens: torch.Tensor, variant: str) -> list[torch.Tensor]:
        logits, cache = self.model.run_with_cache(tokens)
        return [*(value for value in cache.values() if isinstance(value, torch.Tensor)), logits[0, -1]]

    def patch(self, positions: str, variant: str) -> torch.Tensor:
        clean, corrupted = torch.tensor([self.setup.short]), torch.tensor([self.setup.corrupted])
        names = [f"blocks.{layer}.hook_resid_post" for layer in range(self.layers)]
        _, cache = self.model.run_with_cache(clean, names_filter=names)
        sweep = cells(self.layers, corrupted.shape[1], positions)
        if variant == "loop":
            found = patching.generic_activation_patch(
                self.model,
                corrupted,
                cache,
                lambda logits: logit_difference(logits[0, -1], self.setup),
                patching.layer_pos_patch_setter,
                "resid_post",
                index_df=pd.DataFrame(sweep, columns=["layer", "pos"]),
            )
            return as_grid([found], self.layers, positions)

        def write(value: torch.Tensor, hook: Any, layer: int, rows: list[tuple[int, int]]) -> torch.Tensor:
            for row, (at, position) in enumerate(rows):
                if at == layer:
                    value[row, position] = cache[names[layer]][0, position]
            return value

        differences: list[torch.Tensor] = []
        for rows in chunks(sweep):
            hooks = [(names[layer], partial(write, layer=layer, rows=rows)) for layer in sorted({at for at, _ in rows})]
            logits = self.model.run_with_hooks(corrupted.expand(len(rows), -1), fwd_hooks=hooks)
            differences.append(logit_difference(logits[:, -1], self.setup))
        return as_grid(differences, self.layers, positions)

    def ablate(self, positions: str, neurons: list[int], variant: str) -> torch.Tensor:
        tokens = torch.tensor([self.setup.short])
        where = slice(-1, None) if positions == "last" else slice(None)
        name = f"blocks.{ABLATED_LAYER}.mlp.hook_post"

        def silence(value: torch.Tensor, hook: Any, rows: list[int]) -> torch.Tensor:
            for row, neuron in enumerate(rows):
                value[row, where, neuron] = 0
            return value

        found: list[torch.Tensor] = []
        for rows in chunks(neurons, 1 if variant == "loop" else 64):
            hooks = [(name, partial(silence, rows=rows))]
            logits = self.model.run_with_hooks(tokens.expand(len(rows), -1), fwd_hooks=hooks)
            found.append(logit_difference(logits[:, -1], self.setup))
        return torch.cat(found)

    def sweep(self, neurons: list[tuple[int, int]], variant: str) -> torch.Tensor:
        tokens = choice_tokens(self.setup)
        base_N = choice_differences(self.model(tokens)[:, -1], self.setup)[0]

        def silence(value: torch.Tensor, hook: Any, row: int, unit: int) -> torch.Tensor:
            value[row * len(tokens) : (row + 1) * len(tokens), -1, unit] = 0
            return value

        found: list[torch.Tensor] = []
        for some in chunks(neurons, 1 if variant == "loop" else NEURONS_AT_ONCE):
            hooks = [
                (f"blocks.{layer}.mlp.hook_post", partial(silence, row=row, unit=unit))
                for row, (layer, unit) in enumerate(some)
            ]
            logits = self.model.run_with_hooks(tokens.repeat(len(some), 1), fwd_hooks=hooks)
            found.append((choice_differences(logits[:, -1], self.setup) - base_N).mean(1))
        return torch.cat(found)

    def generate(self, variant: str) -> torch.Tensor:
        def steer(value: torch.Tensor, hook: Any) -> torch.Tensor:
            return value + self.vector

        tokens = torch.tensor([self.setup.opening])
        with self.model.hooks(fwd_hooks=[(f"blocks.{STEERED_LAYER}.hook_resid_post", steer)]):
            whole = self.model.generate(
                tokens,
                max_new_tokens=NEW_TOKENS,
                do_sample=False,
                stop_at_eos=False,
                return_type="tokens",
                verbose=False,
            )
        return whole[0, tokens.shape[1] :]

    def lens_one(self, variant: str) -> torch.Tensor:
        return logit_lens(self.model, torch.tensor([self.setup.short])).values[:, 0]

    def lens_many(self, prompts: list[list[int]], variant: str) -> torch.Tensor:
        groups = same_lengths(prompts) if variant == "batched" else [[index] for index in range(len(prompts))]
        found = torch.empty(self.layers + 1, len(prompts))
        for group in groups:
            tokens = torch.tensor([prompts[index] for index in group])
            found[:, group] = logit_lens(self.model, tokens, top_k=1, return_type="log_probs").values[..., 0]
        return found


if __name__ == "__main__":
    serve(TransformerLens())
