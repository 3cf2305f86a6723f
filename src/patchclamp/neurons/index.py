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
from pydantic import Field

from patchclamp.corpus.indexing import make_index
from patchclamp.corpus.table import Index, IndexSettings
from patchclamp.corpus.windows import Settings
from patchclamp.errors import SpecError
from patchclamp.evidence.cli_hints import CommaList, Positional
from patchclamp.evidence.method import Outcome, Part, Progress, Result, Spec, method
from patchclamp.forward import Model, Site
from patchclamp.forward.prepare import check_site
from patchclamp.tasks.files import DataFile

if TYPE_CHECKING:
    import altair
    import pandas


class IndexSpec(Spec):
    """Which neurons to index, over what."""

    corpus: Annotated[DataFile, Positional()]
    """A text file, a folder of them, JSONL or Parquet with a text column, hf:NAME[:SPLIT], or example:neutral."""
    save: DataFile
    """The index's folder. If the work was interrupted, the same command goes on where it was; given several times at
    once, the processes share the work."""
    layers: Annotated[tuple[int, ...], CommaList()] = ()
    """Blocks whose neurons are indexed, e.g. 0,15,29; all if none are named."""
    tokens: int = Field(200_000, ge=1)
    """How many tokens to read at most."""
    length: int = Field(128, ge=4)
    """Tokens in a window: what a neuron may look back on, and the most an example can show."""
    top: int = Field(20, ge=1, le=200)
    """How many windows to keep for each neuron and sign, one entry a window."""
    places: int = Field(2048, ge=0)
    """How many tokens, drawn from the whole corpus, all activations are kept of: for quantiles and their examples."""
    batch: int = Field(32, ge=1)
    """Windows in one pass."""
    shard: int | None = Field(None, ge=1)
    """Windows in a shard, which a process that is killed loses; 256 if not given, or what makes 8 to 64 shards."""
    workers: int = Field(1, ge=1)
    """Processes, each with the model in memory; 1 works in the one that was called."""
    ray: bool = False
    """Give the shards to Ray workers; `save` must be a folder that all nodes see."""


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
    made = make_index(model, settings_of(model, spec), folder, progress, spec.workers, spec.ray)
    layers = [_layer(made, Site.parse(site)) for site in made.manifest.sites]
    windows = made.manifest.windows
    return IndexedNeurons(
        folder=str(folder), windows=windows, tokens=windows * (made.manifest.length - 1),
        neurons=sum(one.neurons for one in layers), layers=layers,
    ), None


def settings_of(model: Model, spec: IndexSpec) -> IndexSettings:
    """What makes this index this index. SiteError for a layer without neurons."""
    layers = tuple(sorted(set(spec.layers))) or tuple(range(model.n_layers))
    if layers[0] < 0:
        raise SpecError(f"layers are numbered from 0; got {layers[0]}")
    for layer in layers:
        check_site(model.anatomy, Site("neuron", layer), model.name)
    return IndexSettings(
        **Settings.of_model(model), sites=tuple(str(Site("neuron", layer)) for layer in layers),
        **spec.model_dump(include={"corpus", "tokens", "length", "top", "places", "batch", "shard", "seed"}),
    )


def _layer(made: Index, site: Site) -> IndexedLayer:
    columns = made.columns(site, ("active", "mean", "sd", "min", "max"))
    alive = columns["min"] < columns["max"]
    peak = np.maximum(np.abs(columns["min"]), np.abs(columns["max"]))[alive] / columns["sd"][alive]
    return IndexedLayer(layer=site.layer or 0, neurons=len(alive), constant=int((~alive).sum()),
                        active=_spread(columns["active"]), peak=_spread(peak) if alive.any() else (0.0, 0.0, 0.0))


def _spread(values: np.ndarray) -> tuple[float, float, float]:
    low, middle, high = np.quantile(values, (0.1, 0.5, 0.9)).tolist()
    return low, middle, high
