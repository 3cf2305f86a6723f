"""Vector files: what is saved is read back, others' are refused with a reason, GGUF control vectors go both ways."""

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny import tiny_model

from patchclamp.errors import FileError, SpecError
from patchclamp.vectors.vector import Setting, SteeringVector, VectorInfo, load_vector


@pytest.fixture
def vector():
    model = tiny_model("llama")
    info = VectorInfo(
        name="test",
        model=model.name,
        weights_hash=model.weights_hash,
        how="mean",
        prompts=("abc",),
        add=Setting(sites=("resid.1",), strength=2.5),
    )
    return SteeringVector(info, {f"resid.{layer}": torch.randn(model.d_model) for layer in range(model.n_layers)})


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[site], second[site]) for site in first)


def test_a_saved_vector_is_read_back(tmp_path, vector):
    found = load_vector(vector.save(tmp_path / "v.safetensors"), tiny_model("llama"))
    assert found.info == vector.info
    assert same(found.directions, vector.directions)


def test_sites_come_back_in_the_order_of_blocks(tmp_path, vector):
    many = SteeringVector(vector.info, {f"resid.{layer}": torch.ones(4) for layer in (10, 2, 0)})
    assert list(load_vector(many.save(tmp_path / "v.safetensors")).directions) == ["resid.0", "resid.2", "resid.10"]


def test_a_gguf_control_vector_goes_both_ways(tmp_path, vector):
    found = load_vector(vector.save(tmp_path / "v.gguf"), tiny_model("llama"))
    assert same(found.directions, vector.directions)
    assert found.info.how == "control vector"


def test_the_gguf_file_is_what_others_read(tmp_path, vector):
    """Tensor `direction.L`, architecture and model hint, as repeng's reader wants them."""
    reader = gguf.GGUFReader(vector.save(tmp_path / "v.gguf"))
    assert bytes(reader.get_field("general.architecture").parts[-1]) == b"controlvector"
    tensors = {t.name: t.data for t in reader.tensors}
    assert np.array_equal(tensors["direction.1"], vector.directions["resid.1"].numpy())


def test_gguf_holds_directions_after_blocks_only(tmp_path, vector):
    heads = SteeringVector(vector.info, {"head.0.1": torch.ones(8)})
    with pytest.raises(SpecError, match="after blocks"):
        heads.save(tmp_path / "v.gguf")
    assert not list(tmp_path.iterdir())


def test_a_vector_of_other_weights_is_refused(tmp_path, vector):
    path = vector.with_info(weights_hash="0" * 64).save(tmp_path / "v.safetensors")
    with pytest.raises(SpecError, match="whose weights are not those"):
        load_vector(path, tiny_model("llama"))


def test_a_vector_of_another_width_is_refused(tmp_path, vector):
    wide = SteeringVector(vector.info, {"resid.0": torch.ones(7)})
    with pytest.raises(SpecError, match="width 7"):
        load_vector(wide.save(tmp_path / "v.safetensors"), tiny_model("llama"))


def test_a_vector_of_a_deeper_model_is_refused(tmp_path, vector):
    deep = SteeringVector(vector.info, {"resid.40": vector.directions["resid.0"]})
    with pytest.raises(SpecError, match="blocks"):
        load_vector(deep.save(tmp_path / "v.safetensors"), tiny_model("llama"))


def test_a_file_that_is_no_vector_says_so(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "other.safetensors")
    (tmp_path / "text.safetensors").write_text("hello")
    (tmp_path / "text.gguf").write_text("hello")
    for name, said in (
        ("other.safetensors", "is no vector"),
        ("text.safetensors", "cannot be read|can be read"),
        ("text.gguf", "not a GGUF"),
        ("none.safetensors", "does not exist"),
    ):
        with pytest.raises(FileError, match=said):
            load_vector(tmp_path / name)


def test_a_missing_direction_is_named(vector):
    with pytest.raises(SpecError, match=r"no direction at resid.9; it has them at resid.0"):
        vector.at(["resid.9"])
