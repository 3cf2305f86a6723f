"""nnsight through TransformersModel, run locally."""

from __future__ import annotations

from typing import Any

import nnsight
import torch
from common import (
    ABLATED_LAYER,
    NEW_TOKENS,
    STEERED_LAYER,
    Setup,
    Worker,
    as_grid,
    cells,
    chunks,
    logit_difference,
    serve,
)
from nnsight import TransformersModel

INVOKES_PER_TRACE = 30


class NNsight(Worker):
    packages = ("torch", "transformers", "nnsight")
    how = {  # noqa: RUF012
        "forward": "trace(ids), logits saved",
        "capture_outputs": "trace, 60 outputs saved",
        "capture_outputs/cache": "tracer.cache(60 modules)",
        "capture_everything": "tracer.cache() of every module",
        "patch/loop": "one trace a patch",
        "patch/invokes": "30 invokes a trace, one patch each",
        "patch/batched": "one trace of 64 rows, logits_to_keep=1",
        "patch/skip": "a layer's patches in one trace, earlier blocks skipped, logits_to_keep=1",
        "ablate/loop": "one trace a neuron",
        "ablate/invokes": "30 invokes a trace, one neuron each",
        "ablate/batched": "one trace of 64 rows, logits_to_keep=1",
        "ablate/skip": "one trace of 64 rows, earlier blocks skipped, logits_to_keep=1",
        "generate": "generate(), tracer.iter over the steps",
    }

    def load(self, setup: Setup) -> None:
        self.setup = setup
        self.model: Any = TransformersModel(setup.folder, task="text-generation", dtype=torch.float32, dispatch=True)
        self.blocks = self.model.model.layers
        self.layers = len(self.blocks)
        self.vector = torch.tensor(setup.vector)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        model = self.model
        with model.trace(tokens):
            logits = model.output.logits[0, -1].save()
        return logits

    def capture_outputs(self, tokens: torch.Tensor, variant: str) -> list[torch.Tensor]:
        model, blocks = self.model, self.blocks
        if variant == "cache":
            modules = [part for block in blocks for part in (block.self_attn, block.mlp)]
            with model.trace(tokens) as tracer:
                cache = tracer.cache(modules=modules, device=None)
            values = [cache[module.path].output for module in modules]
            return [value[0] if isinstance(value, tuple) else value for value in values]
        with model.trace(tokens):
            kept = nnsight.save([])
            for block in blocks:
                kept.append(block.self_attn.output[0])
                kept.append(block.mlp.output)
        return kept

    def capture_everything(self, tokens: torch.Tensor, variant: str) -> list[torch.Tensor]:
        model = self.model
        with model.trace(tokens) as tracer:
            cache = tracer.cache(device=None)
            logits = model.output.logits[0, -1].save()
        values = [cache[key].output for key in cache.keys()]  # noqa: SIM118 - a view, not a mapping
        values = [value[0] if isinstance(value, tuple) else value for value in values]
        return [*(value for value in values if isinstance(value, torch.Tensor)), logits]

    def residuals(self, tokens: list[int]) -> list[torch.Tensor]:
        model, blocks = self.model, self.blocks
        with model.trace(torch.tensor([tokens])):
            kept = nnsight.save([])
            for block in blocks:
                kept.append(block.output)
        return kept

    def patch(self, positions: str, variant: str) -> torch.Tensor:
        model, blocks, clean = self.model, self.blocks, self.residuals(self.setup.short)
        corrupted = torch.tensor([self.setup.corrupted])
        sweep = cells(self.layers, corrupted.shape[1], positions)
        found: list[torch.Tensor] = []
        if variant == "loop":
            for layer, position in sweep:
                with model.trace(corrupted):
                    blocks[layer].output[:, position] = clean[layer][:, position]
                    logits_BV = model.output.logits[:, -1].save()
                found.append(logit_difference(logits_BV, self.setup))
        elif variant == "invokes":
            for rows in chunks(sweep, INVOKES_PER_TRACE):
                with model.trace() as tracer:
                    kept = nnsight.save([])
                    for layer, position in rows:
                        with tracer.invoke(corrupted):
                            blocks[layer].output[:, position] = clean[layer][:, position]
                            kept.append(model.output.logits[:, -1])
                found.append(logit_difference(torch.cat(kept), self.setup))
        elif variant == "skip":
            before = self.residuals(self.setup.corrupted)
            for layer in range(self.layers):
                rows = [position for at, position in sweep if at == layer]
                patched = before[layer].repeat(len(rows), 1, 1)
                for row, position in enumerate(rows):
                    patched[row, position] = clean[layer][0, position]
                with model.trace(corrupted.expand(len(rows), -1), logits_to_keep=1):
                    for earlier in range(layer):
                        blocks[earlier].skip(patched)
                    blocks[layer].skip(patched)
                    logits_BV = model.output.logits[:, -1].save()
                found.append(logit_difference(logits_BV, self.setup))
        else:
            for rows in chunks(sweep):
                touched = sorted({at for at, _ in rows})
                with model.trace(corrupted.expand(len(rows), -1), logits_to_keep=1):
                    for layer in touched:
                        for row, (at, position) in enumerate(rows):
                            if at == layer:
                                blocks[layer].output[row, position] = clean[layer][0, position]
                    logits_BV = model.output.logits[:, -1].save()
                found.append(logit_difference(logits_BV, self.setup))
        return as_grid(found, self.layers, positions)

    def ablate(self, positions: str, neurons: list[int], variant: str) -> torch.Tensor:
        model, silenced = self.model, self.blocks[ABLATED_LAYER].mlp.down_proj
        tokens = torch.tensor([self.setup.short])
        where = slice(-1, None) if positions == "last" else slice(None)
        found: list[torch.Tensor] = []
        if variant == "loop":
            for neuron in neurons:
                with model.trace(tokens):
                    silenced.input[:, where, neuron] = 0
                    logits_BV = model.output.logits[:, -1].save()
                found.append(logit_difference(logits_BV, self.setup))
        elif variant == "invokes":
            for rows in chunks(neurons, INVOKES_PER_TRACE):
                with model.trace() as tracer:
                    kept = nnsight.save([])
                    for neuron in rows:
                        with tracer.invoke(tokens):
                            silenced.input[:, where, neuron] = 0
                            kept.append(model.output.logits[:, -1])
                found.append(logit_difference(torch.cat(kept), self.setup))
        else:
            skipped = ABLATED_LAYER if variant == "skip" else 0
            before = self.residuals(self.setup.short)[skipped - 1] if skipped else None
            for rows in chunks(neurons):
                entering = before.expand(len(rows), -1, -1) if skipped else None
                with model.trace(tokens.expand(len(rows), -1), logits_to_keep=1):
                    for earlier in range(skipped):
                        self.blocks[earlier].skip(entering)
                    value = silenced.input
                    for row, neuron in enumerate(rows):
                        value[row, where, neuron] = 0
                    logits_BV = model.output.logits[:, -1].save()
                found.append(logit_difference(logits_BV, self.setup))
        return torch.cat(found)

    def generate(self, variant: str) -> torch.Tensor:
        model, block, vector = self.model, self.blocks[STEERED_LAYER], self.vector
        tokens = torch.tensor([self.setup.opening])
        with model.generate(
            tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=NEW_TOKENS, do_sample=False
        ) as tracer:
            for _ in tracer.iter[:NEW_TOKENS]:
                block.output = block.output + vector
            whole = tracer.result.save()
        return whole[0, tokens.shape[1] :]


if __name__ == "__main__":
    serve(NNsight())
