"""A corpus of plain paragraphs, for what has to be measured on ordinary text.

Mean activations, the spread of projections that sets the strength of an added vector, random directions for
controls: all need text that is about nothing in particular. These paragraphs were written for this project:
everyday facts, nature, cooking, history in general terms, technical description, dialogue, a little code and
a few other languages, mixed so that the first few are varied too.
"""

from __future__ import annotations

from functools import cache

from patchclamp.errors import SpecError
from patchclamp.tasks.examples import example_file
from patchclamp.tasks.read import read_corpus


def neutral_texts(n: int | None = None) -> tuple[str, ...]:
    """The first `n` paragraphs of the neutral corpus, or all of them. SpecError if there are not so many."""
    texts = _all_texts()
    if n is not None and not 0 < n <= len(texts):
        raise SpecError(f"the neutral corpus has {len(texts)} texts and {n} were asked for; ask for 1 to "
                        f"{len(texts)}, or use a corpus of your own")
    return texts[:n]


@cache
def _all_texts() -> tuple[str, ...]:
    return tuple(read_corpus(example_file("neutral")))
