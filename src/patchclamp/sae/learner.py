"""One autoencoder while it learns: its parameters, Adam's moments, one step.

What is made small stands in `losses.py`. Of several processes each has a share of the latents, with all that belongs to
them: rows of the weights, moments, and how long each was idle. The decoder's bias and a skip are the same in all.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from patchclamp.forward.codes import Active
from patchclamp.sae.batches import Rows
from patchclamp.sae.losses import Loss, Losses
from patchclamp.sae.parameters import BLOCK, SHARED, Recipe, Scaling, first_parameters
from patchclamp.sae.ranks import Ranks

AUX_WEIGHT = 1 / 32
ALONE = Ranks()


@dataclass(frozen=True)
class Step:
    """What a step saw, before it learned."""

    fvu: float
    """Σ‖e‖² / Σ‖y - mean‖², of the batch."""
    l0: float
    """Latents active for an input, on average."""
    loss: float
    dead: int


class Learner:
    """An autoencoder that learns. Deterministic: the same recipe, batches and number of threads give the same bits."""

    def __init__(self, recipe: Recipe, scaling: Scaling, tied: bool, ranks: Ranks = ALONE) -> None:
        """`tied`: whether it writes what it reads. Then encoder and decoder begin alike, and the decoder's bias is
        taken off the input too."""
        self.recipe, self.scaling, self.tied, self.ranks = recipe, scaling.to(ranks.device), tied, ranks
        self.parameters = first_parameters(recipe, len(scaling.mean), len(scaling.mean_out), tied, ranks)
        held = len(self.parameters["b_enc"])
        self.buffers = {"idle": torch.zeros(held, dtype=torch.int64, device=ranks.device),
                        "threshold": torch.zeros((), device=ranks.device)}
        self.losses = Losses(recipe, self.parameters, self.buffers, tied, ranks)
        self.optimizer = torch.optim.Adam(self.parameters.values(), lr=recipe.learning_rate, fused=True)
        for tensor in self.parameters.values():  # as Adam would at its first step: a place to read a checkpoint into
            self.optimizer.state[tensor] = {"step": torch.zeros((), device=ranks.device),
                                            "exp_avg": torch.zeros_like(tensor, requires_grad=False),
                                            "exp_avg_sq": torch.zeros_like(tensor, requires_grad=False)}

    def step(self, rows: Rows, rate: float = 1.0, penalty: float = 1.0) -> Step:
        """Learn from this process's part of a batch of values as harvested. `rate`, `penalty`: what the learning rate
        and λ are times now."""
        x_BD, y_BO = self._scaled(rows)
        loss = self.losses.of(x_BD, y_BO, penalty * self.recipe.l1)
        dead_L = self.buffers["idle"] >= self.recipe.dead_after
        dead = int(self.ranks.over_latents(dead_L.sum()))
        self.optimizer.zero_grad(set_to_none=True)
        (loss.common + loss.own).backward()
        whole = loss.common.detach()
        if dead and self.recipe.aux_k:  # backwards by itself, so that one more gradient at a time is in memory
            aux = AUX_WEIGHT * self.losses.aux(x_BD, loss.error.detach(), dead_L, dead)
            aux.backward()
            whole = whole + aux.detach()
        self._learn(rate)
        counts_L = self.ranks.over_data(self._counts(loss))
        self.buffers["idle"] += len(x_BD) * self.ranks.data
        self.buffers["idle"][counts_L > 0] = 0
        return self._seen(y_BO, loss, whole, counts_L, dead)

    def _scaled(self, rows: Rows) -> tuple[Tensor, Tensor]:
        scaling, device = self.scaling, self.ranks.device
        x_BD = (rows[0].to(device) - scaling.mean) * scaling.scale
        return x_BD, x_BD if self.tied else (rows[-1].to(device) - scaling.mean_out) * scaling.scale_out

    def _counts(self, loss: Loss) -> Tensor:
        if isinstance(loss.active, Active):
            return torch.bincount(loss.active.latents, minlength=len(self.buffers["idle"]))
        return loss.active.sum(0)

    @torch.no_grad()
    def _seen(self, y_BO: Tensor, loss: Loss, whole: Tensor, counts_L: Tensor, dead: int) -> Step:
        ranks, n = self.ranks, len(y_BO) * self.ranks.data
        mean_O = ranks.over_data(y_BO.mean(0)) / ranks.data
        own = torch.stack([torch.as_tensor(loss.own, device=ranks.device).double() / ranks.data,
                           counts_L.sum().double() / n / ranks.data])
        sums = torch.stack([loss.error.square().sum(), (y_BO - mean_O).square().sum(), whole / ranks.data])
        own_loss, l0, error, variance, common = ranks.over_data(
            torch.cat([ranks.over_latents(own), sums.double()])).tolist()
        return Step(error / variance if variance else float("nan"), l0, common + own_loss, dead)

    def _learn(self, rate: float) -> None:
        decoder = self.parameters["W_dec"]
        gradients = {name: tensor.grad for name, tensor in self.parameters.items() if tensor.grad is not None}
        if self.ranks.data > 1:
            for gradient in gradients.values():
                self.ranks.over_data(gradient).div_(self.ranks.data)
        if self.recipe.unit_norm and decoder.grad is not None:
            for to_ND, rows_ND in zip(decoder.grad.split(BLOCK), decoder.detach().split(BLOCK), strict=True):
                along_N1 = (to_ND * rows_ND).sum(1, keepdim=True)
                to_ND.addcmul_(along_N1, rows_ND, value=-1)
        self._clip(gradients)
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.learning_rate * rate
        self.optimizer.step()
        if self.recipe.unit_norm:
            with torch.no_grad():
                decoder.div_(decoder.norm(dim=1, keepdim=True).clamp(min=1e-12))

    def _clip(self, gradients: dict[str, Tensor]) -> None:
        """Shorten the gradient of all shares together to the greatest norm it may have."""
        own = nn.utils.get_total_norm([gradient for name, gradient in gradients.items() if name not in SHARED])
        common = nn.utils.get_total_norm([gradient for name, gradient in gradients.items() if name in SHARED])
        norm = (self.ranks.over_latents(own.square()) + common.square()).sqrt()
        nn.utils.clip_grads_with_norm_(self.parameters.values(), self.recipe.clip, norm)

    # In and out

    def state(self) -> dict[str, Tensor]:
        """Everything a step depends on, this process's share of it. No copies: what is read into them is taken up."""
        moments = {f"{key}.{name}": state[key] for name, state in self._moments() for key in sorted(state)}
        return {**{name: tensor.detach() for name, tensor in self.parameters.items()}, **self.buffers, **moments}

    def _moments(self) -> Iterator[tuple[str, dict[str, Tensor]]]:
        for name, tensor in self.parameters.items():
            yield name, self.optimizer.state[tensor]

    @torch.no_grad()
    def folded(self) -> dict[str, Tensor]:
        """This process's share of an `Autoencoder`'s tensors, on values as harvested, with decoder rows of length 1.

        z = (x - m)s turns the encoder into s·(W(x - m) + b/s): with biases and thresholds over s the codes are, too."""
        scaling, kind = self.scaling, self.recipe.architecture
        weights = {name: tensor.detach().clone() for name, tensor in self.parameters.items()}
        own_bias_L = weights["b_enc"] / scaling.scale
        weights["b_enc"] = self.losses.bias() / scaling.scale - weights["W_enc"] @ scaling.mean
        if kind == "jumprelu":
            weights["threshold"] = weights.pop("log_threshold").exp() / scaling.scale
        elif kind in ("batchtopk", "matryoshka"):
            weights["threshold"] = (self.buffers["threshold"] / scaling.scale).expand(len(own_bias_L)).clone()
        elif kind == "gated":  # magnitudes read W x without the gate's bias, so what centring takes off goes here
            weights["b_mag"] = (weights["b_mag"] / scaling.scale
                                + weights["r_mag"].exp() * (weights["b_enc"] - own_bias_L))
        ratio = scaling.scale / scaling.scale_out
        weights["b_dec"] = weights["b_dec"] / scaling.scale_out + scaling.mean_out
        if "W_skip" in weights:
            weights["W_skip"] *= ratio
            weights["b_dec"] -= scaling.mean @ weights["W_skip"]
        return self._with_unit_rows(weights, ratio)

    def _with_unit_rows(self, weights: dict[str, Tensor], ratio: float) -> dict[str, Tensor]:
        """Decoder rows of length 1, and the codes as much longer. Rows kept at 1 in training have one factor, which
        changes no latent's rank."""
        length_L = weights["W_dec"].norm(dim=1) if not self.recipe.unit_norm else torch.ones_like(weights["b_enc"])
        length_L = length_L.clamp(min=1e-12)
        weights["W_dec"] /= length_L[:, None]
        longer_L = length_L * ratio
        if self.recipe.architecture == "gated":  # the gate is asked for its sign alone
            return weights | {"r_mag": weights["r_mag"] + longer_L.log(), "b_mag": weights["b_mag"] * longer_L}
        weights["W_enc"] *= longer_L[:, None]
        for name in ("b_enc", "threshold"):
            if name in weights:
                weights[name] = weights[name] * longer_L
        return weights

    def whole(self) -> dict[str, Tensor] | None:
        """`folded` of all shares together, in the first process's main memory; elsewhere None."""
        parts = {name: tensor.cpu() if name in SHARED else self.ranks.whole(tensor)
                 for name, tensor in self.folded().items()}
        return {name: tensor for name, tensor in parts.items() if tensor is not None} if self.ranks.is_first else None
