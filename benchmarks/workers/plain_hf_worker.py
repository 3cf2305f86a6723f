"""Plain transformers and torch hooks: the reference for every number, and the time of doing it by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from common import (
    ABLATED_LAYER,
    NEURONS_AT_ONCE,
    NEW_TOKENS,
    STEERED_LAYER,
    TABLE_TOKENS,
    Setup,
    Worker,
    as_grid,
    as_table,
    cells,
    choice_differences,
    choice_tokens,
    chunks,
    first_choice,
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


def padded(prompts: list[list[int]]) -> dict[str, torch.Tensor]:
    """One batch, filled up on the left, so that every prompt's last token stands in the last column."""
    width = max(map(len, prompts))
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
    return {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}


class PlainHuggingFace(Worker):
    how = {  # noqa: RUF012
        "forward": "model(ids)",
        "capture_outputs": "60 forward hooks that keep the output",
        "capture_everything": "a forward hook on every module",
        "patch/loop": "one forward and one hook a patch",
        "patch/batched": "64 patches a forward, logits_to_keep=1",
        "ablate/loop": "one forward and one hook a neuron",
        "ablate/batched": "64 neurons a forward, logits_to_keep=1",
        "sweep/batched": f"{NEURONS_AT_ONCE} neurons a forward, logits_to_keep=1",
        "generate": "generate() under one forward hook",
        "last_logits/last": "logits_to_keep=1",
        "last_logits/all": "logits_to_keep=0, then the last row",
        "lens_one/hidden": "output_hidden_states, norm, lm_head",
        "lens_one/bare": "no lens: model(ids, logits_to_keep=1)",
        "lens_many/hidden": "output_hidden_states, norm, lm_head, prompt by prompt",
        "lens_many/batched": "the same, all prompts in one padded forward, unembedded prompt by prompt",
        "lens_many/bare": "no lens: one padded forward, logits_to_keep=1",
        "patchscope": "generate() under one forward hook, layer by layer",
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

    def residuals(self, prompt: list[int]) -> list[torch.Tensor]:
        kept: list[torch.Tensor] = []
        with hooked(*((block, lambda _m, _i, output: kept.append(tensor_of(output))) for block in self.blocks)):
            self.logits(torch.tensor([prompt]), keep=1)
        return kept

    def patch(self, positions: str, variant: str) -> torch.Tensor:
        clean = self.residuals(self.setup.short)
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

    def sweep(self, neurons: list[tuple[int, int]], variant: str) -> torch.Tensor:
        tokens = choice_tokens(self.setup)
        base_N = choice_differences(self.logits(tokens, keep=1), self.setup)[0]
        found: list[torch.Tensor] = []
        for some in chunks(neurons, NEURONS_AT_ONCE):

            def silence_in(layer: int, some: list[tuple[int, int]] = some) -> Callable[..., Any]:
                def silence(_module: torch.nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
                    edited = inputs[0].clone()
                    for row, (at, unit) in enumerate(some):
                        if at == layer:
                            edited[row * len(tokens) : (row + 1) * len(tokens), -1, unit] = 0
                    return (edited,)

                return silence

            touched = sorted({layer for layer, _ in some})
            pairs = ((self.blocks[layer].mlp.down_proj, silence_in(layer)) for layer in touched)
            with hooked(*pairs, before=True):
                logits_RV = self.logits(tokens.repeat(len(some), 1), keep=1)
            found.append((choice_differences(logits_RV, self.setup) - base_N).mean(1))
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

    def streams(self, **inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The last position before the last block's output, [B, L - 1, D], and the logits [B, V]: transformers has
        already normed its last hidden state."""
        found = self.model(**inputs, output_hidden_states=True, logits_to_keep=1, use_cache=False)
        return torch.stack([hidden[:, -1] for hidden in found.hidden_states[:-1]], dim=1), found.logits[:, -1]

    def unembedded(self, early_LD: torch.Tensor, last_V: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.model.lm_head(self.model.model.norm(early_LD)), last_V[None]])

    def lens_one(self, variant: str) -> torch.Tensor:
        tokens = torch.tensor([self.setup.short])
        if variant == "bare":
            return self.logits(tokens, keep=1)
        early_BLD, last_BV = self.streams(input_ids=tokens)
        return self.unembedded(early_BLD[0], last_BV[0])

    def lens_many(self, prompts: list[list[int]], variant: str) -> torch.Tensor:
        if variant == "bare":
            return first_choice(self.model(**padded(prompts), logits_to_keep=1, use_cache=False).logits[:, -1])[None]
        batches = [padded(prompts)] if variant == "batched" else [{"input_ids": torch.tensor([p])} for p in prompts]
        found: list[torch.Tensor] = []
        for batch in batches:
            early_BLD, last_BV = self.streams(**batch)
            found += [first_choice(self.unembedded(*row)) for row in zip(early_BLD, last_BV, strict=True)]
        return torch.stack(found, dim=1)

    def patchscope(self, variant: str) -> torch.Tensor:
        """With each token by how much its logit is ahead of the second largest: [layers, tokens, 2]."""
        position, tokens = self.setup.placeholder, torch.tensor([self.setup.target])
        written: list[list[int]] = []
        ahead = torch.full((len(self.blocks), TABLE_TOKENS), torch.inf)
        for layer, state in enumerate(self.residuals(self.setup.source)):

            def put(_module: torch.nn.Module, _inputs: Any, output: Any, state: torch.Tensor = state) -> None:
                if tensor_of(output).shape[1] > 1:  # the prompt; new tokens come one by one
                    tensor_of(output)[0, position] = state[0, -1]

            with hooked((self.blocks[0], put)):
                found = self.model.generate(
                    tokens,
                    attention_mask=torch.ones_like(tokens),
                    max_new_tokens=TABLE_TOKENS,
                    do_sample=False,
                    output_logits=True,
                    return_dict_in_generate=True,
                )
            written.append(found.sequences[0, tokens.shape[1] :].tolist())
            first, second = torch.cat(found.logits).topk(2).values.T
            ahead[layer, : len(first)] = first - second
        return torch.stack([as_table(written).float(), ahead], dim=-1)


if __name__ == "__main__":
    serve(PlainHuggingFace())
