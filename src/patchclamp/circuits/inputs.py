"""What a destination makes of the residual stream it reads: one head's queries, keys or values.

Through the model's own modules: the block's norm, the projection's part for that head, and the norm on queries and
keys where the family has one. Proved against the model's own values where a run begins (`wiring.py`).

Shape suffixes: R rows, T tokens, D model width, E head width.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from patchclamp.errors import SiteError
from patchclamp.model.anatomy import Anatomy, part, weight_in_out


@dataclass(frozen=True)
class Reading:
    """How one point (q, k or v) of one block reads the stream."""

    norm: nn.Module
    weights: Tensor
    """[units, D, E]."""
    biases: Tensor | None
    """[units, E]."""
    after: nn.Module | None
    """The norm on queries or keys."""
    layout: str
    """How `after` wants its input."""

    @property
    def each_alone(self) -> bool:
        """Whether `after` is the same for every head and looks at one head at a time."""
        weight = getattr(self.after, "weight", None)
        return self.after is None or (weight is not None and tuple(weight.shape) == (self.weights.shape[-1],)
                                      and self.layout in ("bhte", "bthe"))

    def __call__(self, x_RTD: Tensor, unit: int) -> Tensor:
        """One unit's value of streams, [R, T, E]. Hooks on the modules are passed by."""
        hidden_RTD = self.norm.forward(x_RTD)
        if self.after is None:
            return self._project(hidden_RTD, unit)
        after = self.after.forward
        if self.each_alone:
            return after(self._project(hidden_RTD, unit))
        every = [self._project(hidden_RTD, i) for i in range(len(self.weights))]
        if self.layout == "flat":
            width = self.weights.shape[-1]
            return after(torch.cat(every, -1))[..., unit * width : (unit + 1) * width]
        side = 1 if self.layout == "bhte" else 2
        return after(torch.stack(every, side)).select(side, unit)

    def _project(self, hidden_RTD: Tensor, unit: int) -> Tensor:
        value_RTE = hidden_RTD @ self.weights[unit]
        return value_RTE if self.biases is None else value_RTE + self.biases[unit]


def reading(anatomy: Anatomy, point: str, layer: int) -> Reading:
    """How a block reads queries, keys or values off the stream. SiteError where no module shows them."""
    tap = anatomy.tap(point, layer)  # says why a model has none
    block = anatomy.blocks[layer]
    candidates = getattr(anatomy.family, point)
    found = [(heads, module) for heads in candidates if (module := part(block, heads.path)) is not None]
    heads, module = found[-1]
    after, layout = (found[0][1], found[0][0].layout) if len(found) > 1 else (None, "flat")
    if not hasattr(module, "weight") or module.weight.dim() != 2:
        raise SiteError(f"{point}.{layer}: {heads.path} is no projection of the residual stream")
    plain = anatomy.projection_tap(point, layer, heads) if after is not None else tap
    bias_O = getattr(module, "bias", None)
    return Reading(anatomy.attn_norm(layer), plain.split(weight_in_out(module)).permute(1, 0, 2),
                   None if bias_O is None else plain.split(bias_O), after, layout)


def mlp_entry(anatomy: Anatomy, layer: int) -> tuple[Any, nn.Module | None]:
    """The module before which the MLP's stream can be put in another's place, and the norm that the stream has passed
    by then, if any."""
    middle = anatomy.mid_module(layer)
    if middle is not None:
        return middle, None
    return part(anatomy.blocks[layer], anatomy.family.mlp_core), anatomy.attn_norm(layer)
