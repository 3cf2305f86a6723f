"""Choosing where and how strongly to use a vector, on validation prompts alone.

Adding: the sites and strength after which most plain prompts show the behaviour, among those whose answers the unedited
model finds at most so much less likely, and that do not repeat themselves. Removing: those after which fewest showing
prompts do, among those that move the model on unrelated text by at most so much KL. Some vectors do nothing within
these bounds; then no setting is chosen.

Three rounds, each with fewer candidates, more prompts and longer answers: every few blocks; the best of them at several
strengths, with their neighbours and several blocks together; the best of those on all prompts with whole answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from patchclamp.evidence.bootstrap import bootstrap_mean
from patchclamp.evidence.method import Progress
from patchclamp.forward import Edit, Model, Site
from patchclamp.vectors.behave import Asking, Case
from patchclamp.vectors.detect import repetition
from patchclamp.vectors.measure import kl_on, perplexity_ratio, surprise, unrelated_texts
from patchclamp.vectors.vector import Ablation, Setting, SteeringVector

COARSE = (1.2,)
"""Coarse strengths, as parts of the way from one side's mean to the other's."""
FINE = (0.8, 1.1, 1.5)
FINE_TOGETHER = (0.4, 0.7, 1.0)
FIRST, LAST = 0.2, 0.9
"""Part of the depth in which blocks are tried."""
COARSE_SITES = 10
ROUNDS = ((8, 20), (16, 32))
"""Prompts and tokens an answer of the first two rounds."""
TEXTS = 12
"""Unrelated texts on which the cost of removing is measured while choosing."""
TOGETHER = 3
"""Blocks used together, each with less of the strength."""
FINALISTS = 2

Use = Literal["add", "subtract", "project_out"]


class Bounds(NamedTuple):
    """What a setting may cost."""

    perplexity: float = 3.0
    """Of answers under adding, over the unedited ones', by the unedited model."""
    repetition: float = 0.15
    """Share of repeated word triples beyond that of unedited answers."""
    kl: float = 0.4
    """On unrelated text under removing, nats."""


class Candidate(NamedTuple):
    """A way of using the vector, and what it does on validation prompts."""

    use: Use
    sites: tuple[str, ...]
    strength: float
    rate: float = 0.0
    cost: float = 0.0
    """Perplexity ratio of adding, KL of removing."""
    allowed: bool = False
    shown: tuple[bool, ...] = ()
    everywhere: bool = False
    """Whether project_out concerns all that is written to the residual stream, or the site alone."""


def natural_strength(model: Model, vector: SteeringVector, sites: Sequence[str]) -> float:
    """The strength, in standard deviations, that leads from one side's mean to the other's: mean over sites."""
    return float(np.mean([float(v.norm()) / model.projection_sd(site, v) for site, v in vector.at(sites).items()]))


def edits_of(vector: SteeringVector, model: Model, candidate: Candidate, positions: str = "all") -> list[Edit]:
    """The edits of a candidate."""
    if candidate.use == "project_out":
        return projected_out(model, vector, Ablation(site=candidate.sites[0], everywhere=candidate.everywhere))
    return vector.edits(Setting(sites=candidate.sites, strength=candidate.strength, positions=positions))


def projected_out(model: Model, vector: SteeringVector, ablation: Ablation) -> list[Edit]:
    """One site's direction removed there, or from everything that is written to the residual stream.

    The latter is directional ablation (Arditi et al. 2024, arXiv 2406.11717, equation 4): what orthogonalising the
    weights does.
    """
    (direction,) = vector.at([ablation.site]).values()
    if not ablation.everywhere:
        return [Edit.project_out(ablation.site, direction)]
    points = ["embed"] + [f"{point}.{layer}" for layer in range(model.n_layers) for point in ("attn", "mlp")]
    return [Edit.project_out(point, direction) for point in points]


def choose(
    vector: SteeringVector,
    asking: Asking,
    cases: Sequence[Case],
    uses: Sequence[Use],
    bounds: Bounds,
    progress: Progress,
) -> tuple[dict[Use, Candidate], list[Candidate]]:
    """The best allowed candidate of each use that changes the behaviour at all, and all that were tried whole."""
    chosen: dict[Use, Candidate] = {}
    tried: list[Candidate] = []
    for use in uses:
        asked = [case for case in cases if case.pair or case.kind == ("plain" if use == "add" else "showing")]
        trial = _Trial(vector, asking, asked, use, bounds)
        finals = trial.search(progress)
        tried += finals
        best = trial.best(finals)
        if best is not None:
            chosen[use] = best
    return chosen, tried


def with_settings(vector: SteeringVector, chosen: dict[Use, Candidate]) -> SteeringVector:
    """The vector with the chosen ways of using it."""
    settings = {
        use: Setting(sites=one.sites, strength=one.strength) for use, one in chosen.items() if use != "project_out"
    }
    out = chosen.get("project_out")
    return vector.with_info(
        add=settings.get("add"),
        remove=settings.get("subtract"),
        ablate=Ablation(site=out.sites[0], everywhere=out.everywhere) if out else None,
    )


def told(one: Candidate) -> str:
    """A candidate as a line."""
    cost = "perplexity ratio" if one.use == "add" else "KL"
    how = "everywhere" if one.everywhere else f"at {one.strength:g}"
    return (
        f"{one.use} {'+'.join(one.sites)} {how}: rate {one.rate:.2f}, {cost} {one.cost:.3g}"
        f"{'' if one.allowed else ', beyond the bounds'}"
    )


class _Trial:
    """The search for one use."""

    def __init__(self, vector: SteeringVector, asking: Asking, cases: Sequence[Case], use: Use, bounds: Bounds) -> None:
        self.vector, self.asking, self.cases, self.use, self.bounds = vector, asking, cases, use, bounds
        self.model = asking.model
        self.sign = 1 if use == "add" else -1
        self.texts = unrelated_texts(self.model, TEXTS)
        self.base = asking.answers(cases)
        self.base_shown = asking.shown(cases, self.base)
        self.base_surprise = surprise(self.model, [case.prompt for case in cases], self.base)
        self.base_repeats = float(np.mean([repetition(answer.text) for answer in self.base]))

    def search(self, progress: Progress) -> list[Candidate]:
        """The finalists, judged on all prompts."""
        n = self.model.n_layers
        every = [site for site in self.vector.directions if FIRST * n <= (Site.parse(site).layer or 0) <= LAST * n]
        coarse = every[:: max(1, len(every) // COARSE_SITES)]
        first = self.best_of(
            [one for site in coarse for one in self.made((site,), COARSE)], ROUNDS[0], progress, "coarse"
        )
        sites = list(dict.fromkeys(one.sites[0] for one in first))[:FINALISTS]
        places: list[tuple[str, ...]] = [(site,) for site in sites] + self.neighbours(sites[0])
        second = [one for place in places for one in self.made(place, FINE if len(place) == 1 else FINE_TOGETHER)]
        finals = self.best_of(second, ROUNDS[1], progress, "fine")[: FINALISTS + 1]
        return [self.judged(one) for one in progress.track(finals, f"{self.name}, whole answers", len(finals))]

    @property
    def name(self) -> str:
        return f"choosing where to {self.use.replace('_', ' ')}"

    def best_of(
        self, candidates: Sequence[Candidate], size: tuple[int, int], progress: Progress, description: str
    ) -> list[Candidate]:
        """Candidates by what they do on some of the prompts, the best first; of equals the weaker one. Those that cost
        too much are left out where that is known before anything is generated."""
        n, tokens = size
        if self.use != "add":
            costs = kl_on(self.model, self.texts, [self.edits(one) for one in candidates]).mean(1)
            affordable = [one for one, kl in zip(candidates, costs, strict=True) if kl <= self.bounds.kl]
            candidates = affordable or [candidates[int(costs.argmin())]]
        rates = {}
        for one in progress.track(candidates, f"{self.name}, {description}", len(candidates)):
            rates[one] = self.sign * float(self.asking.rate(self.cases[:n], self.edits(one), tokens).mean())
        return sorted(candidates, key=lambda one: (-rates[one], abs(one.strength)))

    def made(self, sites: tuple[str, ...], factors: Sequence[float]) -> list[Candidate]:
        """Candidates at some sites."""
        if self.use == "project_out":
            both = [Candidate(self.use, sites, 1.0, everywhere=everywhere) for everywhere in (False, True)]
            return both if len(sites) == 1 else []
        natural = natural_strength(self.model, self.vector, sites) / (1 if len(sites) == 1 else TOGETHER**0.5)
        return [Candidate(self.use, sites, round(self.sign * factor * natural, 2)) for factor in factors]

    def neighbours(self, site: str) -> list[tuple[str, ...]]:
        """The sites beside the best one, and those around it together."""
        names = list(self.vector.directions)
        at = names.index(site)
        beside: list[tuple[str, ...]] = [(names[i],) for i in (at - 1, at + 1) if 0 <= i < len(names)]
        around = tuple(names[max(0, at - TOGETHER // 2) : at + TOGETHER // 2 + 1])
        return beside if self.use == "project_out" else [around]

    def edits(self, candidate: Candidate) -> list[Edit]:
        return edits_of(self.vector, self.model, candidate)

    def judged(self, candidate: Candidate) -> Candidate:
        """The candidate with what it does and costs on all prompts."""
        edits = self.edits(candidate)
        if self.asking.detector.kind == "choice" and self.use != "add":
            said = None
        else:
            said = self.asking.answers(self.cases, edits)
        shown = self.asking.shown(self.cases, said, edits)
        if self.use == "add":
            assert said is not None
            cost = perplexity_ratio(surprise(self.model, [c.prompt for c in self.cases], said), self.base_surprise)
            repeats = float(np.mean([repetition(answer.text) for answer in said]))
            allowed = cost <= self.bounds.perplexity and repeats <= self.base_repeats + self.bounds.repetition
        else:
            cost = float(kl_on(self.model, self.texts, [edits]).mean())
            allowed = cost <= self.bounds.kl
        return candidate._replace(rate=float(shown.mean()), cost=cost, allowed=allowed, shown=tuple(shown.tolist()))

    def best(self, finals: Sequence[Candidate]) -> Candidate | None:
        """The strongest allowed one, of equals the cheapest; None unless it changes more answers than chance would."""
        allowed = [one for one in finals if one.allowed]
        if not allowed:
            return None
        best = max(allowed, key=lambda one: (self.sign * one.rate, -one.cost))
        change = self.sign * (np.array(best.shown, dtype=float) - self.base_shown)
        return best if bootstrap_mean(change, 0).low > 0 else None
