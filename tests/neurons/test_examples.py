"""Examples say what the model does at the places they name, from an index and from a corpus alike."""

import json
import os
import subprocess
import sys

import pytest
import torch
from tiny import tiny_model

import patchclamp as pc
from patchclamp.corpus.found import Scanned
from patchclamp.corpus.pack import pack
from patchclamp.corpus.shown import texts_of
from patchclamp.corpus.table import Index
from patchclamp.errors import FileError, SiteError, SpecError
from patchclamp.evidence.method import Silent
from patchclamp.neurons.examples import examples
from patchclamp.neurons.index import index

LENGTH = 16
SITES = ["neuron.1.7", "neuron.2.3"]


@pytest.fixture(scope="module")
def folder(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("index") / "i"
    index(tiny_model("llama"), corpus=corpus, save=str(folder), length=LENGTH, top=20, shard=40)
    return str(folder)


@pytest.fixture(scope="module")
def record(folder):
    return examples(tiny_model("llama"), sites=SITES, index=folder, top=4, tenth=2, context=6)


def dead(model, layer=1, unit=7):
    """The same model with one neuron that is always 0, and how to undo it."""
    weight = model.anatomy.blocks[layer].mlp.up_proj.weight
    kept = weight.data.clone()
    weight.data[unit] = 0.0
    return lambda: weight.data.copy_(kept)


def all_windows(neuron):
    return [*neuron.top, *neuron.bottom, *neuron.tenths]


def test_every_window_shows_the_text_and_the_activations_at_its_place(record, corpus):
    model = tiny_model("llama")
    ids = pack(model, corpus, LENGTH, 10_000)
    for neuron in record.result.neurons:
        for window in all_windows(neuron):
            values_T = model.run(ids[window.window], read=neuron.site, mode="single")
            start = window.position - window.at
            shown = slice(start, start + len(window.tokens))
            assert window.tokens == model.tokens(ids[window.window])[shown]
            # the whole window alone, and a part of it among others, round apart
            assert window.activations == pytest.approx(values_T[shown].tolist(), abs=1e-4)
            assert window.value == pytest.approx(window.activations[window.at], abs=1e-4)
            assert start >= 1
            assert len(window.tokens) <= 6


def test_top_and_bottom_are_in_order_and_tenths_fall(record):
    for neuron in record.result.neurons:
        assert [w.value for w in neuron.top] == sorted((w.value for w in neuron.top), reverse=True)
        assert neuron.top[0].value == neuron.high
        assert [w.value for w in neuron.bottom] == sorted(w.value for w in neuron.bottom)
        assert neuron.bottom[0].value == neuron.low
        assert [w.tenth for w in neuron.tenths] == [t for t in range(10, 0, -1) for _ in range(2)]
        assert [w.value for w in neuron.tenths] == sorted((w.value for w in neuron.tenths), reverse=True)


def test_from_a_corpus_it_is_what_the_index_says(record, corpus):
    other = examples(tiny_model("llama"), sites=SITES, corpus=corpus, length=LENGTH, top=4, tenth=2, context=6)
    assert other.result.neurons == record.result.neurons
    assert other.verdict == record.verdict


def test_the_common_token_is_counted_over_all_windows_kept(record, corpus):
    model = tiny_model("llama")
    ids = pack(model, corpus, LENGTH, 10_000)
    values_WT = torch.stack([model.run(one, read="neuron.1.7") for one in ids])[:, 1:]
    order = values_WT.amax(1).argsort(descending=True)[:20]
    at = [ids[w][int(values_WT[w].argmax()) + 1] for w in order.tolist()]
    share = max(at.count(token) for token in at) / 20
    neuron = record.result.neurons[0]
    assert neuron.common_share == share
    assert at.count(model.token(neuron.common_token)) / 20 == share


def test_a_neuron_that_answers_to_one_token_is_told_from_random_ones(corpus):
    """Its weights read one token's embedding, which is made so long that attention adds next to nothing to it."""
    model = tiny_model("llama")
    mlp, embedding = model.anatomy.blocks[0].mlp, model.hf.get_input_embeddings().weight.data
    rows = [embedding[model.token("w33")], mlp.up_proj.weight.data[5], mlp.gate_proj.weight.data[5]]
    kept = [row.clone() for row in rows]
    for row, new in zip(rows, (10 * kept[0], kept[0] / kept[0].norm(), kept[0] / kept[0].norm()), strict=True):
        row.copy_(new)
    try:
        record = examples(model, sites=["neuron.0.5"], corpus=corpus, length=LENGTH)
    finally:
        for row, old in zip(rows, kept, strict=True):
            row.copy_(old)
    assert record.result.neurons[0].common_token == "w33"
    assert record.result.neurons[0].common_share == 1
    assert record.verdict.outcome == "supported"


def test_a_dead_neuron_is_said_to_be_one(corpus):
    model = tiny_model("llama")
    undo = dead(model)
    try:
        record = examples(model, sites=SITES, corpus=corpus, length=LENGTH, context=6)
        with pytest.raises(SpecError, match=r"neuron\.1\.7 is constant"):
            texts_of(model, "neuron.1.7", Scanned(model, {pc.Site("neuron", 1): [7]}, corpus, Silent(), length=LENGTH))
    finally:
        undo()
    first, second = record.result.neurons
    assert first.constant and not all_windows(first)
    assert (first.low, first.high, first.sd, first.active) == (0, 0, 0, 0)
    assert not second.constant and second.top
    assert record.verdict is None
    assert "constant" in record.result.passages()[0].group
    record.chart().to_dict()
    assert pc.Record.from_json(record.to_json()).to_json() == record.to_json()


def test_no_verdict_without_controls(corpus):
    assert examples(tiny_model("llama"), sites=SITES, corpus=corpus, length=LENGTH, controls=0).verdict is None


def test_the_shipped_corpus_is_the_default():
    record = examples(tiny_model("llama"), sites=SITES[:1], length=LENGTH, tokens=800)
    assert record.result.source == "example:neutral"
    assert list(record.provenance.inputs) == ["example:neutral"]


# Views


def test_it_is_drawn_and_comes_back_from_json(record, folder, tmp_path):
    assert record.save(tmp_path / "chart.svg").read_text().startswith("<svg")
    assert pc.Record.from_json(record.to_json()).to_json() == record.to_json()
    assert len(record.table()) == len(SITES)


def test_the_page_shows_every_window_with_its_tokens_coloured(record, tmp_path):
    page = record.save(tmp_path / "page.html").read_text()
    shown = [w for neuron in record.result.neurons for w in all_windows(neuron)]
    assert page.count("<td class=\"text\">") == len(shown)
    assert page.count("font-weight:bold") == len(shown)
    assert f'title="{shown[0].value:.4g}">{shown[0].tokens[shown[0].at]}</span>' in page


# For explanations


def test_the_two_halves_share_no_window(folder):
    model = tiny_model("llama")
    shown, held = (texts_of(model, "neuron.1.7", Index(folder), half, tenth=2) for half in ("shown", "held out"))
    for texts, parity in ((shown, 0), (held, 1)):
        for windows in (texts.top, texts.tenths, texts.random):
            assert windows
            assert all(w.window % 2 == parity for w in windows)
    every = texts_of(model, "neuron.1.7", Index(folder), top=20)
    assert sorted(w.window for w in every.top) == sorted(p.window for p in every.unit.top)


def test_random_windows_are_drawn_from_all_places_and_carry_the_activation_there(folder, corpus):
    model = tiny_model("llama")
    found = Index(folder)
    ids = pack(model, corpus, LENGTH, 10_000)
    for window in texts_of(model, "neuron.1.7", found, random_windows=5).random:
        assert window.window * LENGTH + window.position in found.sample
        there = model.run(ids[window.window], read="neuron.1.7")[window.position]
        assert window.value == pytest.approx(float(there), abs=1e-4)


# Bad input


@pytest.mark.parametrize(("fields", "error", "said"), [
    ({"sites": ["neuron.1.48"]}, SiteError, r"48 neurons \(0 to 47\)"),
    ({"sites": ["neuron.1"]}, SiteError, "single neurons"),
    ({"sites": ["neuron.1.7@last"]}, SiteError, "all positions"),
    ({"sites": ["head.1.0"]}, SiteError, "single neurons"),
    ({"sites": ["neuron.1.7", "neuron.1.7"]}, SpecError, r"neuron\.1\.7 is named twice"),
    ({"sites": ["neuron.1.7"], "index": "nowhere"}, FileError, "no folder"),
    ({"sites": ["neuron.1.7"], "corpus": "nowhere.txt"}, FileError, "nowhere"),
    ({"sites": ["neuron.1.7"], "corpus": "example:neutral", "index": "x"}, SpecError, "both"),
    ({"sites": ["neuron.1.7"], "length": 129}, SpecError, "context is 128"),
    ({"sites": ["neuron.1.7"], "tokens": 50}, FileError, "fills 0 sequences"),
])
def test_bad_input_is_named(fields, error, said):
    with pytest.raises(error, match=said):
        examples(tiny_model("llama"), **fields)


def test_an_index_of_another_model_or_without_the_layer(folder, corpus, tmp_path):
    with pytest.raises(SpecError, match=r"is an index of llama .* not of mistral"):
        examples(tiny_model("mistral"), sites=SITES, index=folder)
    index(tiny_model("llama"), corpus=corpus, save=str(tmp_path / "i"), length=LENGTH, layers=[0])
    with pytest.raises(SiteError, match=r"has no neuron\.1; it has neuron\.0"):
        examples(tiny_model("llama"), sites=SITES, index=str(tmp_path / "i"))


def test_on_the_command_line_the_texts_are_plain_and_bad_input_is_exit_code_two(folder, model_folder, tmp_path):
    def run(*words):
        return subprocess.run(
            [sys.executable, "-m", "patchclamp", "neurons", "examples", *words, "--model", model_folder, "--no-record"],
            capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False, cwd=tmp_path)

    corpus = json.loads((tmp_path / folder / "manifest.json").read_text())["corpus"]
    shown = run("neuron.1.7", "--corpus", corpus, "--length", "16")
    assert shown.returncode == 0, shown.stderr
    assert "neuron.1.7, most active" in shown.stdout
    assert "«w" in shown.stdout
    assert "\x1b" not in shown.stdout
    wrong = run("neuron.1.7", "--index", folder)
    assert wrong.returncode == 2
    assert "load that model, or index this one" in wrong.stderr
    assert "Traceback" not in wrong.stderr


@pytest.mark.weights
def test_the_plural_neuron_of_smollm2_is_most_active_after_plural_determiners(smollm2):
    record = examples(smollm2, sites=["neuron.19.1044"], tokens=4096, length=64, top=6)
    neuron = record.result.neurons[0]
    assert {w.tokens[w.at].strip().lower() for w in neuron.top} & {"these", "those", "are", "were"}
    assert neuron.active < 0.1
