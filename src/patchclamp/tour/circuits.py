"""The tour's stops about circuits: a model of the model, as the few of its own parts that do one task."""

from __future__ import annotations

from patchclamp.tour.stop import GEMMA, SMOLLM2, Stop

SMALL = {"prompts": 8, "heldout": 8}
"""For what is read off prompts one by one; a circuit is looked for on as many as by default."""

CIRCUITS: tuple[Stop, ...] = (
    Stop(
        "A few edges do it",
        "When Mary and John went to the store, John gave a drink to … Mary. The model has thousands of edges between "
        "its heads and MLPs. Everything but a few is set to what it would be if Mary gave; which few are enough, so "
        "that none of them can go? Do they do it with names and sentences they were not looked for on?",
        GEMMA, "circuits.find", {"task": "ioi"},
    ),
    Stop(
        "Seventy thousand edges",
        "The same task in a model with more than ten times as many edges. At the name that comes again some heads "
        "notice it; others carry that to the last word; there a third kind moves the other name. Can you find them in "
        "the picture?",
        SMOLLM2, "circuits.find", {"task": "ioi"},
    ),
    Stop(
        "What the heads do",
        "Which heads matter most to the task, where does the last token look through them, and what do they copy? A "
        "head gets a name only where the numbers are clear.",
        SMOLLM2, "circuits.heads", {"task": "ioi", **SMALL},
    ),
    Stop(
        "When the fact is read",
        "Attention from the last word to the country is blocked, five blocks at a time; then to the other words. When "
        "does Warsaw get lost? As many random words are blocked beside.",
        GEMMA, "circuits.flow", {"task": "capital", **SMALL},
    ),
    Stop(
        "And in the other model",
        "Thirty blocks instead of eighteen. Does the answer come from the country as late?",
        SMOLLM2, "circuits.flow", {"task": "capital", **SMALL},
    ),
)
