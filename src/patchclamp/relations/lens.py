"""The attribute lens: read one relation's object off any state, with the relation's own map.

    softmax(unembed(norm_final(β · W_l h + b_l)))     at any layer l and token

Hernandez et al. 2023, arXiv 2308.09124, section 6. Where the subject stands in a sentence about something else, nothing
asks for the object; where the same prompt was just answered wrongly, the model itself is often misled. In both
the map may still read the right one off the subject. Beside it the logit lens, read at the layer best for it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import torch
from pydantic import Field

from patchclamp.errors import SpecError
from patchclamp.evidence.bootstrap import bootstrap_mean
from patchclamp.evidence.cli_hints import Positional
from patchclamp.evidence.method import Outcome, Part, Progress, Result, method
from patchclamp.evidence.verdict import Interval, judge
from patchclamp.forward import Model
from patchclamp.forward.streams import layer_sites
from patchclamp.relations.fit import OneRelationSpec
from patchclamp.relations.fitting import fitted
from patchclamp.relations.linear import LinearRelation
from patchclamp.relations.prompts import Fact, question
from patchclamp.relations.readers import Reader, Scores, Setting, readers, score, settings_of
from patchclamp.relations.samples import Known, Parted, knows, read
from patchclamp.tasks.files import DataFile
from patchclamp.tasks.read import read_relation

if TYPE_CHECKING:
    import altair
    import pandas

CARRIERS = (
    "Yesterday we talked about {} for quite a while", "There is a note on the table that mentions {} twice",
    "My neighbour keeps bringing up {} whenever we meet", "The last chapter of the book is about {} and nothing else",
)
"""Sentences about something else, each sample in one of them."""
UNRELATED, WRONG = "in an unrelated sentence", "after a wrong answer"


class LensSpec(OneRelationSpec):
    """Which relation, and where to read it."""

    relation: Annotated[DataFile, Positional()]
    """A relation file; `example:relations/country-capital` is one that comes along."""
    prompt: str | None = None
    """A text to read at every token and layer."""
    k: int = Field(3, ge=1, le=100)
    """The object counts as read if its first token is among the k likeliest."""


class Cell(Part):
    """What the map reads at one token and layer."""

    layer: int
    """-1 for the embeddings, then the block after which the stream is read."""
    position: int
    token: str
    top: str
    """The likeliest first token of an object."""
    prob: float


class LensResult(Result):
    """A relation read off states that did not ask for it."""

    relation: str
    k: int
    layer: dict[str, int]
    """By place the layer that the map is read at, chosen on validation samples."""
    beta: dict[str, float]
    recall: dict[str, dict[str, Interval]]
    """By place and reader the share of test samples whose object is among the k likeliest."""
    samples: dict[str, int]
    """By place the test samples."""
    misled: float
    """Share of test samples for which the model says something else than the object after a wrong answer."""
    cells: list[Cell]
    """Of the prompt given; empty if there was none."""

    def table(self) -> pandas.DataFrame:
        """Recall by place and reader, then the prompt's cells, a row a layer."""
        import pandas

        rows = [{"where": where, "reader": name, **interval.model_dump()} for where, some in self.recall.items()
                for name, interval in some.items()]
        by_layer: dict[int, dict[str, str]] = {}
        for cell in self.cells:
            by_layer.setdefault(cell.layer, {})[f"{cell.position} {cell.token}"] = cell.top
        rows += [{"where": f"layer {layer}", **says} for layer, says in by_layer.items()]
        return pandas.DataFrame(rows).astype(object).fillna("")

    def chart(self) -> altair.TopLevelMixin:
        """The prompt's cells, and recall beside the logit lens's."""
        from patchclamp.charts.relations import relation_lens_chart

        return relation_lens_chart(self)


@method("relations.lens", spec=LensSpec, result=LensResult)
def attribute_lens(model: Model, spec: LensSpec, progress: Progress) -> Outcome:
    """Read a relation's object off any state: in sentences about something else, and after a wrong answer.

    The verdict asks whether, in unrelated sentences, the object is more often among the first k of the relation's map
    than of the logit lens, each read at the layer best for it on other samples.
    """
    relation = read_relation(spec.relation)
    parted, made = fitted(model, relation, spec, Path(spec.relation).name, progress, spec.fits)
    lre, *others = readers(made, parted.fit)
    logit = next(reader for reader in others if reader.name == "logit_lens")
    if len(parted.test) < 2:
        raise SpecError(f"{spec.relation}: the model knows too few samples to test the lens on")
    hits: dict[str, dict[str, np.ndarray]] = {}
    chosen: dict[str, Setting] = {}
    for where in (UNRELATED, WRONG):
        validation, test = (_placed(model, parted, known, where, spec.seed, progress)
                            for known in (parted.validation, parted.test))
        misled = len(test)
        if len(validation) and len(test):
            hits[where] = {}
            for reader, name in ((lre, "linear map"), (logit, "logit lens")):
                setting = _best(model, reader, validation, spec.k)
                hits[where][name] = _recalled(score(model, reader, test, [setting]), spec.k)[0]
                chosen.setdefault(where, setting)
    result = LensResult(
        relation=relation.name, k=spec.k, layer={where: one.layer for where, one in chosen.items()},
        beta={where: one.beta for where, one in chosen.items()},
        recall={where: {name: bootstrap_mean(one, spec.seed) for name, one in some.items()}
                for where, some in hits.items()},
        samples={where: len(some["linear map"]) for where, some in hits.items()}, misled=misled / len(parted.test),
        cells=_cells(model, made, chosen[UNRELATED].beta, spec.prompt) if spec.prompt else [],
    )
    return result, judge(
        hits[UNRELATED]["linear map"], hits[UNRELATED]["logit lens"], direction="greater", seed=spec.seed,
        claim=f"the object of '{relation.name}' can be read off its subject in a sentence about something else (share "
              f"of {result.samples[UNRELATED]} samples whose object is among the first {spec.k} of the relation's map, "
              "against the logit lens)")


def _placed(model: Model, parted: Parted, known: Known, where: str, seed: int, progress: Progress) -> Known:
    """Samples with their subject in an unrelated sentence, or asked for after a wrong answer; of the latter those for
    which the model says something else than the object."""
    facts = []
    objects = [one.sample.object for one in known.facts]
    generator = np.random.default_rng(seed)
    for index, one in enumerate(known.facts):
        subject = one.sample.subject
        if where == UNRELATED:
            asked = question(model, CARRIERS[index % len(CARRIERS)], subject)
        else:
            others = [other for other in objects if other != one.sample.object]
            if not others:
                continue
            wrong = others[int(generator.integers(len(others)))]
            told = f"{parted.template.replace('{}', subject).rstrip(' ')} {wrong}. "
            asked = question(model, parted.template, subject, before_it=told)
        facts.append(Fact(one.sample, asked.ids, asked.position, one.answer))
    if where == WRONG:
        facts = [one for one, right in zip(facts, knows(model, facts, progress), strict=True) if not right]
    return read(model, facts, progress)


def _recalled(scores: Scores, k: int) -> np.ndarray:
    """Whether each object is among the first k, [settings, N]."""
    return (scores.rank < k).astype(float)


def _best(model: Model, reader: Reader, validation: Known, k: int) -> Setting:
    """The setting with the highest recall on validation samples; of equals the one with the highest log-probability."""
    settings = settings_of(reader, validation)
    scores = score(model, reader, validation, settings)
    merit = list(zip(_recalled(scores, k).mean(1), scores.logprob.mean(1), strict=True))
    return settings[max(range(len(settings)), key=merit.__getitem__)]


def _cells(model: Model, made: LinearRelation, beta: float, prompt: str) -> list[Cell]:
    """The map at every token and layer of a prompt, but for the last block's."""
    encoded = model.encode(prompt)
    streams = model.capture([encoded.ids], layer_sites(model, "all")[:-1])
    cells = []
    for layer, site in enumerate(streams, start=-1):
        z_TD = made.objects(streams.rows(site)[0].float().cpu(), layer, beta)
        with torch.no_grad():
            probs, ids = model.anatomy.unembed(z_TD.to(model.device, model.dtype)).float().softmax(-1).max(-1)
        cells += [Cell(layer=layer, position=i, token=encoded.pieces[i], top=model.say(int(ids[i])),
                       prob=float(probs[i])) for i in range(len(encoded))]
    return cells
