"""Answers rated by a language model: whether they show the behaviour, keep to the question, and read well.

Wu et al. 2025, arXiv 2501.17148 (AxBench), whose three scores from 0 to 2 and their harmonic mean are used here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from patchclamp.evidence.bootstrap import mean_if_any
from patchclamp.evidence.method import Part, Progress
from patchclamp.evidence.rater import Rater, Rating
from patchclamp.evidence.verdict import Interval

if TYPE_CHECKING:
    from patchclamp.vectors.evaluated import Answered

SCORES = ("concept", "instruction", "fluency", "overall")
CONDITIONS = {
    "plain": ("base", "added", "random_added"),
    "showing": ("base", "subtracted", "ablated", "random_subtracted"),
}
SILENT = Rating(concept=0, instruction=0, fluency=0)
"""What an empty answer gets, unasked."""


class RatedCondition(Part):
    """The mean scores of one condition's answers, each 0 to 2."""

    kind: str
    """Of plain or of showing prompts."""
    condition: str
    concept: Interval
    instruction: Interval
    fluency: Interval
    overall: Interval
    """The harmonic mean of the three: 0 where one of them is."""
    answers: int
    """Answers that were rated; those the rater gave no score are left out."""


def rated(
    rater: Rater, concept: str, texts: Mapping[str, Sequence[Answered]], seed: int, progress: Progress
) -> list[RatedCondition]:
    """The scores of every condition. `texts`: plain and showing prompts with their answers."""
    asked = [
        (kind, condition, text)
        for kind, conditions in CONDITIONS.items()
        for condition in conditions
        for text in texts[kind]
        if getattr(text, condition) is not None
    ]
    items = [(concept, text.prompt, getattr(text, condition)) for _, condition, text in asked]
    spoken = [item for item in items if item[2].strip()]
    known = dict(zip(spoken, rater.rate(spoken, progress), strict=True))
    scores = [known.get(item, SILENT) for item in items]
    found = []
    for kind, condition in dict.fromkeys((kind, condition) for kind, condition, _ in asked):
        some = [
            score
            for (k, c, _), score in zip(asked, scores, strict=True)
            if (k, c) == (kind, condition) and score is not None
        ]
        means = {name: mean_if_any(np.array([getattr(one, name) for one in some]), seed) for name in SCORES}
        found.append(RatedCondition(kind=kind, condition=condition, answers=len(some), **means))
    return found
