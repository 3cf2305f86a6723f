"""Units of a vision model that answer to one thing in photos, drawings and written words.

Goh et al. 2021, "Multimodal Neurons in Artificial Neural Networks" (https://distill.pub/2021/multimodal-neurons),
find units of CLIP that are active, in standard deviations, for photos, drawings and the name of one person, a little
for what goes with that person, and not for others. A transformer's unit is `neuron.L.i`, the input of the second
linear layer of block L's MLP, or `resid.L.i`; another network's is `channel.PATH.i`, a channel of the module at PATH.
Its value on a picture is the largest over patches or points, unless `pool` says otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field

from patchclamp.errors import FileError, InputError, SpecError
from patchclamp.evidence.bootstrap import bootstrap_mean
from patchclamp.evidence.cli_hints import CommaList, Positional
from patchclamp.evidence.method import Outcome, Part, Progress, Result, Spec, method
from patchclamp.evidence.verdict import FEWEST, NO_INTERVAL, Interval, Verdict, judge
from patchclamp.neurons.pictures import Pictures, Role, picture_set
from patchclamp.neurons.selective import score_interval
from patchclamp.neurons.unitsearch import Chosen, beside_random_units, best_unit
from patchclamp.neurons.vision import Pool, VisionModel, load_vision
from patchclamp.tasks.files import DataFile, hash_of_file, locate, note
from patchclamp.tasks.images import image_files

if TYPE_CHECKING:
    import altair
    import pandas


class ImagesSpec(Spec):
    """Which pictures, which concept, and which units."""

    images: Annotated[DataFile, Positional()]
    """A folder of CONCEPT/FORM/PICTURE, e.g. three/photo/1.png, or a file of rows with image, concept and form."""
    concept: str = Field(min_length=1)
    """The concept asked about; all others are its rivals."""
    related: Annotated[tuple[str, ...], CommaList()] = ()
    """Concepts that go with it: reported by themselves, neither the concept nor rivals."""
    unit: str | None = None
    """One unit, e.g. neuron.11.2048 or channel.encoder.stages.3.17. If left out, the best is chosen on one half of
    the pictures and reported on the other. A named one is reported on all, so it should come from elsewhere."""
    layers: Annotated[tuple[str, ...], CommaList()] = ()
    """Where to look for it, e.g. neuron.10,neuron.11; all of the model's usual layers if left out."""
    pool: Pool = "max"
    """A picture's value: the largest over patches or points, their mean, or the value at the class token."""
    reference: DataFile | None = None
    """A folder of pictures whose mean and standard deviation are the scale; the rivals' pictures if left out."""
    thresholds: Annotated[tuple[float, ...], CommaList()] = (1.0, 2.0, 3.0, 4.0, 5.0)
    """Standard deviations above which pictures are counted."""
    top: int = Field(12, ge=1, le=200)
    """How many of the most active pictures to list."""
    controls: int = Field(20, ge=2, le=200)
    """How often the same search is made with concepts dealt anew; for a named unit, how many others of its layer."""


class Category(Part):
    """The pictures of one concept in one form."""

    concept: str
    form: str
    role: Role
    """`concept` (the one asked about), `related` or `rival`."""
    activation: Interval
    """Mean, in standard deviations of the reference pictures, with its interval."""
    pictures: int


class FormScore(Part):
    """How well the unit tells the concept's pictures of one form from all rivals' pictures."""

    form: str
    auroc: float
    """The chance that one of them is more active than a rival's; .5 is none."""
    pictures: int


class RoleMean(Part):
    """The concept, what is related to it, or its rivals, all forms together."""

    role: Role
    activation: Interval
    pictures: int


class Threshold(Part):
    """The pictures above one threshold."""

    above: float
    """Standard deviations."""
    concept: int
    """How many of them show the concept."""
    related: int
    rival: int
    share: float
    """The share that shows the concept; NaN where no picture is above."""


class TopPicture(Part):
    """One of the most active pictures."""

    image: str
    """Its file."""
    sha256: str
    """Of the file: a chart shows it only while it is this one."""
    concept: str
    form: str
    activation: float
    """In standard deviations."""


class Candidate(Part):
    """A unit that was among the best where units were chosen."""

    unit: str
    choosing: float
    """Its smallest AUROC over the forms on the pictures units were chosen on."""
    reported: float
    """The same on the others."""


class ImagesResult(Result):
    """What one unit answers to."""

    unit: str
    """The unit that was named or chosen."""
    categories: list[Category]
    """Its mean activation for every concept in every form."""
    forms: list[FormScore]
    """How well it tells the concept from the rivals, form by form."""
    roles: list[RoleMean]
    """Its mean activation for the concept, for what is related, and for rivals."""
    thresholds: list[Threshold]
    """Whose pictures are above each threshold."""
    top: list[TopPicture]
    """The pictures on which it is most active."""
    candidates: list[Candidate]
    """The ten best where the unit was chosen; empty if it was named."""
    searched: int
    """Units it was chosen from; 1 if it was named."""
    constant: int
    """Units left out because they had one value on all pictures."""
    mean: float
    """The unit's mean on the reference pictures, in its own measure."""
    sd: float
    """Its standard deviation there: 1 in all activations above."""
    reference: int
    """How many pictures those are."""
    pictures: int
    """Pictures reported on."""
    chosen_on: int
    """Pictures the unit was chosen on, none of which is reported on."""
    base_share: float
    """The share of the reported pictures that shows the concept."""

    def table(self) -> pandas.DataFrame:
        """One row a concept and form."""
        import pandas

        return pandas.DataFrame([
            {"concept": c.concept, "form": c.form, "role": c.role, "pictures": c.pictures,
             "activation (sd)": c.activation.mean, "low": c.activation.low, "high": c.activation.high}
            for c in self.categories
        ])

    def chart(self) -> altair.TopLevelMixin:
        """Activation by concept and form, whose pictures are above each threshold, and the most active pictures."""
        from patchclamp.charts.images import images_chart

        return images_chart(self)


@method("neurons.images", spec=ImagesSpec, result=ImagesResult, load=load_vision)
def image_units(model: VisionModel, spec: ImagesSpec, progress: Progress) -> Outcome:
    """Ask whether a unit of a vision model answers to one concept in every form: photos, drawings, words.

    A unit's score is its smallest AUROC over the forms, each against all rivals' pictures. The verdict compares the
    score, on pictures the unit was not chosen on, with the best unit of the same search when each form is dealt another
    concept (photos of a seven, drawings of a two, the word "nine"), so that what is tested is the concept behind the
    forms; where there is one form or too few concepts to deal, with labels shuffled over pictures; for a named unit,
    with others of its layer.
    """
    _check_scale(spec)
    pictures = picture_set(spec.images, spec.concept, spec.related)
    layers = spec.layers or model.layers.usual
    if spec.unit is not None:
        if spec.layers:
            raise SpecError("a unit and layers to choose one from were both given; leave one out")
        layers = (model.layers.unit(spec.unit, model.name)[0],)
    values = {name: tensor.numpy() for name, tensor in
              model.read([row.image for row in pictures.rows], layers, spec.pool, progress.track).items()}
    _check_finite(values, model.name)
    if spec.unit is None:
        chosen = best_unit(values, pictures, spec.controls, spec.seed, progress)
    else:
        chosen = beside_random_units(values, pictures, model.layers.unit(spec.unit, model.name)[1], spec.controls,
                                     spec.seed)
    values_N = values[chosen.layer][:, chosen.number].astype(float)
    result = _measured(model, spec, pictures, values_N, chosen, progress)
    return result, _verdict(result, pictures, values_N, chosen, spec)


def _check_scale(spec: ImagesSpec) -> None:
    if not spec.thresholds or not all(map(math.isfinite, spec.thresholds)):
        raise SpecError("thresholds are standard deviations, finite numbers such as 1,2,3")
    if spec.reference is not None and not locate(spec.reference).is_dir():
        raise FileError(f"{spec.reference} is not a folder; the reference is a folder of pictures")


def _check_finite(values: dict[str, np.ndarray], model: str) -> None:
    for layer, values_NU in values.items():
        if not np.isfinite(values_NU).all():
            raise InputError(f"{layer} of {model} holds NaN or infinity on some pictures; load it in float32")


def _scale(
    model: VisionModel, spec: ImagesSpec, pictures: Pictures, values_N: np.ndarray, chosen: Chosen, progress: Progress
) -> np.ndarray:
    """The unit's values on the reference pictures. InputError if they are all the same: then there is no scale."""
    if spec.reference is None:
        reference = values_N[pictures.is_rival]
        what = "on all rivals' pictures; give --reference, a folder of more varied ones"
    else:
        folder = Path(locate(spec.reference))
        note(folder)
        read = model.read(image_files(folder), [chosen.layer], spec.pool, progress.track)
        reference = read[chosen.layer][:, chosen.number].numpy().astype(float)
        what = f"on all pictures of {folder}; give more varied ones"
    if reference.std() == 0:
        raise InputError(f"{chosen.site} is {reference[0]:.4g} {what}, or another unit: without a spread there are no "
                         "standard deviations")
    return reference


def _measured(
    model: VisionModel, spec: ImagesSpec, pictures: Pictures, values_N: np.ndarray, chosen: Chosen, progress: Progress
) -> ImagesResult:
    """Everything about the chosen unit on the reported pictures."""
    reference = _scale(model, spec, pictures, values_N, chosen, progress)
    mean, sd = float(reference.mean()), float(reference.std())
    rows = chosen.reported
    sd_N = (values_N - mean) / sd
    role_N = np.array([pictures.role[i] for i in rows])
    return ImagesResult(
        unit=chosen.site,
        categories=[Category(concept=concept, form=form, role=pictures.role[group[0]], pictures=len(group),
                             activation=bootstrap_mean(sd_N[group], spec.seed))
                    for (concept, form), group in pictures.categories(rows).items()],
        forms=[FormScore(form=form, auroc=score, pictures=len(pictures.shown(rows)[form]))
               for form, score in zip(pictures.forms, chosen.aurocs, strict=True)],
        roles=[RoleMean(role=role, pictures=int((role_N == role).sum()),
                        activation=bootstrap_mean(sd_N[rows][role_N == role], spec.seed))
               for role in ("concept", "related", "rival") if (role_N == role).any()],
        thresholds=[_above(level, sd_N[rows], role_N) for level in sorted(set(spec.thresholds))],
        top=_top(spec.top, pictures, rows, sd_N),
        candidates=[Candidate(unit=site, choosing=before, reported=after) for site, before, after in chosen.candidates],
        searched=chosen.searched, constant=chosen.constant, mean=mean, sd=sd, reference=len(reference),
        pictures=len(rows), chosen_on=len(pictures.rows) - len(rows),
        base_share=float((role_N == "concept").mean()),
    )


def _above(level: float, sd_N: np.ndarray, role_N: np.ndarray) -> Threshold:
    roles: tuple[Role, ...] = ("concept", "related", "rival")
    counts = [int((role_N[sd_N > level] == role).sum()) for role in roles]
    return Threshold(above=level, concept=counts[0], related=counts[1], rival=counts[2],
                     share=counts[0] / sum(counts) if sum(counts) else math.nan)


def _top(n: int, pictures: Pictures, rows: np.ndarray, sd_N: np.ndarray) -> list[TopPicture]:
    best: Sequence[int] = rows[np.argsort(-sd_N[rows], kind="stable")[:n]].tolist()
    return [TopPicture(image=row.image, sha256=hash_of_file(Path(row.image)), concept=row.concept, form=row.form,
                       activation=float(sd_N[i])) for i in best for row in [pictures.rows[i]]]


CONTROLS: dict[Literal["dealt", "shuffled", "units"], str] = {
    "dealt": "the best unit of the same search with another concept dealt to each form",
    "shuffled": "the best unit of the same search with the labels shuffled",
    "units": "other units of its layer",
}


def _verdict(
    result: ImagesResult, pictures: Pictures, values_N: np.ndarray, chosen: Chosen, spec: ImagesSpec
) -> Verdict:
    """The unit's score beside that of the controls; inconclusive where a form has too few pictures for an interval."""
    held_out = ", on pictures it was not chosen on" if spec.unit is None else ""
    claim = (f"{chosen.site} answers to {spec.concept} in every form ({', '.join(pictures.forms)}): its smallest AUROC "
             f"over the forms{held_out}, against {CONTROLS[chosen.control]}")
    is_reported = np.isin(np.arange(len(values_N)), chosen.reported)
    effect = score_interval(values_N, list(pictures.shown(chosen.reported).values()), pictures.is_rival & is_reported,
                            spec.seed)
    fewest = min(result.forms, key=lambda form: form.pictures)
    if fewest.pictures < FEWEST:
        return Verdict(
            outcome="inconclusive", effect=Interval(mean=effect.mean, low=math.nan, high=math.nan), control=NO_INTERVAL,
            reason=f"The form {fewest.form} has {fewest.pictures} picture(s) of {spec.concept} to report on, where "
                   f"{FEWEST} are needed to compare, which leaves open whether {claim}.",
        )
    control = np.array(chosen.control_scores) if chosen.control_scores else NO_INTERVAL
    return judge(effect, control, claim=claim, direction="greater", against="distribution", share=True, seed=spec.seed)
