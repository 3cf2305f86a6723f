"""The language of thought: which language does the residual stream speak while the model translates?

    p_lang(layer) = Σ p_layer(t) over the tokens t that begin the word in that language (and in no other asked for)

Wendler et al. 2024, "Do Llamas Work in English?", arXiv 2402.10588: on the way from French to Chinese the middle
layers of Llama-2 decode to English.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, NamedTuple

import numpy as np
from pydantic import ConfigDict, Field

from patchclamp.errors import FileError, SpecError
from patchclamp.evidence.bootstrap import bootstrap_mean
from patchclamp.evidence.cli_hints import Positional
from patchclamp.evidence.method import Outcome, Part, Progress, Result, Spec, method
from patchclamp.evidence.verdict import Interval, judge
from patchclamp.forward import Model
from patchclamp.forward.streams import decoded, streams
from patchclamp.lenses.words import own_tokens, sum_of
from patchclamp.tasks.files import DataFile
from patchclamp.tasks.read import read_rows
from patchclamp.tasks.rows import WordRow

if TYPE_CHECKING:
    import altair
    import pandas

ROLES = ("source", "target", "pivot", "control")
NAMES = {"en": "English", "fr": "Français", "de": "Deutsch", "es": "Español", "zh": "中文", "ru": "Русский",
         "ja": "日本語", "it": "Italiano", "pt": "Português", "nl": "Nederlands", "pl": "Polski", "ko": "한국어"}
FEWEST_WORDS = 12


class LanguageSpec(Spec):
    """Between which languages to translate, and which ones to look for on the way."""

    model_config = ConfigDict(populate_by_name=True)

    words: Annotated[DataFile, Positional()] = "example:words"
    """A word file: concept, then one column a language."""
    source: str = Field("fr", alias="from")
    """The language translated from: a column of the word file."""
    target: str = Field("zh", alias="to")
    """The language translated to."""
    pivot: str = "en"
    """The language the model may pass through."""
    control: str | None = None
    """A language that is none of these; by default the first other one of the file."""
    shots: int = Field(4, ge=1, le=20)
    """How many translations the prompt shows first. Their words are not tested."""
    limit: int | None = Field(None, ge=FEWEST_WORDS)
    """Test at most this many words."""


class LanguageLayer(Part):
    """Probability of each language's word at one layer: mean over concepts, with its 95 % interval."""

    layer: int
    """-1 for the embeddings, then the block after which the stream is read."""
    source: Interval
    target: Interval
    pivot: Interval
    control: Interval


class LanguageResult(Result):
    """Which language each layer speaks."""

    layers: list[LanguageLayer]
    languages: dict[str, str]
    """The language in each role."""
    peak_layer: dict[str, int]
    """For each role the layer at which its mean probability is greatest."""
    right: float
    """Share of concepts for which the model's first choice begins the target's word."""
    concepts: int
    """Concepts tested."""
    excluded: dict[str, str]
    """Concepts left out because their words cannot be told apart by their tokens, and why."""
    prompt: str
    """The first prompt, as an example."""

    def table(self) -> "pandas.DataFrame":
        """One row a layer: the mean probability of each language's word."""
        import pandas

        return pandas.DataFrame([
            {"layer": layer.layer, **{f"{role} ({self.languages[role]})": getattr(layer, role).mean for role in ROLES}}
            for layer in self.layers
        ])

    def chart(self) -> "altair.TopLevelMixin":
        """Probability of each language by layer, with intervals."""
        from patchclamp.charts.language import language_chart

        return language_chart(self)


class Concept(NamedTuple):
    """One word to translate, with the tokens that give each language away."""

    name: str
    prompt: str
    tokens: dict[str, frozenset[int]]


@method("lens.language", spec=LanguageSpec, result=LanguageResult)
def language(model: Model, spec: LanguageSpec, progress: Progress) -> Outcome:
    """Translate words and see which language the layers decode to on the way.

    The verdict says whether the model passes through the pivot language: does each word's probability in the
    pivot, at its greatest before the last layer, exceed that of the control language?
    """
    rows = read_rows(spec.words, WordRow)
    languages = _languages(spec, rows)
    concepts, excluded = _concepts(model, spec, rows, languages)
    places = streams(model, [c.prompt for c in concepts], track=progress.track)
    right, probs = [], []
    for concept, logits_LV in zip(concepts, decoded(model, progress.track(places, "unembedding")), strict=True):
        probs_LV = logits_LV.float().softmax(-1)
        right.append(int(probs_LV[-1].argmax()) in concept.tokens["target"])
        probs.append([sum_of(probs_LV, concept.tokens[role]).tolist() for role in ROLES])
    probs_NRL = np.array(probs)
    layers = [
        LanguageLayer(layer=index - 1, **{role: bootstrap_mean(probs_NRL[:, r, index], spec.seed)
                                          for r, role in enumerate(ROLES)})
        for index in range(probs_NRL.shape[2])
    ]
    peaks = {role: int(probs_NRL[:, r].mean(0).argmax()) - 1 for r, role in enumerate(ROLES)}
    result = LanguageResult(
        layers=layers, languages=languages, peak_layer=peaks, right=float(np.mean(right)), concepts=len(concepts),
        excluded=excluded, prompt=concepts[0].prompt,
    )
    greatest_NR = probs_NRL[:, :, :-1].max(-1)
    verdict = judge(
        greatest_NR[:, ROLES.index("pivot")], greatest_NR[:, ROLES.index("control")],
        claim=f"{model.name} passes through {languages['pivot']} when it translates {languages['source']} to "
              f"{languages['target']} (greatest probability of the word before the last layer, against its "
              f"{languages['control']} word)",
        direction="greater", seed=spec.seed,
    )
    return result, verdict


def _languages(spec: LanguageSpec, rows: Sequence[WordRow]) -> dict[str, str]:
    """The language in each role. SpecError if the file lacks one or two are the same."""
    known = list(dict.fromkeys(language for row in rows for language in row.words))
    chosen = {"source": spec.source, "target": spec.target, "pivot": spec.pivot}
    control = spec.control or next((k for k in known if k not in chosen.values()), None)
    if control is None:
        raise SpecError(f"{spec.words} has no language left to be the control; it has {', '.join(known)}")
    chosen["control"] = control
    for role, code in chosen.items():
        if code not in known:
            raise SpecError(f"{spec.words} has no column {code!r} (the {role}); it has {', '.join(known)}")
    if len(set(chosen.values())) < len(chosen):
        pairs = ", ".join(f"{role} {code}" for role, code in chosen.items())
        raise SpecError(f"the four languages have to differ; got {pairs}")
    return chosen


def _concepts(
    model: Model, spec: LanguageSpec, rows: Sequence[WordRow], languages: dict[str, str]
) -> tuple[list[Concept], dict[str, str]]:
    """The prompts of the words to test, and the words left out with the reason."""
    usable = [row for row in rows if all(code in row.words for code in languages.values())]
    if len(usable) < spec.shots + FEWEST_WORDS:
        raise FileError(f"{spec.words} has {len(usable)} concepts with words in {', '.join(languages.values())}; "
                        f"{spec.shots} examples and {FEWEST_WORDS} to test are needed")
    order = np.random.default_rng(spec.seed).permutation(len(usable))
    shots, tested = [usable[i] for i in order[: spec.shots]], [usable[i] for i in order[spec.shots :]]
    opening = "".join(_line(languages, row.words) + "\n" for row in shots)
    concepts, excluded = [], {}
    for row in tested:
        words = {role: row.words[code] for role, code in languages.items()}
        tokens = own_tokens(model.tokenizer, words)
        if isinstance(tokens, str):
            excluded[row.concept] = tokens
        else:
            asked = _line(languages, {**row.words, languages["target"]: ""})
            concepts.append(Concept(row.concept, opening + asked.removesuffix('"'), tokens))
    if len(concepts) < FEWEST_WORDS:
        why = next(iter(excluded.values()))
        raise FileError(f"{spec.words}: only {len(concepts)} concepts can be told apart by their tokens in "
                        f"{', '.join(languages.values())} (for instance {why}); {FEWEST_WORDS} are needed")
    return concepts[: spec.limit], excluded


def _line(languages: dict[str, str], words: dict[str, str]) -> str:
    source, target = languages["source"], languages["target"]
    return (f'{NAMES.get(source, source)}: "{words[source]}" - '
            f'{NAMES.get(target, target)}: "{words[target]}"')
