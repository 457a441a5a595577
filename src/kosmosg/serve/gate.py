"""What every request passes on its way in and out: origin, key, rate, size, headers, log."""

import asyncio
import json
import logging
import secrets
from time import perf_counter
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kosmosg.serve.answers import error_body, refusal
from kosmosg.serve.keys import Keys, is_loopback
from kosmosg.serve.limits import Rate, Room
from kosmosg.serve.metrics import Metrics

_log = logging.getLogger("kosmosg.serve")
BODY_SECONDS = 60.0
OPEN_PATHS = ("/", "/healthz", "/readyz", "/openapi.json")
_CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self' blob: data:; font-src 'self'; manifest-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": _CSP,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}


class Gate:
    """The outermost part of the app.

    Args:
        app: What is behind.
        keys: Who may ask; none: everybody.
        rate: Of requests to /v1.
        room: For all bodies together.
        max_bytes: Of one body.
        only_loopback: Whether only names of this machine itself are taken: a browser on it would
            let other people's pages in under a name of theirs.
        metrics: Counts the answers.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        keys: Keys,
        rate: Rate,
        room: Room,
        max_bytes: int,
        only_loopback: bool,
        metrics: Metrics,
    ) -> None:
        self._app = app
        self._keys = keys
        self._rate = rate
        self._room = room
        self._max_bytes = max_bytes
        self._only_loopback = only_loopback
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # a WebSocket
            await send({"type": "websocket.close", "code": 1008})
            return
        began, answer = perf_counter(), _Answer(send)
        request_id = secrets.token_hex(8)
        body = _Body(receive, self._room, self._max_bytes)
        scope["state"] = {**scope.get("state", {}), "request_id": request_id, "log": {}}
        answer.headers = HEADERS | {"x-request-id": request_id}
        if scope["path"].startswith("/v1/"):
            answer.headers |= {"cache-control": "no-store"}
        try:
            scope["state"]["client"] = self._pass(scope)
            body.check(Headers(scope=scope).get("content-length"))
            await self._app(scope, body, answer)
        except HTTPException as error:
            if answer.status is None:
                response = JSONResponse(error.detail, error.status_code, headers=error.headers)
                await response(scope, receive, answer)
        except Exception:  # noqa: BLE001 -- our mistakes; the log has them, the client an answer
            _log.exception("a request failed")
            if answer.status is None:
                said = error_body("the server made a mistake", status=500, code="internal_error")
                await JSONResponse(said, 500)(scope, receive, answer)
        finally:
            body.close()
            self._note(scope, answer.status, perf_counter() - began)

    def _pass(self, scope: Scope) -> str:
        """Return who asks.

        Raises:
            HTTPException: If it may not.
        """
        headers, path = Headers(scope=scope), scope["path"]
        _check_host(headers, only_loopback=self._only_loopback)
        client = (scope.get("client") or ("unknown", 0))[0]
        if self._keys and path not in OPEN_PATHS and not path.startswith("/static/"):
            owner = self._keys.owner(headers.get("authorization"))
            if owner is None:
                self._metrics.count("kosmosg_refused_total", reason="key")
                raise refusal(
                    401,
                    "this server wants an API key; send it as `Authorization: Bearer KEY`",
                    code="invalid_api_key",
                    headers={"www-authenticate": "Bearer"},
                )
            client = owner
        wait = self._rate.seconds_to_wait(client) if scope["method"] == "POST" else 0.0
        if wait:
            self._metrics.count("kosmosg_refused_total", reason="rate")
            raise refusal(
                429,
                "too many requests; try again later",
                code="rate_limit_exceeded",
                headers={"retry-after": str(int(wait) + 1)},
            )
        return client

    def _note(self, scope: Scope, status: int | None, seconds: float) -> None:
        path = getattr(scope.get("route"), "path", None) or "other"
        if path == "other" and scope["path"] in OPEN_PATHS:
            path = scope["path"]
        self._metrics.count("kosmosg_requests_total", path=path, status=status or 0)
        said = {
            "event": "request",
            "id": scope["state"]["request_id"],
            "client": scope["state"].get("client"),
            "method": scope["method"][:10],
            "path": path,
            "status": status,
            "seconds": round(seconds, 3),
            **scope["state"]["log"],
        }
        _log.info(json.dumps(said))


class _Answer:
    """Puts our headers on an answer, and remembers its status."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status: int | None = None
        self.headers: dict[str, str] = {}

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            for name, value in self.headers.items():
                headers.setdefault(name, value)
        await self._send(message)


class _Body:
    """Reads a body as far as it may go."""

    def __init__(self, receive: Receive, room: Room, most: int) -> None:
        self._receive = receive
        self._room = room
        self._most = most
        self._read = 0
        self._whole = False
        self._deadline = asyncio.get_running_loop().time() + BODY_SECONDS

    def check(self, length: str | None) -> None:
        """Pass a length that may come.

        Raises:
            HTTPException: If it may not.
        """
        if length is not None and (
            not length.isascii() or not length.isdigit() or int(length) > self._most
        ):
            raise self._too_large()

    async def __call__(self) -> Message:
        if self._whole:
            return await self._receive()  # that the client has left
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError:
            raise refusal(
                408, f"the body took more than {BODY_SECONDS:.0f} s", code="timeout"
            ) from None
        size = len(message.get("body", b""))
        self._whole = not message.get("more_body", False)
        if self._read + size > self._most:
            raise self._too_large()
        if not self._room.take(size):
            raise refusal(
                503,
                "too many large requests at once; try again later",
                code="overloaded",
                headers={"retry-after": "2"},
            )
        self._read += size
        return message

    def close(self) -> None:
        """Give back what was taken."""
        self._room.give_back(self._read)

    def _too_large(self) -> HTTPException:
        most = self._most / 2**20
        return refusal(
            413, f"the request has more than {most:g} MiB; send less", code="request_too_large"
        )


def _check_host(headers: Headers, *, only_loopback: bool) -> None:
    """Pass a request that was meant for this server.

    Raises:
        HTTPException: If it came under another's name, or from another's page.
    """
    host = headers.get("host", "")
    if only_loopback and not is_loopback(_name_in(host) or ""):
        raise refusal(
            421, f"this server is not {host[:80]!r}; call it by its address", code="wrong_host"
        )
    origin = headers.get("origin")
    if origin is not None and _netloc(origin) != host.lower():
        raise refusal(403, "pages of other origins may not ask", code="wrong_origin")
    if (
        headers.get("sec-fetch-site") == "cross-site"
        and headers.get("sec-fetch-mode") != "navigate"
    ):
        raise refusal(403, "pages of other sites may not ask", code="wrong_origin")


def _name_in(host: str) -> str | None:
    try:
        return None if set(host) & set("/@?#\\ ") else urlsplit(f"//{host}").hostname
    except ValueError:
        return None


def _netloc(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return None
