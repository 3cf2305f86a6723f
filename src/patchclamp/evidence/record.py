"""One experiment as one value: what was asked, what was measured, what follows, and where it was run.

As JSON a record is one object with the keys `method`, `spec`, `result`, `verdict`, `provenance`. The JSON is
strict: NaN and infinity, which JSON lacks, are written as null, and a null where a number belongs is read
back as NaN. (A field that allows None reads null as None.)
"""

from __future__ import annotations

import copy
import hashlib
import html
import io
import json
import math
import os
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, SerializeAsAny, ValidationError

from patchclamp.errors import FileError, InputError, StoreError
from patchclamp.evidence.provenance import Provenance
from patchclamp.evidence.verdict import Verdict

if TYPE_CHECKING:
    import altair
    import pandas

    from patchclamp.evidence.method import Result, Spec
else:
    # method.py imports this module. A record holds whatever subclass its method made.
    Result = Spec = BaseModel

SUFFIXES = (".json", ".html", ".png", ".svg", ".csv", ".parquet")
"""What a record can be saved as."""
PAGE_ROWS = 500
"""Rows of the table shown on a page; the whole table is in the .csv and .parquet."""

AnyModel = TypeVar("AnyModel", bound=BaseModel)


def _built(value: Any) -> Any:
    """Only the method knows the class of its spec and result, so a mapping cannot be one."""
    if not isinstance(value, BaseModel):
        raise ValueError("give a model instance, or read JSON with Record.from_json")
    return value


class Record(BaseModel):
    """Spec, result, verdict and provenance of one run; `id` is the hash of its content."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    method: str
    """Name of the method, e.g. `lens.logit`."""
    spec: Annotated[SerializeAsAny[Spec], BeforeValidator(_built)]
    """What was asked."""
    result: Annotated[SerializeAsAny[Result], BeforeValidator(_built)]
    """What was measured."""
    verdict: Verdict | None
    """What follows; None where the method only looks and claims nothing."""
    provenance: Provenance
    """Where the numbers came from."""

    @property
    def id(self) -> str:
        """12 hexadecimal digits of the SHA-256 of the content: method, spec, result, verdict, model identity.

        Two runs with the same outcome on the same weights are the same record, whenever they ran.
        """
        return content_id(self.to_dict())

    def table(self) -> pandas.DataFrame:
        """The result as one tidy table. Raises InputError if it has none."""
        try:
            return self.result.table()
        except NotImplementedError as error:
            raise InputError(f"a result of {self.method} has no table; save it as .json") from error

    def chart(self) -> altair.TopLevelMixin:
        """The result as an Altair chart. Raises InputError if it has none."""
        try:
            return self.result.chart()
        except NotImplementedError as error:
            raise InputError(f"a result of {self.method} has no chart; save it as .json or .csv") from error

    def to_dict(self) -> dict[str, Any]:
        """The record as JSON values, None in the place of NaN and infinity."""
        return _strict(self.model_dump(mode="json"))

    def to_json(self, indent: int | None = None) -> str:
        """The record as strict JSON text."""
        return json.dumps(self.to_dict(), ensure_ascii=False, allow_nan=False, indent=indent)

    @classmethod
    def from_json(cls, text: str | bytes) -> Record:
        """Read what `to_json` wrote; the method, which must be installed, says how to read spec and result.

        Raises FileError when the text is not a record, SpecError when its method is not known.
        """
        from patchclamp.evidence.method import get_method  # it imports this module

        try:
            data = json.loads(text)
        except ValueError as error:
            raise FileError(f"this is not a record: it is not JSON ({error})") from error
        keys = set(cls.model_fields)
        if not isinstance(data, dict) or set(data) != keys or not isinstance(data["method"], str):
            found = ", ".join(data) if isinstance(data, dict) else type(data).__name__
            raise FileError(f"a record is an object with {', '.join(cls.model_fields)}; this has {found}")
        method = get_method(data["method"])
        return cls(
            method=method.name,
            spec=_read(method.spec, data["spec"], "spec"),
            result=_read(method.result, data["result"], "result"),
            verdict=None if data["verdict"] is None else _read(Verdict, data["verdict"], "verdict"),
            provenance=_read(Provenance, data["provenance"], "provenance"),
        )

    def save(self, path: str | Path) -> Path:
        """Write the record as its suffix says, whole or not at all, and return the path.

        `.json` is the record; `.html` one page with verdict, chart and table that needs no network; `.png`
        and `.svg` are the chart; `.csv` and `.parquet` the table. Missing folders are made. Raises InputError
        for another suffix, or if there is no chart or table; StoreError when the disk will not have it.
        """
        path = Path(path).expanduser()
        write_whole(path, self._content(check_suffix(path)))
        return path

    def _content(self, suffix: str) -> bytes:
        if suffix == ".json":
            return (self.to_json(indent=1) + "\n").encode()
        if suffix == ".html":
            return _page(self).encode()
        if suffix == ".png":
            return _chart_as(self, "png")
        if suffix == ".svg":
            return _chart_as(self, "svg")
        if suffix == ".csv":
            return self.table().to_csv(index=False).encode()
        buffer = io.BytesIO()
        self.table().to_parquet(buffer, index=False)
        return buffer.getvalue()

    def _repr_html_(self) -> str:
        """What a notebook shows: verdict, chart as a picture, table."""
        chart = _chart_as(self, "svg").decode() if _has(self, "chart") else ""
        return f"<h3>{html.escape(self.method)}</h3>{_verdict_html(self.verdict)}{chart}{_table_html(self)}"


def check_suffix(path: str | Path, allowed: tuple[str, ...] = SUFFIXES) -> str:
    """The path's suffix in lower case; InputError, naming the allowed ones, if it is not one of them."""
    suffix = Path(path).suffix.lower()
    if suffix not in allowed:
        raise InputError(f"cannot tell how to write {str(path)!r}: it should end in {', '.join(allowed)}")
    return suffix


def content_id(data: dict[str, Any]) -> str:
    """The id of a record given as JSON values; needs no knowledge of its method."""
    model = {key: data["provenance"][key] for key in ("name", "revision", "weights_hash", "dtype")}
    content = {key: data[key] for key in ("method", "spec", "result", "verdict")} | {"model": model}
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


def write_whole(path: Path, content: bytes) -> None:
    """Write beside and rename, so that no reader ever sees half a file; StoreError when the disk refuses."""
    temporary = path.with_name(f".{uuid.uuid4().hex}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror or error}") from error


def _strict(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _strict(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_strict(item) for item in value]
    return value


def _read(model: type[AnyModel], data: Any, where: str) -> AnyModel:
    """Validate JSON values; a null that was refused as a number is the NaN it was written for."""
    try:
        return model.model_validate_json(json.dumps(data))
    except ValidationError as error:
        faults = error.errors(include_url=False, include_context=False)
    places = [fault["loc"] for fault in faults if fault["type"] == "float_type" and fault["input"] is None]
    data = copy.deepcopy(data)
    for place in places:
        _put_nan(data, place)
    try:
        return model.model_validate_json(json.dumps(data))
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        path = ".".join(map(str, (where, *fault["loc"])))
        raise FileError(f"this is not a record of that method: {path}: {fault['msg']}") from error


def _put_nan(data: Any, place: tuple[int | str, ...]) -> None:
    """Replace the None at pydantic's `place`, which also names union members it tried; those are skipped."""
    holder, last = None, None
    for step in place:
        found = (isinstance(data, list) and isinstance(step, int) and step < len(data)) or (
            isinstance(data, dict) and step in data
        )
        if found:
            holder, last, data = data, step, data[step]
    if holder is not None and data is None:
        holder[last] = math.nan


def _has(record: Record, view: str) -> bool:
    """Whether the result defines `table` or `chart` itself."""
    from patchclamp.evidence.method import Result

    return getattr(type(record.result), view) is not getattr(Result, view)


def _vega_lite(record: Record) -> tuple[dict[str, Any], str]:
    """The chart as a Vega-Lite specification with its data, and the Vega-Lite version it is written in."""
    import altair

    with altair.data_transformers.enable("default", max_rows=None):
        specification = record.chart().to_dict()
    return specification, ".".join(altair.SCHEMA_VERSION.removeprefix("v").split(".")[:2])


def _chart_as(record: Record, kind: str) -> bytes:
    import vl_convert

    specification, version = _vega_lite(record)
    if kind == "png":
        return vl_convert.vegalite_to_png(specification, vl_version=version, scale=2)
    return vl_convert.vegalite_to_svg(specification, vl_version=version).encode()


def _verdict_html(verdict: Verdict | None) -> str:
    if verdict is None:
        return ""
    return f"<p><b>{verdict.outcome.capitalize()}.</b> {html.escape(verdict.reason)}</p>"


def _table_html(record: Record) -> str:
    if not _has(record, "table"):
        return ""
    table = record.table()
    shown = f"<p>The first {PAGE_ROWS} of {len(table)} rows.</p>" if len(table) > PAGE_ROWS else ""
    return shown + table.head(PAGE_ROWS).to_html(index=False, border=0)


def _page(record: Record) -> str:
    """One HTML page that works offline: the scripts that draw the chart are in it."""
    chart = ""
    if _has(record, "chart"):
        import vl_convert

        specification, version = _vega_lite(record)
        # A prompt may hold "</script>"; in JSON "<" only occurs in strings, where it can be escaped.
        safe = json.dumps(_strict(specification)).replace("<", "\\u003c")
        # Without a snippet it is Vega, Vega-Lite and Vega-Embed as globals; its type stub asks for one.
        scripts = vl_convert.javascript_bundle(vl_version=version)  # type: ignore[call-arg]
        chart = (
            f'<div id="chart"></div>\n<script>{scripts}</script>\n'
            f'<script>vegaEmbed("#chart", {safe}, {{mode: "vega-lite", actions: {{export: true, '
            "source: false, compiled: false, editor: false}});</script>"
        )
    asked = {key: value for key, value in record.to_dict().items() if key in ("spec", "provenance")}
    return PAGE.format(
        title=html.escape(f"{record.method} on {record.provenance.name}"),
        id=record.id,
        verdict=_verdict_html(record.verdict),
        chart=chart,
        table=_table_html(record),
        asked=html.escape(json.dumps(asked, indent=1, ensure_ascii=False)),
    )


PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 70em; margin: 2em auto; padding: 0 1em; }}
table {{ border-collapse: collapse; }}
th, td {{ padding: .15em .7em; text-align: right; border-bottom: 1px solid #ddd; white-space: pre-wrap; }}
pre {{ overflow: auto; background: #f5f5f5; padding: 1em; }}
</style>
</head>
<body>
<h1>{title}</h1>
{verdict}
{chart}
<details open><summary>Numbers</summary>{table}</details>
<details><summary>Specification and provenance of record {id}</summary><pre>{asked}</pre></details>
</body>
</html>
"""
