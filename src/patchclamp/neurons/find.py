"""Correlation: which neurons are active where a label holds, and which would seem so by chance."""

from typing import Annotated, Literal

from patchclamp.evidence.cli_hints import CommaList
from patchclamp.evidence.finding import FindSpec, FoundUnits, find_units
from patchclamp.evidence.method import Outcome, Progress, method
from patchclamp.forward import Model, Site
from patchclamp.forward.prepare import check_site


class FindNeuronsSpec(FindSpec):
    """Which prompts to tell apart, and at which neurons to look."""

    layers: Annotated[tuple[int, ...], CommaList()] = ()
    """Only these layers; all if left out."""
    point: Literal["neuron", "gate"] = "neuron"
    """Whole neurons, or their gates alone."""


@method("neurons.find", spec=FindNeuronsSpec, result=FoundUnits)
def find_neurons(model: Model, spec: FindNeuronsSpec, progress: Progress) -> Outcome:
    """Rank every neuron by how well its activation tells two sets of prompts apart, and check it on other prompts.

    The verdict asks whether the best neuron tells held-out prompts apart (AUROC) better than the best neuron of the
    same search on shuffled labels does. It says what a neuron goes with, not what it causes (`neurons ablate`).
    """
    layers = list(dict.fromkeys(spec.layers)) or list(range(model.n_layers))
    for layer in layers:
        check_site(model.anatomy, Site(spec.point, layer), model.name)
    return find_units(model, spec, [Site(spec.point, layer) for layer in layers], "neurons", progress)
