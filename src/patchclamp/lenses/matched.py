"""Tokens like a given one, for controls: of the same form, and about as frequent.

Tokenizers number their tokens by merge rank, so tokens near in id were about as frequent in the text the tokenizer
was made from (byte-pair encoding: Sennrich et al. 2016, arXiv 1508.07909).
"""

from collections.abc import Iterable

import numpy as np

from patchclamp.errors import InputError
from patchclamp.forward import Model

REACH = 1500
"""How far to either side of a token's id its like is looked for."""
CHOICES = 4
"""Tokens are drawn from this many times as many best matches."""


def matched_tokens(model: Model, token: int, n: int, seed: int, exclude: Iterable[int] = ()) -> list[int]:
    """`n` tokens drawn from the `CHOICES · n` that match `token` best: first in form (leading space, letters only,
    capital first letter, ASCII), then in closeness of id. Never the token itself, an excluded one, or either of
    them in other capitals or without its space. Raises InputError if the vocabulary has not so many."""
    text = model.say(token)
    wanted, words = form(text), {_word(model.say(t)) for t in (token, *exclude)}
    size = min(model.n_vocab, len(model.tokenizer))
    near = range(max(0, token - REACH), min(size, token + REACH + 1))
    scored = []
    for other in near:
        said = model.say(other)
        if said and _word(said) not in words:
            differs = sum(a != b for a, b in zip(form(said), wanted, strict=True))
            scored.append((differs, abs(other - token), other))
    if len(scored) < n:
        raise InputError(f"only {len(scored)} tokens lie near {text!r} in the vocabulary and {n} controls were asked "
                         "for; ask for fewer controls")
    pool = [other for *_, other in sorted(scored)[: CHOICES * n]]
    return [int(t) for t in np.random.default_rng(seed).permutation(pool)[:n]]


def form(text: str) -> tuple[bool, bool, bool, bool]:
    """Leading space, letters only, capital first letter, ASCII."""
    word = text.strip()
    return text.startswith(" "), word.isalpha(), word[:1].isupper(), text.isascii()


def _word(text: str) -> str:
    return text.strip().lower()
