"""Who may ask: authentication, Host and Origin, and an id for each request. Plain ASGI, so that streams flow."""

import hashlib
import hmac
import ipaddress
import itertools
import logging
import math
import re
import time
from collections.abc import Sequence
from http.cookies import CookieError, SimpleCookie

from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection
from starlette.responses import Response
from starlette.routing import compile_path
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from agent_server.datadir import matches
from agent_server.errors import AgentServerError, Forbidden, InvalidRequest, Unauthorized
from agent_server.http import failure
from agent_server.ids import new_id
from agent_server.metrics import Traffic
from agent_server.settings import Settings

logger = logging.getLogger(__name__)

COOKIE = "agent_server_session"

COOKIE_SECONDS = 12 * 3600
"""How long a login holds."""

REFUSALS_SECONDS = 60
"""Seconds between two log lines on requests without a valid token."""

EXPOSED = (
    "X-Request-Id, X-Ignored-Fields, X-Exit-Code, X-Signal, X-Reason, X-Process-Id, Retry-After, Mcp-Session-Id, "
    "ETag, Accept-Ranges, Content-Range, Content-Disposition"
)
PREFLIGHT = {
    "Access-Control-Allow-Methods": "GET, POST, PUT, PATCH, DELETE",
    "Access-Control-Allow-Headers": "Authorization, Content-Type, Idempotency-Key, If-Match, Last-Event-ID, X-API-Key, X-Request-Id, "
    "If-None-Match, If-Range, Range, Mcp-Session-Id, Mcp-Protocol-Version",
    "Access-Control-Max-Age": "600",
}
"""What pages of an allowed origin may send and see."""

_REQUEST_ID = re.compile(r"[A-Za-z0-9_.-]{1,64}")


class Guard:
    """Lets in who has the token, or without authentication who speaks to this machine by one of its own names."""

    def __init__(self, app: ASGIApp, *, settings: Settings, digest: bytes, traffic: Traffic, public: Sequence[tuple[str, str]]) -> None:
        self._app = app
        self._settings = settings
        self._digest = digest
        self._traffic = traffic
        self._public = frozenset(public)
        self._public_patterns = [(method, compile_path(path)[0]) for method, path in public if "{" in path]
        self._ids, self._numbers = new_id("req")[:-6], itertools.count()  # cheaper than one of its own for each
        self._noted = -math.inf
        self._refused = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = _Headers(reversed(scope["headers"]))  # of one that is repeated the first counts
        given = headers.text("x-request-id")
        request_id = scope["request_id"] = given if _REQUEST_ID.fullmatch(given) else f"{self._ids}{next(self._numbers):06x}"
        scope["is_authenticated"] = self._settings.auth == "none" or self._has_credentials(headers)

        origin = headers.text("origin")
        is_shared = origin in self._settings.allowed_origins
        is_stream = False

        async def tell(message: Message) -> None:
            nonlocal is_stream
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
                self._traffic.answers[min(message["status"] // 100, 5)] += 1
                is_stream = _is_stream(message.get("headers", ()))
                self._traffic.streams += is_stream
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id.encode())]
                if is_shared:
                    shared = {"Access-Control-Allow-Origin": origin, "Access-Control-Expose-Headers": EXPOSED, "Vary": "Origin"}
                    MutableHeaders(scope=message).update(shared)
            elif message["type"] == "websocket.accept":
                is_stream = True
                self._traffic.streams += 1
            await send(message)

        try:
            if is_shared and scope.get("method") == "OPTIONS" and b"access-control-request-method" in headers:
                await Response(status_code=204, headers=PREFLIGHT)(scope, receive, tell)
                return
            self._check(scope, headers)
            await self._app(scope, receive, tell)
        except AgentServerError as error:
            # Only our own: what routes raise has become a response by now.
            await failure(HTTPConnection(scope), error)(scope, receive, tell)
        finally:
            self._traffic.streams -= is_stream

    def _check(self, scope: Scope, headers: "_Headers") -> None:
        host = headers.text("host")
        if b"host" not in headers and scope.get("http_version") == "1.1":
            raise InvalidRequest("HTTP/1.1 requests need a Host header.", path="Host")  # RFC 9112, 3.2
        if self._settings.auth == "none" and not self._is_own_host(scope, host):
            raise Forbidden("Without authentication only requests to this machine's own names are served; add the name to ALLOWED_HOSTS.")
        if b"origin" in headers and not self._is_allowed_origin(headers.text("origin"), host):
            raise Forbidden("Requests from pages of other origins are refused; add the origin to ALLOWED_ORIGINS.")
        method = "GET" if scope.get("method") == "HEAD" else scope.get("method")
        if not scope["is_authenticated"] and not self._is_public(method, scope["path"]):
            self._note(scope)
            raise Unauthorized("Send the server's token as `Authorization: Bearer …` or `X-API-Key: …`.")

    def _is_public(self, method: str | None, path: str) -> bool:
        if (method, path) in self._public:
            return True
        return any(method == public and pattern.match(path) for public, pattern in self._public_patterns)

    def _has_credentials(self, headers: "_Headers") -> bool:
        scheme, _, token = headers.text("authorization").partition(" ")
        if scheme.lower() == "bearer" and matches(token.strip(), self._digest):
            return True
        if b"x-api-key" in headers and matches(headers.text("x-api-key"), self._digest):
            return True
        return _is_login(headers.text("cookie"), self._digest)

    def _is_own_host(self, scope: Scope, host: str) -> bool:
        name = _host_name(host)
        if (
            name == "localhost"
            or name.endswith(".localhost")
            or name in self._settings.allowed_hosts
            or host.lower() in self._settings.allowed_hosts
        ):
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return False
        server = (scope.get("server") or ("",))[0]
        return address.is_loopback or server.removeprefix("::ffff:") == str(address)

    def _is_allowed_origin(self, origin: str, host: str) -> bool:
        return origin in self._settings.allowed_origins or (host != "" and origin.partition("://")[2] == host)

    def _note(self, scope: Scope) -> None:
        """Logs a refusal, and others of the next minute only by their number: whoever reaches the port can cause them."""
        self._refused += 1
        now = time.monotonic()
        if now - self._noted >= REFUSALS_SECONDS:
            client = (scope.get("client") or ("?",))[0].removeprefix("::ffff:")
            logger.warning(
                "refused without a valid token: %s %r from %s (%d since the last such line)",
                *(scope.get("method"), scope["path"][:100], client, self._refused),
            )
            self._noted, self._refused = now, 0


class _Headers(dict[bytes, bytes]):
    def text(self, name: str) -> str:
        return self.get(name.encode(), b"").decode("latin-1")


def _is_stream(headers: Sequence[tuple[bytes, bytes]]) -> bool:
    if headers and headers[0][0] == b"content-length":  # as nearly all replies begin
        return False
    return any(name.lower() == b"content-type" and value.startswith(b"text/event-stream") for name, value in headers)


def login_cookie(digest: bytes, now: float | None = None) -> str:
    """Gives the value of a login: when it ends, and a proof that only who knows the token's hash can make."""
    expires = str(int((now or time.time()) + COOKIE_SECONDS))
    return f"{expires}.{_proof(digest, expires)}"


def _is_login(header: str, digest: bytes) -> bool:
    try:
        morsel = SimpleCookie(header).get(COOKIE)
    except CookieError:
        return False
    if morsel is None:
        return False
    expires, _, proof = morsel.value.partition(".")
    return (
        expires.isascii()
        and expires.isdigit()
        and hmac.compare_digest(proof.encode(), _proof(digest, expires).encode())
        and int(expires) > time.time()
    )


def _proof(digest: bytes, expires: str) -> str:
    return hmac.new(digest, f"login {expires}".encode(), hashlib.sha256).hexdigest()


def _host_name(host: str) -> str:
    return host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0].lower()
