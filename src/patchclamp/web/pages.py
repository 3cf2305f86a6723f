"""Which page asks which methods, in the order a newcomer would."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Page:
    """A page that asks methods. Its title and sentence are in `words` under its name."""

    name: str
    methods: tuple[str, ...]
    live: str | None = None
    """The method whose answers can be streamed while a slider moves."""


PAGES: Mapping[str, Page] = {page.name: page for page in (
    Page("lens", ("lens.logit", "lens.patchscope", "lens.language", "lens.stages", "lens.attribute", "lens.multihop",
                  "lens.selfreport", "lens.tuned.apply", "lens.tuned.train", "lens.jacobian")),
    Page("neurons", ("neurons.find", "neurons.examples", "neurons.explain", "neurons.ablate", "neurons.dose",
                     "neurons.attribute", "neurons.repair", "neurons.index", "neurons.images"), "forward.generate"),
    Page("vectors", ("vectors.find", "vectors.apply", "vectors.select", "vectors.evaluate", "vectors.read",
                     "vectors.show", "vectors.task", "vectors.compose", "vectors.bake"), "vectors.apply"),
    Page("dictionary", ("sae.browse", "sae.show", "sae.search", "sae.find", "sae.steer", "sae.train", "sae.harvest",
                        "sae.index", "sae.evaluate", "sae.compare", "sae.attribute", "sae.plan", "sae.convert")),
    Page("relations", ("relations.table", "relations.edit", "relations.fit", "relations.evaluate", "relations.lens")),
    Page("circuits", ("circuits.find", "circuits.show", "circuits.heads", "circuits.task", "circuits.score",
                      "circuits.evaluate", "circuits.verify", "circuits.flow")),
    Page("patch", ("circuits.patch", "lens.attention", "circuits.knockout", "forward.capture", "forward.generate")),
)}

NAVIGATION = ("models", *PAGES, "runs", "tour")
"""All pages, in the order of the navigation."""


def _keys() -> dict[str, str]:
    taken: dict[str, str] = {}
    for name in NAVIGATION:
        taken[next(letter for letter in name if letter not in taken)] = name
    return {name: letter for letter, name in taken.items()}


KEYS: Mapping[str, str] = _keys()
"""The key that opens a page after `g`: the first letter of its name that no page before it has."""


STARTS: Mapping[str, str] = {
    "warsaw": "/lens?method=lens.logit&model=gemma-3-270m&prompt=The+capital+of+Poland+is+the+city+of"
              "&watch=+Warsaw&watch=+Poland&position=all",
    "refusal": "/vectors?method=vectors.find&model=smollm2-135m-instruct&source=refusal&save=refusal.safetensors",
    "neuron": "/neurons?method=neurons.examples&model=smollm2-135m-instruct&sites=neuron.19.1044",
    "fact": "/relations?method=relations.edit&model=gemma-3-270m&relation=example:relations/country-capital"
            "&subject=Poland&to-object-of=Japan",
    "circuit": "/circuits?method=circuits.find&model=gemma-3-270m&task=ioi&out=ioi",
    "patch": "/patch?method=circuits.patch&model=smollm2-135m-instruct"
             "&clean=John+and+Mary+went+to+the+park,+John+gave+a+drink+to"
             "&corrupted=John+and+Mary+went+to+the+park,+Mary+gave+a+drink+to&answer=+Mary&distractor=+John",
}
"""Questions to begin with, as addresses; what each is about is in `words`."""

DICTIONARY_STEPS: Mapping[str, str] = {
    "sae.harvest": "corpus=example:neutral&store=store&site=resid.15",
    "sae.train": "store=store&out=dictionary",
    "sae.index": "corpus=example:neutral&save=index&sae=dictionary",
    "sae.browse": "index=index&sae=dictionary",
}
"""From a text to a list of features: each step's fields name what the one before made."""

RESUMABLE = ("sae.train", "sae.harvest", "sae.index", "neurons.index", "lens.tuned.train", "relations.evaluate")
"""Methods that go on from what they kept on disk when they are asked the same again."""


def page_of(method: str) -> str:
    """The page a method stands on; methods of other packages stand on `patch`."""
    return next((page.name for page in PAGES.values() if method in page.methods), "patch")
