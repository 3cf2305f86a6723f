"""How good is an explanation of a unit, a neuron or a feature? Tried on windows it was not made from.

    simulation   correlation of expected and actual activation over the tokens of all windows
    detection    windows in which the neuron is active, and as many random ones in which it is not: told apart?
    fuzzing      active windows with the active tokens marked, and with as many others marked: told apart?

Bills et al. 2023 (simulation); Paulo et al. 2024, arXiv 2410.13928 (detection, fuzzing), as balanced accuracies.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from patchclamp.corpus.found import Window
from patchclamp.errors import SpecError
from patchclamp.evidence.bootstrap import bootstrap_mean
from patchclamp.evidence.method import Part
from patchclamp.evidence.verdict import NO_INTERVAL, Interval

FEWEST = 3
"""Active windows that a score needs."""
RESAMPLES = 1000


class Explanation(Protocol):
    """What can be asked of an explanation; None is no answer."""

    by: str

    @property
    def text(self) -> str: ...
    def activations(self, windows: Sequence[Window]) -> list[list[float] | None]: ...
    def fires(self, windows: Sequence[Window]) -> list[bool | None]: ...
    def fits(self, windows: Sequence[Window], marks: Sequence[Sequence[int]]) -> list[bool | None]: ...


class Score(Part):
    """How well an explanation predicts a neuron."""

    simulation: Interval
    """Correlation of expected and actual activation over tokens, -1 to 1."""
    detection: Interval
    """Balanced accuracy, .5 is chance."""
    fuzzing: Interval
    """Balanced accuracy, .5 is chance."""
    unanswered: float
    """Share of questions without an answer: half right in detection and fuzzing, left out of simulation."""


@dataclass(frozen=True)
class Trial:
    """Held-out windows of one neuron, arranged as questions."""

    threshold: float
    """Activation from which the neuron counts as active."""
    active: list[Window]
    inactive: list[Window]
    """As many, with no token above the threshold."""
    any: list[Window]
    """All windows, for simulation."""
    right: list[list[int]]
    """The active tokens of each active window."""
    wrong: list[list[int]]
    """As many other tokens of it."""

    def cut(self, n: int) -> "Trial":
        """At most `n` windows of each kind, from the whole range."""
        chosen = [i * len(self.active) // n for i in range(n)] if n < len(self.active) else range(len(self.active))
        spread = [i * len(self.any) // n for i in range(n)] if n < len(self.any) else range(len(self.any))
        return Trial(
            self.threshold, [self.active[i] for i in chosen], [self.inactive[i] for i in chosen],
            [self.any[i] for i in spread], [self.right[i] for i in chosen], [self.wrong[i] for i in chosen],
        )


def trial(
    active: Sequence[Window], spread: Sequence[Window], random: Sequence[Window], threshold: float, seed: int
) -> Trial:
    """Arrange windows as questions: active ones, ones from the whole range of activations, random ones. SpecError if
    there are too few."""
    whole = one_each((*active, *spread, *random))
    firing = [window for window in one_each((*active, *spread)) if window.value >= threshold]
    quiet = [window for window in one_each(random) if max(window.activations) < threshold]
    n = min(len(firing), len(quiet))
    if n < FEWEST:
        which = "active" if len(firing) < FEWEST else "inactive"
        raise SpecError(f"only {n} held-out windows are {which}, where {FEWEST} are needed to score an explanation; "
                        "read more text (--tokens), or index it with more windows (--top)")
    generator = np.random.default_rng(seed)
    right, wrong = [], []
    for window in firing[:n]:
        hot = [i for i, value in enumerate(window.activations) if value >= threshold] or [window.at]
        cold = [i for i, value in enumerate(window.activations) if value < threshold and window.tokens[i].strip()]
        count = min(len(hot), len(cold))
        right.append(hot[:count] if count else hot)
        wrong.append(sorted(generator.permutation(cold)[:count].tolist()))
    return Trial(threshold, firing[:n], quiet[:n], whole, right, wrong)


def active_from(high: float, middle: float) -> float:
    """The activation from which a unit counts as active, from its 99 % quantile and its median: the former, or what is
    above that of one that is silent more often."""
    threshold = high
    if threshold <= middle:  # silent nearly everywhere: whatever lies above that is active
        threshold = float(np.nextafter(np.float32(threshold), np.float32(np.inf)))
    return float(threshold)


def one_each(windows: Iterable[Window]) -> list[Window]:
    """The first of the passages from each window of the corpus: others may overlap with it."""
    return list({window.window: window for window in reversed(list(windows))}.values())[::-1]


@dataclass(frozen=True)
class Answers:
    """What an explanation said, question by question."""

    detection: np.ndarray
    """1 where right, 0 where wrong, 1/2 without an answer, which is chance; [2n]."""
    fuzzing: np.ndarray
    simulated: list[tuple[np.ndarray, np.ndarray]]
    """Expected and actual activation of each window that was simulated."""
    unanswered: float

    @property
    def correct(self) -> np.ndarray:
        """Detection and fuzzing together."""
        return np.concatenate([self.detection, self.fuzzing])

    def score(self, seed: int) -> Score:
        return Score(simulation=_correlation(self.simulated, seed), detection=_mean(self.detection, seed),
                     fuzzing=_mean(self.fuzzing, seed), unanswered=self.unanswered)


def answers(explanation: Explanation, asked: Trial) -> Answers:
    """Try an explanation."""
    fired = explanation.fires([*asked.active, *asked.inactive])
    n = len(asked.active)
    detection = [_right(said, i < n) for i, said in enumerate(fired)]
    pairs = [(window, right, wrong) for window, right, wrong in zip(asked.active, asked.right, asked.wrong, strict=True)
             if wrong]
    windows = [window for window, _, _ in pairs] * 2
    fitted = explanation.fits(windows, [right for _, right, _ in pairs] + [wrong for _, _, wrong in pairs])
    fuzzing = [_right(said, i < len(pairs)) for i, said in enumerate(fitted)]
    expected = explanation.activations(asked.any)
    simulated = [(np.array(one), np.array(window.activations))
                 for one, window in zip(expected, asked.any, strict=True) if one is not None]
    silent = sum(said is None for said in (*fired, *fitted, *expected))
    return Answers(np.array(detection), np.array(fuzzing), simulated,
                   silent / max(1, len(fired) + len(fitted) + len(expected)))


def _right(said: bool | None, true: bool) -> float:
    return 0.5 if said is None else float(said == true)


def _mean(values: np.ndarray, seed: int) -> Interval:
    return bootstrap_mean(values, seed) if len(values) else NO_INTERVAL


def _correlation(simulated: Sequence[tuple[np.ndarray, np.ndarray]], seed: int) -> Interval:
    """Over the tokens of all windows; the interval from resampled windows. 0 for an expectation that never varies."""
    if not simulated:
        return NO_INTERVAL
    generator = np.random.default_rng(seed)

    def of(chosen: Sequence[int]) -> float:
        expected = np.concatenate([simulated[i][0] for i in chosen])
        actual = np.concatenate([simulated[i][1] for i in chosen])
        return float(np.corrcoef(expected, actual)[0, 1]) if expected.std() > 0 and actual.std() > 0 else 0.0

    n = len(simulated)
    drawn = [of(generator.integers(0, n, n).tolist()) for _ in range(RESAMPLES)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Interval(mean=of(range(n)), low=float(low), high=float(high))
