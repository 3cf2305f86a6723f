"""The pictures of one question: which show the concept asked about, which its rivals, and in which forms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from patchclamp.errors import SpecError
from patchclamp.tasks.images import read_images
from patchclamp.tasks.rows import ImageRow

Role = Literal["concept", "related", "rival"]


@dataclass(frozen=True)
class Pictures:
    """Labelled pictures and the role of each."""

    rows: list[ImageRow]
    role: list[Role]
    forms: tuple[str, ...]
    """The forms in which the concept is shown, in order."""

    @cached_property
    def is_rival(self) -> np.ndarray:
        """[N] whether a picture is a rival's."""
        return np.array([role == "rival" for role in self.role])

    @cached_property
    def labels(self) -> list[str]:
        """Each picture's concept and form as one string, which no other pair makes."""
        return [f"{row.concept}\0{row.form}" for row in self.rows]

    def shown(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Of these pictures, those of the concept, by form."""
        return {form: np.array([i for i in rows if self.role[i] == "concept" and self.rows[i].form == form], dtype=int)
                for form in self.forms}

    def categories(self, rows: np.ndarray) -> dict[tuple[str, str], np.ndarray]:
        """Of these pictures, those of each concept and form; the concept first, then the related, then rivals."""
        groups: dict[tuple[str, str], list[int]] = {}
        order = {"concept": 0, "related": 1, "rival": 2}
        for i in sorted(rows, key=lambda i: (order[self.role[i]], self.rows[i].concept, self.rows[i].form)):
            groups.setdefault((self.rows[i].concept, self.rows[i].form), []).append(int(i))
        return {key: np.array(group) for key, group in groups.items()}


def picture_set(source: str, concept: str, related: Sequence[str]) -> Pictures:
    """The pictures of a folder or file with the roles these concepts give them. Raises FileError as `read_images`,
    SpecError for a concept that is not there, and where no rival is left."""
    rows = read_images(source)
    known = sorted({row.concept for row in rows})
    for name in (concept, *related):
        if name not in known:
            raise SpecError(f"{source} has no pictures of {name!r}; its concepts are {', '.join(known[:20])}"
                            + (" …" if len(known) > 20 else ""))
    if concept in related:
        raise SpecError(f"{concept!r} is the concept asked about and cannot be related to itself")
    if set(known) == {concept, *related}:
        raise SpecError(f"{source} shows only {', '.join(known)}: without rivals there is nothing to tell {concept} "
                        "from; add pictures of other concepts")
    roles: list[Role] = ["concept" if row.concept == concept else "related" if row.concept in related else "rival"
                         for row in rows]
    return Pictures(rows, roles, tuple(sorted({row.form for row in rows if row.concept == concept})))
