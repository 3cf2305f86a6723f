"""One row a unit, a neuron or a feature: what a sketch says of each unit, and the Parquet file that keeps it.

| column | what it is |
|---|---|
| `site`, `unit` | whose unit it is, e.g. neuron.15, and its number |
| `tokens` | how many tokens the numbers are over |
| `mean`, `sd`, `min`, `max` | of the activation |
| `active` | share of tokens with an activation above 0 |
| `histogram` | tokens in each bin of `sketch.EDGES`, exact |
| `quantiles` | those of `QUANTILES`, from the sampled places |
| `top_value`, `top_window`, `top_position` | windows with the greatest activation, one entry a window |
| `bottom_…` | windows with the least |
| `sample_value`, `sample_window`, `sample_position`, `sample_tenth` | of the sampled places with an activation above 0, some of each tenth |
"""  # noqa: E501

import random
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from patchclamp.corpus.pack import Ids
from patchclamp.corpus.sketch import EMPTY, MOST_PLACES, Sketch, keys_of, places_of, values_of
from patchclamp.corpus.windows import (
    SKIP,
    Manifest,
    Settings,
    lock_path,
    read_manifest,
    read_shard,
    remove_if_empty,
    shard_path,
    window_ids,
)
from patchclamp.errors import FileError, SiteError, SpecError, StoreError
from patchclamp.forward import Model, Site

INDEX = "index.parquet"
MOST_SHARDS, A_SHARD, SHARE = 64, 256, 8
"""A shard is so many windows; more where that made too many shards, which would fill the disk; in a small corpus an
eighth of it, or one batch, so that no shard has to hold all sampled values in memory."""
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
A_TENTH = 4
"""Places kept of each tenth of the activations above 0."""
IDENTITY = b"patchclamp.index"


class IndexSettings(Settings):
    """What an index depends on."""

    sites: tuple[str, ...]
    """Whose units are indexed, e.g. neuron.15."""
    autoencoders: tuple[str, ...] = ()
    """Fingerprints of those that features among the sites belong to, in the order of sites."""
    top: int
    places: int


class IndexManifest(IndexSettings, Manifest):
    """The plan of an index."""

    what = "an index"
    made_by = "patchclamp neurons index, or sae index,"

    sample: tuple[int, ...]
    """Places (window · length + position) whose values are kept, drawn from all but the first of each window."""

    def places_in(self, windows: Sequence[int]) -> list[int]:
        """The sampled places in some windows that follow one another."""
        return [p for p in self.sample if windows[0] <= p // self.length <= windows[-1]]

    @classmethod
    def planned(cls, settings: Settings, windows: int, digest: str) -> Self:
        """Places drawn and shards cut. SpecError for more tokens than can be numbered."""
        if windows * settings.length > MOST_PLACES:
            raise SpecError(f"{settings.tokens} tokens are more than an index can number ({MOST_PLACES}); ask for "
                            "fewer")
        places = getattr(settings, "places")  # noqa: B009 (of IndexSettings)
        return cls(**settings.model_dump(), windows=windows, digest=digest,
                   sample=draw_places(windows, settings.length, places, settings.seed),
                   a_shard=settings.shard or shard_size(windows, settings.batch))


def fingerprints(model: Model, sites: Sequence[Site]) -> tuple[str, ...]:
    """Of the autoencoders that features among some sites belong to. SiteError if one is not attached."""
    return tuple(model.autoencoder(site).fingerprint for site in sites if site.point == "feature")


def shard_size(windows: int, batch: int) -> int:
    """Windows in a shard, where nobody says how many."""
    return max(-(-windows // MOST_SHARDS), min(A_SHARD, max(batch, -(-windows // SHARE))))


def draw_places(windows: int, length: int, places: int, seed: int) -> tuple[int, ...]:
    """Places drawn uniformly from all tokens of all windows but the first of each, sorted."""
    room = length - SKIP
    drawn = random.Random(seed).sample(range(windows * room), min(places, windows * room))
    return tuple(sorted(n // room * length + SKIP + n % room for n in drawn))


class Peak(NamedTuple):
    """An activation and where it was."""

    value: float
    window: int
    position: int


@dataclass(frozen=True)
class Unit:
    """What is known of one unit."""

    site: str
    """Whose unit it is, e.g. neuron.15."""
    unit: int
    tokens: int
    mean: float
    sd: float
    active: float
    low: float
    high: float
    histogram: list[int]
    quantiles: list[float]
    top: list[Peak]
    """Windows with the greatest activation, greatest first."""
    bottom: list[Peak]
    """Windows with the least, least first."""
    tenths: list[tuple[int, Peak]]
    """Sampled places above 0, each with its tenth, 1 to 10, of those."""

    @property
    def constant(self) -> bool:
        """Whether it never changed: a dead neuron, of which no example says anything."""
        return self.low == self.high

    @classmethod
    def of(cls, row: dict[str, Any]) -> "Unit":
        """From a row of the table."""
        def peaks(name: str) -> list[Peak]:
            return [Peak(*one) for one in zip(*(row[f"{name}_{key}"] for key in ("value", "window", "position")),
                                              strict=True)]

        return cls(
            site=row["site"], unit=row["unit"], tokens=row["tokens"], mean=row["mean"], sd=row["sd"],
            active=row["active"], low=row["min"], high=row["max"], histogram=list(row["histogram"]),
            quantiles=list(row["quantiles"]), top=peaks("top"), bottom=peaks("bottom"),
            tenths=list(zip(row["sample_tenth"], peaks("sample"), strict=True)),
        )


def table_of(sketch: Sketch, site: Site, units: Sequence[int], length: int) -> Any:
    """The rows of a site's sketch as a pyarrow table. `units`: the numbers of the sketch's units; `length`: tokens in
    a window."""
    import pyarrow as pa

    count, n = int(sketch.count), len(units)
    ranked_FP, rows_FP = _ranked(sketch.sample_PF)
    mean_F = sketch.total_F / count
    constant_F = sketch.low_F == sketch.high_F
    sd_F = (sketch.squares_F / count - mean_F**2).clamp(min=0).sqrt().masked_fill(constant_F, 0.0)
    columns: dict[str, Any] = {
        "site": pa.array([str(site)] * n), "unit": pa.array(units, pa.int32()),
        "tokens": pa.array(np.full(n, count), pa.int64()), "mean": mean_F.numpy(), "sd": sd_F.numpy(),
        "min": sketch.low_F.numpy(), "max": sketch.high_F.numpy(), "active": (sketch.active_F.double() / count).numpy(),
        "histogram": _lists(sketch.histogram_FB), "quantiles": _lists(_quantiles(ranked_FP)),
    }
    for name, keys_FK, sign in (("top", sketch.top_FK, 1), ("bottom", sketch.bottom_FK, -1)):
        columns |= _peaks(name, values_of(keys_FK) * sign, places_of(keys_FK), keys_FK != EMPTY, length)
    values, places, tenths, is_there = _tenths(ranked_FP, sketch.places_P[rows_FP])
    columns |= _peaks("sample", values, places, is_there, length) | {"sample_tenth": _lists(tenths, is_there)}
    return pa.table(columns)


def units_in(table: Any, rows: Sequence[int]) -> list[Unit]:
    """Some rows of a pyarrow table that `table_of` made."""
    import pyarrow as pa

    return [Unit.of(row) for row in table.take(pa.array(rows, pa.int64())).to_pylist()]


def _peaks(name: str, values: Tensor, places: Tensor, is_there: Tensor, length: int) -> dict[str, Any]:
    parts = (values + 0.0, (places // length).int(), (places % length).int())
    return {f"{name}_{key}": _lists(part, is_there)
            for key, part in zip(("value", "window", "position"), parts, strict=True)}


def _lists(rows: Tensor, is_there: Tensor | None = None) -> Any:
    """Lists of a row's numbers, or of those that are there."""
    import pyarrow as pa

    kept = torch.ones(rows.shape, dtype=torch.bool) if is_there is None else is_there
    offsets = np.concatenate([[0], kept.sum(1).cumsum(0).numpy()]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(rows[kept].numpy()))


def _ranked(sample_PF: Tensor) -> tuple[Tensor, Tensor]:
    """Each unit's sampled values, least first, and their rows in the sample, [F, P]; equal ones in the sample's order.

    Value and row are sorted as one 64-bit number, which is several times as fast as a stable sort of floats."""
    rows_P = torch.arange(len(sample_PF))
    keys_FP = keys_of(sample_PF.T.contiguous(), MOST_PLACES - rows_P)
    sorted_FP = torch.from_numpy(np.sort(keys_FP.numpy(), axis=1))
    return values_of(sorted_FP), MOST_PLACES - places_of(sorted_FP)


def _quantiles(ranked_FP: Tensor) -> Tensor:
    """`QUANTILES`, [F, 7], linear between two values; NaN of no values."""
    last = ranked_FP.shape[1] - 1
    if last < 0:
        return torch.full((len(ranked_FP), len(QUANTILES)), torch.nan)
    at_Q = torch.tensor(QUANTILES, dtype=torch.float64) * last
    below_Q = at_Q.long()
    below_FQ, above_FQ = ranked_FP[:, below_Q].double(), ranked_FP[:, (below_Q + 1).clamp(max=last)].double()
    return torch.lerp(below_FQ, above_FQ, at_Q - below_Q).float()


def _tenths(ranked_FP: Tensor, places_FP: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Values, places and tenths [F, 10 · A_TENTH] spread evenly over the ranks of each unit's activations above 0, and
    which of them are there: a unit with few has fewer."""
    n_units, n_places = ranked_FP.shape
    tenth_FQ = (torch.arange(10 * A_TENTH) // A_TENTH + 1).int().expand(n_units, -1)
    if not n_places:
        nothing = torch.zeros(tenth_FQ.shape)
        return nothing, nothing.long(), tenth_FQ, nothing.bool()
    below_F = (ranked_FP <= 0).sum(1)
    share_Q = (torch.arange(10 * A_TENTH, dtype=torch.float64) + 0.5) / (10 * A_TENTH)
    rank_FQ = (share_Q * (n_places - below_F)[:, None]).long() + below_F[:, None]
    is_there = rank_FQ < n_places
    is_there[:, 1:] &= rank_FQ[:, 1:] != rank_FQ[:, :-1]
    rank_FQ = rank_FQ.clamp(max=n_places - 1)
    return ranked_FP.gather(1, rank_FQ), places_FP.gather(1, rank_FQ), tenth_FQ, is_there


def merge_shards(manifest: IndexManifest, folder: Path) -> None:
    """Merge all shards, in their order, into the index's table, one row group a site, and remove them. Does nothing
    if another process has done it."""
    from filelock import FileLock

    with FileLock(lock_path(folder, "merge")):
        if not (folder / INDEX).is_file():
            _write_tables(_tables(manifest, folder), folder / INDEX, manifest.identity)
    for shard in range(manifest.shards):
        shard_path(folder, shard).unlink(missing_ok=True)
    for left in (folder / "shards").glob(".*.part"):  # what a killed process was writing
        left.unlink(missing_ok=True)
    remove_if_empty(folder / "shards")


def _tables(manifest: IndexManifest, folder: Path) -> Iterator[Any]:
    for number, site in enumerate(manifest.sites):
        parts = (read_shard(folder, manifest, shard, f"{number}.") for shard in range(manifest.shards))
        sketch = reduce(Sketch.merge, map(Sketch.of, parts))
        yield table_of(sketch, Site.parse(site), range(len(sketch.total_F)), manifest.length)


def _write_tables(tables: Iterator[Any], path: Path, identity: str) -> None:
    import pyarrow.parquet

    temporary = path.with_name(f".{uuid.uuid4().hex}.part")
    try:
        first = next(tables)
        schema = first.schema.with_metadata({IDENTITY: identity.encode()})
        with pyarrow.parquet.ParquetWriter(temporary, schema, compression="zstd") as writer:
            writer.write_table(first.cast(schema))
            for table in tables:
                writer.write_table(table.cast(schema))
        temporary.replace(path)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


class Index:
    """A finished index, opened. Raises FileError if it is none, unfinished or damaged."""

    def __init__(self, folder: str | Path) -> None:
        import pyarrow.parquet

        self.folder = Path(folder).expanduser()
        if not self.folder.is_dir():
            raise FileError(f"there is no folder {self.folder}; `patchclamp neurons index CORPUS --save FOLDER` or "
                            "`sae index` makes an index")
        self.manifest = read_manifest(self.folder, IndexManifest)
        path = self.folder / INDEX
        if not path.is_file():
            raise FileError(f"the index in {self.folder} is not finished; run the command that made it again, "
                            "which goes on where it was")
        try:
            self._file = pyarrow.parquet.ParquetFile(path)
        except (pyarrow.ArrowException, OSError) as error:
            raise FileError(f"{path} is damaged ({error}); delete it and run the same command again") from error
        if (self._file.schema_arrow.metadata or {}).get(IDENTITY) != self.manifest.identity.encode():
            raise FileError(f"{path} and its manifest do not belong together; delete the folder and index again")

    @property
    def where(self) -> str:
        """The folder."""
        return str(self.folder)

    @property
    def length(self) -> int:
        """Tokens in a window."""
        return self.manifest.length

    @property
    def sample(self) -> tuple[int, ...]:
        """Places drawn from the whole corpus."""
        return self.manifest.sample

    def check_model(self, model: Model) -> None:
        """SpecError unless the index is of this model as it is."""
        theirs = self.manifest
        if theirs.weights != model.weights_hash:
            raise SpecError(f"{self.folder} is an index of {theirs.model} (weights {theirs.weights[:12]}), not of "
                            f"{model.name} ({model.weights_hash[:12]}); load that model, or index this one")
        dtype = str(model.dtype).removeprefix("torch.")
        if theirs.dtype != dtype:
            raise SpecError(f"{self.folder} was indexed in {theirs.dtype} and the model runs in {dtype}; load it with "
                            f"--dtype {theirs.dtype}")
        sites = [Site.parse(site) for site in theirs.sites]
        if theirs.autoencoders and fingerprints(model, sites) != theirs.autoencoders:
            raise SpecError(f"{self.folder} is an index of features of another autoencoder than the one attached")

    def units(self, site: Site, units: Sequence[int]) -> list[Unit]:
        """What is known of some units of a site. SiteError if the site was not indexed."""
        return units_in(self._file.read_row_group(self._group(site)), units)

    def columns(self, site: Site, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Some columns of numbers of all units of a site."""
        table = self._file.read_row_group(self._group(site), columns=list(names))
        return {name: table[name].to_numpy() for name in names}

    def _group(self, site: Site) -> int:
        if str(site) not in self.manifest.sites:
            raise SiteError(f"the index in {self.folder} has no {site}; it has {', '.join(self.manifest.sites)}")
        return self.manifest.sites.index(str(site))

    def windows(self, numbers: Sequence[int]) -> list[Ids]:
        """The token ids of windows."""
        return window_ids(self.folder, numbers)
