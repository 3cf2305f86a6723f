"""Steering by a feature: its direction is added to every token's state, and what the model then writes is read.

    h' = h + s · max a · v        s the strength, max a the feature's greatest activation in a corpus, v its direction

The autoencoder takes no part in the run: nothing is replaced by a reconstruction, so what it does not explain stays.
What appears is told in two ways: by words that were named before, and by how active the feature is when the unsteered
model reads the new text. The strength is chosen on some prompts and judged on others, beside random features'
directions as long. Templeton et al. 2024, "Scaling Monosemanticity" (features clamped to multiples of their greatest
activation).
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from patchclamp.corpus.found import KEPT, TextSpec, check_unit, read_text
from patchclamp.corpus.table import Unit
from patchclamp.errors import SpecError
from patchclamp.evidence.bootstrap import bootstrap_mean, control_range
from patchclamp.evidence.cli_hints import CommaList, Positional
from patchclamp.evidence.method import Outcome, Part, Progress, Result, method
from patchclamp.evidence.recognise import count_phrases, is_degenerate, repetition
from patchclamp.evidence.verdict import Interval, judge
from patchclamp.evidence.written import answers, perplexity_ratio, surprise
from patchclamp.forward import Edit, Generated, Model, Plan, Site
from patchclamp.forward.asked import as_prompt
from patchclamp.sae.attached import attached
from patchclamp.sae.show import feature_site
from patchclamp.tasks.behaviour import prompts_in, texts_of
from patchclamp.tasks.files import DataFile

if TYPE_CHECKING:
    import altair
    import pandas

OPENINGS = "example:openings"
FEWEST = 12
"""Prompts: a third to choose the strength on, the others to judge."""
CONTROL_PROMPTS = 8
"""Prompts on which each random feature is tried."""


class SteerSpec(TextSpec):
    """Which feature, how far, on which prompts."""

    feature: Annotated[str, Positional()]
    """Number of the feature, e.g. 88, or its site, e.g. feature.15.88."""
    sae: DataFile | None = None
    """The autoencoder's folder; not needed if one is attached to the model."""
    prompts: DataFile = OPENINGS
    """Prompts to continue; beginnings of texts about anything if left out."""
    format: Literal["text", "chat"] = "text"
    """Whether prompts are texts as they stand or a user's messages."""
    strengths: Annotated[tuple[float, ...], CommaList()] = Field((0.5, 1.0, 2.0, 4.0), min_length=1)
    """In units of the feature's greatest activation; negative ones subtract. All of one sign. The best on a third of
    the prompts is judged on the others."""
    words: Annotated[tuple[str, ...], CommaList()] = ()
    """Words and phrases, one of which shows the concept in a text. If none are named, the feature's own activation when
    the unsteered model reads the text is what counts."""
    controls: int = Field(10, ge=2, le=100)
    """How many random features."""
    max_new_tokens: int = Field(40, ge=4, le=500)
    """Length of an answer."""
    limit: int = Field(36, ge=FEWEST)
    """At most so many prompts."""

    @model_validator(mode="after")
    def _one_sign(self) -> "SteerSpec":
        if not all(one > 0 for one in self.strengths) and not all(one < 0 for one in self.strengths):
            raise ValueError("strengths are all positive, to add the feature, or all negative, to subtract it")
        return self


class SteeredAt(Part):
    """What one strength does to the prompts it was tried on."""

    strength: float
    shown: float
    """Mean of what counts: the share of texts with one of the words, or the feature's activation in them."""
    words: float | None
    """Share of texts with one of the words, those that only repeat themselves not counted."""
    reread: float
    """The feature's greatest activation in a text that the unsteered model reads, over its greatest in the corpus; 0
    for a text that only repeats itself."""
    degenerate: float
    """Share of texts that say nothing or only repeat themselves."""


class SteeredText(Part):
    """What the model writes after one prompt."""

    prompt: str
    base: str
    steered: str
    random: str | None
    """With a random feature's direction, where it was tried on this prompt."""


class Steered(Result):
    """A feature's effect on what is written."""

    feature: str
    greatest: float
    """Its greatest activation in the corpus."""
    strength: float
    """Chosen, in units of that."""
    measure: Literal["words", "reread"]
    base: Interval
    """What counts without steering, on the prompts that judge."""
    steered: Interval
    random: Interval
    """With random features' directions of the same length: mean, and the range in which one more would fall."""
    reread_base: Interval
    """The feature's activation in the texts, read by the unsteered model, whatever counts."""
    reread_steered: Interval
    reread_random: Interval
    perplexity_ratio: float
    """Of steered texts over unsteered ones, both as the unsteered model finds them."""
    repetition: float
    """Mean share of repeated word triples in steered texts."""
    repetition_base: float
    tried: list[SteeredAt]
    """Strengths, on the prompts that choose; 0 is the unsteered model."""
    texts: list[SteeredText]
    source: str
    """Where the greatest activation is from."""

    def table(self) -> "pandas.DataFrame":
        """One row a prompt."""
        import pandas

        return pandas.DataFrame([one.model_dump() for one in self.texts])

    def chart(self) -> "altair.TopLevelMixin":
        """What counts, without steering, with it and with random features; and at every strength."""
        from patchclamp.charts.features import steered_chart

        return steered_chart(self)


@method("sae.steer", spec=SteerSpec, result=Steered)
def steer_feature(model: Model, spec: SteerSpec, progress: Progress) -> Outcome:
    """Add or subtract a feature's direction while the model writes, and see whether its concept comes or goes.

    The verdict: does the concept appear more often (with negative strengths: less often) than with random features'
    directions of the same length? On prompts that the strength was not chosen on.
    """
    whole = attached(model, spec.sae)
    site = feature_site(model, whole, spec.feature)
    _, number = check_unit(model, site)
    asked = prompts_in(spec.prompts)[: spec.limit]
    if len(asked) < FEWEST:
        raise SpecError(f"{spec.prompts} has {len(asked)} prompts; a third choose the strength and the others judge, "
                        f"so {FEWEST} are needed")
    drawn = np.random.default_rng(spec.seed).permutation(model.autoencoder(whole).n_latents)
    others = [int(unit) for unit in drawn if unit != number][: 8 * spec.controls]
    found = read_text(model, spec, {whole: [number, *others]}, KEPT, progress)
    own, *rest = found.units(whole, [number, *others])
    if own.high <= 0:
        raise SpecError(f"{site} is never active in {found.where}, so its strength has no unit; name another feature, "
                        "or read more text")
    alive = [unit.unit for unit in rest if unit.high > 0][: spec.controls]
    run = _Run(model, spec, site, own, [as_prompt(model, one, spec.format) for one in asked], texts_of(asked), progress)
    return run.outcome(alive, found.where)


class _Run:
    """One steering: its prompts in two parts, what is written, and what counts in it."""

    def __init__(
        self, model: Model, spec: SteerSpec, site: Site, own: Unit, prompts: Sequence[Any], said: Sequence[str],
        progress: Progress,
    ) -> None:
        self.model, self.spec, self.site, self.own, self.progress = model, spec, site, own, progress
        autoencoder = model.autoencoder(site)
        self.base_site, self.directions = autoencoder.site, autoencoder.directions
        self.sign = 1 if spec.strengths[0] > 0 else -1
        order = np.random.default_rng(spec.seed).permutation(len(prompts))
        cut = len(prompts) // 3
        self.choosing, self.judging = order[:cut].tolist(), order[cut:].tolist()
        self.prompts, self.texts = prompts, said

    def edit(self, unit: int, strength: float) -> list[Edit]:
        """Add a feature's direction, as long as the feature's own times strength and greatest activation."""
        length = float(self.directions[self.own.unit].norm())
        direction = self.directions[unit] / self.directions[unit].norm() * length
        return [Edit.add(self.base_site, direction, strength * self.own.high, "raw")]

    def written(self, which: Sequence[int], edits: Sequence[Sequence[Edit]], what: str) -> list[Generated]:
        """Answers to some prompts, each under its own edits."""
        return answers(self.model, [self.prompts[i] for i in which], edits, self.spec.max_new_tokens, self.progress,
                       what)

    def words(self, said: Sequence[Generated]) -> np.ndarray:
        """Whether each text has one of the words, [N]."""
        return np.array([bool(count_phrases(one.text, self.spec.words)) and not is_degenerate(one.text)
                         for one in said], dtype=float)

    def reread(self, which: Sequence[int], said: Sequence[Generated]) -> np.ndarray:
        """The feature's greatest activation in each text, when the unsteered model reads it, over its greatest, [N]."""
        rows, places, found_N = [], [], np.zeros(len(said))
        for place, (i, one) in enumerate(zip(which, said, strict=True)):
            ids = self.model.encode(self.prompts[i]).ids
            if one.tokens and not is_degenerate(one.text):
                rows.append(((*ids, *one.tokens), (), [str(self.site.at(f"{len(ids)}:"))]))
                places.append(place)
        for place, (codes_T,) in zip(places, self.model.execute(Plan.of(rows)) if rows else [], strict=True):
            found_N[place] = float(codes_T.max()) / self.own.high
        return found_N

    def counted(self, which: Sequence[int], said: Sequence[Generated]) -> np.ndarray:
        """What counts, [N]."""
        return self.words(said) if self.spec.words else self.reread(which, said)

    def tried(self) -> list[SteeredAt]:
        """Every strength on the prompts that choose."""
        strengths = [0.0, *self.spec.strengths]
        rows = [(i, strength) for strength in strengths for i in self.choosing]
        edits = [self.edit(self.own.unit, strength) if strength else [] for _, strength in rows]
        said = self.written([i for i, _ in rows], edits, "trying strengths")
        found, n = [], len(self.choosing)
        for number, strength in enumerate(strengths):
            own = said[number * n : (number + 1) * n]
            reread = float(self.reread(self.choosing, own).mean())
            words = float(self.words(own).mean()) if self.spec.words else None
            found.append(SteeredAt(
                strength=strength, shown=reread if words is None else words, words=words, reread=reread,
                degenerate=float(np.mean([is_degenerate(one.text) for one in own]))))
        return found

    def chosen(self, tried: Sequence[SteeredAt]) -> float:
        """The strength at which the concept shows most, or least, texts that say nothing counted against it; of equal
        ones the weakest."""
        def worth(one: SteeredAt) -> tuple[float, float]:
            return (self.sign * one.shown - (one.degenerate if self.sign < 0 else 0.0), -abs(one.strength))

        return max(tried[1:], key=worth).strength

    def outcome(self, others: Sequence[int], source: str) -> Outcome:
        """The result, and the verdict."""
        tried = self.tried()
        strength, which = self.chosen(tried), self.judging
        base = self.written(which, [[]] * len(which), "answering")
        steered = self.written(which, [self.edit(self.own.unit, strength)] * len(which), "answering, steered")
        n = min(CONTROL_PROMPTS, len(which))
        pairs = [(which[(k * n + j) % len(which)], unit) for k, unit in enumerate(others) for j in range(n)]
        random = self.written([i for i, _ in pairs], [self.edit(unit, strength) for _, unit in pairs],
                              "answering, random features")
        asked = [i for i, _ in pairs]
        counted = {name: self.counted(*some) for name, some in
                   (("base", (which, base)), ("steered", (which, steered)), ("random", (asked, random)))}
        again = {"base": self.reread(which, base), "steered": self.reread(which, steered),
                 "random": self.reread(asked, random)}
        first = {i: one.text for i, one in reversed(list(zip(asked, random, strict=True)))}
        seed, share = self.spec.seed, bool(self.spec.words)
        prompts = [self.prompts[i] for i in which]
        result = Steered(
            feature=str(self.site), greatest=self.own.high, strength=strength, measure="words" if share else "reread",
            base=bootstrap_mean(counted["base"], seed), steered=bootstrap_mean(counted["steered"], seed),
            random=control_range(counted["random"].reshape(-1, n).mean(1), share=share),
            reread_base=bootstrap_mean(again["base"], seed), reread_steered=bootstrap_mean(again["steered"], seed),
            reread_random=control_range(again["random"].reshape(-1, n).mean(1)),
            perplexity_ratio=perplexity_ratio(surprise(self.model, prompts, steered),
                                              surprise(self.model, prompts, base)),
            repetition=float(np.mean([repetition(one.text) for one in steered])),
            repetition_base=float(np.mean([repetition(one.text) for one in base])), tried=tried, source=source,
            texts=[SteeredText(prompt=self.texts[i], base=plain.text, steered=one.text, random=first.get(i))
                   for i, plain, one in zip(which, base, steered, strict=True)],
        )
        what = (f"texts with one of the words {', '.join(self.spec.words)}" if share
                else f"its activation in texts read by the unsteered model, over {self.own.high:.3g}")
        verdict = judge(
            counted["steered"], counted["random"].reshape(-1, n), against="distribution", share=share, seed=seed,
            direction="greater" if self.sign > 0 else "less",
            claim=f"{'adding' if self.sign > 0 else 'subtracting'} {self.site} makes its concept "
                  f"{'appear' if self.sign > 0 else 'go'} ({what}; {len(which)} prompts the strength was not chosen "
                  f"on, against {len(others)} random features' directions of the same length)")
        return result, verdict
