"""The small data files that come with patchclamp, by name.

Wherever a command or function takes a data file, `example:NAME` stands for one of these:

    agreement   choice rows: `She looked at these` -> ` books`, not ` book`
    agreement-validation   the same with other nouns, to choose on
    antonym, capitalize, first-of-three, present-past, singular-plural   task rows: `hot` -> `cold`, …
    behaviour-…   behaviours, which commands take by their bare names: refusal, flattery, truth, …
    capitals    choice rows: `The capital of Poland is the city of` -> ` Warsaw`, not ` Berlin`
    code-errors   labelled rows: short Python programs, `runs` and `fails`
    code-results  labelled rows: lines typed into Python and what it says, a `value` or an `error`
    country-capital   a relation: the same facts as subjects and objects
    ioi         pair rows: indirect object identification, `When John and Mary …, John gave …` -> ` Mary`
    neutral     a corpus of short plain paragraphs
    openings    prompts: beginnings of texts about anything, `Once upon a time there was`
    relations   a folder of 26 relations, linguistic, factual and commonsense; `relations/country-currency` is one
    speaker     labelled rows: sentences in which an `ai` or a `person` speaks of itself
    topics      labelled rows: sentences about twenty topics, `We spoke about the piano …`: music
    two-hop     two-hop rows: `The capital of the country where the Eiffel Tower is located is the city of` -> ` Paris`
    words       word rows: concepts in English, French, German, Spanish, Chinese, Russian, Japanese
"""

from __future__ import annotations

import difflib
from importlib.resources import files
from pathlib import Path

from patchclamp.errors import FileError

EXAMPLE_PREFIX = "example:"
RELATIONS = "relations"
SUFFIXES = (".json", ".jsonl", ".txt")


def data_folder() -> Path:
    """Where the shipped files lie."""
    return Path(str(files("patchclamp.tasks"))) / "data"


def example_names() -> tuple[str, ...]:
    """The names `example_file` knows, sorted: `relations` is a folder, and `relations/NAME` a file in it."""
    return tuple(sorted(_known()))


def _known() -> dict[str, Path]:
    """Every shipped file by its name, and the folder of relations."""
    relations = data_folder() / RELATIONS
    found = {path.stem: path for path in data_folder().iterdir() if path.suffix in SUFFIXES}
    return {**found, RELATIONS: relations, **{f"{RELATIONS}/{path.stem}": path for path in relations.rglob("*.json")}}


def example_file(name: str) -> Path:
    """The path of the shipped data file called `name`, e.g. `agreement`.

    Raises FileError with the names there are.
    """
    known = _known()
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {EXAMPLE_PREFIX}{near[0]}?" if near else f"there are: {', '.join(sorted(known))}"
    raise FileError(f"no example file is called {name!r}; {hint}")
