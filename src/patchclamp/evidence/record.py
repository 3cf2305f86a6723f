"""One experiment as one value: what was asked, what was measured, what follows, and where it was run.

As JSON a record is one object with the keys `method`, `spec`, `result`, `verdict`, `provenance`. The JSON is
strict: NaN and infinity, which JSON lacks, are written as null, and a null where a number belongs is read
back as NaN. (A field that allows None reads null as None.)
"""

from __future__ import annotations

import copy
import hashlib
import io
import json
import math
import os
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, SerializeAsAny, ValidationError

from patchclamp.errors import FileError, InputError, StoreError
from patchclamp.evidence import page
from patchclamp.evidence.provenance import Provenance
from patchclamp.evidence.verdict import Verdict

if TYPE_CHECKING:
    import altair
    import pandas

    from patchclamp.evidence.method import Result, Spec
else:
    # method.py imports this module. A record holds whatever subclass its method made.
    Result = Spec = BaseModel

SUFFIXES = (".json", ".html", ".ipynb", ".png", ".svg", ".csv", ".parquet")
"""What a record can be saved as."""

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
        return strict(self.model_dump(mode="json"))

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

        `.json` is the record; `.html` one page with verdict, chart and table that needs no network; `.ipynb`
        a notebook that asks the same question; `.png`
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
            return page.record_page(self).encode()
        if suffix == ".ipynb":
            from patchclamp.evidence.notebook import notebook_of  # it needs the methods

            return notebook_of(self).encode()
        if suffix == ".png":
            return page.chart_as(self, "png")
        if suffix == ".svg":
            return page.chart_as(self, "svg")
        if suffix == ".csv":
            return self.table().to_csv(index=False).encode()
        buffer = io.BytesIO()
        self.table().to_parquet(buffer, index=False)
        return buffer.getvalue()

    def _repr_html_(self) -> str:
        """What a notebook shows: verdict, chart as a picture, table."""
        return page.notebook_view(self)


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


def strict(value: Any) -> Any:
    """JSON values with NaN and infinity as None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: strict(item) for key, item in value.items()}
    if isinstance(value, list):
        return [strict(item) for item in value]
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
