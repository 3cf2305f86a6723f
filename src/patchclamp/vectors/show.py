"""What is in a vector's file: whose it is, how long each direction is, and which words it points to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import torch
from pydantic import Field

from patchclamp.evidence.cli_hints import Positional
from patchclamp.evidence.method import Outcome, Part, Progress, Result, Spec, method
from patchclamp.forward import Model, Site
from patchclamp.tasks.files import DataFile
from patchclamp.vectors.search import natural_strength
from patchclamp.vectors.vector import VectorInfo, load_vector

if TYPE_CHECKING:
    import altair
    import pandas


class ShowSpec(Spec):
    """Which file."""

    vector: Annotated[DataFile, Positional()]
    """A saved vector."""
    top: int = Field(8, ge=1, le=50)
    """Words to list each way."""


class ShownSite(Part):
    """One direction."""

    site: str
    norm: float
    strength: float
    """Its length in standard deviations of projections over a neutral corpus: what is added to get from one side's mean
    to the other's."""
    next_cosine: float | None
    """With the direction at the next site; null for the last and for heads."""
    promotes: list[str]
    """Tokens whose logits it raises most, read through final norm and unembedding; none for heads."""
    suppresses: list[str]


class ShowResult(Result):
    """What the file holds."""

    info: VectorInfo
    sites: list[ShownSite]

    def table(self) -> pandas.DataFrame:
        """One row a site."""
        import pandas

        return pandas.DataFrame([site.model_dump() for site in self.sites])

    def chart(self) -> altair.TopLevelMixin:
        """Strength and agreement of neighbouring directions by block."""
        from patchclamp.charts.vectors import show_chart

        return show_chart(self)


@method("vectors.show", spec=ShowSpec, result=ShowResult)
def show_vector(model: Model, spec: ShowSpec, progress: Progress) -> Outcome:
    """Show a saved vector: provenance, lengths, and the words each direction raises and lowers. It claims nothing."""
    vector = load_vector(spec.vector, model)
    sites = list(vector.directions)
    model.measure_spread(sites)
    shown = []
    for i, site in enumerate(sites):
        v = vector.directions[site]
        words: dict[str, list[str]] = {"promotes": [], "suppresses": []}
        if len(v) == model.d_model:
            for name, sign in (("promotes", 1), ("suppresses", -1)):
                with torch.no_grad():
                    logits_V = model.anatomy.unembed(sign * v.to(model.anatomy.unembedding.weight))
                words[name] = [model.say(int(token)) for token in logits_V.topk(spec.top).indices]
        following = vector.directions[sites[i + 1]] if i + 1 < len(sites) and Site.parse(site).unit is None else None
        shown.append(
            ShownSite(
                site=site,
                norm=float(v.norm()),
                strength=natural_strength(model, vector, [site]),
                next_cosine=None if following is None else float(torch.cosine_similarity(v, following, dim=0)),
                **words,
            )
        )
    return ShowResult(info=vector.info, sites=shown), None
