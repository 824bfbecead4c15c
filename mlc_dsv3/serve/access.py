"""Who may ask, and how much: the guard before every endpoint, as ASGI.

Checks the Host and the API key, and reads a request's body within the limits of size and time.
"""

from __future__ import annotations

import asyncio
import hmac
from dataclasses import dataclass
from typing import NoReturn

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mlc_dsv3.serve.errors import ApiError, error_body
from mlc_dsv3.serve.json_response import JsonResponse

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
BODY_SECONDS = 60.0


@dataclass(frozen=True)
class AccessRules:
    """keys: API keys, of which a request must have one; none lets everybody in.

    hosts: names that the Host header may be; None allows any. A page of another site that has its name resolve to this
    machine (DNS rebinding) is kept out by it.
    max_body: bytes of a request's body.
    """

    keys: tuple[str, ...] = ()
    hosts: frozenset[str] | None = None
    max_body: int = 16 * 2**20


class Guard:
    """Lets requests through to `app` that the rules allow, with their bodies read."""

    def __init__(self, app: ASGIApp, rules: AccessRules) -> None:
        self._app, self._rules = app, rules
        self._keys = [key.encode() for key in rules.keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        try:
            self._check_host(headers)
            self._check_key(scope["path"], headers)
            body = await self._body(headers, receive)
        except ApiError as error:
            response = JsonResponse(error_body(error, scope["path"]), error.status, error.headers)
            await response(scope, receive, send)
            return
        if body is not None:
            await self._app(scope, _replay(body, receive), send)

    def _check_host(self, headers: Headers) -> None:
        allowed = self._rules.hosts
        host = headers.get("host", "")
        if allowed is not None and _name(host) not in allowed:
            raise ApiError(
                403,
                f"the Host header is {host[:100]!r}; without an API key this server answers to "
                f"{', '.join(sorted(allowed))} alone",
                code="host_not_allowed",
            )

    def _check_key(self, path: str, headers: Headers) -> None:
        if not self._keys or _is_open(path):
            return
        given = _given_key(headers)
        if given is None:
            _refuse("an API key is required: send Authorization: Bearer KEY, or x-api-key: KEY")
        # Every key is compared, and each in constant time, so that the time tells nothing.
        if not any([hmac.compare_digest(given, key) for key in self._keys]):
            _refuse("the API key is wrong")

    async def _body(self, headers: Headers, receive: Receive) -> bytes | None:
        """The whole body; None where the client leaves first. ApiError for one that is too long or too slow."""
        most = self._rules.max_body
        too_long = ApiError(413, f"the body has more than {most} bytes", code="request_too_large")
        stated = headers.get("content-length", "0")
        if stated.isdecimal() and int(stated) > most:
            raise too_long
        parts, size = [], 0
        try:
            async with asyncio.timeout(BODY_SECONDS):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > most:
                        raise too_long
                    if not message.get("more_body", False):
                        return b"".join(parts)
        except TimeoutError:
            raise ApiError(408, f"the body did not arrive within {BODY_SECONDS:.0f} seconds") from None


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that brings `body` in one piece, and then what the connection brings."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return waiting.pop() if waiting else await receive()

    return replayed


def _is_open(path: str) -> bool:
    """Whether `path` needs no key: the page, which asks its reader for one, and the health check."""
    return path in ("/", "/health") or path.startswith("/page/")


def _given_key(headers: Headers) -> bytes | None:
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return token.strip().encode("latin-1", "replace")
    key = headers.get("x-api-key")
    return None if key is None else key.encode("latin-1", "replace")


def _refuse(message: str) -> NoReturn:
    error = ApiError(401, message, code="invalid_api_key")
    error.headers["WWW-Authenticate"] = "Bearer"
    raise error


def _name(host: str) -> str:
    """A Host header without its port and an IPv6 address's brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower()
