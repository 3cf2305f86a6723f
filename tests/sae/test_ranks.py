"""Several processes train what one would, survive each other, and go on in any number."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import ranked
import torch
from ranked import CASES, learned, results
from safetensors.torch import load_file
from tiny import tiny_model

from patchclamp.corpus.windows import shard_path
from patchclamp.errors import SpecError
from patchclamp.forward import load
from patchclamp.forward.autoencoder import FILE, Autoencoder
from patchclamp.sae.checkpoints import Checkpoints
from patchclamp.sae.harvest import harvest
from patchclamp.sae.parameters import BLOCK, first_parameters
from patchclamp.sae.ranks import Ranks, greatest
from patchclamp.sae.train import train_autoencoder

ENOUGH = 1e-5
"""Of the largest number of a tensor: sums of other parts differ in the last digit, which Adam may enlarge where a
gradient nearly vanishes."""
HARVEST = {"length": 16, "windows": 8, "shard": 40, "tokens": 4000}


def torchrun(processes, *words):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--master-port", "0",
         "--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", *words],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert float((ours[name] - tensor).abs().max()) <= ENOUGH * max(float(tensor.abs().max()), 1e-9), name


@pytest.fixture(scope="module")
def folder_store(corpus, model_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("store") / "s"
    harvest(load(model_folder), corpus=corpus, store=str(folder), site=["resid.1"], **HARVEST)
    return str(folder)


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """What 2 and 4 processes learned, all cases in one start: latents × data shares."""
    folder = tmp_path_factory.mktemp("together")
    for processes, shares in ((2, "1"), (4, "1,2")):
        run = torchrun(processes, ranked.__file__, str(folder), shares)
        assert (run.communicate(timeout=300), run.returncode)[1] == 0
    return folder


@pytest.fixture(scope="module")
def alone():
    return {case: results(*learned(case)) for case in CASES}


@pytest.mark.parametrize("shares", ["2x1", "4x1", "2x2"])
@pytest.mark.parametrize("case", CASES)
def test_several_processes_learn_what_one_does(together, alone, shares, case):
    assert_same(load_file(together / f"{shares} {case}.safetensors"), alone[case])


def test_each_share_draws_its_part_of_one_dictionary():
    asked = replace(ranked.recipe("topk"), latents=2 * BLOCK)
    whole = first_parameters(asked, 3, 5, False, Ranks())
    shares = [first_parameters(asked, 3, 5, False, Ranks(latents=4, rank=n)) for n in range(4)]

    for name in ("W_enc", "W_dec"):
        assert torch.equal(torch.cat([share[name] for share in shares]), whole[name])


def test_of_equal_candidates_the_first_are_taken_and_never_more_than_asked_for():
    values_BN = torch.tensor([[1.0, 3.0, 2.0, 2.0, 2.0, 0.0], [5.0, 5.0, 5.0, 5.0, 5.0, 5.0]])
    keep_BN = greatest(values_BN, 3)

    assert keep_BN.tolist() == [[False, True, True, True, False, False], [True, True, True, False, False, False]]


@pytest.mark.parametrize(("latents", "batch", "says"), [
    (34, 64, "34 latents cannot be divided among 4 processes; ask for 32 or 36"),
    (3, 64, "ask for 4"), (32, 63, "63 rows of a batch cannot be divided among 2 data shares; ask for 62 or 64"),
])
def test_what_cannot_be_divided_is_refused_with_what_could(latents, batch, says):
    with pytest.raises(SpecError, match=says):
        Ranks(latents=4, data=2).check(latents, batch)


def test_data_shares_need_processes(folder_store, tmp_path):
    with pytest.raises(SpecError, match="torchrun --nproc-per-node 2"):
        train_autoencoder(tiny_model("llama"), store=folder_store, out=str(tmp_path / "a"), data_parallel=2)


def training(store, model, out, *more, latents=256):
    return ["-m", "patchclamp", "sae", "train", "--store", store, "--latents", str(latents), "--k", "4", "--batch",
            "256", "--buffer", "2", "--steps", "60", "--seed", "3", "--model", model, "--no-record", "--json", "--out",
            str(out), *more]


@pytest.mark.parametrize("case", ranked.HANDED_ON)
def test_a_checkpoint_goes_from_two_processes_to_four_to_one(together, case):
    states = {}
    for processes in (2, 4):
        checkpoints = Checkpoints(together / f"from {processes} {case}", Ranks())
        states[processes] = learned(case, steps=0)[0].state()
        checkpoints.read(checkpoints.at(ranked.STEPS), states[processes])

    assert all(torch.equal(states[2][name], states[4][name]) for name in states[2])
    assert_same(states[4], learned(case)[0].state())


def test_a_process_that_does_not_answer_is_given_up():
    run = torchrun(2, ranked.__file__, "silent", "-")
    said = run.communicate(timeout=90)[1]

    assert run.returncode == 1
    assert "RankLost: another process died or fell silent" in said


def test_a_rank_that_dies_ends_the_run_and_one_goes_on_as_though_nothing_had_been(folder_store, model_folder, tmp_path):
    """kill -9 of one of two processes, in the midst of training with a checkpoint after each step."""
    asked = {"store": folder_store, "latents": 256, "k": [4], "batch": 256, "buffer": 2, "steps": 60, "seed": 3}
    train_autoencoder(load(model_folder), out=str(tmp_path / "whole"), **asked)
    checkpoints = Checkpoints(tmp_path / "cut", Ranks())
    run = torchrun(2, *training(folder_store, model_folder, tmp_path / "cut", "--checkpoint-seconds", "0"))
    while (checkpoints.newest() or 0) < 5 and run.poll() is None:
        time.sleep(0.01)
    assert run.poll() is None, run.communicate()
    (second,) = (child for child in psutil.Process(run.pid).children() if child.environ()["RANK"] == "1")
    second.kill()
    out, said = run.communicate(timeout=60)
    left = checkpoints.newest()
    result = train_autoencoder(load(model_folder), out=str(tmp_path / "cut"), **asked).result

    assert (run.returncode, out) == (1, "")
    assert "error: a process died or fell silent at step" in said
    assert f"the checkpoint of step {left} goes on: run the same command" in said
    assert left < 60 == result.steps
    assert_same(load_file(tmp_path / "cut" / FILE), load_file(tmp_path / "whole" / FILE))
    lines = (tmp_path / "cut" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [*range(60)]


def test_several_processes_say_one_thing(folder_store, corpus, model_folder, tmp_path):
    """Harvesting, training and what is wrong: the first process speaks."""
    common = ["--model", model_folder, "--no-record", "--json"]
    runs = {
        "harvest": torchrun(2, "-m", "patchclamp", "sae", "harvest", corpus, "--store", str(tmp_path / "s"), "--site",
                            "resid.1", "--length", "16", "--windows", "8", "--shard", "40", "--tokens", "4000",
                            *common),
        "train": torchrun(2, *training(folder_store, model_folder, tmp_path / "a", "--data-parallel", "2")),
        "wrong": torchrun(2, *training(folder_store, model_folder, tmp_path / "b", latents=255)),
    }
    said = {name: run.communicate(timeout=120) for name, run in runs.items()}

    assert json.loads(said["harvest"][0])["result"]["rows"] == 3750
    for shard in range(7):
        ours, theirs = (load_file(shard_path(Path(folder), shard)) for folder in (tmp_path / "s", folder_store))
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    result = json.loads(said["train"][0])["result"]
    assert (result["processes"], result["steps"], len(result["autoencoders"])) == (2, 60, 1)
    assert Autoencoder.load(tmp_path / "a").n_latents == 256
    assert (runs["wrong"].returncode, said["wrong"][0]) == (1, "")  # torchrun's; the process's own is 2
    assert said["wrong"][1].count("error: 255 latents cannot be divided among 2 processes; ask for 254 or 256") == 1
    assert "exitcode  : 2" in said["wrong"][1]
