"""The one reader of data files. Every method reads the user's rows, relations and corpora through it.

    rows = read_rows("pairs.csv", PairRow)        # .jsonl, .json, .csv, .tsv, .parquet hold the same rows
    prompts = read_rows("prompts.txt", PromptRow) # one prompt a line
    relation = read_relation("capitals.json")
    texts = read_corpus("hf:roneneldan/TinyStories:validation", limit=1000)

A path may be `example:NAME`, one of the shipped files. Whatever is wrong with a file is a FileError that
gives the line and the field.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from patchclamp.errors import FileError, SpecError
from patchclamp.tasks.files import (
    HUB_PREFIX,
    ROW_SUFFIXES,
    describe,
    locate,
    locate_file,
    raw_rows,
    read_json,
    text_lines,
)
from patchclamp.tasks.rows import BehaviourRow, PromptRow, RelationFile, Row, TaskRow, TextRow

RowT = TypeVar("RowT", bound=Row)
ModelT = TypeVar("ModelT", bound=BaseModel)

MAX_PARAGRAPH = 20_000
"""Characters after which a paragraph without a blank line is cut at the next line end, to bound memory."""


def read_rows(path: str | Path, row: type[RowT]) -> list[RowT]:
    """All rows of a `.jsonl`, `.json`, `.csv`, `.tsv` or `.parquet` file, each checked to be a `row`.

    A plain `.txt` file holds prompts, one a line, blank lines passed over. Columns `row` does not name are
    kept in `model_extra`. Raises FileError: no such file, a format that is not read, a malformed or empty
    file, or a row whose field is missing, empty or of the wrong type.
    """
    rows = list(_iter_rows(locate_file(path), row))
    if not rows:
        raise FileError(f"{path} has no rows; a {row.kind} file needs at least one")
    return rows


def split_where(
    rows: Sequence[RowT], where: Sequence[str], path: str | Path
) -> tuple[list[tuple[int, RowT]], list[tuple[int, RowT]]]:
    """The rows in which all conditions FIELD=VALUE hold, and the others, each with its number from 1.

    SpecError for a condition of another form, FileError for a field that no row has and where no row is left."""
    conditions = [condition.partition("=") for condition in where]
    for condition, (name, equals, _) in zip(where, conditions, strict=True):
        if not name or not equals:
            raise SpecError(f"where {condition!r}: write FIELD=VALUE, e.g. number=plural")
        if not any(_has(row, name) for row in rows):
            fields = sorted({*type(rows[0]).model_fields, *(rows[0].model_extra or {})})
            raise FileError(f"{path}: no row has a field {name!r}; the first one has {', '.join(fields)}")
    split: tuple[list[tuple[int, RowT]], list[tuple[int, RowT]]] = ([], [])
    for number, row in enumerate(rows, 1):
        holds = all(_has(row, name) and str(getattr(row, name)) == value for name, _, value in conditions)
        split[not holds].append((number, row))
    if not split[0]:
        values = [sorted({str(getattr(row, name)) for row in rows if _has(row, name)})[:8] for name, _, _ in conditions]
        have = "; ".join(f"{name} is {', '.join(some)}" for (name, _, _), some in zip(conditions, values, strict=True))
        raise FileError(f"{path}: no row has {' and '.join(where)} ({have})")
    return split


def _has(row: Row, name: str) -> bool:
    return name in type(row).model_fields or name in (row.model_extra or {})


def read_behaviours(path: str | Path) -> list[BehaviourRow]:
    """The questions of a behaviour, usually a `.json` list as published for contrastive steering."""
    return read_rows(path, BehaviourRow)


def read_relation(path: str | Path) -> RelationFile:
    """The relation in a `.json` file: its name, its prompt templates and its pairs. Raises FileError."""
    found = locate_file(path)
    if found.suffix.lower() != ".json":
        raise FileError(f"{found}: a relation is one object in a .json file")
    value = read_json(found)
    if not isinstance(value, dict):
        raise FileError(f'{found}: a relation file is {{"name", "prompt_templates", "samples"}}, '
                        f"not {describe(value)}")
    return validated(RelationFile, value, str(found))


def is_relation(path: Path) -> bool:
    """Whether a `.json` file looks like a relation, whatever may be wrong with it: it has templates and samples."""
    try:
        value = read_json(path)
    except FileError:
        return False
    return isinstance(value, dict) and {"prompt_templates", "samples"} <= value.keys()


def read_task(path: str | Path) -> list[TaskRow]:
    """The inputs and outputs of a task: rows of a file, or a relation's subjects and objects. Raises FileError."""
    found = locate_file(path)
    if found.suffix.lower() == ".json" and isinstance(value := read_json(found), dict) and "samples" in value:
        return [TaskRow(input=one.subject, output=one.object) for one in read_relation(path).samples]
    return read_rows(path, TaskRow)


def read_corpus(source: str | Path, limit: int | None = None) -> Iterator[str]:
    """The texts of a corpus, one after another and never all in memory; at most `limit` of them.

    `source` is a text file (its paragraphs: what stands between blank lines), a folder (the paragraphs of all
    `.txt` files in it and below), a file of rows with a `text` column, or `hf:NAME[:SPLIT]` for a dataset of
    the Hugging Face hub (split `train` unless named). Empty texts are passed over. Raises FileError: at once
    for a source that does not exist, otherwise when the reading gets there.
    """
    name = str(source)
    texts = _hub_texts(name) if name.startswith(HUB_PREFIX) else _file_texts(locate(source))
    return islice(_not_empty(texts, name), limit)


def _iter_rows(path: Path, row: type[RowT]) -> Iterator[RowT]:
    if path.suffix.lower() == ".txt":
        if not issubclass(row, PromptRow):
            raise FileError(f"{path}: plain text holds prompts only, and this needs {row.kind} rows "
                            f"({_required(row)}); readable are {', '.join(ROW_SUFFIXES)}")
        for number, line in text_lines(path):
            if line.strip():
                yield validated(row, {"prompt": line.rstrip("\r\n")}, f"{path}, line {number}")
        return
    cells_are_text = path.suffix.lower() in (".csv", ".tsv")
    for place, value in raw_rows(path):
        if not isinstance(value, dict):
            raise FileError(f"{path}, {place}: not an object but {describe(value)}; "
                            f"a {row.kind} row is an object ({_required(row)})")
        yield validated(row, row.from_cells(value) if cells_are_text else value, f"{path}, {place}")


def _required(row: type[BaseModel]) -> str:
    """The names of the fields a row must have."""
    required = [name for name, field in row.model_fields.items() if field.is_required()]
    return ", ".join(required or row.model_fields)


def validated(model: type[ModelT], value: dict[str, Any], where: str) -> ModelT:
    """`value` as a `model`; FileError that gives the place and every wrong field in plain words."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        problems = "; ".join(dict.fromkeys(map(_problem, error.errors())))
        if any(details["type"] == "missing" and len(details["loc"]) == 1 for details in error.errors()):
            problems += f" (it has: {', '.join(map(str, value)) or 'no field'})"
        raise FileError(f"{where}: {problems}") from error


def _problem(details: Any) -> str:
    """One of pydantic's errors in plain words, the field written as a path: `samples[3].object`."""
    location = details["loc"]
    if not location:
        return details["msg"].removeprefix("Value error, ")
    field = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")
    found = details["input"]
    match details["type"]:
        case "missing":
            problem = "is missing"
        case "string_type" if found is None:
            problem = "is empty (null)"
        case "string_type":
            problem = f"must be text, not {describe(found)}"
        case "string_too_short" | "too_short":
            problem = "is empty"
        case "tuple_type":
            problem = f"must be a list, not {describe(found)}"
        case "string_unicode":
            problem = "holds half a character (a lone surrogate), which no tokenizer accepts"
        case "model_type" | "model_attributes_type":
            problem = f"must be an object, not {describe(found)}"
        case _:
            problem = details["msg"].removeprefix("Value error, ")
    return f"field '{field}' {problem}"


def _not_empty(texts: Iterator[str], source: str) -> Iterator[str]:
    count = 0
    for text in texts:
        if text.strip():
            count += 1
            yield text
    if not count:
        raise FileError(f"{source} holds no text")


def _file_texts(path: Path) -> Iterator[str]:
    if path.is_dir():
        files = sorted(found for found in path.rglob("*.txt") if found.is_file())
        if not files:
            raise FileError(f"{path} is a folder without a .txt file; a corpus folder holds .txt files")
        return chain.from_iterable(map(_paragraphs, files))
    if path.suffix.lower() in ROW_SUFFIXES:
        return (row.text for row in _iter_rows(path, TextRow))
    return _paragraphs(path)


def _paragraphs(path: Path) -> Iterator[str]:
    held: list[str] = []
    size = 0
    for _, line in text_lines(path):
        blank = not line.strip()
        if held and (blank or size + len(line) > MAX_PARAGRAPH):
            yield "\n".join(held)
            held, size = [], 0
        if not blank:
            held.append(line.rstrip("\r\n"))
            size += len(line)
    if held:
        yield "\n".join(held)


def _hub_texts(source: str) -> Iterator[str]:
    name, _, split = source.removeprefix(HUB_PREFIX).partition(":")
    if not name:
        raise FileError(f"{source!r} names no dataset; write hf:NAME or hf:NAME:SPLIT")
    for number, value in enumerate(_hub_rows(name, split or "train"), 1):
        yield validated(TextRow, value, f"{source}, row {number}").text


def _hub_rows(name: str, split: str) -> Iterator[dict[str, Any]]:
    import datasets

    try:
        yield from datasets.load_dataset(name, split=split, streaming=True)
    except Exception as error:  # the network, the hub and the dataset's files raise of all kinds
        first_line = str(error).strip().split("\n")[0]
        raise FileError(
            f"dataset {name} (split {split}) cannot be read: {type(error).__name__}: {first_line}. Check the "
            "name, the split and the network; or download a text, JSONL or Parquet file of it and name that"
        ) from error
