"""Vision models of the real classes: what is read is what plain hooks see, and what cannot be read is refused."""

import numpy as np
import pytest
import torch
from seeing import BEFORE_PATCHES, DOWN, SIDE, build, picture, save
from tiny import tiny, tiny_tokenizer
from torch import nn

import patchclamp as pc
from patchclamp.errors import FileError, InputError, ModelError, SiteError, UnsupportedModel
from patchclamp.neurons.vision import pooled

PICTURES = [picture(seed) for seed in range(3)]


@pytest.fixture(autouse=True)
def own_hash_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("PATCHCLAMP_CACHE", str(tmp_path_factory.mktemp("cache")))


def pixels_by_hand():
    """The processor's arithmetic on pictures that need no resizing: [3, 3, SIDE, SIDE]."""
    array = np.stack([np.asarray(one) for one in PICTURES]).astype(np.float64)
    return torch.tensor((array / 255 - 0.5) / 0.25).permute(0, 3, 1, 2).float()


def values_by_hand(name, block):
    """The input of a block's second linear layer, [3, T, F], from the Hugging Face model itself."""
    model, seen = build(name), {}
    down = model.get_submodule(f"{DOWN[name]}.{block}.mlp.fc2")
    down.register_forward_pre_hook(lambda module, args: seen.update(value=args[0]))
    with torch.no_grad():
        getattr(model, "vision_model", model)(pixel_values=pixels_by_hand())
    return seen["value"]


@pytest.mark.parametrize("name", DOWN)
def test_a_towers_neurons_are_what_a_plain_hook_sees(name, tmp_path):
    model = pc.load_vision(save(name, tmp_path / name))
    assert model.layers.usual == ("neuron.0", "neuron.1", "neuron.2")
    patches = values_by_hand(name, 1)[:, BEFORE_PATCHES[name]:]
    assert patches.shape[1] == (SIDE // 7) ** 2
    read = model.read(PICTURES, ["neuron.1"])["neuron.1"]
    assert read.shape == (3, 64 if name.startswith("dinov2") else 24)
    torch.testing.assert_close(read, patches.amax(1), atol=1e-5, rtol=1e-5)  # two preparations round differently
    torch.testing.assert_close(model.read(PICTURES, ["neuron.1"], "mean")["neuron.1"], patches.mean(1),
                               atol=1e-5, rtol=1e-5)


def test_the_class_token_is_read_where_there_is_one(tmp_path):
    model = pc.load_vision(save("clip", tmp_path / "clip"))
    torch.testing.assert_close(model.read(PICTURES, ["neuron.2"], "class")["neuron.2"], values_by_hand("clip", 2)[:, 0],
                               atol=1e-5, rtol=1e-5)
    with pytest.raises(InputError, match="no class token"):
        pc.load_vision(save("siglip", tmp_path / "siglip")).read(PICTURES, ["neuron.2"], "class")


def test_the_stream_is_the_blocks_output(tmp_path):
    model, hf, seen = pc.load_vision(save("vit", tmp_path / "vit")), build("vit"), {}
    hf.vit.layers[2].register_forward_hook(lambda m, a, out: seen.update(value=out if torch.is_tensor(out) else out[0]))
    with torch.no_grad():
        hf(pixel_values=pixels_by_hand())
    torch.testing.assert_close(model.read(PICTURES, ["resid.2"])["resid.2"], seen["value"][:, 1:].amax(1),
                               atol=1e-5, rtol=1e-5)


def test_a_networks_channels_are_the_stages_maps(tmp_path):
    model, hf, seen = pc.load_vision(save("resnet", tmp_path / "resnet")), build("resnet"), {}
    assert model.layers.usual == ("channel.resnet.encoder.stages.0", "channel.resnet.encoder.stages.1")
    hf.resnet.encoder.stages[1].register_forward_hook(lambda m, a, out: seen.update(value=out))
    with torch.no_grad():
        hf(pixel_values=pixels_by_hand())
    layer = model.layers.usual[1]
    torch.testing.assert_close(model.read(PICTURES, [layer])[layer], seen["value"].amax((2, 3)), atol=1e-5, rtol=1e-5)


def test_reading_in_batches_is_reading_one_by_one(tmp_path):
    model = pc.load_vision(save("clip-vision", tmp_path / "clip"))
    many = [picture(seed) for seed in range(19)]  # more than one batch
    read = model.read(many, ["neuron.0"])["neuron.0"]
    alone = torch.cat([model.read([one], ["neuron.0"])["neuron.0"] for one in many])
    torch.testing.assert_close(read, alone, atol=1e-5, rtol=1e-5)  # a product of matrices rounds by its batch


def test_any_torch_network_is_wrapped_and_overwritten_values_are_kept():
    """ReLU in place writes over the convolution's output: what is read is what the convolution gave."""
    net = nn.Sequential(
        nn.Conv2d(3, 5, 3), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 7))
    model = pc.VisionModel(net, size=16, layers=["0", "4"])
    assert model.layers.usual == ("channel.0", "channel.4")
    with torch.no_grad():
        pixels = torch.stack([model.prepare(one) for one in PICTURES])
        maps = net[0](pixels)
        read = model.read(PICTURES, ["channel.0", "channel.4"])
        assert maps.amin() < 0 and torch.equal(read["channel.0"], maps.amax((2, 3)))
        assert torch.equal(read["channel.4"], net(pixels))


def test_left_out_layers_are_the_outermost_sequence_of_maps():
    net = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), nn.Conv2d(4, 6, 3), nn.AdaptiveMaxPool2d(1))
    assert pc.VisionModel(net, size=16).layers.usual == ("channel.0", "channel.1")


def test_pooling_leaves_out_what_stands_before_the_patches():
    tokens = torch.tensor([[[9.0], [1.0], [3.0]]])
    assert pooled(tokens, 1, "max") == 3
    assert pooled(tokens, 1, "mean") == 2
    assert pooled(tokens, 1, "class") == 9


class Block(nn.Module):
    """Without attention, and built as torchvision builds it: the second linear layer is `mlp.3`."""

    def __init__(self):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(6, 9), nn.GELU(), nn.Dropout(), nn.Linear(9, 6))

    def forward(self, tokens):
        return tokens + self.mlp(tokens)


class Tower(nn.Module):
    def __init__(self, merge=False):
        super().__init__()
        self.patches, self.class_token = nn.Conv2d(3, 6, 4, stride=4), nn.Parameter(torch.randn(1, 1, 6))
        self.first, self.second, self.merge = nn.Sequential(Block(), Block()), nn.Sequential(Block(), Block()), merge

    def forward(self, pixels):
        patches = self.patches(pixels).flatten(2).transpose(1, 2)
        tokens = self.first(torch.cat([self.class_token.expand(len(pixels), 1, 6), patches], 1))
        return self.second(tokens[:, ::2] if self.merge else tokens)


def test_a_tower_of_another_library_is_read():
    tower = Tower()
    model = pc.VisionModel(tower, size=16)
    assert model.layers.usual == ("neuron.0", "neuron.1", "neuron.2", "neuron.3")
    assert model.layers.has_class_token
    with torch.no_grad():
        patches = tower.patches(torch.stack([model.prepare(one) for one in PICTURES])).flatten(2).transpose(1, 2)
        by_hand = tower.first[0].mlp[:2](patches).amax(1)
    torch.testing.assert_close(model.read(PICTURES, ["neuron.0"])["neuron.0"], by_hand)


def test_a_tower_that_merges_its_patches_is_refused():
    with pytest.raises(UnsupportedModel, match=r"block 2 has values of shape .* for 16 patches"):
        pc.VisionModel(Tower(merge=True), size=16)


def test_a_unit_is_a_layer_and_a_number(tmp_path):
    layers = pc.load_vision(save("clip", tmp_path / "clip")).layers
    assert layers.unit("neuron.2.23", "clip") == ("neuron.2", 23)
    wrong = {"neuron.2.24": r"24 units \(0 to 23\)", "neuron.3.0": "no layer 'neuron.3'.*neuron.0", "": "names no unit",
             "neuron.x": "names no unit", "channel.layer4.0": "no layer 'channel.layer4'"}
    for site, said in wrong.items():
        with pytest.raises(SiteError, match=said):
            layers.unit(site, "clip")


def test_a_path_with_numbers_in_it_is_not_confused_with_a_unit():
    net = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3)), nn.ReLU())
    layers = pc.VisionModel(net, size=16).layers
    assert layers.unit("channel.0.1", "net") == ("channel.0", 1)
    assert layers.unit("channel.0.1.4", "net") == ("channel.0.1", 4)


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.relu, self.second = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)

    def forward(self, pixels):
        return self.relu(self.second(self.relu(self.first(pixels))))


@pytest.mark.parametrize(("layers", "said"), [(["relu"], "runs 2 times"), (["third"], "is no module")])
def test_a_layer_without_one_value_is_refused(layers, said):
    with pytest.raises(SiteError, match=said):
        pc.VisionModel(Twice(), size=16, layers=layers)


def test_a_module_that_takes_no_pictures_is_refused():
    with pytest.raises(UnsupportedModel, match="does not run on pixels"):
        pc.VisionModel(nn.Linear(5, 3), size=16)
    with pytest.raises(InputError, match="size"):
        pc.VisionModel(Twice())


def test_provenance_is_of_the_files_until_weights_change(tmp_path):
    import hashlib

    folder = save("clip", tmp_path / "clip")
    model = pc.load_vision(folder)
    assert (model.name, model.ref, model.revision) == ("clip", str(folder), None)
    assert model.weights_hash == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    with torch.no_grad():
        next(model.module.parameters()).add_(1)
    assert model.weights_hash != hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def test_a_language_models_folder_is_no_vision_model(tmp_path):
    folder = tmp_path / "llama"
    tiny("llama").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    with pytest.raises(UnsupportedModel, match="no vision model: LlamaForCausalLM takes input_ids"):
        pc.load_vision(folder)
    with pytest.raises(UnsupportedModel, match="is a language model"):
        pc.load_vision("smollm2-135m-instruct")


def test_folders_that_are_not_whole(tmp_path):
    folder = save("clip", tmp_path / "clip")
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(ModelError, match="preprocessor_config"):
        pc.load_vision(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="no weights"):
        pc.load_vision(folder)
    with pytest.raises(ModelError, match=r"no config\.json"):
        pc.load_vision(tmp_path)
    with pytest.raises(ModelError, match="There is no folder"):
        pc.load_vision(tmp_path / "nowhere")


def test_a_picture_that_cannot_be_read_is_named(tmp_path):
    model = pc.load_vision(save("clip", tmp_path / "clip"))
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\nno")
    with pytest.raises(FileError, match=r"bad\.png cannot be read as a picture"):
        model.read([tmp_path / "bad.png"], ["neuron.0"])
