"""What edits do to a model: its answers, how likely the unedited model finds them, how far unrelated text is moved.

Shape suffixes: N prompts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from patchclamp.evidence.method import Progress, Silent
from patchclamp.forward import Edit, Generated, Model, Plan, Readout
from patchclamp.forward.calls import edits_by_prompt
from patchclamp.tasks.neutral import neutral_texts

AT_ONCE = 64
"""Prompts answered together."""
UNRELATED = 24
"""Neutral paragraphs on which KL is measured: the last of the corpus, since the first ones set the unit of strength."""
CHOOSING = 12
"""Others, before these, on which it is measured while choosing."""
UNRELATED_TOKENS = 24


def answers(
    model: Model,
    prompts: Sequence[Any],
    edits: Sequence[Edit] | Sequence[Sequence[Edit]] = (),
    n: int = 48,
    progress: Progress | None = None,
    description: str = "answering",
) -> list[Generated]:
    """Greedy answers of at most `n` tokens, under the same edits or each prompt under its own. Prompts of like length
    run together."""
    each = edits_by_prompt(edits, len(prompts))
    order = sorted(range(len(prompts)), key=lambda i: len(model.encode(prompts[i])))
    found: dict[int, Generated] = {}
    starts = range(0, len(order), AT_ONCE)
    for first in (progress or Silent()).track(starts, description, len(starts)):
        some = order[first : first + AT_ONCE]
        said = model.generate([prompts[i] for i in some], [each[i] for i in some], max_new_tokens=n)
        found |= zip(some, said, strict=True)
    return [found[i] for i in range(len(prompts))]


def surprise(model: Model, prompts: Sequence[Any], said: Sequence[Generated]) -> np.ndarray:
    """Mean cross-entropy in nats a token of each answer under the unedited model, [N]; NaN for an empty answer."""
    rows, places = [], []
    for i, (prompt, answer) in enumerate(zip(prompts, said, strict=True)):
        ids = model.encode(prompt).ids
        if answer.tokens:
            rows.append(((*ids, *answer.tokens), (), [Readout.loss(f"{len(ids)}:")]))
            places.append(i)
    found_N = np.full(len(prompts), math.nan)
    if rows:
        found_N[places] = [float(loss) for (loss,) in model.execute(Plan.of(rows))]
    return found_N


def perplexity_ratio(edited_N: np.ndarray, base_N: np.ndarray) -> float:
    """Perplexity of edited answers over that of unedited ones, both under the unedited model: exp of mean surprise."""
    return float(np.exp(np.nanmean(edited_N) - np.nanmean(base_N)))


def unrelated_texts(model: Model, choosing: bool = False) -> list[tuple[int, ...]]:
    """Beginnings of neutral paragraphs, as token ids: to choose on, or others to report on."""
    last = neutral_texts()[-UNRELATED - CHOOSING :]
    return [model.encode(text).ids[:UNRELATED_TOKENS] for text in (last[:CHOOSING] if choosing else last[CHOOSING:])]


def kl_on(model: Model, prompts: Sequence[Any], settings: Sequence[Sequence[Edit]]) -> np.ndarray:
    """KL(unedited ‖ edited) of the next token after each prompt, nats, for several sets of edits: [settings, N]."""
    rows = [(prompt, edits, [Readout.kl()]) for prompt in prompts for edits in settings]
    values = [float(kl) for (kl,) in model.execute(Plan.of(rows))]
    return np.array(values).reshape(len(prompts), len(settings)).T
