"""All routes together: pages for people, JSON for their scripts and anyone else's."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.staticfiles import StaticFiles

from patchclamp.errors import InputError, PatchclampError
from patchclamp.web.api import api
from patchclamp.web.bench import Workbench
from patchclamp.web.guard import Guard
from patchclamp.web.jobs import BusyError
from patchclamp.web.runs import runs
from patchclamp.web.shown import Shown, page_answer, shown

STATIC = Path(str(files("patchclamp.web"))) / "static"


def make_app(bench: Workbench, token: str, admission: str | None = None) -> FastAPI:
    """The application on one workbench. `token` is what a change has to bring (the pages carry it); `admission` is
    asked of every browser once, where others than this machine can reach the server."""
    app = FastAPI(title="patchclamp", docs_url=None, redoc_url=None, openapi_url="/openapi.json")
    app.state.bench = bench
    app.state.shown = Shown(bench, token)
    app.include_router(api)
    app.include_router(runs)
    app.include_router(shown)
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    app.add_exception_handler(PatchclampError, _wrong)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(404, _missing)
    app.add_middleware(Guard, token=token, admission=admission)
    return app


def _wrong(request: Request, error: Exception) -> Response:
    """What a person did wrong, in the words of the exception."""
    status = 429 if isinstance(error, BusyError) else 422 if isinstance(error, InputError) else 409
    return JSONResponse({"error": str(error)}, status)


def _missing(request: Request, error: Exception) -> Response:
    """A page for people, JSON for programs."""
    if "text/html" in request.headers.get("accept", ""):
        answer = page_answer(request, "missing.html", "missing")
        answer.status_code = 404
        return answer
    return JSONResponse({"error": f"there is nothing at {request.url.path}"}, 404)


def _invalid(request: Request, error: Exception) -> Response:
    details: Any = error.errors() if isinstance(error, RequestValidationError) else []
    told = "; ".join(f"{'.'.join(map(str, one['loc'][1:])) or 'the request'}: {one['msg']}" for one in details)
    return JSONResponse({"error": told}, 422)
