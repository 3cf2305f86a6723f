"""Evaluating an autoencoder on activations it was not trained on: how much of them it says, in how few numbers, what
the model makes of what it says, and whether its latents stand for anything.

Beside it stand dictionaries that nobody learned, with as many active numbers (`baselines.py`): random directions, the
principal axes, the site's own axes. What may go wrong with such figures: means of batches' quotients, variances about
zero, and losses recovered from an ablation that no model survives; `quality.py` and `effect.py` say what is taken.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import torch
from pydantic import Field
from torch import Tensor

from patchclamp.corpus.windows import window_ids
from patchclamp.evidence.bootstrap import bootstrap_ratio
from patchclamp.evidence.cli_hints import CommaList
from patchclamp.evidence.method import Outcome, Part, Progress, Result, Spec, method
from patchclamp.evidence.verdict import Interval, Verdict, judge
from patchclamp.forward import Model, Site
from patchclamp.forward.autoencoder import Autoencoder
from patchclamp.sae.baselines import BASELINES
from patchclamp.sae.effect import Ids, Losses, losses
from patchclamp.sae.neighbours import neighbours
from patchclamp.sae.probing import Probed, probe
from patchclamp.sae.quality import FREQUENCIES, Tally, density, take_in
from patchclamp.sae.store import ActivationStore, opened
from patchclamp.tasks.files import DataFile

if TYPE_CHECKING:
    import altair
    import pandas

FIT_ROWS = 65_536
"""Rows that baselines are made from: others than they are tried on."""
COMPARED = 4096
"""Latents whose nearest other is looked for."""
ABLATIONS = ("zero", "mean")


class EvaluateSpec(Spec):
    """Which autoencoder, on which activations."""

    sae: DataFile
    """The autoencoder's folder."""
    store: DataFile
    """A store of its site. If it was trained on it, the shards it has not seen are taken."""
    rows: int = Field(100_000, ge=2)
    """How many held-out rows to look at; whole shards are taken until there are so many."""
    windows: int = Field(64, ge=0)
    """Held-out windows in which the model goes on with reconstructions; 0 leaves CE and KL out."""
    labelled: Annotated[tuple[DataFile, ...], CommaList()] = ()
    """Files of texts with labels: few latents are tried at telling the labels apart (k-sparse probing), and whether
    one concept is split over several latents, or swallowed by another's (absorption)."""


class Measured(Part):
    """One dictionary."""

    latents: int
    fvu: float
    """Fraction of variance unexplained; 1 is as good as always saying the mean."""
    fvu_by_row: float
    """Mean over rows of ‖e‖² over the squared distance from the training rows' mean. A few rows that lie very far out
    make up much of the variance that `fvu` is a share of; here each row counts the same."""
    l0: float
    """Latents active for an input, on average."""
    dead_fraction: float
    """Share of latents that no held-out row activates."""
    ce_recovered: float | None
    """Share of the loss that ablating the site to zero costs and the reconstruction does not."""
    kl_recovered: float | None
    """The same of the KL divergence from the clean run."""
    ce_recovered_from_mean: float | None
    """As `ce_recovered`, the mean in place of zero: a harder test."""
    kl_recovered_from_mean: float | None
    ce: float | None
    """Cross-entropy of the next token, running on the reconstruction, nats."""
    intervals: dict[str, Interval]
    """95 % of the above that are measured on windows, resampling windows."""


class Loss(Part):
    """Cross-entropies of the next token, nats: the clean run, and zero or the mean in the site's place."""

    clean: float
    zero: float
    mean: float


class Evaluated(Result):
    """An autoencoder, and dictionaries nobody learned beside it."""

    name: str
    site: str
    output_site: str | None
    architecture: str
    rows: int
    windows: int
    """Windows the rows are of."""
    unseen: bool
    """Whether the autoencoder was not trained on them."""
    latents: int
    fvu: float
    l0: float
    dead_fraction: float
    ce_recovered: float | None
    kl_recovered: float | None
    own: Measured
    """All figures of the autoencoder, the above included."""
    baselines: dict[str, Measured]
    """random, pca and neurons: with as many active numbers, on the same rows. Of a transcoder: on what it writes, which
    these are shown and it is not."""
    loss: Loss | None
    density_edges: list[float]
    """Between bins of how often a latent is active; the first bin is below the first edge and holds the dead."""
    density: list[int]
    """Latents in each bin."""
    nearest_cosine: tuple[float, float, float]
    """Greatest cosine of a latent's direction with another's: 10 % quantile, median, 90 % quantile over latents."""
    nearest_cosine_random: tuple[float, float, float]
    """The same of as many random directions."""
    probes: list[Probed]

    def table(self) -> "pandas.DataFrame":
        """One row a dictionary."""
        import pandas

        kept = {"fvu": "FVU", "fvu_by_row": "FVU by row", "l0": "L0", "dead_fraction": "dead",
                "ce_recovered": "CE recovered", "kl_recovered": "KL recovered",
                "ce_recovered_from_mean": "CE, from mean"}
        rows = [{"dictionary": name, "latents": one.latents, **{kept[key]: getattr(one, key) for key in kept}}
                for name, one in {self.name: self.own, **self.baselines}.items()]
        return pandas.DataFrame(rows).dropna(axis="columns", how="all")

    def chart(self) -> "altair.TopLevelMixin":
        """FVU and loss recovered beside the baselines', how often latents are active, and probes."""
        from patchclamp.charts.sae import evaluated_chart

        return evaluated_chart(self)


@method("sae.evaluate", spec=EvaluateSpec, result=Evaluated)
def evaluate_autoencoder(model: Model, spec: EvaluateSpec, progress: Progress) -> Outcome:
    """Measure an autoencoder on held-out activations, beside dictionaries that nobody learned.

    The verdict: does it leave less of a token's state unexplained than the best of random directions, principal axes
    and the site's own axes do with as many active numbers? Every token counts the same: where a few states lie very far
    out, as in most models, one principal axis explains nearly all of the pooled variance.
    """
    autoencoder, store, sites = opened(model, spec.sae, spec.store)
    held, others = store.held_out(autoencoder, spec.rows)
    unseen = autoencoder.info.store != store.manifest.identity or bool(autoencoder.info.held_out)
    rows_N = [store.with_windows(shard, sites) for shard in held]
    numbers = sorted({int(n) for _, windows_N in rows_N for n in windows_N.unique()})
    known_ND = _fit_rows(store, others or held, sites[-1])
    known_D = known_ND.mean(0, dtype=torch.float64).float()
    tally = Tally(autoencoder.n_latents, numbers, known_D)
    for rows, windows_N in progress.track(rows_N, "reconstructing held-out rows", len(rows_N)):
        take_in(tally, autoencoder, rows, windows_N)
    own = tally.quality()
    k = max(1, round(own.l0))
    rivals = {name: make(known_ND, autoencoder.n_latents, k, autoencoder.info, spec.seed)
              for name, make in BASELINES.items()}
    tallies = {name: Tally(one.n_latents, numbers, known_D) for name, one in rivals.items()}
    for name, one in progress.track(rivals.items(), "reconstructing as nobody learned to", len(rivals)):
        for rows, windows_N in rows_N:
            take_in(tallies[name], one, (rows[-1],), windows_N)
    found = _effects(model, spec, store, sites, {"": autoencoder, **rivals}, numbers, known_D, progress)
    measured = {name: _measured(one, found.get(name), found, spec.seed)
                for name, one in {"": tally, **tallies}.items()}
    result = _result(autoencoder, measured, found, tally, spec.seed).model_copy(update={
        "rows": own.rows, "windows": len(numbers), "unseen": unseen,
        "probes": [probe(model, path, autoencoder, rivals["random"], spec.seed, progress) for path in spec.labelled],
    })
    return result, _verdict(result, tally, tallies, spec.seed)


def _fit_rows(store: ActivationStore, shards: Sequence[int], site: str) -> Tensor:
    found: list[Tensor] = []
    for shard in shards:
        if sum(map(len, found)) < FIT_ROWS:
            found.append(store.rows(shard, site))
    return torch.cat(found)[:FIT_ROWS]


def _effects(
    model: Model, spec: EvaluateSpec, store: ActivationStore, sites: Sequence[str],
    dictionaries: dict[str, Autoencoder], numbers: Sequence[int], mean_D: Tensor, progress: Progress,
) -> dict[str, Losses]:
    """Losses of the clean run, of both ablations and of every dictionary's reconstruction; {} if none are asked for."""
    if not spec.windows:
        return {}
    skip, windows = store.manifest.skip, window_ids(store.folder, numbers[: spec.windows])
    seen = _values(model, windows, sites, skip)
    instead: dict[str, list[Tensor]] = {"zero": [torch.zeros_like(one[-1]) for one in seen],
                                        "mean": [mean_D.expand_as(one[-1]) for one in seen]}
    for name, one in dictionaries.items():
        instead[name] = [one.reconstruct(rows[0 if name == "" else -1]) for rows in seen]
    return losses(model, windows, sites[-1], instead, skip, progress)


def _values(model: Model, windows: Sequence[Ids], sites: Sequence[str], skip: int) -> list[tuple[Tensor, ...]]:
    """Each window's values at the sites, without its first tokens."""
    found: dict[Site, list[Tensor]] = {Site.parse(site): [] for site in sites}
    for first in range(0, len(windows), 16):
        def take(site: Site, values_BTD: Tensor) -> None:
            found[site].extend(values_BTD.flatten(2)[:, skip:].float().cpu().clone())

        model.scan(windows[first : first + 16], list(found), take)
    return list(zip(*found.values(), strict=True))


def _measured(tally: Tally, own: Losses | None, found: dict[str, Losses], seed: int) -> Measured:
    quality, intervals = tally.quality(), {"fvu": tally.fvu(seed), "fvu_by_row": tally.fvu_by_row(seed)}
    if own is not None:
        clean = found["clean"]
        for ablation, name in zip(ABLATIONS, ("", "_from_mean"), strict=True):
            worst = found[ablation]
            intervals[f"ce_recovered{name}"] = bootstrap_ratio(worst.ce - own.ce, worst.ce - clean.ce, seed)
            intervals[f"kl_recovered{name}"] = bootstrap_ratio(worst.kl - own.kl, worst.kl, seed)
    means = {f"{what}_recovered{name}": intervals[key].mean if (key := f"{what}_recovered{name}") in intervals else None
             for what in ("ce", "kl") for name in ("", "_from_mean")}
    return Measured(
        latents=len(tally.counts_L), fvu=quality.fvu, fvu_by_row=intervals["fvu_by_row"].mean,
        l0=quality.l0, dead_fraction=quality.dead,
        ce=None if own is None else float(own.ce.mean()), intervals=intervals, **means,
    )


def _result(
    autoencoder: Autoencoder, measured: dict[str, Measured], found: dict[str, Losses], tally: Tally, seed: int
) -> Evaluated:
    info, own = autoencoder.info, measured.pop("")
    generator = torch.Generator().manual_seed(seed)
    random_LD = torch.randn(autoencoder.directions.shape, generator=generator)
    some = torch.randperm(autoencoder.n_latents, generator=generator)[:COMPARED]
    return Evaluated(
        name=info.name, site=info.site, output_site=info.output_site, architecture=info.architecture, rows=0, windows=0,
        unseen=True, own=own, baselines=measured,
        **own.model_dump(include={"latents", "fvu", "l0", "dead_fraction", "ce_recovered", "kl_recovered"}),
        loss=Loss(**{name: float(found[name].ce.mean()) for name in ("clean", *ABLATIONS)}) if found else None,
        density_edges=list(FREQUENCIES), density=density(tally.counts_L / max(1.0, float(tally.rows_W.sum()))),
        nearest_cosine=_spread(neighbours(autoencoder.directions, 1, some)[0]),
        nearest_cosine_random=_spread(neighbours(random_LD, 1, some)[0]), probes=[],
    )


def _spread(values: Tensor) -> tuple[float, float, float]:
    low, middle, high = values.flatten().quantile(torch.tensor([0.1, 0.5, 0.9])).tolist()
    return low, middle, high


def _verdict(result: Evaluated, tally: Tally, tallies: dict[str, Tally], seed: int) -> Verdict:
    best = min(tallies, key=lambda name: result.baselines[name].fvu_by_row)
    rival = result.baselines[best]
    gained = bootstrap_ratio(tallies[best].ratio_W - tally.ratio_W, tally.rows_W, seed)
    return judge(
        gained, Interval(mean=0.0, low=0.0, high=0.0), direction="greater", seed=seed,
        claim=f"{result.name} leaves less of a token's {result.output_site or result.site} unexplained than the best "
              f"dictionary that nobody learned, {best}, does with as many active numbers (difference of FVU by row, "
              f"{result.own.fvu_by_row:.3g} against {rival.fvu_by_row:.3g}, on the same {result.windows} held-out "
              f"windows; pooled FVU, most of which a few tokens may decide, {result.fvu:.3g} against {rival.fvu:.3g})")
