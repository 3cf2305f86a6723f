"""A corpus as sequences of equal length: what is trained on, indexed or harvested."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from itertools import islice

from patchclamp.errors import FileError, SpecError
from patchclamp.forward.model import Model
from patchclamp.tasks.read import read_corpus

Ids = tuple[int, ...]


def packed(model: Model, corpus: str, length: int) -> Iterator[Ids]:
    """The corpus as sequences of exactly `length` tokens, one after another and never all in memory.

    Texts follow one another with a blank line between; every sequence begins as the tokenizer begins a text (with
    BOS, or with nothing). What is left at the end and fills no sequence is not used. Raises FileError as
    `read_corpus`, SpecError if the model's context is shorter than `length`.
    """
    context = model.anatomy.context
    if context is not None and length > context:
        raise SpecError(f"sequences of {length} tokens do not fit {model.name}, whose context is {context}; ask for "
                        "shorter ones")
    lead = _lead(model)
    room = length - len(lead)
    if room < 2:
        raise SpecError(f"sequences of {length} tokens leave no room for text; ask for more")
    return _cut(model, corpus, lead, room)


def _cut(model: Model, corpus: str, lead: Ids, room: int) -> Iterator[Ids]:
    held: list[int] = []
    for text in read_corpus(corpus):
        held += model.tokenizer(f"{text}\n\n", add_special_tokens=False)["input_ids"]
        whole = len(held) // room
        for i in range(whole):
            yield (*lead, *held[i * room : (i + 1) * room])
        held = held[whole * room :]


def pack(model: Model, corpus: str, length: int, limit: int) -> list[Ids]:
    """The first `limit` sequences of `packed`, or all there are."""
    return list(islice(packed(model, corpus, length), limit))


def _lead(model: Model) -> Ids:
    bos = model.tokenizer.bos_token_id
    return (bos,) if bos is not None and model.encode("a").ids[0] == bos else ()


def need_sequences(found: int, least: int, length: int, corpus: str, why: str) -> None:
    """FileError unless a corpus gave enough sequences."""
    if found < least:
        raise FileError(f"{corpus} fills {found} sequences of {length} tokens and at least {least} are needed ({why}); "
                        "give more text, or ask for shorter sequences")


def digest(sequences: Sequence[Ids]) -> str:
    """What tells one packed corpus from another: 12 digits of the sha256 of its token ids."""
    return hashlib.sha256(json.dumps(list(sequences)).encode()).hexdigest()[:12]
