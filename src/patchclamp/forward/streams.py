"""Residual streams at every layer: read at one token of each prompt, and turned into logits.

Shapes: L layers (n blocks and the embeddings before them), D model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from patchclamp.errors import SpecError
from patchclamp.forward.execute import Track
from patchclamp.forward.plan import Plan
from patchclamp.forward.prepare import token_indices
from patchclamp.forward.readout import Readout
from patchclamp.forward.site import Positions
from patchclamp.model.tokens import Encoded

if TYPE_CHECKING:
    from patchclamp.forward.model import Model

ROWS_AT_ONCE = 128
"""Rows unembedded at once. Fewer, and reading the unembedding's weights costs more than the arithmetic; more only need
memory (SmolLM2's logits 25 MB, Gemma's 134)."""

Decode = Callable[[Tensor], Tensor]
"""From residual streams [...,L,D], layer by layer, to logits [...,L,V]: what makes one lens differ from another."""


def layer_sites(model: Model, position: str | int) -> list[str]:
    """The residual stream at every layer, from the embeddings (-1) to the last block."""
    return [f"embed@{position}", *(f"resid.{layer}@{position}" for layer in range(model.n_layers))]


def streams(model: Model, prompts: Sequence[Any], position: str | int | Sequence[int] = "last",
            track: Track | None = None) -> list[Tensor]:
    """The residual stream of each prompt at one token, at every layer: [L,D] each, L = blocks + 1.

    `position` is one for all prompts, or an index for each. Raises SpecError if it is several tokens.
    """
    each = [position] * len(prompts) if isinstance(position, str | int) else position
    for one in dict.fromkeys(each):
        if not Positions.parse(str(one)).single:
            raise SpecError(f"position {one!r} is several tokens; the lens reads one: last, an index or a quoted word")
    plan = Plan.of([(prompt, (), [Readout.value(site) for site in layer_sites(model, one)])
                    for prompt, one in zip(prompts, each, strict=True)])
    return [torch.stack(row) for row in model.execute(plan, track=track)]


@torch.no_grad()
def decoded(model: Model, places: Iterable[Tensor], decode: Decode | None = None) -> Iterator[Tensor]:
    """Logits [L,V] of residual streams [L,D], place by place; as many places at once as memory allows.

    Without `decode` this is the logit lens: the model's own final norm, unembedding, scale and softcap.
    """
    held: list[Tensor] = []
    decode_all = decode or model.anatomy.unembed
    for place_LD in places:
        held.append(place_LD)
        if (len(held) + 1) * len(place_LD) > ROWS_AT_ONCE:
            yield from decode_all(torch.stack(held))
            held = []
    if held:
        yield from decode_all(torch.stack(held))


def token_at(encoded: Encoded, position: str | int) -> str:
    """What the token says that a position names."""
    return encoded.pieces[token_indices(Positions.parse(str(position)), encoded, f"@{position}")[0]]
