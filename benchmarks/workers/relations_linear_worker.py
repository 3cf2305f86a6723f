"""linear-relational's Jacobians, by its `train_lre` on one prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from linear_relational import Prompt
from linear_relational.training.train_lre import train_lre
from timed_common import Way, load_folder, serve
from transformers import AutoTokenizer


def build(setup: dict[str, Any]) -> dict[str, Way]:
    model = load_folder(setup["folder"])
    tokenizer = AutoTokenizer.from_pretrained(setup["folder"])
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    assert tokenizer(setup["text"])["input_ids"] == setup["ids"], "another tokenization"
    prompt = Prompt(setup["text"], setup["answer"], subject=setup["subject"])

    def train(layers: Sequence[int]) -> torch.Tensor:
        made = [train_lre(model, tokenizer, "model.layers.{num}", "relation", layer, len(model.model.layers) - 1,
                          [prompt], object_aggregation="first_token") for layer in layers]
        return torch.stack([one.weight for one in made])

    return {"linear-relational": train}


if __name__ == "__main__":
    serve(("torch", "transformers", "linear-relational"), build)
