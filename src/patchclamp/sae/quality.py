"""How well codes stand for what they were made from, on rows of any number, read once.

    FVU = Σₙ ‖yₙ - ŷₙ‖² / Σₙ ‖yₙ - ȳ‖²        ȳ the mean of all rows that are looked at, sums in float64

Pooled: one quotient of two sums, not a mean of batches' quotients, which would depend on how rows were cut. Centred:
always saying the mean scores 1, and nothing is won by being nearly right about a large constant.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from patchclamp.evidence.method import Part
from patchclamp.forward.autoencoder import Autoencoder
from patchclamp.sae.batches import Rows

AT_ONCE = 4096


class Quality(Part):
    """On some rows."""

    rows: int
    fvu: float
    """Fraction of variance unexplained: 0 is perfect, 1 as good as the mean."""
    l0: float
    """Latents active for an input, on average."""
    dead: float
    """Share of latents active for none of these rows."""


class Tally:
    """Sums over rows, of one width and one number of latents."""

    def __init__(self, n_latents: int) -> None:
        self.rows = 0
        self.error = 0.0
        self.square = 0.0
        self.total_O: Tensor | float = 0.0
        self.counts_L = torch.zeros(n_latents, dtype=torch.int64)
        """Rows each latent is active for."""

    def add(self, y_NO: Tensor, out_NO: Tensor, counts_L: Tensor) -> None:
        """Take in rows, what was made of them, and how many of them each latent is active for."""
        y_NO = y_NO.double()
        self.rows += len(y_NO)
        self.error += float((y_NO - out_NO.double()).square().sum())
        self.square += float(y_NO.square().sum())
        self.total_O = self.total_O + y_NO.sum(0)
        self.counts_L += counts_L

    @property
    def variance(self) -> float:
        """Σ‖y - ȳ‖²."""
        total = torch.as_tensor(self.total_O, dtype=torch.float64)
        return self.square - float(total.square().sum()) / max(1, self.rows)

    def quality(self) -> Quality:
        """What the sums say. FVU is 1 where nothing varied."""
        variance = self.variance
        return Quality(
            rows=self.rows, fvu=self.error / variance if variance > 0 else 1.0,
            l0=float(self.counts_L.sum()) / max(1, self.rows), dead=float((self.counts_L == 0).double().mean()),
        )


def quality(autoencoder: Autoencoder, rows: Iterable[Rows]) -> Quality:
    """On rows of what it reads and, if it is a transcoder, of what it writes."""
    tally = Tally(autoencoder.n_latents)
    for some in rows:
        for parts in zip(*(values.split(AT_ONCE) for values in some), strict=True):
            out_NO, counts_L = autoencoder.looked_at(parts[0])
            tally.add(parts[-1], out_NO, counts_L)
    return tally.quality()
