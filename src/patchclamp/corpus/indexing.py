"""Making an index of units: shard by shard a sketch of every unit, then one table.

    index.parquet               one row a unit; there once the index is whole, and the shards are then gone
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field
from torch import Tensor

from patchclamp.corpus.sketch import Sketch
from patchclamp.corpus.table import INDEX, Index, IndexManifest, IndexSettings, fingerprints, merge_shards
from patchclamp.corpus.windows import SKIP, Settings, plan, window_ids
from patchclamp.corpus.work import Job
from patchclamp.errors import RunError
from patchclamp.evidence.cli_hints import Positional
from patchclamp.evidence.method import Progress, Spec
from patchclamp.forward import Model, Site
from patchclamp.tasks.files import DataFile


class UnitIndexSpec(Spec):
    """What to index units over, and how finely."""

    corpus: Annotated[DataFile, Positional()]
    """A text file, a folder of them, JSONL or Parquet with a text column, hf:NAME[:SPLIT], or example:neutral."""
    save: DataFile
    """The index's folder. If the work was interrupted, the same command goes on where it was; given several times at
    once, the processes share the work."""
    tokens: int = Field(200_000, ge=1)
    """How many tokens to read at most."""
    length: int = Field(128, ge=4)
    """Tokens in a window: what a neuron may look back on, and the most an example can show."""
    top: int = Field(20, ge=1, le=200)
    """How many windows to keep for each unit and sign, one entry a window."""
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


class IndexJob(Job):
    """Sketches of every unit of an index's sites."""

    verb = "indexing"
    kind = IndexManifest
    manifest: IndexManifest

    @property
    def whole(self) -> bool:
        """Whether the table is there."""
        return (self.folder / INDEX).is_file()

    def make(self, model: Model, shard: int) -> dict[str, Tensor]:
        """Run a shard's windows, batch by batch, and give the sketches of its sites."""
        manifest = self.manifest
        windows = manifest.windows_of(shard)
        ids = window_ids(self.folder, windows)
        places = manifest.places_in(windows)
        sites = [Site.parse(site) for site in manifest.sites]
        sketches = {site: Sketch(model.anatomy.n_units(site.place, site.layer or 0), manifest.top, places)
                    for site in sites}
        for first in range(0, len(ids), manifest.batch):
            numbers = windows[first : first + manifest.batch]

            def take(site: Site, values_WTF: Tensor, numbers: Sequence[int] = numbers) -> None:
                sketches[site].add(values_WTF, numbers, SKIP)

            model.scan(ids[first : first + manifest.batch], sites, take)
        check_finite(sketches, model)
        return {f"{number}.{name}": tensor for number, sketch in enumerate(sketches.values())
                for name, tensor in sketch.tensors().items()}


def check_finite(sketches: Mapping[Site, Sketch], model: Model) -> None:
    """RunError if a value was no number: no statistic of it would mean anything."""
    wrong = [site for site, sketch in sketches.items() if not sketch.finite]
    if wrong:
        raise RunError(f"{wrong[0]} of {model.name} has values that are no finite numbers; load the model in "
                       f"float32 (it runs in {model.dtype})")


def settings_of(model: Model, spec: UnitIndexSpec, sites: Sequence[Site]) -> IndexSettings:
    """What makes an index of these sites this index."""
    return IndexSettings(
        **Settings.of_model(model), sites=tuple(map(str, sites)), autoencoders=fingerprints(model, sites),
        **spec.model_dump(include={"corpus", "tokens", "length", "top", "places", "batch", "shard", "seed"}),
    )


def make_index(
    model: Model, settings: IndexSettings, folder: Path, progress: Progress, workers: int = 1, ray: bool = False
) -> Index:
    """The finished index in `folder`, after whatever work is left. Raises SpecError, FileError, RunError."""
    job = IndexJob(folder, plan(model, settings, folder, IndexManifest))
    job.finish(model, progress, workers, ray)
    if not job.whole:
        merge_shards(job.manifest, folder)
    return Index(folder)
