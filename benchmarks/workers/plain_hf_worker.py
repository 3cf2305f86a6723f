"""Plain transformers and torch hooks: the reference for every number, and the time of doing it by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
    logit_difference,
    serve,
)
from transformers import AutoModelForCausalLM


def tensor_of(output: Any) -> torch.Tensor:
    """A module's output, or the first element where it returns a tuple."""
    return output[0] if isinstance(output, tuple) else output


@contextmanager
def hooked(*pairs: tuple[torch.nn.Module, Callable[..., Any]], before: bool = False) -> Iterator[None]:
    """Forward hooks (or pre-hooks) that live for one block."""
    register = "register_forward_pre_hook" if before else "register_forward_hook"
    handles = [getattr(module, register)(hook) for module, hook in pairs]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class PlainHuggingFace(Worker):
    how = {  # noqa: RUF012
        "forward": "model(ids)",
        "capture_outputs": "60 forward hooks that keep the output",
        "capture_everything": "a forward hook on every module",
        "patch/loop": "one forward and one hook a patch",
        "patch/batched": "64 patches a forward, logits_to_keep=1",
        "ablate/loop": "one forward and one hook a neuron",
        "ablate/batched": "64 neurons a forward, logits_to_keep=1",
        "generate": "generate() under one forward hook",
        "last_logits/last": "logits_to_keep=1",
        "last_logits/all": "logits_to_keep=0, then the last row",
    }

    def load(self, setup: Setup) -> None:
        self.setup = setup
        self.model = AutoModelForCausalLM.from_pretrained(setup.folder, dtype=torch.float32).eval()
        self.blocks = self.model.model.layers
        self.vector = torch.tensor(setup.vector)

    def logits(self, tokens: torch.Tensor, keep: int = 0) -> torch.Tensor:
        return self.model(tokens, logits_to_keep=keep, use_cache=False).logits[:, -1]

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.logits(tokens)[0]

    def capture_outputs(self, tokens: torch.Tensor, variant: str) -> list[torch.Tensor]:
        kept: list[torch.Tensor] = []

        def keep(_module: torch.nn.Module, _inputs: Any, output: Any) -> None:
            kept.append(tensor_of(output))

        with hooked(*((part, keep) for block in self.blocks for part in (block.self_attn, block.mlp))):
            self.logits(tokens)
        return kept

    def capture_everything(self, tokens: torch.Tensor, variant: str) -> list[torch.Tensor]:
        kept: list[torch.Tensor] = []

        def keep(_module: torch.nn.Module, _inputs: Any, output: Any) -> None:
            if isinstance(tensor_of(output), torch.Tensor):
                kept.append(tensor_of(output))

        with hooked(*((module, keep) for name, module in self.model.named_modules() if name)):
            logits_V = self.logits(tokens)[0]
        return [*kept, logits_V]

    def clean_residuals(self) -> list[torch.Tensor]:
        kept: list[torch.Tensor] = []
        with hooked(*((block, lambda _m, _i, output: kept.append(tensor_of(output))) for block in self.blocks)):
            self.logits(torch.tensor([self.setup.short]), keep=1)
        return kept

    def patch(self, positions: str, variant: str) -> torch.Tensor:
        clean = self.clean_residuals()
        corrupted = torch.tensor([self.setup.corrupted])
        sweep = cells(len(self.blocks), corrupted.shape[1], positions)
        found: list[torch.Tensor] = []
        for rows in chunks(sweep, 1 if variant == "loop" else 64):

            def write_into(layer: int, rows: list[tuple[int, int]] = rows) -> Callable[..., Any]:
                def write(_module: torch.nn.Module, _inputs: Any, output: Any) -> Any:
                    edited = tensor_of(output).clone()
                    for row, (at, position) in enumerate(rows):
                        if at == layer:
                            edited[row, position] = clean[layer][0, position]
                    return (edited, *output[1:]) if isinstance(output, tuple) else edited

                return write

            touched = sorted({layer for layer, _ in rows})
            with hooked(*((self.blocks[layer], write_into(layer)) for layer in touched)):
                keep = 0 if variant == "loop" else 1
                logits_BV = self.logits(corrupted.expand(len(rows), -1), keep=keep)
            found.append(logit_difference(logits_BV, self.setup))
        return as_grid(found, len(self.blocks), positions)

    def ablate(self, positions: str, neurons: list[int], variant: str) -> torch.Tensor:
        tokens = torch.tensor([self.setup.short])
        where = slice(-1, None) if positions == "last" else slice(None)
        found: list[torch.Tensor] = []
        for rows in chunks(neurons, 1 if variant == "loop" else 64):

            def silence(_module: torch.nn.Module, inputs: Any, rows: list[int] = rows) -> Any:
                edited = inputs[0].clone()
                for row, neuron in enumerate(rows):
                    edited[row, where, neuron] = 0
                return (edited,)

            with hooked((self.blocks[ABLATED_LAYER].mlp.down_proj, silence), before=True):
                keep = 0 if variant == "loop" else 1
                logits_BV = self.logits(tokens.expand(len(rows), -1), keep=keep)
            found.append(logit_difference(logits_BV, self.setup))
        return torch.cat(found)

    def generate(self, variant: str) -> torch.Tensor:
        def steer(_module: torch.nn.Module, _inputs: Any, output: Any) -> Any:
            return (output[0] + self.vector, *output[1:]) if isinstance(output, tuple) else output + self.vector

        tokens = torch.tensor([self.setup.opening])
        with hooked((self.blocks[STEERED_LAYER], steer)):
            whole = self.model.generate(
                tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=NEW_TOKENS, do_sample=False
            )
        return whole[0, tokens.shape[1] :]

    def last_logits(self, variant: str) -> torch.Tensor:
        return self.logits(torch.tensor([self.setup.short]), keep=1 if variant == "last" else 0)[0]


if __name__ == "__main__":
    serve(PlainHuggingFace())
