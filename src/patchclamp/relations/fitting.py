"""Fitting a relation's linear map: one backward sweep a sample gives the Jacobians at every layer."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path

import torch

from patchclamp.evidence.method import Progress
from patchclamp.forward import Model
from patchclamp.forward.jacobian import jacobians
from patchclamp.relations.linear import FILE, LinearRelation, RelationInfo, load_relation
from patchclamp.relations.samples import Parted, SamplesSpec, part
from patchclamp.tasks.rows import RelationFile


def fitted(
    model: Model, relation: RelationFile, spec: SamplesSpec, file: str, progress: Progress, folder: str | None = None
) -> tuple[Parted, LinearRelation]:
    """A relation's samples, parted, and the map of those to fit on. In `folder`, if given, the map is kept, and taken
    from there the next time it is fitted on the same. Raises as `part` and `load_relation`."""
    parted = part(model, relation, spec, file, progress)
    return parted, fit(model, relation, parted, progress, folder)


def fit(
    model: Model, relation: RelationFile, parted: Parted, progress: Progress, folder: str | None = None
) -> LinearRelation:
    """The map of samples that are parted already. See `fitted`."""
    fitted_on, examples = (tuple((one.subject, one.object) for one in some) for some in (
        [one.sample for one in parted.fit.facts], parted.examples))
    asked = [model.weights_hash, str(model.dtype), parted.template, fitted_on, examples]
    question = hashlib.sha256(json.dumps(asked).encode()).hexdigest()
    slug = re.sub(r"\W+", "-", relation.name).strip("-").lower()
    place = Path(folder).expanduser() / f"{slug}-{question[:12]}" if folder else None
    if place is not None and (place / FILE).is_file():
        return load_relation(place, model)
    known = parted.fit
    total = torch.zeros(model.n_layers, model.d_model, model.d_model, dtype=torch.float64)
    for one in progress.track(known.facts, f"Jacobians of {relation.name}", len(known)):
        total += jacobians(model, one.ids, one.position).cpu()
    info = RelationInfo(
        name=relation.name, model=model.name, weights=model.weights_hash, template=parted.template,
        fitted=fitted_on, examples=examples, question=question,
    )
    made = LinearRelation(info, (total / len(known)).float(), known.h.mean(0), known.z.mean(0))
    if place is not None:
        made = replace(made, path=str(made.save(place)))
    return made
