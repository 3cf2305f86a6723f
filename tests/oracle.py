"""Brute force, to judge the engine by: bare PyTorch hooks on the Hugging Face module, one prompt, one whole pass.

Nothing here knows patchclamp. The parts are found by module path, from a table of its own.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Parts(NamedTuple):
    """Paths of the blocks, and below a block of what is added to the residual stream and of what projects it."""

    blocks: str = "model.layers"
    attn: str = "self_attn"
    out_proj: str = "self_attn.o_proj"
    mlp: str = "mlp"
    down_proj: str = "mlp.down_proj"
    attention: str = "self_attn"


SANDWICH = Parts(attn="post_attention_layernorm", mlp="post_feedforward_layernorm")
PARTS = {
    "gpt2": Parts("transformer.h", "attn", "attn.c_proj", "mlp", "mlp.c_proj", "attn"),
    "gpt_neo": Parts("transformer.h", "attn", "attn.attention.out_proj", "mlp", "mlp.c_proj", "attn.attention"),
    "gptj": Parts("transformer.h", "attn", "attn.out_proj", "mlp", "mlp.fc_out", "attn"),
    "gpt_neox": Parts("gpt_neox.layers", "attention", "attention.dense", "mlp", "mlp.dense_4h_to_h", "attention"),
    "opt": Parts("model.decoder.layers", "self_attn", "self_attn.out_proj", "fc2", "fc2"),
    "bloom": Parts(
        "transformer.h",
        "self_attention.dense",
        "self_attention.dense",
        "mlp.dense_4h_to_h",
        "mlp.dense_4h_to_h",
        "self_attention",
    ),
    "falcon": Parts(
        "transformer.h", "self_attention", "self_attention.dense", "mlp", "mlp.dense_4h_to_h", "self_attention"
    ),
    "mpt": Parts("transformer.blocks", "attn", "attn.out_proj", "ffn.down_proj", "ffn.down_proj", "attn"),
    "phi": Parts(out_proj="self_attn.dense", down_proj="mlp.fc2"),
    "gemma2": SANDWICH,
    "gemma3_text": SANDWICH,
    "olmo2": SANDWICH,
}


class Change(NamedTuple):
    """`fn` applied to the value [tokens, width] that a point of a block has at `tokens` (None: all)."""

    point: str
    layer: int
    fn: Callable[[Tensor], Tensor]
    tokens: Sequence[int] | None = None


def find(root: nn.Module, path: str) -> nn.Module:
    """The module at a dotted path."""
    return root.get_submodule(path)


def parts_of(hf: nn.Module) -> Parts:
    """The paths for a model."""
    return PARTS.get(hf.config.model_type, Parts())


def multiplier(hf: nn.Module) -> float:
    """What both outputs of a block are multiplied by as they are added (Granite)."""
    return float(getattr(hf.config, "residual_multiplier", 1.0))


def place(hf: nn.Module, point: str, layer: int) -> tuple[nn.Module, str]:
    """The module where a point's value passes, and whether as its input or its output."""
    parts = parts_of(hf)
    block = find(hf, parts.blocks)[layer]
    side = {"embed": "in", "resid_pre": "in", "resid": "out"}
    if point in side:
        return block, side[point]
    if point in ("attn", "mlp"):
        return find(block, getattr(parts, point)), "out"
    return find(block, parts.out_proj if point == "head" else parts.down_proj), "in"


@contextmanager
def hooked(module: nn.Module, side: str, fn: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    """Call `fn` on a module's hidden states, and put what it returns in their place."""

    def before(_: nn.Module, args: tuple, kwargs: dict):
        new = fn(args[0] if args else kwargs["hidden_states"])
        if new is None:
            return None
        return ((new, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": new})

    def after(_: nn.Module, __: tuple, output):
        new = fn(output[0] if isinstance(output, tuple) else output)
        if new is None:
            return None
        return (new, *output[1:]) if isinstance(output, tuple) else new

    handle = (
        module.register_forward_pre_hook(before, with_kwargs=True)
        if side == "in"
        else module.register_forward_hook(after)
    )
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def capture(hf: nn.Module, ids: Sequence[int], point: str, layer: int) -> Tensor:
    """The value at a point of a block [T, width]; for the parts of a fused residual stream, their sum."""
    if point == "resid_mid":
        return capture(hf, ids, "resid_pre", layer) + capture(hf, ids, "attn", layer)
    seen: list[Tensor] = []
    module, side = place(hf, point, layer)
    with hooked(module, side, lambda x: seen.append(x.clone())):
        hf(torch.tensor([list(ids)]), use_cache=False)
    value = seen[-1].reshape(len(ids), -1)
    return value * multiplier(hf) if point in ("attn", "mlp") else value


@contextmanager
def changed(hf: nn.Module, change: Change, n_tokens: int) -> Iterator[None]:
    """A model with one change in force."""
    scale = multiplier(hf) if change.point in ("attn", "mlp") else 1.0
    tokens = list(range(n_tokens)) if change.tokens is None else list(change.tokens)

    def apply(x: Tensor) -> Tensor:
        flat = (x * scale).reshape(n_tokens, -1).clone()
        flat[tokens] = change.fn(flat[tokens])
        return (flat / scale).view_as(x)

    if change.point == "resid_mid":
        with _changed_middle(hf, change, n_tokens, tokens):
            yield
    else:
        module, side = place(hf, change.point, change.layer)
        with hooked(module, side, apply):
            yield


@contextmanager
def _changed_middle(hf: nn.Module, change: Change, n_tokens: int, tokens: list[int]) -> Iterator[None]:
    """The stream between attention and MLP has no module of its own: what attention adds takes the difference."""
    entered: list[Tensor] = []
    scale = multiplier(hf)

    def shift(attn: Tensor) -> Tensor:
        middle = entered[-1] + attn * scale
        new = middle.clone()
        new[0, tokens] = change.fn(middle[0, tokens])
        return attn + (new - middle) / scale

    block, _ = place(hf, "resid_pre", change.layer)
    module, _ = place(hf, "attn", change.layer)
    with hooked(block, "in", lambda x: entered.append(x.clone())), hooked(module, "out", shift):
        yield


@torch.no_grad()
def logits(hf: nn.Module, ids: Sequence[int], changes: Sequence[Change] = ()) -> Tensor:
    """Logits [T, V] under changes, which come into force in the given order."""
    if changes:
        with changed(hf, changes[0], len(ids)):
            return logits(hf, ids, changes[1:])
    return hf(torch.tensor([list(ids)]), use_cache=False).logits[0]


@torch.no_grad()
def greedy(hf: nn.Module, ids: Sequence[int], n: int, changes_at: Callable[[int, int], list[Change]]) -> list[int]:
    """`n` greedy tokens, the whole text read again for each of them. `changes_at(prompt, total)` gives the changes
    for a text of `total` tokens, the first `prompt` of them the prompt."""
    text = list(ids)
    for _ in range(n):
        text.append(int(logits(hf, text, changes_at(len(ids), len(text)))[-1].argmax()))
    return text[len(ids) :]
