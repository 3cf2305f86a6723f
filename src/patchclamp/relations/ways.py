"""The ways to edit a fact: what is chosen on validation pairs, and the change that each pair then gets.

    inverse   add W⁺ (z_target - z_source) to the subject's stream        block and rank chosen
    swap      put the target's subject's stream in its place              block chosen
    neurons   rewrite the value vectors that wrote the old answer         strength chosen
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from patchclamp.evidence.method import Progress
from patchclamp.forward import Edit, Model, Plan, Readout
from patchclamp.forward.rewrite import MovedValues, rewritten
from patchclamp.relations import knowledge
from patchclamp.relations.edited import EditSpec
from patchclamp.relations.fitting import fit
from patchclamp.relations.inverse import Pairs, Turn, changes, choose_block, choose_turn, random_changes, stream_edit
from patchclamp.relations.prompts import Fact, question
from patchclamp.relations.samples import Parted
from patchclamp.tasks.rows import RelationFile

CHOOSE_PAIRS = 8
"""Validation pairs that the strength of a rewriting is chosen on."""


class Change(NamedTuple):
    """One edit of one fact: a value for the subject's stream at a layer, or value vectors moved."""

    how: str
    """add, set or move."""
    layer: int
    value: Tensor | MovedValues

    def edits(self, model: Model, position: int) -> list[Edit]:
        """The edits for a prompt whose subject ends at a token."""
        if isinstance(self.value, MovedValues):
            return []
        return [stream_edit(model, self.how, self.layer, self.value, position)]

    @property
    def moved(self) -> MovedValues | None:
        """The value vectors it moves."""
        return self.value if isinstance(self.value, MovedValues) else None


class Way:
    """One way of editing, its settings chosen on validation pairs."""

    name: str
    """As it stands in a verdict."""
    control = "random changes as long"
    layer: int | None = None
    rank: int | None = None
    strength: float | None = None

    def changes(self, pairs: Pairs) -> list[Change]:
        """The edit of each pair."""
        raise NotImplementedError

    def at_random(self, pairs: Pairs, own: Sequence[Change], seed: int) -> list[Change]:
        """A control change for each pair, given its own edit."""
        raise NotImplementedError


class Stream(Way):
    """By the subject's stream at one layer: `inverse` or `swap`."""

    layer: int

    def __init__(self, model: Model, spec: EditSpec, relation: RelationFile, parted: Parted, validation: Pairs,
                 progress: Progress) -> None:
        self.spec, self.parted = spec, parted
        if spec.by == "swap":
            self.layer = spec.layer if spec.layer is not None else choose_block(model, validation, progress)
            self.name = f"another subject's state after block {self.layer}"
            return
        self.map = fit(model, relation, parted, progress, spec.fits)
        turn = choose_turn(model, self.map, validation, progress, spec.layer, spec.rank)
        self.layer, self.rank = turn
        self.name = f"the inverse of its map after block {self.layer}, rank {self.rank}"

    def changes(self, pairs: Pairs) -> list[Change]:
        if self.spec.by == "swap":
            return swaps(pairs, self.layer)
        assert self.rank is not None
        return [Change("add", self.layer, one) for one in changes(self.map, pairs, Turn(self.layer, self.rank))]

    def at_random(self, pairs: Pairs, own: Sequence[Change], seed: int) -> list[Change]:
        h_ND = pairs.known.h[:, self.layer + 1]
        like_PD = torch.stack([one.value for one in own if isinstance(one.value, Tensor)])
        if self.spec.by == "swap":
            like_PD = like_PD - h_ND[pairs.source]
        drawn_PD = random_changes(self.parted.test.h[:, self.layer + 1], like_PD, seed)
        return [Change("add", self.layer, one) for one in drawn_PD]



class Neurons(Way):
    """By the value vectors of each fact's knowledge neurons."""

    name = "rewriting the value vectors of the neurons that wrote the old answer"
    control = "the same rewriting of random neurons"

    def __init__(self, model: Model, relation: RelationFile, parted: Parted, validation: Pairs, progress: Progress
                 ) -> None:
        self.model, self.relation, self.parted = model, relation, parted
        pairs = Pairs(validation.known, validation.source[:CHOOSE_PAIRS], validation.target[:CHOOSE_PAIRS])
        found = [self._find(pairs.known.facts[i]) for i in progress.track(pairs.source, "knowledge neurons")]
        shares = [works(model, pairs, self._moved(pairs, found, strength)).mean() if found else 0.0
                  for strength in knowledge.STRENGTHS]
        self.strength = knowledge.STRENGTHS[int(np.argmax(shares))]

    def _find(self, one: Fact) -> knowledge.Found:
        """The neurons of one fact, over all the relation's templates."""
        asked = (question(self.model, template, one.sample.subject, self.parted.examples)
                 for template in self.relation.prompt_templates)
        return knowledge.find(self.model, [one._replace(ids=again.ids, position=again.position) for again in asked])

    def _moved(self, pairs: Pairs, found: Sequence[knowledge.Found], strength: float) -> list[Change]:
        facts = pairs.known.facts
        return [Change("move", -1, knowledge.moved(self.model, own, facts[s].answer, facts[t].answer, strength))
                for own, s, t in zip(found, pairs.source, pairs.target, strict=True)]

    def changes(self, pairs: Pairs) -> list[Change]:
        assert self.strength is not None
        return self._moved(pairs, [self._find(pairs.known.facts[i]) for i in pairs.source], self.strength)

    def at_random(self, pairs: Pairs, own: Sequence[Change], seed: int) -> list[Change]:
        return [Change("move", -1, knowledge.at_random(self.model, one.moved, seed + 1000 * i))
                for i, one in enumerate(own) if one.moved is not None]


def swaps(pairs: Pairs, layer: int) -> list[Change]:
    """The other subject's stream for each pair."""
    return [Change("set", layer, pairs.known.h[target, layer + 1]) for target in pairs.target]


def works(model: Model, pairs: Pairs, edits: Sequence[Change]) -> np.ndarray:
    """Whether the target's answer becomes each pair's first choice, [P]."""
    facts = pairs.known.facts
    rows = [(facts[s], facts[t].answer, edit) for s, t, edit in zip(pairs.source, pairs.target, edits, strict=True)]
    return np.array([float(rank == 0) for rank in ranks(model, rows)])


def ranks(model: Model, rows: Sequence[tuple[Fact, int, Change | None]]) -> list[int]:
    """Rank of a token after each fact's prompt under a change. Rows that move the same value vectors run together."""
    found: dict[int, int] = {}
    groups: dict[int, list[int]] = {}
    for i, (_, _, edit) in enumerate(rows):
        groups.setdefault(id(edit.moved) if edit else id(None), []).append(i)
    for group in groups.values():
        first = rows[group[0]][2]
        plan = Plan.of([(one.ids, edit.edits(model, one.position) if edit else [], [Readout.rank(token)])
                        for one, token, edit in (rows[i] for i in group)])
        with rewritten(model, first.moved if first else None):
            found.update((i, int(rank)) for i, (rank,) in zip(group, model.execute(plan), strict=True))
    return [found[i] for i in range(len(rows))]
