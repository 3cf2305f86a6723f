"""Attention weights: seen and edited through transformers' own attention interface, for the time of one run."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from patchclamp.errors import EditError
from patchclamp.model.anatomy import Anatomy

if TYPE_CHECKING:
    from patchclamp.forward.prepare import ReadyEdit

NAME = "patchclamp_eager"
Changes = dict[nn.Module, Callable[[Tensor], None]]
_changes: ContextVar[Changes | None] = ContextVar("attention changes", default=None)


def _attend(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any) -> Any:
    """The module's own eager attention; where its weights are edited, their product with the values again."""
    eager = sys.modules[type(module).__module__].eager_attention_forward
    out, weights = eager(module, query, key, value, mask, **kwargs)
    change = (_changes.get() or {}).get(module)
    if change is None:
        return out, weights
    weights = weights.clone()
    change(weights)
    groups = query.shape[1] // value.shape[1]
    spread = value.repeat_interleave(groups, dim=1) if groups > 1 else value
    return torch.matmul(weights, spread).transpose(1, 2).contiguous(), weights


@cache
def _register() -> None:
    """Make the attention above known to transformers, with the masks of its eager attention."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    AttentionInterface.register(NAME, _attend)
    AttentionMaskInterface.register(NAME, eager_mask)


@contextmanager
def attention_weights(anatomy: Anatomy, needed: bool, changes: Changes) -> Iterator[None]:
    """Compute attention weights explicitly for one run, with `changes` made to them; no-op unless `needed`.

    Raises EditError where changed weights would not mean what an edit says.
    """
    if not needed:
        yield
        return
    if changes and anatomy.pattern_fault:
        raise EditError(f"the pattern of {type(anatomy.hf).__name__} can be read but not edited: "
                        f"{anatomy.pattern_fault}; edit head instead")
    _register()
    token = _changes.set(changes)
    try:
        with implementation(anatomy, NAME if anatomy.family.common_attention else "eager"):
            yield
    finally:
        _changes.reset(token)


@contextmanager
def implementation(anatomy: Anatomy, name: str) -> Iterator[None]:
    """Another of transformers' attention functions for one run."""
    config = anatomy.config
    before = config._attn_implementation
    config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = before


def change_weights(weights_HTS: Tensor, edit: ReadyEdit, columns: slice | list[int], shift: int) -> None:
    """Apply an edit to one row's attention weights, in place, at the query columns given. `shift`: the column of
    the row's first token among the keys; keys to the left of column 0 are no longer attended."""
    kept = [k + shift for k in edit.keys or [] if k + shift >= 0]
    keys = torch.tensor(kept, dtype=torch.long, device=weights_HTS.device)
    _, n_queries, n_keys = weights_HTS.shape
    queries = torch.arange(n_queries, device=weights_HTS.device)[columns] + n_keys - n_queries
    is_past = keys <= queries[:, None]  # a token attends to none after it, whatever is set
    for head in range(len(weights_HTS)) if edit.site.unit is None else [edit.site.unit]:
        own_TS = weights_HTS[head]
        chosen = own_TS[columns].clone()
        chosen[:, keys] = torch.where(is_past, edit.change(chosen[:, keys]), chosen[:, keys])
        if edit.edit.renormalize:
            left = chosen.sum(-1, keepdim=True)
            if not bool((left > 0).all()):
                raise EditError(f"{edit.edit.op} at {edit.site}: with {edit.edit.keys} blocked some token has nothing "
                                f"left to attend to; block fewer tokens, or zero head.{edit.site.layer} instead")
            chosen = chosen / left
        own_TS[columns] = chosen
    edit.fired = True
