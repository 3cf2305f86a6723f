"""An endpoint asked many questions: replies kept, failures that pass, failures that stay."""

import json

import pytest

from patchclamp.errors import ModelError
from patchclamp.evidence.endpoint import Endpoint
from patchclamp.evidence.method import Silent


def ask_all(one, texts):
    return one.ask_all(texts, 16, Silent(), "asking")


def test_replies_come_in_order_and_equal_questions_are_asked_once(endpoint):
    endpoint.reply = lambda asked: asked.upper()
    assert ask_all(Endpoint(endpoint.url, "m"), ["a", "b", "a"]) == ["A", "B", "A"]
    assert sorted(endpoint.asked) == ["a", "b"]


def test_kept_replies_are_not_asked_for_again(endpoint, tmp_path):
    endpoint.reply = lambda asked: asked.upper()
    file = tmp_path / "deep" / "replies.jsonl"
    ask_all(Endpoint(endpoint.url, "m", keep=file), ["a", "b"])
    assert ask_all(Endpoint(endpoint.url, "m", keep=file), ["b", "c"]) == ["B", "C"]
    assert sorted(endpoint.asked) == ["a", "b", "c"]
    assert ask_all(Endpoint(endpoint.url, "another", keep=file), ["a"]) == ["A"]
    assert len(endpoint.asked) == 4


def test_half_a_line_is_passed_over_and_not_written_on(endpoint, tmp_path):
    endpoint.reply = lambda asked: asked.upper()
    file = tmp_path / "replies.jsonl"
    ask_all(Endpoint(endpoint.url, "m", keep=file), ["a"])
    with file.open("a") as torn:
        torn.write('{"key": "half')
    ask_all(Endpoint(endpoint.url, "m", keep=file), ["a", "b"])
    ask_all(Endpoint(endpoint.url, "m", keep=file), ["a", "b"])
    assert sorted(endpoint.asked) == ["a", "b"]
    assert [json.loads(line)["reply"] for line in file.read_text().splitlines() if "half" not in line] == ["A", "B"]


def test_after_a_failure_the_rest_is_kept_and_the_error_says_so(endpoint, tmp_path):
    def reply(asked):
        if asked == "bad":
            endpoint.status = 400
        return asked.upper()

    endpoint.reply = reply
    file = tmp_path / "replies.jsonl"
    with pytest.raises(ModelError, match=r"failed to answer as 'm' \(400.* of 3 replies are kept"):
        ask_all(Endpoint(endpoint.url, "m", keep=file), ["a", "bad", "c"])
    endpoint.status, endpoint.reply = 200, lambda asked: asked.upper()
    assert ask_all(Endpoint(endpoint.url, "m", keep=file), ["a", "bad", "c"]) == ["A", "BAD", "C"]


def test_too_many_requests_are_waited_out(endpoint):
    """429 twice, then an answer."""
    calls = []

    def reply(asked):
        calls.append(asked)
        endpoint.status = 429 if len(calls) < 3 else 200
        return "yes"

    endpoint.reply = reply
    assert Endpoint(endpoint.url, "m", retries=4).ask("x") == "yes"
    assert len(calls) == 3


def test_the_key_goes_to_whom_it_is_for(monkeypatch):
    from patchclamp.evidence.endpoint import key_for, owns_the_key

    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    assert key_for("http://127.0.0.1:1/v1") == ""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-mine")
    assert key_for("http://127.0.0.1:1/v1") == "sk-mine"
    monkeypatch.setenv("OPENAI_BASE_URL", "https://api.example.com/v1/")
    assert key_for("https://api.example.com/v1") == "sk-mine" and key_for("http://127.0.0.1:1/v1") == ""
    assert owns_the_key("https://api.example.com/v1") and not owns_the_key("http://127.0.0.1:1/v1")
    monkeypatch.delenv("OPENAI_BASE_URL")
    assert not owns_the_key("https://api.example.com/v1")
