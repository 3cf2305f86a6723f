"""Model folders and GGUF files that cannot be read, or must not be, are refused with the reason and the remedy."""

import json

import pytest
import torch
import transformers as tf
from tiny import COMMON, tiny

from patchclamp.errors import ModelError, RunError, UnsupportedModel
from patchclamp.model.read import Options, explained, read_folder, read_gguf

PLAIN = Options()


def change_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_folder_without_config_is_no_model(folder):
    (folder / "config.json").unlink()
    with pytest.raises(ModelError, match=r"tiny-llama has no config.json"):
        read_folder(folder, PLAIN)


def test_an_adapter_is_to_be_merged_first(folder):
    (folder / "config.json").rename(folder / "adapter_config.json")
    with pytest.raises(ModelError, match="merge_and_unload"):
        read_folder(folder, PLAIN)


def test_a_folder_with_a_gguf_file_points_to_it(tmp_path, gguf_file):
    with pytest.raises(ModelError, match=r"load .*tiny.gguf itself"):
        read_folder(tmp_path, PLAIN)


@pytest.mark.parametrize("text", ["{", "[]", '{"model_type": 3}', "{}", ""])
def test_a_broken_config_is_an_error_of_the_folder(folder, text):
    (folder / "config.json").write_text(text)
    with pytest.raises(ModelError, match=r"config\.json"):
        read_folder(folder, PLAIN)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.pt", "last.ckpt"])
def test_pickled_weights_are_refused_with_a_way_to_convert_them(folder, name):
    (folder / "model.safetensors").rename(folder / name)
    with pytest.raises(ModelError, match=rf"{name}.*not read.*use_safetensors=False"):
        read_folder(folder, PLAIN)


def test_a_pickle_beside_safetensors_is_ignored(folder):
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04 not read")
    read_folder(folder, PLAIN)


def test_a_folder_without_weights_says_which_file_is_missing(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"no weights \(model.safetensors"):
        read_folder(folder, PLAIN)


@pytest.mark.parametrize("keep", [0, 4, 300, -1])
def test_safetensors_cut_short_are_damaged(folder, keep):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ModelError, match=r"model.safetensors is damaged or cut short"):
        read_folder(folder, PLAIN)


def test_a_missing_shard_is_named(folder):
    (folder / "model.safetensors").unlink()
    tiny("llama").save_pretrained(folder, max_shard_size="20KB")
    shard = sorted(folder.glob("model-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(ModelError, match=f"names {shard.name}, which is missing"):
        read_folder(folder, PLAIN)


def test_a_folder_without_tokenizer_is_refused(folder):
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match="has no tokenizer"):
        read_folder(folder, PLAIN)


def test_a_broken_tokenizer_is_an_error_of_the_folder(folder):
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match="Cannot read the tokenizer"):
        read_folder(folder, PLAIN)


def test_parameters_that_are_not_in_the_file_are_not_made_up(folder):
    change_config(folder, num_hidden_layers=4)
    with pytest.raises(ModelError, match=r"lacks the parameter model.layers.3.* and \d+ more"):
        read_folder(folder, PLAIN)


def test_weights_of_another_shape_are_refused(folder):
    change_config(folder, intermediate_size=64)
    shapes = r"holds the parameter model\.layers\.0\.mlp\.down_proj\.weight with the shape \[32, 48\], .* \[32, 64\]"
    with pytest.raises(ModelError, match=shapes):
        read_folder(folder, PLAIN)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (tf.BertConfig(**COMMON), "attends to both sides"),
        (tf.T5Config(d_model=8, num_layers=1, num_heads=1, d_ff=8), "encoder-decoder"),
        (tf.ViTConfig(num_hidden_layers=1), "no causal language model class"),
        (tf.LlamaConfig(architectures=["LlamaForSequenceClassification"]), "saved as LlamaForSequenceClass"),
    ],
)
def test_what_is_no_causal_language_model_is_unsupported(folder, config, reason):
    config.save_pretrained(folder)
    with pytest.raises(UnsupportedModel, match=reason):
        read_folder(folder, PLAIN)


def test_an_unknown_model_type_is_unsupported(folder):
    change_config(folder, model_type="llama99")
    with pytest.raises(UnsupportedModel, match=r"model_type 'llama99', which transformers .* does not know"):
        read_folder(folder, PLAIN)


def write_own_code(folder):
    """A model whose class comes as Python code in its folder: a Llama by another name."""
    (folder / "own.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own'\n"
        "class OwnForCausalLM(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    auto_map = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"}
    change_config(folder, model_type="own", auto_map=auto_map, architectures=["OwnForCausalLM"])


def test_code_that_comes_with_a_model_runs_only_when_asked_for(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    write_own_code(folder)
    with pytest.raises(ModelError, match=r"its own Python code.*--trust-remote-code"):
        read_folder(folder, PLAIN)
    hf, _ = read_folder(folder, Options(trust_remote_code=True))
    assert type(hf).__name__ == "OwnForCausalLM"


def test_running_out_of_memory_is_a_failed_run_not_a_wrong_input():
    with pytest.raises(RunError, match="smaller dtype"), explained("Cannot read x"):
        raise torch.OutOfMemoryError("no more")


@pytest.mark.parametrize("keep", [3, 100, 3000, 0.5, 0.99])
def test_a_gguf_file_cut_short_is_refused(gguf_file, keep):
    whole = gguf_file.read_bytes()
    gguf_file.write_bytes(whole[: int(keep * len(whole)) if keep < 1 else keep])
    with pytest.raises(ModelError, match=r"tiny.gguf"):
        read_gguf(gguf_file, PLAIN)


def test_another_file_named_gguf_is_not_taken_for_one(gguf_file):
    gguf_file.write_text("hello")
    with pytest.raises(ModelError, match="is not a GGUF file"):
        read_gguf(gguf_file, PLAIN)


def test_a_gguf_model_is_dense(gguf_file):
    hf, _ = read_gguf(gguf_file, PLAIN)
    assert {type(module) for module in hf.modules() if "Linear" in type(module).__name__} == {torch.nn.Linear}
