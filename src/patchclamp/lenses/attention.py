"""Attention patterns: which token each head reads from which, and how much that adds.

    weight α_ij            token i's attention to token j, a row sums to 1
    norm   ‖α_ij v_j W_O‖  how long the vector is that head and token j put into token i's output

A large weight on a short value vector moves nothing; the norm shows it (Kobayashi et al. 2020, arXiv 2004.10102,
section 3). v_j is the value vector of the head's own key/value head, W_O the head's rows of the output projection.
The norm is that of the projection's output: before the post-norm or multiplier that some families have on the way
into the residual stream. Shape suffixes: H heads, K key/value heads, T reading tokens, S tokens read from, E head
width, D model width.
"""

import math
from typing import TYPE_CHECKING, Annotated

import torch
from pydantic import BaseModel
from torch import Tensor

from patchclamp.errors import SpecError, UnsupportedModel
from patchclamp.evidence.cli_hints import CommaList, Positional
from patchclamp.evidence.method import Outcome, Progress, Result, Spec, method
from patchclamp.forward import Model, Plan, Readout, Site
from patchclamp.forward.frozen import TOLERANCE
from patchclamp.forward.prepare import check_site
from patchclamp.forward.site import ALL
from patchclamp.model.anatomy import Anatomy
from patchclamp.model.tokens import Encoded, Prompt

if TYPE_CHECKING:
    import altair
    import pandas

MOST_NUMBERS = 2_000_000
"""Weights and norms in one record: 40 MB of JSON."""


class AttentionSpec(Spec):
    """Whose attention to look at: every head, if neither `layers` nor `heads` names any."""

    prompt: Annotated[Prompt, Positional()]
    """The text the model reads, two tokens or more."""
    layers: Annotated[tuple[int, ...], CommaList()] = ()
    """Blocks of which all heads are shown, e.g. 0,5."""
    heads: Annotated[tuple[Site, ...], CommaList()] = ()
    """Single heads as sites, e.g. pattern.5.1,pattern.9.6; shown besides those of `layers`."""


class Head(BaseModel):
    """One head. Shares are of a reading token's attention, means over all tokens but the first, which can only read
    itself; the second token's previous token is the first, so shares may overlap."""

    layer: int
    head: int
    entropy: float
    """Of the weights, in nats: 0 if all attention is on one token."""
    first: float
    """Share on the first token, where many heads rest."""
    previous: float
    """Share on the token just before."""
    itself: float
    """Share on the reading token itself."""
    induction: float | None
    """Share on tokens that follow an earlier occurrence of the reading token (Olsson et al. 2022, arXiv 2209.11895),
    over the tokens that have one; None if no token of the prompt is repeated."""
    pattern: list[list[float]]
    """Weights [T, S]."""
    norms: list[list[float]]
    """Value-weighted norms [T, S], in units of the residual stream."""


class Attention(Result):
    """Patterns of the heads asked for."""

    tokens: list[str]
    heads: list[Head]

    def table(self) -> "pandas.DataFrame":
        """One row a head: entropy, and the shares of attention on kinds of tokens."""
        import pandas

        return pandas.DataFrame([h.model_dump(exclude={"pattern", "norms"}) for h in self.heads])

    def chart(self) -> "altair.TopLevelMixin":
        """A few heads as heatmaps with the tokens, many as a grid of blocks × heads; weights and norms."""
        from patchclamp.charts.attention import attention_chart

        return attention_chart(self)


@method("lens.attention", spec=AttentionSpec, result=Attention)
def attention(model: Model, spec: AttentionSpec, progress: Progress) -> Outcome:
    """Show each head's attention from token to token, as weights and as the norms of what they move.

    There is no verdict: nothing is claimed.
    """
    encoded = model.encode(spec.prompt)
    chosen = _chosen(model, spec)
    _refuse_too_much(encoded, sum(map(len, chosen.values())))
    reads = [Readout.value(f"{point}.{layer}") for layer in chosen for point in ("pattern", "v", "head")]
    values = iter(model.execute(Plan.of([(spec.prompt, (), reads)]))[0])
    heads = []
    for layer, units in chosen.items():
        pattern_HTS, v_TKE, head_THE = (wide(next(values)) for _ in range(3))
        _prove(model, layer, pattern_HTS, v_TKE, head_THE)
        norms_HTS = pattern_HTS * value_norms(model.anatomy, layer, v_TKE)[:, None]
        heads += [_head(layer, unit, pattern_HTS[unit], norms_HTS[unit], encoded) for unit in units]
    return Attention(tokens=list(encoded.pieces), heads=heads), None


def _chosen(model: Model, spec: AttentionSpec) -> dict[int, list[int]]:
    """The heads asked for, by block, in order."""
    pairs = {(layer, head) for layer in spec.layers for head in range(model.n_heads)}
    for layer in spec.layers:
        if not 0 <= layer < model.n_layers:
            raise SpecError(f"{model.name} has {model.n_layers} blocks (0 to {model.n_layers - 1}); layers names "
                            f"{layer}")
    for site in spec.heads:
        if site.point != "pattern" or site.layer is None or site.unit is None or site.positions != ALL:
            raise SpecError(f"heads: {site} is not one head; write pattern.LAYER.HEAD without positions, e.g. "
                            "pattern.5.1 (a whole block is --layers 5)")
        check_site(model.anatomy, site, model.name)
        pairs.add((site.layer, site.unit))
    if not pairs:
        pairs = {(layer, head) for layer in range(model.n_layers) for head in range(model.n_heads)}
    chosen: dict[int, list[int]] = {}
    for layer, head in sorted(pairs):
        chosen.setdefault(layer, []).append(head)
    return chosen


def _refuse_too_much(encoded: Encoded, n_heads: int) -> None:
    n = len(encoded)
    if n < 2:
        raise SpecError("the prompt is one token, which can only attend to itself; give two tokens or more")
    numbers, fits = 2 * n_heads * n * n, MOST_NUMBERS // (2 * n * n)
    if numbers > MOST_NUMBERS:
        remedy = f"name at most {fits} heads (with layers or heads), or shorten the prompt" if fits else (
            f"shorten the prompt to {math.isqrt(MOST_NUMBERS // 2)} tokens")
        raise SpecError(f"the weights and norms of {n_heads} heads on {n} tokens are {numbers:,} numbers, and a record "
                        f"holds {MOST_NUMBERS:,}; {remedy}")


def wide(x: Tensor) -> Tensor:
    """Half precision as float32; the rest as it is; on the CPU."""
    return x.to("cpu", torch.promote_types(x.dtype, torch.float32))


def value_norms(anatomy: Anatomy, layer: int, v_TKE: Tensor) -> Tensor:
    """‖v_j W_O‖ for every head and token read from, [H, S]; heads that share a key/value head share its v."""
    w_HED = wide(anatomy.head_weights(layer).detach())
    v_HTE = _by_head(v_TKE, anatomy.n_heads)
    return torch.stack([(v_TE @ w_ED).norm(dim=-1) for v_TE, w_ED in zip(v_HTE, w_HED, strict=True)])


def _by_head(v_TKE: Tensor, n_heads: int) -> Tensor:
    """Each head's value vectors, [H, T, E]: consecutive heads share a key/value head."""
    return v_TKE.transpose(0, 1).repeat_interleave(n_heads // v_TKE.shape[1], dim=0)


def _prove(model: Model, layer: int, pattern_HTS: Tensor, v_TKE: Tensor, head_THE: Tensor) -> None:
    """Weights times values must be the heads' own outputs; else heads and value vectors are wrongly matched."""
    error = (pattern_HTS @ _by_head(v_TKE, model.n_heads) - head_THE.transpose(0, 1)).abs().max()
    limit = TOLERANCE.get(model.dtype, 2e-5)
    if not error <= limit * head_THE.abs().max():
        raise UnsupportedModel(
            f"block {layer}: attention weights times values differ from the heads' outputs by {float(error):.1e} "
            f"(tolerance {limit:.0e} of {float(head_THE.abs().max()):.1e}), so a {model.family} model attends in a way "
            "that norms of value vectors do not describe; capture pattern sites with `forward capture` instead"
        )


def _head(layer: int, unit: int, pattern_TS: Tensor, norms_TS: Tensor, encoded: Encoded) -> Head:
    later_TS = pattern_TS[1:]
    return Head(
        layer=layer, head=unit,
        entropy=float(torch.special.entr(later_TS).sum(-1).mean()),
        first=float(later_TS[:, 0].mean()),
        previous=float(pattern_TS.diagonal(-1).mean()),
        itself=float(pattern_TS.diagonal()[1:].mean()),
        induction=_induction(pattern_TS, encoded.ids),
        pattern=pattern_TS.tolist(), norms=norms_TS.tolist(),
    )


def _induction(pattern_TS: Tensor, ids: tuple[int, ...]) -> float | None:
    """Mean share on the tokens between earlier occurrences of the reading token and itself that follow one."""
    shares = []
    for reader, token in enumerate(ids):
        after = [j + 1 for j in range(reader - 1) if ids[j] == token]
        if after:
            shares.append(float(pattern_TS[reader, after].sum()))
    return sum(shares) / len(shares) if shares else None
