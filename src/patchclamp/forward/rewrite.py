"""Value vectors rewritten for the time of a run: what some neurons write to the residual stream, moved by a vector.

A neuron's value vector is its column of the MLP's down projection; it writes its activation times that vector (Geva et
al. 2021, arXiv 2012.14913). The weights stay as they are: what the moved vectors write besides is added to the
projection's output, which is the same sum.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from patchclamp.model.anatomy import part

if TYPE_CHECKING:
    from patchclamp.forward.model import Model


@dataclass(frozen=True, eq=False)
class MovedValues:
    """Neurons and how far each one's value vector is moved along one vector."""

    shares: Mapping[int, Mapping[int, float]]
    """Block -> neuron -> multiple of the vector."""
    vector: Tensor
    """[D]."""


@contextmanager
def rewritten(model: Model, moved: MovedValues | None) -> Iterator[None]:
    """Run the model with value vectors moved, other threads waiting; as it is for None."""
    with ExitStack() as stack:
        if moved is not None:
            stack.enter_context(model.in_turn())
        for layer, shares in (moved.shares if moved is not None else {}).items():
            assert moved is not None
            module: nn.Module = part(model.anatomy.blocks[layer], model.anatomy.family.down_proj)
            weight = next(module.parameters())
            units = torch.tensor(list(shares), device=weight.device)
            amounts = torch.tensor(list(shares.values()), device=weight.device, dtype=weight.dtype)
            vector = moved.vector.to(weight)

            def hook(_: nn.Module, args: Any, output: Tensor, units: Tensor = units, amounts: Tensor = amounts,
                     vector: Tensor = vector) -> Tensor:
                return output + (args[0][..., units] @ amounts)[..., None] * vector

            stack.callback(module.register_forward_hook(hook).remove)
        yield
