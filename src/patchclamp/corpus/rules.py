"""An explanation without a language model: the n-grams that a unit, a neuron or a feature, fires at.

Chosen greedily from windows of text so that "one of these ends here" says as well as possible, by F1, where the
activation is above a threshold. A unit that fires at a few words gets a rule that holds elsewhere too;
one that fires at many unlike things gets none.
"""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from patchclamp.corpus.found import Window

LONGEST = 3
MOST = 8
"""N-grams of a rule."""
GAIN = 0.01
"""What one more n-gram has to add to F1."""
TWICE = 2
"""Times an n-gram has to be there."""

Gram = tuple[str, ...]


class Rule:
    """N-grams, each with the mean activation at its last token; and the mean at all other tokens."""

    by = "rule"

    def __init__(self, grams: dict[Gram, float], else_: float) -> None:
        self.grams, self.else_ = grams, else_

    @property
    def text(self) -> str:
        """In words."""
        if not self.grams:
            return "no word or short phrase that comes back"
        return "at the end of " + ", ".join(f"“{' '.join(gram)}”" for gram in self.grams)

    def activations(self, windows: Sequence[Window]) -> list[list[float] | None]:
        """What the rule expects at each token."""
        return [[self.else_ if gram is None else self.grams[gram] for gram in self._found(window.tokens)]
                for window in windows]

    def fires(self, windows: Sequence[Window]) -> list[bool | None]:
        """Whether one of the n-grams is there."""
        return [any(gram for gram in self._found(window.tokens)) for window in windows]

    def fits(self, windows: Sequence[Window], marks: Sequence[Sequence[int]]) -> list[bool | None]:
        """Whether more than half of the marked tokens end one of the n-grams."""
        return [bool(np.mean([self._found(window.tokens)[i] is not None for i in marked]) > 0.5)
                for window, marked in zip(windows, marks, strict=True)]

    def _found(self, tokens: Sequence[str]) -> list[Gram | None]:
        """For each token the longest n-gram that ends there."""
        words = [normal(token) for token in tokens]
        return [next((gram for gram in _ending(words, end) if gram in self.grams), None) for end in range(len(words))]


def learn(windows: Sequence[Window], threshold: float) -> Rule:
    """The rule that fits these windows best; it has no n-gram where none helps."""
    places: dict[Gram, set[int]] = defaultdict(set)
    values: list[float] = []
    seen: set[tuple[int, int]] = set()
    for window in windows:
        words = [normal(token) for token in window.tokens]
        for end, value in enumerate(window.activations):
            place = window.window, window.position - window.at + end
            if place in seen:  # windows of one place overlap
                continue
            seen.add(place)
            for gram in _ending(words, end):
                places[gram].add(len(values))
            values.append(value)
    values_T = np.array(values)
    active = {int(i) for i in np.flatnonzero(values_T >= threshold)}
    candidates = {gram: at for gram, at in places.items() if len(at) >= TWICE and at & active}
    chosen: dict[Gram, float] = {}
    covered: set[int] = set()
    best = 0.0
    while candidates and len(chosen) < MOST:
        scored = {gram: _f1(covered | at, active) for gram, at in candidates.items()}
        gram = max(scored, key=lambda g: (scored[g], -len(g), g))
        if scored[gram] < best + GAIN:
            break
        best = scored[gram]
        covered |= candidates.pop(gram)
        chosen[gram] = float(values_T[list(places[gram])].mean())
    rest = np.delete(values_T, list(covered))
    return Rule(chosen, float(rest.mean()) if len(rest) else 0.0)


def normal(token: str) -> str:
    """A token without blanks around it, in lower case; one of blanks alone as it is."""
    return token.strip().lower() or token


def _ending(words: Sequence[str], end: int) -> list[Gram]:
    """The n-grams that end at a token, the longest first."""
    return [tuple(words[end - n + 1 : end + 1]) for n in range(min(LONGEST, end + 1), 0, -1)]


def _f1(said: set[int], true: set[int]) -> float:
    return 2 * len(said & true) / (len(said) + len(true)) if said or true else 0.0
