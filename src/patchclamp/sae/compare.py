"""Autoencoders side by side: do their latents mean anything, and for how many concepts is there one?

Minimising ‖e‖² alone gives a dictionary that says everything and means nothing: any basis does (λ = 0 is a linear
layer). What λ‖a‖₁ buys is measured here, on random latents that are active often enough: the n-grams a latent fires at
in one half of the windows (`corpus/rules.py`), tried on the other half, as explanations of neurons are. Neurons of the
same block stand beside them. A few words tell the top end of nearly anything, so that the verdict is on simulation,
which asks for the whole range of activations.

A dictionary has room for so many concepts; rare ones come last (Templeton et al. 2024: a feature appears when the
dictionary is about as large as the concept is rare). So of labelled texts each label is looked for: the latent that
tells it best on one half of the texts, its AUROC on the other.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import numpy as np
import torch
from pydantic import Field

from patchclamp.corpus.held import Held
from patchclamp.corpus.pack import Ids
from patchclamp.corpus.rules import learn
from patchclamp.corpus.scoring import Answers, answers, trial
from patchclamp.corpus.windows import window_ids
from patchclamp.errors import FileError, SpecError
from patchclamp.evidence.association import associate, half_of_each, scores, shuffled
from patchclamp.evidence.bootstrap import mean_if_any
from patchclamp.evidence.cli_hints import Positional
from patchclamp.evidence.method import Outcome, Part, Progress, Result, Spec, method
from patchclamp.evidence.verdict import Interval, Verdict, judge
from patchclamp.forward import Model, Plan, Site
from patchclamp.forward.prepare import check_site
from patchclamp.sae.attached import attached
from patchclamp.sae.quality import Quality, Tally, take_in
from patchclamp.sae.store import ActivationStore, opened
from patchclamp.tasks.files import DataFile
from patchclamp.tasks.read import read_rows
from patchclamp.tasks.rows import LabelledRow

if TYPE_CHECKING:
    import altair
    import pandas

OFTEN = 20
"""Held-out rows that a latent has to be active on to be explained."""
FEWEST = 8
"""Texts with a label."""
A_FEATURE = 0.9
"""Held-out AUROC from which a label counts as having a feature."""
SHUFFLES, TEXTS_AT_ONCE = 10, 32
KEPT, CONTEXT = 40, 24
"""Windows of the greatest activation in either half, and as many random ones; tokens of each."""
NEURONS = "neurons"


class CompareSpec(Spec):
    """Which autoencoders, and on what."""

    saes: Annotated[tuple[DataFile, ...], Positional()] = Field(min_length=1)
    """Folders of autoencoders, all of the same model."""
    store: DataFile
    """A store of their sites: held-out rows are measured, and latents explained on its text."""
    rows: int = Field(50_000, ge=2)
    """How many held-out rows to look at."""
    tokens: int = Field(60_000, ge=1)
    """How many tokens of the store's text to explain latents on."""
    sampled: int = Field(40, ge=3)
    """How many random latents of each to explain, and as many neurons of the block."""
    labelled: DataFile | None = None
    """A file of texts with many labels: for which of them is there a latent?"""


class ComparedOne(Part):
    """One autoencoder, or the block's neurons."""

    name: str
    architecture: str | None
    latents: int
    l1: float | None
    k: int | None
    quality: Quality | None
    """On held-out rows."""
    often: int
    """Latents active on at least twenty of them."""
    explained: int
    """Of those sampled, how many had enough windows to be scored."""
    accuracy: Interval
    """Of the n-grams a latent fires at, on text they were not found in: detection and fuzzing, chance .5, mean over
    latents."""
    simulation: Interval
    """Correlation of expected and actual activation, mean over latents."""
    concepts: float | None
    """Share of labels for which a latent has a held-out AUROC of .9 at least."""
    concepts_shuffled: float | None
    """The same with shuffled labels."""


class Concept(Part):
    """One label and the latent that tells it best, by autoencoder."""

    label: str
    texts: int
    best: dict[str, int]
    auroc: dict[str, float]
    """On the texts it was not found with."""


class ComparedResult(Result):
    """Autoencoders side by side."""

    dictionaries: list[ComparedOne]
    concepts: list[Concept]

    def table(self) -> "pandas.DataFrame":
        """One row a dictionary."""
        import pandas

        return pandas.DataFrame([
            {"dictionary": one.name, "latents": one.latents, "λ": one.l1, "k": one.k,
             "FVU": one.quality.fvu if one.quality else None, "L0": one.quality.l0 if one.quality else None,
             "explained": one.explained, "accuracy": one.accuracy.mean, "simulation": one.simulation.mean,
             "concepts": one.concepts} for one in self.dictionaries
        ]).dropna(axis="columns", how="all")

    def chart(self) -> "altair.TopLevelMixin":
        """Reconstruction and meaning of each; the concepts that have a latent."""
        from patchclamp.charts.sae import compared_chart

        return compared_chart(self)


@method("sae.compare", spec=CompareSpec, result=ComparedResult)
def compare_autoencoders(model: Model, spec: CompareSpec, progress: Progress) -> Outcome:
    """Compare autoencoders: what they reconstruct, how well their latents can be explained, which concepts they have.

    The verdict, without labels: can random latents of the sparsest be explained better, on other text, than those of
    the least sparse, or of one alone than the block's neurons? With labels: have more concepts a latent in the largest
    dictionary than in the smallest?
    """
    if len(set(spec.saes)) < len(spec.saes):
        raise SpecError("an autoencoder is named twice; name it once")
    if spec.labelled and len(spec.saes) < 2:
        raise SpecError("which concepts have a latent is compared between dictionaries; name two or more")
    whole = [attached(model, folder) for folder in spec.saes]
    if len(set(whole)) < len(whole):
        raise SpecError("two of the autoencoders have one name and block, so that their latents cannot be told apart; "
                        "convert one with another --name")
    tallies = [_tally(model, folder, spec) for folder in spec.saes]
    places = {site: _often(tally, spec) for site, tally in zip(whole, tallies, strict=True)}
    layer = whole[0].layer or 0
    neurons = Site("neuron", layer)
    check_site(model.anatomy, neurons, model.name)
    generator = np.random.default_rng(spec.seed)
    places[neurons] = sorted(generator.permutation(model.n_neurons(layer))[: spec.sampled].tolist())
    held = Held(model, {site: units for site, units in places.items() if units}, _windows(spec), progress)
    explained = {site: list(explained_units(site, units, held, spec.seed).values())
                 for site, units in progress.track(places.items(), "explaining units", len(places))}
    concepts, hits = _concepts(model, whole, spec, progress) if spec.labelled else ([], {})
    dictionaries = [_one(model, site, tally, explained[site], hits.get(str(site)), spec)
                    for site, tally in zip(whole, tallies, strict=True)]
    dictionaries.append(_neurons(model, layer, explained[neurons], spec))
    result = ComparedResult(dictionaries=dictionaries, concepts=concepts)
    if spec.labelled:
        return result, _on_concepts(result, spec)
    return result, _on_meaning(result, [explained[site] for site in (*whole, neurons)], spec)


def _tally(model: Model, folder: str, spec: CompareSpec) -> Tally:
    autoencoder, store, sites = opened(model, folder, spec.store)
    tally = Tally(autoencoder.n_latents)
    for shard in store.held_out(autoencoder, spec.rows)[0]:
        take_in(tally, autoencoder, store.with_windows(shard, sites)[0])
    return tally


def _often(tally: Tally, spec: CompareSpec) -> list[int]:
    often = np.flatnonzero(tally.counts_L.numpy() >= OFTEN)
    return sorted(np.random.default_rng(spec.seed).permutation(often)[: spec.sampled].tolist())


def _windows(spec: CompareSpec) -> list[Ids]:
    """The store's text, some of it, in its random order."""
    store = ActivationStore(spec.store)
    wanted = max(2, spec.tokens // store.manifest.length)
    return window_ids(store.folder, sorted(store.manifest.order[:wanted]))


def explained_units(site: Site, units: Sequence[int], held: Held, seed: int) -> dict[int, Answers]:
    """What each unit's rule says of the windows it was not made from; units with too few windows are left out."""
    out = {}
    for unit in units:
        threshold = held.active_from(site, unit)
        shown, other = (held.texts(site, unit, half, KEPT, CONTEXT, seed) for half in (0, 1))
        try:
            asked = trial(other.top, other.tenths, other.random, threshold, seed)
        except SpecError:  # too few windows in which it is active, or is not
            continue
        out[unit] = answers(learn([*shown.top, *shown.tenths, *shown.random], threshold), asked)
    return out


def _one(
    model: Model, site: Site, tally: Tally, explained: Sequence[Answers], hits: tuple[float, float] | None,
    spec: CompareSpec,
) -> ComparedOne:
    info = model.autoencoder(site).info
    return ComparedOne(
        name=info.name, architecture=info.architecture, latents=len(tally.counts_L), l1=info.settings.get("l1"),
        k=info.k, quality=tally.quality(), often=int((tally.counts_L >= OFTEN).sum()), explained=len(explained),
        accuracy=mean_if_any(_accuracies(explained), spec.seed),
        simulation=mean_if_any(simulated(explained), spec.seed), concepts=hits[0] if hits else None,
        concepts_shuffled=hits[1] if hits else None,
    )


def _neurons(model: Model, layer: int, explained: Sequence[Answers], spec: CompareSpec) -> ComparedOne:
    return ComparedOne(
        name=NEURONS, architecture=None, latents=model.n_neurons(layer), l1=None, k=None, quality=None,
        often=model.n_neurons(layer), explained=len(explained), concepts=None, concepts_shuffled=None,
        accuracy=mean_if_any(_accuracies(explained), spec.seed),
        simulation=mean_if_any(simulated(explained), spec.seed))


def _accuracies(explained: Sequence[Answers]) -> list[float]:
    return [float(one.correct.mean()) for one in explained]


def simulated(explained: Sequence[Answers]) -> list[float]:
    """Of each unit the correlation of expected and actual activation over the tokens of all its held-out windows."""
    found = []
    for one in explained:
        expected, actual = (np.concatenate(parts) for parts in zip(*one.simulated, strict=True))
        found.append(float(np.corrcoef(expected, actual)[0, 1]) if expected.std() > 0 and actual.std() > 0 else 0.0)
    return found


# Concepts


def _concepts(
    model: Model, whole: Sequence[Site], spec: CompareSpec, progress: Progress
) -> tuple[list[Concept], dict[str, tuple[float, float]]]:
    """Every label's best latent in each dictionary; and for each the share of labels that have one, and with shuffled
    labels."""
    source = spec.labelled or ""
    rows = read_rows(source, LabelledRow)
    labels_N = np.array([str(row.label) for row in rows])
    names, counts = np.unique(labels_N, return_counts=True)
    if len(names) < 2 or counts.min() < FEWEST:
        raise FileError(f"{source}: concepts are looked for in texts of two labels or more, each on {FEWEST} texts or "
                        f"more; the rarest, {names[counts.argmin()]!r}, is on {counts.min()}")
    found: list[Concept] = [Concept(label=str(name), texts=int(count), best={}, auroc={})
                            for name, count in zip(names, counts, strict=True)]
    first_N = half_of_each(labels_N, names, spec.seed)
    hits = {}
    for site in whole:
        codes_NL = _codes(model, site, [row.text for row in rows], progress)
        parts = scores(codes_NL[first_N], "auroc"), scores(codes_NL[~first_N], "auroc")
        true_KN = np.stack([labels_N == name for name in names])
        for one, (best, auroc) in zip(found, _best(parts, true_KN, first_N), strict=True):
            one.best[site.name or ""], one.auroc[site.name or ""] = best, auroc
        dealt_SN = [shuffled(true, SHUFFLES, spec.seed + n) for n, true in enumerate(true_KN)]
        chance = [auroc >= A_FEATURE for some in zip(*dealt_SN, strict=True)
                  for _, auroc in _best(parts, np.stack(some), first_N)]
        share = float(np.mean([one.auroc[site.name or ""] >= A_FEATURE for one in found]))
        hits[str(site)] = share, float(np.mean(chance))
    return found, hits


@torch.no_grad()
def _codes(model: Model, site: Site, texts: Sequence[str], progress: Progress) -> np.ndarray:
    """Every latent's greatest activation in each text, its first token left out, [N, L]."""
    found = []
    starts = range(0, len(texts), TEXTS_AT_ONCE)
    for first in progress.track(starts, f"reading texts, {site}", len(starts)):
        plan = Plan.of([(text, (), [str(site)]) for text in texts[first : first + TEXTS_AT_ONCE]])
        found += [codes_TL[min(1, len(codes_TL) - 1) :].amax(0).float().cpu().numpy()
                  for (codes_TL,) in model.execute(plan)]
    return np.stack(found)


def _best(
    parts: tuple[np.ndarray, np.ndarray], labels_KN: np.ndarray, first_N: np.ndarray
) -> list[tuple[int, float]]:
    """For each labelling the latent that tells it best on the first half, and its AUROC on the other."""
    finding_KL = associate(parts[0], labels_KN[:, first_N], "auroc")
    best_K = finding_KL.argmax(1)
    held_KK = associate(parts[1][:, best_K], labels_KN[:, ~first_N], "auroc")
    return [(int(best), float(held_KK[k, k])) for k, best in enumerate(best_K)]


# Verdicts


def _on_meaning(result: ComparedResult, explained: Sequence[Sequence[Answers]], spec: CompareSpec) -> Verdict | None:
    by_name = {one.name: (one, simulated(some)) for one, some in zip(result.dictionaries, explained, strict=True)}
    learned = [one for one in result.dictionaries if one.quality]
    sparsest = min(learned, key=lambda one: one.quality.l0 if one.quality else 0.0)
    other = max(learned, key=lambda one: one.quality.l0 if one.quality else 0.0).name if len(learned) > 1 else NEURONS
    own, control = by_name[sparsest.name][1], by_name[other][1]
    if not own or not control:
        return None
    return judge(own, control, direction="greater", seed=spec.seed, claim=(
        f"latents of {sparsest.name} mean more than "
        f"{'neurons of the block' if other == NEURONS else f'those of {other}'} do (correlation of what n-grams expect "
        f"with activation, on other text, {len(own)} and {len(control)} drawn at random)"))


def _on_concepts(result: ComparedResult, spec: CompareSpec) -> Verdict:
    learned = sorted((one for one in result.dictionaries if one.quality), key=lambda one: one.latents)
    small, large = learned[0].name, learned[-1].name
    has = {name: [float(one.auroc[name] >= A_FEATURE) for one in result.concepts] for name in (small, large)}
    return judge(has[large], has[small], direction="greater", seed=spec.seed, claim=(
        f"more concepts have a latent of their own in {large} ({learned[-1].latents} latents) than in {small} "
        f"({learned[0].latents}) (share of {len(result.concepts)} labels with held-out AUROC of {A_FEATURE} or more)"))
