"""Attention of a prompt's last tokens on keys and values that stand still: what a Jacobian's backward sweep needs.

The model's own attention joins the keys before and those of its tokens into one tensor, and a gradient with respect to
all of them would be computed, hundreds of times, for tokens whose keys do not change. Here the two stay apart, under
transformers' attention interface, for the time of one run. An architecture that computes something else is found out by
its output (`jacobian.py` compares).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from patchclamp.forward.attention import implementation
from patchclamp.forward.batch import KeyValues
from patchclamp.model.anatomy import Anatomy, part

NAME = "patchclamp_suffix"
_before: ContextVar[dict[nn.Module, tuple[Tensor, Tensor]]] = ContextVar("keys and values before")


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float | None = None,
    softcap: float | None = None, **rest: Any,
) -> tuple[Tensor, None]:
    """Scaled dot-product attention of queries [B,H,T,E] on the keys before [B,K,P,E] and their own [B,K,T,E]."""
    keys_BKPE, values_BKPE = _before.get()[module]
    n_rows, n_heads, n_tokens, width = query.shape
    grouped = query.reshape(n_rows, key.shape[1], -1, width)
    scores = torch.cat([grouped @ keys_BKPE.mT, grouped @ key.mT], -1) * (width**-0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    scores_BHTS = scores.reshape(n_rows, n_heads, n_tokens, -1) + mask
    weights = scores_BHTS.softmax(-1, dtype=torch.promote_types(query.dtype, torch.float32)).to(query.dtype)
    weights = weights.reshape(n_rows, key.shape[1], -1, weights.shape[-1])
    n_before = keys_BKPE.shape[2]
    out = weights[..., :n_before] @ values_BKPE + weights[..., n_before:] @ value
    return out.reshape(n_rows, n_heads, n_tokens, -1).transpose(1, 2), None


@cache
def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    AttentionInterface.register(NAME, _attend)
    AttentionMaskInterface.register(NAME, eager_mask)


def standing(prefix: KeyValues) -> Any:
    """A cache that has the prefix's length and hands a block its new keys and values alone."""
    from transformers import DynamicCache

    class Standing(DynamicCache):
        def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            return key_states, value_states

    return Standing(prefix)


@contextmanager
def on_prefix(anatomy: Anatomy, prefix: KeyValues) -> Iterator[None]:
    """Attend as above; `standing(prefix)` has to be the run's cache."""
    _register()
    modules = [part(block, anatomy.family.attention) for block in anatomy.blocks]
    token = _before.set(dict(zip(modules, prefix, strict=True)))
    try:
        with implementation(anatomy, NAME):
            yield
    finally:
        _before.reset(token)
