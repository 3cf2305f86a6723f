"""The pages. One page is the same for every client, so it is made once in each language; its twin ends in .json."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Request, Response
from fastapi.responses import FileResponse, HTMLResponse, RedirectResponse
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from patchclamp.errors import FileError, InputError
from patchclamp.evidence.record import content_id
from patchclamp.web.api import bench_of, models
from patchclamp.web.bench import TOUR, Workbench
from patchclamp.web.forms import fields_of
from patchclamp.web.guard import IMPORT_MAP
from patchclamp.web.pages import DICTIONARY_STEPS, KEYS, NAVIGATION, PAGES, STARTS, Page, page_of
from patchclamp.web.question import DTYPES, Question
from patchclamp.web.runs import list_runs
from patchclamp.web.views import compared
from patchclamp.web.words import help_of, label_of, language_of, title_of, word, words

if TYPE_CHECKING:
    from patchclamp.evidence.method import Method

shown = APIRouter()
LANGUAGE = "patchclamp-language"


class Shown:
    """The pages' templates, filled."""

    def __init__(self, bench: Workbench, token: str) -> None:
        self.bench, self.token = bench, token
        self.templates = Environment(loader=PackageLoader("patchclamp.web"), autoescape=True, undefined=StrictUndefined,
                                     trim_blocks=True, lstrip_blocks=True)
        self.templates.filters["marked"] = marked
        self.made = lru_cache(maxsize=64)(self._made)

    def page(self, template: str, language: str, name: str) -> bytes:
        """A page by its template, in one language; one that shows methods waits for them to be imported."""
        if name in PAGES and not self.bench.is_ready:
            return self._made("starting.html", language, name)
        return self.made(template, language, name)

    def _made(self, template: str, language: str, name: str) -> bytes:
        page = PAGES.get(name)
        methods = methods_of(page, language) if page and template != "starting.html" else []
        filled = self.templates.get_template(template).render(
            t=partial(word, language=language), language=language, words=words(language), name=name, page=page,
            methods=methods, titles={one["name"]: one["title"] for one in methods},
            label=partial(label_of, language=language), help=partial(help_of, language=language), starts=STARTS,
            steps=DICTIONARY_STEPS, tour_folder=TOUR, files=str(self.bench.files),
            feature_stop=_stop_of("sae.show") if methods else None, pages=NAVIGATION, keys=KEYS, token=self.token,
            import_map=IMPORT_MAP, default=self.bench.offered[0], dtypes=DTYPES,
        )
        return filled.encode()


def marked(text: str) -> Markup:
    """A docstring's text with what stands between backticks set as code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _stop_of(method: str) -> int:
    """The first stop of the tour that asks by a method."""
    from patchclamp.tour import STOPS

    return next(number for number, stop in enumerate(STOPS, 1) if stop.method == method)


def methods_of(page: Page, language: str = "en") -> list[dict[str, Any]]:
    """What a page's forms are made from."""
    from patchclamp.evidence.method import get_method

    found = [get_method(name) for name in page.methods]
    return [{"name": one.name, "title": title_of(one.name, one.summary, language), "summary": one.summary,
             "description": one.description, "fields": fields_of(one), "example": example_of(one),
             "loads": one.load.__name__} for one in found]


def example_of(method: Method) -> str | None:
    """A question that the tour asks by a method, as the parameters of an address; None if it asks none that stands by
    itself."""
    from patchclamp.tour import STOPS

    for stop in STOPS:
        if stop.method == method.name and isinstance(stop.fields, Mapping) and stop.prepare is None:
            return urlencode(Question(method, method.make_spec(**stop.fields), stop.model).query)
    return None


def page_answer(request: Request, template: str, name: str) -> Response:
    """A page in the language its reader chose."""
    language = language_of(request.cookies.get(LANGUAGE), request.headers.get("accept-language"))
    content = request.app.state.shown.page(template, language, name)
    return HTMLResponse(content, headers={"cache-control": "no-cache", "vary": "cookie, accept-language"})


@shown.get("/")
async def home(request: Request) -> Response:
    """The models: where one begins."""
    return page_answer(request, "models.html", "models")


@lru_cache(maxsize=32)
def _twin_of(name: str) -> bytes:
    """What a page's forms are made from, as JSON."""
    listed = [one | {"fields": [asdict(field) for field in one["fields"]]} for one in methods_of(PAGES[name])]
    return json.dumps({"page": name, "title": word(name, "en"), "about": word(f"about {name}", "en"),
                       "methods": listed}, ensure_ascii=False).encode()


def _page(name: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The routes of a page that asks methods: for people, and as JSON."""

    async def html(request: Request) -> Response:
        return page_answer(request, "page.html", name)

    def twin(request: Request) -> Response:
        bench_of(request).wait()
        return Response(_twin_of(name), media_type="application/json")

    return html, twin


for _name in PAGES:
    _html, _twin = _page(_name)
    shown.add_api_route(f"/{_name}", _html, methods=["GET"], response_class=HTMLResponse, name=_name)
    shown.add_api_route(f"/{_name}.json", _twin, methods=["GET"], name=f"{_name} as JSON")


@shown.get("/ask")
async def ask_page(request: Request, method: str = "") -> Response:
    """The page on which a question is asked: what a permalink leads to."""
    return RedirectResponse(f"/{page_of(method)}?{request.url.query}", status_code=307)


@shown.get("/models")
async def models_page(request: Request) -> Response:
    """The models."""
    return page_answer(request, "models.html", "models")


@shown.get("/models.json")
def models_twin(request: Request) -> dict[str, Any]:
    """The models as JSON."""
    return models(request)


@shown.get("/runs")
async def runs_page(request: Request) -> Response:
    """The stored records and the jobs."""
    return page_answer(request, "runs.html", "runs")


@shown.get("/runs.json")
def runs_twin(request: Request) -> dict[str, Any]:
    """The stored records as JSON."""
    return list_runs(request, 5000)


@shown.get("/runs/{name}.json")
def run_twin(request: Request, name: str) -> dict[str, Any]:
    """One record as JSON, as it is stored."""
    bench_of(request).wait()
    return bench_of(request).store.get(name).to_dict()


@shown.get("/runs/{name}")
async def run_page(request: Request, name: str) -> Response:
    """One record: a page of its own to link to."""
    return page_answer(request, "run.html", "runs")


@shown.get("/compare")
async def compare_page(request: Request) -> Response:
    """Two records side by side."""
    return page_answer(request, "compare.html", "runs")


@shown.get("/compare.json")
def compare_twin(request: Request, a: str, b: str) -> dict[str, Any]:
    """Where two records differ, as JSON."""
    bench_of(request).wait()
    store = bench_of(request).store
    return compared(store.get(a), store.get(b))


@shown.get("/tour")
async def tour_page(request: Request) -> Response:
    """The tour's stops, with what came out."""
    return page_answer(request, "tour.html", "tour")


@shown.get("/tour.json")
def tour_twin(request: Request) -> dict[str, Any]:
    """The tour's stops, each with the record of its last run."""
    from patchclamp.tour import STOPS

    bench = bench_of(request)
    bench.wait()
    stops = []
    for number, stop in enumerate(STOPS, 1):
        path = bench.files / TOUR / "records" / f"{number:02}-{stop.method}.json"
        record = json.loads(path.read_bytes()) if path.is_file() else None
        stops.append({"number": number, "heading": stop.heading, "question": stop.question, "model": stop.model,
                      "method": stop.method, "page": page_of(stop.method), "record": record and content_id(record),
                      "verdict": record and record["verdict"],
                      "seconds": record and record["provenance"]["duration"]})
    return {"title": word("tour", "en"), "report": (bench.files / TOUR / "report.html").is_file(), "stops": stops}


@shown.get("/tour/report")
def tour_report(request: Request) -> Response:
    """The whole report as a file: one page that needs nothing else, and runs its own scripts."""
    path = bench_of(request).files / TOUR / "report.html"
    if not path.is_file():
        raise FileError("there is no report yet; run a stop of the tour")
    return FileResponse(path, filename="patchclamp-tour.html", media_type="text/html")


@shown.post("/api/tour/{number}")
def run_stop(request: Request, number: int) -> dict[str, Any]:
    """Queue one stop of the tour."""
    from patchclamp.tour import STOPS
    from patchclamp.web.api import client_of, told

    bench = bench_of(request)
    bench.wait()
    if not 1 <= number <= len(STOPS):
        raise InputError(f"the tour has stops 1 to {len(STOPS)}, and no {number}")
    return told(bench, bench.queue.submit("stop", STOPS[number - 1].heading, {"number": number}, client_of(request)))
