"""Training sparse autoencoders, on a harvested store or on what the model computes as it is needed.

    h = Σ aᵢ vᵢ + e, few aᵢ: minimise ‖e‖² and how many latents, or how much of them, are active (`learner.py`)

Codes are sparse, and so is the work on them: a step costs one dense product, the encoder's, in place of five
(`codes.py`). Several autoencoders, of other k or λ, learn from one stream of batches.
"""

import math
import resource
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import Field, model_validator

from patchclamp.errors import FileError, SpecError
from patchclamp.evidence.cli_hints import CommaList
from patchclamp.evidence.method import Outcome, Part, Progress, Result, Silent, method
from patchclamp.forward import Model, Site
from patchclamp.forward.autoencoder import FILE, Architecture, Autoencoder, AutoencoderInfo
from patchclamp.sae.batches import Batches
from patchclamp.sae.harvest import TextSpec, planned
from patchclamp.sae.learner import Learner
from patchclamp.sae.parameters import Recipe, Scaling
from patchclamp.sae.quality import Quality, quality
from patchclamp.sae.ranks import Ranks
from patchclamp.sae.store import ActivationStore, Stream
from patchclamp.sae.training import Schedule, Training, read_log, refuse_other
from patchclamp.tasks.files import DataFile

if TYPE_CHECKING:
    import altair
    import pandas

BY_RANK = ("topk", "batchtopk", "matryoshka")
MOST_IDLE = 10_000_000
SCALED_ON = 65_536
"""Rows from which mean and scale are taken."""


class TrainSpec(TextSpec):
    """What to train, on what."""

    store: DataFile | None = None
    """A folder that `sae harvest` made."""
    corpus: DataFile | None = None
    """Instead of a store: text whose activations are computed as they are needed, and not kept. Needs site."""
    out: DataFile
    """The autoencoder's folder. If training was interrupted, the same command goes on where it was."""
    site: str | None = None
    """What it reads, e.g. resid.15; the store's, if that has only one."""
    output_site: str | None = None
    """What it writes, for a transcoder, e.g. mlp.15 for one that reads resid_mid.15."""
    latents: int = Field(4096, ge=2)
    """Directions in the dictionary."""
    architecture: Architecture = "topk"
    """topk, batchtopk and matryoshka choose by rank and need k; relu, jumprelu and gated are held down by l1."""
    k: Annotated[tuple[int, ...], CommaList()] = (32,)
    """Latents active for an input; several train as many autoencoders on one stream."""
    l1: Annotated[tuple[float, ...], CommaList()] = (2.0,)
    """λ, on values scaled so that a row's mean square norm is its width; of λ‖a‖₁, for jumprelu of λ‖a‖₀. 0 asks for
    nothing but reconstruction. Several train as many autoencoders."""
    steps: int | None = Field(None, ge=1)
    """Batches to learn from; one pass over the store if not given."""
    batch: int = Field(2048, ge=2)
    """Rows in a step."""
    learning_rate: float | None = Field(None, gt=0)
    """Adam's highest. If not given, 0.045 / √steps, 0.005 at most, where k is; else 0.001 · √(4096 / latents)."""
    warm_up: float = Field(0.05, ge=0, le=1)
    """Share of the steps in which learning rate and λ rise from nothing."""
    decay: float = Field(0.2, ge=0, le=1)
    """Share of the steps, at the end, in which the learning rate falls to nothing."""
    clip: float = Field(1.0, gt=0)
    """The greatest norm of a step's gradient; longer ones are shortened."""
    dead_after: int | None = Field(None, ge=1)
    """Tokens after which a latent that was never active counts as dead; a tenth of the training's if not given, 10
    million at most."""
    aux_k: int | None = Field(None, ge=0)
    """Dead latents that explain what each input's living ones leave over; half the width if not given, 0 for none."""
    bandwidth: float = Field(0.1, gt=0)
    """jumprelu: width of the window about a threshold in which it learns."""
    prefixes: Annotated[tuple[int, ...], CommaList()] = ()
    """matryoshka: how many of the first latents have to do alone; a 16th, a 4th and all if not given."""
    skip_path: bool = False
    """A linear path from what is read to what is written beside the sparse one (for transcoders)."""
    decoder: Literal["unit", "folded"] = "unit"
    """unit: directions are kept at length 1. folded (relu only): λ weighs codes by their direction's length, which is
    folded into them at the end."""
    buffer: int = Field(4, ge=1)
    """Shards whose rows are mixed at once."""
    held_out: float = Field(0.05, ge=0, lt=1)
    """Share of the shards that are not trained on, at least one; 0 for none."""
    checkpoint_seconds: float = Field(60, ge=0)
    """How much work an interruption may cost at most, in seconds."""
    data_parallel: int = Field(1, ge=1)
    """Under torchrun: shares a batch is divided into. The latents are divided among the processes of each."""
    patience: float = Field(600, gt=0)
    """Under torchrun: seconds without an answer after which another process counts as dead and training ends."""
    tensorboard: bool = False
    """Write the log for TensorBoard, too (needs the tensorboard package)."""

    @model_validator(mode="after")
    def _fits(self) -> "TrainSpec":
        if (self.store is None) == (self.corpus is None):
            raise ValueError("give either a store or a corpus")
        if self.corpus and not self.site:
            raise ValueError("site is missing: a corpus has no site of its own, e.g. resid.15")
        if any(k < 1 or k > self.latents for k in self.k):
            raise ValueError(f"k is 1 to {self.latents}, the number of latents")
        if not self.k or not self.l1 or min(self.l1) < 0:
            raise ValueError("k and l1 need a value each, and l1 is 0 or more")
        if self.skip_path and not self.output_site:
            raise ValueError("a skip path is for transcoders: from a site to itself it would copy; give output_site")
        if self.decoder == "folded" and self.architecture != "relu":
            raise ValueError("a folded decoder is for relu")
        if self.prefixes and (list(self.prefixes) != sorted(set(self.prefixes)) or self.prefixes[-1] != self.latents):
            raise ValueError(f"prefixes rise and end at the number of latents, {self.latents}")
        return self


class Trained(Part):
    """One autoencoder."""

    name: str
    """Its folder's name."""
    path: str
    k: int | None
    l1: float | None
    held_out: Quality | None
    """On rows it was not trained on; null if none were held out."""
    curve_steps: list[int]
    curve_fvu: list[float]
    """FVU of the batch at these steps, before the step."""
    curve_l0: list[float]


class TrainResult(Result):
    """Trained autoencoders."""

    path: str
    """The folder."""
    steps: int
    tokens: int
    """Rows learned from, those read again counted again."""
    passes: float
    """Times the store was gone through."""
    tokens_per_second: float
    """Over all autoencoders, reading included."""
    peak_memory_mb: float
    """Of the whole process, the model included."""
    mixing: int
    """Rows a row was mixed with."""
    threads: int
    """Of each process."""
    processes: int = 1
    """Under torchrun: how many trained together. Only the first has the autoencoders."""
    autoencoders: list[Trained]

    def table(self) -> "pandas.DataFrame":
        """One row an autoencoder."""
        import pandas

        return pandas.DataFrame([
            {"name": one.name, "k": one.k, "l1": one.l1}
            | ({"FVU": one.held_out.fvu, "L0": one.held_out.l0, "dead": one.held_out.dead} if one.held_out else {})
            for one in self.autoencoders
        ]).dropna(axis="columns", how="all")

    def chart(self) -> "altair.TopLevelMixin":
        """FVU and L0 while training, and of several autoencoders the two against each other."""
        from patchclamp.charts.sae import train_chart

        return train_chart(self)


@method("sae.train", spec=TrainSpec, result=TrainResult)
def train_autoencoder(model: Model, spec: TrainSpec, progress: Progress) -> Outcome:
    """Train sparse autoencoders on a layer's activations; a killed run goes on where it was.

    Training claims nothing, so there is no verdict.
    """
    with Ranks.joined(spec.data_parallel, model.device, spec.patience) as ranks:
        return _trained(model, spec, progress if ranks.is_first else Silent(), ranks), None


def _trained(model: Model, spec: TrainSpec, progress: Progress, ranks: Ranks) -> TrainResult:
    ranks.check(spec.latents, spec.batch)
    folder = Path(spec.out)
    source = _source(model, spec, folder)
    sites = _sites(source, spec)
    shards, held_out = _split(len(source.counts), spec.held_out)
    batches = Batches({n: source.counts[n] for n in shards}, spec.batch, spec.buffer, spec.seed)
    run = _Run(model, spec, folder, source, sites, batches, held_out, ranks)
    seconds, made = run.finished() or run.train(progress)
    rows = [source.reader(sites)(n) for n in held_out] if made else []
    tokens = run.steps * spec.batch
    return TrainResult(
        path=str(folder), steps=run.steps, tokens=tokens, passes=run.steps / batches.a_pass,
        tokens_per_second=tokens / seconds, peak_memory_mb=peak_memory(), mixing=batches.mixing(),
        threads=torch.get_num_threads(), processes=ranks.latents * ranks.data,
        autoencoders=[Trained(
            name=one.info.name, path=str(run.place(one.info.name)), k=one.info.k, l1=one.info.settings["l1"],
            held_out=quality(one, rows) if rows else None, **run.curve(one.info.name),
        ) for one in made],
    )


class _Run:
    """One training: what it is made of, and what is in its folder."""

    def __init__(
        self, model: Model, spec: TrainSpec, folder: Path, source: "ActivationStore | Stream", sites: tuple[str, ...],
        batches: Batches, held_out: tuple[int, ...], ranks: Ranks,
    ) -> None:
        self.model, self.spec, self.folder, self.source = model, spec, folder, source
        self.sites, self.batches, self.held_out, self.ranks = sites, batches, held_out, ranks
        self.steps = spec.steps or batches.a_pass
        kinds = spec.k if spec.architecture in BY_RANK else spec.l1
        letter = "k" if spec.architecture in BY_RANK else "l"
        self.variants = {folder.name if len(kinds) == 1 else f"{letter}{value:g}": value for value in kinds}
        """k or λ by name."""
        # what may change between two runs of one training: nothing but these
        fields = spec.model_dump(exclude={"out", "checkpoint_seconds", "tensorboard", "store", "corpus", "windows",
                                          "data_parallel", "patience"})
        self.identity = {**fields, "k": list(spec.k), "l1": list(spec.l1), "prefixes": list(spec.prefixes),
                         "store": source.manifest.identity}

    def place(self, name: str) -> Path:
        """The folder of one of the autoencoders."""
        return self.folder if len(self.variants) == 1 else self.folder / name

    def finished(self) -> tuple[float, list[Autoencoder]] | None:
        """Seconds of training and the autoencoders, if they are there, for the first process. SpecError if they were
        trained otherwise."""
        if not self.ranks.first_says(all((self.place(name) / FILE).is_file() for name in self.variants)):
            return None
        if not self.ranks.is_first:
            return math.nan, []
        found = [Autoencoder.load(self.place(name)) for name in self.variants]
        for one in found:
            refuse_other(one.info.settings.get("identity", {}), self.identity, self.folder)
        return found[0].info.settings["seconds"], found

    def train(self, progress: Progress) -> tuple[float, list[Autoencoder]]:
        """Train from the start or the checkpoint, and save: seconds, and in the first process the autoencoders."""
        spec = self.spec
        read = self.source.reader(self.sites)
        scaling = Scaling.of(tuple(rows[:SCALED_ON] for rows in read(min(self.batches.counts))))
        learners = [(name, Learner(self._recipe(value, len(scaling.mean)), scaling, len(self.sites) == 1, self.ranks))
                    for name, value in self.variants.items()]
        schedule = Schedule(self.steps, spec.warm_up, spec.decay)
        training = Training(learners, self.batches, schedule, self.folder, self.identity, self.ranks)
        training.resume()
        board = _board(self.folder) if spec.tensorboard and self.ranks.is_first else None
        training.run(read, spec.checkpoint_seconds, progress, board)
        if board is not None:
            board.close()
        made = []
        for name, learner in learners:
            if (tensors := learner.whole()) is not None:
                made.append(Autoencoder(self._info(name, training.seconds), tensors))
                made[-1].save(self.place(name))
        training.checkpoints.remove()
        return training.seconds, made

    def _recipe(self, value: float, width: int) -> Recipe:
        spec = self.spec
        is_ranked = spec.architecture in BY_RANK
        tokens = self.steps * spec.batch
        return Recipe(
            architecture=spec.architecture, latents=spec.latents, k=int(value) if is_ranked else 0,
            l1=0.0 if is_ranked else value, learning_rate=self._rate(),
            dead_after=spec.dead_after or max(1, min(MOST_IDLE, tokens // 10)),
            aux_k=width // 2 if spec.aux_k is None else spec.aux_k, clip=spec.clip, bandwidth=spec.bandwidth,
            prefixes=spec.prefixes or tuple(sorted({max(1, spec.latents // n) for n in (16, 4, 1)})),
            skip=spec.skip_path, unit_norm=spec.decoder == "unit", seed=spec.seed,
        )

    def _rate(self) -> float:
        spec = self.spec
        return spec.learning_rate or default_rate(spec.architecture, spec.latents, self.steps)

    def _info(self, name: str, seconds: float) -> AutoencoderInfo:
        value, is_ranked = self.variants[name], self.spec.architecture in BY_RANK
        return AutoencoderInfo(
            name=name, architecture=self.spec.architecture, k=int(value) if is_ranked else None, site=self.sites[0],
            output_site=self.sites[1] if len(self.sites) > 1 else None, model=self.model.name,
            weights=self.model.weights_hash, store=self.source.manifest.identity, held_out=self.held_out,
            tokens=self.steps * self.spec.batch,
            settings={"identity": self.identity, "l1": None if is_ranked else value, "seconds": seconds},
        )

    def curve(self, name: str) -> dict[str, list[Any]]:
        """The logged course of one of the autoencoders."""
        lines = [line for line in read_log(self.folder) if line["name"] == name]
        return {f"curve_{key}": [line[field] for line in lines]
                for key, field in (("steps", "step"), ("fvu", "fvu"), ("l0", "l0"))}


def _source(model: Model, spec: TrainSpec, folder: Path) -> "ActivationStore | Stream":
    """The store, or the corpus as one. SpecError for a store of another model."""
    if spec.store is None:
        sites = tuple(str(Site.parse(site)) for site in (spec.site, spec.output_site) if site)
        return Stream(model, planned(model, spec, spec.corpus or "", sites, folder / "stream", "float32"))
    store = ActivationStore(spec.store)
    if store.manifest.weights != model.weights_hash:
        raise SpecError(f"{spec.store} holds activations of {store.manifest.model} (weights "
                        f"{store.manifest.weights[:12]}), not of {model.name} ({model.weights_hash[:12]}); load that "
                        "model, or harvest this one")
    return store


def _sites(source: "ActivationStore | Stream", spec: TrainSpec) -> tuple[str, ...]:
    """What is read and, if it is something else, what is written."""
    offered = source.manifest.sites
    if spec.site is None and len(offered) > 1:
        raise SpecError(f"the store has {', '.join(offered)}; say with site which of them to read")
    names = [spec.site or offered[0], *([spec.output_site] if spec.output_site else [])]
    return tuple(dict.fromkeys(source.check_site(name) for name in names))


def _split(shards: int, share: float) -> tuple[list[int], tuple[int, ...]]:
    """Shards to train on and shards held out. Windows are in random order, so the last are as good as any."""
    count = max(1, round(share * shards)) if share else 0
    if count >= shards:
        raise FileError(f"the store has {shards} shard{'s' * (shards > 1)} and {count} would be held out; harvest more "
                        "text, in smaller shards, or pass held_out 0")
    return list(range(shards - count)), tuple(range(shards - count, shards))


def _board(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise SpecError("the tensorboard package is not installed: pip install tensorboard, or leave tensorboard "
                        "off; log.jsonl has the same numbers") from error
    return SummaryWriter(str(folder / "tensorboard"))


def default_rate(architecture: Architecture, latents: int, steps: int) -> float:
    """Adam's highest learning rate, if none is given. By rank: the longer the training, the lower.

    Measured for topk, not derived (docs/benchmarks.md): at 160 and 476 steps the best rates fell as 1/√steps, and were
    the same for 2,048 and 9,216 latents. 50,000 steps get 2e-4, what is usual there. Penalties were not tried.
    """
    return float(min(0.005, 0.045 / steps**0.5) if architecture in BY_RANK else 0.001 * (4096 / latents) ** 0.5)


def peak_memory() -> float:
    """The most memory this process ever had, in megabytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
