"""A small vision model that names the digits, made in half a minute, and pictures it has not seen.

It is trained to give an object, an outline and a word one name, with as little activity as will do (an L1 penalty), so
that few units share the work. That it then has units for a name is no discovery: it shows what such a
unit looks like and how one is put to the test, on a model small enough to be made here. Whether a large model, which
nobody told that a face and a name belong together, has such units is asked with the same command.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from patchclamp.tour.pictures import CONCEPTS, SIDE, Picture, pictures, save_pictures

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from patchclamp.evidence.method import Progress

MODEL, HELD_OUT = "digits-vision", "digits"
"""Names of the model's folder and of the folder of pictures it has not seen."""
EACH, HELD_OUT_EACH = 120, 16
"""Pictures of a concept in a form: to train on, and to ask about."""
ROUNDS, BATCH, RATE = 8, 64, 6e-3
SPARSE = 0.015
"""What the sum of the last channels' means costs, beside the cross entropy."""
MEAN, STD = 0.5, 0.25
"""Of the colours, as the image processor takes them."""


def make_digits_model(folder: Path, progress: Progress, seed: int = 0) -> None:
    """Train the model, save it as `folder/digits-vision`, and write to `folder/digits` 480 pictures it has not
    seen. The same seed makes the same model on the same machine."""
    save_pictures(pictures(HELD_OUT_EACH, seed + 1), folder / HELD_OUT)
    save_model(trained(untrained(seed), pictures(EACH, seed + 2), progress, seed), folder / MODEL)


def untrained(seed: int = 0) -> PreTrainedModel:
    """A residual network of three stages (16, 32 and 64 channels, 80,000 weights) with random weights."""
    import torch
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(
        embedding_size=16, hidden_sizes=[16, 32, 64], depths=[1, 1, 1], layer_type="basic",
        id2label=dict(enumerate(CONCEPTS)), label2id={name: i for i, name in enumerate(CONCEPTS)})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return ResNetForImageClassification(config).eval()


def trained(model: Any, some: list[Picture], progress: Progress, seed: int = 0) -> PreTrainedModel:
    """The same model after it has learned to name these pictures: AdamW, one cycle of the learning rate, cross entropy
    and an L1 penalty on the means of the last channels."""
    import torch
    from torch.nn.functional import cross_entropy

    pixels, names = as_tensors(some)
    batches = len(pixels) // BATCH
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=ROUNDS * batches)
    order = torch.Generator().manual_seed(seed)
    model.train()
    for _ in progress.track(range(ROUNDS), "training a small vision model", ROUNDS):
        for rows in torch.randperm(len(pixels), generator=order)[: batches * BATCH].view(batches, BATCH):
            optimizer.zero_grad()
            means = model.resnet(pixels[rows]).pooler_output
            loss = cross_entropy(model.classifier(means), names[rows]) + SPARSE * means.flatten(1).sum(1).mean()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def as_tensors(some: list[Picture]) -> tuple[Tensor, Tensor]:
    """Pixels [N, 3, SIDE, SIDE], as the saved image processor makes them, and the numbers of the concepts [N]."""
    import torch

    pixels = torch.from_numpy(np.stack([np.asarray(one.image) for one in some])).permute(0, 3, 1, 2).float() / 255
    return (pixels - MEAN) / STD, torch.tensor([CONCEPTS.index(one.concept) for one in some])


def save_model(model: PreTrainedModel, folder: Path) -> None:
    """Write model and image processor as an ordinary Hugging Face folder."""
    from patchclamp.model.read import quiet

    with quiet():
        model.save_pretrained(folder)
    processor = {
        "image_processor_type": "ViTImageProcessor", "do_resize": True, "size": {"height": SIDE, "width": SIDE},
        "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": [MEAN] * 3,
        "image_std": [STD] * 3,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor, indent=1) + "\n")
