"""What an autoencoder that learns is made of: its recipe, the scaling of its values, its first parameters.

The first weights are drawn in blocks of latents, each from a generator of its own: a process that holds a share of the
dictionary draws that share alone, and the dictionary is the same however many share it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from patchclamp.forward.autoencoder import Architecture
from patchclamp.sae.batches import Rows
from patchclamp.sae.ranks import Ranks

SPARSE_START = 1.65
"""Standard deviations above which a latent is active before it has learned anything: one in twenty inputs."""
BLOCK = 4096
"""Latents that are drawn at once."""
SHARED = ("b_dec", "W_skip")
"""Tensors that are the same in every process, as single numbers are. All others have a row a latent."""


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

    def to(self, device: torch.device) -> "Scaling":
        """The same on another device."""
        return replace(self, mean=self.mean.to(device), mean_out=self.mean_out.to(device))


def first_parameters(recipe: Recipe, width: int, out: int, tied: bool, ranks: Ranks) -> dict[str, Tensor]:
    """This process's share of the parameters. `tied`: encoder and decoder begin alike."""
    rows, device = ranks.rows_of(recipe.latents), ranks.device
    held = rows.stop - rows.start

    def constant(value: float) -> Tensor:
        return torch.full((held,), value, device=device)

    decoder_LO = torch.empty(held, out, device=device)
    for place, drawn_NO in _drawn(recipe.seed, 0, rows, out):
        decoder_LO[place] = nn.functional.normalize(drawn_NO, dim=1).to(device)
    encoder_LD = decoder_LO.clone() if tied else torch.empty(held, width, device=device)
    if not tied:
        for place, drawn_ND in _drawn(recipe.seed, 1, rows, width):
            encoder_LD[place] = (drawn_ND / width**0.5).to(device)
    bias = -SPARSE_START if recipe.architecture in ("relu", "gated") else 0.0
    parameters = {"W_enc": encoder_LD, "b_enc": constant(bias), "W_dec": decoder_LO,
                  "b_dec": torch.zeros(out, device=device)}
    if recipe.architecture == "jumprelu":
        parameters["log_threshold"] = constant(SPARSE_START).log()
    if recipe.architecture == "gated":
        parameters |= {"r_mag": constant(0.0), "b_mag": constant(0.0)}
    if recipe.skip:
        parameters["W_skip"] = torch.zeros(width, out, device=device)
    for tensor in parameters.values():
        tensor.requires_grad_(True)
    return parameters


def _drawn(seed: int, which: int, rows: slice, width: int) -> Iterator[tuple[slice, Tensor]]:
    """Normal numbers for a run of latents, a block at a time, and their place in it."""
    for block in range(rows.start // BLOCK, -(-rows.stop // BLOCK)):
        own = int(np.random.SeedSequence([seed, which, block]).generate_state(1, np.uint64)[0] >> 1)
        drawn = torch.randn(BLOCK, width, generator=torch.Generator().manual_seed(own))
        first, last = max(rows.start, block * BLOCK), min(rows.stop, (block + 1) * BLOCK)
        yield slice(first - rows.start, last - rows.start), drawn[first - block * BLOCK : last - block * BLOCK]
