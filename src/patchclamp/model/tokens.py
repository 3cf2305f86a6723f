"""Prompts to tokens and back: chat templates, one BOS, substrings, strings that have to be one token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict

from patchclamp.errors import PromptError, SiteError, TokenError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Message(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    role: Literal["system", "user", "assistant"]
    content: str


def _as_prompt(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


Prompt = Annotated[str | tuple[int, ...] | tuple[Message, ...], BeforeValidator(_as_prompt)]
"""A text, a conversation (put through the chat template), or token ids taken as they are."""


@dataclass(frozen=True)
class Encoded:
    """A prompt as tokens."""

    ids: tuple[int, ...]
    n_prompt: int
    """How many of `ids` are the prompt; the rest is an assistant's answer that came with it."""
    tokenizer: PreTrainedTokenizerBase = field(repr=False, compare=False)

    @cached_property
    def pieces(self) -> tuple[str, ...]:
        """What each token says; joined they are the text the model reads."""
        return pieces(self.tokenizer, self.ids)

    def __len__(self) -> int:
        return len(self.ids)

    def find(self, text: str) -> int:
        """Index of the last token of the last occurrence of `text`. SiteError if the prompt has none."""
        joined = "".join(self.pieces)
        start = joined.rfind(text)
        if start < 0:
            raise SiteError(f"the prompt does not contain {text!r}; it reads {joined!r}")
        end, upto = start + len(text), 0
        for index, piece in enumerate(self.pieces):
            upto += len(piece)
            if upto >= end:
                return index
        raise SiteError(f"{text!r} could not be aligned with the prompt's tokens")

    def token_ending(self, text: str, end: int) -> int:
        """Index of the token that holds the last character before `end` of `text`, which this is the encoding of.

        By the tokenizer's own account of where its tokens lie, since a tokenizer may drop blanks or change letters; of
        a slow tokenizer by what its tokens say."""
        if not self.tokenizer.is_fast:
            ends = list(accumulate(len(piece) for piece in self.pieces))
            return next(i for i, stop in enumerate(ends) if stop >= end + ends[-1] - len(text))
        places = self.tokenizer(text, return_offsets_mapping=True)["offset_mapping"][-len(self) :]
        return max(i for i, (first, stop) in enumerate(places) if first < min(stop, end))


def encode(
    tokenizer: PreTrainedTokenizerBase, prompt: Prompt | Sequence[Any], limit: int | None, n_vocab: int | None = None
) -> Encoded:
    """Tokenize one prompt for a model that knows `n_vocab` tokens (None: as many as the tokenizer).

    A text gets the tokenizer's special tokens, but never a second BOS; a conversation goes through the chat
    template, with the generation prompt unless it ends in an assistant's turn; token ids pass as they are.
    Raises PromptError if it is empty, longer than `limit` tokens, a conversation without a template, or if a token
    is unknown to the model.
    """
    n_prompt: int | None = None
    if isinstance(prompt, str):
        if not prompt.strip():
            raise PromptError("the prompt is empty: give the model some text to read")
        ids = _without_second_bos(tokenizer, list(tokenizer(prompt)["input_ids"]))
    elif len(prompt) and all(isinstance(i, int) for i in prompt):
        ids = [i for i in prompt if isinstance(i, int)]
        known = len(tokenizer)
        if bad := [i for i in ids if not 0 <= i < known]:
            raise PromptError(f"token id {bad[0]} is outside the vocabulary of {known} tokens")
    else:
        ids, n_prompt = _encode_messages(tokenizer, prompt)
    if not ids:
        raise PromptError("the prompt is empty: give the model some text to read")
    if n_vocab is not None and max(ids) >= n_vocab:
        beyond = max(ids)
        raise PromptError(f"{token_text(tokenizer, beyond)!r} is token {beyond}, and the model knows only {n_vocab} "
                          f"tokens (0 to {n_vocab - 1}): model and tokenizer do not belong together")
    if limit is not None and len(ids) > limit:
        raise PromptError(f"the prompt has {len(ids)} tokens and the model's context is {limit}: shorten it")
    return Encoded(tuple(ids), len(ids) if n_prompt is None else n_prompt, tokenizer)


def _without_second_bos(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[int]:
    bos = tokenizer.bos_token_id
    return ids[1:] if len(ids) > 1 and bos is not None and ids[0] == ids[1] == bos else ids


def _encode_messages(tokenizer: PreTrainedTokenizerBase, prompt: Sequence[Any]) -> tuple[list[int], int | None]:
    try:
        messages = [Message.model_validate(m) for m in prompt]
    except ValueError as error:
        raise PromptError(f"a prompt is a text, token ids or messages with role and content: {error}") from error
    if not messages:
        raise PromptError("the conversation is empty: give at least one message")
    if not getattr(tokenizer, "chat_template", None):
        raise PromptError("this model has no chat template: give a plain text prompt instead of messages")
    if all(not m.content.strip() for m in messages):
        raise PromptError("every message is empty: give the model some text to read")

    def render(part: list[Message], generation: bool) -> list[int]:
        dumped = [m.model_dump() for m in part]
        text = tokenizer.apply_chat_template(dumped, tokenize=False, add_generation_prompt=generation)
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    if messages[-1].role != "assistant":
        return render(messages, True), None
    if len(messages) == 1:
        raise PromptError("the conversation starts with the assistant's turn: give the user's message first")
    return render(messages, False), len(render(messages[:-1], True))


def pieces(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> tuple[str, ...]:
    """What each token adds to the decoded text; bytes of one character go with the token that completes it."""
    out: list[str] = []
    done = 0
    for index in range(len(ids)):
        text = str(tokenizer.decode(list(ids[done : index + 1]), clean_up_tokenization_spaces=False))
        if text.endswith("�") and index + 1 < len(ids) and index - done < 8:
            out.append("")
        else:
            out.append(_with_lost_space(tokenizer, ids[done], text))
            done = index + 1
    return tuple(out)


def _with_lost_space(tokenizer: PreTrainedTokenizerBase, first: int, text: str) -> str:
    """Some tokenizers drop leading spaces of the first token they decode; its vocabulary entry shows them as ▁."""
    token = tokenizer.convert_ids_to_tokens(int(first))
    marked = len(token) - len(token.lstrip("▁")) if isinstance(token, str) else 0
    return " " * (marked - (len(text) - len(text.lstrip(" ")))) + text


def token_text(tokenizer: PreTrainedTokenizerBase, token_id: int) -> str:
    """The text of one token, with its leading space."""
    return pieces(tokenizer, [token_id])[0]


def single_token(tokenizer: PreTrainedTokenizerBase, text: str, n_vocab: int | None = None) -> int:
    """The id of the one token whose text is exactly `text`, for a model that knows `n_vocab` tokens.

    TokenError names the tokens if it takes several, if the tokenizer does not know it, or if its one token says
    something else (some tokenizers put a space before every text, or change letters).
    """
    if not text:
        raise TokenError("an empty string is no token: give the token's text, with its leading space if it has one")
    ids = [int(i) for i in tokenizer(text, add_special_tokens=False)["input_ids"]]
    token = _spelled(tokenizer, text, ids)
    if token is None:
        raise TokenError(_not_one(tokenizer, text, ids))
    if n_vocab is not None and token >= n_vocab:
        raise TokenError(f"{text!r} is token {token}, and the model knows only {n_vocab} tokens (0 to {n_vocab - 1})")
    return token


def _spelled(tokenizer: PreTrainedTokenizerBase, text: str, ids: Sequence[int]) -> int | None:
    """The token whose text is `text`, which the tokenizer cuts into `ids`."""
    # A tokenizer that puts a space before every text never gives the entry without one; its spelling does.
    entries = [tokenizer.convert_tokens_to_ids(spelling) for spelling in (text.replace(" ", "▁"), text)]
    candidates = (*(ids if len(ids) == 1 else ()), *(entry for entry in entries if isinstance(entry, int)))
    return next((token for token in candidates if token_text(tokenizer, token) == text), None)


def _not_one(tokenizer: PreTrainedTokenizerBase, text: str, ids: Sequence[int]) -> str:
    """What a text is instead of one token, and the text that was probably meant."""
    spelled = ", ".join(repr(piece) for piece in pieces(tokenizer, ids))
    if len(ids) == 1:
        unknown = ids[0] == tokenizer.unk_token_id
        said = f"it is not in the vocabulary, so the tokenizer makes {spelled} of it" if unknown else (
            f"the tokenizer makes {spelled} of it")
        return f"{text!r} is not one token of this model: {said}{_hint(tokenizer, text)}"
    return f"{text!r} is not one token of this model but {len(ids)}: {spelled}{_hint(tokenizer, text)}"


def _hint(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    for near, how in ((" " + text, "with a leading space"), (text.lstrip(" "), "without a leading space")):
        if near and near != text:
            ids = tokenizer(near, add_special_tokens=False)["input_ids"]
            if _spelled(tokenizer, near, [int(i) for i in ids]) is not None:
                return f" (did you mean {near!r}, {how}?)"
    return ""


def first_difference(
    tokenizer: PreTrainedTokenizerBase, prompt: str, answer: str, distractor: str
) -> tuple[tuple[int, ...], int, int] | None:
    """Score several-token answers by their first differing token.

    Returns (prompt and shared tokens, the answer's token, the distractor's token), or None where one answer is
    a prefix of the other.
    """
    first = _without_second_bos(tokenizer, list(tokenizer(prompt + answer)["input_ids"]))
    second = _without_second_bos(tokenizer, list(tokenizer(prompt + distractor)["input_ids"]))
    for index, (a, b) in enumerate(zip(first, second, strict=False)):
        if a != b:
            return tuple(first[:index]), a, b
    return None
