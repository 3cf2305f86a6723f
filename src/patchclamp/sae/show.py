"""A feature as a reader sees it: where it is active, how often, what it writes, and which features point its way."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import torch
from pydantic import Field

from patchclamp.corpus.shown import Showing, UnitExamples, examined, passages_of
from patchclamp.errors import SpecError
from patchclamp.evidence.cli_hints import Positional
from patchclamp.evidence.method import Outcome, Part, Progress, Result, Spec, method
from patchclamp.evidence.passage import Passage
from patchclamp.forward import Model, Site
from patchclamp.forward.autoencoder import Autoencoder
from patchclamp.sae.attached import attached
from patchclamp.sae.index import opened
from patchclamp.sae.written import Features
from patchclamp.tasks.files import DataFile

if TYPE_CHECKING:
    import altair
    import pandas


class ShowSpec(Spec):
    """Which features, and from which index."""

    features: Annotated[tuple[str, ...], Positional()] = Field(min_length=1)
    """Numbers of features, e.g. 88, or their sites, e.g. feature.15.88."""
    index: DataFile
    """The index's folder, as `sae index` made it."""
    sae: DataFile | None = None
    """The autoencoder's folder; not needed if one is attached to the model."""
    top: int = Field(10, ge=1, le=200)
    """How many windows to show; no more than the index has."""
    tenth: int = Field(1, ge=0, le=4)
    """How many places to show from each tenth of the activations above 0."""
    context: int = Field(24, ge=1)
    """How many tokens of a window to show."""
    controls: int = Field(20, ge=0)
    """How many random features the most common token is compared with; 0 for no verdict."""


class Scored(Part):
    """A token or a feature, and a number."""

    name: str
    value: float


class ShownFeature(Part):
    """One feature."""

    examples: UnitExamples
    """Where it is active."""
    promotes: list[Scored]
    """Tokens whose logits a unit of activation raises most, over the vocabulary's mean, if nothing in between
    answers."""
    suppresses: list[Scored]
    neighbours: list[Scored]
    """Features, active somewhere, whose directions have the greatest cosine with its own."""
    read_write_cosine: float
    """Cosine of what it reads, its encoder's row, with what it writes."""


class Shown(Result):
    """Features."""

    features: list[ShownFeature]
    source: str

    def table(self) -> "pandas.DataFrame":
        """One row a feature."""
        import pandas

        return pandas.DataFrame([
            {"feature": one.examples.site, "active": one.examples.active, "max": one.examples.high,
             "common token": one.examples.common_token, "share": one.examples.common_share,
             "promotes": " ".join(word.name for word in one.promotes[:5]),
             "nearest": one.neighbours[0].name if one.neighbours else "",
             "cosine": one.neighbours[0].value if one.neighbours else float("nan")}
            for one in self.features
        ])

    def chart(self) -> "altair.TopLevelMixin":
        """Histogram and top windows of each feature; tokens it promotes and suppresses; its neighbours."""
        from patchclamp.charts.features import shown_chart

        return shown_chart(self)

    def passages(self) -> list[Passage]:
        """The windows as text."""
        return [passage for one in self.features for passage in passages_of(one.examples)]


@method("sae.show", spec=ShowSpec, result=Shown)
def show_features(model: Model, spec: ShowSpec, progress: Progress) -> Outcome:
    """Show features of an autoencoder: the text that activates them, how often, the tokens they promote, neighbours.

    The verdict is about the first feature: do its top windows peak at one and the same token more than those of random
    features of the same autoencoder?
    """
    attached(model, spec.sae)
    index, whole = opened(model, spec.index)
    sites = [feature_site(model, whole, one) for one in spec.features]
    if len(set(sites)) < len(sites):
        raise SpecError("a feature is named twice; name it once")
    showing = Showing(spec.top, spec.tenth, spec.context, spec.controls, spec.seed)
    units, source, verdict = examined(model, sites, lambda wanted: index, showing, progress)
    table, autoencoder = Features(index), model.autoencoder(whole)
    shown = [_shown(model, one, site, table, autoencoder) for one, site in zip(units, sites, strict=True)]
    return Shown(features=shown, source=source), verdict


def feature_site(model: Model, whole: Site, name: str) -> Site:
    """The feature's site, by its number or as a site of the same autoencoder. SpecError, SiteError."""
    n_latents = model.autoencoder(whole).n_latents
    if name.isdecimal():
        if int(name) >= n_latents:
            raise SpecError(f"the autoencoder has features 0 to {n_latents - 1}; there is no feature {name}")
        return Site("feature", whole.layer, int(name), name=whole.name)
    site = model.named(Site.parse(name))
    if site.whole != whole or site.unit is None:
        raise SpecError(f"{name} is no feature of {whole}, which the index is of")
    return site


def _shown(model: Model, examples: UnitExamples, site: Site, table: Features, autoencoder: Autoencoder) -> ShownFeature:
    unit = site.unit or 0
    written = table.written(unit)

    def words(pairs: Sequence[tuple[int, float]]) -> list[Scored]:
        return [Scored(name=model.say(token), value=value) for token, value in pairs]

    reads, writes = autoencoder.W_enc[unit].float(), autoencoder.directions[unit].float()
    return ShownFeature(
        examples=examples, promotes=words(written.promoted), suppresses=words(written.suppressed),
        neighbours=[Scored(name=str(Site("feature", site.layer, other, name=site.name)), value=value)
                    for other, value in written.neighbours],
        read_write_cosine=float(torch.cosine_similarity(reads, writes, dim=0)),
    )
