"""interp-engine on its eager backend (the only one without CUDA)."""

from __future__ import annotations

from typing import Any

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
    first_choice,
    logit_difference,
    serve,
)
from interp_engine import (
    Address,
    AddSpec,
    HookManager,
    SteeringSpec,
    capture,
    capture_residuals,
    decode_residuals,
    generate_stream,
    layer_logits,
    load_model,
    steer,
)
from interp_engine.points import POINTS, Scope


class InterpEngine(Worker):
    packages = ("torch", "transformers", "interp-engine")
    how = {  # noqa: RUF012
        "forward": "capture(model, ids, []).output",
        "capture_outputs": "capture(), 60 addresses",
        "capture_everything": "capture(), every point served at every layer",
        "patch/loop": "HookManager.write, one patch a forward",
        "patch/batched": "HookManager.write, 64 patches a forward",
        "ablate/loop": "HookManager.write on mlp_act, one neuron a forward",
        "ablate/batched": "HookManager.write on mlp_act, 64 neurons a forward",
        "generate": "generate_stream() inside steer(AddSpec)",
        "lens_one/last": "capture_residuals(), decode_residuals(), blocks only",
        "lens_one/whole": "layer_logits(), blocks only; every position",
        "lens_many/last": "capture_residuals(), decode_residuals(), blocks only, prompt by prompt",
    }

    def load(self, setup: Setup) -> None:
        self.setup = setup
        self.model: Any = load_model(setup.folder, backend="eager", device="cpu", dtype="float32")
        self.layers = self.model.n_layers
        self.outputs = [Address(f"{part}_out", layer) for layer in range(self.layers) for part in ("attn", "mlp")]
        named = [
            Address(point.name, layer)
            for point in POINTS
            for layer in ([None] if point.scope is Scope.GLOBAL else range(self.layers))
        ]
        self.everything = [address for address in named if self.model.serves(address)]
        self.vector = torch.tensor(setup.vector)

    def logits(self, tokens: torch.Tensor) -> torch.Tensor:
        return capture(self.model, tokens, []).output.logits[:, -1]

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.logits(tokens)[0]

    def capture_outputs(self, tokens: torch.Tensor, variant: str) -> list[torch.Tensor]:
        cache = capture(self.model, tokens, self.outputs)
        return [cache[address] for address in self.outputs]

    def capture_everything(self, tokens: torch.Tensor, variant: str) -> list[torch.Tensor]:
        cache = capture(self.model, tokens, self.everything)
        return [*(cache[address] for address in self.everything), cache.output.logits[0, -1]]

    def patch(self, positions: str, variant: str) -> torch.Tensor:
        clean, corrupted = torch.tensor([self.setup.short]), torch.tensor([self.setup.corrupted])
        addresses = [Address("resid_post", layer) for layer in range(self.layers)]
        cache = capture(self.model, clean, addresses)
        found: list[torch.Tensor] = []
        for rows in chunks(cells(self.layers, corrupted.shape[1], positions), 1 if variant == "loop" else 64):
            with HookManager() as hooks:
                for layer in sorted({at for at, _ in rows}):

                    def write(value: torch.Tensor, layer: int = layer, rows: Any = rows) -> torch.Tensor:
                        value = value.clone()
                        for row, (at, position) in enumerate(rows):
                            if at == layer:
                                value[row, position] = cache[addresses[layer]][0, position]
                        return value

                    module, side = self.model.resolve_point("resid_post", layer)
                    hooks.write(module, write, point=side)
                logits_BV = self.logits(corrupted.expand(len(rows), -1))
            found.append(logit_difference(logits_BV, self.setup))
        return as_grid(found, self.layers, positions)

    def ablate(self, positions: str, neurons: list[int], variant: str) -> torch.Tensor:
        tokens = torch.tensor([self.setup.short])
        where = slice(-1, None) if positions == "last" else slice(None)
        module, side = self.model.resolve_point("mlp_act", ABLATED_LAYER)
        found: list[torch.Tensor] = []
        for rows in chunks(neurons, 1 if variant == "loop" else 64):

            def silence(value: torch.Tensor, rows: list[int] = rows) -> torch.Tensor:
                value = value.clone()
                for row, neuron in enumerate(rows):
                    value[row, where, neuron] = 0
                return value

            with HookManager() as hooks:
                hooks.write(module, silence, point=side)
                logits_BV = self.logits(tokens.expand(len(rows), -1))
            found.append(logit_difference(logits_BV, self.setup))
        return torch.cat(found)

    def generate(self, variant: str) -> torch.Tensor:
        spec = SteeringSpec.at(f"resid_post.{STEERED_LAYER}", AddSpec(self.vector, scale=1.0))
        tokens = torch.tensor([self.setup.opening])
        with steer(self.model, spec):
            steps = generate_stream(self.model, tokens, max_tokens=NEW_TOKENS, temperature=0.0, stop_at_eos=False)
            return torch.tensor([step.token_id for step in steps])

    def last_rows(self, prompt: list[int]) -> torch.Tensor:
        streams = capture_residuals(self.model, torch.tensor([prompt]))
        return decode_residuals(self.model, torch.stack([stream[-1] for stream in streams.values()]))

    def lens_one(self, variant: str) -> torch.Tensor:
        if variant == "last":
            return self.last_rows(self.setup.short)
        wanted = {"logit_lens": list(range(self.layers))}
        read = layer_logits(self.model, torch.tensor([self.setup.short]), wanted)["logit_lens"]
        return torch.stack([logits[-1] for logits in read.values()])

    def lens_many(self, prompts: list[list[int]], variant: str) -> torch.Tensor:
        return torch.stack([first_choice(self.last_rows(prompt)) for prompt in prompts], dim=1)


if __name__ == "__main__":
    serve(InterpEngine())
