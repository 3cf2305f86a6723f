"""Words and their first tokens: which tokens can begin a word, and which words of several languages get mixed up."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any


def prefix_tokens(tokenizer: Any, word: str) -> frozenset[int]:
    """All tokens that begin the word: every prefix of it, with and without a leading space, that is one token.

    A model that is about to say `flower` may put its probability on ` flower`, `flower`, `fl` or `f`; the word's
    probability is the sum over all of them (Wendler et al. 2024, arXiv 2402.10588, section 3).
    """
    found = set()
    for end in range(1, len(word) + 1):
        for text in (word[:end], " " + word[:end]):
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            if len(ids) == 1:
                found.add(int(ids[0]))
    return frozenset(found)


def own_tokens(tokenizer: Any, words: Mapping[str, str]) -> dict[str, frozenset[int]] | str:
    """For each language the tokens that begin its word and no other language's; or why they cannot be told apart.

    A token that begins the words of two languages (`f` for fleur and flower) counts for neither. A word whose
    own first tokens are all shared, or that no single token begins, cannot be recognised: the answer is then a
    sentence that says which.
    """
    begins = {language: prefix_tokens(tokenizer, word) for language, word in words.items()}
    counts = Counter(token for tokens in begins.values() for token in tokens)
    shared = {token for token, count in counts.items() if count > 1}
    for language, word in words.items():
        first = {ids[0] for text in (word, " " + word)
                 if (ids := tokenizer(text, add_special_tokens=False)["input_ids"])}
        if not first & (begins[language] - shared):
            others = [other for other in words if other != language and begins[other] & first]
            return (f"{word!r} ({language}) begins with the same token as {words[others[0]]!r} ({others[0]})"
                    if others else f"no single token begins {word!r} ({language})")
    return {language: tokens - shared for language, tokens in begins.items()}


def sum_of(probs: Any, tokens: Sequence[int] | frozenset[int]) -> Any:
    """Probability of any of the tokens: [..., V] -> [...]."""
    return probs[..., sorted(tokens)].sum(-1)
