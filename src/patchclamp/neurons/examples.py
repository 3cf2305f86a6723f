"""Examples of a neuron, or of a feature: the text in which it is most and least active, and what lies between.

The windows with the greatest activations show only the extreme end of a neuron (Bolukbasi et al. 2021, arXiv
2104.07143), so places drawn from each tenth of the activations above 0 stand beside them, and the whole distribution.
Where the MLP has a gate both signs occur, and the least activations are examples of their own.

The control asks what the top windows have in common at the simplest level, one token: the share of them whose peak is
at their most common token, beside the same share of random neurons of the same block (features of the same
autoencoder), over the same corpus.
"""

from typing import TYPE_CHECKING, Annotated

import numpy as np
from pydantic import Field

from patchclamp.corpus.found import KEPT, TextSpec, check_unit, read_text
from patchclamp.corpus.shown import UnitExamples, as_shown, common_token, others_of, passages_of, shown_windows
from patchclamp.errors import SpecError
from patchclamp.evidence.bootstrap import control_range
from patchclamp.evidence.cli_hints import Positional
from patchclamp.evidence.method import Outcome, Progress, Result, method
from patchclamp.evidence.passage import Passage
from patchclamp.evidence.verdict import NO_INTERVAL, Verdict, judge
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
    asked = [check_unit(model, site) for site in spec.sites]
    for site in spec.sites:
        if spec.sites.count(site) > 1:
            raise SpecError(f"{site} is named twice; name it once")
    controls = {whole: others_of(model, whole, asked, spec.controls, spec.seed) for whole, _ in asked}
    wanted = {whole: [unit for other, unit in asked if other == whole] + controls[whole] for whole, _ in asked}
    found = read_text(model, spec, wanted, max(KEPT, spec.top), progress)
    units = {(whole, unit): found.units(whole, [unit])[0] for whole, unit in asked}
    windows = shown_windows(model, found, units, spec.top, spec.tenth, spec.context, progress)
    neurons, verdict = [], None
    for number, (site, (whole, unit)) in enumerate(zip(spec.sites, asked, strict=True)):
        own = units[whole, unit]
        token, hits = common_token(found, own)
        others = [float(np.mean(common_token(found, other)[1])) for other in found.units(whole, controls[whole])
                  if not other.constant]
        random_share = control_range(others, share=True) if len(others) > 1 else NO_INTERVAL
        neurons.append(as_shown(model, site, own, windows[whole, unit], token, hits, random_share))
        if number == 0 and others and not own.constant:
            verdict = _verdict(site, neurons[0], hits, others, spec.seed)
    return Examples(neurons=neurons, source=found.where), verdict


def _verdict(site: Site, neuron: UnitExamples, hits: list[float], others: list[float], seed: int) -> Verdict:
    return judge(
        hits, np.array(others), direction="greater", against="distribution", share=True, seed=seed,
        claim=f"the windows in which {site} is most active peak at one token, {neuron.common_token!r}, more than those "
              f"of random {site.point}s of block {site.layer} do at theirs (share of {len(hits)} windows)",
    )

