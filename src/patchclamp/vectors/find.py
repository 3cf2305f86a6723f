"""Finding a direction in every block: what do the states of prompts that show a behaviour have that others lack?

    v_l = mean(h_l | shown) - mean(h_l | not shown)           or another of `directions.WAYS`

Rimsky et al. 2023, arXiv 2312.06681; Arditi et al. 2024, arXiv 2406.11717; Zou et al. 2023, arXiv 2310.01405.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import torch
from pydantic import Field
from torch import Tensor

from patchclamp.evidence.method import Outcome, Part, Progress, Result, method
from patchclamp.evidence.provenance import PACKAGES, version_of
from patchclamp.evidence.verdict import judge
from patchclamp.forward import Model
from patchclamp.tasks.files import DataFile
from patchclamp.vectors.directions import How, direction, held_out_auroc
from patchclamp.vectors.source import FindingSpec, Source, hashes, only_behaving, read_source, sites_of
from patchclamp.vectors.states import examples_of, states
from patchclamp.vectors.vector import SteeringVector, VectorInfo, check_suffix

if TYPE_CHECKING:
    import altair
    import pandas


class FindSpec(FindingSpec):
    """Where the direction is kept."""

    save: DataFile
    """The vector's file: .safetensors, or .gguf for other projects."""
    controls: int = Field(20, ge=2, le=200)
    """How many times the labels are shuffled and the same search made again."""


class FoundSite(Part):
    """The direction at one site."""

    site: str
    norm: float
    """Its length."""
    gap: float
    """Distance of the two sides' mean projections, in standard deviations within the sides."""
    auroc: float
    """How well projections tell prompts apart that had no part in finding it; .5 is chance."""


class FindResult(Result):
    """A direction at every site, and how well each tells the two sides apart."""

    sites: list[FoundSite]
    saved: str
    """Where the vector is."""
    showing: int
    """Prompts that show the behaviour."""
    plain: int
    left_out: dict[str, int]
    """Prompts on which the model did not do what they are there for, if only behaving ones were asked for."""
    best: str
    """The site with the highest held-out AUROC."""

    def table(self) -> pandas.DataFrame:
        """One row a site."""
        import pandas

        return pandas.DataFrame([site.model_dump() for site in self.sites])

    def chart(self) -> altair.TopLevelMixin:
        """Held-out AUROC by block (of heads: block and head)."""
        from patchclamp.charts.vectors import find_chart

        return find_chart(self)


@method("vectors.find", spec=FindSpec, result=FindResult)
def find_vector(model: Model, spec: FindSpec, progress: Progress) -> Outcome:
    """Find a behaviour's direction in every block and save it.

    The verdict asks whether the direction tells prompts apart that it was not found with: its best held-out AUROC over
    the sites, against the best of the same search on shuffled labels.
    """
    check_suffix(spec.save)
    source = read_source(model, spec)
    vector, (showing_SNW, plain_SNW), left_out = found_vector(model, source, spec, progress)
    sites = list(vector.directions)
    scores = [held_out_auroc(spec.how, *pair, seed=spec.seed) for pair in zip(showing_SNW, plain_SNW, strict=True)]
    found = [
        FoundSite(
            site=site,
            norm=float(vector.directions[site].norm()),
            auroc=score,
            gap=_gap(vector.directions[site], showing_NW, plain_NW),
        )
        for site, score, showing_NW, plain_NW in zip(sites, scores, showing_SNW, plain_SNW, strict=True)
    ]
    path = vector.with_info(auroc={one.site: one.auroc for one in found}).save(spec.save)
    best = max(found, key=lambda one: one.auroc)
    result = FindResult(
        sites=found,
        saved=str(path),
        showing=showing_SNW.shape[1],
        plain=plain_SNW.shape[1],
        left_out=left_out,
        best=best.site,
    )
    control = _shuffled(spec.how, showing_SNW, plain_SNW, spec.controls, spec.seed, progress)
    verdict = judge(
        best.auroc,
        control,
        direction="greater",
        against="distribution",
        seed=spec.seed,
        claim=f"{source.name} is a direction: at {best.site} it tells held-out prompts apart (AUROC, the best of "
        f"{len(sites)} sites, against the best of the same search on shuffled labels)",
    )
    return result, verdict


def found_vector(
    model: Model, source: Source, spec: FindingSpec, progress: Progress
) -> tuple[SteeringVector, tuple[Tensor, Tensor], dict[str, int]]:
    """The vector, both sides' states [S,N,W] it was found in, and how many prompts were left out."""
    examples, left_out = source.examples, dict[str, int]()
    if spec.behaving:
        examples, left_out = only_behaving(model, source, spec.max_new_tokens, progress)
    sites = sites_of(model, spec.point)
    sides = examples_of(model, examples, source.format, spec.position)
    showing_SNW, plain_SNW = (states(model, side, sites, progress) for side in sides)
    directions = {
        site: direction(spec.how, *pair).float() for site, *pair in zip(sites, showing_SNW, plain_SNW, strict=True)
    }
    means = {site: tuple(float(side.mean(0) @ direction.double() / direction.norm()) for side in (plain, showing))
             for (site, direction), showing, plain in zip(directions.items(), showing_SNW, plain_SNW, strict=True)}
    info = VectorInfo(
        name=source.name,
        model=model.name,
        weights_hash=model.weights_hash,
        how=spec.how,
        position=spec.position,
        format=source.format,
        means=means,  # type: ignore[arg-type]
        behaviour=source.reference,
        prompts=hashes(examples.questions),
        made={name: version_of(name) for name in PACKAGES} | {"time": datetime.now(UTC).isoformat(timespec="seconds")},
    )
    return SteeringVector(info, directions), (showing_SNW, plain_SNW), left_out


def _gap(direction_W: Tensor, showing_NW: Tensor, plain_NW: Tensor) -> float:
    sides = [states_NW @ direction_W.double() for states_NW in (showing_NW, plain_NW)]
    within = torch.cat([side_N - side_N.mean() for side_N in sides]).std()
    return float((sides[0].mean() - sides[1].mean()) / within) if within else 0.0


def _shuffled(how: How, showing_SNW: Tensor, plain_SNW: Tensor, n: int, seed: int, progress: Progress) -> list[float]:
    """The best held-out AUROC over the sites, with sides drawn at random: of pairs which side is which."""
    both_SNW = torch.cat([showing_SNW, plain_SNW], dim=1)
    half, total = showing_SNW.shape[1], both_SNW.shape[1]
    generator = torch.Generator().manual_seed(seed)
    best = []
    for _ in progress.track(range(n), "searching with shuffled labels", n):
        if how == "pca":
            turned = torch.rand(half, generator=generator) < 0.5
            first = torch.where(turned, torch.arange(half) + half, torch.arange(half))
            order = torch.cat([first, (first + half) % total])
        else:
            order = torch.randperm(total, generator=generator)
        best.append(
            max(
                held_out_auroc(how, states_NW[order[:half]], states_NW[order[half:]], seed=seed)
                for states_NW in both_SNW
            )
        )
    return best
