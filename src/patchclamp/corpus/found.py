"""Where the windows of a unit (neuron, feature) come from, an index or a corpus read for it alone, and their text."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from pydantic import Field, model_validator
from torch import Tensor

from patchclamp.corpus.indexing import check_finite
from patchclamp.corpus.pack import Ids, need_sequences, pack
from patchclamp.corpus.sketch import Sketch
from patchclamp.corpus.table import Index, Peak, Unit, draw_places, table_of, units_in
from patchclamp.corpus.windows import SKIP
from patchclamp.errors import SiteError
from patchclamp.evidence.method import Part, Progress, Spec
from patchclamp.forward import Model, Plan, Site
from patchclamp.forward.prepare import check_site
from patchclamp.model.tokens import pieces
from patchclamp.tasks.files import DataFile

BATCH = 32
KEPT = 20
NEUTRAL = "example:neutral"
PLACES = 2048
AFTER = 3
"""One in so many of a window's tokens comes after the peak."""


class TextSpec(Spec):
    """The text in which units are looked at."""

    index: DataFile | None = None
    """The folder of an index of this model, as `neurons index` or `sae index` made it."""
    corpus: DataFile | None = None
    """Instead of an index: a corpus read for these units alone; the built-in neutral one, which is short, if neither
    is given."""
    tokens: int = Field(100_000, ge=1)
    """How many tokens of the corpus to read at most."""
    length: int = Field(64, ge=4)
    """Tokens in a window of the corpus."""

    @model_validator(mode="after")
    def _one_source(self) -> "TextSpec":
        if self.index and self.corpus:
            raise ValueError("index and corpus were both given; windows come from one of them")
        return self


class Found(Protocol):
    """Statistics of units and the windows they are over: an `Index`, or a corpus `Scanned` for a few of them."""

    @property
    def where(self) -> str: ...
    @property
    def length(self) -> int: ...
    @property
    def sample(self) -> tuple[int, ...]: ...
    def units(self, site: Site, units: Sequence[int]) -> list[Unit]: ...
    def windows(self, numbers: Sequence[int]) -> list[Ids]: ...


class Scanned:
    """A corpus read for some units. Raises FileError for a corpus smaller than one window.

    `wanted`: units by site. Its windows are held in memory, four bytes a token.
    """

    def __init__(
        self, model: Model, wanted: Mapping[Site, Sequence[int]], corpus: str, progress: Progress, *,
        tokens: int = 50_000, length: int = 128, kept: int = KEPT, seed: int = 0,
    ) -> None:
        self.where, self.length = corpus, length
        windows = pack(model, corpus, length, tokens // length)
        need_sequences(len(windows), 1, length, corpus, "a window is one")
        self.sample = draw_places(len(windows), length, PLACES, seed)
        self._ids_WT = np.array(windows, dtype=np.int32)
        self._units = {site: list(dict.fromkeys(units)) for site, units in wanted.items()}
        sketches = {site: Sketch(len(units), kept, self.sample) for site, units in self._units.items()}
        starts = range(0, len(windows), BATCH)
        for first in progress.track(starts, "reading the corpus", len(starts)):
            some = windows[first : first + BATCH]

            def take(site: Site, values_WTF: Tensor, first: int = first, count: int = len(some)) -> None:
                sketches[site].add(values_WTF[..., self._units[site]], range(first, first + count), SKIP)

            model.scan(some, list(self._units), take)
        check_finite(sketches, model)
        self._tables = {site: table_of(sketch, site, self._units[site], length) for site, sketch in sketches.items()}

    def units(self, site: Site, units: Sequence[int]) -> list[Unit]:
        """What is known of some of the wanted units."""
        rows = [self._units[site].index(unit) for unit in units]
        return units_in(self._tables[site], rows)

    def windows(self, numbers: Sequence[int]) -> list[Ids]:
        """The token ids of windows."""
        return [tuple(self._ids_WT[number].tolist()) for number in numbers]


def read_text(
    model: Model, spec: TextSpec, wanted: Mapping[Site, Sequence[int]], kept: int, progress: Progress
) -> Found:
    """The index, or the corpus read for the wanted units by site, with `kept` windows of each sign."""
    if spec.index is None:
        return Scanned(model, wanted, spec.corpus or NEUTRAL, progress, tokens=spec.tokens, length=spec.length,
                       kept=kept, seed=spec.seed)
    index = Index(spec.index)
    index.check_model(model)
    return index


class Window(Part):
    """Some tokens of a window around one of them, with the unit's activation at each."""

    tokens: list[str]
    """What each token says."""
    activations: list[float]
    """At each token, from a run of the window up to the last of them."""
    at: int
    """Which of these tokens it is about: the peak, or the place drawn."""
    value: float
    """The activation there, as it was when the whole corpus was read."""
    window: int
    """Number of the window in the corpus."""
    position: int
    """Of the token it is about, in the window."""
    tenth: int | None = None
    """For quantile examples: which tenth of the activations above 0 the value is from, 10 for the greatest."""


UNITS = ("neuron", "gate", "feature")


def check_unit(model: Model, site: Site) -> tuple[Site, int]:
    """The whole site and the number of a site that names one neuron or feature at all positions. Raises SiteError."""
    if site.point not in UNITS or site.unit is None or site.layer is None or site.positions.kind != "all":
        raise SiteError(f"{site}: examples are of single neurons or features at all positions, such as neuron.19.1044 "
                        "or feature.15.88")
    check_site(model.anatomy, site, model.name)
    return model.named(site.whole), site.unit


def read_windows(
    model: Model, found: Found, asked: Sequence[tuple[Site, Peak]], context: int, progress: Progress
) -> list[Window]:
    """For each unit and place the tokens around it, at most `context`, two thirds of them before it.

    The window is run once more, up to the last token shown. Its first token is not shown: its activations are in no
    statistic. A place whose value is NaN gets the value of this run.
    """
    ids = dict(zip(numbers := sorted({peak.window for _, peak in asked}), found.windows(numbers), strict=True))
    spans = [span(peak.position, found.length, context) for _, peak in asked]
    rows = [(ids[peak.window][:end], (), [site]) for (site, peak), (_, end) in zip(asked, spans, strict=True)]
    values = model.execute(Plan.of(rows), track=progress.track) if rows else []
    out = []
    for (_, peak), (start, end), (own_T,) in zip(asked, spans, values, strict=True):
        activations = own_T[start:end].tolist()
        at = peak.position - start
        out.append(Window(
            tokens=list(pieces(model.tokenizer, ids[peak.window][:end])[start:]), activations=activations, at=at,
            value=activations[at] if peak.value != peak.value else peak.value, window=peak.window,
            position=peak.position,
        ))
    return out


def span(position: int, length: int, context: int) -> tuple[int, int]:
    """Where the tokens around one of a window begin and end: at most `context`, two thirds of them before it."""
    end = min(length, position + 1 + context // AFTER)
    return max(SKIP, min(end - context, position)), end
