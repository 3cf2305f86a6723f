"""Plans: many (prompt, edits, readouts) rows that are executed together."""

from collections.abc import Iterable, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from patchclamp.errors import PromptError, SpecError
from patchclamp.forward.edit import Edit
from patchclamp.forward.readout import Readout, as_readout
from patchclamp.forward.site import Site
from patchclamp.model.tokens import Prompt

Mode = Literal["fast", "batch", "single"]
"""fast: rows batched, shared prefixes computed once, blocks before a row's first edit skipped; logits agree with
`single` within 1e-3 (6e-5 measured on SmolLM2). batch: rows batched and run whole, bit for bit what Hugging Face
computes for the same batch. single: one row at a time, the oracle. A matrix product of more rows may add in another
order: Hugging Face's own batch of two differs from its single run by 4e-5 on SmolLM2's logits."""


class Row(BaseModel):
    """One run: a prompt, what is edited, what is measured."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    prompt: Prompt
    """Text, messages or token ids."""
    edits: tuple[Edit, ...] = ()
    """Applied in this order."""
    reads: tuple[Readout, ...]
    """Measured in this run."""


class Plan(BaseModel):
    """Rows to execute together: `model.execute(plan)` returns the readouts' values row by row."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    rows: tuple[Row, ...]
    """The rows; prompts, edits and readouts may all differ."""

    @classmethod
    def of(cls, rows: Iterable[tuple[Any, Sequence[Edit], Sequence[Readout | str | Site]]]) -> "Plan":
        """From (prompt, edits, reads) triples; a site string among the reads stands for the value there."""
        return cls(rows=tuple(
            _row(prompt, tuple(edits), tuple(as_readout(r) for r in reads)) for prompt, edits, reads in rows
        ))


def _row(prompt: Any, edits: tuple, reads: tuple) -> Row:
    try:
        return Row(prompt=prompt, edits=edits, reads=reads)
    except ValidationError as error:
        first = error.errors()[0]
        if first["loc"][0] == "prompt":
            raise PromptError("a prompt is a text, a list of token ids, or a list of messages with role (system, user "
                              f"or assistant) and content; got {str(prompt)[:80]!r}") from error
        raise SpecError(f"{first['loc'][0]}: {first['msg']}") from error
