"""The tour's stops about relations: a model of the model, as a linear map, and what it is good for."""

from __future__ import annotations

from patchclamp.tour.stop import GEMMA, SMOLLM2, Stop

SIX = tuple(f"example:relations/{name}" for name in (
    "adjective-comparative", "verb-past", "country-capital", "country-language", "animal-class", "company-country"))
SMALL = {"samples": 6, "tests": 40}
"""Fewer samples than by default, so that six relations take some minutes."""
CAPITALS = "example:relations/country-capital"
POLAND = {"subject": "Poland", "to_object_of": "Japan", "relation": CAPITALS, **SMALL}

RELATIONS: tuple[Stop, ...] = (
    Stop(
        "Is what it knows a linear map?",
        "Between Poland and Warsaw lie a dozen blocks of attention and MLPs. Can one matrix and one vector, the same "
        "for all countries, do their work: W · (the stream at Poland) + b = the stream that says Warsaw? For which of "
        "six relations, and better than simpler maps?",
        GEMMA, "relations.evaluate", {"files": SIX, **SMALL},
    ),
    Stop(
        "The same six in the other model",
        "Another architecture, other weights, other training. Are the same relations linear there?",
        SMOLLM2, "relations.evaluate", {"files": SIX, **SMALL},
    ),
    Stop(
        "Turn the map round: Poland's capital becomes Tokyo",
        "The inverse of the map says what to add to the stream at Poland for the object to become Japan's. Does the "
        "model then say Tokyo? What becomes of Poland's language and continent, and what of other countries if the "
        "same is added there? A random change as long stands beside it.",
        GEMMA, "relations.edit", POLAND,
    ),
    Stop(
        "The same edit by knowledge neurons",
        "The older way: find the neurons that wrote Warsaw, and make them write Tokyo. Does it work as often, and does "
        "it leave more of the rest alone? The same rewriting of random neurons stands beside it.",
        GEMMA, "relations.edit", {**POLAND, "by": "neurons", "pairs": 12},
    ),
    Stop(
        "Read a relation off any sentence",
        "Nobody asks for capitals in this sentence. Does the map read them off the countries all the same, and does it "
        "read the right one where the model itself, misled by the prompt, says another?",
        GEMMA, "relations.lens",
        {"relation": CAPITALS, "prompt": "Last summer we took the train from Poland to Norway", **SMALL},
    ),
)
