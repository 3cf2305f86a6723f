import json
from types import SimpleNamespace

import pytest

from patchclamp.cli import run
from patchclamp.errors import UnsupportedModel
from patchclamp.model import embedded
from patchclamp.model.check import Identity


@pytest.fixture
def checked(monkeypatch):
    """A model that is proved."""
    identities = [
        Identity("Σ heads == attn", 1.2e-7, 2e-5, True, "block 3"),
        Identity("down_proj(neuron) == mlp", float("nan"), 2e-5, True, "block 0"),
    ]
    model = SimpleNamespace(identities=identities, family="Llama", name="tiny", n_layers=2, d_model=8)
    monkeypatch.setattr(run, "load_model", lambda options: model)


def test_the_embedded_models_are_listed(command, monkeypatch):
    monkeypatch.setattr(embedded, "is_cached", lambda name: name.startswith("gemma"))
    lines = command("models", "list")[1].splitlines()
    assert [line.split()[:2] for line in lines[1:]] == [
        ["smollm2-135m-instruct", "no"],
        ["gemma-3-270m", "yes"],
    ]
    assert [m["cached"] for m in json.loads(command("models", "list", "--json")[1])] == [False, True]


def test_fetch_prints_the_folder_alone(command, monkeypatch, tmp_path):
    def fetch(name, progress):
        progress("Downloading")
        return tmp_path / name

    monkeypatch.setattr(embedded, "fetch", fetch)
    assert command("models", "fetch", "gemma-3-270m") == (0, f"{tmp_path}/gemma-3-270m\n", "Downloading\n")


def test_an_unknown_embedded_model_is_wrong_input(command):
    code, _, err = command("models", "fetch", "gema-3-270m")
    assert code == 2 and "did you mean 'gemma-3-270m'" in err


def test_a_check_prints_every_identity(command, checked):
    code, out, _ = command("models", "check", "tiny")
    assert code == 0
    assert "1.2e-07" in out and "down_proj(neuron) == mlp" in out
    assert out.splitlines()[-1] == "tiny is addressed as Llama: 2 blocks, width 8."


def test_a_check_as_json_is_strict(command, checked):
    report = json.loads(command("models", "check", "tiny", "--json")[1])
    assert (report["ok"], report["identities"][1]["error"]) == (True, None)


def test_an_unsupported_model_is_wrong_input(command, monkeypatch):
    def refuse(options):
        raise UnsupportedModel("Mamba cannot be addressed safely")

    monkeypatch.setattr(run, "load_model", refuse)
    assert command("models", "check", "mamba") == (2, "", "error: Mamba cannot be addressed safely\n")
