"""Activations on disk, shuffled and in shards, to train on again and again.

    manifest.json                what was harvested from which model and corpus
    windows/00000.safetensors    the corpus's token ids
    shards/00000.safetensors     activations/SITE [rows, width] and places [rows] of windows drawn from the whole corpus

A shard's windows are the next of one random order of all windows, and its rows lie in random order. A row's place is
window · length + position, so that every activation can be traced to its text. Each file bears a checksum of its rows.
"""

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal, Self

import numpy as np
import torch
from torch import Tensor

from patchclamp.corpus.windows import (
    Manifest,
    Settings,
    read_manifest,
    shard_path,
    window_ids,
)
from patchclamp.corpus.work import Job
from patchclamp.errors import FileError, RunError, SiteError, SpecError
from patchclamp.forward import Model, Site
from patchclamp.forward.autoencoder import Autoencoder
from patchclamp.model.tensors import read_tensors, write_tensors
from patchclamp.sae.batches import Read, Rows

Kind = Literal["float32", "bfloat16", "float16"]
A_SHARD = 256
MADE_OF, CHECKSUM, ROWS = "made of", "sha256", "rows"
PLACES = "places"


class StoreSettings(Settings):
    """What harvested activations depend on."""

    sites: tuple[str, ...]
    kind: Kind
    """How numbers are stored."""
    skip: int
    """Tokens left out at the beginning of each window."""
    special: bool
    """Whether the tokenizer's special tokens are kept."""


class StoreManifest(StoreSettings, Manifest):
    """The plan of a store."""

    what = "a store of activations"
    made_by = "patchclamp sae harvest"

    @classmethod
    def planned(cls, settings: Settings, windows: int, digest: str) -> Self:
        """Shards cut: of 256 windows, fewer where a corpus would not fill eight such."""
        a_shard = settings.shard or min(A_SHARD, max(1, -(-windows // 8)))
        return cls(**settings.model_dump(), windows=windows, digest=digest, a_shard=a_shard)

    @cached_property
    def order(self) -> list[int]:
        """All windows in random order."""
        order: list[int] = np.random.default_rng(self.seed).permutation(self.windows).tolist()
        return order

    def windows_of(self, shard: int) -> Sequence[int]:
        """The numbers of a shard's windows."""
        return self.order[shard * self.a_shard : (shard + 1) * self.a_shard]


class HarvestJob(Job):
    """Activations of a shard's windows."""

    verb = "harvesting"
    kind = StoreManifest
    manifest: StoreManifest

    def make(self, model: Model, shard: int) -> dict[str, Tensor]:
        """Rows of all sites and their places. RunError for what is no number, or does not fit the stored format."""
        manifest = self.manifest
        windows = manifest.windows_of(shard)
        ids = window_ids(self.folder, windows)
        keep_WT = self.kept(model, ids)
        sites = [Site.parse(site) for site in manifest.sites]
        values: dict[Site, list[Tensor]] = {site: [] for site in sites}
        for first in range(0, len(ids), manifest.batch):
            some = slice(first, first + manifest.batch)

            def take(site: Site, values_BTD: Tensor, some: slice = some) -> None:
                rows = values_BTD.flatten(2)[keep_WT[some].to(values_BTD.device)]
                values[site].append(rows.to(getattr(torch, manifest.kind)).cpu())

            model.scan(ids[some], sites, take)
        places_WT = torch.tensor(windows)[:, None] * manifest.length + torch.arange(manifest.length)
        places_N = places_WT[keep_WT]
        order_N = torch.from_numpy(np.random.default_rng([manifest.seed, shard]).permutation(len(places_N)))
        tensors = {str(site): torch.cat(parts)[order_N] for site, parts in values.items()}
        for site, rows in tensors.items():
            _check_finite(rows, site, shard, manifest)
        return {**tensors, PLACES: places_N[order_N]}

    def kept(self, model: Model, ids: Sequence[Sequence[int]]) -> Tensor:
        """Which tokens of some windows become rows, [W, T]."""
        keep_WT = torch.ones(len(ids), self.manifest.length, dtype=torch.bool)
        keep_WT[:, : self.manifest.skip] = False
        if not self.manifest.special:
            keep_WT &= ~torch.isin(torch.tensor(ids), torch.tensor(sorted(model.tokenizer.all_special_ids)))
        return keep_WT

    def do(self, model: Model, shard: int) -> None:
        """Write the shard with its checksum."""
        tensors = self.make(model, shard)
        write_tensors(shard_path(self.folder, shard), tensors, {
            MADE_OF: self.manifest.identity, CHECKSUM: checksum(tensors), ROWS: str(len(tensors[PLACES]))})


def checksum(tensors: dict[str, Tensor]) -> str:
    """sha256 of tensors' bytes, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(tensors[name].contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _check_finite(rows: Tensor, site: str, shard: int, manifest: StoreManifest) -> None:
    good_N = torch.isfinite(rows).all(1)
    if not bool(good_N.all()):
        row = int((~good_N).nonzero()[0])
        raise RunError(f"{site} of {manifest.model}: row {row} of shard {shard} holds NaN or infinite numbers; "
                       + ("store them as bfloat16 or float32, whose range is wider" if manifest.kind == "float16"
                          else f"load the model with --dtype float32 (it ran in {manifest.dtype})"))


class ActivationStore:
    """A harvested store, opened. Raises FileError if it is none or unfinished."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).expanduser()
        if not self.folder.is_dir():
            raise FileError(f"there is no folder {self.folder}; `patchclamp sae harvest` makes a store")
        self.manifest = read_manifest(self.folder, StoreManifest)
        missing = [n for n in range(self.manifest.shards) if not shard_path(self.folder, n).is_file()]
        if missing:
            raise FileError(f"the store in {self.folder} is not finished: {len(missing)} of {self.manifest.shards} "
                            "shards are missing; run the same `patchclamp sae harvest` command again, which goes on")
        self._checked: set[int] = set()

    def check_site(self, site: str) -> str:
        """The site as the store calls it. SiteError if it was not harvested."""
        name = str(Site.parse(site))
        if name not in self.manifest.sites:
            raise SiteError(f"the store in {self.folder} has {', '.join(self.manifest.sites)}, not {name}")
        return name

    @cached_property
    def counts(self) -> list[int]:
        """Rows of each shard. FileError for one that is damaged or of another store."""
        return [int(self._metadata(shard)[ROWS]) for shard in range(self.manifest.shards)]

    def _metadata(self, shard: int) -> dict[str, str]:
        path = shard_path(self.folder, shard)
        metadata = read_tensors(path, "none")[1]
        if metadata.get(MADE_OF) != self.manifest.identity or ROWS not in metadata:
            raise FileError(f"{path} belongs to another store; delete it and harvest again")
        return metadata

    def read(self, shard: int, names: Sequence[str]) -> dict[str, Tensor]:
        """Rows of some sites, or `places`, as stored. The first time a shard is read its checksum is compared."""
        path = shard_path(self.folder, shard)
        if shard not in self._checked:
            tensors, metadata = read_tensors(path)
            if metadata.get(CHECKSUM) != checksum(tensors):
                raise FileError(f"{path} does not have the checksum it was written with: it is damaged; delete it and "
                                "harvest again")
            self._checked.add(shard)
            return {name: tensors[name] for name in names}
        tensors = {}
        for name in names:
            tensors |= {f"{name}{rest}": value for rest, value in read_tensors(path, name)[0].items() if not rest}
        return tensors

    def rows(self, shard: int, site: str) -> Tensor:
        """Rows of a site, float32."""
        rows = self.read(shard, [site])[site].float()
        good_N = torch.isfinite(rows).all(1)
        if not bool(good_N.all()):
            raise RunError(f"row {int((~good_N).nonzero()[0])} of shard {shard} of {self.folder} holds NaN or "
                           f"infinite numbers at {site}; harvest again in float32")
        return rows

    def held_out(self, autoencoder: Autoencoder, rows: int) -> tuple[list[int], list[int]]:
        """Shards an autoencoder has not seen, until there are so many rows, and all others. One that was trained on all
        of this store, or on another, is given the last."""
        every, info = range(self.manifest.shards), autoencoder.info
        is_own = info.store == self.manifest.identity and info.held_out
        held: list[int] = []
        for shard in info.held_out if is_own else reversed(every):
            if sum(self.counts[one] for one in held) < rows and len(held) < max(1, len(every) - 1):
                held.append(shard)
        return held, [shard for shard in every if shard not in held]

    def with_windows(self, shard: int, sites: Sequence[str]) -> tuple[Rows, Tensor]:
        """A shard's rows of each site, and the window of each row."""
        return self.reader(sites)(shard), self.read(shard, [PLACES])[PLACES] // self.manifest.length

    def reader(self, sites: Sequence[str]) -> Read:
        """A function from a shard to the rows of each site."""
        return lambda shard: tuple(self.rows(shard, site) for site in sites)


def opened(model: Model, sae: str, store: str) -> tuple[Autoencoder, ActivationStore, tuple[str, ...]]:
    """An autoencoder, a store, and the site it reads and, of a transcoder, that it writes. SpecError if they do not
    belong to the model; SiteError if the store lacks a site."""
    autoencoder, activations = Autoencoder.load(sae), ActivationStore(store)
    info, manifest = autoencoder.info, activations.manifest
    for what, weights, name in ((f"the autoencoder {info.name}", info.weights, info.model),
                                (f"the store {store}", manifest.weights, manifest.model)):
        if weights != model.weights_hash:
            raise SpecError(f"{what} belongs to {name} (weights {weights[:12]}), not to {model.name} "
                            f"({model.weights_hash[:12]}); load that model")
    names = [info.site, *([info.output_site] if info.output_site else [])]
    return autoencoder, activations, tuple(activations.check_site(name) for name in names)


class Stream:
    """As `ActivationStore`, but activations are computed when asked for and not kept: only the windows are on disk."""

    def __init__(self, model: Model, job: HarvestJob) -> None:
        self.model, self.job, self.manifest, self.folder = model, job, job.manifest, job.folder

    @cached_property
    def counts(self) -> list[int]:
        """Rows of each shard."""
        return [int(self.job.kept(self.model, window_ids(self.folder, self.manifest.windows_of(n))).sum())
                for n in range(self.manifest.shards)]

    def check_site(self, site: str) -> str:
        """The site as the plan calls it."""
        return str(Site.parse(site))

    def reader(self, sites: Sequence[str]) -> Read:
        """A function from a shard to the rows of each site."""
        def read(shard: int) -> tuple[Tensor, ...]:
            tensors = self.job.make(self.model, shard)
            return tuple(tensors[site].float() for site in sites)

        return read
