"""An explanation by a language model: asked for one, and asked to work with one.

Explaining by examples and scoring by simulation: Bills et al. 2023, "Language models can explain neurons in language
models" (OpenAI). Detection and fuzzing: Paulo et al. 2024, arXiv 2410.13928. All questions are worded for this project,
so the published numbers are no yardstick for these.
"""

import re
from collections.abc import Sequence

import numpy as np

from patchclamp.corpus.found import Window
from patchclamp.evidence.endpoint import Asked
from patchclamp.evidence.method import Progress
from patchclamp.evidence.rater import read_yes

SCALE = 10
SHORT, LINE, A_NUMBER = 16, 120, 10
"""Most tokens of a reply: a word, a line, each number of a table."""
OPEN, CLOSE = "«", "»"

EXPLAIN = """\
One unit inside a language model has a number at every word of a text: its activation. Below are passages in which it is
strongly active. The words at which it is active stand between « and »; after each passage they are listed with their
activation, from 1 to 10.

{passages}

What do these words, or what stands before them, have in common? Answer in one short line that would let somebody else
predict where the unit is active in new texts. Write only that line."""
SIMULATE = """\
One unit inside a language model is active on: {explanation}

Below are the tokens of a passage, one a line, each with its number. Write the same numbers, one a line, each followed
by a colon and how active the unit is at that token, from 0 (not at all) to 10. Write nothing else.

{tokens}"""
DETECT = """\
One unit inside a language model is active on: {explanation}

Is it active anywhere in this passage? Reply with one word, yes or no.

{passage}"""
FIT = """\
One unit inside a language model is active on: {explanation}

In this passage some words stand between « and ». Are these the words at which the unit is active? Reply with one word,
yes or no.

{passage}"""


class InWords:
    """An explanation in words, and the language model that reads it."""

    by = "model"

    def __init__(self, text: str, asked: Asked, progress: Progress) -> None:
        self.text, self.asked, self.progress = text, asked, progress

    def activations(self, windows: Sequence[Window]) -> list[list[float] | None]:
        """What the model expects at each token, 0 to 10; None where the reply is no table of numbers."""
        questions = [
            SIMULATE.format(explanation=self.text, tokens="\n".join(
                f"{i}: {token.strip() or 'blank'}" for i, token in enumerate(window.tokens, 1)))
            for window in windows
        ]
        longest = A_NUMBER * max((len(window.tokens) for window in windows), default=1)
        replies = self.asked.ask_all(questions, longest, self.progress, "simulating")
        return [read_numbers(reply, len(window.tokens)) for reply, window in zip(replies, windows, strict=True)]

    def fires(self, windows: Sequence[Window]) -> list[bool | None]:
        """Whether it expects the unit to be active anywhere."""
        questions = [DETECT.format(explanation=self.text, passage="".join(window.tokens)) for window in windows]
        return [read_yes(reply) for reply in self.asked.ask_all(questions, SHORT, self.progress, "detecting")]

    def fits(self, windows: Sequence[Window], marks: Sequence[Sequence[int]]) -> list[bool | None]:
        """Whether the marked tokens are those it expects."""
        questions = [FIT.format(explanation=self.text, passage=marked_text(window.tokens, marked))
                     for window, marked in zip(windows, marks, strict=True)]
        return [read_yes(reply) for reply in self.asked.ask_all(questions, SHORT, self.progress, "fuzzing")]


def explain(
    asked: Asked, shown: Sequence[Sequence[Window]], thresholds: Sequence[float], progress: Progress
) -> list[InWords]:
    """For each neuron, given the windows it is active in and the activation it counts as active from, an explanation in
    one line; empty where the model gave none."""
    questions = [EXPLAIN.format(passages="\n\n".join(_passage(w, threshold, windows) for w in windows))
                 for windows, threshold in zip(shown, thresholds, strict=False)]
    replies = asked.ask_all(questions, LINE, progress, "explaining")
    return [InWords(read_line(reply), asked, progress) for reply in replies]


def _passage(window: Window, threshold: float, windows: Sequence[Window]) -> str:
    most = max(w.value for w in windows)
    marks = [i for i, value in enumerate(window.activations) if value >= threshold] or [window.at]
    listed = ", ".join(f"{window.tokens[i].strip() or 'blank'} "
                       f"{int(np.clip(round(SCALE * window.activations[i] / most), 1, SCALE))}" for i in marks)
    return f"{marked_text(window.tokens, marks)}\n({listed})"


def marked_text(tokens: Sequence[str], marked: Sequence[int]) -> str:
    """The passage with marks around some tokens, blanks left outside."""
    out = []
    for i, token in enumerate(tokens):
        if i in marked:
            word = token.strip()
            lead = token[: len(token) - len(token.lstrip())]
            out.append(f"{lead}{OPEN}{word}{CLOSE}{token[len(lead) + len(word):]}")
        else:
            out.append(token)
    return "".join(out)


def read_line(reply: str) -> str:
    """The first line of a reply that holds a word, without thinking aloud, quotes or a label."""
    said = reply.rpartition("</think>")[2].partition("<think>")[0]
    lines = [line.strip(" \t*\"'“”-") for line in said.splitlines()]
    line = next((line for line in lines if re.search(r"\w", line) and not line.endswith(":")), "")
    return re.sub(r"(?i)^(answer|explanation|the (unit|neuron) is active (on|at))\s*:?\s*", "", line)[:400]


def read_numbers(reply: str, n: int) -> list[float] | None:
    """The number after each of `n` line numbers; None unless nine tenths of them are there."""
    found: dict[int, float] = {}
    for at, value in re.findall(r"(?m)^\s*(\d+)\s*[:.)\t-]\s*(?:.*?[:\t ])?(\d+(?:\.\d+)?)\s*$", reply):
        if 1 <= int(at) <= n and 0 <= float(value) <= SCALE:
            found.setdefault(int(at), float(value))
    return [found.get(i, 0.0) for i in range(1, n + 1)] if len(found) >= 0.9 * n else None
