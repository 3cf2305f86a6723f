"""Edit one fact, show what the model says before and after, and test the same kind of edit on other facts.

Hernandez et al. 2023, arXiv 2308.09124, section 5; by neurons Dai et al. 2022, arXiv 2104.08696.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from patchclamp.errors import SpecError
from patchclamp.evidence.bootstrap import bootstrap_mean, mean_if_any
from patchclamp.evidence.method import Outcome, Progress, method
from patchclamp.evidence.verdict import NO_INTERVAL, judge
from patchclamp.forward import Model, Plan, Readout, Site
from patchclamp.forward.prepare import check_site
from patchclamp.forward.rewrite import rewritten
from patchclamp.relations.edited import Answer, EditResult, EditSpec, Kind, SideEffect
from patchclamp.relations.inverse import Pairs, draw_pairs
from patchclamp.relations.prompts import Fact, fact
from patchclamp.relations.samples import Known, Parted, known_of, part, read
from patchclamp.relations.ways import Change, Neurons, Stream, Way, swaps, works
from patchclamp.tasks.files import locate
from patchclamp.tasks.read import is_relation, read_relation
from patchclamp.tasks.rows import RelationFile

OTHER_SUBJECTS = 20
OTHER_EXAMPLES = 5
"""Examples told before a fact of another relation."""


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
    parted = part(model, relation.model_copy(update={"samples": tuple(others)}), spec, Path(spec.relation).name,
                  progress)
    tests = draw_pairs(parted.test, spec.seed)
    tests = Pairs(parted.test, tests.source[: spec.pairs], tests.target[: spec.pairs])
    if not tests.source:
        raise SpecError(f"{spec.relation}: all facts left to test on have one object, so that none can be edited into "
                        "another; use a file with more, or more --tests")
    shown = read(model, [
        _asked(model, relation, parted, spec.subject, False), _asked(model, relation, parted, spec.to_object_of, True),
    ], progress)
    if shown.facts[0].answer == shown.facts[1].answer:
        raise SpecError(f"the model answers both {spec.subject!r} and {spec.to_object_of!r} with "
                        f"{model.say(shown.facts[0].answer)!r}, so there is nothing to edit")
    validation = draw_pairs(parted.validation, spec.seed)
    way: Way = (Neurons(model, relation, parted, validation, progress) if spec.by == "neurons"
                else Stream(model, spec, relation, parted, validation, progress))
    pair, own = Pairs(shown, [0], [1]), way.changes(tests)
    (change,) = way.changes(pair)
    (random,) = way.at_random(pair, [change], spec.seed + 1)
    works_P = works(model, tests, own)
    seeds = progress.track(range(spec.seed + 1, spec.seed + 1 + spec.controls), "random changes", spec.controls)
    random_GP = np.stack([works(model, tests, way.at_random(tests, own, seed)) for seed in seeds])
    effects = [*_same_subject(model, spec, change, progress),
               *_other_subjects(model, relation, parted, shown, change, progress)]
    kept = {kind: mean_if_any([float(one.kept) for one in effects if one.kind == kind], spec.seed)
            for kind in ("same subject", "other subject")}
    swap = NO_INTERVAL if way.layer is None else bootstrap_mean(
        works(model, tests, swaps(tests, way.layer)), spec.seed)
    verdict = judge(
        works_P, random_GP, direction="greater", against="distribution", share=True, seed=spec.seed,
        claim=f"facts of '{relation.name}' can be edited by {way.name} (share of {len(works_P)} test facts whose first "
              f"choice becomes the other subject's object, against {way.control})")
    answers = [_answer(model, shown, one, spec.max_new_tokens) for one in (None, change, random)]
    return EditResult(
        relation=relation.name, subject=spec.subject, target=spec.to_object_of, by=spec.by, template=parted.template,
        old=model.say(shown.facts[0].answer), new=model.say(shown.facts[1].answer),
        layer=way.layer, rank=way.rank,
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


def _answer(model: Model, shown: Known, change: Change | None, length: int) -> Answer:
    """What the model says of the shown fact under a change."""
    one, other = shown.facts
    edits = change.edits(model, one.position) if change else []
    with rewritten(model, change.moved if change else None):
        probabilities = model.run(one.ids, edits, [Readout.probability(one.answer, other.answer)])[0].tolist()
        text = model.generate(one.ids, edits, length).text
    return Answer(text=text.split("\n")[0], old=probabilities[0], new=probabilities[1])


def _same_subject(model: Model, spec: EditSpec, change: Change, progress: Progress) -> list[SideEffect]:
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
            found += _effects(model, "same subject", relation.name, [asked], change, progress)
    return found


def _other_subjects(
    model: Model, relation: RelationFile, parted: Parted, shown: Known, change: Change, progress: Progress
) -> list[SideEffect]:
    """Facts on other subjects that the change is not to touch."""
    facts = [one for one in parted.test.facts if one.answer != shown.facts[1].answer][:OTHER_SUBJECTS]
    return _effects(model, "other subject", relation.name, facts, change, progress)


def _effects(
    model: Model, kind: Kind, name: str, facts: Sequence[Fact], change: Change, progress: Progress
) -> list[SideEffect]:
    """The facts among these that the model knows, with the change made."""
    known = known_of(model, facts, progress)
    with rewritten(model, change.moved):
        rows = [(one.ids, change.edits(model, one.position), [Readout.top(1)]) for one in known]
        after = [top for ((top,),) in model.execute(Plan.of(rows))]
    return [SideEffect(kind=kind, relation=name, subject=one.sample.subject, before=model.say(one.answer),
                       after=top.text, kept=top.id == one.answer) for one, top in zip(known, after, strict=True)]
