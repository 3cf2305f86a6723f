"""Opening data files: from a path to raw rows, each with its place, or to an error that says where.

A row means the same whatever format holds it. Files are read as a stream; only `.json` is one value.
Nothing is unpickled: a pickle can run any code when it is opened.
"""

from __future__ import annotations

import csv
import difflib
import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from patchclamp.errors import FileError
from patchclamp.tasks.examples import EXAMPLE_PREFIX, example_file, example_names

HUB_PREFIX = "hf:"
DEFAULT_MODEL = "smollm2-135m-instruct"
"""The model that is asked where none is named."""
ATTACHED = "+sae="
"""In a model's reference, before the folder of an autoencoder."""
ROW_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
"""Suffixes of the files that hold rows."""
PICKLE_SUFFIXES = (".pkl", ".pickle", ".joblib", ".pt", ".pth", ".ckpt", ".bin")
"""Suffixes under which pickles are commonly kept."""

NAMES_A_FILE = Field(json_schema_extra={"format": "path"})
"""Marks a text in a specification that may name a file or folder. Every field that does bears it: a server looks there
whether a question stays inside the folder it may touch."""
DataFile = Annotated[str, AfterValidator(lambda name: absolute(name)), NAMES_A_FILE]
"""The name of a file or folder in a specification, kept absolute, so that a record can be run again from anywhere."""

_BOM = b"\xef\xbb\xbf"
_UTF_16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_PARQUET_BATCH = 1024


_opened: ContextVar[set[Path] | None] = ContextVar("data files opened", default=None)
_allowed: ContextVar[Callable[[Path], None] | None] = ContextVar("data files that may be opened", default=None)


def absolute(name: str) -> str:
    """The absolute path of a data file; names of shipped files and hub datasets as they are."""
    return name if name.startswith((EXAMPLE_PREFIX, HUB_PREFIX)) else str(Path(name).expanduser().absolute())


@contextmanager
def noting_files() -> Iterator[set[Path]]:
    """The data files that are opened inside, as they come to be known."""
    files: set[Path] = set()
    token = _opened.set(files)
    try:
        yield files
    finally:
        _opened.reset(token)


def hash_of_file(path: Path) -> str:
    """sha256 of a file's bytes, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_of_folder(folder: Path) -> str:
    """The sha256 of the lines `<sha256>  <path in it>` of a folder's files, sorted by path."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    lines = (f"{hash_of_file(path)}  {path.relative_to(folder).as_posix()}\n" for path in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


@contextmanager
def opening_only(allowed: Callable[[Path], None]) -> Iterator[None]:
    """Inside, `allowed` is asked about every data file before it is opened, and raises if it may not be."""
    token = _allowed.set(allowed)
    try:
        yield
    finally:
        _allowed.reset(token)


def note(path: Path) -> None:
    """Have a file that is about to be read, or a folder whose files are, stand in the record's provenance."""
    if (allowed := _allowed.get()) is not None:
        allowed(path)
    opened = _opened.get()
    if opened is not None:
        opened.add(path)


def locate(path: str | Path) -> Path:
    """The existing file or folder that `path` names: `example:NAME` is a shipped file, `~` the home folder.

    Raises FileError, with the names that come near, if there is none; and for a pickle.
    """
    text = str(path)
    if text.startswith(EXAMPLE_PREFIX):
        return example_file(text.removeprefix(EXAMPLE_PREFIX))
    if Path(path).suffix.lower() in PICKLE_SUFFIXES:
        raise FileError(f"{path} looks like a pickle; opening one can run any code in it, so it is not read. "
                        f"Save the rows as one of {', '.join(ROW_SUFFIXES)}")
    try:
        found = Path(path).expanduser()
        exists = found.exists()
    except (OSError, RuntimeError) as error:  # a name too long, ~ of a user who does not exist
        raise FileError(f"{path} cannot be opened: {error}") from error
    if not exists:
        raise FileError(f"{found} does not exist; {_what_is_near(found)}")
    return found


def _what_is_near(missing: Path) -> str:
    if not missing.parent.is_dir():
        return f"nor does its folder {missing.parent} (the current folder is {Path.cwd()})"
    names = [path.name for path in missing.parent.iterdir()]
    near = difflib.get_close_matches(missing.name, names, n=3)
    near += sorted(name for name in names if Path(name).stem == missing.stem and name not in near)
    if near:
        return f"near it: {', '.join(near)}"
    if missing.stem in example_names():
        return f"the shipped file is {EXAMPLE_PREFIX}{missing.stem}"
    return f"nothing in {missing.parent.resolve()} has a name like it"


def locate_file(path: str | Path) -> Path:
    """As `locate`, but a folder is an error too."""
    found = locate(path)
    if found.is_dir():
        inside = sorted(p.name for p in found.iterdir() if p.suffix.lower() in (*ROW_SUFFIXES, ".txt"))
        listed = ", ".join(inside[:5]) + (", …" if len(inside) > 5 else "")
        raise FileError(f"{found} is a folder; name one file" + (f" in it: {listed}" if inside else ""))
    return found


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a UTF-8 file, numbered from 1, with their ends; a byte order mark is dropped.

    A line ends at a newline and nowhere else: text may hold the other separators of Unicode.
    """
    note(path)
    try:
        file = path.open("rb")
    except OSError as error:
        raise FileError(f"{path} cannot be opened: {error.strerror}") from error
    with file:
        offset = 0
        for number, data in enumerate(file, 1):
            skip = len(_BOM) if number == 1 and data.startswith(_BOM) else 0
            try:
                line = data[skip:].decode("utf-8")
            except UnicodeDecodeError as error:
                at = skip + error.start
                guess = "; it looks like UTF-16" if offset == 0 and data[:2] in _UTF_16_MARKS else ""
                raise FileError(f"{path}, line {number}: byte 0x{data[at]:02x} at offset {offset + at} is "
                                f"not UTF-8{guess}; save the file as UTF-8") from error
            yield number, line
            offset += len(data)


def raw_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """The rows of a file by its suffix, each as (place, value): `("line 3", {"prompt": …})`.

    A value is a dict but in a malformed JSON file, where it may be anything; cells of CSV and TSV are text.
    Raises FileError for a suffix that holds no rows and for a malformed file.
    """
    match path.suffix.lower():
        case ".jsonl":
            return _jsonl_rows(path)
        case ".json":
            return _json_rows(path)
        case ".csv":
            return _csv_rows(path, ",")
        case ".tsv":
            return _csv_rows(path, "\t")
        case ".parquet":
            return _parquet_rows(path)
        case suffix:
            raise FileError(f"{path}: rows cannot be read from {suffix or 'a file without a suffix'}; "
                            f"readable are {', '.join(ROW_SUFFIXES)}, and .txt for prompts, one a line")


def read_json(path: Path) -> Any:
    """The one value of a `.json` file."""
    return _parse_json("".join(line for _, line in text_lines(path)), path)


def _parse_json(text: str, path: Path, first_line: int = 1) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = f"{path}, line {first_line + error.lineno - 1}, column {error.colno}"
        hint = ""
        if path.suffix.lower() == ".json" and error.msg == "Extra data":
            hint = "; a file with one object a line is named .jsonl"
        raise FileError(f"{where}: not valid JSON: {error.msg}{hint}") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets nested too deep
        raise FileError(f"{path}, line {first_line}: JSON that cannot be read: {error}") from error


def _jsonl_rows(path: Path) -> Iterator[tuple[str, Any]]:
    for number, line in text_lines(path):
        if not line.strip():
            continue
        if number == 1 and line.lstrip().startswith("["):
            raise FileError(f"{path}, line 1: a list, not one object a line; name such a file .json")
        yield f"line {number}", _parse_json(line.rstrip("\r\n"), path, number)


def _json_rows(path: Path) -> Iterator[tuple[str, Any]]:
    text = "".join(line for _, line in text_lines(path))
    if not text.strip():
        return
    items = _parse_json(text, path)
    if not isinstance(items, list):
        hint = "; this looks like a relation file" if isinstance(items, dict) and "samples" in items else ""
        raise FileError(f"{path}: a .json file of rows is one list of objects, not {describe(items)}{hint}")
    decoder = json.JSONDecoder()
    line, end = 1, 0
    start = text.index("[") + 1
    for number, item in enumerate(items, 1):
        while text[start] in " \t\r\n,":
            start += 1
        line += text.count("\n", end, start)
        yield f"line {line} (item {number})", item
        _, end = decoder.raw_decode(text, start)  # once more, to learn where the item ends
        line += text.count("\n", start, end)
        start = end


def _csv_rows(path: Path, delimiter: str) -> Iterator[tuple[str, dict[str, str]]]:
    reader = csv.reader((line for _, line in text_lines(path)), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise FileError(f"{path}, line {line}: {error}; a cell that holds a quote, a newline or the "
                            "separator is written in quotes, its own quotes doubled") from error
        if not cells:
            continue
        if header is None:
            header = _header(cells, path, line, delimiter)
        elif len(cells) != len(header):
            raise FileError(f"{path}, line {line}: {len(cells)} cells, but the header names {len(header)} "
                            "columns; a cell that holds the separator is written in quotes")
        else:
            yield f"line {line}", {name: cell for name, cell in zip(header, cells, strict=True) if name}


def _header(cells: list[str], path: Path, line: int, delimiter: str) -> list[str]:
    """Column names. A column without a name (the index that pandas writes) is left out of the rows."""
    names = [cell.strip() for cell in cells]
    twice = sorted({name for name in names if name and names.count(name) > 1})
    if twice:
        raise FileError(f"{path}, line {line}: two columns are called {', '.join(twice)}")
    other = next((mark for mark in ",;\t" if mark != delimiter and mark in cells[0]), None)
    if len(cells) == 1 and other:
        raise FileError(f"{path}, line {line}: one column named {cells[0]!r}; it seems to be separated by "
                        f"{other!r}, but a {path.suffix} file is separated by {delimiter!r}")
    return names


def _parquet_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    import pyarrow
    import pyarrow.parquet

    note(path)
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches(batch_size=_PARQUET_BATCH):
                for fields in batch.to_pylist():
                    number += 1
                    yield f"row {number}", fields
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise FileError(f"{path} is not a Parquet file that can be read: {error}") from error


def describe(value: Any) -> str:
    """What kind of JSON value this is, for an error message: `a list`, `the number 3`."""
    if value is None:
        return "null"
    if isinstance(value, (bool, int, float)):
        return f"the {'value' if isinstance(value, bool) else 'number'} {json.dumps(value)}"
    if isinstance(value, str):
        return f"the text {value[:40]!r}"
    if isinstance(value, dict):
        return "an object"
    return "a list" if isinstance(value, (list, tuple)) else f"a value of type {type(value).__name__}"
