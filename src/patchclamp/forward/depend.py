"""What edits depend on before they can be applied: corpus means, standard deviations, values of other runs."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from patchclamp.errors import EditError
from patchclamp.forward.edit import Edit
from patchclamp.forward.readout import Readout
from patchclamp.forward.site import Site
from patchclamp.model.tokens import Prompt
from patchclamp.tasks.neutral import neutral_texts

NEUTRAL_TEXTS = 16
"""How many paragraphs of the neutral corpus means and deviations are taken over: about a thousand tokens."""
AT_ONCE = 16
"""Texts whose values are held in memory together."""
SITES_AT_ONCE = 16
"""Sites whose deviations are measured in one pass."""

Read = Callable[[list[tuple[Prompt, list[Readout]]]], list[list[Tensor]]]
"""Runs prompts unedited and returns each one's values."""
Encode = Callable[[str], tuple[int, ...]]
"""A text as token ids, cut to the model's context."""


class Dependencies:
    """Values that edits need. Means and deviations are measured once and kept for the model's lifetime."""

    def __init__(self, read: Read, encode: Encode) -> None:
        self._read = read
        self._encode = encode
        self._means: dict[tuple[Site, tuple[str, ...]], Tensor] = {}
        self._samples: dict[Site, Tensor] = {}
        self._swaps: dict[tuple[Prompt, Site], Tensor] = {}

    def collect(self, edits: Iterable[Edit]) -> None:
        """Measure everything `edits` need: swapped values of all prompts together, means and deviations of all sites
        together."""
        edits = list(edits)
        self.sample(edit.site for edit in edits if edit.op == "add" and edit.unit == "sd")
        swaps: set[tuple[Prompt, Site]] = set()
        means: dict[tuple[str, ...], set[Site]] = defaultdict(set)
        for edit in edits:
            if edit.source is not None:
                swaps.add((edit.source.prompt, edit.source.site))
            elif edit.op == "mean" and (edit.site.whole, edit.texts) not in self._means:
                means[edit.texts].add(edit.site.whole)
        if swaps:  # a run on the corpus comes through here as well and must not drop the swapped values
            pairs = list(swaps)
            values = self._read([(prompt, [Readout.value(site)]) for prompt, site in pairs])
            self._swaps = {pair: value[0] for pair, value in zip(pairs, values, strict=True)}
        for texts, sites in means.items():
            self._measure_means(sorted(sites, key=str), texts)

    def lookup(self, edit: Edit, tokens: Sequence[int]) -> Tensor | None:
        """The tensor that `edit` depends on, or None. EditError where a swapped value does not fit its place."""
        if edit.op == "mean":
            mean = self._means[edit.site.whole, edit.texts]
            return mean if edit.site.unit is None else mean[edit.site.unit]
        if edit.op == "add" and edit.unit == "sd":
            assert edit.direction is not None
            return self.projection_sd(edit.site, edit.direction.tensor)
        if edit.op != "swap":
            return None
        assert edit.source is not None
        value = self._swaps[edit.source.prompt, edit.source.site]
        if edit.source.site.positions.single or len(value) == len(tokens):
            return value
        raise EditError(
            f"swap at {edit.site}: {len(tokens)} tokens are edited and {edit.source.site} of the other prompt has "
            f"{len(value)}; give both the same number of tokens, or one source token"
        )

    def projection_sd(self, site: Site, direction: Tensor) -> Tensor:
        """Standard deviation over the neutral corpus of x·v̂ at a site."""
        values = self._sample(site)
        values = values if site.unit is None else values[:, site.unit]
        if values.dim() < 2 or values.shape[-1] != len(direction):
            width = values.shape[-1] if values.dim() > 1 else 1
            raise EditError(f"the direction has width {len(direction)} and {site} has width {width}")
        norm = direction.norm()
        if not norm:
            raise EditError(f"add at {site}: the direction is all zeros; in units of deviations it points nowhere")
        return (values @ (direction / norm).to(values)).std()

    def value_sd(self, site: Site) -> Tensor:
        """Standard deviation of the value itself over the neutral corpus, of each number at the site."""
        spread = self._sample(site).std(0)
        return spread if site.unit is None else spread[site.unit]

    def sample(self, sites: Iterable[Site]) -> None:
        """Read the neutral corpus at sites whose deviations are not known yet, several in one pass."""
        wanted = sorted({site.whole for site in sites} - set(self._samples), key=str)
        for first in range(0, len(wanted), SITES_AT_ONCE):
            some = wanted[first : first + SITES_AT_ONCE]
            texts = list(self._corpus(some, ()))
            for i, site in enumerate(some):
                self._samples[site] = torch.cat([values[i] for values in texts])

    def _sample(self, site: Site) -> Tensor:
        self.sample([site])
        return self._samples[site.whole]

    def _measure_means(self, sites: list[Site], texts: tuple[str, ...]) -> None:
        sums: dict[Site, Tensor] = {}
        count = 0
        for values in self._corpus(sites, texts):
            count += len(values[0])
            for site, value in zip(sites, values, strict=True):
                sums[site] = sums.get(site, 0) + value.double().sum(0)
        for site, total in sums.items():
            self._means[site, texts] = (total / count).float()

    def _corpus(self, sites: list[Site], texts: Sequence[str]) -> Iterable[list[Tensor]]:
        """Text by text the values at sites, the first token left out: its residual stream is an outlier of up to
        150 times the others' norm. Texts of a single token are passed over."""
        reads = [Readout.value(site.at("1:")) for site in sites]
        encoded = [ids for text in texts or neutral_texts(NEUTRAL_TEXTS) if len(ids := self._encode(text)) > 1]
        if not encoded:
            raise EditError("the corpus has no text of two tokens or more, so there is nothing to take a mean over")
        for first in range(0, len(encoded), AT_ONCE):
            for values in self._read([(ids, reads) for ids in encoded[first : first + AT_ONCE]]):
                yield [value.float() for value in values]
