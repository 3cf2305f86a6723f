"""States to find directions in: one value a prompt and site, the mean over the tokens that are asked for.

Shape suffixes: N prompts, S sites, T tokens, W width of the site.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from patchclamp.evidence.method import Progress, Silent
from patchclamp.forward import Model, Plan, Readout, Site
from patchclamp.forward.asked import as_prompt
from patchclamp.tasks.behaviour import Asked, Examples

AT_ONCE = 64
"""Prompts whose values are held in memory together, before their mean over tokens is taken."""


class Example(NamedTuple):
    """A prompt as the model reads it, and the tokens whose mean state counts."""

    prompt: Any
    positions: str


def answered(model: Model, question: Asked, answer: str, format: str) -> tuple[Any, str]:
    """A question with an answer to it, and the answer's tokens as a site's positions."""
    prompt = as_prompt(model, question, format)
    if isinstance(prompt, str):
        whole, begin = prompt + answer, len(model.encode(prompt))
        ids = model.encode(whole).ids
        shared = next((i for i, (a, b) in enumerate(zip(ids, model.encode(prompt).ids, strict=False)) if a != b), begin)
        return whole, f"{min(begin, shared)}:"
    conversation = [*prompt, {"role": "assistant", "content": answer}]
    encoded = model.encode(conversation)
    return conversation, f"{encoded.n_prompt}:{encoded.find(answer.strip()) + 1}"


def examples_of(
    model: Model, examples: Examples, format: str, position: str | None = None
) -> tuple[list[Example], list[Example]]:
    """Both sides' prompts, showing and plain. Of pairs the answer's tokens count, of prompts the last."""
    if examples.pairs:
        sides = [
            [
                answered(model, pair.question, answer, format)
                for pair, answer in zip(examples.pairs, (getattr(p, field) for p in examples.pairs), strict=True)
            ]
            for field in ("answer_matching_behavior", "answer_not_matching_behavior")
        ]
        showing, plain = ([Example(prompt, position or own) for prompt, own in side] for side in sides)
        return showing, plain
    showing, plain = (
        [Example(as_prompt(model, asked, format), position or "last") for asked in side]
        for side in (examples.showing, examples.plain)
    )
    return showing, plain


def states(
    model: Model, examples: Sequence[Example], sites: Sequence[str | Site], progress: Progress | None = None
) -> Tensor:
    """The mean state of each example at each site, [S,N,W] in float64: half-precision values would lose their means.

    All sites have to be of one width."""
    wanted = [Site.parse(site) for site in sites]
    order = sorted(range(len(examples)), key=lambda i: len(model.encode(examples[i].prompt)))  # little padding
    found: dict[int, Tensor] = {}
    starts = range(0, len(examples), AT_ONCE)
    for first in (progress or Silent()).track(starts, "reading states", len(starts)):
        some = order[first : first + AT_ONCE]
        asked = [examples[i] for i in some]
        plan = Plan.of([(one.prompt, (), [Readout.value(site.at(one.positions)) for site in wanted]) for one in asked])
        for i, one, values in zip(some, asked, model.execute(plan), strict=True):
            single = Site.parse(f"embed@{one.positions}").positions.single
            found[i] = torch.stack([value.double() if single else value.double().mean(0) for value in values])
    return torch.stack([found[i] for i in range(len(examples))], dim=1)
