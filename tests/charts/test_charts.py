"""Every result draws: the chart is valid Vega-Lite and shows what the result says."""

import pytest
from tiny import tiny_model

import patchclamp as pc

IOI = {"clean": "w1 w2 w3 w4", "corrupted": "w1 w7 w3 w8", "answer": "w11", "distractor": "w12", "controls": 0}
ASKED = {
    "lens.logit": {"prompt": "w1 w2 w3", "watch": ["w4"], "controls": 0},
    "lens.attribute": {"prompt": "w1 w2 w3", "answer": "w4", "distractor": "w5", "controls": 2},
    "lens.attention": {"prompt": "w1 w2 w3"},
    "circuits.patch": {**IOI, "sites": ("resid", "head")},
    "circuits.knockout": {"prompt": "w1 w2 w3", "answer": "w4", "distractor": "w5"},
    "neurons.ablate": {"sites": ["neuron.1.7", "neuron.1.8"], "ranked": True, "controls": 2, "answers": 2},
    "neurons.attribute": {"shortlist": 12, "sizes": (1, 3), "controls": 2},
    "neurons.dose": {"sites": ["neuron.1.7"], "controls": 2},
    "neurons.repair": {"shortlist": 4, "controls": 2},
    "neurons.find": {"controls": 2, "permutations": 100, "top": 5},
    "neurons.explain": {"site": "neuron.0.5", "length": 32, "tokens": 2500, "others": 3, "context": 12},
    "forward.capture": {"prompts": ["w1 w2", "w3"], "sites": ["resid.1", "neuron.0.3"]},
    "forward.generate": {"prompts": ["w1 w2"], "max_new_tokens": 3},
}


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    folder = tmp_path_factory.mktemp("charts")
    choices, labelled, corpus = folder / "choice.csv", folder / "labelled.csv", folder / "corpus.txt"
    choices.write_text("prompt,answer,distractor\n" + "".join(f"w{i} w2, w{i + 3}, w{i + 4}\n" for i in range(12)))
    labelled.write_text("text,label\n" + "".join(f"w{i} w{i % 2},{'ab'[i % 2]}\n" for i in range(20)))
    corpus.write_text("\n\n".join(" ".join(f"w{(i * i * 7 + j * j) % 60}" for j in range(100)) for i in range(30)))
    files = {"neurons.find": {"source": str(labelled)}, "neurons.explain": {"corpus": str(corpus)}}
    files |= {name: {"prompts": str(choices)} for name in ASKED if name.startswith("neurons.") and name not in files}
    return {name: pc.run(name, tiny_model("llama"), **fields, **files.get(name, {})) for name, fields in ASKED.items()}


DRAWN_ELSEWHERE = {"lens.language", "lens.patchscope", "lens.multihop", "lens.stages", "lens.selfreport",
                   "lens.jacobian", "lens.tuned.train", "lens.tuned.apply", "neurons.index", "neurons.examples",
                   "vectors.find",
                   "vectors.select", "vectors.evaluate", "vectors.read", "vectors.apply", "vectors.bake",
                   "vectors.task", "vectors.compose", "vectors.show", "neurons.images", "sae.harvest", "sae.train",
                   "sae.convert", "sae.evaluate", "sae.index", "sae.show", "sae.browse", "sae.search", "sae.find",
                   "sae.steer", "sae.attribute", "sae.compare", "sae.plan", "relations.fit", "relations.evaluate",
                   "relations.edit", "relations.lens", "relations.table", "circuits.find", "circuits.show",
                   "circuits.task", "circuits.verify", "circuits.score", "circuits.evaluate",
                   "circuits.heads", "circuits.flow"}
"""They need words, facts or a corpus in a real tokenizer's tokens, or pictures; their own tests draw them."""


def test_every_built_in_method_is_drawn_here():
    own = {m.name for m in pc.methods().values() if m.function.__module__.startswith("patchclamp.")}
    assert set(ASKED) | DRAWN_ELSEWHERE == own


@pytest.mark.parametrize("name", ASKED)
def test_it_renders_as_a_picture(records, name, tmp_path):
    path = records[name].save(tmp_path / "chart.svg")
    assert path.read_text().startswith("<svg")


@pytest.mark.parametrize("name", ASKED)
def test_a_record_comes_back_from_json(records, name):
    record = records[name]
    assert pc.Record.from_json(record.to_json()).to_json() == record.to_json()


@pytest.mark.parametrize("name", ASKED)
def test_the_table_has_rows(records, name):
    assert len(records[name].table()) > 0


def test_tokens_with_line_breaks_and_spaces_are_visible():
    from patchclamp.charts.style import visible

    assert visible(" a\n") == "␣a⏎"
    assert visible("") == "∅"
