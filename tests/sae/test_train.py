"""A training is the same however often it was interrupted, and its result says how good it is."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import tiny_model

from patchclamp.corpus.windows import shard_path
from patchclamp.errors import FileError, InputError, RunError, SpecError, StoreError
from patchclamp.evidence.method import Silent
from patchclamp.evidence.record import Record
from patchclamp.forward import load
from patchclamp.forward.autoencoder import FILE, Autoencoder
from patchclamp.model.tensors import read_tensors
from patchclamp.sae.checkpoints import FOLDER
from patchclamp.sae.harvest import harvest
from patchclamp.sae.quality import quality
from patchclamp.sae.store import ActivationStore, checksum
from patchclamp.sae.train import train_autoencoder
from patchclamp.sae.training import Schedule, Training, read_log

QUICK = {"latents": 64, "k": [4], "batch": 128, "buffer": 2}
HARVEST = {"length": 16, "windows": 8, "shard": 40, "tokens": 4000}


@pytest.fixture(scope="module")
def store(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("store") / "s"
    harvest(tiny_model("llama"), corpus=corpus, store=str(folder), site=["resid.1", "resid_mid.1", "mlp.1"], **HARVEST)
    return str(folder)


@pytest.fixture(scope="module")
def folder_store(corpus, model_folder, tmp_path_factory):
    """Of a model that other processes can load."""
    folder = tmp_path_factory.mktemp("store") / "s"
    harvest(load(model_folder), corpus=corpus, store=str(folder), site=["resid.1"], **HARVEST)
    return str(folder)


def trained(store, out, **changed):
    fields = {"store": store, "site": "resid.1", "out": str(out), **QUICK, **changed}
    return train_autoencoder(tiny_model("llama"), **fields).result


@contextmanager
def stopped_at(step, monkeypatch):
    """A training inside is interrupted before a step."""
    original = Training._take

    def stopping(training, rows, board):
        if training.step == step:
            raise KeyboardInterrupt
        original(training, rows, board)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Training, "_take", stopping)
        yield


def tensors(folder):
    return load_file(folder / FILE)


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("kind", ["topk", "batchtopk", "relu", "jumprelu", "gated", "matryoshka"])
def test_every_architecture_learns_and_is_saved(store, tmp_path, kind):
    result = trained(store, tmp_path / "a", architecture=kind, steps=150, l1=[0.3])
    (one,) = result.autoencoders
    loaded = Autoencoder.load(tmp_path / "a")

    assert one.held_out.fvu < 0.8 * one.curve_fvu[0]
    assert loaded.info.architecture == kind
    held_out = ActivationStore(store)
    assert quality(loaded, [(held_out.rows(6, "resid.1"),)]) == one.held_out
    assert loaded.info.held_out == (6,)
    assert not (tmp_path / "a" / FOLDER).exists()


def test_several_autoencoders_learn_from_one_stream_as_each_would_alone(store, tmp_path):
    result = trained(store, tmp_path / "many", k=[2, 8], steps=40)
    trained(store, tmp_path / "alone", k=[8], steps=40)

    assert [one.name for one in result.autoencoders] == ["k2", "k8"]
    assert same(tensors(tmp_path / "many" / "k8"), tensors(tmp_path / "alone"))
    assert result.autoencoders[0].held_out.fvu > result.autoencoders[1].held_out.fvu


def test_a_transcoder_reads_one_site_and_writes_another(store, tmp_path):
    result = trained(store, tmp_path / "t", site="resid_mid.1", output_site="mlp.1", skip_path=True, steps=150)
    one = Autoencoder.load(tmp_path / "t")
    rows = ActivationStore(store).reader(("resid_mid.1", "mlp.1"))(6)

    assert (one.info.site, one.info.output_site) == ("resid_mid.1", "mlp.1")
    assert quality(one, [rows]) == result.autoencoders[0].held_out
    assert result.autoencoders[0].held_out.fvu < 0.9


def test_streamed_training_gives_the_same_bits_as_from_a_store(store, corpus, tmp_path):
    trained(store, tmp_path / "a", site="mlp.1", steps=30)
    train_autoencoder(tiny_model("llama"), corpus=corpus, site="mlp.1", out=str(tmp_path / "b"), steps=30, **QUICK,
                      **HARVEST)

    assert same(tensors(tmp_path / "a"), tensors(tmp_path / "b"))


def test_an_interrupted_training_goes_on_with_the_same_bits(store, tmp_path, monkeypatch):
    trained(store, tmp_path / "whole", architecture="batchtopk", steps=60)
    with stopped_at(37, monkeypatch):
        trained(store, tmp_path / "cut", architecture="batchtopk", steps=60, checkpoint_seconds=0)
    assert [path.name for path in (tmp_path / "cut" / FOLDER).iterdir()] == ["00000037"]
    result = trained(store, tmp_path / "cut", architecture="batchtopk", steps=60)

    assert same(tensors(tmp_path / "whole"), tensors(tmp_path / "cut"))
    whole, cut = (list(read_log(tmp_path / name)) for name in ("whole", "cut"))
    assert [{**line, "name": ""} for line in whole] == [{**line, "name": ""} for line in cut]
    assert result.autoencoders[0].curve_steps == [line["step"] for line in whole]


def test_a_finished_training_is_not_done_again(store, tmp_path, monkeypatch):
    first = trained(store, tmp_path / "a", steps=20)
    monkeypatch.setattr(Training, "run", None)
    again = trained(store, tmp_path / "a", steps=20)

    assert again.autoencoders == first.autoencoders
    assert again.tokens_per_second == first.tokens_per_second


@pytest.mark.parametrize("architecture", ["topk", "gated"])
def test_a_training_killed_at_any_moment_ends_with_the_same_bits(folder_store, model_folder, tmp_path, architecture):
    """kill -9, at random times, of a real process; as often as it takes until one run gets to the end."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def command(out):
        return [sys.executable, "-m", "patchclamp", "sae", "train", "--store", folder_store, "--site", "resid.1",
                "--latents", "256", "--architecture", architecture, "--k", "4", "--batch", "256", "--buffer", "2",
                "--steps", "500", "--aux-k", "8", "--dead-after", "3000", "--checkpoint-seconds", "0.2",
                "--model", model_folder, "--json", "--no-record", "--out", str(out)]

    done = subprocess.run(command(tmp_path / "whole"), capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    draw, kills, seen = random.Random(0), 0, set()
    while True:
        process = subprocess.Popen(command(tmp_path / "cut"), env=environment, stdout=subprocess.DEVNULL,
                                   stderr=subprocess.PIPE)
        before = [line["step"] for line in read_log(tmp_path / "cut")]
        while process.poll() is None and [line["step"] for line in read_log(tmp_path / "cut")] == before:
            time.sleep(0.01)  # training has begun
        time.sleep(draw.uniform(0.05, 0.6))
        if process.poll() is None and kills < 3:
            process.send_signal(signal.SIGKILL)
            kills += 1
            seen.add(len(list(read_log(tmp_path / "cut"))))
        process.communicate()
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL

    assert kills >= 2
    assert same(tensors(tmp_path / "whole"), tensors(tmp_path / "cut"))


def test_a_training_that_is_told_to_end_goes_on_from_there(store, tmp_path):
    """Whatever `checkpoint_seconds` says, nothing is lost, and the end is the same to the bit."""

    class Paused(BaseException):
        pass

    class Pausing(Silent):
        def track(self, items, description, total=None):
            for n, item in enumerate(items):
                if description == "training" and n == 7:
                    raise Paused
                yield item

    trained(store, tmp_path / "whole", steps=20)
    with pytest.raises(Paused):
        trained(store, tmp_path / "cut", steps=20, progress=Pausing())
    left = []

    class Counting(Silent):
        def track(self, items, description, total=None):
            left.extend([total] if description == "training" else [])
            yield from items

    trained(store, tmp_path / "cut", steps=20, progress=Counting())
    assert left == [13] and same(tensors(tmp_path / "whole"), tensors(tmp_path / "cut"))


def test_without_a_penalty_it_is_just_a_linear_layer(store, tmp_path):
    free = trained(store, tmp_path / "free", architecture="relu", l1=[0.0], latents=128, steps=400).autoencoders[0]
    held = trained(store, tmp_path / "held", architecture="relu", l1=[3.0], latents=128, steps=400).autoencoders[0]

    assert free.held_out.fvu < 0.05 < held.held_out.fvu
    assert held.held_out.l0 < free.held_out.l0 / 2


def test_the_schedule_rises_stays_and_falls():
    schedule = Schedule(steps=100, warm_up=0.1, decay=0.2)
    rates = [schedule.rate(step) for step in range(100)]

    assert rates[:10] == pytest.approx([0.1 * n for n in range(1, 11)])
    assert set(rates[10:81]) == {1.0}
    assert rates[-1] == pytest.approx(0.05)
    assert schedule.penalty(99) == 1.0
    assert Schedule(10, 0.0, 0.0).rate(0) == 1.0


def test_a_store_of_another_model_is_refused(store, tmp_path):
    with pytest.raises(SpecError, match="not of gpt2"):
        train_autoencoder(tiny_model("gpt2"), store=store, site="resid.1", out=str(tmp_path / "a"), **QUICK)


def test_another_training_in_the_same_folder_is_refused(store, tmp_path):
    trained(store, tmp_path / "a", steps=5)
    with pytest.raises(SpecError, match="holds another training: steps 5, not 6"):
        trained(store, tmp_path / "a", steps=6)


def test_a_damaged_checkpoint_and_one_of_another_shape_are_named(store, tmp_path, monkeypatch):
    with stopped_at(3, monkeypatch):
        trained(store, tmp_path / "a", steps=5, checkpoint_seconds=0)
    (place,) = (tmp_path / "a" / FOLDER).iterdir()
    held = {name: path for path in place.glob("*.safetensors") for name in load_file(path)}
    weights, metadata = read_tensors(held["0.W_enc"])
    save_file({"0.W_enc": weights["0.W_enc"][:, :-1].contiguous()}, held["0.W_enc"], metadata)
    with pytest.raises(FileError, match=r"no checkpoint of this training: 0.W_enc is \[64, 31\] there and \[64, 32\]"):
        trained(store, tmp_path / "a", steps=5)
    save_file({"0.W_enc": weights["0.W_enc"][:3].contiguous()}, held["0.W_enc"],
              {"DCP_SHARDING_INFO": json.dumps({"0.W_enc": {"saved_offsets": [61, 0]}})})
    with pytest.raises(FileError, match=r"a part of 0\.W_enc is missing"):
        trained(store, tmp_path / "a", steps=5)
    held["0.W_enc"].write_bytes(held["0.W_enc"].read_bytes()[:300])
    with pytest.raises(FileError, match="damaged or half-written"):
        trained(store, tmp_path / "a", steps=5)
    held["0.W_enc"].unlink()
    with pytest.raises(FileError, match=r"0\.W_enc is missing there"):
        trained(store, tmp_path / "a", steps=5)


def test_a_checkpoint_that_cannot_be_written_ends_the_training_with_a_word(store, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / FOLDER).write_text("a file in the way")
    with pytest.raises(StoreError, match="cannot write"):
        trained(store, tmp_path / "a", steps=5, checkpoint_seconds=0)


def test_a_checkpoint_that_was_never_finished_counts_for_nothing(store, tmp_path, monkeypatch):
    trained(store, tmp_path / "whole", steps=20)
    with stopped_at(7, monkeypatch):
        trained(store, tmp_path / "cut", steps=20, checkpoint_seconds=0)
    half = tmp_path / "cut" / FOLDER / "00000008"
    half.mkdir()
    (half / "shard-00001-model-00001-of-00018.safetensors").write_bytes(b"half")
    trained(store, tmp_path / "cut", steps=20, checkpoint_seconds=0)

    assert same(tensors(tmp_path / "whole"), tensors(tmp_path / "cut"))


def test_numbers_in_a_store_that_are_none_are_named(store, tmp_path):
    import shutil

    shutil.copytree(store, tmp_path / "s")
    path = shard_path(tmp_path / "s", 1)
    held, metadata = read_tensors(path)
    held["resid.1"][7, 0] = torch.inf
    save_file(held, path, {**metadata, "sha256": checksum(held)})
    with pytest.raises(RunError, match=r"row 7 of shard 1 .*NaN or infinite"):
        trained(str(tmp_path / "s"), tmp_path / "a")


@pytest.mark.parametrize(("changed", "says"), [
    ({"site": None}, "say with site which"),
    ({"site": "resid.0"}, "not resid.0"),
    ({"batch": 5000}, "fewer than one batch of 5000"),
    ({"k": [65]}, "k is 1 to 64"),
    ({"corpus": "x.txt"}, "either a store or a corpus"),
    ({"held_out": 0.95}, "would be held out"),
    ({"decoder": "folded"}, "for relu"),
    ({"skip_path": True}, "give output_site"),
    ({"prefixes": [4, 63]}, "end at the number of latents, 64"),
    ({"architecture": "relu", "l1": [-1.0]}, "l1 is 0 or more"),
])
def test_wrong_questions_are_refused(store, tmp_path, changed, says):
    with pytest.raises(InputError, match=says):
        trained(store, tmp_path / "a", **changed)
    assert not (tmp_path / "a" / FILE).exists()


def test_the_log_can_be_read_by_tensorboard(store, tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    result = trained(store, tmp_path / "a", steps=12, tensorboard=True)
    read = events.EventAccumulator(str(tmp_path / "a" / "tensorboard"))
    read.Reload()

    scalars = read.Scalars("a/fvu")
    assert [s.step for s in scalars] == result.autoencoders[0].curve_steps
    assert [s.value for s in scalars] == pytest.approx(result.autoencoders[0].curve_fvu, rel=1e-6)


def test_the_command_says_what_was_asked_for(folder_store, model_folder, tmp_path):
    command = [sys.executable, "-m", "patchclamp", "sae", "train", "--store", folder_store, "--site", "resid.1",
               "--latents", "64", "--architecture", "topk", "--k", "4", "--steps", "10", "--batch", "128", "--out",
               str(tmp_path / "a"), "--model", model_folder, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)["result"]

    assert result["steps"] == 10
    assert result["tokens_per_second"] > 0
    assert result["peak_memory_mb"] > 50
    assert result["path"] == str(tmp_path / "a")
    assert (tmp_path / "a" / FILE).is_file()
    assert json.loads((tmp_path / "a" / "record.json").read_text())["method"] == "sae.train"


def test_both_are_drawn_and_come_back_from_json(store, corpus, tmp_path):
    harvested = harvest(tiny_model("llama"), corpus=corpus, store=str(tmp_path / "s"), site=["resid.1"], **HARVEST)
    several = train_autoencoder(tiny_model("llama"), store=store, site="resid.1", out=str(tmp_path / "a"),
                                **{**QUICK, "k": [2, 4]}, steps=4)
    for record in (harvested, several):
        assert record.save(tmp_path / "chart.svg").read_text().startswith("<svg")
        assert Record.from_json(record.to_json()).to_json() == record.to_json()
        assert len(record.table())
