"""What edits depend on before they can be applied: corpus means, standard deviations, values of other runs."""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from patchclamp.errors import EditError
from patchclamp.forward.edit import Edit
from patchclamp.forward.readout import Readout
from patchclamp.forward.site import Site
from patchclamp.model.tokens import Prompt

NEUTRAL_TEXTS = 16
"""How many paragraphs of the neutral corpus means and deviations are taken over: about a thousand tokens."""
HELD = 64

Read = Callable[[list[tuple[Prompt, Readout]]], list[Tensor]]
"""Runs prompts unedited and returns one value for each."""


class Dependencies:
    """Values that edits need, measured once and kept for the model's lifetime (the last `HELD` of them)."""

    def __init__(self, read: Read) -> None:
        self._read = read
        self._corpus: OrderedDict[tuple[Site, tuple[str, ...]], Tensor] = OrderedDict()
        self._swaps: dict[tuple[Prompt, Site], Tensor] = {}

    def collect(self, edits: Iterable[Edit]) -> None:
        """Measure everything `edits` need, the swapped values of all prompts together."""
        wanted = {(e.source.prompt, e.source.site) for e in edits if e.source is not None}
        if not wanted:
            return  # corpus runs made while edits are bound come through here and must not drop their swaps
        pairs = list(wanted)
        values = self._read([(prompt, Readout.value(site)) for prompt, site in pairs])
        self._swaps = dict(zip(pairs, values, strict=True))

    def lookup(self, edit: Edit, tokens: Sequence[int]) -> Tensor | None:
        """The tensor that `edit` depends on, or None. EditError where a swapped value does not fit its place."""
        if edit.op == "mean":
            return self.corpus(edit.site, edit.texts).mean(0)
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
        values = self.corpus(site, ())
        if values.dim() < 2 or values.shape[-1] != len(direction):
            width = values.shape[-1] if values.dim() > 1 else 1
            raise EditError(f"the direction has width {len(direction)} and {site} has width {width}")
        norm = direction.norm()
        if not norm:
            raise EditError(f"add at {site}: the direction is all zeros; in units of deviations it points nowhere")
        return (values @ (direction / norm).to(values)).std()

    def corpus(self, site: Site, texts: Sequence[str]) -> Tensor:
        """Values at a site over texts, each text's first token left out: [tokens, …].

        The first token's residual stream is an outlier of up to 150 times the others' norm.
        """
        key = (site.at("all"), tuple(texts))
        if key not in self._corpus:
            from patchclamp.tasks.neutral import neutral_texts

            read = Readout.value(site.at("1:"))
            chosen = tuple(texts) or neutral_texts(NEUTRAL_TEXTS)
            self._corpus[key] = torch.cat([v.float() for v in self._read([(t, read) for t in chosen])])
            while len(self._corpus) > HELD:
                self._corpus.popitem(last=False)
        return self._corpus[key]
