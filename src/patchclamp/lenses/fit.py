"""Training a tuned lens step by step: least squares first, then the loss itself; and the checkpoint.

For each layer l, with p the model's output and q_l what the lens says, both at sampled positions,

    minimise  E[KL(p ‖ q_l)],   q_l = softmax(unembed(h + A_l h + b_l))          Belrose et al. 2023, equation 8

From the identity Adam needs many steps: a stream's coordinates differ by orders of magnitude and hang together. So
the first part of the corpus goes into a regression (`regress.py`), which needs no logits, and the rest into steps
that change its map, in units of what is read (σ) and of what the regression left unexplained (ρ):

    A h + b = A₀ h + b₀ + ρ (M (h - μ) / σ + m),   M and m zero at first.

Shape suffixes: L layers (embeddings first, without the last), N positions, D width, V vocabulary.
"""

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from patchclamp.corpus.pack import Ids
from patchclamp.errors import FileError, RunError
from patchclamp.evidence.method import Progress
from patchclamp.evidence.record import write_whole
from patchclamp.forward import Model
from patchclamp.lenses.corpus import portions, read_places, refuse_other_run, sample_positions
from patchclamp.lenses.regress import Regression, Start

CHECKPOINT = "checkpoint.safetensors"
WARM_UP = 0.05
"""Share of the other steps over which the learning rate rises from nothing."""
REGRESSION = 0.25
"""Share of the steps whose tokens go into the regression."""


class CrossEntropy(torch.autograd.Function):
    """-Σ p log softmax(z) of each row, [N]; its gradient, softmax(z) - p, is made once and in place."""

    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, probs_NV: Tensor) -> Tensor:
        norm_N1 = logits_NV.logsumexp(-1, keepdim=True)
        inner_N = (probs_NV[:, None] @ logits_NV[:, :, None]).reshape(-1)
        ctx.save_for_backward((logits_NV - norm_N1).exp_().sub_(probs_NV))
        return norm_N1.squeeze(-1) - inner_N

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return ctx.saved_tensors[0] * grads[0][:, None], None


@dataclass(frozen=True)
class Recipe:
    """How to train."""

    share: float
    """Of each sequence's positions, how many are trained on."""
    batch: int
    """Sequences a step."""
    learning_rate: float
    """Adam's highest, in the units above."""
    seed: int


class Fit:
    """The maps under training. What a step does depends on its number and the state alone, so that a run taken up
    again from a checkpoint is the uninterrupted run, bit for bit on the same machine and threads."""

    def __init__(self, model: Model, recipe: Recipe, sequences: Sequence[Ids]) -> None:
        self.model, self.recipe, self.sequences = model, recipe, sequences
        self.step = 0
        self.losses: list[list[float]] = []
        """Mean KL of each step after the regression, one number a layer."""
        self.steps = math.ceil(len(sequences) / recipe.batch)
        self.regression_steps = regression_sequences(len(sequences), recipe.batch) // recipe.batch
        self.regression = Regression()
        self.start: Start | None = None
        shape = (model.n_layers, model.d_model)
        self.weight_LDD = torch.zeros(*shape, model.d_model, device=model.device, requires_grad=True)
        self.bias_LD = torch.zeros(shape, device=model.device, requires_grad=True)
        self.adam = torch.optim.Adam([self.weight_LDD, self.bias_LD], lr=recipe.learning_rate, betas=(0.9, 0.98))

    def maps(self) -> tuple[Tensor, Tensor]:
        """The maps in the stream's own units: A [L, D, D] and b [L, D]."""
        start = self.start or self.regression.solve()
        with torch.no_grad():
            change_LDD = start.left[:, :, None] * self.weight_LDD / start.scale[:, None]
            constant_LD = start.left * self.bias_LD - (change_LDD @ start.mean[:, :, None]).squeeze(-1)
        return start.weight + change_LDD, start.bias + constant_LD

    def run(self, folder: Path, identity: dict[str, Any], seconds: float, progress: Progress) -> None:
        """All steps that are left, with a checkpoint in `folder` at least every `seconds` and at the end.

        `identity`: what the checkpoint belongs to. Raises RunError if the loss is no number.
        """
        saved = time.monotonic()
        for _ in progress.track(range(self.step, self.steps), "training the lens", self.steps - self.step):
            self.take_step()
            if time.monotonic() - saved >= seconds or self.step == self.steps:
                self.save(folder, identity)
                saved = time.monotonic()

    def take_step(self) -> None:
        """Read the next sequences: for the regression, or to move every map down the gradient of its mean KL."""
        first = self.step * self.recipe.batch
        sequences = self.sequences[first : first + self.recipe.batch]
        if self.step < self.regression_steps:
            self.regression.add(read_places(self.model, sequences, [range(1, len(ids)) for ids in sequences]))
        else:
            self._descend(read_places(self.model, sequences, self.positions(sequences)).float())
        self.step += 1

    def positions(self, sequences: Sequence[Ids]) -> list[list[int]]:
        """Where this step takes the KL."""
        generator = torch.Generator().manual_seed(self.recipe.seed * 1_000_003 + self.step)
        return [sample_positions(len(ids), self.recipe.share, generator) for ids in sequences]

    def _descend(self, places_NSD: Tensor) -> None:
        if self.start is None:
            self.start, self.regression = self.regression.solve(), Regression()
        start = self.start
        early_LND = places_NSD[:, :-1].transpose(0, 1)
        before_LND = early_LND + torch.baddbmm(start.bias[:, None], early_LND, start.weight.mT)
        unit_LND = (early_LND - start.mean[:, None]) / start.scale[:, None]
        change_LND = torch.baddbmm(self.bias_LD[:, None], unit_LND, self.weight_LDD.mT) * start.left[:, None]
        kl_L, gradient_LND = self._loss(before_LND + change_LND.detach(), places_NSD[:, -1])
        self.adam.param_groups[0]["lr"] = self.recipe.learning_rate * self._schedule()
        self.adam.zero_grad()
        change_LND.backward(gradient_LND)
        self.adam.step()
        self.losses.append(kl_L)

    def _loss(self, moved_LND: Tensor, final_ND: Tensor) -> tuple[list[float], Tensor]:
        """Mean KL of each layer, and its gradient by the moved streams, [L, N, D]."""
        model, n = self.model, len(final_ND)
        totals = [0.0] * len(moved_LND)
        gradient_LND = torch.empty_like(moved_LND)
        for rows in portions(n):
            with torch.no_grad():
                log_p_NV = model.anatomy.unembed(final_ND[rows].to(model.dtype)).float().log_softmax(-1)
                p_NV = log_p_NV.exp()
                entropy = -float((p_NV * log_p_NV).sum())
            for layer in range(len(moved_LND)):
                moved_ND = moved_LND[layer, rows].requires_grad_()
                logits_NV = model.anatomy.unembed(moved_ND.to(model.dtype)).float()
                loss = CrossEntropy.apply(logits_NV, p_NV).sum()
                (gradient_ND,) = torch.autograd.grad(loss, moved_ND)
                gradient_LND[layer, rows] = gradient_ND / n
                totals[layer] += float(loss.detach()) - entropy
        self._refuse_nan(totals)
        return [total / n for total in totals], gradient_LND

    def _refuse_nan(self, totals: list[float]) -> None:
        wrong = [layer - 1 for layer, total in enumerate(totals) if not math.isfinite(total)]
        if wrong:
            raise RunError(
                f"the loss of layer {wrong[0]} is not a number at step {self.step + 1} of {self.steps}: the streams or "
                f"logits overflowed. Load the model in float32 (it runs in {self.model.dtype}), or lower learning_rate "
                f"({self.recipe.learning_rate:g})"
            )

    def _schedule(self) -> float:
        """Share of the highest learning rate: a short rise, then a straight fall to nothing."""
        done = (self.step + 1 - self.regression_steps) / (self.steps + 1 - self.regression_steps)
        return min(done / WARM_UP, (1 - done) / (1 - WARM_UP))

    # The checkpoint

    def _tensors(self) -> dict[str, Tensor]:
        if self.start is None:
            return {f"sum.{name}": tensor for name, tensor in self.regression.tensors.items()}
        moments = {f"adam.{name}.{key}": self.adam.state[parameter][key]
                   for name, parameter in self._parameters() for key in ("exp_avg", "exp_avg_sq", "step")}
        start = {f"start.{name}": tensor for name, tensor in vars(self.start).items()}
        return {**dict(self._parameters()), **moments, **start}

    def _parameters(self) -> tuple[tuple[str, Tensor], ...]:
        return ("weight", self.weight_LDD), ("bias", self.bias_LD)

    def save(self, folder: Path, identity: dict[str, Any]) -> None:
        """Write the state, sums or maps and Adam's moments, and the step's number in one file, whole or not at all."""
        from safetensors.torch import save

        state = {"identity": identity, "step": self.step, "losses": self.losses}
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self._tensors().items()}
        write_whole(folder / CHECKPOINT, save(tensors, {"state": json.dumps(state)}))

    def resume(self, folder: Path, identity: dict[str, Any]) -> bool:
        """Take up the checkpoint in `folder`; False if there is none.

        Raises SpecError, saying what differs, if it is of another run; FileError if it cannot be read.
        """
        path = folder / CHECKPOINT
        if not path.is_file():
            return False
        state, tensors = _read_checkpoint(path)
        refuse_other_run(state["identity"], identity, folder)
        self.step, self.losses = state["step"], state["losses"]
        own = {name: tensor if name.endswith(".step") else tensor.to(self.model.device)
               for name, tensor in tensors.items()}
        self.regression.tensors = _under("sum.", own)
        if "weight" in own:
            self.start = Start(**_under("start.", own))
            for name, parameter in self._parameters():
                parameter.data.copy_(own[name])
                self.adam.state[parameter] = _under(f"adam.{name}.", own)
        return True


def regression_sequences(n: int, batch: int) -> int:
    """How many of `n` sequences, whole batches, go into the regression."""
    return batch * max(1, math.floor(math.ceil(n / batch) * REGRESSION))


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _read_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            state = json.loads((file.metadata() or {})["state"])
            return state, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dictionary)
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise FileError(f"{path} is damaged ({type(error).__name__}); delete it, and train from the start") from error
