"""What an evaluation of a vector finds: rates of the behaviour, what they cost, every answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from patchclamp.evidence.method import Part, Result
from patchclamp.evidence.verdict import Interval, Verdict
from patchclamp.vectors.behave import Kind
from patchclamp.vectors.choices import ChoiceShift
from patchclamp.vectors.choose import TriedPosition
from patchclamp.vectors.rated import RatedCondition
from patchclamp.vectors.search import Tried
from patchclamp.vectors.vector import Ablation, Setting

if TYPE_CHECKING:
    import altair
    import pandas


class Answered(Part):
    """A test prompt and its answers."""

    prompt: str
    kind: Kind
    base: str
    added: str | None
    """Null, as the others, where it was not asked for."""
    subtracted: str | None
    ablated: str | None
    random_added: str | None
    """With one of the random directions added."""
    random_subtracted: str | None


class Dose(Part):
    """One strength."""

    strength: float
    rate: Interval
    """Share of answers that show the behaviour: of plain prompts above 0, of showing ones below."""
    kl: float
    """On unrelated text, nats."""
    perplexity_ratio: float
    repetition: float


class Moved(Part):
    """One number each for adding, subtracting and projecting out; null where it was not done."""

    added: float | None
    subtracted: float | None
    ablated: float | None


class EvaluateResult(Result):
    """Rates of the behaviour, what they cost, and every answer."""

    name: str
    add: Setting | None
    """How the vector was added; null: no direction found within the bounds."""
    subtract: Setting | None
    ablate: Ablation | None
    """How it was projected out."""
    rate_base: Interval
    """On plain prompts, without the vector."""
    rate_added: Interval
    rate_random: Interval
    """Random directions added to plain prompts: mean, and the range of 95 % of such directions."""
    rate_base_showing: Interval
    """On showing prompts (of pairs: all), without the vector."""
    rate_subtracted: Interval
    rate_ablated: Interval
    rate_random_subtracted: Interval
    """Random directions subtracted on showing prompts."""
    kl_unrelated: Moved
    """On neutral text, nats a token."""
    perplexity_ratio: Moved
    """Of the answers under the unedited model, over its own answers."""
    repetition: Moved
    """Share of repeated word triples."""
    strength_curve: list[Dose]
    removal: Verdict | None
    """Whether subtracting removes the behaviour, against random directions."""
    choices: ChoiceShift | None
    """Of pairs: how the choice between the two answers moves, with the letters in both orders."""
    ratings: list[RatedCondition]
    """What a language model thinks of the answers; empty if none was asked."""
    texts: list[Answered]
    left_out: dict[str, int]
    """Test prompts on which the unedited model did not do what they are there for."""
    tried: list[Tried]
    """What was tried on validation prompts, in the order of trying; empty where the settings were given."""
    position: str | None
    """The token at which the vector was found; null: the last of a prompt, the answer of a pair."""
    positions: list[TriedPosition]
    """The tokens that were tried, if several were given."""

    def table(self) -> pandas.DataFrame:
        """The rates."""
        import pandas

        names = ("base", "added", "random", "base_showing", "subtracted", "ablated", "random_subtracted")
        return pandas.DataFrame([{"condition": n, **getattr(self, f"rate_{n}").model_dump()} for n in names])

    def chart(self) -> altair.TopLevelMixin:
        """Rates by condition, and the dose-response curve."""
        from patchclamp.charts.vectors import evaluate_chart

        return evaluate_chart(self)
