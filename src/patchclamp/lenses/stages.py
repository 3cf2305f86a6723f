"""Stages of an answer over many facts: does the stream name the subject before the object, and only when it recalls?

    reciprocal rank of a token = 1 / (its rank in the logit lens at that layer + 1), averaged over facts

Merullo et al. 2023, "Language Models Implement Simple Word2Vec-style Vector Arithmetic", arXiv 2305.16130: asked for
the capital of Poland, GPT-2 says Poland after block 15 and Warsaw after block 19; where the passage states the fact,
the stage with Poland is missing.
"""

from typing import TYPE_CHECKING, Annotated, NamedTuple

import numpy as np
from pydantic import Field, field_validator

from patchclamp.errors import FileError
from patchclamp.evidence.bootstrap import bootstrap_mean
from patchclamp.evidence.cli_hints import Positional
from patchclamp.evidence.method import Outcome, Part, Progress, Result, Spec, method
from patchclamp.evidence.verdict import Interval, Verdict, judge
from patchclamp.forward import Model, metrics
from patchclamp.forward.streams import decoded, streams
from patchclamp.lenses.reading import word_tokens
from patchclamp.tasks.files import DataFile
from patchclamp.tasks.read import read_relation
from patchclamp.tasks.rows import RelationSample

if TYPE_CHECKING:
    import altair
    import pandas

FEWEST = 12
ROLES = ("subject", "object", "other")


class StagesSpec(Spec):
    """Which facts to ask for."""

    relation: Annotated[DataFile, Positional()] = "example:country-capital"
    """A relation file; its first prompt template is asked."""
    passage: str | None = None
    """A text that states the fact, with {subject} and {object} in it: the same question is then also asked after this
    passage, and the verdict compares the two."""
    limit: int = Field(60, ge=FEWEST)
    """At most this many facts."""
    known: bool = True
    """Count only facts the model gives as its first choice."""

    @field_validator("passage")
    @classmethod
    def _has_both(cls, passage: str | None) -> str | None:
        for part in ("{subject}", "{object}"):
            if passage is not None and part not in passage:
                raise ValueError(f"the passage {passage!r} does not say where {part} goes")
        return passage


class Stage(Part):
    """Mean reciprocal rank at one layer, with its 95 % interval."""

    layer: int
    """-1 for the embeddings, then the block after which the stream is read."""
    subject: Interval
    object: Interval
    other: Interval
    """The control: the subject of another fact."""


class StagesResult(Result):
    """What the stream at the last token names on the way to the answer."""

    layers: list[Stage]
    """Asked for the fact alone."""
    passage_layers: list[Stage] | None = None
    """Asked after the passage that states it."""
    facts: int
    """Facts averaged."""
    unknown: int
    """Facts left out because the model does not know them."""
    skipped: int
    """Facts left out because subject or object is several tokens, or both are the same."""
    prompt: str
    """The first prompt, as an example."""

    def table(self) -> "pandas.DataFrame":
        """One row a layer: the mean reciprocal rank of subject, object and another subject."""
        import pandas

        return pandas.DataFrame([
            {"prompt": name, "layer": stage.layer, **{role: getattr(stage, role).mean for role in ROLES}}
            for name, stages in (("recall", self.layers), ("passage", self.passage_layers or [])) for stage in stages
        ])

    def chart(self) -> "altair.TopLevelMixin":
        """Reciprocal rank by layer, with intervals; one panel a prompt format."""
        from patchclamp.charts.stages import stages_chart

        return stages_chart(self)


class Fact(NamedTuple):
    """A fact whose two words are one token each."""

    sample: RelationSample
    subject: int
    object: int


@method("lens.stages", spec=StagesSpec, result=StagesResult)
def stages(model: Model, spec: StagesSpec, progress: Progress) -> Outcome:
    """Follow subject and object of many facts through the layers, at the prompt's last token.

    The verdict asks whether the stream names the subject on the way, more than it names subjects of other facts; with
    a passage, whether it does so more when the fact is recalled than when it is read.
    """
    relation = read_relation(spec.relation)
    samples = relation.samples
    template = relation.prompt_templates[0]
    facts = [fact for fact in (_fact(model, s) for s in samples) if fact is not None]
    skipped = len(samples) - len(facts)
    order = np.random.default_rng(spec.seed).permutation(len(facts))
    facts = [facts[i] for i in order][: spec.limit]
    recall_NRL, says_N = _follow(model, facts, [template.format(f.sample.subject) for f in facts], spec.seed, progress)
    kept = says_N if spec.known else np.ones(len(facts), dtype=bool)
    if int(kept.sum()) < FEWEST:
        raise FileError(f"{spec.relation}: {int(kept.sum())} facts whose subject and object are single tokens"
                        f"{' and which the model knows' if spec.known else ''}; at least {FEWEST} are needed")
    passage_NRL = None
    if spec.passage is not None:
        asked = [f"{spec.passage.format(subject=s.subject, object=s.object)} {template.format(s.subject)}"
                 for s in (f.sample for f in facts)]
        passage_NRL = _follow(model, facts, asked, spec.seed, progress)[0][kept]
    result = StagesResult(
        layers=_averaged(recall_NRL[kept], spec.seed), facts=int(kept.sum()), unknown=int((~kept).sum()),
        passage_layers=None if passage_NRL is None else _averaged(passage_NRL, spec.seed),
        skipped=skipped, prompt=template.format(next(f for f, k in zip(facts, kept, strict=True) if k).sample.subject),
    )
    return result, _verdict(model, recall_NRL[kept], passage_NRL, spec.seed)


def _fact(model: Model, sample: RelationSample) -> Fact | None:
    """The tokens of a fact; None where a word is several tokens, for its first piece would be another word."""
    ids = [word_tokens(model, word) for word in (sample.subject, sample.object)]
    if any(len(one) != 1 for one in ids) or ids[0] == ids[1]:
        return None
    return Fact(sample, ids[0][0], ids[1][0])


def _follow(
    model: Model, facts: list[Fact], prompts: list[str], seed: int, progress: Progress
) -> tuple[np.ndarray, np.ndarray]:
    """Reciprocal ranks [N,roles,L] and whether the object is the model's first choice [N]."""
    subjects = list(dict.fromkeys(f.subject for f in facts))
    generator = np.random.default_rng(seed)
    places = streams(model, prompts, track=progress.track)
    found, first = [], []
    for fact, logits_LV in zip(facts, decoded(model, progress.track(places, "unembedding")), strict=True):
        other = int(generator.choice([s for s in subjects if s not in (fact.subject, fact.object)]))
        ranks_RL = [metrics.rank(logits_LV, token).tolist() for token in (fact.subject, fact.object, other)]
        found.append(1 / (np.array(ranks_RL) + 1))
        first.append(ranks_RL[1][-1] == 0)
    return np.array(found), np.array(first, dtype=bool)


def _averaged(values_NRL: np.ndarray, seed: int) -> list[Stage]:
    return [
        Stage(layer=index - 1, **{role: bootstrap_mean(values_NRL[:, r, index], seed) for r, role in enumerate(ROLES)})
        for index in range(values_NRL.shape[2])
    ]


def _verdict(model: Model, recall_NRL: np.ndarray, passage_NRL: np.ndarray | None, seed: int) -> Verdict:
    """The subject's greatest reciprocal rank before the last layer, beside the control's."""
    greatest_NR = recall_NRL[:, :, :-1].max(-1)
    if passage_NRL is None:
        return judge(
            greatest_NR[:, 0], greatest_NR[:, 2], direction="greater", seed=seed,
            claim=f"{model.name} names the subject on the way to the object (greatest reciprocal rank before the last "
                  "layer, against another fact's subject)",
        )
    return judge(
        greatest_NR[:, 0], passage_NRL[:, 0, :-1].max(-1), direction="greater", seed=seed,
        claim=f"{model.name} names the subject on the way when it recalls a fact, more than when it reads it in the "
              "passage (greatest reciprocal rank before the last layer)",
    )
