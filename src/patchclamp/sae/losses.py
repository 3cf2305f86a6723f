"""What an autoencoder is to make small, and the codes it makes it small with.

    topk, batchtopk   ‖e‖² + c · aux                           few by selection
    relu              ‖e‖² + λ Σ aᵢ ‖vᵢ‖                        few by the penalty; λ = 0 is a linear layer
    jumprelu          ‖e‖² + λ Σ 1[preᵢ > θᵢ]                   gradients to θ through a window of width ε about it
    gated             ‖e‖² + λ Σ relu(gateᵢ) + ‖y - V relu(gate)‖²    V, b_dec held fixed in the last
    matryoshka        mean over prefixes m of ‖y - V[:m] a[:m]‖²

Values are centred and scaled so that a row's mean square norm is D, D the width; all losses are over D. aux: the dead
latents that would be most active explain what the living leave over (Gao et al. 2024, appendix A.2). A step's sums are
over active pairs (`codes.py`), until so many are active that plain matrices are faster.

Of several processes each has a share of the latents and, of the data, a share of the inputs (`ranks.py`). L and P are
this process's own below.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from patchclamp.forward.codes import Active, decode, encode_at, select_batch_top, select_where
from patchclamp.forward.screened import batch_top_of_product, is_worthwhile, top_of_product
from patchclamp.sae.parameters import Recipe
from patchclamp.sae.ranks import Ranks, greatest

DENSE = 0.08
"""Share of latents that are active above which plain matrix products are faster than sums over pairs."""
AT_ONCE = 512
"""Inputs whose pre-activations are held at once where each input's own are ranked."""


@dataclass(frozen=True)
class Loss:
    """A loss in two parts, and what it was made of."""

    common: Tensor
    """Of the reconstruction: the same in all latent shares."""
    own: "Tensor | float"
    """Of this share's latents: what remains is the sum over shares."""
    error: Tensor
    """[B, O]."""
    active: "Active | Tensor"
    """Pairs, or where many are active a mask [B, L]."""


class Losses:
    """The losses of one recipe. `buffers`: its `threshold` is kept up to date."""

    def __init__(
        self, recipe: Recipe, parameters: dict[str, Tensor], buffers: dict[str, Tensor], tied: bool, ranks: Ranks
    ) -> None:
        self.recipe, self.parameters, self.buffers = recipe, parameters, buffers
        self.tied, self.ranks = tied, ranks
        self.held = len(parameters["b_enc"])
        self._none_D = torch.zeros(parameters["W_enc"].shape[1], device=ranks.device)
        self.room = torch.empty(0, device=ranks.device)
        """Memory for pre-activations, which each step writes over."""

    def of(self, x_BD: Tensor, y_BO: Tensor, penalty: float) -> Loss:
        """The loss of a batch, `penalty` being λ now."""
        kind = self.recipe.architecture
        if kind in ("topk", "batchtopk", "matryoshka"):
            return self._by_rank(x_BD, y_BO)
        if kind == "relu":
            return self._relu(x_BD, y_BO, penalty)
        return self._jumprelu(x_BD, y_BO, penalty) if kind == "jumprelu" else self._gated(x_BD, y_BO, penalty)

    def _by_rank(self, x_BD: Tensor, y_BO: Tensor) -> Loss:
        k = self.recipe.k
        if self.recipe.architecture == "topk":
            pre_P, active = self._top(x_BD, k)
        else:
            pre_P, active = self._batch_top(x_BD, k * len(x_BD) * self.ranks.data)
        values_P = torch.relu(self._known(active, pre_P, x_BD))
        base_BO = self._base(x_BD)
        if self.recipe.architecture != "matryoshka":
            error_BO = y_BO - base_BO - self._decoded(active, values_P)
            return Loss(mean_square(error_BO), 0.0, error_BO, active.only(values_P.detach() > 0))
        numbers_P, lower, parts = active.latents + self.ranks.rows_of(self.recipe.latents).start, 0, []
        for upper in self.recipe.prefixes:
            inside_P = ((numbers_P >= lower) & (numbers_P < upper)).to(values_P.dtype)
            parts.append(decode(active, values_P * inside_P, self.parameters["W_dec"]))
            lower = upper
        losses, error_BO = [], y_BO - base_BO
        for part_BO in self.ranks.summed(torch.stack(parts)):
            error_BO = error_BO - part_BO
            losses.append(mean_square(error_BO))
        return Loss(torch.stack(losses).mean(), 0.0, error_BO, active.only(values_P.detach() > 0))

    def _relu(self, x_BD: Tensor, y_BO: Tensor, penalty: float) -> Loss:
        pre_BL = self._pre(x_BD)
        lengths_L = None if self.recipe.unit_norm else self.parameters["W_dec"].norm(dim=1)
        mask_BL = pre_BL > 0
        if float(mask_BL.float().mean()) > DENSE:
            codes_BL = torch.relu(self._pre_with_gradient(x_BD))
            out_BO = self.ranks.summed(codes_BL @ self.parameters["W_dec"])
            size_BL = codes_BL if lengths_L is None else codes_BL * lengths_L
            active: Active | Tensor = mask_BL
        else:
            pre_P, pairs = select_where(pre_BL, 0.0)
            values_P = torch.relu(self._known(pairs, pre_P, x_BD))
            out_BO = self._decoded(pairs, values_P)
            size_BL = values_P if lengths_L is None else values_P * lengths_L[pairs.latents]
            active = pairs
        error_BO = y_BO - self._base(x_BD) - out_BO
        return Loss(mean_square(error_BO), penalty * size_BL.sum() / y_BO.numel(), error_BO, active)

    def _jumprelu(self, x_BD: Tensor, y_BO: Tensor, penalty: float) -> Loss:
        threshold_L, width = self.parameters["log_threshold"].exp(), self.recipe.bandwidth
        pre_P, near = select_where(self._pre(x_BD), threshold_L.detach() - width / 2)
        own_P, bar_P = self._known(near, pre_P, x_BD), threshold_L[near.latents]
        values_P = _Jump.apply(own_P, bar_P, width)
        count_P = _Open.apply(own_P.detach(), bar_P, width)
        error_BO = y_BO - self._base(x_BD) - self._decoded(near, values_P)
        own = penalty * count_P.sum() / y_BO.numel()
        return Loss(mean_square(error_BO), own, error_BO, near.only(values_P.detach() > 0))

    def _gated(self, x_BD: Tensor, y_BO: Tensor, penalty: float) -> Loss:
        weights = self.parameters
        pre_P, active = select_where(self._pre(x_BD), 0.0)
        gate_P = self._known(active, pre_P, x_BD)
        latents_P = active.latents
        projected_P = gate_P - weights["b_enc"][latents_P]
        values_P = torch.relu(weights["r_mag"].exp()[latents_P] * projected_P + weights["b_mag"][latents_P])
        base_BO = self._base(x_BD)
        both = torch.stack([decode(active, values_P, weights["W_dec"]),
                            decode(active, gate_P, weights["W_dec"].detach())])
        out_BO, gate_out_BO = self.ranks.summed(both)
        error_BO, aside_BO = y_BO - base_BO - out_BO, y_BO - base_BO.detach() - gate_out_BO
        return Loss(mean_square(error_BO) + mean_square(aside_BO), penalty * gate_P.sum() / y_BO.numel(), error_BO,
                    active.only(values_P.detach() > 0))

    def aux(self, x_BD: Tensor, error_BO: Tensor, dead_L: Tensor, dead: int) -> Tensor:
        """The share of the error that dead latents leave over; `dead`: how many all shares have."""
        dead_M, k = dead_L.nonzero()[:, 0], min(self.recipe.aux_k, dead)
        with torch.no_grad():
            values_BK, chosen_BK = self._ranked(x_BD, self.bias()[dead_M], self.parameters["W_enc"][dead_M], k)
            pre_P, active = self._agreed(values_BK, dead_M[chosen_BK], k)
        values_P = torch.relu(self._known(active, pre_P, x_BD))
        rest_BO = error_BO - self._decoded(active, values_P)
        total = self.ranks.over_data(error_BO.square().sum()) / self.ranks.data
        return rest_BO.square().sum() / total.clamp(min=1e-12)

    # Which latents

    @torch.no_grad()
    def _top(self, x_BD: Tensor, k: int) -> tuple[Tensor, Active]:
        """This share of the k greatest of each input."""
        weight_LD = self.parameters["W_enc"]
        if is_worthwhile(weight_LD, k):
            values_P, active = top_of_product(x_BD, weight_LD, self.bias(), k)
            return self._agreed(values_P.view(-1, k), active.latents.view(-1, k), k)
        return self._agreed(*self._ranked(x_BD, self.bias(), weight_LD, k), k)

    @torch.no_grad()
    def _ranked(self, x_BD: Tensor, bias_M: Tensor, weight_MD: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Values and numbers of the k greatest of some latents for each input, a part of the batch at a time."""
        parts, most = [], min(k, len(bias_M))
        for some_BD in x_BD.split(AT_ONCE):
            pre_BM = torch.addmm(bias_M, some_BD, weight_MD.T, out=self._room(len(some_BD), len(bias_M)))
            parts.append(pre_BM.topk(most, 1, sorted=False))
        values_BK, chosen_BK = (torch.cat(part) for part in zip(*parts, strict=True))
        return values_BK, chosen_BK

    def _agreed(self, values_BK: Tensor, latents_BK: Tensor, k: int) -> tuple[Tensor, Active]:
        """Of this share's candidates for each input, those that are among the k greatest of all shares'."""
        if self.ranks.latents == 1:
            return values_BK.reshape(-1), Active.top(latents_BK, self.held)
        # a share with fewer candidates than others fills up with such as nobody would take
        filled_BK = torch.nn.functional.pad(values_BK, (0, min(k, self.held) - values_BK.shape[1]), value=-torch.inf)
        keep_BK = torch.cat([
            greatest(self.ranks.gathered(some_BK).transpose(0, 1).flatten(1), k)
            .unflatten(1, (self.ranks.latents, -1))[:, self.ranks.latent] for some_BK in filled_BK.split(AT_ONCE)
        ])[:, : values_BK.shape[1]]
        counts_B = keep_BK.sum(1)
        return values_BK[keep_BK], Active(latents_BK[keep_BK], counts_B.cumsum(0) - counts_B, self.held)

    @torch.no_grad()
    def _batch_top(self, x_BD: Tensor, count: int) -> tuple[Tensor, Active]:
        """This share of the `count` greatest of all inputs and latents. The least of them is remembered."""
        weight_LD, most = self.parameters["W_enc"], min(count, len(x_BD) * self.held)
        if is_worthwhile(weight_LD, -(-most // len(x_BD))):
            pre_P, active = batch_top_of_product(x_BD, weight_LD, self.bias(), most)
        else:
            pre_P, active = select_batch_top(self._pre(x_BD), most)
        everyone_RP = self.ranks.gathered(pre_P, data=True)
        if len(everyone_RP) > 1:
            keep_RP = greatest(everyone_RP.reshape(1, -1), count).view_as(everyone_RP)
            own_P = keep_RP[self.ranks.rank]
            self._remember_threshold(everyone_RP[keep_RP].min())
            return pre_P[own_P], active.only(own_P)
        self._remember_threshold(pre_P.min())
        return pre_P, active

    def _remember_threshold(self, least: Tensor) -> None:
        """The running mean of the least code a batch let through: the threshold of single inputs later."""
        least, known = least.clamp(min=0), self.buffers["threshold"]
        self.buffers["threshold"] = least if not known else known + 0.05 * (least - known)

    # Parts

    def _shift(self) -> Tensor:
        """What is taken off the input; every latent share makes its own use of it."""
        return self.ranks.spread(self.parameters["b_dec"]) if self.tied else self._none_D

    def _base(self, x_BD: Tensor) -> Tensor:
        bias_O = self.parameters["b_dec"]
        if not self.recipe.skip:
            return bias_O.expand(len(x_BD), -1)
        return torch.addmm(bias_O, x_BD, self.parameters["W_skip"])

    def _decoded(self, active: Active, values_P: Tensor) -> Tensor:
        return self.ranks.summed(decode(active, values_P, self.parameters["W_dec"]))

    def _known(self, active: Active, pre_P: Tensor, x_BD: Tensor) -> Tensor:
        return encode_at(active, pre_P, x_BD, self.parameters["W_enc"], self.parameters["b_enc"], self._shift())

    @torch.no_grad()
    def bias(self) -> Tensor:
        """The encoder's bias with the shift taken in."""
        shift_D = self.parameters["b_dec"] if self.tied else self._none_D
        return torch.addmv(self.parameters["b_enc"], self.parameters["W_enc"], shift_D, alpha=-1)

    @torch.no_grad()
    def _pre(self, x_BD: Tensor) -> Tensor:
        """W_enc (x - shift) + b_enc, in memory that the next step writes over."""
        return torch.addmm(self.bias(), x_BD, self.parameters["W_enc"].T, out=self._room(len(x_BD), self.held))

    def _pre_with_gradient(self, x_BD: Tensor) -> Tensor:
        return torch.addmm(self.parameters["b_enc"], x_BD - self._shift(), self.parameters["W_enc"].T)

    def _room(self, n: int, latents: int) -> Tensor:
        if len(self.room) < n * latents:
            self.room = torch.empty(n * self.held, device=self.ranks.device)
        return self.room[: n * latents].view(n, latents)


def mean_square(error_BO: Tensor) -> Tensor:
    return error_BO.square().sum() / error_BO.numel()


class _Jump(torch.autograd.Function):
    """x where x > θ, else 0; d/dθ = -(θ/ε) in the window |x - θ| < ε/2 (arXiv 2407.14435, eq. 11)."""

    @staticmethod
    def forward(ctx: Any, x_P: Tensor, bar_P: Tensor, width: float) -> Tensor:
        ctx.save_for_backward(x_P, bar_P)
        ctx.width = width
        return torch.where(x_P > bar_P, x_P, 0.0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (grad_P,), (x_P, bar_P) = gradients, ctx.saved_tensors
        near_P = (x_P - bar_P).abs() < ctx.width / 2
        return torch.where(x_P > bar_P, grad_P, 0.0), torch.where(near_P, -bar_P / ctx.width * grad_P, 0.0), None


class _Open(torch.autograd.Function):
    """1 where x > θ, else 0; d/dθ = -1/ε in the window (eq. 12)."""

    @staticmethod
    def forward(ctx: Any, x_P: Tensor, bar_P: Tensor, width: float) -> Tensor:
        ctx.save_for_backward(x_P, bar_P)
        ctx.width = width
        return (x_P > bar_P).to(x_P.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (grad_P,), (x_P, bar_P) = gradients, ctx.saved_tensors
        near_P = (x_P - bar_P).abs() < ctx.width / 2
        return None, torch.where(near_P, -grad_P / ctx.width, 0.0), None
