"""Stored records, as JSON and as files."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response

from patchclamp.web.api import bench_of, client_of, told
from patchclamp.web.bench import REPLAY
from patchclamp.web.views import view

runs = APIRouter(prefix="/api/runs")

Kind = Literal["html", "json", "ipynb", "csv", "parquet", "png", "svg", "zip"]
TYPES = {
    "html": "text/html; charset=utf-8", "json": "application/json", "ipynb": "application/x-ipynb+json",
    "csv": "text/csv; charset=utf-8", "parquet": "application/octet-stream", "png": "image/png",
    "svg": "image/svg+xml", "zip": "application/zip",
}


@runs.get("")
def list_runs(request: Request, limit: Annotated[int, Query(ge=1, le=5000)] = 500) -> dict[str, Any]:
    """The records, newest first."""
    found = bench_of(request).store.list()
    return {"total": len(found), "runs": [entry.model_dump(mode="json") for entry in found[:limit]]}


@runs.get("/{name}")
def show(request: Request, name: str) -> Response:
    """What a page shows of a record."""
    bench_of(request).wait()
    return Response(view(bench_of(request).store, name), media_type="application/json")


@runs.get("/{name}/export")
def export(request: Request, name: str, kind: Kind = "json") -> Response:
    """The record as a file."""
    bench_of(request).wait()
    store = bench_of(request).store
    with tempfile.TemporaryDirectory() as folder:
        path = store.export(name, Path(folder) / f"{store.find(name).name}.{kind}")
        content = path.read_bytes()
    headers = {"content-disposition": f'attachment; filename="{path.name}"'}
    return Response(content, media_type=TYPES[kind], headers=headers)


@runs.delete("/{name}")
def delete(request: Request, name: str) -> dict[str, str]:
    """Remove a record, for good."""
    store = bench_of(request).store
    found = store.find(name).name
    store.delete(found)
    return {"deleted": found}


@runs.post("/{name}/replay")
def replay(request: Request, name: str) -> dict[str, Any]:
    """Queue a second run of a record; its outcome is at `replay` once the job is done."""
    bench = bench_of(request)
    found = bench.store.find(name).name
    return told(bench, bench.queue.submit("replay", f"replay {found}", {"record": found}, client_of(request)))


@runs.get("/{name}/replay")
def replayed(request: Request, name: str) -> Response:
    """Whether the numbers came out the same when the record was last run again; null if it never was."""
    path = bench_of(request).store.find(name) / REPLAY
    content = path.read_bytes() if path.is_file() else b"null"
    return Response(content, media_type="application/json")
