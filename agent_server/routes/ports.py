"""GET /ports, POST /open-ports and /proxy: what listens on this machine, and the way to it."""

from typing import Annotated

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from agent_server.http import Endpoint, Raw, reply
from agent_server.ports import MAX_REGISTERED, Port
from agent_server.server import Server, server_of


class PortsReply(msgspec.Struct, frozen=True):
    ports: list[Port]


class OpenPortsRequest(msgspec.Struct, frozen=True):
    ports: Annotated[list[Annotated[int, Meta(ge=1, le=65_535)]], Meta(max_length=MAX_REGISTERED)]


class OpenPortsReply(msgspec.Struct, frozen=True):
    ports: list[Port]
    skipped: Annotated[list[int], Meta(description="the server's own port, where it was among them")]


async def ports(request: Request) -> Response:
    return reply(request, PortsReply(await server_of(request).ports.look()))


async def open_ports(request: Request, body: OpenPortsRequest) -> Response:
    registered, skipped = await server_of(request).ports.register(body.ports)
    return reply(request, OpenPortsReply(registered, skipped))


async def proxy(scope: Scope, receive: Receive, send: Send) -> None:
    server: Server = scope["app"].state.server
    await server.proxy(scope, receive, send)


ROUTES = (
    Endpoint("GET", "/ports", ports, "Ports that are listened on, and registered ones", replies={200: PortsReply}),
    Endpoint(
        "POST",
        "/open-ports",
        open_ports,
        "Register ports; they stay on the list, also across restarts",
        body=OpenPortsRequest,
        replies={200: OpenPortsReply},
        errors=(422,),
    ),
    Raw("/proxy/{port}", proxy, "Leads to /proxy/{port}/; for WebSockets the same as that"),
    Raw(
        "/proxy/{port}/{path:path}",
        proxy,
        "HTTP with any method, and WebSockets, to what listens on this machine's loopback; UPSTREAM_ERROR 502 where nobody does",
    ),
)
