"""/instances/{id}/…: every route of this server under the instance's id or name, as a control plane offers them."""

from urllib.parse import unquote

from starlette.requests import HTTPConnection
from starlette.types import Receive, Scope, Send

from agent_server.errors import InstanceNotRunning
from agent_server.facade import is_this, server_named
from agent_server.http import Raw, missing

AFTER_ORGANIZATION = frozenset({"logs", "exec"})
"""What AgentHub's clients ask for below `/instances/{org}/{id}/`."""


async def forward(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers as the route named by the rest of the path does."""
    connection = HTTPConnection(scope)
    first, rest = _split(scope["raw_path"].split(b"/", 2)[2])
    if not is_this(connection.app.state.server, first):
        second, after = _split(rest)
        if after.decode("latin-1") not in AFTER_ORGANIZATION:
            second = first
        first, rest = second, after
    server = server_named(connection, first)
    if rest == b"exec" and server.lifecycle.status != "running":
        raise InstanceNotRunning(f"No command is run while the instance is {server.lifecycle.status}; start it.", server.lifecycle.status)
    if rest.partition(b"/")[0] == b"instances":
        await missing(scope, receive, send)
        return
    inner = {**scope, "raw_path": b"/" + rest, "path": "/" + unquote(rest.decode("latin-1")), "path_params": {}}
    await connection.app.state.dispatch(inner, receive, send)


def _split(raw: bytes) -> tuple[str, bytes]:
    segment, _, rest = raw.partition(b"/")
    return unquote(segment.decode("latin-1")), rest


ROUTES = (
    Raw(
        "/instances/{id}/{route:path}",
        forward,
        "Any route of this document, under the instance's id or name",
    ),
)
