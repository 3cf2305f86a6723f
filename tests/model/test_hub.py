"""A Hugging Face id is looked up in the local cache first; the Hub is asked only for what is not there whole."""

import shutil
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub.errors import RepositoryNotFoundError

from patchclamp.errors import ModelError
from patchclamp.model import hub
from patchclamp.model.hub import choose_files, find_on_hub
from patchclamp.model.load import load_weights

COMMIT = "c" * 40
TOP = ["config.json", "model.safetensors", "tokenizer.json", "README.md"]


@pytest.fixture
def snapshot(folder, tmp_path, monkeypatch):
    """The tiny model in a Hugging Face cache, as `org/tiny` at one commit."""
    repository = tmp_path / "hub" / "models--org--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return shutil.copytree(folder, repository / "snapshots" / COMMIT)


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr(hub.HfApi, "model_info", refuse)


def test_a_cached_id_loads_without_network_and_knows_its_commit(snapshot, no_network):
    loaded = load_weights("org/tiny")
    assert (loaded.name, loaded.revision, loaded.folder) == ("org/tiny", COMMIT, snapshot)


@pytest.mark.parametrize("gone", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_half_cached_id_needs_the_hub(snapshot, no_network, gone):
    (snapshot / gone).unlink()
    with pytest.raises(ModelError, match=r"org/tiny is not in the local .* cache.*Connect to the network"):
        find_on_hub("org/tiny", None)


def test_another_revision_needs_the_hub(snapshot, no_network):
    with pytest.raises(ModelError, match="org/tiny at revision 'v2'"):
        find_on_hub("org/tiny", "v2")


def test_an_id_of_an_embedded_model_points_to_it(no_network):
    with pytest.raises(ModelError, match="embedded model 'smollm2-135m-instruct'"):
        load_weights("HuggingFaceTB/SmolLM2-135M-Instruct")


def test_an_id_that_the_hub_does_not_know(monkeypatch):
    def unknown(*args, **kwargs):
        raise RepositoryNotFoundError("404", response=SimpleNamespace(headers={}, request=None))

    monkeypatch.setattr(hub.HfApi, "model_info", unknown)
    with pytest.raises(ModelError, match="has no model 'org/none', or it is private"):
        find_on_hub("org/none", None)


def test_only_what_a_load_needs_is_downloaded(snapshot, monkeypatch):
    (snapshot / "model.safetensors").unlink()
    names = [*TOP, "pytorch_model.bin", "consolidated.safetensors", "original/model.safetensors", "own.py"]
    asked = {}

    def download(ref, **keywords):
        if keywords.get("local_files_only"):
            return str(snapshot)
        asked.update(keywords)
        return str(snapshot)

    info = SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in names])
    monkeypatch.setattr(hub.HfApi, "model_info", lambda *args, **keywords: info)
    monkeypatch.setattr(hub, "snapshot_download", download)
    assert find_on_hub("org/tiny", None) == (snapshot, COMMIT)
    assert asked["allow_patterns"] == ["config.json", "model.safetensors", "tokenizer.json"]


def test_code_is_downloaded_only_when_it_may_run():
    assert "own.py" not in choose_files("org/x", [*TOP, "own.py"], trust_remote_code=False)
    assert "own.py" in choose_files("org/x", [*TOP, "own.py"], trust_remote_code=True)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["config.json", "pytorch_model.bin"], r"no safetensors weights, only a pickle \(pytorch_model.bin\)"),
        (["config.json"], "no safetensors weights. Look for"),
        (["model-q4.gguf"], "GGUF files: download one"),
        (["model.safetensors"], "no config.json"),
    ],
)
def test_a_repository_without_usable_weights_is_refused_before_the_download(names, message):
    with pytest.raises(ModelError, match=message):
        choose_files("org/x", names, trust_remote_code=False)


def test_a_cached_model_that_reads_no_text_needs_no_tokenizer(snapshot, no_network):
    (snapshot / "tokenizer.json").unlink()
    assert find_on_hub("org/tiny", None, needs_tokenizer=False) == (snapshot, COMMIT)
