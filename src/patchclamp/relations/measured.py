"""What is measured of one relation: how faithful its map is, what beats it, and whether its inverse edits the model."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ValidationError

from patchclamp.errors import FileError, PromptError, SpecError
from patchclamp.evidence.bootstrap import bootstrap_mean, mean_if_any, paired_difference
from patchclamp.evidence.method import Part, Progress
from patchclamp.evidence.record import write_whole
from patchclamp.evidence.verdict import FEWEST, NO_INTERVAL, Interval
from patchclamp.forward import Model
from patchclamp.relations.fitting import fit
from patchclamp.relations.inverse import changes, choose_turn, draw_pairs, random_changes, succeed
from patchclamp.relations.prompts import fact
from patchclamp.relations.readers import Reader, Setting, choose, readers, score
from patchclamp.relations.samples import Parted, SamplesSpec, known_of, part, read
from patchclamp.tasks.rows import RelationFile

VERSION = 2
"""Of what is measured, and how samples are parted: numbers of another version are not used again."""
RANDOM = 5
"""Random changes that each edit is compared with."""


class LayerFaithfulness(Part):
    """One layer."""

    layer: int
    """-1 for the embeddings, then the block after which the subject is read."""
    beta: float
    """Chosen for this layer on the validation samples."""
    faithfulness: float
    """Share of test samples."""
    best_baseline: float
    """The best of the baselines at this layer."""


class TemplateFaithfulness(Part):
    """The map on another prompt than it was fitted on."""

    template: str
    known: int
    """Test samples that the model answers rightly in it."""
    faithfulness: Interval


class RelationRow(Part):
    """One relation."""

    name: str
    category: str
    file: str
    """The file's name."""
    template: str
    asked: int
    known: int
    """Samples whose object's first token is the model's first choice."""
    fitted: int
    tested: int
    skipped: int
    """Objects left out because another begins with the same token, or with a single letter."""
    layer: int
    """The layer read, chosen on validation samples; -1 for the embeddings."""
    beta: float
    faithfulness: Interval
    """Share of test samples on which the map's first choice is the model's."""
    baselines: dict[str, Interval]
    """The same by other means, each at the layer chosen for it."""
    mark: str
    """`beats every baseline`: a paired interval above 0; `not linear here`: no more often right than the best of them,
    were it always; otherwise `open`."""
    edit_layer: int
    rank: int
    causality: Interval
    """Share of edits by the inverse after which the model's first choice is the other object; none where all test
    samples have one object."""
    swap: Interval
    """The same with the other subject's stream put in its place."""
    random: Interval
    """The same with random changes as long as the inverse's."""
    layers: list[LayerFaithfulness]
    templates: list[TemplateFaithfulness]
    """The file's other templates."""
    hits: list[float]
    """Of each test sample, whether the map was right."""
    baseline_hits: list[float]
    """The same of the best baseline."""


    @property
    def best_baseline(self) -> str:
        """The baseline that is right most often."""
        return max(self.baselines, key=lambda name: self.baselines[name].mean)


class Missed(Part):
    """A relation that could not be measured."""

    name: str
    category: str
    file: str
    why: str


class Stored(BaseModel):
    """A relation's measurement as it is kept: `<folder>/<weights>/<file>-<question>.json`."""

    model: str
    question: str
    """Hash of what was asked."""
    row: RelationRow | Missed


def read_stored(path: Path) -> Stored:
    """A measurement that was kept. FileError if the file holds none."""
    try:
        return Stored.model_validate_json(path.read_bytes())
    except (ValidationError, OSError) as error:
        said = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise FileError(f"{path} is no measured relation ({said}); delete it, or name another folder") from error


def measure(
    model: Model, relation: RelationFile, file: Path, spec: SamplesSpec, progress: Progress,
    store: str | None = None, fits: str | None = None,
) -> RelationRow | Missed:
    """One relation measured, or taken from `store` if the same was measured before."""
    settings = spec.model_dump(include=set(SamplesSpec.model_fields))
    asked = [VERSION, model.weights_hash, str(model.dtype), relation.model_dump(), settings]
    question = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
    place = Path(store).expanduser() / model.weights_hash[:12] / f"{file.stem}-{question[:8]}.json" if store else None
    if place is not None and place.is_file() and (found := read_stored(place)).question == question:
        return found.row
    try:
        parted = part(model, relation, spec, file.name, progress)
    except (FileError, SpecError, PromptError) as error:
        row: RelationRow | Missed = Missed(name=relation.name, category=category(relation, file), file=file.name,
                                           why=f"{file.name}: {str(error).removeprefix(f'{file.name}: ')}")
    else:
        row = _measured(model, relation, parted, file, spec, progress, fits)
    if place is not None:
        kept = Stored(model=model.name, question=question, row=row)
        write_whole(place, kept.model_dump_json(indent=1).encode() + b"\n")
    return row


def category(relation: RelationFile, file: Path) -> str:
    """What the file says it is, or the name of its folder."""
    return relation.category or file.parent.name


def _measured(
    model: Model, relation: RelationFile, parted: Parted, file: Path, spec: SamplesSpec, progress: Progress,
    fits: str | None,
) -> RelationRow:
    made = fit(model, relation, parted, progress, fits)
    hits, at_layers, intervals = {}, {}, {}
    lre, *baselines = readers(made, parted.fit)
    for reader in (lre, *baselines):
        setting, by_layer, _ = choose(model, reader, parted.validation)
        right_SN = score(model, reader, parted.test, [setting, *by_layer]).right.astype(float)
        hits[reader.name] = right_SN[0]
        at_layers[reader.name] = right_SN[1:].mean(1)
        intervals[reader.name] = bootstrap_mean(right_SN[0], spec.seed)
        if reader is lre:
            chosen, betas = setting, [one.beta for one in by_layer]
    best = max((reader.name for reader in baselines), key=lambda name: hits[name].mean())
    others = np.stack([at_layers[reader.name] for reader in baselines]).max(0)
    turn = choose_turn(model, made, draw_pairs(parted.validation, spec.seed), progress)
    pairs = draw_pairs(parted.test, spec.seed)
    change_PD = changes(made, pairs, turn)
    settings = [("add", turn.layer, change_PD), ("set", turn.layer, parted.test.h[pairs.target, turn.layer + 1])]
    h_ND = parted.test.h[:, turn.layer + 1]
    settings += [("add", turn.layer, random_changes(h_ND, change_PD, spec.seed + i)) for i in range(RANDOM)]
    works_SP = succeed(model, pairs, settings, progress).astype(float)
    return RelationRow(
        name=relation.name, category=category(relation, file), file=file.name, template=parted.template,
        asked=parted.asked, known=parted.known, fitted=len(parted.fit), tested=len(parted.test),
        skipped=len(parted.skipped), layer=chosen.layer, beta=chosen.beta, faithfulness=intervals.pop("lre"),
        baselines=intervals, mark=_mark(hits["lre"], hits[best], spec.seed), edit_layer=turn.layer, rank=turn.rank,
        causality=mean_if_any(works_SP[0], spec.seed), swap=mean_if_any(works_SP[1], spec.seed),
        random=mean_if_any(works_SP[2:].mean(0), spec.seed),
        layers=[LayerFaithfulness(layer=i - 1, beta=betas[i], faithfulness=at_layers["lre"][i], best_baseline=others[i])
                for i in range(model.n_layers)],
        templates=[_other(model, parted, lre, chosen, template, spec, progress)
                   for template in relation.prompt_templates if template != parted.template],
        hits=hits["lre"].tolist(), baseline_hits=hits[best].tolist(),
    )


def _mark(hits_N: np.ndarray, others_N: np.ndarray, seed: int) -> str:
    """The map beside the best baseline, sample by sample."""
    if hits_N.mean() <= others_N.mean():
        return "not linear here"
    if len(hits_N) >= FEWEST and paired_difference(hits_N, others_N, seed).low > 0:
        return "beats every baseline"
    return "open"


def _other(
    model: Model, parted: Parted, lre: Reader, setting: Setting, template: str, spec: SamplesSpec, progress: Progress
) -> TemplateFaithfulness:
    """The map on the test samples, asked and exemplified by another template; none known if that cannot be used."""
    try:
        asked = [fact(model, template, one.sample, parted.examples) for one in parted.test.facts]
    except (SpecError, PromptError):
        asked = []
    right = known_of(model, asked, progress)
    if not right:
        return TemplateFaithfulness(template=template, known=0, faithfulness=NO_INTERVAL)
    hits_N = score(model, lre, read(model, right, progress), [setting]).right[0].astype(float)
    return TemplateFaithfulness(template=template, known=len(right), faithfulness=bootstrap_mean(hits_N, spec.seed))
