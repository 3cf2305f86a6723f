"""An index is what brute force finds, whoever worked on it and however often it was interrupted."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from tiny import tiny_model

import patchclamp as pc
from patchclamp.corpus.pack import pack
from patchclamp.corpus.sketch import EDGES
from patchclamp.corpus.table import A_TENTH, INDEX, QUANTILES, Index, shard_size
from patchclamp.corpus.windows import MANIFEST
from patchclamp.errors import FileError, InputError, RunError, SiteError, SpecError
from patchclamp.neurons.index import index

LENGTH, TOP = 16, 5
QUICK = {"length": LENGTH, "top": TOP, "places": 300, "batch": 8, "shard": 40}
COMMAND = ["neurons", "index", "--length", "16", "--top", "5", "--places", "300", "--batch", "8"]


@pytest.fixture(scope="module")
def made(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("index") / "whole"
    return index(tiny_model("llama"), corpus=corpus, save=str(folder), **QUICK), Index(folder)


@pytest.fixture(scope="module")
def brute(corpus):
    """Every activation of one layer, [windows, tokens, neurons], by running windows one at a time."""
    model = tiny_model("llama")
    windows = pack(model, corpus, LENGTH, 10_000)
    return torch.stack([model.run(ids, read="neuron.1", mode="single") for ids in windows])


def started(folder, corpus, model_folder, *words):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "patchclamp", *COMMAND, corpus, "--save", str(folder), "--model", model_folder,
         "--no-record", "--json", *words], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def table(folder):
    return pq.read_table(Path(folder) / INDEX)


def test_it_is_what_brute_force_finds(made, brute):
    _, found = made
    own_WTF = brute[:, 1:]
    for unit, got in enumerate(found.units(pc.Site("neuron", 1), range(48))):
        values_WT = own_WTF[..., unit]
        assert got.tokens == values_WT.numel()
        assert got.active == float((values_WT > 0).double().mean())
        # float32 products of one window alone and of eight windows round apart
        assert got.mean == pytest.approx(float(values_WT.double().mean()), abs=1e-5)
        assert got.sd == pytest.approx(float(values_WT.double().std(correction=0)), rel=1e-5)
        assert (got.low, got.high) == pytest.approx((float(values_WT.min()), float(values_WT.max())), rel=1e-4)
        for peaks, sign in ((got.top, 1), (got.bottom, -1)):
            best_W = (sign * values_WT).amax(1)
            order = best_W.argsort(descending=True, stable=True)[:TOP]
            assert [p.window for p in peaks] == order.tolist()
            assert [p.position for p in peaks] == ((sign * values_WT[order]).argmax(1) + 1).tolist()
            assert [p.value for p in peaks] == pytest.approx((sign * best_W[order]).tolist(), rel=1e-4)
        counts = np.histogram(values_WT.reshape(-1), [-np.inf, *EDGES, np.inf])[0]
        assert np.abs(counts - got.histogram).sum() <= 2  # a value at an edge, rounded to the other side


def test_quantiles_and_their_examples_are_those_of_the_sampled_places(made, brute):
    _, found = made
    places = np.array(found.sample)
    assert len(set(found.sample)) == 300
    assert (places % LENGTH).min() == 1
    for unit, got in enumerate(found.units(pc.Site("neuron", 1), range(48))):
        own = brute[..., unit].reshape(-1).numpy()[places]
        np.testing.assert_allclose(got.quantiles, np.quantile(own, QUANTILES), rtol=1e-3, atol=1e-4)
        active = np.sort(own[own > 0])
        for tenth, peak in got.tenths:
            assert peak.value == pytest.approx(float(brute[peak.window, peak.position, unit]), rel=1e-3, abs=1e-5)
            rank = np.searchsorted(active, peak.value * (1 - 1e-3))
            assert (tenth - 1) / 10 - 2 / len(active) <= rank / len(active) <= tenth / 10
        assert len(got.tenths) == min(10 * A_TENTH, len(active))


def test_the_result_says_what_was_indexed(made):
    record, found = made
    assert record.verdict is None
    assert record.result.neurons == 3 * 48 == len(table(found.folder))
    assert record.result.tokens == record.result.windows * (LENGTH - 1)
    assert [one.layer for one in record.result.layers] == [0, 1, 2]


def test_it_is_drawn_and_comes_back_from_json(made, tmp_path):
    record, _ = made
    assert record.save(tmp_path / "chart.svg").read_text().startswith("<svg")
    assert pc.Record.from_json(record.to_json()).to_json() == record.to_json()
    assert len(record.table()) == 3


def test_layers_can_be_chosen_and_the_pass_ends_with_the_last(corpus, tmp_path, made):
    index(tiny_model("llama"), corpus=corpus, save=str(tmp_path / "one"), layers=[1], **QUICK)
    assert table(tmp_path / "one").equals(table(made[1].folder).slice(48, 48).replace_schema_metadata(
        table(tmp_path / "one").schema.metadata))


def test_a_finished_index_is_opened_and_no_model_run(corpus, made, monkeypatch):
    monkeypatch.setattr(pc.Model, "scan", None)
    again = index(tiny_model("llama"), corpus=corpus, save=str(made[1].folder), **QUICK)
    assert again.result == made[0].result


def test_the_batch_of_a_family_without_positions_of_its_own(corpus, tmp_path):
    """BLOOM takes no position ids; its windows have no padding, so it needs none."""
    found = index(tiny_model("bloom"), corpus=corpus, save=str(tmp_path / "i"), tokens=800, **QUICK)
    assert found.result.windows == 50


# Interruption, and several at once


def test_killed_and_run_again_it_is_the_uninterrupted_index(corpus, model_folder, tmp_path):
    folder = tmp_path / "killed"
    process = started(folder, corpus, model_folder, "--shard", "2")
    while len(list(folder.glob("shards/*.safetensors"))) < 6:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (folder / INDEX).exists()
    kept = {path.name: path.stat().st_mtime_ns for path in (folder / "shards").glob("*.safetensors")}

    model = pc.load(model_folder)
    settings = {**QUICK, "shard": 2}
    seen = []
    scan = model.scan
    model.scan = lambda ids, *rest: (seen.append(len(ids)), scan(ids, *rest))
    record = index(model, corpus=corpus, save=str(folder), **settings)

    assert sum(seen) == record.result.windows - 2 * len(kept)  # what was finished was not done again
    index(pc.load(model_folder), corpus=corpus, save=str(tmp_path / "whole"), **settings)
    assert table(folder).equals(table(tmp_path / "whole"))
    assert not (folder / "shards").exists()


def test_two_processes_started_on_one_folder_share_the_work(corpus, model_folder, tmp_path):
    both = [started(tmp_path / "shared", corpus, model_folder, "--shard", "2") for _ in range(2)]
    answers = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], answers
    results = [json.loads(out)["result"] for out, _ in answers]
    assert results[0] == results[1]
    index(pc.load(model_folder), corpus=corpus, save=str(tmp_path / "alone"), **{**QUICK, "shard": 2})
    assert table(tmp_path / "shared").equals(table(tmp_path / "alone"))


def test_workers_give_the_answer_of_one(corpus, model_folder, tmp_path):
    model = pc.load(model_folder)
    index(model, corpus=corpus, save=str(tmp_path / "two"), workers=2, **QUICK)
    index(model, corpus=corpus, save=str(tmp_path / "one"), **QUICK)
    assert table(tmp_path / "two").equals(table(tmp_path / "one"))


def test_ray_workers_give_the_answer_of_one(corpus, model_folder, tmp_path):
    pytest.importorskip("ray")
    model = pc.load(model_folder)
    index(model, corpus=corpus, save=str(tmp_path / "ray"), workers=2, ray=True, **QUICK)
    index(model, corpus=corpus, save=str(tmp_path / "one"), **QUICK)
    assert table(tmp_path / "ray").equals(table(tmp_path / "one"))


def test_without_ray_the_error_says_how_to_get_it(corpus, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SpecError, match=r"patchclamp\[cluster\]"):
        index(tiny_model("llama"), corpus=corpus, save=str(tmp_path / "i"), ray=True, **QUICK)


def test_a_worker_that_cannot_load_the_model_says_so(corpus, tmp_path):
    """The tiny model was made in memory; no other process can load it."""
    with pytest.raises(InputError, match=r"a worker stopped.*tiny:llama"):
        index(tiny_model("llama"), corpus=corpus, save=str(tmp_path / "i"), workers=2, **QUICK)


def test_shards_are_of_a_size_that_fits_the_corpus():
    sizes = {windows: shard_size(windows, 32) for windows in (1, 94, 1000, 1563, 10**6)}
    assert sizes == {1: 32, 94: 32, 1000: 125, 1563: 196, 10**6: 15_625}


# Bad input


def test_a_corpus_smaller_than_one_window(tmp_path):
    (tmp_path / "short.txt").write_text("w1 w2 w3")
    with pytest.raises(FileError, match="fills 0 sequences of 16 tokens"):
        index(tiny_model("llama"), corpus=str(tmp_path / "short.txt"), save=str(tmp_path / "i"), **QUICK)


def test_a_layer_the_model_lacks(corpus, tmp_path):
    with pytest.raises(SiteError, match=r"3 blocks \(0 to 2\)"):
        index(tiny_model("llama"), corpus=corpus, save=str(tmp_path / "i"), layers=[3], **QUICK)


def test_a_mixture_of_experts_has_no_neurons(corpus, tmp_path):
    with pytest.raises(SiteError, match="mixture of experts"):
        index(tiny_model("mixtral"), corpus=corpus, save=str(tmp_path / "i"), **QUICK)


@pytest.mark.parametrize(("changed", "said"), [({"top": 6}, "top 5, not 6"), ({"seed": 1}, "seed 0, not 1"),
                                               ({"layers": [0]}, "sites")])
def test_other_settings_are_named(corpus, made, changed, said):
    with pytest.raises(SpecError, match=f"other settings.*{said}"):
        index(tiny_model("llama"), corpus=corpus, save=str(made[1].folder), **{**QUICK, **changed})


def test_another_model_is_named(corpus, made):
    with pytest.raises(SpecError, match="model 'llama', not 'gpt2'"):
        index(tiny_model("gpt2"), corpus=corpus, save=str(made[1].folder), **QUICK)


def test_a_corpus_that_changed_is_noticed(tmp_path):
    path = tmp_path / "c.txt"
    path.write_text(" ".join(f"w{i}" for i in range(90)))
    index(tiny_model("llama"), corpus=str(path), save=str(tmp_path / "i"), **QUICK)
    path.write_text(" ".join(f"w{i + 1}" for i in range(90)))
    with pytest.raises(FileError, match="has changed"):
        index(tiny_model("llama"), corpus=str(path), save=str(tmp_path / "i"), **QUICK)


def half_done(corpus, folder, monkeypatch, **changed):
    """An index of which two shards are finished."""
    from patchclamp.corpus.indexing import IndexJob

    done = []
    original = IndexJob.do

    def index_two(*arguments):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(original(*arguments))

    with monkeypatch.context() as patch:
        patch.setattr(IndexJob, "do", index_two)
        with pytest.raises(KeyboardInterrupt):
            index(tiny_model("llama"), corpus=corpus, save=str(folder), **{**QUICK, **changed})


def test_a_half_written_shard_is_named(corpus, tmp_path, monkeypatch):
    half_done(corpus, tmp_path / "i", monkeypatch)
    path = tmp_path / "i" / "shards" / "00001.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(FileError, match=r"00001.safetensors is damaged or half-written"):
        index(tiny_model("llama"), corpus=corpus, save=str(tmp_path / "i"), **QUICK)


def test_a_shard_of_another_index_is_named(corpus, tmp_path, monkeypatch):
    half_done(corpus, tmp_path / "i", monkeypatch)
    half_done(corpus, tmp_path / "j", monkeypatch, seed=1)
    shard = tmp_path / "i" / "shards" / "00000.safetensors"
    (tmp_path / "j" / "shards" / shard.name).write_bytes(shard.read_bytes())
    with pytest.raises(FileError, match="belongs to another folder"):
        index(tiny_model("llama"), corpus=corpus, save=str(tmp_path / "j"), **{**QUICK, "seed": 1})


def test_an_unfinished_index_and_no_index_are_named(corpus, tmp_path, monkeypatch):
    half_done(corpus, tmp_path / "i", monkeypatch)
    with pytest.raises(FileError, match="not finished"):
        Index(tmp_path / "i")
    with pytest.raises(FileError, match="no folder"):
        Index(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileError, match=MANIFEST):
        Index(tmp_path / "empty")


def test_a_damaged_manifest_is_named(corpus, tmp_path, monkeypatch):
    half_done(corpus, tmp_path / "i", monkeypatch)
    (tmp_path / "i" / MANIFEST).write_text("{}")
    with pytest.raises(FileError, match=r"manifest.json is damaged"):
        index(tiny_model("llama"), corpus=corpus, save=str(tmp_path / "i"), **QUICK)


def test_values_that_are_no_numbers_are_refused(corpus, tmp_path):
    model = tiny_model("llama", double=True)
    weight = model.anatomy.blocks[1].mlp.up_proj.weight
    kept = weight.data.clone()
    weight.data[3] = torch.inf
    try:
        with pytest.raises(RunError, match=r"neuron\.1 .*no finite numbers"):
            index(model, corpus=corpus, save=str(tmp_path / "i"), **QUICK)
    finally:
        weight.data.copy_(kept)


@pytest.mark.weights
def test_an_index_of_smollm2_is_brute_force_on_a_sample(smollm2, tmp_path):
    found_by = index(smollm2, corpus="example:neutral", save=str(tmp_path / "i"), layers=[3, 19], length=64, top=5,
                     tokens=2048, batch=8, shard=16)
    windows = pack(smollm2, "example:neutral", 64, 32)
    assert found_by.result.windows == len(windows) == 32
    values_WT = torch.stack([smollm2.run(ids, read="neuron.19.1044") for ids in windows])[:, 1:]
    (got,) = Index(tmp_path / "i").units(pc.Site("neuron", 19), [1044])
    order = values_WT.amax(1).argsort(descending=True)[:5]
    assert [peak.window for peak in got.top] == order.tolist()
    assert [peak.position for peak in got.top] == (values_WT[order].argmax(1) + 1).tolist()
    assert [peak.value for peak in got.top] == pytest.approx(values_WT.amax(1)[order].tolist(), rel=1e-3)


def test_without_places_there_are_extremes_and_no_quantiles(corpus, tmp_path):
    index(tiny_model("llama"), corpus=corpus, save=str(tmp_path / "i"), **{**QUICK, "places": 0})
    (unit,) = Index(tmp_path / "i").units(pc.Site("neuron", 1), [7])
    assert len(unit.top) == TOP
    assert unit.tenths == []
    assert all(value != value for value in unit.quantiles)
    shown = pc.examples(tiny_model("llama"), sites=["neuron.1.7"], index=str(tmp_path / "i")).result.neurons[0]
    assert shown.quantiles == {} and shown.tenths == []
