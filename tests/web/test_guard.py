"""Who may ask what: host, origin, token, size, and what pages are forbidden."""

import subprocess
import sys

import pytest
from starlette.testclient import TestClient
from web_requests import TOKEN

from patchclamp.errors import SpecError
from patchclamp.web.app import make_app
from patchclamp.web.guard import ADMISSION, GUESSES, policy
from patchclamp.web.serve import serve

SAFE = {"x-patchclamp-token": TOKEN}
ASK = {"json": {"ref": "nothing"}}


@pytest.fixture
def guarded(bench):
    with TestClient(make_app(bench, TOKEN), base_url="http://127.0.0.1:8765", raise_server_exceptions=False) as made:
        yield made


@pytest.mark.parametrize("host", ["127.0.0.1:8765", "localhost", "LOCALHOST:1", "[::1]:8765"])
def test_this_machines_names_are_answered(guarded, host):
    assert guarded.get("/api/status", headers={"host": host}).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "", "localhost.evil.example:8765", "[::2]",
                                  "["])
def test_other_names_are_refused(guarded, host):
    """A name of another site that points at this machine would else read all of it."""
    assert guarded.get("/api/status", headers={"host": host}).status_code == 403


def test_a_change_needs_the_token_of_our_pages(guarded):
    assert guarded.post("/api/models/unload", **ASK).status_code == 403
    assert guarded.post("/api/models/unload", headers={"x-patchclamp-token": "guessed"}, **ASK).status_code == 403
    assert guarded.post("/api/models/unload", headers=SAFE, **ASK).status_code == 200
    assert guarded.delete("/api/runs/abc").status_code == 403
    assert TOKEN in guarded.get("/models").text


def test_another_sites_page_may_not_ask_for_anything(guarded):
    headers = SAFE | {"origin": "https://evil.example"}
    assert guarded.post("/api/models/unload", headers=headers, **ASK).status_code == 403
    own = SAFE | {"origin": "http://127.0.0.1:8765"}
    assert guarded.post("/api/models/unload", headers=own, **ASK).status_code == 200


def test_a_request_has_a_largest_size(guarded):
    assert guarded.post("/api/files", headers=SAFE | {"content-length": "99999999"}, content=b"x").status_code == 413

    def endless():
        for _ in range(40):
            yield b"x" * 1_000_000

    assert guarded.post("/api/ask", headers=SAFE, content=endless()).status_code >= 400


@pytest.mark.parametrize("path", ["/", "/models", "/api/status", "/static/base.js", "/nothing"])
def test_no_answer_lets_a_page_load_or_evaluate_anything_else(guarded, path):
    answer = guarded.get(path)
    assert answer.headers["content-security-policy"] == policy()
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "unsafe" not in policy() and "default-src 'none'" in policy()


def test_where_others_can_reach_the_server_every_browser_brings_its_token_once(bench):
    with TestClient(make_app(bench, TOKEN, "let-me-in-please"), base_url="http://box.example:8765") as other:
        assert other.get("/models").status_code == 401
        assert other.get("/models", params={"token": "wrong"}).status_code == 401
        admitted = other.get("/models", params={"token": "let-me-in-please"})
        assert admitted.status_code == 200 and "HttpOnly; SameSite=Strict" in admitted.headers["set-cookie"]
        assert other.get("/models").status_code == 200  # the cookie it was given


def test_what_an_earlier_server_gave_a_browser_does_not_lock_it_out(bench):
    with TestClient(make_app(bench, TOKEN, "let-me-in-please"), base_url="http://box.example:8765") as other:
        other.cookies.set(ADMISSION, "of a server that ended", domain="box.example")
        assert other.get("/models").status_code == 401
        assert other.get("/models", params={"token": "let-me-in-please"}).status_code == 200
        assert other.get("/models").status_code == 200


def test_tokens_cannot_be_guessed_without_end_and_who_is_in_stays_in(bench):
    with TestClient(make_app(bench, TOKEN, "let-me-in-please"), base_url="http://box.example:8765") as other:
        inside = other.get("/models", params={"token": "let-me-in-please"}).cookies
        other.cookies.clear()
        guesses = [other.get("/models", params={"token": f"guess {i}"}).status_code for i in range(GUESSES + 1)]
        assert guesses == [401] * GUESSES + [429]
        assert other.get("/models", params={"token": "let-me-in-please"}).status_code == 429
        elsewhere = TestClient(other.app, base_url="http://box.example:8765", client=("192.0.2.7", 50000))
        assert elsewhere.get("/models", params={"token": "let-me-in-please"}).status_code == 200
        other.cookies.update(inside)
        assert other.get("/models").status_code == 200


@pytest.mark.parametrize(("fields", "said"), [
    ({"host": "0.0.0.0"}, "give --token"), ({"host": "0.0.0.0", "token": "short"}, "at least 8"),
    ({"host": "127.0.0.1", "port": 99999}, "a port is a number from 0 to 65535"),
])
def test_options_that_cannot_be(fields, said):
    with pytest.raises(SpecError, match=said):
        serve(browser=False, **fields)


def test_a_port_that_is_taken_is_said_to_be(tmp_path, monkeypatch):
    import socket

    monkeypatch.setenv("PATCHCLAMP_RUNS", str(tmp_path))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(SpecError, match="cannot listen on"):
            serve(browser=False, port=taken.getsockname()[1])


def test_an_allocation_beyond_the_machines_memory_fails_where_it_is_asked_for():
    """In a process of its own, since the limit stays."""
    code = ("import os, torch; from patchclamp.web.serve import limit_memory; limit_memory()\n"
            "most = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')\n"
            "try: torch.empty(most, dtype=torch.uint8)\n"
            "except RuntimeError as error: print(error)\n")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert "can't allocate memory" in done.stdout
