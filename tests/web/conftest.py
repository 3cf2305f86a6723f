"""A workbench on a tiny local model, in a folder of its own."""

import pytest
from playwright.sync_api import sync_playwright
from starlette.testclient import TestClient
from tiny import tiny, tiny_tokenizer
from web_browser import CHROMIUM, tab_of
from web_requests import TOKEN, finished

from patchclamp.evidence.store import Store
from patchclamp.web.app import make_app
from patchclamp.web.bench import Workbench


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """A tiny Llama with its tokenizer, as a user would have it on disk."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny("llama").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def bench(tmp_path, tiny_folder, monkeypatch):
    """A workbench whose default model is the tiny one, ready."""
    made = Workbench(Store(tmp_path / "runs"), models=(str(tiny_folder),))
    monkeypatch.chdir(made.files)
    made.start()
    made.wait()
    return made


@pytest.fixture
def client(bench):
    """A browser's requests."""
    with TestClient(make_app(bench, TOKEN), base_url="http://127.0.0.1:8765",
                    headers={"x-patchclamp-token": TOKEN}, raise_server_exceptions=False) as made:
        yield made


@pytest.fixture
def ask(client):
    """Ask a question and wait for what came out: the record's id, or the job that failed."""

    def asked(method, model, **values):
        texts = {key.replace("_", "-"): value if isinstance(value, list) else [str(value)]
                 for key, value in values.items()}
        answer = client.post("/api/ask", json={"values": {"method": [method], "model": [str(model)], **texts}})
        assert answer.status_code == 200, answer.text
        return answer.json()["record"] or finished(client, answer.json()["job"]["id"])["record"]

    return asked


@pytest.fixture(scope="session")
def browser():
    """Debian's Chromium."""
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def page(browser, server, request):
    """A tab on the module's own server."""
    with tab_of(browser, server, request.node.name) as tab:
        yield tab
