"""The greatest entries of x · weight + bias, without all of it in float32: bfloat16 says where to look.

    x·w = x'·w' + (x - x')·w' + x·(w - w')  ≤  x'·w' + ‖x - x'‖‖w'‖ + ‖x‖‖w - w'‖        x', w' rounded to bfloat16

The right side is one product in bfloat16, the two norms and the bias being columns more: an upper bound of every entry.
The entries with the greatest bounds are computed in float32. If the least of those wanted is above the bound of every
entry left out, no entry left out is among the greatest; where it is not, all entries are computed.

Processors multiply bfloat16 several times as fast as float32, if they have instructions for it; without them nothing is
gained, and nothing is screened.
"""

import warnings
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from patchclamp.forward.codes import Active, select_batch_top

AT_ONCE = 512
LOOKED_AT = 2
"""Entries computed for each that is wanted."""
SAMPLED = 16
LEAST = 1 << 20
"""Weights below which it is not worth the trouble."""
ROUNDING = 2.0**-7
"""More than bfloat16's relative rounding, 2^-8, of a number and of what was made of it."""


@cache
def has_bfloat16() -> bool:
    """Whether this processor has instructions for products of bfloat16."""
    cpu = torch.cpu
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(cpu, name)() for name in names if hasattr(cpu, name))


def is_worthwhile(weight_LD: Tensor, k: int) -> bool:
    """Whether screening this product is faster than the product."""
    return (weight_LD.device.type == "cpu" and weight_LD.dtype == torch.float32 and has_bfloat16()
            and weight_LD.numel() >= LEAST and 8 * LOOKED_AT * k <= len(weight_LD))


@dataclass(frozen=True)
class Screen:
    """What a product's entries are bounded with, made once for many x."""

    weight: Tensor
    bias: Tensor
    columns: Tensor
    """[L, D + 4], bfloat16."""

    @classmethod
    def of(cls, weight_LD: Tensor, bias_L: Tensor) -> "Screen":
        """For x · weight + bias."""
        width = weight_LD.shape[1]
        columns = torch.empty(len(weight_LD), width + 4, dtype=torch.bfloat16)
        for whole_LD, into in zip(weight_LD.split(AT_ONCE), columns.split(AT_ONCE), strict=True):
            near_LD = whole_LD.bfloat16()
            norm_L = torch.linalg.vector_norm(near_LD.float(), dim=1)
            # sums of D products in float32, once here and once where they are computed, in whatever order
            slack_L = (width + 4) * 2.0**-22 * norm_L
            off_L = torch.linalg.vector_norm(whole_LD - near_LD, dim=1) + slack_L
            into[:, :width], into[:, width], into[:, width + 1] = near_LD, _up(norm_L), _up(off_L)
        near_L = bias_L.bfloat16()
        columns[:, width + 2], columns[:, width + 3] = near_L, _up((bias_L - near_L).clamp(min=0))
        return cls(weight_LD, bias_L, columns)

    def bounds(self, x_ND: Tensor) -> Tensor:
        """No less than x · weight + bias but for the last rounding, [N, L], bfloat16."""
        near_ND = x_ND.bfloat16()
        off_N = torch.linalg.vector_norm(x_ND - near_ND, dim=1)
        ones_N = torch.ones_like(off_N, dtype=torch.bfloat16)
        more = torch.stack([_up(off_N), _up(torch.linalg.vector_norm(x_ND, dim=1)), ones_N, ones_N], dim=1)
        return torch.cat([near_ND, more], dim=1) @ self.columns.T

    def at(self, x_ND: Tensor, active: Active) -> Tensor:
        """x · weight + bias at some pairs, float32."""
        n_pairs = len(active.latents)
        _hear_warning()
        ends = torch.cat([active.starts, active.starts.new_tensor([n_pairs])])
        where = torch.sparse_csr_tensor(ends, active.latents, torch.zeros(n_pairs), (len(x_ND), len(self.weight)),
                                        check_invariants=False)
        products_P = torch.sparse.sampled_addmm(where, x_ND, self.weight.T, beta=0.0).values()
        return products_P + self.bias[active.latents]

    def all(self, x_ND: Tensor) -> Tensor:
        """Every entry, float32."""
        return torch.addmm(self.bias, x_ND, self.weight.T)


@cache
def _hear_warning() -> None:
    """torch says once a process that matrices of this kind are in beta, which is no news to anybody here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.zeros(1, 1).to_sparse_csr()


def _up(values: Tensor) -> Tensor:
    """bfloat16, no less than these numbers, which are not negative."""
    return (values * (1 + ROUNDING)).bfloat16()


def _most(bounds: Tensor) -> Tensor:
    """What may lie behind rounded bounds."""
    least = bounds.float()
    return least + ROUNDING * least.abs()


@torch.no_grad()
def top_of_product(x_BD: Tensor, weight_LD: Tensor, bias_L: Tensor, k: int) -> tuple[Tensor, Active]:
    """`select_top` of x · weight + bias: the k greatest of each input."""
    screen = Screen.of(weight_LD, bias_L)
    values, latents = [], []
    for some_ND in x_BD.split(AT_ONCE):
        highest = screen.bounds(some_ND).topk(LOOKED_AT * k, 1, sorted=False)
        looked_NM = screen.at(some_ND, Active.top(highest.indices, len(weight_LD))).view_as(highest.indices)
        best = looked_NM.topk(k, 1, sorted=False)
        own_NK, latents_NK = best.values, highest.indices.gather(1, best.indices)
        is_sure_N = own_NK.amin(1) > _most(highest.values.amin(1))
        if not bool(is_sure_N.all()):
            rows_R = (~is_sure_N).nonzero()[:, 0]
            exact = screen.all(some_ND[rows_R]).topk(k, 1, sorted=False)
            own_NK[rows_R], latents_NK[rows_R] = exact.values, exact.indices
        values.append(own_NK)
        latents.append(latents_NK)
    return torch.cat(values).reshape(-1), Active.top(torch.cat(latents), len(weight_LD))


@torch.no_grad()
def batch_top_of_product(x_BD: Tensor, weight_LD: Tensor, bias_L: Tensor, count: int) -> tuple[Tensor, Active]:
    """`select_batch_top` of x · weight + bias: the `count` greatest of all inputs together.

    Looked at is what has a bound above `least`, which every 16th input suggests."""
    screen, n_latents = Screen.of(weight_LD, bias_L), len(weight_LD)
    some_NL = screen.bounds(x_BD[::SAMPLED])
    wanted = min(some_NL.numel(), LOOKED_AT * count * len(some_NL) // len(x_BD))
    least = some_NL.flatten().topk(wanted, sorted=False).values.min()
    flat = [(screen.bounds(some_ND) > least).flatten().nonzero()[:, 0] for some_ND in x_BD.split(AT_ONCE)]
    flat_P = torch.cat([own + number * AT_ONCE * n_latents for number, own in enumerate(flat)])
    values_P = screen.at(x_BD, _pairs(flat_P, len(x_BD), n_latents))
    best_P = values_P.topk(min(count, len(values_P)), sorted=False).indices.sort().values
    own_P = values_P[best_P]
    if len(own_P) < count or not bool(own_P.min() > _most(least)):
        return select_batch_top(screen.all(x_BD), count)
    return own_P, _pairs(flat_P[best_P], len(x_BD), n_latents)


def _pairs(flat_P: Tensor, n: int, n_latents: int) -> Active:
    """From places in the matrix of n inputs, in their order."""
    counts_B = torch.bincount(flat_P // n_latents, minlength=n)
    return Active(flat_P % n_latents, counts_B.cumsum(0) - counts_B, n_latents)
