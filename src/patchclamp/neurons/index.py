"""An index of neurons: for every neuron of chosen layers, where in a corpus it is most and least active.

One pass over the corpus serves all neurons. Each layer's activations are folded into a sketch of one size the moment
they are there (`corpus/sketch.py`), the pass ends at the last layer asked for and never reaches the unembedding. The
corpus is cut into windows and these into shards; a shard is done by whoever is free (`corpus/work.py`), and merged, in
their order, they are one row a neuron (`corpus/table.py`). Activations at a window's first token are left out:
outliers, they would be the top example of many neurons. Top examples as a way to see what a unit does: Bau et al. 2017,
arXiv 1704.05796; that they show only the extreme end, and that the whole range should be looked at: Bolukbasi et al.
2021, "An Interpretability Illusion for BERT", arXiv 2104.07143.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np

from patchclamp.corpus.indexing import UnitIndexSpec, make_index, settings_of
from patchclamp.corpus.table import Index
from patchclamp.errors import SpecError
from patchclamp.evidence.cli_hints import CommaList
from patchclamp.evidence.method import Outcome, Part, Progress, Result, method
from patchclamp.forward import Model, Site
from patchclamp.forward.prepare import check_site

if TYPE_CHECKING:
    import altair
    import pandas


class IndexSpec(UnitIndexSpec):
    """Which neurons to index, over what."""

    layers: Annotated[tuple[int, ...], CommaList()] = ()
    """Blocks whose neurons are indexed, e.g. 0,15,29; all if none are named."""


class IndexedLayer(Part):
    """One layer's neurons."""

    layer: int
    neurons: int
    constant: int
    """Neurons that never changed: dead ones."""
    active: tuple[float, float, float]
    """Share of tokens with an activation above 0: the 10 % quantile, median and 90 % quantile over neurons."""
    peak: tuple[float, float, float]
    """The greatest |activation| in standard deviations, over neurons that are not constant: the same quantiles."""


class IndexedNeurons(Result):
    """A finished index."""

    folder: str
    """Where it is."""
    windows: int
    tokens: int
    """Tokens the statistics are over: those of all windows but the first of each."""
    neurons: int
    layers: list[IndexedLayer]

    def table(self) -> "pandas.DataFrame":
        """One row a layer."""
        import pandas

        return pandas.DataFrame([
            {"layer": one.layer, "neurons": one.neurons, "constant": one.constant, "active, median": one.active[1],
             "active, 10 %": one.active[0], "active, 90 %": one.active[2], "peak / sd, median": one.peak[1],
             "peak / sd, 10 %": one.peak[0], "peak / sd, 90 %": one.peak[2]}
            for one in self.layers
        ])

    def chart(self) -> "altair.TopLevelMixin":
        """How often neurons are active, and how far they peak, by layer."""
        from patchclamp.charts.examples import index_chart

        return index_chart(self)


@method("neurons.index", spec=IndexSpec, result=IndexedNeurons)
def index(model: Model, spec: IndexSpec, progress: Progress) -> Outcome:
    """Index all neurons of chosen layers over a corpus: top windows of both signs, histogram, quantiles.

    `neurons examples --index FOLDER` shows what was found. An index claims nothing, so there is no verdict.
    """
    folder = Path(spec.save)
    made = make_index(model, settings_of(model, spec, _sites(model, spec)), folder, progress, spec.workers, spec.ray)
    layers = [_layer(made, Site.parse(site)) for site in made.manifest.sites]
    windows = made.manifest.windows
    return IndexedNeurons(
        folder=str(folder), windows=windows, tokens=windows * (made.manifest.length - 1),
        neurons=sum(one.neurons for one in layers), layers=layers,
    ), None


def _sites(model: Model, spec: IndexSpec) -> list[Site]:
    """SiteError for a layer without neurons."""
    layers = sorted(set(spec.layers)) or range(model.n_layers)
    if layers[0] < 0:
        raise SpecError(f"layers are numbered from 0; got {layers[0]}")
    for layer in layers:
        check_site(model.anatomy, Site("neuron", layer), model.name)
    return [Site("neuron", layer) for layer in layers]


def _layer(made: Index, site: Site) -> IndexedLayer:
    columns = made.columns(site, ("active", "mean", "sd", "min", "max"))
    alive = columns["min"] < columns["max"]
    peak = np.maximum(np.abs(columns["min"]), np.abs(columns["max"]))[alive] / columns["sd"][alive]
    return IndexedLayer(layer=site.layer or 0, neurons=len(alive), constant=int((~alive).sum()),
                        active=_spread(columns["active"]), peak=_spread(peak) if alive.any() else (0.0, 0.0, 0.0))


def _spread(values: np.ndarray) -> tuple[float, float, float]:
    low, middle, high = np.quantile(values, (0.1, 0.5, 0.9)).tolist()
    return low, middle, high
