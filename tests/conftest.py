"""Fixtures shared by all tests."""

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("patchclamp", deadline=None, max_examples=60)
settings.load_profile("patchclamp")


@pytest.fixture(scope="session")
def smollm2():
    """The default embedded model."""
    from patchclamp.forward import load

    return load("smollm2-135m-instruct")


@pytest.fixture(scope="session")
def gemma():
    """The second embedded model."""
    from patchclamp.forward import load

    return load("gemma-3-270m")
