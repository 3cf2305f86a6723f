"""Taking units away: what is put in the place of their activations.

Zero is itself an intervention: a neuron at zero may be as unusual as one at its largest. `mean` puts its mean over a
corpus, `resample` its value in another prompt of the file (Chan et al. 2022, "Causal scrubbing").
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from patchclamp.errors import SpecError
from patchclamp.evidence.choices import Choice
from patchclamp.forward import Edit, Model, Site
from patchclamp.forward.prepare import check_site
from patchclamp.tasks.read import read_corpus

How = Literal["zero", "mean", "resample"]
HOWS: tuple[How, ...] = get_args(How)
UNITS = ("neuron", "gate", "head")
CORPUS_TEXTS = 64


def corpus_texts(file: str | None) -> tuple[str, ...]:
    """The texts a mean is taken over; none for the neutral corpus, which the engine knows. FileError."""
    return tuple(read_corpus(file, CORPUS_TEXTS)) if file else ()


def check_unit(model: Model, site: Site) -> tuple[int, int]:
    """Layer and number of a single unit. SpecError if the site is none, SiteError if the model lacks it."""
    if site.point not in UNITS or site.unit is None or site.layer is None:
        raise SpecError(f"{site}: name single units, such as neuron.19.1044 or head.9.6")
    check_site(model.anatomy, site, model.name)
    return site.layer, site.unit


def check_units(model: Model, sites: Sequence[Site]) -> list[tuple[int, int]]:
    """Layers and numbers of single units of one kind, named once each. SpecError, SiteError."""
    units = [check_unit(model, site) for site in sites]
    points = {s.point for s in sites}
    if len(points) > 1:
        raise SpecError(f"the sites mix {' and '.join(sorted(points))}; a matched control needs one kind at a time")
    return units


@dataclass(frozen=True)
class Removal:
    """One way of taking units away from each of several prompts."""

    how: How
    choices: Sequence[Choice]
    texts: tuple[str, ...] = ()
    """For `mean`: the corpus; the neutral one if empty."""
    donors: Sequence[int] = ()
    """For `resample`: for each choice the one whose value is taken."""

    def edits(self, sites: Sequence[Site]) -> list[list[Edit]]:
        """For each choice the edits that take the units away."""
        if self.how == "zero":
            return [[Edit.zero(site) for site in sites]] * len(self.choices)
        if self.how == "mean":
            return [[Edit.mean(site, self.texts) for site in sites]] * len(self.choices)
        return [[Edit.swap(site, self.choices[donor].prompt) for site in sites] for donor in self.donors]


def removal(
    how: How, choices: Sequence[Choice], sites: Sequence[Site], texts: tuple[str, ...], seed: int
) -> Removal:
    """The removal, for `resample` with donors drawn. SpecError where a prompt has none."""
    return Removal(how, choices, texts, _donors(choices, sites, seed) if how == "resample" else ())


def _donors(choices: Sequence[Choice], sites: Sequence[Site], seed: int) -> list[int]:
    """For each prompt another one to take values from: of the same length, unless one position is asked for."""
    generator = np.random.default_rng(seed)
    single = all(s.positions.single for s in sites)
    out = []
    for choice in choices:
        others = [j for j, other in enumerate(choices)
                  if other.prompt != choice.prompt and (single or len(other.prompt) == len(choice.prompt))]
        if not others:
            raise SpecError(
                f"no other prompt has {len(choice.prompt)} tokens to resample from; name one position, as in "
                f"{sites[0].at('last')}, or leave resample out"
            )
        out.append(int(generator.choice(others)))
    return out
