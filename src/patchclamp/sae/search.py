"""Finding features by a text: those it activates, and those that promote its words.

A feature is ranked by how rare it is that it is as active as at the text's best token: -log₁₀ of the share of the
corpus's tokens with at least that activation, read off the exact histogram (of the bin's lower edge, so that the share
is never understated).
"""

import math
from typing import TYPE_CHECKING, Annotated

import numpy as np
from pydantic import Field

from patchclamp.corpus.found import Window, read_windows
from patchclamp.corpus.sketch import EDGES
from patchclamp.corpus.table import Index, Unit
from patchclamp.evidence.cli_hints import Positional
from patchclamp.evidence.method import Outcome, Part, Progress, Result, Spec, method
from patchclamp.evidence.passage import Passage
from patchclamp.forward import Model, Site
from patchclamp.sae.attached import attached
from patchclamp.sae.index import opened
from patchclamp.sae.written import Features
from patchclamp.tasks.files import DataFile

if TYPE_CHECKING:
    import altair
    import pandas


class SearchSpec(Spec):
    """What to look for, in which index."""

    text: Annotated[str, Positional()] = Field(min_length=1)
    """Text that a feature should be active in, or promote, e.g. " golden gate". Its tokens are looked for as they are:
    blank before a word and capitals count."""
    index: DataFile
    """The index's folder, as `sae index` made it."""
    sae: DataFile | None = None
    """The autoencoder's folder; not needed if one is attached to the model."""
    top: int = Field(10, ge=1)
    """How many features to give of either kind."""
    windows: int = Field(2, ge=0)
    """How many of a feature's top windows to show."""
    context: int = Field(16, ge=1)
    """How many tokens of a window to show."""


class Hit(Part):
    """One feature."""

    feature: str
    by: str
    """active: the text activates it. promotes: it raises the logit of one of the text's tokens."""
    score: float
    """active: -log₁₀ of the share of the corpus's tokens at which it is as active. promotes: logits for one unit of
    activation."""
    at: str
    """The token it is most active at, or that it promotes."""
    activation: float
    """At that token; 0 for `promotes`."""
    active: float
    """Share of the corpus's tokens it is active at."""
    promotes: list[str]
    """Tokens it promotes most."""
    windows: list[Window]
    """Where in the corpus it is most active."""


class Searched(Result):
    """Features by how they go with a text."""

    text: str
    hits: list[Hit]
    source: str

    def table(self) -> "pandas.DataFrame":
        """One row a feature."""
        import pandas

        return pandas.DataFrame([
            {"feature": hit.feature, "by": hit.by, "score": hit.score, "at": hit.at, "activation": hit.activation,
             "active": hit.active, "promotes": " ".join(hit.promotes)} for hit in self.hits
        ], columns=["feature", "by", "score", "at", "activation", "active", "promotes"])

    def chart(self) -> "altair.TopLevelMixin":
        """Scores of the features."""
        from patchclamp.charts.features import searched_chart

        return searched_chart(self)

    def passages(self) -> list[Passage]:
        """Where each feature is most active."""
        return [Passage(f"{hit.feature}: {hit.by} at {hit.at!r}", f"{w.value:.3g}", tuple(w.tokens),
                        tuple(w.activations), max(w.value, 1e-9), w.at) for hit in self.hits for w in hit.windows]


@method("sae.search", spec=SearchSpec, result=Searched)
def search_features(model: Model, spec: SearchSpec, progress: Progress) -> Outcome:
    """Find features by text: those the text activates more than nearly any other does, and those that promote it.

    A search claims nothing, so there is no verdict; `sae find` tests a concept on held-out texts.
    """
    attached(model, spec.sae)
    index, whole = opened(model, spec.index)
    table = Features(index)
    found = [*_activated(model, index, whole, spec), *_promoting(model, table, whole, spec)]
    asked = [(Site.parse(hit.feature), peak) for hit in found for peak in _unit(index, whole, hit).top[: spec.windows]]
    read = iter(read_windows(model, index, asked, spec.context, progress))
    hits = []
    for hit in found:
        known = _unit(index, whole, hit)
        promoted = table.written(known.unit).promoted
        hits.append(hit.model_copy(update={
            "active": known.active, "promotes": [model.say(token) for token, _ in promoted[:5]],
            "windows": [next(read) for _ in known.top[: spec.windows]]}))
    return Searched(text=spec.text, hits=hits, source=index.where), None


def _unit(index: Index, whole: Site, hit: Hit) -> Unit:
    return index.units(whole, [Site.parse(hit.feature).unit or 0])[0]


def _hit(whole: Site, unit: int, by: str, score: float, at: str, activation: float) -> Hit:
    return Hit(feature=str(Site("feature", whole.layer, unit, name=whole.name)), by=by, score=score, at=at,
               activation=activation, active=0.0, promotes=[], windows=[])


def _activated(model: Model, index: Index, whole: Site, spec: SearchSpec) -> list[Hit]:
    ids, skip = prefixed(model, spec.text)
    codes_TL = model.capture([ids], [whole])[whole][0, skip:].float().cpu().numpy()
    best_L, at_L = codes_TL.max(0), codes_TL.argmax(0)
    active = np.flatnonzero(best_L > 0)
    columns = index.columns(whole, ["tokens"])
    histograms = {unit.unit: unit.histogram for unit in index.units(whole, active.tolist())}
    scored = [(_surprise(histograms[int(unit)], float(best_L[unit]), int(columns["tokens"][unit])), int(unit))
              for unit in active]
    best = sorted(scored, key=lambda pair: (-pair[0], -best_L[pair[1]]))[: spec.top]
    return [_hit(whole, unit, "active", score, model.say(ids[skip + int(at_L[unit])]), float(best_L[unit]))
            for score, unit in best]


def prefixed(model: Model, text: str) -> tuple[tuple[int, ...], int]:
    """The text's tokens after something that begins it, for a first token's activations are like no other's, and how
    many tokens that is: what the tokenizer begins texts with, or else a line break."""
    ids, bos = model.encode(text).ids, model.tokenizer.bos_token_id
    if bos is not None and ids[0] == bos and len(ids) > 1:
        return ids, 1
    begin = model.tokenizer("\n", add_special_tokens=False)["input_ids"] or [model.tokenizer.eos_token_id or 0]
    return (*begin, *ids), len(begin)


def _surprise(histogram: list[int], value: float, tokens: int) -> float:
    """-log₁₀ of the share of tokens in this value's bin or above; one token is added, the text's own."""
    bin_ = int(np.searchsorted(np.array(EDGES), value, side="right"))
    return -math.log10((sum(histogram[bin_:]) + 1) / (tokens + 1))


def _promoting(model: Model, table: Features, whole: Site, spec: SearchSpec) -> list[Hit]:
    tokens: set[int] = set()
    for word in {spec.text, *spec.text.split()}:
        for form in {word, word.lower(), word.capitalize()}:
            ids = model.tokenizer(f" {form.strip()}", add_special_tokens=False)["input_ids"]
            tokens.update(ids[:1] if len(ids) == 1 else [])
    said = {token: model.say(token) for token in tokens}
    best = sorted(table.promoting(tokens).items(), key=lambda pair: -pair[1])[: spec.top]
    hits = []
    for unit, logit in best:
        at = next(said[token] for token, _ in table.written(unit).promoted if token in tokens)
        hits.append(_hit(whole, unit, "promotes", logit, at, 0.0))
    return hits
