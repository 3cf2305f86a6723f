"""Tiny vision models of the real classes with random weights, as folders, and pictures for them."""

import json

import torch
import transformers as tf
from PIL import Image

SIDE = 28
VISION = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24,
          "image_size": SIDE, "patch_size": 7}
TEXT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 60,
        "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
MODELS = {
    "clip": lambda: tf.CLIPModel(tf.CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=8)),
    "clip-vision": lambda: tf.CLIPVisionModel(tf.CLIPVisionConfig(**VISION)),
    "siglip": lambda: tf.SiglipModel(tf.SiglipConfig(text_config=TEXT, vision_config=VISION)),
    "siglip-vision": lambda: tf.SiglipVisionModel(tf.SiglipVisionConfig(**VISION)),
    "vit": lambda: tf.ViTForImageClassification(tf.ViTConfig(**VISION)),
    "dinov2-registers": lambda: tf.Dinov2WithRegistersModel(tf.Dinov2WithRegistersConfig(**VISION,
                                                                                        num_register_tokens=3)),
    "resnet": lambda: tf.ResNetForImageClassification(tf.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic", downsample_in_first_stage=False)),
}
DOWN = {"clip": "vision_model.encoder.layers", "clip-vision": "encoder.layers", "siglip": "vision_model.encoder.layers",
        "siglip-vision": "encoder.layers", "vit": "vit.layers", "dinov2-registers": "encoder.layer"}
"""Where the blocks are; the second linear layer of each is `mlp.fc2`."""
BEFORE_PATCHES = {"clip": 1, "clip-vision": 1, "siglip": 0, "siglip-vision": 0, "vit": 1, "dinov2-registers": 4}


def build(name):
    """The Hugging Face model, the same at every call."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MODELS[name]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.2)
    return model


def save(name, folder):
    """The model as a folder with its image processor."""
    build(name).save_pretrained(folder)
    processor = {"image_processor_type": "CLIPImageProcessor", "do_resize": True, "size": {"shortest_edge": SIDE},
                 "do_center_crop": True, "crop_size": {"height": SIDE, "width": SIDE}, "do_rescale": True,
                 "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def picture(seed, side=SIDE):
    """A picture of coloured noise."""
    pixels = torch.randint(0, 256, (side, side, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


def fill(folder, concepts=("cat", "dog", "owl"), forms=("photo", "text"), each=4, side=SIDE):
    """A folder of pictures of noise, `each` of every concept and form."""
    seed = 0
    for concept in concepts:
        for form in forms:
            place = folder / concept / form
            place.mkdir(parents=True, exist_ok=True)
            for number in range(each):
                picture(seed := seed + 1, side).save(place / f"{number}.png")
    return folder
