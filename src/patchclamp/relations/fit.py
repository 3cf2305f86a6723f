"""Fit a relation's linear map and see, layer by layer, what it is worth on samples it was not fitted on.

The effective rank is the exponential of the entropy of W's singular values, taken as shares of their sum (Roy and
Vetterli 2007): how many directions of the subject the map uses.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import torch

from patchclamp.evidence.cli_hints import Positional
from patchclamp.evidence.method import Outcome, Part, Progress, Result, method
from patchclamp.forward import Model
from patchclamp.relations.fitting import fitted
from patchclamp.relations.readers import choose, readers
from patchclamp.relations.samples import SamplesSpec
from patchclamp.tasks.files import DataFile
from patchclamp.tasks.read import read_relation

if TYPE_CHECKING:
    import altair
    import pandas


class OneRelationSpec(SamplesSpec):
    """A question about one relation."""

    fits: DataFile | None = None
    """Where to keep the fitted map, and take it from if the same was fitted before."""


class FitSpec(OneRelationSpec):
    """Which relation to fit."""

    relation: Annotated[DataFile, Positional()]
    """A relation file; `example:relations/country-capital` is one that comes along."""


class FittedLayer(Part):
    """The map of one layer."""

    layer: int
    """-1 for the embeddings, then the block after which the subject is read."""
    validation: float
    """Share of validation samples on which its first choice is the model's, at this layer's best β."""
    beta: float
    norm: float
    """Frobenius norm of W."""
    effective_rank: float


class FitResult(Result):
    """A fitted relation."""

    name: str
    template: str
    asked: int
    known: int
    fitted: list[str]
    """Subjects of the samples it was fitted on."""
    validated: int
    layer: int
    """The layer that a reading would be taken at."""
    beta: float
    layers: list[FittedLayer]
    path: str | None
    """The folder in which the map is kept."""

    def table(self) -> pandas.DataFrame:
        """One row a layer."""
        import pandas

        return pandas.DataFrame([one.model_dump() for one in self.layers])

    def chart(self) -> altair.TopLevelMixin:
        """By layer how often the map is right on validation samples, and how many directions it uses."""
        from patchclamp.charts.relations import fit_chart

        return fit_chart(self)


@method("relations.fit", spec=FitSpec, result=FitResult)
def fit_relation(model: Model, spec: FitSpec, progress: Progress) -> Outcome:
    """Fit a relation's linear map at every layer: the mean Jacobian of the object's stream by the subject's.

    Nothing is claimed: `relations evaluate` tests the map on other samples, beside its baselines.
    """
    relation = read_relation(spec.relation)
    parted, made = fitted(model, relation, spec, Path(spec.relation).name, progress, spec.fits)
    lre, *_ = readers(made, parted.fit)
    chosen, by_layer, scores = choose(model, lre, parted.validation)
    right_LB = scores.right.mean(1).reshape(len(by_layer), -1)
    spectra_LD = torch.linalg.svdvals(made.weight)
    share_LD = spectra_LD / spectra_LD.sum(1, keepdim=True)
    ranks_L = torch.special.entr(share_LD).sum(1).exp()
    layers = [FittedLayer(layer=one.layer, beta=one.beta, norm=float(made.weight[i].norm()),
                          validation=float(right_LB[i, lre.betas.index(one.beta)]), effective_rank=float(ranks_L[i]))
              for i, one in enumerate(by_layer)]
    return FitResult(
        name=relation.name, template=parted.template, asked=parted.asked, known=parted.known,
        fitted=[one.sample.subject for one in parted.fit.facts], validated=len(parted.validation),
        layer=chosen.layer, beta=chosen.beta, layers=layers, path=made.path,
    ), None
