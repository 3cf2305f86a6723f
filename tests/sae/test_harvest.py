"""A store holds what the model computes, whoever harvested it and however often that was interrupted."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import tiny_model

from patchclamp.corpus.pack import pack
from patchclamp.corpus.windows import shard_path
from patchclamp.errors import FileError, InputError, RunError, SiteError, SpecError
from patchclamp.model.tensors import read_tensors
from patchclamp.sae.harvest import harvest
from patchclamp.sae.store import ActivationStore, HarvestJob, Stream

LENGTH = 16
QUICK = {"length": LENGTH, "windows": 8, "shard": 40, "tokens": 4000}


@pytest.fixture(scope="module")
def made(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("store") / "s"
    record = harvest(tiny_model("llama"), corpus=corpus, store=str(folder), site=["resid.1", "mlp.0"], **QUICK)
    return record.result, ActivationStore(folder)


def test_every_row_is_what_the_model_computes_at_its_place(made, corpus):
    result, store = made
    model = tiny_model("llama")
    windows = pack(model, corpus, LENGTH, 250)
    captured = {site: torch.stack([model.run(ids, read=site, mode="single") for ids in windows])
                for site in ("resid.1", "mlp.0")}
    places = []
    for shard in range(store.manifest.shards):
        own = store.read(shard, ["places", "resid.1", "mlp.0"])
        places += own["places"].tolist()
        for site, value_WTD in captured.items():
            want_ND = value_WTD.flatten(0, 1)[own["places"]]
            # float32 products of one window alone and of eight windows round apart
            torch.testing.assert_close(own[site], want_ND, rtol=1e-4, atol=1e-5)
    every = [w * LENGTH + t for w in range(250) for t in range(1, LENGTH)]
    assert sorted(places) == every
    assert result.rows == len(every)
    assert result.shards == 7


def test_rows_lie_in_random_order_and_a_shard_is_of_the_whole_corpus(made):
    _, store = made
    places = store.read(0, ["places"])["places"]
    windows = places // LENGTH

    assert windows.min() < 50
    assert windows.max() > 200
    assert ((windows[1:] == windows[:-1]).float().mean() < 0.1)


@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
def test_numbers_may_be_stored_shorter(made, corpus, tmp_path, kind):
    harvest(tiny_model("llama"), corpus=corpus, store=str(tmp_path / "s"), site=["resid.1"], kind=kind, **QUICK)
    short, full = ActivationStore(tmp_path / "s"), made[1]
    want = full.read(2, ["resid.1"])["resid.1"].to(getattr(torch, kind))

    assert torch.equal(short.read(2, ["resid.1"])["resid.1"], want)
    assert short.rows(2, "resid.1").dtype == torch.float32


def test_what_is_streamed_is_what_is_stored(made, corpus, tmp_path):
    _, store = made
    model = tiny_model("llama")
    stream = Stream(model, HarvestJob(store.folder, store.manifest))

    assert stream.counts == store.counts
    for shard in (0, 3):
        for one, other in zip(stream.reader(("mlp.0", "resid.1"))(shard), store.reader(("mlp.0", "resid.1"))(shard),
                              strict=True):
            assert torch.equal(one, other)


def test_several_processes_make_the_same_store(made, corpus, model_folder, tmp_path):
    command = [sys.executable, "-m", "patchclamp", "sae", "harvest", corpus, "--store", str(tmp_path / "s"), "--site",
               "resid.1,mlp.0", "--length", "16", "--windows", "8", "--shard", "40", "--tokens", "4000", "--workers",
               "2", "--model", model_folder, "--json", "--no-record"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["result"]["rows"] == 250 * 15
    _, store = made
    for shard in range(7):
        ours, theirs = load_file(shard_path(store.folder, shard)), load_file(shard_path(tmp_path / "s", shard))
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_killed_harvest_loses_one_shard_and_goes_on(made, corpus, tmp_path, monkeypatch):
    done = []
    original = HarvestJob.do

    def three(job, model, shard):
        if len(done) == 3:
            raise KeyboardInterrupt
        original(job, model, shard)
        done.append(shard)

    arguments = {"corpus": corpus, "store": str(tmp_path / "s"), "site": ["resid.1", "mlp.0"], **QUICK}
    with monkeypatch.context() as patch:
        patch.setattr(HarvestJob, "do", three)
        with pytest.raises(KeyboardInterrupt):
            harvest(tiny_model("llama"), **arguments)
    with pytest.raises(FileError, match=r"not finished: 4 of 7 shards are missing"):
        ActivationStore(tmp_path / "s")
    kept = shard_path(tmp_path / "s", 0).stat().st_mtime_ns
    harvest(tiny_model("llama"), **arguments)

    assert shard_path(tmp_path / "s", 0).stat().st_mtime_ns == kept
    for shard in range(7):
        ours, theirs = ActivationStore(tmp_path / "s").read(shard, ["mlp.0"]), made[1].read(shard, ["mlp.0"])
        assert torch.equal(ours["mlp.0"], theirs["mlp.0"])


def test_special_tokens_can_be_left_out(corpus, tmp_path):
    model = tiny_model("llama")
    text = tmp_path / "c.txt"
    text.write_text("\n".join(f"w{n % 90} <s> w{n % 80}" for n in range(400)))
    special = set(model.tokenizer.all_special_ids)
    with_, without = (
        harvest(model, corpus=str(text), store=str(tmp_path / str(kept)), site=["resid.0"], special=kept, **QUICK)
        for kept in (True, False))
    inside = sum(token in special for ids in pack(model, str(text), LENGTH, 250) for token in ids[1:])

    assert inside > 0
    assert with_.result.rows - without.result.rows == inside


def test_numbers_that_are_none_are_named_by_shard_and_row(corpus, tmp_path):
    model = tiny_model("llama", double=True)
    weight = model.anatomy.blocks[1].mlp.down_proj.weight
    kept = weight.data.clone()
    weight.data[3] = torch.nan
    try:
        with pytest.raises(RunError, match=r"resid\.1 .*row \d+ of shard \d+ holds NaN"):
            harvest(model, corpus=corpus, store=str(tmp_path / "s"), site=["resid.1"], **QUICK)
    finally:
        weight.data.copy_(kept)


def test_numbers_too_large_for_float16_are_named(corpus, tmp_path):
    model = tiny_model("llama", double=True)
    weight = model.anatomy.blocks[1].mlp.down_proj.weight
    kept = weight.data.clone()
    weight.data.mul_(1e8)
    try:
        with pytest.raises(RunError, match="store them as bfloat16"):
            harvest(model, corpus=corpus, store=str(tmp_path / "s"), site=["resid.1"], kind="float16", **QUICK)
    finally:
        weight.data.copy_(kept)


@pytest.fixture
def copied(made, tmp_path):
    import shutil

    shutil.copytree(made[1].folder, tmp_path / "copy")
    return tmp_path / "copy"


def test_a_shard_with_another_checksum_is_named(copied):
    path = shard_path(copied, 2)
    tensors, metadata = read_tensors(path)
    tensors["resid.1"][5, 3] += 1
    save_file(tensors, path, metadata)
    store = ActivationStore(copied)

    with pytest.raises(FileError, match=r"00002.safetensors does not have the checksum"):
        store.rows(2, "resid.1")
    assert len(store.rows(1, "resid.1")) == store.counts[1]


def test_a_shard_cut_short_is_named(copied):
    path = shard_path(copied, 2)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(FileError, match=r"00002.safetensors is damaged or half-written"):
        ActivationStore(copied).rows(2, "resid.1")


def test_other_settings_in_the_same_folder_are_refused(made, corpus):
    with pytest.raises(SpecError, match="other settings: kind 'float32', not 'float16'"):
        harvest(tiny_model("llama"), corpus=corpus, store=str(made[1].folder), site=["resid.1", "mlp.0"],
                kind="float16", **QUICK)


@pytest.mark.parametrize(("site", "says"), [
    ("logits", "whole sites"), ("neuron.1.3", "whole sites"), ("resid.1@last", "whole sites"), ("resid.9", "3 blocks"),
    ("nonsense.1", "no point")])
def test_sites_that_cannot_be_harvested_are_named(corpus, tmp_path, site, says):
    with pytest.raises((SiteError, SpecError), match=says):
        harvest(tiny_model("llama"), corpus=corpus, store=str(tmp_path / "s"), site=[site], **QUICK)
    assert not (tmp_path / "s" / "manifest.json").exists()


def test_a_corpus_smaller_than_a_window_is_named(tmp_path):
    (tmp_path / "c.txt").write_text("w1 w2 w3")
    with pytest.raises(InputError, match="fills 0 sequences"):
        harvest(tiny_model("llama"), corpus=str(tmp_path / "c.txt"), store=str(tmp_path / "s"), site=["resid.1"],
                **QUICK)


def test_a_full_disk_is_said_and_leaves_no_half_file(corpus, tmp_path):
    import resource

    code = ("import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000));"
            "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
            "from tiny import tiny_model; from patchclamp.sae.harvest import harvest; "
            "from patchclamp.errors import RunError\n"
            "try: harvest(tiny_model('llama'), corpus=sys.argv[1], store=sys.argv[2], site=['resid.1'], length=16,"
            " windows=8, shard=40, tokens=4000)\n"
            "except RunError as error: print(error); sys.exit(7)")
    done = subprocess.run([sys.executable, "-c", code, corpus, str(tmp_path / "s")], capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent), "OMP_NUM_THREADS": "1"})

    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 60_000
    assert (done.returncode, done.stdout[:12]) == (7, "cannot write"), done.stderr
    assert [*(tmp_path / "s" / "shards").glob("*")] == []
