"""Tasks whose circuit is looked for: generators of prompts in pairs, one that decides for the answer and one for the
distractor, alike in everything else.

    ioi            `When Mary and John went to the store, John gave a drink to` -> ` Mary`; corrupted: `Mary gave`
    ioi-others     the same; corrupted by other names, so that neither is likelier
    greater-than   `The war lasted from the year 1642 to the year 16` -> a digit above 4
    pronoun        `So Anna is a really good friend, isn't` -> ` she`
    agreement      `The keys near the cabinet` -> ` are`
    capital        `The capital of Poland is the city of` -> ` Warsaw`
    induction      `… river lamp stone … river lamp` -> ` stone`
    docstring      a Python function's third argument in its docstring

Each has several templates: a circuit is looked for on the first ones and tested on others. After Wang et al. 2022
(arXiv 2211.00593), Hanna et al. 2023 (2305.00586), Mathwin et al. 2023, Finlayson et al. 2021 (2106.06087), Olsson et
al. 2022 (2209.11895) and Heimersheim & Janiak 2023; prompts and words written for this project.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from string import Formatter

from patchclamp.errors import InputError

Words = dict[str, str]
TRIES = 20
"""Draws for each pair that is wanted."""


@dataclass(frozen=True)
class CircuitPair:
    """Two prompts and their answers."""

    clean: str
    """The prompt that is answered with `answer`."""
    corrupted: str
    """The prompt that is answered with `distractor`, or with neither; as many tokens."""
    answer: str
    distractor: str
    template: str = ""
    """What the prompts are made from."""
    roles: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Where in `clean` the words stand that play a part in the task: first character, and the one behind the last."""
    counterparts: dict[str, tuple[int, int]] = field(default_factory=dict)
    """The same in `corrupted`; in a model's tokens they have to stand at the same places."""


@dataclass(frozen=True)
class CircuitTask:
    """A generator of pairs."""

    name: str
    about: str
    templates: tuple[str, ...]
    """With {fields}; those whose name is upper-case are the prompt's roles."""
    make: Callable[[random.Random], tuple[Words, Words, str, str]]
    """Words of the clean and of the corrupted prompt, answer and distractor."""

    def pairs(self, n: int, seed: int = 0, templates: tuple[str, ...] | None = None) -> Iterator[CircuitPair]:
        """So many pairs, template after template: no clean prompt twice, and no pair the other way round. Ends early
        where there are no more."""
        rng = random.Random(f"{self.name} {seed}")
        seen: set[str | frozenset[str]] = set()
        chosen, found = templates or self.templates, 0
        for _ in range(TRIES * n):
            if found == n:
                return
            template = chosen[found % len(chosen)]
            clean, corrupted, answer, distractor = self.make(rng)
            (text, roles), (other, counterparts) = filled(template, clean), filled(template, corrupted)
            if text not in seen and frozenset((text, other)) not in seen:
                seen |= {text, frozenset((text, other))}
                found += 1
                yield CircuitPair(text, other, answer, distractor, template, roles, counterparts)


def filled(template: str, words: Words) -> tuple[str, dict[str, tuple[int, int]]]:
    """The template with its words, and where those of upper-case fields stand; the second time, as `NAME again`."""
    text, roles = "", {}
    for literal, name, _, _ in Formatter().parse(template):
        text += literal
        if name is not None:
            word = words[name]
            if name.isupper() or name[:-1].isupper():
                roles[f"{name} again" if name in roles else name] = (len(text), len(text) + len(word))
            text += word
    return text, roles


def circuit_task(name: str) -> CircuitTask:
    """The task called `name`. InputError with the names there are."""
    if name not in TASKS:
        raise InputError(f"there is no task {name!r}; there are {', '.join(sorted(TASKS))}; or give your own pairs as "
                         "a file")
    return TASKS[name]


NAMES = ("Alice", "Anna", "David", "Emma", "George", "Helen", "Henry", "Jack", "James", "Jane", "John", "Kate", "Laura",
         "Lucy", "Mark", "Martin", "Mary", "Michael", "Paul", "Peter", "Robert", "Sarah", "Simon", "Susan", "Thomas",
         "Tom")
PLACES = ("beach", "bridge", "farm", "garden", "hospital", "hotel", "library", "market", "museum", "office", "park",
          "school", "station", "store", "theater")
THINGS = ("ball", "basket", "book", "box", "camera", "coat", "cup", "drink", "letter", "map", "phone", "ring", "ticket")


def _scene(rng: random.Random) -> Words:
    return {"place": rng.choice(PLACES), "thing": rng.choice(THINGS)}


def _ioi(rng: random.Random) -> tuple[Words, Words, str, str]:
    """Both orders of the two names come up equally often."""
    other, subject = rng.sample(NAMES, 2)
    scene = _scene(rng)
    order = (other, subject) if rng.random() < 0.5 else (subject, other)
    words = {"NAME1": order[0], "NAME2": order[1], **scene}
    return {**words, "S2": subject}, {**words, "S2": other}, f" {other}", f" {subject}"


def _ioi_others(rng: random.Random) -> tuple[Words, Words, str, str]:
    clean, _, answer, distractor = _ioi(rng)
    rest = [name for name in NAMES if name not in (clean["NAME1"], clean["NAME2"])]
    first, second, third = rng.sample(rest, 3)
    return clean, {**clean, "NAME1": first, "NAME2": second, "S2": third}, answer, distractor


def _greater_than(rng: random.Random) -> tuple[Words, Words, str, str]:
    century, tens, ones = rng.choice(("11", "12", "13", "14", "15", "16", "17")), rng.randint(3, 6), rng.randint(1, 9)
    above, below = rng.randint(tens + 1, 9), rng.randint(0, tens - 2)
    words = {"century": century, "ones": str(ones)}
    low = str(rng.randint(0, below) if below else 0)
    return {**words, "TENS": str(tens)}, {**words, "TENS": low}, str(above), str(below)


WOMEN = ("Alice", "Anna", "Emma", "Helen", "Jane", "Julia", "Kate", "Laura", "Lucy", "Maria", "Mary", "Sarah", "Susan")
MEN = ("David", "George", "Henry", "Jack", "James", "John", "Mark", "Martin", "Michael", "Paul", "Peter", "Robert",
       "Tom")
TRAITS = ("brave", "careful", "clever", "friendly", "funny", "good", "great", "kind", "nice", "quick", "quiet",
          "strong")


def _pronoun(rng: random.Random) -> tuple[Words, Words, str, str]:
    woman, man, words = rng.choice(WOMEN), rng.choice(MEN), {"trait": rng.choice(TRAITS)}
    if rng.random() < 0.5:
        return {**words, "NAME": woman}, {**words, "NAME": man}, " she", " he"
    return {**words, "NAME": man}, {**words, "NAME": woman}, " he", " she"


NOUNS = ("author", "boat", "book", "car", "chair", "doctor", "door", "driver", "friend", "house", "key", "letter",
         "painting", "picture", "player", "song", "student", "table", "teacher", "tree", "writer")
BESIDE = ("bridge", "cabinet", "garden", "hospital", "lake", "library", "river", "station", "tower", "village", "wall")


def _agreement(rng: random.Random) -> tuple[Words, Words, str, str]:
    noun, words = rng.choice(NOUNS), {"beside": rng.choice(BESIDE)}
    if rng.random() < 0.5:
        return {**words, "NOUN": noun + "s"}, {**words, "NOUN": noun}, " are", " is"
    return {**words, "NOUN": noun}, {**words, "NOUN": noun + "s"}, " is", " are"


CAPITALS = {
    "Austria": "Vienna", "Belgium": "Brussels", "Canada": "Ottawa", "Chile": "Santiago", "China": "Beijing",
    "Cuba": "Havana", "Denmark": "Copenhagen", "Egypt": "Cairo", "England": "London", "France": "Paris",
    "Germany": "Berlin", "Greece": "Athens", "Hungary": "Budapest", "Iran": "Tehran", "Iraq": "Baghdad",
    "Ireland": "Dublin", "Italy": "Rome", "Japan": "Tokyo", "Kenya": "Nairobi", "Norway": "Oslo", "Peru": "Lima",
    "Poland": "Warsaw", "Portugal": "Lisbon", "Russia": "Moscow", "Spain": "Madrid", "Sweden": "Stockholm",
    "Thailand": "Bangkok", "Turkey": "Ankara",
}


def _capital(rng: random.Random) -> tuple[Words, Words, str, str]:
    one, other = rng.sample(sorted(CAPITALS), 2)
    return {"COUNTRY": one}, {"COUNTRY": other}, f" {CAPITALS[one]}", f" {CAPITALS[other]}"


PLAIN = ("apple", "arm", "bell", "bird", "boat", "bread", "cloud", "desk", "door", "fish", "flag", "foot", "gate",
         "glass", "hand", "hill", "horse", "lake", "lamp", "leaf", "milk", "moon", "paper", "ring", "river", "road",
         "rock", "rose", "salt", "ship", "snow", "star", "stone", "sugar", "sun", "table", "tower", "tree", "wall",
         "wind")


def _induction(rng: random.Random) -> tuple[Words, Words, str, str]:
    words = rng.sample(PLAIN, 8)
    first = rng.randint(2, 6)
    second = rng.choice([i for i in range(7) if not first - 2 <= i <= first + 1])
    listed = {**{f"w{i}": word for i, word in enumerate(words)}, "before": " ".join(words[first - 2 : first])}
    return ({**listed, "AGAIN": words[first]}, {**listed, "AGAIN": words[second]}, f" {words[first + 1]}",
            f" {words[second + 1]}")


ARGUMENTS = ("address", "action", "color", "count", "date", "default", "file", "flag", "group", "image", "index",
             "key", "label", "level", "limit", "line", "message", "mode", "name", "option", "order", "path", "port",
             "range", "result", "root", "size", "state", "style", "target", "text", "title", "type", "user", "value",
             "width")
SAYINGS = ("a plain sentence", "as given above", "how it is shown", "left as it is", "one of several",
           "taken from there", "used at the end", "what is meant", "where it begins")


def _docstring(rng: random.Random) -> tuple[Words, Words, str, str]:
    names = rng.sample(ARGUMENTS, 6)
    says = rng.sample(SAYINGS, 3)
    words = {"function": names[5], "said": says[0], "FIRST": names[0], "SECOND": names[1], "says1": says[1],
             "says2": says[2]}
    clean = {**words, "THIRD": names[2], "FOURTH": names[3]}
    return clean, {**words, "THIRD": names[3], "FOURTH": names[2]}, f" {names[2]}", f" {names[3]}"


_DOCSTRING = ('def {function}(self, {FIRST}, {SECOND}, {THIRD}, {FOURTH}):\n    """{said}\n\n'
              "    :param {FIRST}: {says1}\n    :param {SECOND}: {says2}\n    :param")
_LIST = " {w0} {w1} {w2} {w3} {w4} {w5} {w6} {w7}"

TASKS: dict[str, CircuitTask] = {task.name: task for task in (
    *(CircuitTask(name, about, (
        "When {NAME1} and {NAME2} went to the {place}, {S2} gave a {thing} to",
        "Then {NAME1} and {NAME2} had a long talk at the {place}, and {S2} handed a {thing} to",
        "After {NAME1} and {NAME2} arrived at the {place}, {S2} passed the {thing} to",
        "Yesterday {NAME1} and {NAME2} were working at the {place}, so {S2} decided to give a {thing} to",
        "While {NAME1} and {NAME2} were sitting in the {place}, {S2} showed the {thing} to",
        "The day {NAME1} and {NAME2} met at the {place}, {S2} sold a {thing} to",
    ), make) for name, about, make in (
        ("ioi", "indirect object identification; corrupted: the other name gives", _ioi),
        ("ioi-others", "indirect object identification; corrupted: three other names", _ioi_others))),
    CircuitTask("greater-than", "a later year; corrupted: an earlier beginning", (
        "The war lasted from the year {century}{TENS}{ones} to the year {century}",
        "The works went on from the year {century}{TENS}{ones} to the year {century}",
        "The king ruled from the year {century}{TENS}{ones} until the year {century}",
        "The school stood there from the year {century}{TENS}{ones} to the year {century}"), _greater_than),
    CircuitTask("pronoun", "he or she; corrupted: a name of the other gender", (
        "So {NAME} is such a {trait} person, isn't",
        "Since {NAME} is very {trait}, everybody says that",
        "Because {NAME} is so {trait}, people think that",
        "I like {NAME}, who is always {trait}, and I hope that"), _pronoun),
    CircuitTask("agreement", "number of the verb; corrupted: the noun in the other number", (
        "The {NOUN} near the {beside}",
        "I think that the {NOUN} by the {beside}",
        "We heard that the {NOUN} behind the {beside}",
        "As you can see, the {NOUN} beside the {beside}"), _agreement),
    CircuitTask("capital", "recall of a capital; corrupted: another country", (
        "The capital of {COUNTRY} is the city of",
        "People who visit {COUNTRY} like to see its capital,",
        "Q: What is the capital of {COUNTRY}?\nA: The capital is",
        "The government of {COUNTRY} sits in the city of"), _capital),
    CircuitTask("induction", "a list begun again; corrupted: at another word of it", (
        "List:" + _LIST + ". Again: {before} {AGAIN}",
        "Here they are:" + _LIST + ". Once more: {before} {AGAIN}",
        "First" + _LIST + " and then {before} {AGAIN}",
        "Say:" + _LIST + "; now say again {before} {AGAIN}"), _induction),
    CircuitTask("docstring", "a function's next argument; corrupted: the last two exchanged", (
        _DOCSTRING,
        _DOCSTRING.replace(":param", "@param").replace(": {says", " - {says"),
        _DOCSTRING.replace("self, ", ""),
        _DOCSTRING.replace(":param", "-")), _docstring),
)}
"""All tasks by name."""
