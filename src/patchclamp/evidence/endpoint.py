"""A language model that is asked: behind an OpenAI-compatible endpoint, with patience, its replies kept."""

from __future__ import annotations

import json
import os
import re
import textwrap
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from patchclamp.errors import ModelError
from patchclamp.evidence.method import Progress

if TYPE_CHECKING:
    from openai import OpenAIError

PARALLEL = 4
RETRIES = 2
PLAIN_URL = re.compile(r"(?i)https?://(\[[\da-f:.]+\]|[^\s/?#@:\[\]]+)(:(?P<port>\d{1,5}))?(/[^\s?#]*)?")
LONGEST = 1024
"""Most tokens of a reply: room for a model that thinks before it answers, an end for one that rambles."""


class Asked(Protocol):
    """Whoever answers questions with texts."""

    name: str

    def ask_all(self, texts: Sequence[str], longest: int, progress: Progress, description: str) -> list[str]:
        """A reply to each text, in order."""
        ...


def owns_the_key(url: str) -> bool:
    """Whether OPENAI_BASE_URL says that the environment's key, OPENAI_API_KEY, is for this endpoint."""
    owner = os.environ.get("OPENAI_BASE_URL", "").strip().rstrip("/")
    return bool(owner) and url.rstrip("/") == owner


def key_for(url: str) -> str:
    """The environment's key for an endpoint that a person named: that of its owner, if one is set, or else any."""
    is_for_another = bool(os.environ.get("OPENAI_BASE_URL")) and not owns_the_key(url)
    return "" if is_for_another else os.environ.get("OPENAI_API_KEY", "")


class Endpoint:
    """A model behind an OpenAI-compatible endpoint: vLLM, llama.cpp, Ollama, OpenAI and others.

    `url` is the API's base, e.g. http://localhost:11434/v1; `key` defaults to the environment's (`key_for`);
    `timeout` is in seconds, for each attempt; after a failure that may pass (no connection, too many requests, a
    server's error) it tries again `retries` times, waiting longer each time. `keep`: a file in which replies are kept,
    so that no question is asked twice, in this run or another. `extra`: tokens that a reply may have beyond what was
    asked for, where the model thinks first. Raises ModelError, here and from every request; its text
    never holds the key.
    """

    def __init__(
        self, url: str, model: str, *, key: str | None = None, timeout: float = 60.0, retries: int = RETRIES,
        keep: Path | None = None, extra: int = 0,
        who: str = "The model",
    ) -> None:
        from openai import OpenAI

        self.url, self.name, self.timeout, self.retries, self.who = check_url(url), model, timeout, retries, who
        self.extra = extra
        self._key = (key or key_for(self.url)).strip()
        if not (self._key.isascii() and self._key.isprintable()):
            raise ModelError(f"{who}'s API key (OPENAI_API_KEY) holds characters no key has; copy it again.")
        try:
            self._client = OpenAI(base_url=self.url, api_key=self._key or "none", timeout=timeout, max_retries=retries)
        except Exception as error:  # of the HTTP library, which differs between versions of the client
            raise ModelError(f"No connection to {self.url} can be set up ({self._gist(error)}).") from None
        self.kept = Kept(keep) if keep else None

    def check(self) -> None:
        """Ask one tiny question, so that a wrong address, model or key is found before any work is done, and see that
        replies can be kept."""
        if self.kept is not None:
            self.kept.prepare()
        self._request("Reply with the word yes.", 16)

    def ask(self, text: str, longest: int = LONGEST) -> str:
        """The reply, at temperature 0."""
        if self.kept is None:
            return self._request(text, longest)
        key = sha256(json.dumps([self.url, self.name, longest, text]).encode()).hexdigest()
        known = self.kept.get(key)
        if known is not None:
            return known
        reply = self._request(text, longest)
        return self.kept.put(key, reply) if reply.strip() else reply

    def ask_all(self, texts: Sequence[str], longest: int, progress: Progress, description: str) -> list[str]:
        """A reply to each text, in order; equal texts are asked once. If one fails the others are still waited for, and
        kept, before the error is raised, which says where."""
        distinct = list(dict.fromkeys(texts))
        failures: list[ModelError] = []

        def one(text: str) -> str | None:
            if failures:
                return None
            try:
                return self.ask(text, longest)
            except ModelError as error:
                failures.append(error)
                return None

        with ThreadPoolExecutor(PARALLEL) as pool:
            replies = list(progress.track(pool.map(one, distinct), description, len(distinct)))
        if failures:
            done = sum(reply is not None for reply in replies)
            kept = f" {done} of {len(distinct)} replies are kept; the same command goes on from there."
            raise ModelError(f"{failures[0]}{kept if self.kept else ''}")
        answers = dict(zip(distinct, replies, strict=True))
        return [answers[text] or "" for text in texts]

    def _request(self, text: str, longest: int) -> str:
        from openai import OpenAIError

        try:
            completion: Any = self._client.chat.completions.create(
                model=self.name, messages=[{"role": "user", "content": text}], temperature=0,
                max_tokens=longest + self.extra,
            )
            return str(completion.choices[0].message.content or "")
        except OpenAIError as error:
            raise ModelError(f"{self.who} at {self.url} {self._fault(error)}.") from None  # the cause may hold the key
        except (ValueError, TypeError, AttributeError, IndexError):
            raise ModelError(f"{self.who} at {self.url} gave no chat completion; its address has to be the base of an "
                             "OpenAI-compatible API, which usually ends in /v1.") from None

    def _fault(self, error: OpenAIError) -> str:
        from openai import APIConnectionError, APITimeoutError

        code = getattr(error, "status_code", None)
        if isinstance(error, APITimeoutError):
            return (f"gave no answer within {self.timeout:g} s, {self.retries + 1} times; allow more or take a smaller "
                    "model")
        if isinstance(error, APIConnectionError):
            return f"cannot be reached ({self._gist(error.__cause__ or error)}); see that it runs at that host and port"
        if code in (401, 403):
            fault = "refuses the API key" if self._key else "wants an API key, and none is set"
            return f"{fault} ({code}); set OPENAI_API_KEY to one that may use {self.name!r}"
        advice = "; the address usually ends in /v1, and <address>/models lists the models" if code == 404 else ""
        return f"failed to answer as {self.name!r} ({code}: {self._gist(error)}){advice}"

    def _gist(self, error: BaseException) -> str:
        body = getattr(error, "body", None)
        said = body.get("message", body) if isinstance(body, dict) else body
        text = str(said or error) or type(error).__name__
        return textwrap.shorten(text.replace(self._key, "(key)") if self._key else text, 200, placeholder=" …")


class Kept:
    """Replies in a file, one JSON object a line, written as they come. For several threads, and files that a killed run
    has left with half a line at their end."""

    def __init__(self, file: Path) -> None:
        self.file, self._lock = file, threading.Lock()
        self._known: dict[str, str] = {}
        self._begin = ""
        if file.is_file():
            text = file.read_text(encoding="utf-8", errors="replace")
            self._begin = "" if text.endswith("\n") else "\n"
            for line in text.split("\n"):
                try:
                    row = json.loads(line)
                    self._known[row["key"]] = row["reply"]
                except (ValueError, KeyError, TypeError):  # the line that was being written when a run was ended
                    continue

    def prepare(self) -> None:
        """See that the file can be written. ModelError if not."""
        self._append("")

    def get(self, key: str) -> str | None:
        return self._known.get(key)

    def put(self, key: str, reply: str) -> str:
        """Keep a reply, and return it."""
        with self._lock:
            self._known[key] = reply
            self._append(self._begin + json.dumps({"key": key, "reply": reply}) + "\n")
            self._begin = ""
        return reply

    def _append(self, text: str) -> None:
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with self.file.open("a", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            raise ModelError(f"Replies cannot be kept in {self.file}: {error.strerror}.") from error


def check_url(url: str) -> str:
    """`url` without blanks around it; ModelError unless it is an http or https address with no password or query."""
    plain = PLAIN_URL.fullmatch(url.strip())
    if plain and 0 < int(plain["port"] or 80) < 2**16:
        return url.strip()
    shown = re.sub(r"//.*@|\?.*", "…", url)
    raise ModelError(f"{shown!r} is no plain http or https address, such as http://localhost:11434/v1; "
                     "a key goes into OPENAI_API_KEY, not into the address.")


def marked(asked: str, texts: dict[str, str]) -> str:
    """What is asked, and the texts between their markers."""
    tag = sha256(json.dumps(texts).encode()).hexdigest()[:12]
    parts = [f"[{name} {tag}]\n{text}\n[end of {name} {tag}]" for name, text in texts.items()]
    return "\n\n".join((asked, *parts)).encode(errors="replace").decode()
