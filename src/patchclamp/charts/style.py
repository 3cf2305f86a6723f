"""What all charts share: colours that survive printing and colour blindness, sizes, tokens made visible."""

import altair as alt

EFFECT = "#1b6ca8"
CONTROL = "#b0b0b0"
CATEGORY = ["#1b6ca8", "#d1495b", "#66a182", "#edae49", "#8d5fd3", "#4b4b4b"]
DIVERGING = alt.Scale(scheme="redblue", domainMid=0, reverse=False)
CELL = 18
"""Side of a heatmap's cell in pixels."""


def visible(token: str) -> str:
    """A token as a label: blanks and line breaks shown, never empty."""
    return token.replace(" ", "␣").replace("\n", "⏎").replace("\t", "⇥") or "∅"


def styled(chart: alt.TopLevelMixin) -> alt.TopLevelMixin:
    """The common look."""
    return chart.configure_view(stroke=None).configure_axis(grid=False, labelFontSize=11, titleFontSize=12)


def heatmap_size(n: int, least: int = 120, most: int = 900, cell: int = CELL) -> int:
    """Pixels for `n` cells."""
    return max(least, min(most, n * cell))
