"""Examples of a neuron, or of a feature: the text in which it is most and least active, and what lies between.

The windows with the greatest activations show only the extreme end of a neuron (Bolukbasi et al. 2021, arXiv
2104.07143), so places drawn from each tenth of the activations above 0 stand beside them, and the whole distribution.
Where the MLP has a gate both signs occur, and the least activations are examples of their own.

The control asks what the top windows have in common at the simplest level, one token: the share of them whose peak is
at their most common token, beside the same share of random neurons of the same block (features of the same
autoencoder), over the same corpus.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from patchclamp.corpus.found import KEPT, Found, TextSpec, read_text
from patchclamp.corpus.shown import Showing, UnitExamples, examined, passages_of
from patchclamp.errors import SpecError
from patchclamp.evidence.cli_hints import Positional
from patchclamp.evidence.method import Outcome, Progress, Result, method
from patchclamp.evidence.passage import Passage
from patchclamp.forward import Model, Site

if TYPE_CHECKING:
    import altair
    import pandas

class ExamplesSpec(TextSpec):
    """Which neurons, and where to look."""

    sites: Annotated[tuple[Site, ...], Positional()] = Field(min_length=1)
    """Neurons or features, e.g. neuron.19.1044 or feature.15.88."""
    top: int = Field(10, ge=1, le=200)
    """How many windows to show for each sign; no more than the index has."""
    tenth: int = Field(1, ge=0, le=4)
    """How many places to show from each tenth of the activations above 0."""
    context: int = Field(24, ge=1)
    """How many tokens of a window to show."""
    controls: int = Field(20, ge=0)
    """How many random ones of the same block the most common token is compared with; 0 for no verdict."""


class Examples(Result):
    """Examples of each neuron."""

    neurons: list[UnitExamples]
    source: str
    """The index or the corpus."""

    def table(self) -> "pandas.DataFrame":
        """One row a neuron: its statistics. The windows are in `passages`, and in the JSON."""
        import pandas

        return pandas.DataFrame([
            {"site": n.site, "tokens": n.tokens, "mean": n.mean, "sd": n.sd, "active": n.active, "min": n.low,
             **{f"q{name}": value for name, value in n.quantiles.items()}, "max": n.high,
             "common token": n.common_token, "share": n.common_share, "random": n.random_share.mean}
            for n in self.neurons
        ])

    def chart(self) -> "altair.TopLevelMixin":
        """Histogram and top windows of each neuron, tokens coloured by activation."""
        from patchclamp.charts.examples import examples_chart

        return examples_chart(self)

    def passages(self) -> list[Passage]:
        """The windows as text."""
        return [passage for neuron in self.neurons for passage in passages_of(neuron)]


@method("neurons.examples", spec=ExamplesSpec, result=Examples)
def examples(model: Model, spec: ExamplesSpec, progress: Progress) -> Outcome:
    """Show the text in which neurons are most and least active, from an index or by reading a corpus for them.

    The verdict is about the first neuron: do its top windows peak at one and the same token more than those of random
    neurons of its block?
    """
    for site in spec.sites:
        if spec.sites.count(site) > 1:
            raise SpecError(f"{site} is named twice; name it once")

    def read(wanted: Mapping[Site, Sequence[int]]) -> Found:
        return read_text(model, spec, wanted, max(KEPT, spec.top), progress)

    show = Showing(spec.top, spec.tenth, spec.context, spec.controls, spec.seed)
    neurons, source, verdict = examined(model, spec.sites, read, show, progress)
    return Examples(neurons=neurons, source=source), verdict
