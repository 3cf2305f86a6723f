"""How well codes stand for what they were made from, on rows of any number, read once.

    FVU = Σₙ ‖yₙ - ŷₙ‖² / Σₙ ‖yₙ - ȳ‖²        ȳ the mean of all rows that are looked at, sums in float64

Pooled: one quotient of two sums, not a mean of batches' quotients, which would depend on how rows were cut. Centred:
always saying the mean scores 1, and nothing is won by being nearly right about a large constant. The interval is over
windows, for tokens of one text are not independent.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from patchclamp.evidence.bootstrap import bootstrap_ratio
from patchclamp.evidence.method import Part
from patchclamp.evidence.verdict import Interval
from patchclamp.forward.autoencoder import Autoencoder
from patchclamp.sae.batches import Rows

AT_ONCE = 4096
FREQUENCIES = tuple(10 ** (step / 4) for step in range(-24, 1))
"""Between the bins of the density histogram."""


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
    """Sums over rows, of one width and one number of latents. `windows`: those the rows are of, sorted; `centre_O`:
    what single rows' distances are taken from."""

    def __init__(
        self, n_latents: int, windows: Sequence[int] = (0,), centre_O: Tensor | float = 0.0
    ) -> None:
        self.counts_L = torch.zeros(n_latents, dtype=torch.int64)
        """Rows each latent is active for."""
        self._windows = torch.tensor(windows)
        self.rows_W = torch.zeros(len(windows), dtype=torch.float64)
        self.error_W = torch.zeros(len(windows), dtype=torch.float64)
        self._square_W = torch.zeros(len(windows), dtype=torch.float64)
        self.ratio_W = torch.zeros(len(windows), dtype=torch.float64)
        """Σ ‖e‖² / ‖y - centre‖² of each window's rows."""
        self._centre_O = centre_O
        self._total_WO: Tensor | None = None

    def add(self, y_NO: Tensor, out_NO: Tensor, counts_L: Tensor, windows_N: Tensor | None = None) -> None:
        """Take in rows, what was made of them, how many of them each latent is active for, and their windows."""
        y_NO = y_NO.double()
        at_N = torch.zeros(len(y_NO), dtype=torch.long) if windows_N is None else torch.searchsorted(
            self._windows, windows_N)
        if self._total_WO is None:
            self._total_WO = torch.zeros(len(self._windows), y_NO.shape[1], dtype=torch.float64)
        self.rows_W += torch.bincount(at_N, minlength=len(self._windows))
        error_N = (y_NO - out_NO.double()).square().sum(1)
        self.error_W.index_add_(0, at_N, error_N)
        far_N = (y_NO - self._centre_O).square().sum(1)
        self.ratio_W.index_add_(0, at_N, error_N / far_N.clamp(min=1e-30))
        self._square_W.index_add_(0, at_N, y_NO.square().sum(1))
        self._total_WO.index_add_(0, at_N, y_NO)
        self.counts_L += counts_L

    @property
    def variances(self) -> Tensor:
        """Σ‖y - ȳ‖² of each window, ȳ the mean of all."""
        if self._total_WO is None:
            return self._square_W
        mean_O = self._total_WO.sum(0) / self.rows_W.sum()
        return self._square_W - 2 * self._total_WO @ mean_O + self.rows_W * mean_O.square().sum()

    def quality(self) -> Quality:
        """What the sums say. FVU is 1 where nothing varied."""
        variance, rows = float(self.variances.sum()), int(self.rows_W.sum())
        return Quality(
            rows=rows, fvu=float(self.error_W.sum()) / variance if variance > 0 else 1.0,
            l0=float(self.counts_L.sum()) / max(1, rows), dead=float((self.counts_L == 0).double().mean()),
        )

    def fvu_by_row(self, seed: int) -> Interval:
        """Mean over rows of ‖e‖² / ‖y - centre‖², with its interval over windows."""
        return bootstrap_ratio(self.ratio_W, self.rows_W, seed)

    def fvu(self, seed: int) -> Interval:
        """FVU with its interval over windows."""
        return bootstrap_ratio(self.error_W, self.variances, seed)


def quality(autoencoder: Autoencoder, rows: Iterable[Rows]) -> Quality:
    """On rows of what it reads and, if it is a transcoder, of what it writes."""
    tally = Tally(autoencoder.n_latents)
    for some in rows:
        take_in(tally, autoencoder, some)
    return tally.quality()


def density(frequency_L: Tensor) -> list[int]:
    """How many latents are active so often, in the bins between `FREQUENCIES`; the first holds the dead."""
    bins_L = torch.bucketize(frequency_L.double(), torch.tensor(FREQUENCIES, dtype=torch.float64))
    counts: list[int] = torch.bincount(bins_L, minlength=len(FREQUENCIES) + 1).tolist()
    return counts


def take_in(tally: Tally, autoencoder: Autoencoder, rows: Rows, windows_N: Tensor | None = None) -> None:
    """Add what an autoencoder makes of rows."""
    starts = range(0, len(rows[0]), AT_ONCE)
    for parts in ([values[first : first + AT_ONCE] for values in rows] for first in starts):
        out_NO, counts_L = autoencoder.looked_at(parts[0])
        own = None if windows_N is None else windows_N[: len(parts[0])]
        windows_N = None if windows_N is None else windows_N[len(parts[0]) :]
        tally.add(parts[-1], out_NO, counts_L, own)
