"""All activations of a few units over some windows, in memory: for whoever needs many windows of each."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from patchclamp.corpus.found import BATCH, Window, span
from patchclamp.corpus.pack import Ids
from patchclamp.corpus.scoring import active_from
from patchclamp.corpus.windows import SKIP
from patchclamp.evidence.method import Progress
from patchclamp.forward import Model, Site
from patchclamp.model.tokens import pieces

TENTHS = 10


class Texts(NamedTuple):
    """Windows of one unit."""

    top: list[Window]
    """With the greatest activation, greatest first."""
    tenths: list[Window]
    """Places from each tenth of the activations above 0."""
    random: list[Window]
    """Places drawn from everywhere, whatever the unit does there."""


class Held:
    """Activations [windows, tokens] of units; the first token of each window is left out of everything."""

    def __init__(
        self, model: Model, wanted: Mapping[Site, Sequence[int]], windows: Sequence[Ids], progress: Progress
    ) -> None:
        self.windows = list(windows)
        self._tokens = [pieces(model.tokenizer, ids) for ids in windows]
        self._units = {site: list(units) for site, units in wanted.items()}
        parts: dict[Site, list[Tensor]] = {site: [] for site in wanted}
        starts = range(0, len(windows), BATCH)
        for first in progress.track(starts, "reading the text", len(starts)):
            model.scan(self.windows[first : first + BATCH], list(wanted),
                       lambda site, values_WTF: parts[site].append(
                           values_WTF[..., self._units[site]].float().cpu().clone()))
        self._values = {site: torch.cat(some).numpy() for site, some in parts.items()}

    def of(self, site: Site, unit: int) -> np.ndarray:
        """A unit's activations, [windows, tokens]."""
        values: np.ndarray = self._values[site][..., self._units[site].index(unit)]
        return values

    def active_from(self, site: Site, unit: int) -> float:
        """The activation from which a unit counts as active (`scoring.py`)."""
        high, middle = np.quantile(self.of(site, unit)[:, SKIP:], [0.99, 0.5])
        return active_from(float(high), float(middle))

    def texts(self, site: Site, unit: int, half: int, n: int, context: int, seed: int) -> Texts:
        """`n` windows of the greatest activation, `n` places drawn from everywhere, and one from each tenth of the
        activations above 0, of windows with an even (`half` 0) or an odd number (1)."""
        values_WT = self.of(site, unit)
        own = np.arange(half, len(values_WT), 2)
        inside_WT = values_WT[own, SKIP:]
        at_W = inside_WT.argmax(1)
        best = np.argsort(-inside_WT.max(1), kind="stable")[:n]
        generator = np.random.default_rng(seed)
        drawn = generator.permutation(inside_WT.size)[:n]
        above = np.flatnonzero(inside_WT.ravel() > 0)
        ranked = above[np.argsort(-inside_WT.ravel()[above], kind="stable")]
        spread = [ranked[int((tenth + 0.5) / TENTHS * len(ranked))] for tenth in range(TENTHS)] if len(ranked) else []

        def windows(places: Sequence[tuple[int, int]]) -> list[Window]:
            return [self._window(values_WT, int(own[w]), int(t) + SKIP, context) for w, t in places]

        width = inside_WT.shape[1]
        return Texts(windows([(w, at_W[w]) for w in best]), windows([divmod(int(p), width) for p in spread]),
                     windows([divmod(int(p), width) for p in drawn]))

    def _window(self, values_WT: np.ndarray, window: int, position: int, context: int) -> Window:
        start, end = span(position, values_WT.shape[1], context)
        return Window(tokens=list(self._tokens[window][start:end]), activations=values_WT[window, start:end].tolist(),
                      at=position - start, value=float(values_WT[window, position]), window=window, position=position)
