"""Gradients with norms held still: what a stream is divided by counts as a constant.

A norm divides by the size of its input, so that along the stream's own direction its gradient is zero, and two parts
that cancel seem to matter less than each does. Held still, a norm is linear, as in the relevance rules for transformers
(Ali et al. 2022, arXiv 2202.07304, section 3.2; Jafari et al. 2025, "RelP", arXiv 2508.21258).
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from patchclamp.circuits.forwards import with_forwards


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a LayerNorm or RMSNorm, of torch or of a model's own kind."""
    return isinstance(module, (nn.LayerNorm, nn.RMSNorm)) or type(module).__name__.endswith("Norm")


def frozen_norms(model: nn.Module) -> AbstractContextManager[None]:
    """For the time of a pass and its gradient: every norm gives what it gives, and its divisor has no gradient."""
    norms = [module for module in model.modules() if is_norm(module)]
    return with_forwards(norms, lambda norm: partial(_held, norm, norm.forward))


def _held(norm: nn.Module, forward: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    y = forward(x, *args, **kwargs)
    if not x.requires_grad:
        return y
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    if isinstance(norm, nn.LayerNorm) or "LayerNorm" in type(norm).__name__:
        wide = wide - wide.mean(-1, keepdim=True)
    eps = next((e for name in ("eps", "variance_epsilon") if (e := getattr(norm, name, None)) is not None), 1e-6)
    size = (wide.pow(2).mean(-1, keepdim=True) + eps).sqrt()
    bias = getattr(norm, "bias", None)
    shift = bias if isinstance(bias, Tensor) else torch.zeros((), dtype=y.dtype, device=y.device)
    return (y - shift) * (size / size.detach()).to(y.dtype) + shift
