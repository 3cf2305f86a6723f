"""Questions, jobs, models and files, as JSON."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response, UploadFile
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from patchclamp.errors import FileError, InputError, PatchclampError
from patchclamp.evidence.method import Dtype
from patchclamp.evidence.record import write_whole
from patchclamp.tasks.examples import EXAMPLE_PREFIX, example_names
from patchclamp.tasks.files import PICKLE_SUFFIXES
from patchclamp.web.bench import Workbench, safe_name
from patchclamp.web.jobs import Job
from patchclamp.web.live import MOST_TOKENS, STREAMED, lines_of, pieces_of, strength_of
from patchclamp.web.models import resident_megabytes
from patchclamp.web.pages import RESUMABLE
from patchclamp.web.question import DTYPES, Question, check_inside, read_model, read_question

api = APIRouter(prefix="/api")

LARGEST_UPLOAD = 20_000_000
MOST_LISTED = 2000
MOST_LOGGED = 400


class Asked(BaseModel):
    """A question: each field's texts under its option's name without dashes, with `method`, `model` and `dtype`."""

    model_config = ConfigDict(extra="forbid")

    values: dict[str, list[str]]


class ModelAsked(BaseModel):
    """A model to load or let go."""

    model_config = ConfigDict(extra="forbid")

    ref: str = Field(min_length=1, max_length=1000)
    dtype: Dtype = "float32"


def bench_of(request: Request) -> Workbench:
    """The workbench that a request is about."""
    return request.app.state.bench


def client_of(request: Request) -> str:
    """Which browser asks."""
    return request.scope.get("client_name", "unknown")


def question_of(bench: Workbench, values: dict[str, list[str]]) -> Question:
    """The question that parameters say, once the methods are imported."""
    bench.wait()
    return read_question(values, bench.folders, bench.offered)


@api.get("/status")
async def status(request: Request) -> dict[str, Any]:
    """Whether the server is ready, what it does, and how many jobs there are."""
    bench = bench_of(request)
    jobs = bench.queue.list()
    return {
        "ready": bench.is_ready, "stage": bench.stage, "problem": bench.problem,
        "jobs": {"waiting": sum(job.state == "waiting" for job in jobs),
                 "running": [told(bench, job) for job in jobs if job.state == "running"]},
        "memory_mb": resident_megabytes(),
    }


@api.get("/answer")
def answer(request: Request) -> dict[str, Any]:
    """The question in this address: its code, its parameters, and the record that answers it or the job that will, if
    there is one. Nothing is run."""
    bench = bench_of(request)
    given = {key: request.query_params.getlist(key) for key in request.query_params}
    question = question_of(bench, given)
    job = bench.under_way(question)
    return {"record": bench.answer(question), "job": told(bench, job) if job else None, "code": question.code,
            "query": question.query}


@api.post("/ask")
def ask(request: Request, asked: Asked) -> dict[str, Any]:
    """Ask a question: the record that answers it already, or the job that will."""
    bench = bench_of(request)
    question = question_of(bench, asked.values)
    known = bench.answer(question)
    job = None if known else told(bench, bench.ask(question, client_of(request)))
    return {"record": known, "job": job, "query": question.query}


@api.post("/live")
async def live(request: Request, asked: Asked) -> Response:
    """Answers word by word, as lines of JSON: {"condition", "text"}, at the end of each {"condition", "end"}, or
    {"error"}, also where others have as many answers written as there may be."""
    bench = bench_of(request)
    question, model = await asyncio.to_thread(_writing, bench, asked.values)
    client = client_of(request)
    lines = lines_of(partial(pieces_of, question, model), partial(bench.only_stream, client),
                     partial(bench.end_stream, client))
    return StreamingResponse(lines, media_type="application/x-ndjson")


@api.post("/live/strength")
def strength(request: Request, asked: Asked) -> dict[str, float | None]:
    """How strongly the vector in a question is added if nothing is said."""
    return {"strength": strength_of(*_writing(bench_of(request), asked.values))}


def _writing(bench: Workbench, values: dict[str, list[str]]) -> tuple[Question, Any]:
    """A question whose method writes answers, and its model."""
    question = question_of(bench, values)
    if question.method.name not in STREAMED:
        raise InputError(f"{question.method.name} writes no answers that could be streamed; "
                         f"{' and '.join(STREAMED)} do")
    if question.spec.max_new_tokens > MOST_TOKENS:  # type: ignore[attr-defined]
        raise InputError(f"an answer of {MOST_TOKENS} tokens is the longest that is streamed; run the method for more")
    return question, bench.models.get(question.model, question.dtype, question.method.load, lambda _: None)


# Jobs


def query_of(payload: dict[str, Any]) -> list[tuple[str, str]] | None:
    """The question that a job asks, as the parameters of an address; None if its method is gone or has changed."""
    from patchclamp.evidence.method import get_method

    with suppress(PatchclampError, KeyError, ValueError):
        method = get_method(payload["method"])
        return Question(method, method.make_spec(**payload["spec"]), payload["model"], payload["dtype"]).query
    return None


def told(bench: Workbench, job: Job) -> dict[str, Any]:
    """A job as JSON."""
    seen = job.model_dump(mode="json", exclude={"client"})
    if job.kind == "ask":
        seen["query"] = query_of(job.payload)
    return seen | {"cancelling": bench.queue.is_being_cancelled(job),
                   "resumable": job.payload.get("method") in RESUMABLE}


@api.get("/jobs")
def jobs(request: Request) -> list[dict[str, Any]]:
    """All jobs, newest first."""
    bench = bench_of(request)
    return [told(bench, job) for job in bench.queue.list()]


@api.get("/jobs/{name}")
def job(request: Request, name: str) -> dict[str, Any]:
    """One job."""
    bench = bench_of(request)
    return told(bench, bench.queue.get(name))


@api.get("/jobs/{name}/log")
def log(request: Request, name: str) -> list[dict[str, Any]]:
    """What a training has logged so far, at most a few hundred lines of it; empty for other jobs."""
    bench = bench_of(request)
    job = bench.queue.get(name)
    folder = job.payload.get("spec", {}).get("out")
    if job.payload.get("method") != "sae.train" or not folder:
        return []
    check_inside(folder, bench.folders)
    from patchclamp.sae.training import read_log

    return thinned(list(read_log(Path(folder))))


def thinned(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A few hundred lines of a log, of each autoencoder as many, its last among them."""
    by_name: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        by_name.setdefault(line["name"], []).append(line)
    stride = max(1, -(-len(lines) // MOST_LOGGED))
    return [line for some in by_name.values() for line in some[::-1][::stride][::-1]]


@api.post("/jobs/{name}/cancel")
def cancel(request: Request, name: str) -> dict[str, Any]:
    """End a job that waits or runs."""
    bench = bench_of(request)
    return told(bench, bench.queue.cancel(name))


@api.post("/jobs/{name}/resume")
def resume(request: Request, name: str) -> dict[str, Any]:
    """Submit an ended job's work again; methods that keep checkpoints go on from them."""
    bench = bench_of(request)
    return told(bench, bench.queue.resume(name, client_of(request)))


# Models


@api.get("/models")
def models(request: Request) -> dict[str, Any]:
    """The models to choose from and those in memory."""
    bench = bench_of(request)
    from patchclamp.model.embedded import EMBEDDED, is_cached

    embedded = [{"name": name, "cached": is_cached(name), "download_mb": model.download_mb, "licence": model.licence,
                 "summary": model.summary} for name, model in EMBEDDED.items()]
    offered = list(dict.fromkeys([*bench.offered, *EMBEDDED]))
    return {"offered": offered, "dtypes": DTYPES, "embedded": embedded, "loaded": bench.models.told(),
            "memory_mb": resident_megabytes()}


@api.post("/models/load")
def load(request: Request, asked: ModelAsked) -> dict[str, Any]:
    """Queue the loading of a model."""
    bench = bench_of(request)
    ref = read_model(asked.ref, bench.folders, bench.offered)
    payload = {"ref": ref, "dtype": asked.dtype}
    return told(bench, bench.queue.submit("load", f"load {ref}", payload, client_of(request)))


@api.post("/models/unload")
def unload(request: Request, asked: ModelAsked) -> dict[str, bool]:
    """Let go of a model."""
    return {"unloaded": bench_of(request).models.unload(asked.ref, asked.dtype)}


# Files


@api.get("/files")
def list_files(request: Request) -> dict[str, Any]:
    """Files and folders a question may name: those of the workbench's folder, and the examples that come along."""
    bench = bench_of(request)
    own = sorted(islice(_names_in(bench.files), MOST_LISTED))
    return {"folder": str(bench.files), "files": own,
            "examples": [f"{EXAMPLE_PREFIX}{name}" for name in example_names()]}


def _names_in(folder: Path) -> Iterator[str]:
    """Files and folders below, without hidden ones, those further up first."""
    later = deque([folder])
    while later:
        with suppress(OSError):
            for path in sorted(later.popleft().iterdir()):
                if not path.name.startswith("."):
                    yield str(path.relative_to(folder))
                    if path.is_dir() and not path.is_symlink():
                        later.append(path)


def _keep(folder: Path, name: str, content: bytes) -> dict[str, str]:
    """Keep a file under its name, or under one with a number where another file has that."""
    stem, suffix = Path(name).stem, Path(name).suffix
    for number in count(1):
        path = folder / (name if number == 1 else f"{stem}-{number}{suffix}")
        if not path.exists():
            write_whole(path, content)
        elif path.read_bytes() != content:
            continue
        return {"name": path.name}
    raise AssertionError


@api.post("/files")
def upload(request: Request, file: UploadFile) -> dict[str, str]:
    """Keep a file in the workbench's folder. It is only ever parsed as data."""
    name = safe_name(file.filename or "")
    if name.lower().endswith(PICKLE_SUFFIXES):
        raise FileError(f"{name} looks like a pickle; opening one can run any code in it, so it is not taken")
    content, folder = file.file.read(LARGEST_UPLOAD + 1), bench_of(request).files
    if len(content) > LARGEST_UPLOAD:
        raise FileError(f"{name} is larger than {LARGEST_UPLOAD // 1_000_000} MB; put it into {folder}")
    return _keep(folder, name, content)


class Lines(BaseModel):
    """A file of prompts, one a line."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(min_length=1, max_length=200)
    text: str = Field(max_length=1_000_000)


@api.post("/files/text")
def write(request: Request, lines: Lines) -> dict[str, str]:
    """Keep a text that was written in the page, such as a list of prompts."""
    name = safe_name(lines.name)
    if not name.endswith((".txt", ".jsonl", ".json", ".csv")):
        raise FileError(f"{name}: a text is kept as .txt, .jsonl, .json or .csv")
    return _keep(bench_of(request).files, name, lines.text.encode("utf-8", "replace"))


@api.get("/methods")
def list_methods(request: Request, schema: Annotated[bool, Query()] = False) -> list[dict[str, Any]]:
    """All methods: name and summary, and with `schema` the JSON schema of each one's fields."""
    bench_of(request).wait()
    from patchclamp.evidence.method import methods

    found = methods().values()
    return [{"name": one.name, "summary": one.summary} | ({"schema": one.spec.model_json_schema()} if schema else {})
            for one in found]
