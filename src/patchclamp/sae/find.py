"""Which feature stands for a concept: those active on texts with a label and not on others (`evidence/finding.py`).

With enough directions a dictionary has one for "golden gate" or "an error in code"; whether this one has is asked of
texts it was not found with. Templeton et al. 2024, "Scaling Monosemanticity".
"""

from typing import Annotated, Literal

from pydantic import Field

from patchclamp.evidence.cli_hints import CommaList
from patchclamp.evidence.finding import FindSpec, FoundUnits, find_units
from patchclamp.evidence.method import Outcome, Progress, method
from patchclamp.forward import Model
from patchclamp.sae.attached import attached
from patchclamp.tasks.files import DataFile


class FindFeaturesSpec(FindSpec):
    """Which texts to tell apart, and with which autoencoder."""

    sae: DataFile | None = None
    """The autoencoder's folder; not needed if one is attached to the model."""
    positions: Annotated[tuple[str, ...], CommaList()] = Field(("1:",), min_length=1)
    """Tokens whose activation counts: a slice, last, an index, all. Of several the best, on the finding half."""
    pool: Literal["mean", "max"] = "max"
    """What counts of several tokens."""


@method("sae.find", spec=FindFeaturesSpec, result=FoundUnits)
def find_features(model: Model, spec: FindFeaturesSpec, progress: Progress) -> Outcome:
    """Rank an autoencoder's features by how well they tell two sets of texts apart, and check the best on other texts.

    The verdict asks whether the best feature tells held-out texts apart (AUROC) better than the best of the same search
    on shuffled labels does. It says what a feature goes with; `sae steer` shows what it causes.
    """
    return find_units(model, spec, [attached(model, spec.sae)], "features", progress)
