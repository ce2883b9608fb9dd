"""What is passed on of the headers of a request and of an answer: bytes as they came, but for what is named here."""

import re
from collections.abc import Iterable, Sequence
from typing import TypeAlias
from urllib.parse import urlsplit

from starlette.types import Scope

from agent_server.datadir import matches
from agent_server.guard import COOKIE
from agent_server.proxy.target import Target

Headers: TypeAlias = list[tuple[bytes, bytes]]

PORTS_COOKIE = "agent_server_ports"
"""Names the ports whose pages a browser has opened, the last first: see strays.py."""

HOP_BY_HOP = frozenset(
    {
        *(b"connection", b"keep-alive", b"proxy-connection", b"proxy-authenticate", b"proxy-authorization"),
        *(b"te", b"trailer", b"transfer-encoding", b"upgrade"),
    }
)
"""Of one connection alone. Source: RFC 9110, 7.6.1."""

_REPLACED = frozenset(
    {b"host", b"expect", b"http2-settings", b"x-upgrade", b"x-request-id"}
    | {b"x-forwarded-" + name for name in (b"for", b"host", b"proto", b"prefix")}
)

OF_THE_ORIGIN = frozenset({b"alt-svc", b"clear-site-data", b"service-worker-allowed", b"strict-transport-security"})
"""Headers of an answer that bind the whole origin, and with it the server's own pages, rather than what is under the prefix."""

_ADDED = frozenset({b"date", b"x-request-id"})
"""Headers that every answer of the server has of its own."""

_WEBSOCKET = frozenset(b"sec-websocket-" + name for name in (b"key", b"version", b"extensions", b"protocol", b"accept"))
_OURS = (COOKIE.encode(), PORTS_COOKIE.encode())
_HAS_OURS = re.compile(rb"(?:^|[\s,])(?:%b)\s*=" % b"|".join(_OURS))  # also where spaces stand for semicolons: the Guard takes those
_HAS_CONTROLS = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")


def for_upstream(scope: Scope, target: Target, digest: bytes) -> Headers:
    """Gives a request's headers as the application behind the port gets them: without the server's own credentials."""
    dropped = HOP_BY_HOP | _REPLACED | _named(scope["headers"], keep=frozenset({b"content-length"}))
    passed: Headers = [(b"host", b"localhost:%d" % target.port)]
    for name, value in scope["headers"]:
        if name in dropped or _is_credential(name, value, digest):
            continue
        if name == b"cookie":
            value = _without_ours(value)
            if not value:
                continue
        passed.append((name, value))
    return [*passed, *_forwarded(scope, target)]


def for_handshake(scope: Scope, target: Target, digest: bytes) -> Headers:
    """Gives the same for a WebSocket's handshake. What the protocol itself needs is not among them.

    A page of the server's own origin is, for the application, one of its own: development servers compare it with Host.
    """
    passed = [(name, value) for name, value in for_upstream(scope, target, digest) if name not in _WEBSOCKET]
    return [(n, b"http://localhost:%d" % target.port if n == b"origin" and _is_own_origin(v, scope) else v) for n, v in passed]


def for_client(status: int, headers: Iterable[tuple[bytes, bytes]], scope: Scope, target: Target, *, is_whole: bool) -> Headers:
    """Gives an answer's headers as the client gets them.

    Shape: `is_whole` tells that the application was asked for the whole path, so that its own paths need no prefix.
    Errors: ValueError for a character that no header may have.
    """
    listed = [(name.lower(), value) for name, value in headers]
    dropped = HOP_BY_HOP | OF_THE_ORIGIN | _ADDED | _WEBSOCKET | _named(listed)
    if status in (204, 304) or any(name == b"transfer-encoding" for name, _ in listed):
        dropped |= {b"content-length"}  # of a body that does not come, or comes in chunks
    passed: Headers = []
    for name, value in listed:
        if name in dropped or (name == b"set-cookie" and value.partition(b"=")[0].strip() in _OURS):
            continue
        if _HAS_CONTROLS.search(value):
            raise ValueError(name)
        passed.append((name, location(value, scope, target, is_whole=is_whole) if name == b"location" else value))
    return passed


def location(value: bytes, scope: Scope, target: Target, *, is_whole: bool) -> bytes:
    """Gives a redirect's place as the client reaches it: what is on this port is under the prefix."""
    text = value.decode("latin-1")
    try:
        parts = urlsplit(text)
        is_here = not parts.netloc or (parts.scheme in ("http", "") and _is_loopback(parts.hostname) and parts.port == target.port)
    except ValueError:
        return value
    if not is_here and parts.netloc.encode("latin-1") not in _own_hosts(scope):
        return value
    if not parts.netloc and not text.startswith("/"):
        return value  # relative to where the client is
    path = value[value.index(parts.netloc.encode("latin-1")) + len(parts.netloc) :] if parts.netloc else value
    if not path.startswith(b"/"):
        path = b"/" + path
    is_under = is_whole or re.match(re.escape(target.prefix) + rb"(?:[/?#]|$)", path)
    return path if is_under and not path.startswith(b"//") else target.prefix + path


def first(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> bytes:
    """Gives the first header of this (lower-case) name, or nothing."""
    return next((value for one, value in headers if one == name), b"")


def cookie(scope: Scope, name: str) -> str:
    """Gives the value of a cookie, or nothing."""
    for one, value in scope["headers"]:
        if one == b"cookie":
            for pair in value.decode("latin-1").split(";"):
                key, _, content = pair.strip().partition("=")
                if key == name:
                    return str(content)
    return ""


def _named(headers: Sequence[tuple[bytes, bytes]], keep: frozenset[bytes] = frozenset()) -> frozenset[bytes]:
    """What `Connection` names is for that connection too."""
    named = {token.strip().lower() for name, value in headers if name == b"connection" for token in value.split(b",")}
    return frozenset(named) - keep


def _is_credential(name: bytes, value: bytes, digest: bytes) -> bool:
    """Whether a header is for the server itself: another application's own token passes."""
    text = value.decode("latin-1")
    if name == b"authorization":
        scheme, _, token = text.partition(" ")
        return scheme.lower() == "bearer" and matches(token.strip(), digest)
    return name == b"x-api-key" and matches(text, digest)


def _without_ours(value: bytes) -> bytes:
    pairs = value.split(b";")
    kept = [pair for pair in pairs if not _HAS_OURS.search(pair)]
    return value if len(kept) == len(pairs) else b";".join(kept).strip()


def _forwarded(scope: Scope, target: Target) -> Headers:
    """Who asked, and for what: appended to what a proxy before us says."""
    given = scope["headers"]
    chain = [value for name, value in given if name == b"x-forwarded-for"]
    client = (scope.get("client") or ("",))[0].removeprefix("::ffff:").encode()
    scheme = {"ws": b"http", "wss": b"https"}.get(scope["scheme"], scope["scheme"].encode())
    return [
        (b"x-forwarded-for", b", ".join([*chain, client])),
        (b"x-forwarded-host", first(given, b"x-forwarded-host") or first(given, b"host")),
        (b"x-forwarded-proto", first(given, b"x-forwarded-proto") or scheme),
        (b"x-forwarded-prefix", target.prefix),
        (b"x-request-id", scope["request_id"].encode()),
    ]


def _own_hosts(scope: Scope) -> set[bytes]:
    return {first(scope["headers"], b"host"), first(scope["headers"], b"x-forwarded-host")} - {b""}


def _is_own_origin(origin: bytes, scope: Scope) -> bool:
    return origin.partition(b"://")[2] in _own_hosts(scope)


def _is_loopback(name: str | None) -> bool:
    return name in ("localhost", "127.0.0.1", "::1", "0.0.0.0")  # noqa: S104  # as applications write of themselves
