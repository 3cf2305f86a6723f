"""The tour's stops, in the lecture's order: which question is asked of which model. Data, but for what a stop has to
find out by itself first (which neuron to look at), which it does on other data than it reports."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from patchclamp.tour.circuits import CIRCUITS
from patchclamp.tour.dictionary import DICTIONARY
from patchclamp.tour.relations import RELATIONS
from patchclamp.tour.stop import DIGITS, GEMMA, SMOLLM2, Fields, Stop

if TYPE_CHECKING:
    from pathlib import Path

    from patchclamp.evidence.method import Progress
    from patchclamp.forward import Model

def plural_neurons(model: Model, progress: Progress, n: int) -> list[str]:
    """The neurons that decide most, by estimate, between `books` and `book` on the validation sentences."""
    from patchclamp.evidence.choices import read_choices
    from patchclamp.neurons.attribute import estimate

    choices = read_choices(model, "example:agreement-validation").kept
    effects = estimate(model, choices, range(model.n_layers), "last", "zero", (), progress)
    lowest = (-effects).flatten().topk(n).indices.tolist()
    return ["neuron.{}.{}".format(*divmod(index, effects.shape[1])) for index in lowest]


def on_plurals(n: int, **more: Any) -> Callable[[Model, Progress, Path], Fields]:
    """Fields that ask about those neurons at the last token, on other sentences."""
    return lambda model, progress, folder: {
        "sites": [f"{name}@last" for name in plural_neurons(model, progress, n)], **PLURALS, **more}


def number_labels(model: Model, progress: Progress, folder: Path) -> Fields:
    """Beginnings of sentences, labelled by the number of the noun to come. An adjective stands at the end, so that the
    last token itself does not tell."""
    import json
    from itertools import cycle

    from patchclamp.tasks.read import read_rows
    from patchclamp.tasks.rows import ChoiceRow

    rows = [row for name in ("agreement-validation", "agreement") for row in read_rows(f"example:{name}", ChoiceRow)]
    path = folder / "number.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"text": f"{row.prompt} {word}", "label": getattr(row, "number")})  # noqa: B009
             for row, word in zip(rows, cycle(("old", "small", "strange", "new", "little")), strict=False)]
    path.write_text("".join(f"{line}\n" for line in dict.fromkeys(lines)))
    return {"source": str(path), "label": "plural"}


def in_the_documentation(which: int, name: str, **more: Any) -> Callable[[Model, Progress, Path], Fields]:
    """Fields that look at a neuron in text that every Python brings with it: the neuron that decides most on plurals,
    or (`which` above 0) a random neuron of its block."""
    def fields(model: Model, progress: Progress, folder: Path) -> Fields:
        from patchclamp.evidence.controls import random_units
        from patchclamp.forward import Site
        from patchclamp.tour.documentation import write_documentation

        site = Site.parse(plural_neurons(model, progress, 1)[0])
        if which:
            ((unit,),) = random_units([(site.layer or 0, site.unit or 0)], model.n_neurons, 1, which)
            site = Site("neuron", *unit)
        value: Any = [str(site)] if name == "sites" else str(site)
        return {name: value, "corpus": str(write_documentation(folder)), "tokens": 20_000, "length": 64, **more}

    return fields


PLURALS = {"prompts": "example:agreement", "where": ("number=plural",)}
SAID_BY = {"local": SMOLLM2, "scored": 5, "shown": 5, "others": 5}
PROVING = {"limit": 20, "max_new_tokens": 32}
"""Sizes with which a vector is proved in some minutes."""
LEARNING = {"limit": 20, "prompts": 20}


def digits_model(folder: Path, progress: Progress) -> None:
    """A small vision model that names digits, and pictures that it has not seen."""
    from patchclamp.tour.sight import make_digits_model

    make_digits_model(folder, progress)


def in_folder(name: str, field: str, **more: Any) -> Callable[[Model, Progress, Path], Fields]:
    """Fields of which one is a file beside the report."""
    return lambda model, progress, folder: {field: str(folder / name), **more}


def task_stop(heading: str, name: str) -> Stop:
    """One more task's layer profile."""
    return Stop(
        heading, "The same for another task: one vector in place of eight examples, after each block. Which blocks are "
        "they this time, and does adding instead of replacing do?",
        GEMMA, "vectors.task", {"file": f"example:{name}", **LEARNING},
    )


def in_gemma(stop: Stop, heading: str) -> Stop:
    """A stop once more, with the other model."""
    return replace(stop, heading=heading, model=GEMMA, question=f"The same of Gemma. {stop.question}")


ACTIVE = Stop(
    "Active when a plural is due",
    "First step: is there a neuron that is active where the behaviour occurs? 'She looked at these old' calls for a "
    "plural, 'She looked at this old' does not. How many of the model's neurons tell the two apart at the word 'old', "
    "how many would seem to with shuffled labels, and do they on sentences they were not found with?",
    SMOLLM2, "neurons.find", number_labels,
)
WITHOUT = Stop(
    "Without them: zero, mean, the value of another sentence",
    "Second step: the eight neurons that matter most on other sentences are taken away, one more at a time, beside as "
    "many random neurons of the same blocks. Zero is itself an intervention, so their mean over other text and their "
    "value in another plural sentence stand beside it. How far does the probability move, how often does the first "
    "choice change, and what happens to the singular?",
    SMOLLM2, "neurons.ablate", on_plurals(8, ranked=True),
)
MORE = Stop(
    "More of it, more plural",
    "Third step: the strongest of them is turned up and down. Does the degree of the neuron set the degree of the "
    "behaviour, and where does that end?",
    SMOLLM2, "neurons.dose", on_plurals(1),
)
IN_WORDS = Stop(
    "In words",
    "Can it be said in words what this neuron is active on, so that somebody else could predict it in new text? "
    "Explained by the phrases it fires at and by a language model (a small one: SmolLM2 itself), scored on text the "
    "explanation was not made from, beside explanations of other neurons. Below: what its output weights write, and "
    "what is seen when it is gone.",
    SMOLLM2, "neurons.explain", in_the_documentation(0, "site", **SAID_BY),
)

STOPS: tuple[Stop, ...] = (
    ACTIVE, WITHOUT, MORE,
    in_gemma(ACTIVE, "The other model: active when a plural is due"),
    in_gemma(WITHOUT, "The other model: without them"),
    in_gemma(MORE, "The other model: more of it"),
    Stop(
        "One thing, many neurons",
        "All neurons of all blocks at once: their effect is estimated by one backward pass, the most promising are "
        "ablated one by one on half of the sentences and together on the other half. How many does it take until "
        "plurals come out wrong, and do singulars suffer?",
        SMOLLM2, "neurons.attribute", {**PLURALS, "shortlist": 100},
    ),
    Stop(
        "The same in the other model",
        "Another architecture, another training: does Gemma keep its plurals in as few neurons?",
        GEMMA, "neurons.attribute", {**PLURALS, "shortlist": 100},
    ),
    Stop(
        "Who makes it good?",
        "A neuron that writes the answer is gone: do later blocks make up for it? What its ablation would do if "
        "nothing after it changed, against what it does; and the smallest groups of neurons without which the plural "
        "goes, and that suffice for it.",
        SMOLLM2, "neurons.repair", {**PLURALS, "by": "direct"},
    ),
    Stop(
        "Where is it active?",
        "The strongest plural neuron again, in text about something else: Python's own documentation. Where is it most "
        "active, where least, and what lies between?",
        SMOLLM2, "neurons.examples", in_the_documentation(0, "sites"),
    ),
    IN_WORDS,
    Stop(
        "Most neurons are not like that",
        "The same for a neuron of the same block drawn at random. Is there anything to say about it?",
        SMOLLM2, "neurons.explain", in_the_documentation(1, "site", **SAID_BY),
    ),
    Stop(
        "Nor is this one",
        "One draw says little: another random neuron of that block. The more a neuron does, the less any one line says "
        "about it.",
        SMOLLM2, "neurons.explain", in_the_documentation(3, "site", **SAID_BY),
    ),
    in_gemma(IN_WORDS, "The other model: in words"),
    Stop(
        "A unit for one thing in photos, drawings and words",
        "A small vision model was trained, just now, to call a lit object, an outline and a written word by one name. "
        "Is there a single unit that answers to a seven in all three forms and to no other digit? It is chosen on one "
        "half of pictures the model has never seen and judged on the other, beside the same search for what is no one "
        "thing: photos of a two, drawings of a nine, the word 'four'. Made to be so, it shows what Goh et al. (2021) "
        "found in CLIP for people's faces and names; `patchclamp neurons images` asks any CLIP the same.",
        DIGITS, "neurons.images", in_folder("digits", "images", concept="seven"), digits_model,
    ),
    Stop(
        "Refusal is a direction",
        "Asked to order a pizza, the model says that it cannot; asked about yoga it answers. Is there one direction in "
        "its stream that tells such requests apart, found on some prompts and tried on others?",
        SMOLLM2, "vectors.find", in_folder("refusal.safetensors", "save", source="refusal"),
    ),
    Stop(
        "Adding it, subtracting it, projecting it out",
        "Block and strength are chosen on some prompts and tried on others. With the direction added, does the model "
        "refuse to say what yoga is good for? Without it, does it order the pizza? And what do random directions do "
        "that move the model as far?",
        SMOLLM2, "vectors.evaluate", in_folder("refusal.safetensors", "what", **PROVING),
    ),
    Stop(
        "Nearness to the direction foretells refusal",
        "Before the model has written a word: does the place of the prompt's last token along the direction tell "
        "whether it will refuse?",
        SMOLLM2, "vectors.read",
        in_folder("refusal.safetensors", "vector", prompt="Can you order a pizza to my house?", max_new_tokens=24),
    ),
    Stop(
        "Flattery, more and less",
        "Is praising the user a direction too? Added, does the model find every plan splendid? Subtracted, does it "
        "stop?",
        SMOLLM2, "vectors.evaluate", {"what": "flattery", **PROVING},
    ),
    Stop(
        "Truth, more and less",
        "Find a penny, pick it up: does one direction move what the model holds likelier, the true answer or the "
        "superstition, and does it move more than the letter in front of the answer?",
        SMOLLM2, "vectors.evaluate", {"what": "truth", **PROVING},
    ),
    Stop(
        "One vector instead of eight examples",
        "After eight verbs with their past tense the model writes the ninth. The last token's mean state over such "
        "prompts is put into a prompt without any example: does that alone make it write the past tense, and after "
        "which blocks?",
        GEMMA, "vectors.task", {"file": "example:present-past", **LEARNING},
    ),
    task_stop("Only in some blocks: capitals", "country-capital"),
    task_stop("Only in some blocks: the plural", "singular-plural"),
    task_stop("Only in some blocks: capital letters", "capitalize"),
    task_stop("Only in some blocks: the first of three", "first-of-three"),
    task_stop("Only in some blocks: the opposite", "antonym"),
    Stop(
        "Vectors of tasks add",
        "The capital of a list's last country = the capital of its first + 'say the last' - 'say the first'. Does the "
        "sum do what none of its parts does?",
        GEMMA, "vectors.compose", {"file": "example:country-capital", "limit": 40, "prompts": 40},
    ),
    Stop(
        "Poland + capital = Warsaw",
        "What one MLP writes on the way to other countries' capitals, added where the model is about to repeat "
        "'Poland': does it say Warsaw?",
        GEMMA, "vectors.compose", {"file": "example:country-capital", "by": "mlp", "limit": 40, "prompts": 40},
    ),
    *DICTIONARY,
    *RELATIONS,
    *CIRCUITS,
    Stop(
        "Which blocks does one answer need?",
        "John and Mary went to the park, John gave a drink to … whom? Each of the 30 attention and 30 MLP blocks is "
        "set to zero in turn. Which ones does the model need to say Mary and not John?",
        SMOLLM2, "circuits.knockout",
        {"prompt": "John and Mary went to the park, John gave a drink to", "answer": " Mary", "distractor": " John"},
    ),
    Stop(
        "The logit lens: first Poland, then Warsaw",
        "The residual stream is a highway to which every block adds. Unembedded after each block, what does it say on "
        "the way from the question to the answer?",
        GEMMA, "lens.logit",
        {"prompt": "The capital of Poland is the city of", "watch": (" Warsaw", " Poland"), "position": "all"},
    ),
    Stop(
        "The same for many countries",
        "One country may be chance. Averaged over all capitals that the model knows: how near to the top of the "
        "stream's list is the country on the way to its capital, and how near is another country?",
        GEMMA, "lens.stages", {},
    ),
    Stop(
        "The same answer by another route",
        "With the fact in the passage there is nothing to recall. Does the answer take the same way through the "
        "layers, and does the country still show on the way?",
        GEMMA, "lens.stages", {"passage": "{subject} is a country. Its capital is the city of {object}.", "limit": 40},
    ),
    Stop(
        "What each block adds to the answer",
        "The logit of Warsaw is a sum: every block, head and neuron adds its part to the stream. Which parts write it?",
        GEMMA, "lens.attribute", {"prompt": "The capital of Poland is the city of", "answer": " Warsaw"},
    ),
    Stop(
        "The language of thought",
        "Gemma translates French to Chinese. Does it pass through English on the way, more than through a language "
        "that is neither?",
        GEMMA, "lens.language", {"source": "fr", "target": "zh", "limit": 48},
    ),
    Stop(
        "A hidden state describes itself",
        "The state of 'Diana, princess of Wales', taken after each block and put into another prompt: what does the "
        "model say it is, early, in the middle, and late?",
        SMOLLM2, "lens.patchscope",
        {"text": "Diana, princess of Wales", "target_layer": 0, "norm": "raw",
         "expect": ("monarch", "royal", "princess")},
    ),
    Stop(
        "Two hops, and the second too late",
        "The capital of the country where the Eiffel Tower is: at which layers does the model find France, and at "
        "which Paris? Where it is wrong though it knows both facts, does a later state help, copied back to an earlier "
        "layer?",
        GEMMA, "lens.multihop", {"limit": 80, "max_new_tokens": 6, "step": 2},
    ),
    Stop(
        "Does the model know where it knew?",
        "Asked at which of its layers it knew the capital, the model names a number. Is it the layer at which the "
        "answer shows?",
        SMOLLM2, "lens.selfreport", {"limit": 40, "max_new_tokens": 16},
    ),
)
