"""Ways to read a relation's object off its subject's stream: the fitted map, and what it has to beat.

    lre          β · W_l h + b_l            W_l the mean Jacobian
    identity     β · h + E[z - h]           W_l replaced by 1
    translation  h + E[z - h]
    logit_lens   h
    regression   A_l h + c_l                least squares on the samples fitted on, the smallest A_l that fits

The answer is the first choice of the final norm and unembedding. Hernandez et al. 2023, arXiv 2308.09124, section 4.1.
Shape suffixes: N samples, L layers (embeddings first, without the last block), B values of β, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from patchclamp.forward import Model, metrics
from patchclamp.forward.streams import ROWS_AT_ONCE
from patchclamp.relations.linear import LinearRelation
from patchclamp.relations.samples import Known

BETAS = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0)
"""Values of β that are tried."""
RIDGE = 1e-3
"""Penalty of the regression, relative to the mean square of what it reads."""


class Reader(NamedTuple):
    """One way, at every layer."""

    name: str
    objects: Callable[[Tensor, int, float], Tensor]
    """Streams [N, D], layer (-1: embeddings) and β -> z [N, D]."""
    betas: tuple[float, ...] = (1.0,)


class Scores(NamedTuple):
    """What a reader says of samples, at every layer and β tried, [L, B, N]."""

    rank: np.ndarray
    """Rank of the object's first token, from 0."""
    logprob: np.ndarray
    """Log-probability of that token, nats."""

    @property
    def right(self) -> np.ndarray:
        """Whether the first choice is the object's first token."""
        return self.rank == 0


class Setting(NamedTuple):
    """The layer and β chosen for a reader."""

    layer: int
    beta: float


def readers(relation: LinearRelation, fit: Known) -> list[Reader]:
    """The fitted map first, then the baselines, from the samples it was fitted on."""
    offset_LD = (fit.z[:, None] - fit.h).mean(0)
    regressions = [_regression(fit.h[:, layer], fit.z) for layer in range(fit.h.shape[1])]
    return [
        Reader("lre", relation.objects, BETAS),
        Reader("identity", lambda h, layer, beta: beta * h + offset_LD[layer + 1], BETAS),
        Reader("translation", lambda h, layer, beta: h + offset_LD[layer + 1]),
        Reader("logit_lens", lambda h, layer, beta: h),
        Reader("regression", lambda h, layer, beta: regressions[layer + 1](h)),
    ]


def _regression(h_ND: Tensor, z_ND: Tensor) -> Callable[[Tensor], Tensor]:
    """Ridge regression of z on h, both less their means, in float64 by way of the N×N Gram matrix."""
    h_mean_D, z_mean_D = h_ND.mean(0), z_ND.mean(0)
    x_ND, y_ND = (h_ND - h_mean_D).double(), (z_ND - z_mean_D).double()
    gram_NN = x_ND @ x_ND.T
    gram_NN += RIDGE * gram_NN.diagonal().mean() * torch.eye(len(gram_NN))
    dual_ND = torch.linalg.solve(gram_NN, y_ND)
    return lambda h: z_mean_D + ((h - h_mean_D).double() @ x_ND.T @ dual_ND).float()


@torch.no_grad()
def score(model: Model, reader: Reader, known: Known, settings: Sequence[Setting]) -> Scores:
    """What a reader says at each of some settings, [settings, N]."""
    z_RD = torch.cat([reader.objects(known.h[:, layer + 1], layer, beta) for layer, beta in settings])
    answers_R = known.answers.repeat(len(settings))
    ranks, logprob = [], []
    for z, answers in zip(z_RD.split(ROWS_AT_ONCE), answers_R.split(ROWS_AT_ONCE), strict=True):
        logits = model.anatomy.unembed(z.to(model.device, model.dtype)).float()
        here = answers.to(logits.device)
        ranks.append(metrics.rank(logits, here).cpu())
        logprob.append(metrics.log_probability(logits, here).cpu())
    shape = (len(settings), len(known))
    return Scores(torch.cat(ranks).view(shape).numpy(), torch.cat(logprob).view(shape).numpy())


def settings_of(reader: Reader, known: Known) -> list[Setting]:
    """Every layer and β of a reader, layer by layer."""
    return [Setting(layer, beta) for layer in range(-1, known.h.shape[1] - 1) for beta in reader.betas]


def choose(model: Model, reader: Reader, validation: Known) -> tuple[Setting, list[Setting], Scores]:
    """The layer and β under which a reader is right most often on the validation samples, the best β of each layer, and
    the scores of all, [L · B, N]. Of equals the one that gives the answers the highest log-probability.

    A layer counts half, its two neighbours a quarter each: what works at one layer alone is mostly luck."""
    n_layers = validation.h.shape[1]
    settings = settings_of(reader, validation)
    scores = score(model, reader, validation, settings)
    merit = np.stack([scores.right.mean(1), scores.logprob.mean(1)], -1).reshape(n_layers, -1, 2)
    best = [max(range(len(reader.betas)), key=[tuple(one) for one in at].__getitem__) for at in merit]
    at_best = np.stack([at[b] for at, b in zip(merit, best, strict=True)])
    padded = np.concatenate([at_best[:1], at_best, at_best[-1:]])
    smooth = (padded[:-2] + 2 * padded[1:-1] + padded[2:]) / 4
    layer = max(range(n_layers), key=[tuple(one) for one in smooth].__getitem__)
    by_layer = [Setting(i - 1, reader.betas[b]) for i, b in enumerate(best)]
    return by_layer[layer], by_layer, scores
