"""Text to look for neurons in that needs no download: the documentation that every Python brings with it."""

from __future__ import annotations

import re
from contextlib import suppress
from importlib import import_module
from pathlib import Path

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
