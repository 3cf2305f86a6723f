"""An index of features: for every latent of an autoencoder, where in a corpus it is active, how often, and what it
writes. The engine is that of neurons (`corpus/indexing.py`): one pass, sketches of one size, shards that several
processes share; activations of the whole corpus are never held, nor written down."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from patchclamp.corpus.indexing import UnitIndexSpec, make_index, settings_of
from patchclamp.corpus.table import Index
from patchclamp.errors import SpecError
from patchclamp.evidence.method import Outcome, Progress, Result, method
from patchclamp.forward import Model, Site
from patchclamp.sae.attached import attached
from patchclamp.sae.quality import FREQUENCIES, density
from patchclamp.sae.written import write_features
from patchclamp.tasks.files import DataFile

if TYPE_CHECKING:
    import altair
    import pandas


class IndexFeaturesSpec(UnitIndexSpec):
    """Which autoencoder's features to index, over what."""

    sae: DataFile | None = None
    """The autoencoder's folder; not needed if one is attached to the model."""


class IndexedFeatures(Result):
    """A finished index."""

    folder: str
    site: str
    """Whose units are indexed, e.g. feature:sae15.15."""
    windows: int
    tokens: int
    """Tokens the statistics are over: those of all windows but the first of each."""
    features: int
    dead: int
    """Features that were never active."""
    l0: float
    """Features active at a token, on average."""
    median: float
    """Share of tokens a feature that is ever active is active at: the median."""
    density_edges: list[float]
    """Between bins of that share; the first bin is below the first edge and holds the dead."""
    density: list[int]
    """Features in each bin."""

    def table(self) -> "pandas.DataFrame":
        """One row: the index."""
        import pandas

        return pandas.DataFrame([{"site": self.site, "features": self.features, "dead": self.dead, "L0": self.l0,
                                  "tokens": self.tokens, "median share of tokens": self.median}])

    def chart(self) -> "altair.TopLevelMixin":
        """How often features are active."""
        from patchclamp.charts.features import indexed_chart

        return indexed_chart(self)


@method("sae.index", spec=IndexFeaturesSpec, result=IndexedFeatures)
def index_features(model: Model, spec: IndexFeaturesSpec, progress: Progress) -> Outcome:
    """Index all features of an autoencoder over a corpus: top windows, histogram, density, logit effects, neighbours.

    `sae browse`, `sae show` and `sae search` read it. An index claims nothing, so there is no verdict.
    """
    site, folder = attached(model, spec.sae), Path(spec.save)
    made = make_index(model, settings_of(model, spec, [site]), folder, progress, spec.workers, spec.ray)
    active = made.columns(site, ["active"])["active"]
    write_features(model, model.autoencoder(site), made, torch.from_numpy(active == 0), progress)
    return IndexedFeatures(
        folder=str(folder), site=str(site), windows=made.manifest.windows,
        tokens=made.manifest.windows * (made.manifest.length - 1), features=len(active), dead=int((active == 0).sum()),
        l0=float(active.sum()), median=float(np.median(active[active > 0])) if active.any() else 0.0,
        density_edges=list(FREQUENCIES), density=density(torch.from_numpy(active.copy())),
    ), None


def opened(model: Model, folder: str) -> tuple[Index, Site]:
    """A finished index of features and their site; its autoencoder has to be attached. SpecError if it is an index of
    neurons, or of another model or autoencoder."""
    index = Index(folder)
    site = Site.parse(index.manifest.sites[0])
    if site.point != "feature":
        raise SpecError(f"{folder} is an index of {site.point}s; `patchclamp sae index` makes one of features")
    index.check_model(model)
    return index, site
