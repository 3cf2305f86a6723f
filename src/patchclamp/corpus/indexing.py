"""Making an index of units: shard by shard a sketch of every unit, then one table.

    index.parquet               one row a unit; there once the index is whole, and the shards are then gone
"""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from patchclamp.corpus.sketch import Sketch
from patchclamp.corpus.table import INDEX, Index, IndexManifest, IndexSettings, merge_shards
from patchclamp.corpus.windows import SKIP, plan, window_ids
from patchclamp.corpus.work import Job
from patchclamp.errors import RunError
from patchclamp.evidence.method import Progress
from patchclamp.forward import Model, Site


class IndexJob(Job):
    """Sketches of every layer of an index."""

    verb = "indexing"
    kind = IndexManifest
    manifest: IndexManifest

    @property
    def whole(self) -> bool:
        """Whether the table is there."""
        return (self.folder / INDEX).is_file()

    def make(self, model: Model, shard: int) -> dict[str, Tensor]:
        """Run a shard's windows, batch by batch, and give the sketches of its layers."""
        manifest = self.manifest
        windows = manifest.windows_of(shard)
        ids = window_ids(self.folder, windows)
        places = manifest.places_in(windows)
        sketches = {layer: Sketch(model.n_neurons(layer), manifest.top, places) for layer in manifest.layers}
        sites = [Site("neuron", layer) for layer in manifest.layers]
        for first in range(0, len(ids), manifest.batch):
            numbers = windows[first : first + manifest.batch]

            def take(site: Site, values_WTF: Tensor, numbers: Sequence[int] = numbers) -> None:
                sketches[site.layer or 0].add(values_WTF, numbers, SKIP)

            model.scan(ids[first : first + manifest.batch], sites, take)
        check_finite(sketches, model)
        return {f"{layer}.{name}": tensor for layer, sketch in sketches.items()
                for name, tensor in sketch.tensors().items()}


def check_finite(sketches: dict[int, Sketch], model: Model) -> None:
    """RunError if a value was no number: no statistic of it would mean anything."""
    wrong = [layer for layer, sketch in sketches.items() if not sketch.finite]
    if wrong:
        raise RunError(f"neuron.{wrong[0]} of {model.name} has values that are no finite numbers; load the model in "
                       f"float32 (it runs in {model.dtype})")


def make_index(
    model: Model, settings: IndexSettings, folder: Path, progress: Progress, workers: int = 1, ray: bool = False
) -> Index:
    """The finished index in `folder`, after whatever work is left. Raises SpecError, FileError, RunError."""
    job = IndexJob(folder, plan(model, settings, folder, IndexManifest))
    job.finish(model, progress, workers, ray)
    if not job.whole:
        merge_shards(job.manifest, folder)
    return Index(folder)
