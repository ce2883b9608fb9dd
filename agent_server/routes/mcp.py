"""GET /tools; /mcp, which offers them to other agents; and GET /mcp/config, which connects those."""

import re
from typing import Any, Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from agent_server.calling.custom import CustomTool
from agent_server.errors import InvalidRequest
from agent_server.http import Endpoint, Raw, reply
from agent_server.server import Server, server_of
from tools import Tool

TOKEN_PLACEHOLDER = "${AGENT_SERVER_TOKEN}"  # noqa: S105  # what clients replace by their own variable
"""What stands for the token: clients put their own variable in."""


class ToolShown(msgspec.Struct, frozen=True):
    name: str
    description: str
    parameters: dict[str, Any]
    source: str


class ToolList(msgspec.Struct, frozen=True):
    tools: list[ToolShown]


class McpConnection(msgspec.Struct, frozen=True, omit_defaults=True):
    type: Literal["http"]
    url: str
    headers: dict[str, str] = {}


class McpConfig(msgspec.Struct, frozen=True, rename="camel"):
    mcp_servers: dict[str, McpConnection]


async def tools(request: Request) -> Response:
    sessions = server_of(request).sessions
    own = {name: tool for name, tool in sessions.around.tools.items() if sessions.agent.may_use(tool)}
    offered: list[Tool | CustomTool] = [*own.values(), *sessions.around.mcp.known(own)]
    return reply(request, ToolList([ToolShown(tool.name, tool.description, dict(tool.parameters), tool.source) for tool in offered]))


async def config(request: Request) -> Response:
    server = server_of(request)
    headers = {"Authorization": f"Bearer {TOKEN_PLACEHOLDER}"} if server.settings.auth == "token" else {}
    name = re.sub("[^A-Za-z0-9_-]+", "-", server.settings.instance_name or "") or "agent-server"
    return reply(request, McpConfig({name: McpConnection("http", f"{_origin(request)}/mcp", headers)}))


def _origin(request: Request) -> str:
    """Where this request found us.

    Of a proxy's headers only X-Forwarded-Proto is believed, and only when it says https: whatever else one could make a
    client send would lead its token elsewhere.
    """
    host = request.headers.get("host", "")
    if not re.fullmatch(r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?", host):
        raise InvalidRequest("Host is no name or address; send the one under which this server is reached.", path="Host")
    is_secure = request.url.scheme == "https" or request.headers.get("x-forwarded-proto", "").strip().lower() == "https"
    return f"{'https' if is_secure else 'http'}://{host}"


async def serve(scope: Scope, receive: Receive, send: Send) -> None:
    server: Server = scope["app"].state.server
    await server.mcp(scope, receive, send)


ROUTES = (
    Endpoint("GET", "/tools", tools, "List the tools", replies={200: ToolList}),
    Endpoint("GET", "/mcp/config", config, "The mcpServers entry that connects an MCP client to this instance", replies={200: McpConfig}),
    Raw("/mcp", serve, "The tools as an MCP server over streamable HTTP: POST, GET and DELETE, as the Model Context Protocol has it"),
)
