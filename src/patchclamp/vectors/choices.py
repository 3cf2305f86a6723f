"""The choice between two lettered answers, as contrastive steering is tested: does the vector move it?

A model may prefer a letter whatever it stands for, so every question is asked with the letters in both orders: what
follows the answer's content and not its letter is the mean over both orders. Rimsky et al. 2023, arXiv 2312.06681.

Shape suffixes: N pairs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

from patchclamp.errors import TokenError
from patchclamp.evidence.bootstrap import bootstrap_mean
from patchclamp.evidence.method import Part
from patchclamp.evidence.verdict import Interval
from patchclamp.forward import Edit, Plan, Readout
from patchclamp.forward.asked import as_prompt
from patchclamp.tasks.rows import BehaviourRow
from patchclamp.vectors.behave import Asking

LETTERED = re.compile(r"\s*\(?([AB])\)?\s*")
"""An answer that is only a letter: its question holds the choices."""


class ChoiceShift(Part):
    """Probability of the answer that shows the behaviour, among the two letters."""

    base: Interval
    """Mean over both orders of the letters."""
    added: Interval | None
    subtracted: Interval | None
    letter_base: Interval
    """Probability of the first letter, whatever it stands for: .5 of a model that reads the choices."""
    letter_added: Interval | None
    """If the vector moves this, it moves a letter and not a behaviour."""
    letter_subtracted: Interval | None


def swapped(pair: BehaviourRow) -> tuple[tuple[str, str], tuple[str, str]] | None:
    """A question in both orders, each with the letter of the answer that shows the behaviour.

    Choices that stand in the question change their letters; None if they cannot be found there.
    """
    letter = LETTERED.fullmatch(pair.answer_matching_behavior)
    if letter is None:
        first, second = pair.answer_matching_behavior.strip(), pair.answer_not_matching_behavior.strip()
        ask = pair.question + "\n\nChoices:\n (A) {}\n (B) {}"
        return (ask.format(first, second), "A"), (ask.format(second, first), "B")
    found = re.fullmatch(r"(.*?)\(A\)\s*(.*?)\s*\(B\)\s*(.*?)\s*", pair.question, re.S)
    if found is None:
        return None
    other = f"{found[1]}(A) {found[3]}\n (B) {found[2]}"
    return (pair.question, letter[1]), (other, "B" if letter[1] == "A" else "A")


def choice_shift(
    asking: Asking, pairs: Sequence[BehaviourRow], conditions: Mapping[str, Sequence[Edit]], seed: int
) -> ChoiceShift | None:
    """The choice without and with the vector; None where no question can be asked in both orders."""
    orders = [order for pair in pairs if (order := swapped(pair)) is not None]
    letters = _letters(asking)
    if not orders or letters is None:
        return None
    shares = {name: _shares(asking, orders, letters, edits) for name, edits in conditions.items()}
    means: dict[str, Interval | None] = {}
    for name in ("base", "added", "subtracted"):
        if name in shares:
            matching_N, first_N = shares[name]
            means[name], means[f"letter_{name}"] = bootstrap_mean(matching_N, seed), bootstrap_mean(first_N, seed)
        else:
            means[name] = means[f"letter_{name}"] = None
    return ChoiceShift.model_validate(means)


def _letters(asking: Asking) -> tuple[int, int] | None:
    try:
        return asking.model.token("A"), asking.model.token("B")
    except TokenError:
        return None


def _shares(
    asking: Asking,
    orders: Sequence[tuple[tuple[str, str], tuple[str, str]]],
    letters: tuple[int, int],
    edits: Sequence[Edit],
) -> tuple[np.ndarray, np.ndarray]:
    """Of the probability of both letters the matching one's share and the first one's, mean over both orders, [N]."""
    rows = []
    for order in orders:
        for question, _ in order:
            asked = as_prompt(asking.model, question, asking.format)
            opened = (
                [*asked, {"role": "assistant", "content": "("}] if isinstance(asked, list) else f"{asked}\n\nAnswer: ("
            )
            ids = asking.model.encode(opened)
            upto = ids.find("(") + 1
            rows.append((ids.ids[:upto], edits, [Readout.log_probability(*letters)]))
    both = np.array([value.tolist() for (value,) in asking.model.execute(Plan.of(rows))])
    first = 1 / (1 + np.exp(both[:, 1] - both[:, 0]))
    is_first = np.array([letter == "A" for order in orders for _, letter in order])
    matching = np.where(is_first, first, 1 - first)
    return matching.reshape(-1, 2).mean(1), first.reshape(-1, 2).mean(1)
