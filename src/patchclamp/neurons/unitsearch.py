"""Choosing the unit that tells a concept's pictures apart best, on half of the pictures, and what the same search finds
where there is nothing to find."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from patchclamp.errors import InputError, SpecError
from patchclamp.evidence.method import Progress
from patchclamp.neurons.pictures import Pictures
from patchclamp.neurons.selective import Ranked, dealings, halves

Control = Literal["dealt", "shuffled", "units"]
Values = dict[str, np.ndarray]
"""A layer's units on all pictures, [N, U], by the layer's name."""
Grouping = tuple[list[np.ndarray], np.ndarray]
"""The pictures shown in each form (indices), and which are rivals' [N]."""
CANDIDATES = 10


@dataclass(frozen=True)
class Chosen:
    """A unit, and what stands beside it."""

    layer: str
    number: int
    reported: np.ndarray
    """Indices of the pictures it is reported on."""
    aurocs: list[float]
    """Of each form, on those."""
    control: Control
    control_scores: list[float]
    searched: int = 1
    constant: int = 0
    candidates: tuple[tuple[str, float, float], ...] = ()
    """The best units where it was chosen: site, score there, score on the reported pictures."""

    @property
    def site(self) -> str:
        """Layer and number as one string."""
        return f"{self.layer}.{self.number}"


def best_unit(values: Values, pictures: Pictures, controls: int, seed: int, progress: Progress) -> Chosen:
    """The unit with the highest score on one half of the pictures, judged on the other half, and how the best units of
    `controls` searches for something that no unit can know fare there.

    Raises SpecError where a form has fewer than two pictures of the concept, InputError if all units are constant.
    """
    first, second = halves(pictures.labels, seed)
    _check_halves(pictures, first)
    moving = {layer: np.ptp(values_NU, axis=0) > 0 for layer, values_NU in values.items()}
    searched = sum(int(some.sum()) for some in moving.values())
    if not searched:
        raise InputError(f"every unit of {', '.join(values)} has one value on all {len(pictures.rows)} pictures; "
                         "there is none to choose: are the pictures different, and the model trained?")
    choosing = {layer: Ranked(values_NU[first]) for layer, values_NU in values.items()}
    reporting = {layer: Ranked(values_NU[second]) for layer, values_NU in values.items()}
    scores = _scores(choosing, _true(pictures, first), moving)
    layer, number = _best(scores)
    held_out = _scores(reporting, _true(pictures, second), moving)
    control, pairs = _nothing_to_find(pictures, first, second, controls, seed)
    control_scores = []
    for one, other in progress.track(pairs, "searching for what is not there", len(pairs)):
        found_layer, found = _best(_scores(choosing, one, moving))
        control_scores.append(float(reporting[found_layer].aurocs(*other)[:, found].min()))
    ranking = sorted(((float(some[i]), name, int(i)) for name, some in scores.items()
                      for i in np.argsort(-some)[:CANDIDATES] if np.isfinite(some[i])), reverse=True)[:CANDIDATES]
    return Chosen(
        layer, number, second, reporting[layer].aurocs(*_true(pictures, second))[:, number].tolist(), control,
        control_scores, searched, sum(len(some) for some in moving.values()) - searched,
        tuple((f"{name}.{i}", score, float(held_out[name][i])) for score, name, i in ranking),
    )


def beside_random_units(values: Values, pictures: Pictures, number: int, controls: int, seed: int) -> Chosen:
    """A named unit beside random others of its layer, on all pictures. InputError if the unit is constant."""
    (layer, values_NU), everything = next(iter(values.items())), np.arange(len(pictures.rows))
    moving_U = np.ptp(values_NU, axis=0) > 0
    if not moving_U[number]:
        raise InputError(f"{layer}.{number} is {values_NU[0, number]:.4g} on all {len(everything)} pictures; a "
                         "constant unit tells nothing apart: name another")
    aurocs_FU = Ranked(values_NU).aurocs(*_true(pictures, everything))
    others = np.flatnonzero(moving_U & (np.arange(len(moving_U)) != number))
    drawn = np.random.default_rng(seed).permutation(others)[:controls]
    return Chosen(layer, number, everything, aurocs_FU[:, number].tolist(), "units",
                  aurocs_FU[:, drawn].min(axis=0).tolist(), constant=int((~moving_U).sum()))


def _check_halves(pictures: Pictures, first: np.ndarray) -> None:
    for form, rows in pictures.shown(first).items():
        if not len(rows):
            raise SpecError(f"the form {form!r} has one picture of the concept; a unit is chosen on one half of the "
                            "pictures and reported on the other, so give two or more, or name a unit")
    if not pictures.is_rival[first].any():
        raise SpecError("the rivals have one picture a form; a unit is chosen on one half of the pictures and reported "
                        "on the other, so give two or more, or name a unit")


def _true(pictures: Pictures, rows: np.ndarray) -> Grouping:
    """The concept's pictures among these, as places in `rows`, and which of these are rivals'."""
    place = {int(row): i for i, row in enumerate(rows)}
    shown = [np.array([place[int(row)] for row in some], dtype=int) for some in pictures.shown(rows).values()]
    return shown, pictures.is_rival[rows]


def _scores(ranked: dict[str, Ranked], grouping: Grouping, moving: dict[str, np.ndarray]) -> Values:
    """Each unit's smallest AUROC over the forms; minus infinity for constant units."""
    return {layer: np.where(moving[layer], one.aurocs(*grouping).min(axis=0), -np.inf) for layer, one in ranked.items()}


def _best(scores: Values) -> tuple[str, int]:
    layer = max(scores, key=lambda name: scores[name].max())
    return layer, int(scores[layer].argmax())


def _nothing_to_find(
    pictures: Pictures, first: np.ndarray, second: np.ndarray, n: int, seed: int
) -> tuple[Control, list[tuple[Grouping, Grouping]]]:
    """Groupings of both halves that no concept makes: each form dealt another concept, where enough such dealings
    exist, or else the concept's labels dealt to pictures of the same form at random."""
    inside = [set(pictures.categories(rows)) for rows in (first, second)]
    related = {row.concept for row, role in zip(pictures.rows, pictures.role, strict=True) if role == "related"}
    able = [[concept for concept, form in sorted(inside[0] & inside[1]) if form == wanted and concept not in related]
            for wanted in pictures.forms]
    dealt = dealings(able, n, seed)
    if dealt:
        return "dealt", [(_dealt(pictures, first, one), _dealt(pictures, second, one)) for one in dealt]
    generator = np.random.default_rng(seed)
    draws = [[_shuffled(pictures, rows, generator) for rows in (first, second)] for _ in range(n)]
    return "shuffled", [(one, other) for one, other in draws]


def _rest(pictures: Pictures, rows: np.ndarray, shown: Sequence[np.ndarray]) -> np.ndarray:
    """Which of these pictures are neither shown nor related to the concept."""
    is_rival = np.array([pictures.role[i] != "related" for i in rows])
    is_rival[np.concatenate(shown)] = False
    return is_rival


def _dealt(pictures: Pictures, rows: np.ndarray, dealing: Sequence[str]) -> Grouping:
    shown = [np.array([i for i, row in enumerate(rows)
                       if (pictures.rows[row].concept, pictures.rows[row].form) == (concept, form)], dtype=int)
             for concept, form in zip(dealing, pictures.forms, strict=True)]
    return shown, _rest(pictures, rows, shown)


def _shuffled(pictures: Pictures, rows: np.ndarray, generator: np.random.Generator) -> Grouping:
    shown = []
    for form, mine in pictures.shown(rows).items():
        pool = [i for i, row in enumerate(rows) if pictures.rows[row].form == form and pictures.role[row] != "related"]
        shown.append(generator.permutation(pool)[: len(mine)])
    return shown, _rest(pictures, rows, shown)
