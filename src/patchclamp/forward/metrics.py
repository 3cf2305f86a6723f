"""Numbers read off logits: the measures every plan, method and verdict is built from.

Pure functions of tensors, without a model. Shape suffixes: B rows (any leading shape will do), T tokens,
V vocabulary. Logarithms are natural, so everything information-theoretic is in nats.

Half-precision logits are widened to float32 before any arithmetic; `kl_divergence` works in float64, because
a small divergence is the difference of nearly equal numbers. All but `rank`, `first_choice` and `flips` are
differentiable in the logits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from patchclamp.errors import InputError, RunError

Tokens = Tensor | int
"""Token ids with the logits' leading shape, or one id for all rows."""


def logit_difference(logits_BV: Tensor, answer_B: Tokens, distractor_B: Tokens) -> Tensor:
    """How much higher the answer's logit is than the distractor's, [B], in nats of log-odds between the two.

    `logit[answer] - logit[distractor]` equals `log p[answer] - log p[distractor]`: the normaliser cancels
    (Wang et al. 2022, "Interpretability in the Wild", arXiv:2211.00593, section 2.1).
    Raises InputError for ids outside the vocabulary or of the wrong shape.
    """
    return _pick(_widen(logits_BV), answer_B) - _pick(_widen(logits_BV), distractor_B)


def log_probability(logits_BV: Tensor, token_B: Tokens) -> Tensor:
    """log softmax(logits)[token], [B], in nats (0 is certainty). Raises InputError as `logit_difference`."""
    return _pick(torch.log_softmax(_widen(logits_BV), dim=-1), token_B)


def probability(logits_BV: Tensor, token_B: Tokens) -> Tensor:
    """softmax(logits)[token], [B], from 0 to 1. Raises InputError as `logit_difference`."""
    return log_probability(logits_BV, token_B).exp()


def entropy(logits_BV: Tensor) -> Tensor:
    """-Σ p log p of the softmax, [B], in nats: 0 for a certain choice, log V for a uniform one.

    A logit of -inf has probability 0 and adds nothing.
    """
    log_p_BV = torch.log_softmax(_widen(logits_BV), dim=-1)
    finite_BV = log_p_BV.masked_fill(log_p_BV == -torch.inf, 0.0)
    return -(log_p_BV.exp() * finite_BV).sum(dim=-1)


def kl_divergence(p_logits_BV: Tensor, q_logits_BV: Tensor) -> Tensor:
    """KL(p‖q) = Σ p (log p - log q), [B], in nats and float64; p is usually the clean run, q the edited one.

    At least 0, and 0 exactly for equal logits; +inf where q rules out (logit -inf) what p allows. Two logits
    that differ by a constant are the same distribution. Devices without float64 (mps) use float32.
    Raises InputError when the shapes differ.
    """
    if p_logits_BV.shape != q_logits_BV.shape:
        raise InputError(
            f"KL compares two distributions of one shape; got {_shape(p_logits_BV)} and {_shape(q_logits_BV)}"
        )
    log_p_BV = torch.log_softmax(_exact(p_logits_BV), dim=-1)
    log_q_BV = torch.log_softmax(_exact(q_logits_BV), dim=-1)
    impossible_BV = log_p_BV == -torch.inf
    gap_BV = log_p_BV.masked_fill(impossible_BV, 0.0) - log_q_BV.masked_fill(impossible_BV, 0.0)
    # Rounding can leave a sum of about -1e-17 where the divergence is 0.
    return (log_p_BV.exp() * gap_BV).sum(dim=-1).clamp_min(0.0)


def cross_entropy(logits_BTV: Tensor, tokens_BT: Tensor, mask_BT: Tensor | None = None) -> Tensor:
    """Next-token loss of every token but the first, [B, T-1], in nats.

    Entry t is -log p(token t+1 | tokens up to t). With `mask_BT` (nonzero at real tokens), an entry whose
    token or whose predictor is padding is NaN: a plain mean then shows the mistake, `nanmean` is the loss.
    Raises InputError when shapes do not match, there are fewer than two tokens, or an id is outside V.
    """
    if tokens_BT.shape != logits_BTV.shape[:-1] or tokens_BT.ndim < 1 or tokens_BT.shape[-1] < 2:
        raise InputError(
            "cross-entropy needs logits [B, T, V] and tokens [B, T] with at least two tokens; "
            f"got {_shape(logits_BTV)} and {_shape(tokens_BT)}"
        )
    loss_BS = -log_probability(logits_BTV[..., :-1, :], tokens_BT[..., 1:])
    if mask_BT is None:
        return loss_BS
    if mask_BT.shape != tokens_BT.shape:
        raise InputError(f"the mask {_shape(mask_BT)} must have the tokens' shape {_shape(tokens_BT)}")
    real_BT = mask_BT.to(device=loss_BS.device, dtype=torch.bool)
    return loss_BS.masked_fill(~(real_BT[..., :-1] & real_BT[..., 1:]), torch.nan)


def rank(logits_BV: Tensor, token_B: Tokens) -> Tensor:
    """The token's place among all logits, [B] int64; 0 is the first choice, V-1 the last.

    The number of tokens with a strictly greater logit, plus the number of tied tokens with a smaller id. Ties
    are common in bfloat16 (8 bits of mantissa: only 128 values between 16 and 32); breaking them by id keeps
    ranks a permutation of 0..V-1, the same on every device.
    Raises InputError as `logit_difference`; RunError for NaN logits, which have no order.
    """
    _refuse_nan(logits_BV)
    token_B1 = _ids(logits_BV, token_B).unsqueeze(-1)
    own_B1 = logits_BV.gather(-1, token_B1)
    ids_V = torch.arange(logits_BV.shape[-1], device=logits_BV.device)
    ahead_BV = (logits_BV > own_B1) | ((logits_BV == own_B1) & (ids_V < token_B1))
    return ahead_BV.sum(dim=-1)


def top(logits_NV: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k greatest logits of each row and their ids, [N,k] each, in the order of `rank`.

    Ties go to the smaller id, where `topk` alone breaks them at random, and nothing is decided by probabilities,
    which underflow to ties where logits still differ. Raises RunError for NaN logits.
    """
    _refuse_nan(logits_NV)
    k = min(k, logits_NV.shape[-1])
    values_NK, ids_NK = logits_NV.topk(k)
    least_N1 = values_NK[:, -1:]
    is_cut = (logits_NV == least_N1).sum(-1) > (values_NK == least_N1).sum(-1)
    for row in is_cut.nonzero().flatten().tolist():  # equal logits on both sides of the cut: the smaller ids belong in
        tied = (logits_NV[row] == least_N1[row]).nonzero().flatten()
        above = values_NK[row] > least_N1[row]
        ids_NK[row] = torch.cat([ids_NK[row][above], tied[: k - int(above.sum())]])
    ids_NK = ids_NK.sort(-1).values
    values_NK = logits_NV.gather(-1, ids_NK)
    order_NK = torch.sort(values_NK, dim=-1, descending=True, stable=True).indices
    return values_NK.gather(-1, order_NK), ids_NK.gather(-1, order_NK)


def first_choice(logits_BV: Tensor) -> Tensor:
    """The id of the greatest logit, [B] int64; the smallest id of a tie, so its `rank` is 0.

    Raises RunError for NaN logits.
    """
    _refuse_nan(logits_BV)
    return logits_BV.argmax(dim=-1)


def flips(before_BV: Tensor, after_BV: Tensor) -> Tensor:
    """Whether the first choice changed, [B] bool.

    Raises InputError when the shapes differ, RunError for NaN logits.
    """
    if before_BV.shape != after_BV.shape:
        raise InputError(
            f"flips compares the same rows before and after; got {_shape(before_BV)} and {_shape(after_BV)}"
        )
    return first_choice(before_BV) != first_choice(after_BV)


def _widen(logits: Tensor) -> Tensor:
    """float16 and bfloat16 to float32; float32 and float64 as they are."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def _exact(logits: Tensor) -> Tensor:
    return logits.float() if logits.device.type == "mps" else logits.double()


def _pick(values_BV: Tensor, token_B: Tokens) -> Tensor:
    return values_BV.gather(-1, _ids(values_BV, token_B).unsqueeze(-1)).squeeze(-1)


def _ids(values_BV: Tensor, token_B: Tokens) -> Tensor:
    """Token ids as an int64 tensor of the leading shape; checked, where `gather` would broadcast or crash."""
    rows, size = values_BV.shape[:-1], values_BV.shape[-1]
    ids_B = torch.as_tensor(token_B, device=values_BV.device)
    if ids_B.is_floating_point() or ids_B.dtype == torch.bool:
        raise InputError(f"token ids are whole numbers; got {ids_B.dtype}")
    if ids_B.ndim and ids_B.shape != rows:
        raise InputError(f"token ids of shape {_shape(ids_B)} do not fit logits of shape {_shape(values_BV)}")
    if ids_B.numel() and not 0 <= int(ids_B.min()) <= int(ids_B.max()) < size:
        wrong = int(ids_B.max()) if int(ids_B.max()) >= size else int(ids_B.min())
        raise InputError(f"token id {wrong} is outside the vocabulary of {size} (0 to {size - 1})")
    return ids_B.long().expand(rows)


def _refuse_nan(logits_BV: Tensor) -> None:
    if bool(logits_BV.isnan().any()):
        raise RunError(
            "the logits hold NaN: the forward pass overflowed; load the model in float32 or bfloat16"
        )


def _shape(tensor: Tensor) -> str:
    return str(list(tensor.shape))
