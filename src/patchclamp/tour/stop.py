"""What a stop of the tour is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from patchclamp.evidence.method import Progress
    from patchclamp.forward import Model

GEMMA, SMOLLM2, DIGITS = "gemma-3-270m", "smollm2-135m-instruct", "digits-vision"

Fields = Mapping[str, Any]


@dataclass(frozen=True)
class Stop:
    """One section of the report: a question, and the run that answers it."""

    heading: str
    question: str
    """What the reader should ask before looking at the chart."""
    model: str
    """An embedded model, or the folder beside the report that `prepare` makes."""
    method: str
    fields: Fields | Callable[[Model, Progress, Path], Fields]
    """The method's fields, or a function of the model and the report's folder that finds them out on data the report
    does not use."""
    prepare: Callable[[Path, Progress], None] | None = None
    """Makes the stop's own model in the report's folder, where no embedded one can be asked."""
