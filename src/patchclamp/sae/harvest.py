"""Harvesting: a corpus goes through the model once, and what passes at some sites is written down to train on.

The forward pass ends at the deepest site. Windows of equal length are packed full, each beginning as the tokenizer
begins a text; the first token of each is left out, for its activations are outliers (attention sinks: Sun et al. 2024,
arXiv 2402.17762) that would take up the autoencoder's mean and scale.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, field_validator

from patchclamp.corpus.windows import Settings, plan
from patchclamp.errors import SiteError, SpecError
from patchclamp.evidence.cli_hints import CommaList, Positional
from patchclamp.evidence.method import Outcome, Part, Progress, Result, Spec, method
from patchclamp.forward import Model, Site
from patchclamp.forward.prepare import check_site
from patchclamp.sae.store import ActivationStore, HarvestJob, Kind, StoreManifest, StoreSettings
from patchclamp.tasks.files import DataFile

if TYPE_CHECKING:
    import altair
    import pandas

POINTS = ("embed", "resid_pre", "resid_mid", "resid", "attn", "mlp", "neuron", "head")


class TextSpec(Spec):
    """The text that activations are taken from, and how."""

    tokens: int = Field(1_000_000, ge=1)
    """How many tokens to read at most."""
    length: int = Field(128, ge=4)
    """Tokens in a window."""
    skip: int = Field(1, ge=0)
    """Tokens left out at the beginning of each window."""
    special: bool = True
    """Whether special tokens inside the text are kept."""
    windows: int = Field(32, ge=1)
    """Windows in one pass."""
    shard: int | None = Field(None, ge=1)
    """Windows in a shard: what a process that is killed loses, and what is mixed with itself. 256 if not given, fewer
    for a small corpus."""


class HarvestSpec(TextSpec):
    """Which activations to write down."""

    corpus: Annotated[DataFile, Positional()]
    """A text file, a folder of them, JSONL or Parquet with a text column, hf:NAME[:SPLIT], or example:neutral."""
    store: DataFile
    """The store's folder. If harvesting was interrupted, the same command goes on where it was; given several times at
    once, the processes share the work."""
    site: Annotated[tuple[str, ...], CommaList()] = Field(min_length=1)
    """What to write down, all in one pass, e.g. resid.15 or mlp.9,resid.9."""
    kind: Kind = "float32"
    """How numbers are stored. bfloat16 halves the disk; float16 more exactly, but overflows above 65,504."""
    workers: int = Field(1, ge=1)
    """Processes, each with the model in memory; 1 works in the one that was called."""
    ray: bool = False
    """Give the shards to Ray workers; the store must be a folder that all nodes see."""

    @field_validator("site")
    @classmethod
    def _sites(cls, sites: tuple[str, ...]) -> tuple[str, ...]:
        try:
            names = tuple(str(Site.parse(site)) for site in sites)
        except SiteError as error:
            raise ValueError(str(error)) from error
        if len(set(names)) < len(names):
            raise ValueError("a site is named twice; name it once")
        return names


class HarvestedSite(Part):
    """One site's activations."""

    site: str
    width: int
    megabytes: float


class Harvested(Result):
    """A finished store."""

    folder: str
    windows: int
    shards: int
    rows: int
    """Tokens whose activations are there."""
    sites: list[HarvestedSite]

    def table(self) -> "pandas.DataFrame":
        """One row a site."""
        import pandas

        return pandas.DataFrame([{"site": s.site, "width": s.width, "rows": self.rows, "MB": round(s.megabytes, 1)}
                                 for s in self.sites])

    def chart(self) -> "altair.TopLevelMixin":
        """What each site takes on disk."""
        from patchclamp.charts.sae import harvest_chart

        return harvest_chart(self)


@method("sae.harvest", spec=HarvestSpec, result=Harvested)
def harvest(model: Model, spec: HarvestSpec, progress: Progress) -> Outcome:
    """Write a corpus's activations at some sites to disk, shuffled and in shards, to train autoencoders on.

    A store claims nothing, so there is no verdict.
    """
    folder = Path(spec.store)
    job = planned(model, spec, spec.corpus, spec.site, folder, spec.kind)
    job.finish(model, progress, spec.workers, spec.ray)
    store = ActivationStore(folder)
    widths = {site: store.read(0, [site])[site].shape[1] for site in spec.site}
    size = {"float32": 4}.get(spec.kind, 2)
    return Harvested(
        folder=str(folder), windows=job.manifest.windows, shards=job.manifest.shards, rows=sum(store.counts),
        sites=[HarvestedSite(site=site, width=width, megabytes=sum(store.counts) * width * size / 2**20)
               for site, width in widths.items()],
    ), None


def planned(model: Model, spec: TextSpec, corpus: str, sites: tuple[str, ...], folder: Path, kind: Kind) -> HarvestJob:
    """The harvest of some sites, its plan made in `folder` or found there. SiteError for a site that cannot be
    harvested; else as `plan`."""
    for site in map(Site.parse, sites):
        if site.point not in POINTS or site.unit is not None or site.positions.kind != "all":
            raise SiteError(f"{site}: activations are harvested of whole sites at all positions: {', '.join(POINTS)} "
                            "with a block, e.g. resid.15")
        check_site(model.anatomy, site, model.name)
    if spec.skip >= spec.length:
        raise SpecError(f"{spec.skip} of each window's {spec.length} tokens are left out, so none are left; lower skip")
    settings = StoreSettings(
        **Settings.of_model(model), corpus=corpus, tokens=spec.tokens, length=spec.length, batch=spec.windows,
        shard=spec.shard, seed=spec.seed, sites=sites, kind=kind, skip=spec.skip, special=spec.special,
    )
    return HarvestJob(folder, plan(model, settings, folder, StoreManifest))


