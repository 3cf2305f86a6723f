"""The toy, and a file of what it says."""

import pytest
from linear_toy import OTHER, TEMPLATE, linear_model, relation_file
from tiny import tiny_model


@pytest.fixture(scope="session")
def linear():
    return linear_model()


@pytest.fixture(scope="session")
def llama():
    return tiny_model("llama")


@pytest.fixture(scope="session")
def linear_file(linear, tmp_path_factory):
    return relation_file(linear, tmp_path_factory.mktemp("relations"), templates=[TEMPLATE, OTHER])
