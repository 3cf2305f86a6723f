"""Taps: where a value passes through the model's modules, how it lies there, and how it is read and written."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Tap:
    """Where in the module graph a point's value passes, and how it lies there.

    `side`: the module's input or output. Canonical shapes: [B,T,width], or [B,T,units,width] for heads.
    """

    module: nn.Module
    side: str
    units: int | None = None
    """Number of heads, where the value is split into heads."""
    layout: str = "flat"
    start: int = 0
    index: Tensor | None = None
    """For layouts no view can show: the last dimension's indices, [units, width]."""
    scale: float = 1.0
    in_place: bool = False
    """The tensor itself is the residual stream: an edit must write into it."""
    copy: bool = False
    """The block changes the tensor after it passed: a capture must copy."""

    def _shaped(self, raw: Tensor, n_tokens: int) -> Tensor:
        return raw.view(-1, n_tokens, raw.shape[-1]) if raw.dim() == 2 else raw

    def _view(self, x: Tensor) -> Tensor:
        if self.units is None:
            return x
        if self.index is not None:
            return x[..., self.index.to(x.device)]
        if self.layout == "bhte":
            return x.transpose(1, 2)
        if self.layout == "bthe":
            return x
        width = self.width(x)
        end = self.start + self.units * width
        own = x if end - self.start == x.shape[-1] else x[..., self.start : end]
        return own.view(*x.shape[:-1], self.units, width)  # not unflatten, whose Python costs more than the view

    def width(self, x: Tensor) -> int:
        return self._width or x.shape[-1] // (self.units or 1)

    _width: int = 0

    def split(self, numbers: Tensor) -> Tensor:
        """What belongs to each column of a projection [..., columns], by unit: [..., units, width]. A view where one
        can show it."""
        if self.index is not None:
            return numbers[..., self.index.to(numbers.device)]
        units = self.units or 1
        width = self._width or numbers.shape[-1] // units
        return numbers.narrow(-1, self.start, units * width).unflatten(-1, (units, width))

    def read(self, raw: Tensor, n_tokens: int) -> Tensor:
        """The canonical value; shares memory with `raw` where it can."""
        value = self._view(self._shaped(raw, n_tokens))
        if self.scale != 1.0:
            value = value * self.scale
        return value.clone() if self.copy and self.scale == 1.0 else value

    def gradient(self, gradient: Tensor, n_tokens: int) -> Tensor:
        """The gradient by the canonical value, from that by the raw tensor."""
        return self.read(gradient / self.scale**2, n_tokens)

    def write(self, raw: Tensor, n_tokens: int, change: Callable[[Tensor], None]) -> Tensor:
        """The tensor to put in `raw`'s place after `change` has edited the canonical value in place."""
        whole = raw if self.in_place else raw.clone()
        shaped = self._shaped(whole, n_tokens)
        view = self._view(shaped)
        if self.scale != 1.0:
            scaled = view * self.scale
            change(scaled)
            return scaled / self.scale
        change(view)
        if self.index is not None:
            shaped[..., self.index.to(shaped.device)] = view
        return whole


class Codec(Protocol):
    """What turns a value into few active numbers and says what each adds to the value: a sparse autoencoder."""

    @property
    def n_latents(self) -> int: ...
    @property
    def directions(self) -> Tensor:
        """What each number adds, [latents, width]."""
        ...

    def encode(self, x_ND: Tensor) -> Tensor:
        """The numbers, [N, latents]."""
        ...


class FeatureTap(Tap):
    """A point's value as an autoencoder's codes, [B,T,latents]. An edit of a code moves the value along its direction
    and leaves the rest, what the codes do not explain included."""

    def __init__(self, base: Tap, codec: Codec) -> None:
        super().__init__(base.module, base.side)
        object.__setattr__(self, "base", base)
        object.__setattr__(self, "codec", codec)

    base: Tap
    codec: Codec

    def read(self, raw: Tensor, n_tokens: int) -> Tensor:
        """The codes."""
        return self._codes(self.base.read(raw, n_tokens))

    def _codes(self, value_BTD: Tensor) -> Tensor:
        rows_ND = value_BTD.flatten(2).flatten(0, 1)  # heads side by side
        return self.codec.encode(rows_ND).view(*value_BTD.shape[:2], -1).to(value_BTD.dtype)

    def gradient(self, gradient: Tensor, n_tokens: int) -> Tensor:
        """By a code that moves the value along its direction: the gradient's part along it."""
        by_value_BTD = self.base.gradient(gradient, n_tokens).flatten(2)
        return by_value_BTD @ self.codec.directions.to(by_value_BTD).T

    def write(self, raw: Tensor, n_tokens: int, change: Callable[[Tensor], None]) -> Tensor:
        """The tensor to put in `raw`'s place after `change` has edited the codes in place."""
        def move(value_BTD: Tensor) -> None:
            codes_BTL = self._codes(value_BTD)
            edited_BTL = codes_BTL.clone()
            change(edited_BTL)
            step_BTL = edited_BTL - codes_BTL
            moves_L = (step_BTL != 0).flatten(0, 1).any(0)
            moved = (torch.ones_like(moves_L) if step_BTL.requires_grad else moves_L).nonzero()[:, 0]
            value_BTD += (step_BTL[..., moved] @ self.codec.directions[moved].to(value_BTD)).view_as(value_BTD)

        return self.base.write(raw, n_tokens, move)
