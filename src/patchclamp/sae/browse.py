"""All features of an index as a list: how often each is active, how much, at which tokens, and what it promotes."""

from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field

from patchclamp.corpus.table import Index
from patchclamp.errors import SpecError
from patchclamp.evidence.method import Outcome, Part, Progress, Result, Spec, method
from patchclamp.forward import Model, Site
from patchclamp.sae.attached import attached
from patchclamp.sae.index import opened
from patchclamp.sae.written import Features
from patchclamp.tasks.files import DataFile

if TYPE_CHECKING:
    import altair
    import pandas

WINDOWS, PROMOTED = 5, 5
"""Of a feature's strongest windows and of the tokens it promotes, how many are read."""


class BrowseSpec(Spec):
    """Which features, in which order."""

    index: DataFile
    """The index's folder, as `sae index` made it."""
    sae: DataFile | None = None
    """The autoencoder's folder; not needed if one is attached to the model."""
    contains: str | None = Field(None, min_length=1)
    """Only features with this, in upper or lower case, in a token at which one of their five strongest windows peaks,
    or in one of the five tokens they promote most."""
    order: Literal["active", "rare", "strong", "number"] = "active"
    """What comes first: the most often active, the least often active, the greatest activation, or the first number."""
    limit: int = Field(50, ge=1, le=1000)
    """How many to list."""
    skip: int = Field(0, ge=0)
    """How many to leave out before: the next page of a list."""


class Listed(Part):
    """One feature."""

    feature: str
    active: float
    """Share of the corpus's tokens it is active at."""
    high: float
    """The greatest activation."""
    peaks: list[str]
    """The different tokens at which its five strongest windows peak, the strongest first."""
    promotes: list[str]
    """Tokens whose logits it raises most."""


class Browsed(Result):
    """Features that are ever active."""

    features: list[Listed]
    matching: int
    """Features that could be listed, on all pages."""
    alive: int
    """Features that are active somewhere in the corpus."""
    total: int
    source: str

    def table(self) -> "pandas.DataFrame":
        """One row a feature."""
        import pandas

        from patchclamp.charts.style import visible

        return pandas.DataFrame(
            [{"feature": one.feature, "active": one.active, "max": one.high,
              "peaks at": " ".join(map(visible, one.peaks)), "promotes": " ".join(map(visible, one.promotes))}
             for one in self.features],
            columns=["feature", "active", "max", "peaks at", "promotes"])

    def chart(self) -> "altair.TopLevelMixin":
        """How often and how much each is active."""
        from patchclamp.charts.features import browsed_chart

        return browsed_chart(self)


@method("sae.browse", spec=BrowseSpec, result=Browsed)
def browse_features(model: Model, spec: BrowseSpec, progress: Progress) -> Outcome:
    """List an index's features: how often each is active, its greatest activation, where it peaks, what it promotes.

    A list claims nothing, so there is no verdict; `sae show` looks at one feature closely.
    """
    attached(model, spec.sae)
    index, whole = opened(model, spec.index)
    columns = index.columns(whole, ["active", "max"])
    alive = np.flatnonzero(columns["active"] > 0)
    words = Words(model, index, whole)
    chosen = alive if spec.contains is None else words.containing(alive, spec.contains, progress)
    keys = {"active": -columns["active"], "rare": columns["active"], "strong": -columns["max"]}
    if spec.order in keys:
        chosen = chosen[np.argsort(keys[spec.order][chosen], kind="stable")]
    shown = chosen[spec.skip : spec.skip + spec.limit]
    if len(chosen) and not len(shown):
        raise SpecError(f"--skip {spec.skip} leaves out all {len(chosen)} features; give a smaller one")
    peaks, promoted = words.peaks(shown), words.promoted(shown)
    listed = [
        Listed(feature=str(Site("feature", whole.layer, int(unit), name=whole.name)),
               active=float(columns["active"][unit]), high=float(columns["max"][unit]),
               peaks=[model.say(token) for token in dict.fromkeys(at)], promotes=list(map(model.say, best)))
        for unit, at, best in zip(shown, peaks, promoted, strict=True)]
    return Browsed(features=listed, matching=len(chosen), alive=len(alive), total=len(columns["active"]),
                   source=index.where), None


class Words:
    """The tokens that go with features of an index."""

    def __init__(self, model: Model, index: Index, whole: Site) -> None:
        self._model, self._index, self._table = model, index, Features(index)
        self._peaks = index.columns(whole, ["top_window", "top_position"])

    def peaks(self, units: np.ndarray) -> list[list[int]]:
        """By feature, the ids of the tokens at which its strongest windows peak."""
        places = [[(int(window), int(at)) for window, at in
                   zip(*(self._peaks[name][unit][:WINDOWS] for name in ("top_window", "top_position")), strict=True)]
                  for unit in units]
        numbers = sorted({window for some in places for window, _ in some})
        ids = dict(zip(numbers, self._index.windows(numbers), strict=True))
        return [[ids[window][at] for window, at in some] for some in places]

    def promoted(self, units: np.ndarray) -> list[list[int]]:
        """By feature, the ids of the tokens it promotes most."""
        return [[token for token, _ in self._table.written(int(unit)).promoted[:PROMOTED]] for unit in units]

    def containing(self, units: np.ndarray, text: str, progress: Progress) -> np.ndarray:
        """Those of some features that go with a token that has this text in it."""
        wanted = text.lower()
        tokens = {token for token in range(self._model.n_vocab) if wanted in self._model.say(token).lower()}
        promoting = self._table.promoting(tokens, PROMOTED)
        parts = np.array_split(units, max(1, len(units) // 2000))
        return np.array([unit for part in progress.track(parts, "reading features", len(parts))
                         for unit, peaks in zip(part, self.peaks(part), strict=True)
                         if int(unit) in promoting or not tokens.isdisjoint(peaks)], dtype=units.dtype)
