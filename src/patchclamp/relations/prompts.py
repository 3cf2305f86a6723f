"""A relation's samples as prompts: examples, one a line, then the template with the subject.

    The capital of Peru is the city of Lima
    The capital of Poland is the city of

The subject's last token is where it is read, and where it is edited; the object is told by its first token.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from patchclamp.errors import SpecError
from patchclamp.forward import Model
from patchclamp.forward.answer import ask
from patchclamp.tasks.rows import RelationSample


class Fact(NamedTuple):
    """One sample as the model is asked for it."""

    sample: RelationSample
    ids: tuple[int, ...]
    position: int
    """Index of the subject's last token."""
    answer: int
    """Id of the object's first token."""


class Question(NamedTuple):
    """A subject as the model is asked for its object."""

    text: str
    ids: tuple[int, ...]
    position: int
    """Index of the subject's last token."""


def question(
    model: Model, template: str, subject: str, examples: Sequence[RelationSample] = (), before_it: str = ""
) -> Question:
    """A subject asked for after `examples`, of which those on itself are left out, and a text.

    SpecError if nothing follows the subject, or there is none."""
    before, after = template.split("{}")
    if not subject.strip():
        raise SpecError("the subject is empty: name what the relation is asked of, e.g. Poland")
    if not after.strip():
        raise SpecError(f"the template {template!r} ends with the subject, so that nothing is read off it: write it so "
                        "that words follow, e.g. 'The capital of {} is'")
    told = "".join(f"{template.replace('{}', one.subject).rstrip(' ')} {one.object}\n"
                   for one in examples if one.subject != subject) + before_it
    text = f"{told}{before}{subject}{after}".rstrip(" ")
    encoded = model.encode(text)
    position = encoded.token_ending(text, len(told) + len(before) + len(subject))
    if position == len(encoded) - 1:
        raise SpecError(f"the template {template!r}: the tokenizer writes its end in one token with the subject "
                        f"{subject!r}; let more words follow")
    return Question(text, encoded.ids, position)


def fact(model: Model, template: str, sample: RelationSample, examples: Sequence[RelationSample] = ()) -> Fact:
    """A sample asked after `examples`. Raises as `question`; PromptError if the tokenizer joins prompt and object."""
    asked = question(model, template, sample.subject, examples)
    _, answer = ask(model, f"{asked.text} ", sample.object)
    return Fact(sample, asked.ids, asked.position, answer)


def unclear(model: Model, facts: Sequence[Fact]) -> dict[str, str]:
    """Objects that their first token does not tell, each with the reason: another object begins with the same token,
    or the token is a single letter of a longer word."""
    objects = defaultdict(set)
    for one in facts:
        objects[one.answer].add(one.sample.object)
    reasons = {}
    for one in facts:
        letters = model.say(one.answer).strip()
        same = sorted(objects[one.answer] - {one.sample.object})
        if same:
            reasons[one.sample.object] = f"it begins with the same token {letters!r} as {same[0]!r}"
        elif len(letters) < 2 <= len(one.sample.object):
            reasons[one.sample.object] = f"its first token is {letters!r} alone"
    return reasons
