"""Affine transports: against the logit lens and arithmetic by hand, on disk and back, and for the wrong model."""

import json
import pickle

import pytest
import torch
from tiny import tiny_model, wrap

from patchclamp.errors import FileError, InputError
from patchclamp.forward.streams import streams
from patchclamp.lenses.transport import Transport, TransportConfig, load_transport

PROMPT = tuple(range(10, 18))


def random_transport(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (model.n_layers, model.d_model, model.d_model)
    return Transport(TransportConfig.of(model, "linear_tuned_lens", {}), torch.randn(shape, generator=generator) * 0.1,
                     torch.randn(shape[:2], generator=generator))


def tuned_lens_project_folder(folder, model, **changes):
    """What tuned-lens 0.2.0's `TunedLens.save` writes: a module list's state and a config."""
    folder.mkdir()
    layers = torch.nn.ModuleList([torch.nn.Linear(model.d_model, model.d_model) for _ in range(model.n_layers)])
    torch.save(layers.state_dict(), folder / "params.pt")
    config = {"base_model_name_or_path": "theirs", "d_model": model.d_model, "num_hidden_layers": model.n_layers,
              "bias": True, "base_model_revision": None, "unembed_hash": None, "lens_type": "linear_tuned_lens"}
    (folder / "config.json").write_text(json.dumps(config | changes))
    return layers


@pytest.mark.parametrize("name", ["llama", "gemma2", "granite", "cohere", "gpt2", "opt-projected"])
def test_maps_of_zero_are_the_logit_lens(name):
    model = tiny_model(name)
    (place_SD,) = streams(model, [PROMPT])
    with torch.no_grad():
        assert torch.equal(Transport.identity(model).logits(model)(place_SD), model.anatomy.unembed(place_SD))


def test_each_layer_is_moved_by_its_own_map_and_the_last_stays():
    model = tiny_model("llama")
    lens = random_transport(model)
    places_NSD = torch.stack(streams(model, [PROMPT, PROMPT[:3]]))
    moved_NSD = lens(places_NSD)
    for layer in range(model.n_layers):
        for place in range(2):
            h_D = places_NSD[place, layer]
            expected_D = h_D + lens.weight[layer] @ h_D + lens.bias[layer]
            torch.testing.assert_close(moved_NSD[place, layer], expected_D)
    assert torch.equal(moved_NSD[:, -1], places_NSD[:, -1])


def test_what_was_saved_comes_back(tmp_path):
    model = tiny_model("llama")
    lens = random_transport(model)
    back = load_transport(lens.save(tmp_path / "lens"), model)
    assert torch.equal(back.weight, lens.weight) and torch.equal(back.bias, lens.bias)
    assert back.config == lens.config


def test_a_lens_of_the_tuned_lens_project_is_read(tmp_path):
    """Its translator i is a linear module added to `hidden_states[i]`, 0 being the embeddings."""
    model = tiny_model("gpt2")
    layers = tuned_lens_project_folder(tmp_path / "theirs", model)
    with torch.no_grad():
        hidden = model.hf(torch.tensor([PROMPT]), output_hidden_states=True).hidden_states
        moved_SD = load_transport(tmp_path / "theirs", model)(streams(model, [PROMPT])[0])
        for index, layer in enumerate(layers):
            h_D = hidden[index][0, -1]
            torch.testing.assert_close(moved_SD[index], h_D + layer(h_D))


def test_a_lens_without_constants_is_read(tmp_path):
    model = tiny_model("gpt2")
    layers = tuned_lens_project_folder(tmp_path / "theirs", model, bias=False)
    torch.save({k: v for k, v in layers.state_dict().items() if "weight" in k}, tmp_path / "theirs" / "params.pt")
    assert not load_transport(tmp_path / "theirs", model).bias.any()


class Bomb:
    def __reduce__(self):
        return exec, ("raise SystemError('code in a pickle was run')",)


@pytest.mark.parametrize("protocol", ["torch", "plain"])
def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(tmp_path, protocol):
    model = tiny_model("gpt2")
    tuned_lens_project_folder(tmp_path / "theirs", model)
    path = tmp_path / "theirs" / "params.pt"
    if protocol == "torch":
        torch.save({"0.weight": Bomb()}, path)
    else:
        path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(FileError, match="cannot be read"):
        load_transport(tmp_path / "theirs", model)


def test_a_lens_for_other_weights_is_refused_by_name(tmp_path):
    folder = random_transport(tiny_model("llama")).save(tmp_path / "lens")
    with pytest.raises(InputError, match=r"made for llama and does not fit mistral: weights \w{12}, not \w{12}"):
        load_transport(folder, tiny_model("mistral"))


def test_width_and_number_of_blocks_are_named_when_they_differ(tmp_path):
    model = tiny_model("gpt2")
    tuned_lens_project_folder(tmp_path / "theirs", model, d_model=64, num_hidden_layers=5)
    with pytest.raises(InputError, match="width 64, not 32; number of blocks 5, not 3"):
        load_transport(tmp_path / "theirs", model)


def test_another_unembedding_is_refused(tmp_path):
    model = tiny_model("gpt2")
    tuned_lens_project_folder(tmp_path / "theirs", model, unembed_hash="0" * 64)
    with pytest.raises(InputError, match="hash of the unembedding 000000000000, not"):
        load_transport(tmp_path / "theirs", model)


def test_another_commit_is_refused_but_a_branch_name_says_nothing(tmp_path):
    hf = tiny_model("gpt2").hf
    model = wrap(hf, "gpt2")
    model.revision = "a" * 40
    tuned_lens_project_folder(tmp_path / "branch", model, base_model_revision="main")
    tuned_lens_project_folder(tmp_path / "other", model, base_model_revision="b" * 40)
    load_transport(tmp_path / "branch", model)
    with pytest.raises(InputError, match=r"commit b+, not a+"):
        load_transport(tmp_path / "other", model)


def test_a_folder_without_a_lens_says_how_to_make_one(tmp_path):
    with pytest.raises(FileError, match="lens tuned train"):
        load_transport(tmp_path, tiny_model("gpt2"))


def test_a_config_that_is_none_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(FileError, match="base_model_name_or_path"):
        load_transport(tmp_path, tiny_model("gpt2"))


def test_a_missing_layer_is_named(tmp_path):
    model = tiny_model("gpt2")
    layers = tuned_lens_project_folder(tmp_path / "theirs", model)
    torch.save(layers[:2].state_dict(), tmp_path / "theirs" / "params.pt")
    with pytest.raises(FileError, match="map of layer 1 is missing"):
        load_transport(tmp_path / "theirs", model)


def test_maps_that_are_no_numbers_are_refused(tmp_path):
    model = tiny_model("llama")
    lens = random_transport(model)
    lens.weight[1, 0, 0] = torch.nan
    with pytest.raises(FileError, match="NaN"):
        load_transport(lens.save(tmp_path / "lens"), model)
