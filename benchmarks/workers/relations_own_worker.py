"""patchclamp's Jacobians, and torch's own: `torch.autograd.functional.jacobian` of the whole prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from timed_common import Way, serve

import patchclamp as pc
from patchclamp.forward.jacobian import jacobians


def build(setup: dict[str, Any]) -> dict[str, Way]:
    model = pc.load(setup["folder"])
    ids, position = tuple(setup["ids"]), setup["position"]

    def own(layers: Sequence[int]) -> torch.Tensor:
        return jacobians(model, ids, position, layers)

    def plain(layers: Sequence[int], vectorize: bool) -> torch.Tensor:
        return torch.stack([_plain(model.hf, ids, position, layer, vectorize) for layer in layers])

    return {"patchclamp": own, "torch": lambda layers: plain(layers, False),
            "torch, vectorized": lambda layers: plain(layers, True)}


def _plain(hf: Any, ids: Sequence[int], position: int, layer: int, vectorize: bool) -> torch.Tensor:
    """The last block's stream at the end by a block's at the subject, the whole prompt run anew."""
    seen: dict[str, torch.Tensor] = {}
    blocks = hf.model.layers

    def first(output: Any) -> torch.Tensor:
        return output[0] if isinstance(output, tuple) else output

    keeping = blocks[layer].register_forward_hook(lambda _, args, output: seen.update(h=first(output)[0, position]))
    with torch.no_grad():
        hf.model(torch.tensor([ids]), use_cache=False)
    keeping.remove()

    def rest(h_D: torch.Tensor) -> torch.Tensor:
        def put(_: Any, args: Any, output: Any) -> Any:
            stream = first(output).clone()
            stream[0, position] = h_D
            return (stream, *output[1:]) if isinstance(output, tuple) else stream

        handles = [blocks[layer].register_forward_hook(put),
                   blocks[-1].register_forward_hook(lambda _, args, output: seen.update(z=first(output)[0, -1]))]
        hf.model(torch.tensor([ids]), use_cache=False)
        for handle in handles:
            handle.remove()
        return seen["z"]

    return torch.autograd.functional.jacobian(rest, seen["h"].detach(), vectorize=vectorize)


if __name__ == "__main__":
    serve(("torch", "transformers", "patchclamp"), build)
