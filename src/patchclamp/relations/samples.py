"""Which of a relation's samples the model knows, and which of them are fitted on, chosen on and tested on.

Shape suffixes: N samples, L layers (embeddings first, without the last block), D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from patchclamp.errors import FileError, SpecError
from patchclamp.evidence.method import Progress, Spec
from patchclamp.forward import Model, Plan, Readout
from patchclamp.forward.streams import layer_sites
from patchclamp.relations.prompts import Fact, fact, unclear
from patchclamp.tasks.rows import RelationFile, RelationSample

FEWEST_KNOWN, FEWEST_FITTED = 10, 2
"""Samples the model has to know: a third to fit on, the others to choose on and to test on."""


class SamplesSpec(Spec):
    """How a relation's samples are asked and parted."""

    samples: int = Field(8, ge=2, le=100)
    """Samples the map is fitted on, one Jacobian each, and told as examples before each prompt; fewer where the model
    knows less than three times as many."""
    template: int = Field(0, ge=0)
    """Which of the file's prompt templates, from 0."""
    limit: int = Field(300, ge=FEWEST_KNOWN)
    """At most so many samples of the file, drawn at random, are asked."""
    tests: int = Field(50, ge=4)
    """At most so many of the samples that the model knows are tested on, and half as many chosen on."""


@dataclass(frozen=True)
class Known:
    """Samples that the model answers rightly, and its streams there."""

    facts: list[Fact]
    h: Tensor
    """Subjects: the stream at their last token, [N, L, D]."""
    z: Tensor
    """Objects: the last block's stream at the prompt's end, [N, D]."""

    def __len__(self) -> int:
        return len(self.facts)

    @property
    def answers(self) -> Tensor:
        """Ids of the objects' first tokens, [N]."""
        return torch.tensor([one.answer for one in self.facts])


@dataclass(frozen=True)
class Parted:
    """A relation's samples, parted."""

    template: str
    examples: list[RelationSample]
    """Told before each prompt, but for the prompt's own."""
    fit: Known
    validation: Known
    test: Known
    asked: int
    known: int
    skipped: dict[str, str]
    """Objects whose first token does not tell them, and why."""


def template_of(relation: RelationFile, number: int, file: str) -> str:
    """A relation's template by its number. SpecError if it has fewer."""
    if number >= len(relation.prompt_templates):
        raise SpecError(f"{file} has {len(relation.prompt_templates)} templates, numbered from 0; there is no "
                        f"number {number}")
    return relation.prompt_templates[number]


def part(model: Model, relation: RelationFile, spec: SamplesSpec, file: str, progress: Progress) -> Parted:
    """Ask for the samples and part those the model knows. FileError, saying how many it knows, if these are too few.

    Which it knows is found out after examples drawn at random; those fitted on are drawn among them and become the
    examples of all others, and of each other; all are asked again. Of a subject with several objects the first
    counts."""
    if model.n_layers < 2:
        raise SpecError(f"{model.name} has one block, and nothing read before it is fitted; use a model with more")
    template = template_of(relation, spec.template, file)
    generator = np.random.default_rng(spec.seed)
    distinct = list({one.subject: one for one in reversed(relation.samples)}.values())[::-1]
    drawn = [distinct[i] for i in generator.permutation(len(distinct))[: spec.limit]]
    skipped = unclear(model, [fact(model, template, one) for one in drawn])
    clear = [one for one in drawn if one.object not in skipped]
    shots = min(spec.samples, len(clear) // 3)
    told, others = clear[:shots], clear[shots:]
    known = known_of(model, [fact(model, template, one, told) for one in others], progress)
    if len(known) < FEWEST_KNOWN // 2:
        raise FileError(_too_few(file, len(known), len(others), skipped))
    n_fit = min(spec.samples, len(known), max(3, (len(known) + len(told)) // 3))
    fitted = [one.sample for one in known[:n_fit]]
    examples = fitted + [one for one in told if one not in fitted][: max(0, shots - n_fit)]
    fit = known_of(model, [fact(model, template, one, examples) for one in fitted], progress)
    rest = [fact(model, template, one, examples) for one in clear if one not in examples]
    right = known_of(model, rest, progress)
    if len(fit) < FEWEST_FITTED or len(right) + len(fit) < FEWEST_KNOWN:
        raise FileError(_too_few(file, len(right) + len(fit), len(rest) + n_fit, skipped))
    chosen = min(spec.tests // 2, len(right) // 2)
    sets = fit, right[:chosen], right[chosen : chosen + spec.tests]
    fitted_on, validation, test = (read(model, some, progress) for some in sets)
    return Parted(template, examples, fitted_on, validation, test, len(rest) + n_fit, len(right) + len(fit), skipped)


def _too_few(file: str, known: int, asked: int, skipped: dict[str, str]) -> str:
    more = ""
    if skipped:
        name, why = next(iter(skipped.items()))
        more = f"; {len(skipped)} objects are left out because their first token does not tell them ({name!r}: {why})"
    return (f"{file}: the model knows {known} of {asked}; needs {FEWEST_KNOWN}, to fit, choose and test on{more}. Use "
            "more samples, a clearer template (--template), or a larger model")


def known_of(model: Model, facts: Sequence[Fact], progress: Progress) -> list[Fact]:
    """Those of some facts that the model answers rightly."""
    return [one for one, is_known in zip(facts, knows(model, facts, progress), strict=True) if is_known]


def knows(model: Model, facts: Sequence[Fact], progress: Progress) -> list[bool]:
    """Whether the first token of each object is the model's first choice."""
    plan = Plan.of([(one.ids, (), [Readout.rank(one.answer)]) for one in facts])
    return [int(rank) == 0 for (rank,) in model.execute(plan, track=progress.track)]


def read(model: Model, facts: Sequence[Fact], progress: Progress) -> Known:
    """The streams of facts at the subject and at the end."""
    *early, last = range(-1, model.n_layers)
    plan = Plan.of([(one.ids, (), [*layer_sites(model, one.position)[:-1], f"resid.{last}@last"]) for one in facts])
    rows = [torch.stack([value.float().cpu() for value in row]) for row in model.execute(plan, track=progress.track)]
    streams_NSD = torch.stack(rows) if rows else torch.zeros(0, len(early) + 1, model.d_model)
    return Known(list(facts), streams_NSD[:, :-1], streams_NSD[:, -1])
