"""The texts of all tasks, tokenized once for everybody."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.workers.common import Setup

CLEAN = "When John and Mary went to the park, John gave a drink to"
CORRUPTED = "When Mary and John went to the park, Mary gave a drink to"
OPENING = "My favourite place to spend a Sunday afternoon is"
LONG = """The harbour froze early that year. Boats that should have been at sea lay side by side along the quay, \
and their owners, who had never before had an idle week in November, walked up and down looking at the ice as if \
it owed them money. The schoolmaster measured it every morning with a ruler and wrote the number on the \
blackboard. By the tenth day children were skating as far as the lighthouse. The keeper, an old man with a \
telescope and no visitors, counted them out and counted them back again, and lit his lamp an hour early so that \
nobody would lose the way. On the twelfth day a horse was led across to the island with a sledge of firewood, and \
the whole town came down to watch its ears. Nothing happened. The horse looked at the town, the town looked at \
the horse, and the wood was delivered. After that there was no holding anybody. A baker set up an oven on bricks \
in the middle of the bay and sold rolls that were hot on one side. Two cousins who had not spoken since a wedding \
met by accident halfway to the lighthouse, where there was nobody else to talk to. When the thaw came at last it \
came in one night, with a noise like furniture being moved upstairs, and in the morning the boats were rocking at \
their ropes and the blackboard said nothing at all."""
LONG_TOKENS = 256
BEGINNINGS = (
    "The old lighthouse keeper",
    "My sister's new neighbour",
    "A train from the north",
    "The teacher of this class",
    "Nobody in the whole village",
    "The queen of that country",
    "Our smallest brown dog",
    "The first ship of the year",
)
ENDINGS = (
    "was seen by the children near the edge of the",
    "has never in all these years been to",
    "arrived two hours late because of the",
    "is known everywhere for being very",
    "came back from the market with a bag of",
    "could not find the way to the",
    "said that the best thing about winter is",
    "stood for a long time in front of the",
)
"""Every beginning with every ending is one of the logit lens's 64 prompts."""
SOURCE = "Diana, princess of Wales"
STEERING_LENGTH = 2.0
"""Standard deviation of the steering vector's coordinates: enough to change the text, not to destroy it."""


def position_of(text: str, part: str, tokenizer: Any) -> int:
    """The last token of the last occurrence of `part`."""
    offsets = tokenizer(text, return_offsets_mapping=True).offset_mapping
    end = text.rindex(part) + len(part)
    return max(index for index, (first, last) in enumerate(offsets) if first < end <= last)


def make_setup(folder: Path, threads: int) -> Setup:
    """Tokenize once for everybody, and check that the prompts compare position by position."""
    from transformers import AutoConfig, AutoTokenizer

    from patchclamp.lenses.patchscope import DESCRIBE

    tokenizer = AutoTokenizer.from_pretrained(folder)
    clean, corrupted = tokenizer(CLEAN).input_ids, tokenizer(CORRUPTED).input_ids
    long = tokenizer(LONG).input_ids[:LONG_TOKENS]
    if len(clean) != len(corrupted):
        raise SystemExit(f"{folder}: the clean prompt has {len(clean)} tokens, the corrupted {len(corrupted)}")
    if len(long) != LONG_TOKENS:
        raise SystemExit(f"{folder}: the long prompt has {len(long)} tokens, not {LONG_TOKENS}")
    width = AutoConfig.from_pretrained(folder).hidden_size
    vector = STEERING_LENGTH * np.random.default_rng(0).standard_normal(width).astype(np.float32)
    names = (tokenizer(name, add_special_tokens=False).input_ids for name in (" Mary", " John"))
    (answer,), (distractor,) = names
    return Setup(
        folder=str(folder),
        short=clean,
        long=long,
        corrupted=corrupted,
        answer=answer,
        distractor=distractor,
        opening=tokenizer(OPENING).input_ids,
        prompts=tokenizer([f"{beginning} {ending}" for beginning in BEGINNINGS for ending in ENDINGS]).input_ids,
        source=tokenizer(SOURCE).input_ids,
        target=tokenizer(DESCRIBE).input_ids,
        placeholder=position_of(DESCRIBE, "x", tokenizer),
        vector=vector.tolist(),
        threads=threads,
    )
