"""Edit one fact, show what the model says before and after, and test the same kind of edit on other facts.

Hernandez et al. 2023, arXiv 2308.09124, section 5; by neurons Dai et al. 2022, arXiv 2104.08696.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from patchclamp.errors import SpecError
from patchclamp.evidence.bootstrap import bootstrap_mean, mean_if_any
from patchclamp.evidence.method import Outcome, Progress, method
from patchclamp.evidence.verdict import NO_INTERVAL, judge
from patchclamp.forward import Edit, Model, Plan, Readout, Site
from patchclamp.forward.prepare import check_site
from patchclamp.forward.rewrite import MovedValues, rewritten
from patchclamp.relations import knowledge
from patchclamp.relations.edited import Answer, EditResult, EditSpec, Kind, SideEffect
from patchclamp.relations.fitting import fitted
from patchclamp.relations.inverse import Pairs, Turn, changes, choose_turn, draw_pairs, random_changes
from patchclamp.relations.linear import LinearRelation
from patchclamp.relations.prompts import Fact, fact, question
from patchclamp.relations.samples import Known, Parted, read
from patchclamp.tasks.files import locate
from patchclamp.tasks.read import is_relation, read_relation
from patchclamp.tasks.rows import RelationFile

CHOOSE_PAIRS = 8
"""Validation pairs that the strength of a rewriting is chosen on."""
OTHER_SUBJECTS = 20
OTHER_EXAMPLES = 5
"""Examples told before a fact of another relation."""


class Change(NamedTuple):
    """One edit of one fact: a value for the subject's stream at a layer, or value vectors rewritten."""

    how: str
    """add, set or neurons."""
    layer: int
    value: object

    def edits(self, position: int) -> list[Edit]:
        """The edits for a prompt whose subject ends at a token."""
        if self.how == "neurons":
            return []
        site = f"embed@{position}" if self.layer < 0 else f"resid.{self.layer}@{position}"
        return [Edit.add(site, self.value, 1.0, "raw") if self.how == "add" else Edit.set(site, self.value)]

    @property
    def moved(self) -> MovedValues | None:
        """The value vectors it moves."""
        return self.value if isinstance(self.value, MovedValues) else None


@method("relations.edit", spec=EditSpec, result=EditResult)
def edit_fact(model: Model, spec: EditSpec, progress: Progress) -> Outcome:
    """Make the model answer with another subject's object, and show what else that changes.

    The verdict asks whether such edits, of other facts of the relation, make the other object the model's first choice
    more often than random changes as long, or the same rewriting of random neurons, do.
    """
    relation = read_relation(spec.relation)
    _check(model, spec, relation)
    others = [one for one in relation.samples if one.subject not in (spec.subject, spec.to_object_of)]
    if not others:
        raise SpecError(f"{spec.relation} has no samples on other subjects to fit the relation on")
    parted, made = fitted(model, relation.model_copy(update={"samples": tuple(others)}), spec,
                          Path(spec.relation).name, progress, spec.fits)
    shown = read(model, [
        _asked(model, relation, parted, spec.subject, False), _asked(model, relation, parted, spec.to_object_of, True),
    ], progress)
    if shown.facts[0].answer == shown.facts[1].answer:
        raise SpecError(f"the model answers both {spec.subject!r} and {spec.to_object_of!r} with "
                        f"{model.say(shown.facts[0].answer)!r}, so there is nothing to edit")
    way = _Way(model, spec, relation, parted, made, progress)
    pair = Pairs(shown, [0], [1])
    (change,), (random, *_) = way.changes(pair), way.at_random(pair)
    tests = draw_pairs(parted.test, spec.seed)
    tests = Pairs(parted.test, tests.source[: spec.pairs], tests.target[: spec.pairs])
    if not tests.source:
        raise SpecError(f"{spec.relation}: all facts left to test on have one object, so that none can be edited into "
                        "another; use a file with more, or more --tests")
    works_P = _works(model, tests, way.changes(tests), progress)
    random_GP = np.stack([_works(model, tests, some, progress)
                          for some in progress.track(way.at_random(tests), "random changes", spec.controls)])
    effects = [*_same_subject(model, spec, change), *_other_subjects(model, spec, relation, parted, shown, change)]
    kept = {kind: mean_if_any([float(one.kept) for one in effects if one.kind == kind], spec.seed)
            for kind in ("same subject", "other subject")}
    swap = NO_INTERVAL if spec.by == "neurons" else bootstrap_mean(
        _works(model, tests, way.swaps(tests), progress), spec.seed)
    verdict = judge(
        works_P, random_GP, direction="greater", against="distribution", share=True, seed=spec.seed,
        claim=f"facts of '{relation.name}' can be edited by {way.name} (share of {len(works_P)} test facts whose first "
              "choice becomes the other subject's object, against "
              + ("the same rewriting of random neurons" if spec.by == "neurons" else "random changes as long") + ")")
    answers = [_answer(model, shown, one, spec.max_new_tokens) for one in (None, change, random[0])]
    return EditResult(
        relation=relation.name, subject=spec.subject, target=spec.to_object_of, by=spec.by, template=parted.template,
        old=model.say(shown.facts[0].answer), new=model.say(shown.facts[1].answer),
        layer=None if spec.by == "neurons" else way.turn.layer, rank=way.turn.rank if spec.by == "inverse" else None,
        neurons=[f"neuron.{layer}.{unit}" for layer, own in (change.moved.shares.items() if change.moved else ())
                 for unit in own],
        strength=way.strength, before=answers[0], after=answers[1], random_answer=answers[2], pairs=len(works_P),
        success=bootstrap_mean(works_P, spec.seed), swap=swap, random=verdict.control, side_effects=effects,
        same_subject_kept=kept["same subject"], other_subjects_kept=kept["other subject"],
    ), verdict


def _check(model: Model, spec: EditSpec, relation: RelationFile) -> None:
    """SpecError for what can be known to be wrong before anything is run."""
    subjects = [one.subject for one in relation.samples]
    for name in (spec.subject, spec.to_object_of):
        if name not in subjects:
            near = difflib.get_close_matches(name, subjects, n=3)
            raise SpecError(f"{spec.relation} has no subject {name!r}; "
                            + (f"near it: {', '.join(near)}" if near else f"it has {', '.join(subjects[:5])}, …"))
    if spec.subject == spec.to_object_of:
        raise SpecError(f"{spec.subject!r} is to get its own object; name another subject")
    if spec.layer is not None and spec.layer >= model.n_layers - 1:
        raise SpecError(f"layer {spec.layer}: {model.name} has blocks 0 to {model.n_layers - 1}, and what changes "
                        "after the last one at the subject never reaches the answer")
    if spec.rank is not None and spec.rank > model.d_model:
        raise SpecError(f"rank {spec.rank}: W is {model.d_model} wide")
    if spec.by == "neurons":
        check_site(model.anatomy, Site("neuron", 0), model.name)


def _asked(model: Model, relation: RelationFile, parted: Parted, subject: str, must_know: bool) -> Fact:
    """A subject asked for, and the token that the model itself answers with. SpecError if that has to be the object's
    and is not."""
    sample = next(one for one in relation.samples if one.subject == subject)
    asked = fact(model, parted.template, sample, parted.examples)
    ((top,),) = model.run(asked.ids, read=[Readout.top(1)])
    if must_know and top.id != asked.answer:
        raise SpecError(f"the model does not know {subject!r}: it says {top.text!r}, the file {sample.object!r}; name "
                        "a subject whose object it knows")
    return asked._replace(answer=top.id)


class _Way:
    """How facts are edited: settings chosen once, changes made for any pairs."""

    def __init__(self, model: Model, spec: EditSpec, relation: RelationFile, parted: Parted, made: LinearRelation,
                 progress: Progress) -> None:
        self.model, self.spec, self.relation, self.parted, self.made = model, spec, relation, parted, made
        self.strength: float | None = None
        self.turn = Turn(-1, 1)
        validation = draw_pairs(parted.validation, spec.seed)
        if spec.by == "neurons":
            some = Pairs(parted.validation, validation.source[:CHOOSE_PAIRS], validation.target[:CHOOSE_PAIRS])
            self.strength = self._choose_strength(some, progress)
            self.name = "rewriting the value vectors of the neurons that wrote the old answer"
        else:
            turn, _ = choose_turn(model, made, validation, progress)
            layer = turn.layer if spec.layer is None else spec.layer
            self.turn = Turn(layer, spec.rank or turn.rank)
            self.name = (f"the inverse of its map after block {layer}, rank {self.turn.rank}" if spec.by == "inverse"
                         else f"another subject's state after block {layer}")

    def _choose_strength(self, pairs: Pairs, progress: Progress) -> float:
        found = [self._neurons(one) for one in progress.track(pairs.source, "knowledge neurons", len(pairs.source))]
        shares = [_works(self.model, pairs, self._rewrite(pairs, found, strength), progress).mean()
                  for strength in knowledge.STRENGTHS]
        return knowledge.STRENGTHS[int(np.argmax(shares))]

    def _neurons(self, index: int, known: Known | None = None) -> knowledge.Found:
        """The neurons of one fact, over all the relation's templates."""
        one = (known or self.parted.validation).facts[index]
        asked = [Fact(one.sample, again.ids, again.position, one.answer) for again in (
            question(self.model, template, one.sample.subject, self.parted.examples)
            for template in self.relation.prompt_templates)]
        return knowledge.find(self.model, asked)

    def _rewrite(self, pairs: Pairs, found: Sequence[knowledge.Found], strength: float) -> list[Change]:
        facts = pairs.known.facts
        return [Change("neurons", -1, knowledge.moved(self.model, own, facts[s].answer, facts[t].answer, strength))
                for own, s, t in zip(found, pairs.source, pairs.target, strict=True)]

    def changes(self, pairs: Pairs) -> list[Change]:
        """The edit of each pair."""
        if self.spec.by == "swap":
            return self.swaps(pairs)
        if self.spec.by == "neurons":
            assert self.strength is not None
            return self._rewrite(pairs, [self._neurons(i, pairs.known) for i in pairs.source], self.strength)
        return [Change("add", self.turn.layer, one) for one in changes(self.made, pairs, self.turn)]

    def swaps(self, pairs: Pairs) -> list[Change]:
        """The other subject's stream for each pair."""
        layer = self.turn.layer
        return [Change("set", layer, pairs.known.h[t, layer + 1]) for t in pairs.target]

    def at_random(self, pairs: Pairs) -> list[list[Change]]:
        """Control changes of each pair, one list a control."""
        seeds = [self.spec.seed + 1 + i for i in range(self.spec.controls)]
        if self.spec.by == "neurons":
            own = self.changes(pairs)
            return [[Change("neurons", -1, knowledge.at_random(self.model, one.moved, seed + 1000 * i))
                     for i, one in enumerate(own) if one.moved is not None] for seed in seeds]
        layer = self.turn.layer
        like = changes(self.made, pairs, self.turn) if self.spec.by == "inverse" else (
            pairs.known.h[pairs.target, layer + 1] - pairs.known.h[pairs.source, layer + 1])
        drawn = [random_changes(self.parted.test.h[:, layer + 1], like, seed) for seed in seeds]
        return [[Change("add", layer, one) for one in some] for some in drawn]


def _works(model: Model, pairs: Pairs, edits: Sequence[Change], progress: Progress) -> np.ndarray:
    """Whether the target's answer becomes each pair's first choice, [P]."""
    rows = [(pairs.known.facts[s], pairs.known.facts[t].answer, edit)
            for s, t, edit in zip(pairs.source, pairs.target, edits, strict=True)]
    return np.array([float(rank == 0) for rank in _ranks(model, rows, progress)])


def _ranks(
    model: Model, rows: Sequence[tuple[Fact, int, Change | None]], progress: Progress | None = None
) -> list[int]:
    """Rank of a token after each fact's prompt under a change; rewritings run one by one."""
    made = [(one.ids, edit.edits(one.position) if edit else [], [Readout.rank(token)]) for one, token, edit in rows]
    ranks = {}
    plain = [i for i, (_, _, edit) in enumerate(rows) if edit is None or edit.moved is None]
    for i, (rank,) in zip(plain, model.execute(Plan.of([made[i] for i in plain])), strict=True):
        ranks[i] = int(rank)
    for i, (_, _, edit) in enumerate(rows):
        if i not in ranks:
            with rewritten(model, edit.moved if edit else None):
                ranks[i] = int(model.execute(Plan.of([made[i]]))[0][0])
    return [ranks[i] for i in range(len(rows))]


def _answer(model: Model, shown: Known, change: Change | None, length: int) -> Answer:
    """What the model says of the shown fact under a change."""
    one, other = shown.facts
    edits = change.edits(one.position) if change else []
    with rewritten(model, change.moved if change else None):
        probabilities = model.run(one.ids, edits, [Readout.probability(one.answer, other.answer)])[0].tolist()
        text = model.generate(one.ids, edits, length).text
    return Answer(text=text.split("\n")[0], old=probabilities[0], new=probabilities[1])


def _same_subject(model: Model, spec: EditSpec, change: Change) -> list[SideEffect]:
    """Other facts on the subject that the model knows, with the change made."""
    own = locate(spec.relation)
    files = [locate(name) for name in spec.others] or [path for path in sorted(own.parent.glob("*.json"))
                                                       if is_relation(path)]
    found = []
    for path in files:
        if path == own:
            continue
        relation = read_relation(path)
        sample = next((one for one in relation.samples if one.subject == spec.subject), None)
        if sample is not None:
            told = [one for one in relation.samples if one.subject != spec.subject][:OTHER_EXAMPLES]
            asked = fact(model, relation.prompt_templates[0], sample, told)
            found += _effects(model, "same subject", relation.name, [asked], change)
    return found


def _other_subjects(
    model: Model, spec: EditSpec, relation: RelationFile, parted: Parted, shown: Known, change: Change
) -> list[SideEffect]:
    """Facts on other subjects that the change is not to touch."""
    facts = [one for one in parted.test.facts if one.answer != shown.facts[1].answer][:OTHER_SUBJECTS]
    return _effects(model, "other subject", relation.name, facts, change)


def _effects(model: Model, kind: Kind, name: str, facts: Sequence[Fact], change: Change) -> list[SideEffect]:
    """The facts among these that the model knows, with the change made."""
    known = [one for one, rank in zip(facts, _ranks(model, [(f, f.answer, None) for f in facts]), strict=True)
             if rank == 0]
    after = []
    for one in known:
        with rewritten(model, change.moved):
            ((top,),) = model.run(one.ids, change.edits(one.position), [Readout.top(1)])
        after.append(top)
    return [SideEffect(kind=kind, relation=name, subject=one.sample.subject, before=model.say(one.answer),
                       after=top.text, kept=top.id == one.answer) for one, top in zip(known, after, strict=True)]
