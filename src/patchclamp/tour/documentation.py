"""Text that needs no download: the documentation that every Python, and what patchclamp needs, brings with it."""

from __future__ import annotations

import ast
import json
import random
import re
import sysconfig
import warnings
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from patchclamp.evidence.record import write_whole
from patchclamp.tasks.neutral import neutral_texts

SHORTEST = 80
"""Characters below which a paragraph is a heading."""


def write_documentation(folder: Path) -> Path:
    """The paragraphs of prose in the documentation, as a corpus in the folder; the neutral corpus stands before them,
    and alone where Python was installed without its documentation."""
    texts = list(neutral_texts())
    topics: dict[str, str] = {}
    with suppress(ImportError):
        topics = import_module("pydoc_data.topics").topics
    for name in sorted(topics):
        for paragraph in re.split(r"\n\s*\n", topics[name]):
            line = " ".join(paragraph.split())
            is_code = paragraph.startswith("   ") or "::=" in line
            if not is_code and len(line) >= SHORTEST:
                texts.append(line)
    path = folder / "documentation.txt"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text("\n\n".join(texts) + "\n", encoding="utf-8")
    return path


PACKAGES = ("numpy", "scipy", "pandas", "sklearn")
"""Installed with patchclamp and documented at length."""
LONG = 400
"""Characters from which a docstring is a text."""


def write_docstrings(folder: Path, characters: int) -> Path:
    """Docstrings of Python's library and of packages that patchclamp needs, in random order, as a corpus of so many
    characters in the folder. Sources are parsed and never run."""
    path = folder / "docstrings.jsonl"
    if path.is_file():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    rows, total = [], 0
    for text in _docstrings():
        rows.append(json.dumps({"text": text}))
        total += len(text)
        if total >= characters:
            break
    write_whole(path, ("\n".join(rows) + "\n").encode())
    return path


def _docstrings() -> Iterator[str]:
    roots = [Path(sysconfig.get_paths()["stdlib"])]
    roots += [Path(spec.origin).parent for name in PACKAGES if (spec := find_spec(name)) and spec.origin]
    sources = [path for root in roots for path in sorted(root.rglob("*.py"))
               if not {"tests", "test", "idlelib", "lib2to3"} & {*path.parts}
               and (root is not roots[0] or "site-packages" not in path.parts)]
    random.Random(0).shuffle(sources)
    seen: set[str] = set()
    for source in sources:
        for text in _texts(source):
            if len(text) >= LONG and text not in seen:
                seen.add(text)
                yield text


def _texts(source: Path) -> list[str]:
    with warnings.catch_warnings(), suppress(SyntaxError, ValueError, OSError, RecursionError):
        warnings.simplefilter("ignore")  # old escapes in others' strings
        nodes = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        return [text for node in ast.walk(ast.parse(source.read_bytes())) if isinstance(node, nodes)
                and (text := ast.get_docstring(node))]
    return []
