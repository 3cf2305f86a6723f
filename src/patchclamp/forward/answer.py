"""A prompt and what answers it: the first token of the text that should follow."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from patchclamp.errors import PromptError

if TYPE_CHECKING:
    from patchclamp.forward.model import Model


class Asked(NamedTuple):
    """A prompt and the token that answers it."""

    ids: tuple[int, ...]
    answer: int


def ask(model: Model, prompt: str, answer: str) -> Asked:
    """A text without the spaces at its end, and the first token of the `answer` that follows after these.

    PromptError if the tokenizer cuts the two together otherwise than the text alone."""
    bare = prompt.rstrip(" ")
    ids = model.encode(bare).ids
    whole = model.encode(prompt + answer).ids
    if whole[: len(ids)] != ids or len(whole) == len(ids):
        raise PromptError(f"the prompt {bare[-40:]!r} cannot be scored: the tokenizer joins its end with the answer "
                          f"{answer!r}")
    return Asked(ids, whole[len(ids)])
