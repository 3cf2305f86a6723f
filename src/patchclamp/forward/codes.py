"""Sparse codes: which latents are active for which input, and arithmetic that only touches those.

Of B inputs and L latents k are active each; k is 32 where L is 9,216. Decoding and all gradients are sums over the
active pairs alone: B·k·D multiplications in place of B·L·D, four times a step. What stays dense is one product, the
encoder's, without which nobody knows which latents are active (`screened.py` makes most of it in bfloat16).

Shape suffixes: B inputs, D width, L latents, P active pairs, in the order of inputs.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 (its usual name)

STRIDE = 32
"""Latents in a group whose greatest is looked at before the latents themselves are."""


@dataclass(frozen=True)
class Active:
    """The active pairs of B inputs, without their values."""

    latents: Tensor
    starts: Tensor
    """The pairs of input b begin at starts[b]."""
    n_latents: int

    @classmethod
    def top(cls, latents_BK: Tensor, n_latents: int) -> "Active":
        """From equally many latents an input."""
        n, k = latents_BK.shape
        starts_B = torch.arange(0, n * k, k, device=latents_BK.device) if k else latents_BK.new_zeros(n)
        return cls(latents_BK.reshape(-1), starts_B, n_latents)

    @classmethod
    def where(cls, active_BL: Tensor) -> "Active":
        """From a mask."""
        counts_B = active_BL.sum(1)
        return cls(active_BL.nonzero()[:, 1], counts_B.cumsum(0) - counts_B, active_BL.shape[1])

    def only(self, keep_P: Tensor) -> "Active":
        """Those of the pairs that a mask names."""
        if bool(keep_P.all()):
            return self
        counts_B = torch.bincount(self.inputs[keep_P], minlength=len(self.starts))
        return Active(self.latents[keep_P], counts_B.cumsum(0) - counts_B, self.n_latents)

    @cached_property
    def inputs(self) -> Tensor:
        """The input of each pair."""
        ends_B = torch.cat([self.starts[1:], self.starts.new_tensor([len(self.latents)])])
        return torch.repeat_interleave(ends_B - self.starts)

    @cached_property
    def by_latent(self) -> tuple[Tensor, Tensor]:
        """The order of pairs by latent, and where each latent's begin."""
        order_P = self.latents.argsort(stable=True)
        counts_L = torch.bincount(self.latents, minlength=self.n_latents)
        return order_P, counts_L.cumsum(0) - counts_L

    def sum_by_latent(self, rows_BD: Tensor, weights_P: Tensor) -> Tensor:
        """Σ over a latent's pairs of weight · the input's row, [L, D]: the gradient of a weight matrix."""
        order_P, starts_L = self.by_latent
        if not len(order_P):
            return rows_BD.new_zeros(self.n_latents, rows_BD.shape[1])
        return F.embedding_bag(self.inputs[order_P], rows_BD, starts_L, mode="sum",
                               per_sample_weights=weights_P[order_P])

    def total_by_latent(self, weights_P: Tensor) -> Tensor:
        """Σ over a latent's pairs, [L]: the gradient of a bias. Summed in a fixed order."""
        order_P, starts_L = self.by_latent
        running_P = torch.cat([weights_P.new_zeros(1, dtype=torch.float64), weights_P[order_P].double().cumsum(0)])
        ends_L = torch.cat([starts_L[1:], starts_L.new_tensor([len(order_P)])])
        return (running_P[ends_L] - running_P[starts_L]).to(weights_P.dtype)

    def dense(self, values_P: Tensor) -> Tensor:
        """The codes as a matrix, [B, L]."""
        out_BL = values_P.new_zeros(len(self.starts), self.n_latents)
        return out_BL.index_put((self.inputs, self.latents), values_P)


def decode(active: Active, values_P: Tensor, weight_LD: Tensor) -> Tensor:
    """Σ values · the latents' rows, [B, D]. Gradients reach values and weight."""
    out_BD = F.embedding_bag(active.latents, weight_LD.detach(), active.starts, mode="sum",
                             per_sample_weights=values_P)
    out: Tensor = _Decoded.apply(out_BD, weight_LD, values_P.detach(), active)
    return out


def encode_at(
    active: Active, pre_P: Tensor, x_BD: Tensor, weight_LD: Tensor, bias_L: Tensor, shift_D: Tensor
) -> Tensor:
    """(x - shift) · weight + bias at the active pairs, where it is known already: `pre_P`. Gradients reach weight, bias
    and shift as though it were computed here."""
    out: Tensor = _Encoded.apply(pre_P, weight_LD, bias_L, shift_D, x_BD, active)
    return out


class _Decoded(torch.autograd.Function):
    """What was decoded, and the way back to the decoder's weight."""

    @staticmethod
    def forward(ctx: Any, out_BD: Tensor, weight_LD: Tensor, values_P: Tensor, active: Active) -> Tensor:
        ctx.active, ctx.values_P = active, values_P
        return out_BD.view_as(out_BD)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (grad_BD,) = gradients
        weight = ctx.active.sum_by_latent(grad_BD.contiguous(), ctx.values_P) if ctx.needs_input_grad[1] else None
        return grad_BD, weight, None, None


class _Encoded(torch.autograd.Function):
    """The encoder at the active pairs, and the way back to its parameters."""

    @staticmethod
    def forward(
        ctx: Any, pre_P: Tensor, weight_LD: Tensor, bias_L: Tensor, shift_D: Tensor, x_BD: Tensor, active: Active
    ) -> Tensor:
        ctx.active = active
        ctx.save_for_backward(weight_LD, shift_D, x_BD)
        return pre_P.view_as(pre_P)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (grad_P,) = gradients
        weight_LD, shift_D, x_BD = ctx.saved_tensors
        active: Active = ctx.active
        bias_L = active.total_by_latent(grad_P)
        # Σ grad · (x - shift) = Σ grad · x - (Σ grad) · shift
        to_weight_LD = active.sum_by_latent(x_BD, grad_P).addr_(bias_L, shift_D, alpha=-1)
        return None, to_weight_LD, bias_L, -(bias_L @ weight_LD), None, None


def select_top(pre_BL: Tensor, k: int) -> tuple[Tensor, Active]:
    """The k greatest of each input, in no order: their values [P] and pairs."""
    values_BK, latents_BK = pre_BL.topk(k, 1, sorted=False)
    return values_BK.reshape(-1), Active.top(latents_BK, pre_BL.shape[1])


def select_batch_top(pre_BL: Tensor, count: int) -> tuple[Tensor, Active]:
    """The `count` greatest of all inputs together, exactly, in the order of inputs.

    The greatest of every group of 32 latents come first: the `count` greatest values lie in the `count` groups whose
    greatest is greatest, so that 32 · count values are ranked in place of B · L."""
    n, n_latents = pre_BL.shape
    if n_latents % STRIDE or count * STRIDE >= pre_BL.numel():
        flat_P = pre_BL.flatten().topk(count, sorted=False).indices.sort().values
    else:
        groups = n_latents // STRIDE
        of_group_BSG = pre_BL.view(n, STRIDE, groups)
        best_P = of_group_BSG.amax(1).flatten().topk(count, sorted=False).indices
        inputs_P, group_P = best_P // groups, best_P % groups
        members_PS = of_group_BSG[inputs_P, :, group_P]
        kept_P = members_PS.flatten().topk(count, sorted=False).indices
        where_P = kept_P // STRIDE
        flat_P = (inputs_P[where_P] * n_latents + kept_P % STRIDE * groups + group_P[where_P]).sort().values
    counts_B = torch.bincount(flat_P // n_latents, minlength=n)
    active = Active(flat_P % n_latents, counts_B.cumsum(0) - counts_B, n_latents)
    return pre_BL.flatten()[flat_P], active


def select_where(pre_BL: Tensor, above: Tensor | float) -> tuple[Tensor, Active]:
    """All pairs above a threshold, one or a latent's own."""
    mask_BL = pre_BL > above
    return pre_BL[mask_BL], Active.where(mask_BL)
