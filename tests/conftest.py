"""Fixtures shared by all tests."""

import threading

import pytest
import torch
from endpoint import Endpoint
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


@pytest.fixture
def endpoint(monkeypatch):
    """A chat-completions server on a free port of this machine."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.001)
    with Endpoint() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """A folder with a small vision model trained on digits and pictures it has not seen."""
    from patchclamp.evidence.method import Silent
    from patchclamp.tour.sight import make_digits_model

    folder = tmp_path_factory.mktemp("digits")
    make_digits_model(folder, Silent())
    return folder
