"""A record as a notebook: the question, the program that asks it, and what came out (nbformat 4.5, three cells)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from patchclamp.evidence.code import python_code
from patchclamp.evidence.page import notebook_view

if TYPE_CHECKING:
    from patchclamp.evidence.record import Record


def notebook_of(record: Record) -> str:
    """The notebook's JSON text. Run again, its code cell asks the same question and shows the same views."""
    where = record.provenance
    source = python_code(record.method, record.spec, where.model, where.dtype).replace("record.chart()", "record")
    conclusion = f"**{record.verdict.outcome.capitalize()}.** {record.verdict.reason}" if record.verdict else ""
    output = {"output_type": "execute_result", "execution_count": 1, "metadata": {},
              "data": {"text/html": notebook_view(record), "text/plain": conclusion or record.method}}
    cells = [
        _cell("intro", "markdown", f"# {record.method} on {where.name}\n\nRecord `{record.id}`"),
        _cell("ask", "code", source, execution_count=1, outputs=[output]),
        *([_cell("verdict", "markdown", conclusion)] if conclusion else []),
    ]
    about = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    whole = {"nbformat": 4, "nbformat_minor": 5, "metadata": about, "cells": cells}
    return json.dumps(whole, ensure_ascii=False, indent=1)


def _cell(name: str, kind: str, source: str, **more: Any) -> dict[str, Any]:
    return {"id": name, "cell_type": kind, "metadata": {}, "source": source, **more}
