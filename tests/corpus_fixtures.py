"""A corpus of random words, and a tiny model that other processes can load."""

import random

import pytest
from tiny import tiny, tiny_tokenizer


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "text.txt"
    words = random.Random(0)
    path.write_text("\n\n".join(" ".join(f"w{words.randrange(97)}" for _ in range(40)) for _ in range(100)))
    return str(path)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "tiny-llama"
    tiny("llama").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)
