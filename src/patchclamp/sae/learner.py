"""One autoencoder while it learns: its parameters, its loss, one step of Adam.

    topk, batchtopk   ‖e‖² + c · aux                           few by selection
    relu              ‖e‖² + λ Σ aᵢ ‖vᵢ‖                        few by the penalty; λ = 0 is a linear layer
    jumprelu          ‖e‖² + λ Σ 1[preᵢ > θᵢ]                   gradients to θ through a window of width ε about it
    gated             ‖e‖² + λ Σ relu(gateᵢ) + ‖y - V relu(gate)‖²    V, b_dec held fixed in the last
    matryoshka        mean over prefixes m of ‖y - V[:m] a[:m]‖²

Values are centred and scaled so that a row's mean square norm is D, D the width; all losses are over D. aux: the dead
latents that would be most active explain what the living leave over (Gao et al. 2024, appendix A.2). A step's sums are
over active pairs (`codes.py`), until so many are active that plain matrices are faster.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from patchclamp.forward.autoencoder import Architecture
from patchclamp.forward.codes import Active, decode, encode_at, select_batch_top, select_top, select_where
from patchclamp.forward.screened import batch_top_of_product, is_worthwhile, top_of_product
from patchclamp.sae.batches import Rows

DENSE = 0.08
"""Share of latents that are active above which plain matrix products are faster than sums over pairs."""
SPARSE_START = 1.65
"""Standard deviations above which a latent is active before it has learned anything: one in twenty inputs."""
AUX_WEIGHT = 1 / 32
AT_ONCE = 512


@dataclass(frozen=True)
class Recipe:
    """How one autoencoder learns."""

    architecture: Architecture
    latents: int
    k: int
    l1: float
    """λ."""
    learning_rate: float
    dead_after: int
    """Tokens after which a latent that was never active counts as dead."""
    aux_k: int
    """Dead latents that explain the rest of each input; 0 for none."""
    clip: float
    """Greatest norm of a step's gradient."""
    bandwidth: float
    """ε."""
    prefixes: tuple[int, ...]
    """Matryoshka's m, the last being `latents`."""
    skip: bool
    unit_norm: bool
    """Whether the decoder's rows are kept at length 1; else the penalty is weighed by their length."""
    seed: int


@dataclass(frozen=True)
class Scaling:
    """How values were centred and scaled: z = (x - mean) · scale, on both ends."""

    mean: Tensor
    scale: float
    mean_out: Tensor
    scale_out: float

    @classmethod
    def of(cls, rows: Rows) -> "Scaling":
        """From rows read and, of a transcoder, rows to be written. Constant values get the scale 1."""
        def one(values: Tensor) -> tuple[Tensor, float]:
            mean = values.mean(0, dtype=torch.float64)
            variance = float((values - mean.float()).square().sum(1).mean(dtype=torch.float64))
            return mean.float(), (values.shape[1] / variance) ** 0.5 if variance > 0 else 1.0

        return cls(*one(rows[0]), *one(rows[-1]))


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

    def __init__(self, recipe: Recipe, scaling: Scaling, tied: bool) -> None:
        """`tied`: whether it writes what it reads. Then encoder and decoder begin alike, and the decoder's bias is
        taken off the input too."""
        self.recipe, self.scaling, self.tied = recipe, scaling, tied
        width, out = len(scaling.mean), len(scaling.mean_out)
        generator = torch.Generator().manual_seed(recipe.seed)
        decoder_LO = nn.functional.normalize(torch.randn(recipe.latents, out, generator=generator), dim=1)
        encoder_LD = decoder_LO.clone() if tied else (
            torch.randn(recipe.latents, width, generator=generator) / width**0.5)
        bias = -SPARSE_START if recipe.architecture in ("relu", "gated") else 0.0
        self.parameters = {"W_enc": encoder_LD, "b_enc": torch.full((recipe.latents,), bias), "W_dec": decoder_LO,
                           "b_dec": torch.zeros(out)}
        if recipe.architecture == "jumprelu":
            self.parameters["log_threshold"] = torch.full((recipe.latents,), SPARSE_START).log()
        if recipe.architecture == "gated":
            self.parameters |= {"r_mag": torch.zeros(recipe.latents), "b_mag": torch.zeros(recipe.latents)}
        if recipe.skip:
            self.parameters["W_skip"] = torch.zeros(width, out)
        for tensor in self.parameters.values():
            tensor.requires_grad_(True)
        self.buffers = {"idle": torch.zeros(recipe.latents, dtype=torch.int64), "threshold": torch.zeros(())}
        self.shift_D = self.parameters["b_dec"] if tied else torch.zeros(width)
        self.optimizer = torch.optim.Adam(self.parameters.values(), lr=recipe.learning_rate, fused=True)
        self._room_BL = torch.empty(0)

    def step(self, rows: Rows, rate: float = 1.0, penalty: float = 1.0) -> Step:
        """Learn from a batch of values as harvested. `rate`, `penalty`: what the learning rate and λ are times now."""
        scaling = self.scaling
        x_BD = (rows[0] - scaling.mean) * scaling.scale
        y_BO = x_BD if self.tied else (rows[-1] - scaling.mean_out) * scaling.scale_out
        loss, error_BO, active = self._loss(x_BD, y_BO, penalty * self.recipe.l1)
        dead_L = self.buffers["idle"] >= self.recipe.dead_after
        dead = int(dead_L.sum())
        if dead and self.recipe.aux_k:
            loss = loss + AUX_WEIGHT * self._aux(x_BD, error_BO.detach(), dead_L)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self._learn(rate)
        counts_L = self._counts(active)
        self.buffers["idle"] += len(x_BD)
        self.buffers["idle"][counts_L > 0] = 0
        centred_BO = y_BO - y_BO.mean(0)
        fvu = float(error_BO.detach().square().sum() / centred_BO.square().sum())
        return Step(fvu, float(counts_L.sum()) / len(x_BD), float(loss.detach()), dead)

    def _counts(self, active: "Active | Tensor") -> Tensor:
        if isinstance(active, Active):
            return torch.bincount(active.latents, minlength=self.recipe.latents)
        return active.sum(0)

    def _learn(self, rate: float) -> None:
        decoder = self.parameters["W_dec"]
        if self.recipe.unit_norm and decoder.grad is not None:
            along_L1 = (decoder.grad * decoder.detach()).sum(1, keepdim=True)
            decoder.grad.addcmul_(along_L1, decoder.detach(), value=-1)
        nn.utils.clip_grad_norm_(self.parameters.values(), self.recipe.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.learning_rate * rate
        self.optimizer.step()
        if self.recipe.unit_norm:
            with torch.no_grad():
                decoder.div_(decoder.norm(dim=1, keepdim=True).clamp(min=1e-12))

    # Losses: (loss, error, what was active)

    def _loss(self, x_BD: Tensor, y_BO: Tensor, penalty: float) -> tuple[Tensor, Tensor, "Active | Tensor"]:
        kind = self.recipe.architecture
        if kind in ("topk", "batchtopk", "matryoshka"):
            return self._by_rank(x_BD, y_BO)
        if kind == "relu":
            return self._relu(x_BD, y_BO, penalty)
        return self._jumprelu(x_BD, y_BO, penalty) if kind == "jumprelu" else self._gated(x_BD, y_BO, penalty)

    def _by_rank(self, x_BD: Tensor, y_BO: Tensor) -> tuple[Tensor, Tensor, Active]:
        k = self.recipe.k
        if self.recipe.architecture == "topk":
            pre_P, active = self._top(x_BD, k)
        else:
            pre_P, active = self._batch_top(x_BD, k * len(x_BD))
            self._remember_threshold(pre_P)
        values_P = torch.relu(self._known(active, pre_P, x_BD))
        base_BO = self._base(x_BD)
        if self.recipe.architecture != "matryoshka":
            error_BO = y_BO - base_BO - decode(active, values_P, self.parameters["W_dec"])
            return self._mean_square(error_BO), error_BO, _firing(active, values_P)
        losses, error_BO, lower = [], y_BO - base_BO, 0
        for upper in self.recipe.prefixes:
            inside_P = ((active.latents >= lower) & (active.latents < upper)).to(values_P.dtype)
            error_BO = error_BO - decode(active, values_P * inside_P, self.parameters["W_dec"])
            losses.append(self._mean_square(error_BO))
            lower = upper
        return torch.stack(losses).mean(), error_BO, _firing(active, values_P)

    def _relu(self, x_BD: Tensor, y_BO: Tensor, penalty: float) -> tuple[Tensor, Tensor, "Active | Tensor"]:
        pre_BL = self._pre(x_BD)
        lengths_L = None if self.recipe.unit_norm else self.parameters["W_dec"].norm(dim=1)
        mask_BL = pre_BL > 0
        if float(mask_BL.float().mean()) > DENSE:
            codes_BL = torch.relu(self._pre_with_gradient(x_BD))
            out_BO = codes_BL @ self.parameters["W_dec"]
            size_BL = codes_BL if lengths_L is None else codes_BL * lengths_L
            active: Active | Tensor = mask_BL
        else:
            pre_P, pairs = select_where(pre_BL, 0.0)
            values_P = torch.relu(self._known(pairs, pre_P, x_BD))
            out_BO = decode(pairs, values_P, self.parameters["W_dec"])
            size_BL = values_P if lengths_L is None else values_P * lengths_L[pairs.latents]
            active = pairs
        error_BO = y_BO - self._base(x_BD) - out_BO
        return self._mean_square(error_BO) + penalty * size_BL.sum() / y_BO.numel(), error_BO, active

    def _jumprelu(self, x_BD: Tensor, y_BO: Tensor, penalty: float) -> tuple[Tensor, Tensor, Active]:
        threshold_L, width = self.parameters["log_threshold"].exp(), self.recipe.bandwidth
        pre_P, near = select_where(self._pre(x_BD), threshold_L.detach() - width / 2)
        own_P, bar_P = self._known(near, pre_P, x_BD), threshold_L[near.latents]
        values_P = _Jump.apply(own_P, bar_P, width)
        count_P = _Open.apply(own_P.detach(), bar_P, width)
        error_BO = y_BO - self._base(x_BD) - decode(near, values_P, self.parameters["W_dec"])
        loss = self._mean_square(error_BO) + penalty * count_P.sum() / y_BO.numel()
        return loss, error_BO, _firing(near, values_P)

    def _gated(self, x_BD: Tensor, y_BO: Tensor, penalty: float) -> tuple[Tensor, Tensor, Active]:
        weights = self.parameters
        pre_P, active = select_where(self._pre(x_BD), 0.0)
        gate_P = self._known(active, pre_P, x_BD)
        latents_P = active.latents
        projected_P = gate_P - weights["b_enc"][latents_P]
        values_P = torch.relu(weights["r_mag"].exp()[latents_P] * projected_P + weights["b_mag"][latents_P])
        base_BO = self._base(x_BD)
        error_BO = y_BO - base_BO - decode(active, values_P, weights["W_dec"])
        aside_BO = y_BO - base_BO.detach() - decode(active, gate_P, weights["W_dec"].detach())
        loss = self._mean_square(error_BO) + self._mean_square(aside_BO) + penalty * gate_P.sum() / y_BO.numel()
        return loss, error_BO, _firing(active, values_P)

    def _aux(self, x_BD: Tensor, error_BO: Tensor, dead_L: Tensor) -> Tensor:
        dead_D = dead_L.nonzero()[:, 0]
        weight, bias = self.parameters["W_enc"], self.parameters["b_enc"]
        with torch.no_grad():
            pre_BM = torch.addmm(bias[dead_D], x_BD - self.shift_D, weight[dead_D].T)
            pre_P, chosen = select_top(pre_BM, min(self.recipe.aux_k, len(dead_D)))
        active = Active(dead_D[chosen.latents], chosen.starts, self.recipe.latents)
        values_P = torch.relu(self._known(active, pre_P, x_BD))
        rest_BO = error_BO - decode(active, values_P, self.parameters["W_dec"])
        return rest_BO.square().sum() / error_BO.square().sum().clamp(min=1e-12)

    # Parts

    def _base(self, x_BD: Tensor) -> Tensor:
        bias_O = self.parameters["b_dec"]
        if not self.recipe.skip:
            return bias_O.expand(len(x_BD), -1)
        return torch.addmm(bias_O, x_BD, self.parameters["W_skip"])

    def _mean_square(self, error_BO: Tensor) -> Tensor:
        return error_BO.square().sum() / error_BO.numel()

    def _known(self, active: Active, pre_P: Tensor, x_BD: Tensor) -> Tensor:
        return encode_at(active, pre_P, x_BD, self.parameters["W_enc"], self.parameters["b_enc"], self.shift_D)

    @torch.no_grad()
    def _bias(self) -> Tensor:
        """The encoder's bias with the shift taken in."""
        return torch.addmv(self.parameters["b_enc"], self.parameters["W_enc"], self.shift_D, alpha=-1)

    @torch.no_grad()
    def _pre(self, x_BD: Tensor) -> Tensor:
        """W_enc (x - shift) + b_enc, in memory that the next step writes over."""
        return torch.addmm(self._bias(), x_BD, self.parameters["W_enc"].T, out=self._room(len(x_BD)))

    def _pre_with_gradient(self, x_BD: Tensor) -> Tensor:
        return torch.addmm(self.parameters["b_enc"], x_BD - self.shift_D, self.parameters["W_enc"].T)

    @torch.no_grad()
    def _top(self, x_BD: Tensor, k: int) -> tuple[Tensor, Active]:
        """The k greatest of each input, a part of the batch at a time."""
        bias_L, parts = self._bias(), []
        if is_worthwhile(self.parameters["W_enc"], k):
            return top_of_product(x_BD, self.parameters["W_enc"], bias_L, k)
        for some_BD in x_BD.split(AT_ONCE):
            pre_BL = torch.addmm(bias_L, some_BD, self.parameters["W_enc"].T, out=self._room(len(some_BD)))
            parts.append(pre_BL.topk(k, 1, sorted=False))
        values_BK, latents_BK = (torch.cat(part) for part in zip(*parts, strict=True))
        return values_BK.reshape(-1), Active.top(latents_BK, self.recipe.latents)

    def _batch_top(self, x_BD: Tensor, count: int) -> tuple[Tensor, Active]:
        """The `count` greatest of the batch."""
        if is_worthwhile(self.parameters["W_enc"], count // len(x_BD)):
            return batch_top_of_product(x_BD, self.parameters["W_enc"], self._bias(), count)
        return select_batch_top(self._pre(x_BD), count)

    def _room(self, n: int) -> Tensor:
        if len(self._room_BL) < n:
            self._room_BL = torch.empty(n, self.recipe.latents)
        return self._room_BL[:n]

    def _remember_threshold(self, pre_P: Tensor) -> None:
        """The running mean of the least code a batch let through: the threshold of single inputs later."""
        least, known = pre_P.min().clamp(min=0), self.buffers["threshold"]
        self.buffers["threshold"] = least if not known else known + 0.05 * (least - known)

    # In and out

    def state(self) -> dict[str, Tensor]:
        """Everything a step depends on."""
        moments = {f"{key}.{name}": state[key] for name, state in self._moments() for key in sorted(state)}
        return {**{name: tensor.detach() for name, tensor in self.parameters.items()}, **self.buffers, **moments}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Go on from a `state`."""
        with torch.no_grad():
            for name, tensor in self.parameters.items():
                tensor.copy_(state[name])
        self.buffers = {name: state[name].clone() for name in self.buffers}
        for name, tensor in self.parameters.items():
            kept = {key: state[f"{key}.{name}"].clone() for key in ("step", "exp_avg", "exp_avg_sq")
                    if f"{key}.{name}" in state}
            if kept:
                self.optimizer.state[tensor] = kept

    def _moments(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for name, tensor in self.parameters.items():
            yield name, self.optimizer.state.get(tensor, {})

    @torch.no_grad()
    def folded(self) -> dict[str, Tensor]:
        """The tensors of an `Autoencoder` on values as harvested, with decoder rows of length 1.

        z = (x - m)s turns the encoder into s·(W(x - m) + b/s): with biases and thresholds over s the codes are, too."""
        scaling, kind = self.scaling, self.recipe.architecture
        weights = {name: tensor.detach().clone() for name, tensor in self.parameters.items()}
        own_bias_L = weights["b_enc"] / scaling.scale
        weights["b_enc"] = self._bias() / scaling.scale - weights["W_enc"] @ scaling.mean
        if kind == "jumprelu":
            weights["threshold"] = weights.pop("log_threshold").exp() / scaling.scale
        elif kind in ("batchtopk", "matryoshka"):
            weights["threshold"] = (self.buffers["threshold"] / scaling.scale).expand(self.recipe.latents).clone()
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
        length_L = torch.ones(self.recipe.latents) if self.recipe.unit_norm else weights["W_dec"].norm(dim=1)
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


def _firing(active: Active, values_P: Tensor) -> Active:
    """The pairs whose value is above zero."""
    keep_P = values_P.detach() > 0
    if bool(keep_P.all()):
        return active
    counts_B = torch.bincount(active.inputs[keep_P], minlength=len(active.starts))
    return Active(active.latents[keep_P], counts_B.cumsum(0) - counts_B, active.n_latents)


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
