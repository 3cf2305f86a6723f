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
from functools import cached_property
from typing import Annotated, Literal

import numpy as np
from pydantic import ConfigDict, Field, field_validator

from patchclamp.errors import InputError
from patchclamp.evidence.bootstrap import bootstrap_mean
from patchclamp.evidence.cli_hints import CommaList
from patchclamp.evidence.method import Part, Progress, Spec
from patchclamp.evidence.recognise import repetition
from patchclamp.evidence.written import kl_on, perplexity_ratio, surprise, unrelated_texts
from patchclamp.forward import Edit, Generated, Model, Site
from patchclamp.forward.site import Positions
from patchclamp.vectors.behave import Asking, Case
from patchclamp.vectors.vector import Ablation, Setting, SteeringVector

COARSE = {"add": (1.2,), "subtract": (0.6, 1.2, 2.4, 4.0)}
"""Coarse strengths, as parts of the way from one side's mean to the other's. Subtracting goes on to the bound, since
what costs too much is known there before anything is generated."""
FINE = {"add": (0.8, 1.1, 1.5), "subtract": (0.4, 0.6, 0.8, 1.1, 1.5, 2.0, 2.6, 3.4, 4.5)}
FINE_TOGETHER = {"add": (0.4, 0.7, 1.0), "subtract": (0.4, 0.6, 0.8, 1.1, 1.5, 2.0, 2.6)}
HEADS = (4, 12, 48)
"""Numbers of heads that are used together."""
FINE_HEADS = {"add": (1.0, 3.0, 8.0), "subtract": (1.0, 2.0, 4.0, 8.0, 16.0)}
STRONGEST = 2
"""Of the affordable strengths of subtracting at one place those that are tried."""
FIRST, LAST = 0.2, 0.9
"""Part of the depth in which blocks are tried."""
COARSE_SITES = 10
ROUNDS = ((8, 20), (16, 32))
"""Prompts and tokens an answer of the first two rounds."""
TOGETHER = 3
"""Blocks used together, each with less of the strength."""
FINALISTS = 2

Use = Literal["add", "subtract", "project_out"]
USES: tuple[Use, ...] = ("add", "subtract", "project_out")


class ChoosingSpec(Spec):
    """What the use of a vector may cost, and how long an answer is."""

    max_perplexity: float = Field(3.0, gt=1)
    """Choosing: how much less likely answers may become under adding to the unedited model, as a ratio of
    perplexities."""
    max_repetition: float = Field(0.15, ge=0)
    """Choosing: how much more answers may repeat themselves under adding, as a share of word triples."""
    max_kl: float = Field(0.4, gt=0)
    """Choosing: how far removing may move the model on unrelated text, nats a token."""
    max_new_tokens: int = Field(48, ge=4, le=500)
    """Length of an answer."""
    positions: Annotated[tuple[str, ...], CommaList()] = ()
    """Choosing: tokens at which the vector is found anew from its own prompts, e.g. last,-2,-5; the one with which
    adding does most is kept."""

    @field_validator("positions")
    @classmethod
    def _named(cls, positions: tuple[str, ...]) -> tuple[str, ...]:
        for position in positions:
            Positions.parse(position)
        return positions


class Tried(Part):
    """One way of using the vector, and what it does on validation prompts."""

    model_config = ConfigDict(frozen=True)

    use: Use
    sites: tuple[str, ...]
    strength: float
    """Standard deviations of projections over a neutral corpus; of project_out always 1."""
    everywhere: bool = False
    """Whether project_out concerns all that is written to the residual stream, or the site alone."""
    rate: float = 0.0
    """Share of prompts that show the behaviour: plain ones under adding, showing ones under removing."""
    cost: float = 0.0
    """Perplexity ratio of adding, KL on unrelated text of removing."""
    allowed: bool = False
    """Whether that is within the bounds."""


def natural_strength(model: Model, vector: SteeringVector, sites: Sequence[str]) -> float:
    """The strength, in standard deviations, that leads from one side's mean to the other's: mean over sites.

    InputError where neutral text does not vary along a direction at all."""
    found = []
    model.measure_spread(sites)
    for site, v in vector.at(sites).items():
        spread = model.projection_sd(site, v)
        if not spread:
            raise InputError(
                f"neutral text does not vary along the vector {vector.info.name!r} at {site}, so there is no unit of "
                "strength; give a raw coefficient"
            )
        found.append(float(v.norm()) / spread)
    return float(np.mean(found))


def edits_of(vector: SteeringVector, model: Model, tried: Tried) -> list[Edit]:
    """The edits of one way of using the vector."""
    if tried.use == "project_out":
        return projected_out(model, vector, Ablation(site=tried.sites[0], everywhere=tried.everywhere))
    return vector.edits(Setting(sites=tried.sites, strength=tried.strength))


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
    vector: SteeringVector, asking: Asking, cases: Sequence[Case], bounds: ChoosingSpec, progress: Progress
) -> tuple[SteeringVector, list[Tried]]:
    """The vector with the best allowed way of adding, subtracting and projecting out, where one changes the behaviour
    at all; and all ways that were tried on every validation prompt."""
    chosen: dict[Use, Tried] = {}
    tried: list[Tried] = []
    for use in USES:
        asked = [case for case in cases if case.pair or case.kind == ("plain" if use == "add" else "showing")]
        finals, best = Trial(vector, asking, asked, use, bounds).search(progress)
        tried += finals
        if best is not None:
            chosen[use] = best
    settings = {use: Setting(sites=one.sites, strength=one.strength) for use, one in chosen.items()}
    out = chosen.get("project_out")
    ablate = Ablation(site=out.sites[0], everywhere=out.everywhere) if out else None
    return vector.with_info(add=settings.get("add"), remove=settings.get("subtract"), ablate=ablate), tried


def _repeats(answers: Sequence[Generated]) -> float:
    return float(np.mean([repetition(answer.text) for answer in answers]))


def _strongest(candidates: Sequence[Tried]) -> list[Tried]:
    """The strongest few of each place."""
    places: dict[tuple[str, ...], list[Tried]] = {}
    for one in sorted(candidates, key=lambda one: -abs(one.strength)):
        places.setdefault(one.sites, []).append(one)
    return [one for some in places.values() for one in some[:STRONGEST]]


class Trial:
    """The search for one use."""

    def __init__(
        self, vector: SteeringVector, asking: Asking, cases: Sequence[Case], use: Use, bounds: ChoosingSpec
    ) -> None:
        self.vector, self.asking, self.cases, self.use, self.bounds = vector, asking, cases, use, bounds
        self.model = asking.model
        self.sign = 1 if use == "add" else -1
        self.texts = unrelated_texts(self.model, choosing=True)

    def search(self, progress: Progress) -> tuple[list[Tried], Tried | None]:
        """The finalists, judged on all prompts, and the best of them."""
        second = self.of_heads() if self.is_of_heads else self.of_blocks(progress)
        finals = self.best_of(second, ROUNDS[1], progress, "fine")[: FINALISTS + 1]
        judged = [self.judged(one) for one in progress.track(finals, f"{self.name}, whole answers", len(finals))]
        return [one for one, _ in judged], self.best(judged)

    @cached_property
    def base(self) -> list[Generated]:
        """The unedited model's answers; the first round does without."""
        return self.asking.answers(self.cases)

    @property
    def is_of_heads(self) -> bool:
        return all(Site.parse(site).unit is not None for site in self.vector.directions)

    def of_heads(self) -> list[Tried]:
        """Candidates for the second round: the heads together that tell the two sides apart best (Li et al. 2023)."""
        known = self.vector.info.auroc
        ranked = sorted(self.vector.directions, key=lambda site: -known.get(site, 0.0))
        sets = [(site,) for site in ranked[: max(HEADS)]] if self.use == "project_out" else [
            tuple(ranked[:k]) for k in HEADS if k <= len(ranked)] or [tuple(ranked)]
        return [one for some in sets[:COARSE_SITES] for one in self.made(some, FINE_HEADS)]

    def of_blocks(self, progress: Progress) -> list[Tried]:
        """Candidates for the second round: the best of the first, with neighbours."""
        sites = list(dict.fromkeys(one.sites[0] for one in self.first_round(progress)))[:FINALISTS]
        places: list[tuple[str, ...]] = [(site,) for site in sites] + self.neighbours(sites[0])
        return [one for place in places for one in self.made(place, FINE if len(place) == 1 else FINE_TOGETHER)]

    def first_round(self, progress: Progress) -> list[Tried]:
        """Every few blocks (of heads: some heads together) at coarse strengths, the best first."""
        if self.is_of_heads:
            return self.best_of(self.of_heads(), ROUNDS[0], progress, "coarse")
        n = self.model.n_layers
        every = [site for site in self.vector.directions if FIRST * n <= (Site.parse(site).layer or 0) <= LAST * n]
        every = every or list(self.vector.directions)
        coarse = every[:: max(1, len(every) // COARSE_SITES)]
        if self.use == "add":
            self.model.measure_spread(coarse)
        candidates = [one for site in coarse for one in self.made((site,), COARSE)]
        return self.best_of(candidates, ROUNDS[0], progress, "coarse")

    @property
    def name(self) -> str:
        return f"choosing where to {self.use.replace('_', ' ')}"

    def best_of(
        self, candidates: Sequence[Tried], size: tuple[int, int], progress: Progress, description: str
    ) -> list[Tried]:
        """Candidates by what they do on some of the prompts, the best first; of equals the weaker one. Those that cost
        too much are left out where that is known before anything is generated."""
        n, tokens = size
        if self.use != "add":
            costs = kl_on(self.model, self.texts, [self.edits(one) for one in candidates]).mean(1)
            affordable = [one for one, kl in zip(candidates, costs, strict=True) if kl <= self.bounds.max_kl]
            candidates = _strongest(affordable) or [candidates[int(costs.argmin())]]
        settings = [self.edits(one) for one in candidates]
        tokens = min(tokens, self.asking.max_new_tokens)
        shown = self.asking.rates(self.cases[:n], settings, tokens, progress, f"{self.name}, {description}")
        rates = dict(zip(candidates, self.sign * shown.mean(1), strict=True))
        return sorted(candidates, key=lambda one: (-rates[one], abs(one.strength)))

    def made(self, sites: tuple[str, ...], parts: dict[str, tuple[float, ...]]) -> list[Tried]:
        """Candidates at some sites."""
        if self.use == "project_out":
            wide = self.vector.ablation(sites[0], self.model).everywhere
            both = [Tried(use=self.use, sites=sites, strength=1.0, everywhere=e) for e in sorted({False, wide})]
            return both if len(sites) == 1 else []
        natural = natural_strength(self.model, self.vector, sites) / (1 if len(sites) == 1 else TOGETHER**0.5)
        strengths = [round(self.sign * factor * natural, 2) for factor in parts[self.use]]
        return [Tried(use=self.use, sites=sites, strength=strength) for strength in strengths]

    def neighbours(self, site: str) -> list[tuple[str, ...]]:
        """The sites beside the best one, and those around it together."""
        names = list(self.vector.directions)
        at = names.index(site)
        beside: list[tuple[str, ...]] = [(names[i],) for i in (at - 1, at + 1) if 0 <= i < len(names)]
        around = tuple(names[max(0, at - TOGETHER // 2) : at + TOGETHER // 2 + 1])
        return beside if self.use == "project_out" else [around]

    def edits(self, tried: Tried) -> list[Edit]:
        return edits_of(self.vector, self.model, tried)

    def judged(self, tried: Tried) -> tuple[Tried, np.ndarray]:
        """What it does and costs on all prompts, and which of them show the behaviour."""
        edits = self.edits(tried)
        said = self.asking.answers(self.cases, edits) if self.use == "add" or self.asking.reads_answers else None
        shown = self.asking.shown(self.cases, said, edits)
        if self.use == "add":
            assert said is not None
            prompts = [case.prompt for case in self.cases]
            cost = perplexity_ratio(*(surprise(self.model, prompts, answers) for answers in (said, self.base)))
            repeats = _repeats(said) - _repeats(self.base)
            allowed = cost <= self.bounds.max_perplexity and repeats <= self.bounds.max_repetition
        else:
            cost = float(kl_on(self.model, self.texts, [edits]).mean())
            allowed = cost <= self.bounds.max_kl
        return tried.model_copy(update={"rate": float(shown.mean()), "cost": cost, "allowed": allowed}), shown

    def best(self, judged: Sequence[tuple[Tried, np.ndarray]]) -> Tried | None:
        """The strongest allowed one, of equals the cheapest; None unless it changes more answers than chance would."""
        allowed = [each for each in judged if each[0].allowed]
        if not allowed:
            return None
        best, shown = max(allowed, key=lambda each: (self.sign * each[0].rate, -each[0].cost))
        base = self.asking.shown(self.cases, self.base if self.asking.reads_answers else None)
        change = self.sign * (shown.astype(float) - base)
        return best if bootstrap_mean(change, 0).low > 0 else None
