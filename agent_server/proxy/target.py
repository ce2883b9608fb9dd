"""Which port and path a request means, read from the bytes of its target: what decodes to a port is none."""

import re

import msgspec
from starlette.types import Scope

from agent_server.errors import Forbidden, InvalidRequest

PREFIX = re.compile(rb"/proxy/([1-9][0-9]{0,4})(/.*)?", re.DOTALL)


class Target(msgspec.Struct, frozen=True):
    """A port, and the rest of the path (None where not even the slash is there), as the client wrote it.

    `outer` is what stands before `/proxy` where the server itself is under a prefix.
    """

    port: int
    rest: bytes | None
    query: bytes
    outer: bytes = b""

    @property
    def prefix(self) -> bytes:
        """What the path begins with, as the client sees it."""
        return b"%b%b" % (self.outer, self.own_prefix)

    @property
    def own_prefix(self) -> bytes:
        return b"/proxy/%d" % self.port

    @property
    def short(self) -> bytes:
        """The request target without the prefix."""
        return self._with_query(self.rest or b"/")

    @property
    def whole(self) -> bytes:
        """The request target with the prefix, for applications that serve under it."""
        return self._with_query(self.prefix + (self.rest or b"/"))

    def _with_query(self, path: bytes) -> bytes:
        return path + b"?" + self.query if self.query else path


def target_of(scope: Scope, own_port: int) -> Target:
    """Gives what a request means.

    Errors: InvalidRequest for what is no port, and for CONNECT; Forbidden for the server's own.
    """
    if scope.get("method") == "CONNECT":
        raise InvalidRequest("This proxy opens no tunnels; send the request itself to /proxy/PORT/….", path="$")
    root = scope.get("root_path", "").encode()
    path: bytes = scope["raw_path"]
    found = PREFIX.fullmatch(path[len(root) :] if path.startswith(root) else path)
    if found is None or int(found[1]) > 65_535:
        raise InvalidRequest("The path must be /proxy/PORT/…, with a port from 1 to 65535 in plain digits.", path="port")
    return Target(check(int(found[1]), own_port), found[2], scope["query_string"], _outer(scope) + root)


def check(port: int, own_port: int) -> int:
    """Gives the port back.

    Errors: Forbidden when it is the server's own, through which a request would come in again as somebody else's.
    """
    if port == own_port:
        raise Forbidden(f"{port} is the server's own port, which is not proxied; ask it directly.")
    return port


def _outer(scope: Scope) -> bytes:
    given = next((value for name, value in scope["headers"] if name == b"x-forwarded-prefix"), b"")
    return given.rstrip(b"/") if re.fullmatch(rb"(/[A-Za-z0-9._~%-]+)+/?", given) else b""
