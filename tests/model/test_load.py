"""Loading by name: what a ref may be, what is refused, and what identifies the weights."""

import copy
import hashlib
import time
from pathlib import Path

import pytest
import torch
from tiny import tiny, tiny_tokenizer

from patchclamp.errors import ModelError, RunError
from patchclamp.model import load as load_module
from patchclamp.model.check import resolve
from patchclamp.model.load import check_device, check_dtype, load_weights
from patchclamp.model.loaded import Loaded


def test_a_folder_loads_with_the_same_weights_in_eval_mode(folder):
    loaded = load_weights(folder)
    prompt = torch.tensor([[5, 6, 7]])
    assert torch.equal(loaded.hf(prompt).logits, tiny("llama")(prompt).logits)
    assert not loaded.hf.training
    assert loaded.tokenizer.encode("w1 w2") == tiny_tokenizer().encode("w1 w2")
    assert (loaded.name, loaded.ref, loaded.revision) == ("tiny-llama", str(folder), None)
    assert loaded.folder == folder


def test_a_gguf_file_loads_and_is_named_after_the_file(gguf_file):
    loaded = load_weights(gguf_file)
    assert loaded.name == "tiny"
    assert loaded.hf.dtype == torch.float32
    assert loaded.weights_hash == hashlib.sha256(gguf_file.read_bytes()).hexdigest()


def test_nothing_is_written_to_the_terminal(folder, capfd):
    load_weights(folder)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("asked", "meant"),
    [("smollm2", "smollm2-135m-instruct"), ("Gemma-3-270M", "gemma-3-270m"), ("gemma3-270m", "gemma-3-270m")],
)
def test_a_mistyped_embedded_name_is_put_right(asked, meant):
    with pytest.raises(ModelError, match=f"Did you mean the embedded model '{meant}'"):
        load_weights(asked)


@pytest.mark.parametrize(
    ("ref", "message"),
    [
        ("", "name is empty"),
        ("./nowhere", "no folder or file ./nowhere"),
        ("models/llama/7b", "no folder or file"),
        ("weights.gguf", "no folder or file weights.gguf"),
        ("two words", "neither an embedded model .* nor a Hugging Face id"),
    ],
)
def test_what_is_nowhere_is_said_to_be_nowhere(ref, message):
    with pytest.raises(ModelError, match=message):
        load_weights(ref)


def test_weights_without_their_folder_are_refused(folder):
    with pytest.raises(ModelError, match=r"give its folder, .*tiny-llama"):
        load_weights(folder / "model.safetensors")


def test_a_revision_belongs_to_a_hub_id_only(folder):
    with pytest.raises(ModelError, match="revision 'main' is for Hugging Face ids"):
        load_weights(folder, revision="main")


def test_the_dtype_is_float32_unless_asked_otherwise(folder):
    copy.deepcopy(tiny("llama")).half().save_pretrained(folder)
    assert load_weights(folder).hf.dtype == torch.float32
    assert load_weights(folder, dtype="auto").hf.dtype == torch.float16
    assert load_weights(folder, dtype=torch.bfloat16).hf.dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", ["float23", "int8", torch.int32, "torch.float32", None])
def test_a_wrong_dtype_names_the_right_ones(dtype):
    with pytest.raises(ModelError, match=r"choose one of float32, bfloat16, float16, float64 or auto"):
        check_dtype(dtype)


@pytest.mark.parametrize(
    ("device", "message"),
    [("gpu", "not a device"), ("cuda:99", "no cuda:99: torch sees"), ("meta", "holds no numbers")],
)
def test_a_device_this_machine_lacks_is_refused(device, message):
    with pytest.raises(ModelError, match=message):
        check_device(device)


def test_device_and_device_map_exclude_each_other(folder):
    with pytest.raises(ModelError, match="both given"):
        load_weights(folder, device="cpu", device_map="auto")


def test_a_device_map_is_passed_on(folder):
    assert load_weights(folder, device_map={"": "cpu"}).hf.device == torch.device("cpu")
    with pytest.raises(ModelError, match="device_map"):
        load_weights(folder, device_map="everywhere")


def test_weights_that_are_offloaded_are_refused(folder, tmp_path):
    """What lies on the disk is on the device `meta` here, where nothing can be computed from it."""
    places = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu",
              "model.layers.0": "cpu", "model.layers.1": "disk", "model.layers.2": "cpu"}
    loaded = load_weights(folder, device_map=places)
    with pytest.raises(ModelError, match=r"9 parameters .*model\.layers\.1\.\S+\) are not in memory: device_map"):
        resolve(loaded.hf)


def test_attention_is_chosen_by_name(folder):
    assert load_weights(folder, attn_implementation="eager").hf.config._attn_implementation == "eager"
    with pytest.raises(ModelError, match="attn_implementation"):
        load_weights(folder, attn_implementation="magic")


def test_an_embedded_name_wins_over_a_folder_of_that_name(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder.rename(tmp_path / "gemma-3-270m")
    monkeypatch.setattr(load_module, "fetch", lambda name, progress: (_ for _ in ()).throw(ModelError("fetched")))
    with pytest.raises(ModelError, match="fetched"):
        load_weights("gemma-3-270m")
    assert load_weights("./gemma-3-270m").name == "gemma-3-270m"


def test_the_weights_hash_is_the_sum_of_the_one_file(folder):
    expected = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert load_weights(folder).weights_hash == expected


def test_the_weights_hash_of_shards_is_the_sum_of_their_sums(folder):
    (folder / "model.safetensors").unlink()
    tiny("llama").save_pretrained(folder, max_shard_size="20KB")
    shards = sorted(folder.glob("*.safetensors"))
    lines = "".join(f"{hashlib.sha256(s.read_bytes()).hexdigest()}  {s.name}\n" for s in shards)
    assert len(shards) > 1
    assert load_weights(folder).weights_hash == hashlib.sha256(lines.encode()).hexdigest()


def test_weights_that_changed_on_disk_since_are_not_vouched_for(folder):
    loaded = load_weights(folder)
    with (folder / "model.safetensors").open("ab") as file:
        file.write(b"more")
    with pytest.raises(RunError, match="changed on disk"):
        _ = loaded.weights_hash


def test_a_model_made_in_memory_is_identified_by_its_tensors():
    def in_memory(name: str) -> Loaded:
        return Loaded(tiny(name), tiny_tokenizer(), ref=name, name=name, revision=None, folder=None)

    assert in_memory("llama").weights_hash == in_memory("llama").weights_hash
    assert in_memory("llama").weights_hash != in_memory("mistral").weights_hash


@pytest.mark.weights
@pytest.mark.parametrize("name", ["smollm2-135m-instruct", "gemma-3-270m"])
def test_an_embedded_model_loads_from_the_cache_in_about_a_second(name):
    load_weights(name)
    start = time.process_time()
    loaded = load_weights(name)
    # 1.3 s of processor time for Gemma alone on the machine (docs/benchmarks.md), 2.4 s with busy neighbours;
    # converting again or reading a gigabyte for its hash takes longer than that
    assert time.process_time() - start < 4.0
    assert loaded.name == name
    assert loaded.hf.dtype == torch.float32
    assert isinstance(loaded.folder, Path)


@pytest.mark.weights
def test_the_hash_of_embedded_weights_is_known_without_reading_them():
    loaded = load_weights("gemma-3-270m")
    start = time.process_time()
    assert len(loaded.weights_hash) == 64
    assert time.process_time() - start < 0.1
