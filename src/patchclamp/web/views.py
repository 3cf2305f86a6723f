"""A record as a page shows it: verdict, chart, coloured texts, table, and how to have the same numbers again."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from patchclamp.evidence.page import PAGE_ROWS, has_view, vega_lite
from patchclamp.evidence.passage import Passage, colour
from patchclamp.evidence.record import Record, strict
from patchclamp.evidence.store import FILE, Store, changes
from patchclamp.web.question import Question

if TYPE_CHECKING:
    import pandas


def view(store: Store, name: str) -> bytes:
    """The view of a stored record as JSON. Raises as `Store.get`."""
    place = store.find(name)
    return _view(store, place.name, (place / FILE).stat().st_mtime_ns)


@lru_cache(maxsize=64)
def _view(store: Store, name: str, modified: int) -> bytes:
    return json.dumps(view_of(store.get(name)), ensure_ascii=False, allow_nan=False).encode()


def view_of(record: Record) -> dict[str, Any]:
    """What a page shows of a record, as JSON values."""
    from patchclamp.evidence.method import get_method

    where = record.provenance
    question = Question(get_method(record.method), record.spec, where.model, where.dtype)
    return strict({
        "id": record.id,
        "method": record.method,
        "verdict": record.verdict.model_dump(mode="json") if record.verdict else None,
        "chart": vega_lite(record)[0] if has_view(record, "chart") else None,
        "passages": [passage_of(one) for one in record.result.passages()],
        "table": table_of(record.table()) if has_view(record, "table") else None,
        "matching": getattr(record.result, "matching", None),
        "code": question.code,
        "query": question.query,
        "spec": record.spec.model_dump(mode="json"),
        "provenance": where.model_dump(mode="json"),
    })


def passage_of(passage: Passage) -> dict[str, Any]:
    """Tokens with their numbers and colours."""
    return {
        "group": passage.group, "label": passage.label, "words": passage.words, "values": list(passage.values),
        "colours": ["rgb({},{},{})".format(*colour(shade)) for shade in passage.shades], "at": passage.at,
    }


def table_of(frame: pandas.DataFrame) -> dict[str, Any]:
    """The first rows of a table, and how many there are."""
    return {"columns": [str(name) for name in frame.columns], "total": len(frame),
            "rows": [[_cell(value) for value in row] for row in frame.head(PAGE_ROWS).itertuples(index=False)]}


def _cell(value: Any) -> Any:
    """A JSON value: numpy's numbers as Python's."""
    plain = value.item() if hasattr(value, "item") and not hasattr(value, "__len__") else value
    return plain if isinstance(plain, str | int | float | bool | None) else str(plain)


def compared(first: Record, second: Record) -> dict[str, Any]:
    """Where two records differ: in what was asked, in the verdict, in the model and machine, and in how many values."""
    then, now = first.to_dict(), second.to_dict()
    told = {key: _told(changes(then[key] or {}, now[key] or {})) for key in ("spec", "verdict", "provenance")}
    values = list(changes(then["result"], now["result"])) if first.method == second.method else []
    return {"method": [first.method, second.method], **told, "values": len(values)}


def _told(differences: Iterable[tuple[str, Any, Any]]) -> list[list[Any]]:
    return [[path, then, now] for path, then, now in differences]
