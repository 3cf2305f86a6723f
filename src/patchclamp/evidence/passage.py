"""Texts whose tokens are coloured by a number: one value, shown on a page and in a terminal."""

import html
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby

ABOVE, BELOW = (230, 140, 40), (27, 108, 168)
"""Red, green and blue of the strongest colour above and below 0."""


@dataclass(frozen=True)
class Passage:
    """A few tokens of text."""

    group: str
    """Passages of one group follow one another under this heading."""
    label: str
    """What stands before the text."""
    tokens: tuple[str, ...]
    values: tuple[float, ...]
    """The number of each token."""
    most: float
    """The |number| that is coloured strongest."""
    at: int | None = None
    """The token it is about."""

    @property
    def shades(self) -> list[float]:
        """From -1 to 1."""
        return [max(-1.0, min(1.0, value / self.most)) if self.most > 0 else 0.0 for value in self.values]

    @property
    def words(self) -> list[str]:
        """The tokens on one line."""
        return [token.replace("\n", "⏎").replace("\r", "").replace("\t", "⇥") for token in self.tokens]


def colour(shade: float) -> tuple[int, int, int]:
    """The background of a shade from -1 to 1, white at 0."""
    red, green, blue = (round(255 - (255 - part) * abs(shade)) for part in (ABOVE if shade > 0 else BELOW))
    return red, green, blue


def passages_html(passages: Iterable[Passage]) -> str:
    """The passages as tables; a token's number is shown where the pointer rests."""
    out = []
    for group, some in groupby(passages, key=lambda passage: passage.group):
        rows = "\n".join(
            f'<tr><td>{html.escape(one.label)}</td><td class="text">{_tokens(one)}</td></tr>' for one in some)
        out.append(f'<h3>{html.escape(group)}</h3>\n<table class="passages">\n{rows}\n</table>')
    return "\n".join(out)


def _tokens(passage: Passage) -> str:
    spans = []
    for index, (word, value, shade) in enumerate(zip(passage.words, passage.values, passage.shades, strict=True)):
        style = f"background:rgb{colour(shade)}".replace(" ", "") + (";font-weight:bold" * (index == passage.at))
        spans.append(f'<span style="{style}" title="{value:.4g}">{html.escape(word)}</span>')
    return "".join(spans)
