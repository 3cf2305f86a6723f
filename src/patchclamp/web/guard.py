"""What a request must bring and what every answer forbids a page: the server is for the person at this machine.

A page of another site may make a browser send requests to 127.0.0.1. It cannot read a page of ours, so it lacks the
token that every change asks for; and under a name of its own that it points at this machine, the host is not ours.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
import time
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs, urlsplit

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

LOOPBACK = ("127.0.0.1", "localhost", "::1")
SAFE = ("GET", "HEAD")
FOREIGN = (b"cross-site", b"same-site")
"""What a browser says of a request that a page of another site makes."""
CLIENT, ADMISSION = "patchclamp-client", "patchclamp-admission"
"""Cookies: which browser it is, and that it once gave the token it was asked for."""
GUESSES, ADDRESSES = 30, 1000
"""Wrong tokens a minute from one address, after which a token lets nobody in from there until the minute is over; who
is in stays in. Of so many addresses that is remembered."""
NAMELESS = "nameless"
"""All clients together that bring no name of this server's."""
TOKEN_HEADER = b"x-patchclamp-token"
IMPORT_MAP = '{"imports": {"vega-util": "/static/vega-util.js"}}'
"""Where the vendored interpreter's one import is found."""


def policy() -> str:
    """The content-security policy: nothing but this server's own files, no evaluated code."""
    allowed = base64.b64encode(hashlib.sha256(IMPORT_MAP.encode()).digest()).decode()
    return "; ".join((
        "default-src 'none'", f"script-src 'self' 'sha256-{allowed}'", "style-src 'self'", "img-src 'self' data: blob:",
        "connect-src 'self'", "font-src 'self'", "base-uri 'none'", "form-action 'self'", "frame-ancestors 'none'"))


HEADERS: tuple[tuple[bytes, bytes], ...] = (
    (b"content-security-policy", policy().encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
)


class Guard:
    """ASGI middleware that checks host, origin, token and size before anything else sees a request."""

    def __init__(self, app: App, token: str, admission: str | None = None, largest: int = 32_000_000) -> None:
        """`token`: what a change has to bring. `admission`: what a browser has to give once, where others than this
        machine can reach the server; it may then have any name, since a browser shows what it was given to that name
        alone. `largest`: bytes of a body."""
        self.app, self.token = app, token
        self.admission, self.largest = admission, largest
        self._guessed: dict[str, deque[float]] = {}
        self._secret = secrets.token_bytes(32)
        """What clients' names are signed with; unlike the token no page carries it."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = dict(scope["headers"])
        cookies = _cookies(headers.get(b"cookie", b""))
        wrong = self._wrong(scope, headers, cookies)
        if wrong is not None:
            return await _refuse(send, *wrong)
        name = cookies.get(CLIENT, "")
        is_ours = hmac.compare_digest(self._signed(name.partition(".")[0]).encode(), name.encode())
        new = [] if is_ours else [_cookie(CLIENT, self._signed(secrets.token_urlsafe(12)))]
        if self.admission is not None and not self._was_admitted(cookies):
            new.append(_cookie(ADMISSION, self._proof(), "Lax"))  # a link in a mail leads here, too
        scope["client_name"] = name if is_ours else NAMELESS

        async def answer(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *HEADERS, *((b"set-cookie", cookie) for cookie in new)]
            await send(message)

        await self.app(scope, self._measured(receive), answer)

    def _wrong(self, scope: Scope, headers: dict[bytes, bytes], cookies: dict[str, str]) -> tuple[int, str] | None:
        """Why a request is refused, with the status; None if it is not."""
        host = headers.get(b"host", b"").decode("latin-1")
        if self.admission is None and _name(host) not in LOOPBACK:
            return 403, f"this server does not answer to the host {host!r}"
        if self.admission is not None and (closed := self._closed(scope, cookies, self.admission)) is not None:
            return closed
        if headers.get(b"sec-fetch-site") in FOREIGN and headers.get(b"sec-fetch-mode") != b"navigate":
            return 403, "a page of another site may not ask this server for anything"
        if scope["method"] in SAFE:
            return None
        origin = headers.get(b"origin")
        if origin is not None and urlsplit(origin.decode("latin-1")).netloc.lower() != host.lower():
            return 403, "a page of another site may not ask this server to do anything"
        if not hmac.compare_digest(headers.get(TOKEN_HEADER, b""), self.token.encode()):
            return 403, "the request lacks the token of this server's pages; reload the page"
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > self.largest:
            return 413, f"a request may bring {self.largest // 1_000_000} MB at most"
        return None

    def _closed(self, scope: Scope, cookies: dict[str, str], admission: str) -> tuple[int, str] | None:
        """Why a request is not let in, by a cookie or by a token in its address; None if it is."""
        if self._was_admitted(cookies):
            return None
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[-1]
        now = time.monotonic()
        guessed = self._guesses_of((scope.get("client") or ("",))[0])
        if given and len(guessed) == GUESSES and now - guessed[0] < 60:
            return 429, "too many wrong tokens were given; wait a minute"
        if hmac.compare_digest(given.encode(), admission.encode()):
            return None
        if given:
            guessed.append(now)
        return 401, "open the address that the server printed: it carries the token it was started with"

    def _was_admitted(self, cookies: dict[str, str]) -> bool:
        return hmac.compare_digest(cookies.get(ADMISSION, "").encode(), self._proof().encode())

    def _guesses_of(self, address: str) -> deque[float]:
        """When the last wrong tokens came from an address; so many addresses are remembered, the last seen."""
        guessed = self._guessed.pop(address, deque(maxlen=GUESSES))
        self._guessed[address] = guessed
        if len(self._guessed) > ADDRESSES:
            del self._guessed[next(iter(self._guessed))]
        return guessed

    def _signed(self, name: str) -> str:
        """A client's name with proof that this server gave it: one may not take a new one with every request."""
        return f"{name}.{hmac.new(self._secret, name.encode(), 'sha256').hexdigest()[:32]}"

    def _proof(self) -> str:
        return hashlib.sha256(f"{self.token}{self.admission}".encode()).hexdigest()

    def _measured(self, receive: Receive) -> Receive:
        """The body, cut off where a request sends more than it may, whatever length it declares."""
        seen = 0

        async def read() -> MutableMapping[str, Any]:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            return {"type": "http.disconnect"} if seen > self.largest else message

        return read


def _name(host: str) -> str:
    """A host header without its port."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


def _cookies(header: bytes) -> dict[str, str]:
    try:
        return {name: morsel.value for name, morsel in SimpleCookie(header.decode("latin-1")).items()}
    except CookieError:
        return {}


def _cookie(name: str, value: str, sites: str = "Strict") -> bytes:
    return f"{name}={value}; Path=/; HttpOnly; SameSite={sites}".encode()


async def _refuse(send: Send, status: int, error: str) -> None:
    body = json.dumps({"error": error}).encode()
    about = ((b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": [*about, *HEADERS]})
    await send({"type": "http.response.body", "body": body})
