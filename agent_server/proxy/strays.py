"""Requests of proxied pages that lost their prefix, as `/src/main.js` of a Vite that knows nothing of one.

They are sent back under it by a redirect, where the path is none of the server's own and Referer says which page asked.
A WebSocket's handshake has no Referer and follows no redirect: of those the browser's own cookie says which pages it has
opened, and their ports are tried, the last first.
"""

import re

from starlette.types import Scope

from agent_server.proxy.headers import PORTS_COOKIE, Headers, cookie, first
from agent_server.proxy.target import Target

MAX_PORTS = 4
"""Ports that the cookie remembers, and that a WebSocket's handshake is tried on."""

_REFERER = re.compile(rb"https?://([^/?#]+)/proxy/([1-9][0-9]{0,4})/")


def redirect_of(scope: Scope) -> bytes | None:
    """Gives where a request belongs, by the page of this origin that it comes from."""
    found = _REFERER.match(first(scope["headers"], b"referer"))
    if found is None or found[1] != first(scope["headers"], b"host") or int(found[2]) > 65_535:
        return None
    return Target(int(found[2]), scope["raw_path"], scope["query_string"]).whole


def targets_of(scope: Scope, own_port: int) -> list[Target]:
    """Gives where a WebSocket's handshake may belong: to pages that this browser has opened."""
    return [Target(port, scope["raw_path"], scope["query_string"]) for port in _opened(scope) if port != own_port]


def remembered(scope: Scope, target: Target, headers: Headers) -> Headers:
    """Gives the headers of an answer with the cookie, where it is a page that a browser opens."""
    is_page = first(headers, b"content-type").startswith(b"text/html") and b"text/html" in first(scope["headers"], b"accept")
    before = _opened(scope)
    ports = [target.port, *(port for port in before if port != target.port)][:MAX_PORTS]
    if not is_page or ports == before:
        return headers
    attributes = "; Path=/; HttpOnly; SameSite=Strict" + ("; Secure" if scope["scheme"] == "https" else "")
    return [*headers, (b"set-cookie", f"{PORTS_COOKIE}={'.'.join(map(str, ports))}{attributes}".encode())]


def _opened(scope: Scope) -> list[int]:
    parts = cookie(scope, PORTS_COOKIE).split(".")[:MAX_PORTS]
    return [int(part) for part in parts if re.fullmatch("[1-9][0-9]{0,4}", part) and int(part) <= 65_535]
