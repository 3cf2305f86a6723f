"""What is kept of the values of many units over a corpus: little, of one size, and mergeable.

For each unit: how many tokens, their sum and sum of squares, how many above zero, the least and the greatest value, a
histogram, the k windows with the greatest and those with the least value, and the values at places drawn beforehand.
A sketch does not know where values come from: neurons, or features of an autoencoder.

A window is a sequence of T tokens; a *place* is one token of one window, window · T + position. One extreme is one
64-bit number, the value's order above and the place's below: keys never tie, so the best k of a union are the best k
of the parts' best, however a corpus was cut. (Values are compared as float32; of equal ones the earlier is first.)

Shape suffixes: W windows, T tokens, F units, K extremes kept, P places sampled, B bins.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

MOST_PLACES = 2**32 - 1
EMPTY = torch.iinfo(torch.int64).min
STEPS = 36
"""Half-octaves of magnitude told apart, from 2⁻⁸ on: [1, 1.5) and [1.5, 2) times a power of two."""
BINS = 2 * STEPS + 1
IN_CACHE = 16
"""Windows folded in at once: what is made of them on the way stays in the processor's cache, and small."""
_FIRST = 2 * (127 - 8)
"""2⁻⁸ as float32's exponent (offset 127) and first digit of the mantissa: the upper nine bits below the sign."""
MAGNITUDES = tuple((1 + step % 2 / 2) * 2.0 ** (step // 2 - 8) for step in range(STEPS))
EDGES = (*(-m for m in reversed(MAGNITUDES)), *MAGNITUDES)
"""Between the histogram's bins; the first and the last are open."""


class Sketch:
    """Statistics of F units. `kept`: extremes kept a side; `places`: those whose values are kept, all of them in the
    windows that will be added (NaN until they are)."""

    def __init__(self, units: int, kept: int, places: Sequence[int] = ()) -> None:
        self.kept = kept
        self.count = torch.zeros((), dtype=torch.int64)
        self.total_F = torch.zeros(units, dtype=torch.float64)
        self.squares_F = torch.zeros(units, dtype=torch.float64)
        self.active_F = torch.zeros(units, dtype=torch.int64)
        self.low_F = torch.full((units,), torch.inf)
        self.high_F = torch.full((units,), -torch.inf)
        self.histogram_FB = torch.zeros(units, BINS, dtype=torch.int64)
        self.top_FK = torch.full((units, kept), EMPTY)
        self.bottom_FK = torch.full((units, kept), EMPTY)
        self.places_P = torch.tensor(sorted(places), dtype=torch.int64)
        self.sample_PF = torch.full((len(places), units), torch.nan)

    def add(self, values_WTF: Tensor, windows: Sequence[int], skip: int = 1) -> None:
        """Take in the values of some windows, without their first `skip` tokens."""
        n_tokens = values_WTF.shape[1]
        first_W = torch.tensor(windows, dtype=torch.int64) * n_tokens + skip
        values_WTF = values_WTF[:, skip:].float()
        self.count += values_WTF.shape[0] * values_WTF.shape[1]
        at_once = IN_CACHE if values_WTF.device.type == "cpu" else len(values_WTF)
        folded = list(zip(*map(self._fold, values_WTF.split(at_once)), strict=True))
        high_WF, high_at_WF, low_WF, low_at_WF = (torch.cat(parts).cpu() for parts in folded)
        self.high_F = torch.maximum(self.high_F, high_WF.amax(0))
        self.low_F = torch.minimum(self.low_F, low_WF.amin(0))
        self._keep("top_FK", keys_of(high_WF, first_W[:, None] + high_at_WF).T)
        self._keep("bottom_FK", keys_of(-low_WF, first_W[:, None] + low_at_WF).T)
        self._sample(values_WTF, first_W.tolist())

    def _fold(self, values_WTF: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Add to the sums and counts, and return each window's greatest and least values and where they are."""
        ones_1T = values_WTF.new_ones(1, values_WTF.shape[1])
        scratch_WTF = torch.empty_like(values_WTF, memory_format=torch.contiguous_format)
        self.total_F += (ones_1T @ values_WTF).sum((0, 1), dtype=torch.float64).cpu()
        squares_WTF = torch.mul(values_WTF, values_WTF, out=scratch_WTF)
        self.squares_F += (ones_1T @ squares_WTF).sum((0, 1), dtype=torch.float64).cpu()
        active_WTF = torch.gt(values_WTF, 0, out=scratch_WTF)  # as 0 and 1, whose product with ones is a fast count
        self.active_F += (ones_1T @ active_WTF).sum((0, 1), dtype=torch.float64).long().cpu()
        self.histogram_FB += _histogram(values_WTF).cpu()
        return (*values_WTF.max(1), *values_WTF.min(1))

    def _keep(self, name: str, keys_FN: Tensor) -> None:
        setattr(self, name, torch.cat([getattr(self, name), keys_FN], 1).topk(self.kept, 1).values)

    def _sample(self, values_WTF: Tensor, first_W: list[int]) -> None:
        for own_TF, first in zip(values_WTF, first_W, strict=True):
            ends = torch.tensor([first, first + len(own_TF)])
            begin, end = torch.searchsorted(self.places_P, ends).tolist()
            if begin < end:
                positions_P = self.places_P[begin:end] - first
                self.sample_PF[begin:end] = own_TF[positions_P.to(own_TF.device)].cpu()

    @property
    def finite(self) -> bool:
        """Whether every value seen was a number."""
        return bool(torch.isfinite(self.high_F).all() and torch.isfinite(self.low_F).all())

    def merge(self, other: "Sketch") -> "Sketch":
        """The sketch of both corpora, which share no window. Exact in any order but for the last digits of sums."""
        out = Sketch(len(self.total_F), self.kept)
        out.count = self.count + other.count
        for name in ("total_F", "squares_F", "active_F", "histogram_FB"):
            setattr(out, name, getattr(self, name) + getattr(other, name))
        out.low_F, out.high_F = torch.minimum(self.low_F, other.low_F), torch.maximum(self.high_F, other.high_F)
        for name in ("top_FK", "bottom_FK"):
            setattr(out, name, getattr(self, name))
            out._keep(name, getattr(other, name))
        places_P = torch.cat([self.places_P, other.places_P])
        order = places_P.argsort()
        out.places_P, out.sample_PF = places_P[order], torch.cat([self.sample_PF, other.sample_PF])[order]
        return out

    def tensors(self) -> dict[str, Tensor]:
        """All of it, to be written to a file."""
        return {name: tensor.contiguous() for name, tensor in vars(self).items() if isinstance(tensor, Tensor)}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> "Sketch":
        """The sketch that gave these `tensors()`."""
        sketch = cls(len(tensors["total_F"]), tensors["top_FK"].shape[1])
        for name, tensor in tensors.items():
            setattr(sketch, name, tensor)
        return sketch


def keys_of(values: Tensor, places: Tensor) -> Tensor:
    """One number for value and place: greater for a greater value, then for an earlier place."""
    bits = (values + 0.0).view(torch.int32)  # + 0: minus zero becomes zero
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # below zero a greater pattern is a smaller float
    return (ordered.long() << 32) | (MOST_PLACES - places)


def values_of(keys: Tensor) -> Tensor:
    """The values in keys, float32."""
    ordered = (keys >> 32).to(torch.int32)
    return (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).view(torch.float32)


def places_of(keys: Tensor) -> Tensor:
    """The places in keys."""
    return MOST_PLACES - (keys & 0xFFFFFFFF)


def _histogram(values_WTF: Tensor) -> Tensor:
    """How many values of each unit lie in each bin, [F, B]: read off the bits, so that nothing is searched."""
    units = values_WTF.shape[2]
    bits = values_WTF.view(torch.int32) >> 22
    step = (bits & 511).clamp_(_FIRST - 1, _FIRST + STEPS - 1).sub_(_FIRST - 1)
    sign = bits.bitwise_right_shift_(9)  # 0, or -1 for a negative number
    own = torch.arange(units, dtype=torch.int32, device=bits.device) * BINS + STEPS
    bins = step.bitwise_xor_(sign).sub_(sign).add_(own)
    return torch.bincount(bins.reshape(-1), minlength=units * BINS).view(units, -1)
