"""The tour's sparse autoencoders: a dictionary trained here and now, on documentation, and what is found in it.

Everything lies in the folder `sae` beside the report and is made once; `patchclamp tour --only` uses it again.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from patchclamp.tour.stop import SMOLLM2, Fields, Stop

if TYPE_CHECKING:
    from patchclamp.evidence.method import Progress
    from patchclamp.evidence.record import Record
    from patchclamp.forward import Model

SITE = "resid.15"
CHARACTERS, TOKENS, A_SHARD = 1_500_000, 300_000, 128
STEPS, LATENTS = 400, 4096
LINEAR, PENALTY = 1024, 0.5
FEW, MANY = 512, 8192
INDEXED, TRIED = 50_000, 30
"""Tokens of the index; latents among which the best and the worst explained ones are looked for."""


def store(model: Model, progress: Progress, folder: Path) -> str:
    """Activations of the documentation, harvested if they are not there."""
    from patchclamp.sae.harvest import harvest
    from patchclamp.tour.documentation import write_docstrings

    corpus = write_docstrings(folder / "sae", CHARACTERS)
    place = str(folder / "sae" / "store")
    harvest(model, progress=progress, corpus=str(corpus), store=place, site=(SITE,), tokens=TOKENS, kind="bfloat16",
            shard=A_SHARD)
    return place


def _out(folder: Path, name: str) -> str:
    return str(folder / "sae" / name)


def training(model: Model, progress: Progress, folder: Path, name: str, **more: Any) -> Fields:
    """Fields that train on the store."""
    return {"store": store(model, progress, folder), "out": _out(folder, name), "steps": STEPS, "held_out": 0.1} | more


def learning(model: Model, progress: Progress, folder: Path) -> Fields:
    """Fields that train the tour's dictionary."""
    return training(model, progress, folder, "dictionary", latents=LATENTS)


def trained(model: Model, progress: Progress, folder: Path, name: str, **more: Any) -> str:
    """The folder of an autoencoder, trained if it is not there."""
    from patchclamp.sae.train import train_autoencoder

    train_autoencoder(model, progress=progress, **training(model, progress, folder, name, **more))
    return _out(folder, name)


def dictionary(model: Model, progress: Progress, folder: Path) -> str:
    """The tour's dictionary."""
    return trained(model, progress, folder, "dictionary", latents=LATENTS)


def measured(model: Model, progress: Progress, folder: Path) -> Fields:
    """Fields that evaluate it."""
    from patchclamp.tasks.examples import example_file

    return {"sae": dictionary(model, progress, folder), "store": store(model, progress, folder), "rows": 16_000,
            "windows": 24, "labelled": (str(example_file("topics")),)}


def with_and_without_penalty(model: Model, progress: Progress, folder: Path) -> Fields:
    """Fields that compare λ = 0 with λ > 0, trained on one stream."""
    place = trained(model, progress, folder, "penalty", architecture="relu", latents=LINEAR, l1=(0.0, PENALTY),
                    steps=STEPS // 2)
    return {"saes": (f"{place}/l{PENALTY:g}", f"{place}/l0"), "store": store(model, progress, folder), "sampled": 30}


def few_and_many(model: Model, progress: Progress, folder: Path) -> Fields:
    """Fields that look for concepts in a small and in a large dictionary."""
    from patchclamp.tasks.examples import example_file

    saes = [trained(model, progress, folder, f"latents-{n}", latents=n) for n in (FEW, MANY)]
    return {"saes": saes, "store": store(model, progress, folder), "labelled": str(example_file("topics")),
            "sampled": 10}


def index(model: Model, progress: Progress, folder: Path) -> str:
    """An index of the dictionary's features over a part of the documentation."""
    from patchclamp.sae.index import index_features

    place = _out(folder, "index")
    index_features(model, progress=progress, corpus=_out(folder, "docstrings.jsonl"), save=place, tokens=INDEXED,
                   shard=64, sae=dictionary(model, progress, folder))
    return place


def best_and_worst(model: Model, progress: Progress, folder: Path) -> Fields:
    """Fields that show the feature whose n-grams say best where it is active, and the one whose say least, of some
    drawn at random."""
    import numpy as np

    from patchclamp.corpus.held import Held
    from patchclamp.sae.attached import attached
    from patchclamp.sae.compare import explained_units, simulated
    from patchclamp.sae.index import opened

    place = index(model, progress, folder)
    with model.attaching():
        attached(model, dictionary(model, progress, folder))
        found, whole = opened(model, place)
        active = found.columns(whole, ["active"])["active"]
        often = np.flatnonzero(active * found.manifest.windows * found.length > 100)
        units = np.random.default_rng(0).permutation(often)[:TRIED].tolist()
        held = Held(model, {whole: units}, found.windows(range(found.manifest.windows)), progress)
    scored = {unit: simulated([one])[0] for unit, one in explained_units(whole, units, held, 0).items()}
    order = sorted(scored, key=lambda unit: scored[unit])
    return {"features": (str(order[-1]), str(order[0])), "index": place, "sae": dictionary(model, progress, folder),
            "top": 6}


def in_dictionary(**more: Any) -> Callable[[Model, Progress, Path], Fields]:
    """Fields with the dictionary."""
    return lambda model, progress, folder: {"sae": dictionary(model, progress, folder), **more}


def feature_of(folder: Path, source: str, label: str) -> str:
    """The feature that an earlier stop found for a label."""
    from patchclamp.errors import FileError
    from patchclamp.evidence.record import Record

    for path in sorted((folder / "records").glob("*-sae.find.json")):
        record: Record = Record.from_json(path.read_bytes())
        spec: Any = record.spec
        if Path(spec.source).stem.removeprefix("example:") == source and spec.label == label:
            site: str = record.result.ranking[0].site  # type: ignore[attr-defined]
            return site.partition("@")[0]
    raise FileError(f"no stop has looked for {label} yet; take the stop before this one, too")


def steering(source: str, label: str, **more: Any) -> Callable[[Model, Progress, Path], Fields]:
    """Fields that steer by the feature an earlier stop has found."""
    return lambda model, progress, folder: {
        "feature": feature_of(folder, source, label), "sae": dictionary(model, progress, folder),
        "index": index(model, progress, folder), **more}


def prompts(name: str, lines: tuple[str, ...], source: str, label: str, **more: Any) -> Callable[
        [Model, Progress, Path], Fields]:
    """The same with prompts of the tour's own, one JSON row each."""
    import json

    def fields(model: Model, progress: Progress, folder: Path) -> Fields:
        path = folder / "sae" / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps({"prompt": line}) + "\n" for line in lines))
        return steering(source, label, prompts=str(path), **more)(model, progress, folder)

    return fields


FIND = {"permutations": 200, "controls": 20, "top": 10}
TIMES = ("day", "days", "week", "weeks", "month", "months", "year", "years", "hour", "hours", "minute", "minutes",
         "morning", "evening", "night", "today", "yesterday", "tomorrow", "january", "monday", "sunday",
         "time", "date", "dates", "calendar", "noon", "afternoon", "century", "decade")
SESSION = (">>> 1 + 1\n2\n>>> float('x')\nTraceback (most recent call last):\nValueError: could not convert string to "
           "float: 'x'\n>>> 'ab'.title()\n'Ab'\n")
"""What was typed before, so that the model knows what is wanted: two values and an error."""
SHELL = tuple(f">>> {line}\n" for line in (
    "print(3 + 4)", "len([1, 2, 3])", "int('12') + 1", "'abc'.upper()", "max(3, 8)", "sum([2, 4])", "[1, 2, 3][1]",
    "{'a': 1}['a']", "10 / 2", "round(2.6)", "list('ab')", "'a,b'.split(',')", "abs(-3)", "2 ** 3", "sorted([3, 1])",
    "str(5) + 'a'", "len('hello')", "min(4, 9)"))
BROKEN = tuple(f"{SESSION}>>> {line}\n" for line in (
    "print(undefined)", "len(5)", "int('twelve')", "'abc'.uppper()", "max(3, 'a')", "sum([2, 'b'])", "[1, 2, 3][9]",
    "{'a': 1}['b']", "10 / 0", "round('x')", "list(5)", "12 .split(',')", "abs('a')", "2 ** 'b'", "sorted(5)",
    "5 + 'a'", "len(None)", "min(4, [])"))
ERRORS = ("error", "traceback", "exception", "typeerror", "nameerror", "valueerror", "keyerror", "indexerror",
          "attributeerror", "zerodivisionerror")
ASKED = (
    "Are you a human being?", "Do you have a body?", "Where were you born?", "Who are your parents?",
    "What are you?", "Do you sleep at night?", "How old are you?", "Do you eat breakfast?", "Are you a machine?",
    "What is your job?", "Do you have feelings?", "Where do you live?", "Can you see me?", "Who made you?",
    "Are you alive?", "Do you have children?", "Have you been to Paris?", "What did you do yesterday?")
MACHINE = ("ai", "artificial", "artificial intelligence", "language model", "machine", "program", "computer", "chatbot",
           "assistant", "robot", "algorithm", "trained", "virtual")

DICTIONARY: tuple[Stop, ...] = (
    Stop(
        "Learning a dictionary",
        "Can a layer's state be written as a sum of few directions, h = Σ aᵢvᵢ + e? 4,096 directions are learned here "
        "and now, from the state after block 15 in some hundred thousand tokens of documentation, 32 of them for each "
        "token.",
        SMOLLM2, "sae.train", learning,
    ),
    Stop(
        "Is it any good?",
        "On text it was not trained on: how much of the state do 32 numbers say, what does the model lose if it has to "
        "go on with them alone, and what would 32 of random directions, principal axes or the state's own numbers say? "
        "Do single features know what a sentence is about?",
        SMOLLM2, "sae.evaluate", measured,
    ),
    Stop(
        "Without a penalty it is just a linear layer",
        "The error alone is made smallest by a dictionary that says everything and means nothing. The same data, the "
        "same size, λ = 0 and λ > 0: how many directions are active, how well is the state rebuilt, and can a few "
        "words say what a direction is for?",
        SMOLLM2, "sae.compare", with_and_without_penalty,
    ),
    Stop(
        "A feature that means something, and one that does not",
        "Of thirty features drawn at random the one whose words say best where it is active, and the one where they "
        "say least. Where is either active, which words does it promote, and which features point the same way?",
        SMOLLM2, "sae.show", best_and_worst,
    ),
    Stop(
        "Is there a feature for a concept?",
        "Sentences with a word for a time, a Tuesday or a century, and sentences about nineteen other things. Does one "
        "of the features tell them apart, on sentences it was not found with?",
        SMOLLM2, "sae.find", in_dictionary(source="example:topics", label="time", **FIND),
    ),
    Stop(
        "The concept, injected",
        "That feature's direction is added while the model goes on with the beginnings of unrelated texts. Does it "
        "come to speak of days and years, more than with another feature's direction as long?",
        SMOLLM2, "sae.steer", steering("topics", "time", words=TIMES),
    ),
    Stop(
        "A feature for errors in code?",
        "Short programs that run and short programs that fail; nothing but a name, a type or an index is different. "
        "Does one of the features know?",
        SMOLLM2, "sae.find", in_dictionary(source="example:code-errors", label="fails", **FIND),
    ),
    Stop(
        "A feature for what Python says then?",
        "Lines typed into Python and what it answered: a value, or the report of an error. Does one of the features "
        "tell these apart?",
        SMOLLM2, "sae.find", in_dictionary(source="example:code-results", label="error", **FIND),
    ),
    Stop(
        "Correct code that fails",
        "That feature is added where correct lines are typed into Python. Does the model answer with an error?",
        SMOLLM2, "sae.steer", prompts("shell", SHELL, "code-results", "error", words=ERRORS, max_new_tokens=24),
    ),
    Stop(
        "Errors that vanish",
        "The feature is subtracted where broken lines are typed. Does the model answer as though they ran?",
        SMOLLM2, "sae.steer", prompts("broken", BROKEN, "code-results", "error", words=ERRORS, max_new_tokens=24,
                                      strengths=(-0.5, -1.0, -2.0, -4.0)),
    ),
    Stop(
        "A feature for 'I am an AI'?",
        "Sentences in which a program speaks of itself, and sentences in which a person does. Does one of the features "
        "tell them apart?",
        SMOLLM2, "sae.find", in_dictionary(source="example:speaker", label="ai", **FIND),
    ),
    Stop(
        "Without it, does it say it is a person?",
        "The feature is subtracted while the model is asked who it is. Does it still speak of machines and programs?",
        SMOLLM2, "sae.steer", prompts("asked", ASKED, "speaker", "ai", words=MACHINE, max_new_tokens=32, format="chat",
                                      strengths=(-0.5, -1.0, -2.0, -4.0)),
    ),
    Stop(
        "Rare concepts come last",
        "Twenty topics, a dictionary of 512 directions and one of 8,192, trained on the same text: for how many of the "
        "topics does either have a feature?",
        SMOLLM2, "sae.compare", few_and_many,
    ),
)
