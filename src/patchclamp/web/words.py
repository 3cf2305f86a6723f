"""The interface in English and Chinese, from words.json; what methods and fields say of themselves is the library's
English, and in Chinese what help.zh.json has under that text. Results speak English.
"""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import Any

LANGUAGES = ("en", "zh")


@cache
def _read(name: str) -> dict[str, Any]:
    return json.loads(files("patchclamp.web").joinpath(name).read_text(encoding="utf-8"))


def _data() -> dict[str, Any]:
    return _read("words.json")


def word(key: str, language: str) -> str:
    """The interface's word for `key`. KeyError for a word that is not there."""
    return _data()["interface"][key][language]


def words(language: str) -> dict[str, str]:
    """All of the interface's words in one language."""
    return {key: both[language] for key, both in _data()["interface"].items()}


def label_of(name: str, language: str) -> str:
    """What a field is called, by its name; in English that is its name, which the command line has, too."""
    translated = _data()["fields"].get(name.replace(" ", "-")) if language == "zh" else None
    return f"{translated} {name}" if translated else name


def help_of(text: str, language: str) -> str:
    """What a method or a field says of itself; English where it has not been translated, or has changed since."""
    return _read("help.zh.json").get(" ".join(text.split()), text) if language == "zh" else text


def title_of(method: str, summary: str, language: str) -> str:
    """A method's title; of one from another package its first line, up to where that begins to explain."""
    translated = _data()["methods"].get(method, {}).get(language)
    return translated or summary.split(":")[0].rstrip(".")


def language_of(cookie: str | None, accepted: str | None) -> str:
    """The language to answer in: the one chosen, else the first of a browser's that there is."""
    if cookie in LANGUAGES:
        return cookie
    for part in (accepted or "").split(","):
        name = part.split(";")[0].strip().lower()[:2]
        if name in LANGUAGES:
            return name
    return LANGUAGES[0]
