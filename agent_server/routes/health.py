"""Who this instance is and how it is: GET /, /health, /status; and POST /login for browsers."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from agent_server import __version__, machine
from agent_server.datadir import matches
from agent_server.errors import Unauthorized
from agent_server.guard import COOKIE, COOKIE_SECONDS, login_cookie
from agent_server.http import Endpoint, reply
from agent_server.server import Server, server_of
from tools import MASK


class Processing(msgspec.Struct, frozen=True):
    processing: int


class Health(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    status: Literal["healthy", "draining"]
    version: str | None = None
    instance_id: str | None = None
    agent_type: str | None = None
    uptime_ms: int | None = msgspec.field(name="uptime_ms", default=None)
    tasks: Processing | None = None


class Limits(msgspec.Struct, frozen=True, rename="camel"):
    max_concurrent_tasks: int
    max_body_bytes: int
    max_log_bytes: int


class Resources(msgspec.Struct, frozen=True, rename="camel"):
    cpu_percent: Annotated[float, Meta(description="of one core, averaged since the start; the server itself")]
    memory_mb: float
    network_rx_bytes: int
    network_tx_bytes: int


class McpServerShown(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    name: str
    is_up: Annotated[bool, Meta(description="one that is idle is let go, and started again by the next task")]
    tools: int
    error: Annotated[str, Meta(description="why it did not come up when a task last asked for it")] | None = None


class Status(msgspec.Struct, frozen=True, rename="camel"):
    status: Literal["healthy", "draining"]
    version: str
    instance_id: str
    instance_name: str | None
    agent_type: str
    uptime_ms: int = msgspec.field(name="uptime_ms")
    tasks: Processing
    workspace: str
    model: str
    provider: str
    integrations: list[str]
    mcp_servers: Annotated[list[McpServerShown], Meta(description="of the workspace, once a task has asked for them")]
    limits: Limits
    restart_count: int
    resources: Resources
    environment: dict[str, str]


class Root(msgspec.Struct, frozen=True, rename="camel"):
    name: str
    version: str
    links: dict[str, str]


class LoginRequest(msgspec.Struct, frozen=True):
    token: str


class LoginReply(msgspec.Struct, frozen=True, rename="camel"):
    expires_in: Annotated[int, Meta(description="seconds")]


async def root(request: Request) -> Response:
    links = {"health": "/health", "openapi": "/openapi.json", "run": "/run", "events": "/events", "tools": "/tools", "mcp": "/mcp"}
    return reply(request, Root("agent-server", __version__, links))


async def health(request: Request) -> Response:
    server = server_of(request)
    status: Literal["healthy", "draining"] = "draining" if server.is_draining else "healthy"
    code = 503 if status == "draining" else 200
    if not request.scope["is_authenticated"] or code == 503:
        return reply(request, Health(status), code)
    return reply(
        request,
        Health(
            status,
            __version__,
            server.data.identity.instance_id,
            server.settings.agent_type,
            round(server.uptime * 1000),
            Processing(server.sessions.processing),
        ),
    )


async def status(request: Request) -> Response:
    server = server_of(request)
    settings = server.settings
    return reply(
        request,
        Status(
            status="draining" if server.is_draining else "healthy",
            version=__version__,
            instance_id=server.data.identity.instance_id,
            instance_name=server.data.identity.instance_name,
            agent_type=settings.agent_type,
            uptime_ms=round(server.uptime * 1000),
            tasks=Processing(server.sessions.processing),
            workspace=str(server.workspace.root),
            model=settings.model,
            provider=settings.provider,
            integrations=[state.name for state in server.connections.states() if state.is_enabled],
            mcp_servers=_mcp_servers(server),
            limits=Limits(settings.max_concurrent_tasks, settings.max_body, settings.max_log),
            restart_count=server.data.identity.starts - 1,
            resources=Resources(server.cpu_percent, machine.resident() / 1e6, *machine.network()),
            environment=_environment(server),
        ),
    )


def _mcp_servers(server: Server) -> list[McpServerShown]:
    shared = server.sessions.around.mcp.shared
    return [McpServerShown(name, peer.is_up, len(peer.known), peer.failure) for name, peer in sorted(shared.items())]


def _environment(server: Server) -> dict[str, str]:
    """The names of the server's variables and of those that clients have set. No values: which of them are secret, a name does not tell."""
    names = {*server.settings.environ, *server.environment.variables, *server.connections.environ()}
    return dict.fromkeys(sorted(names), MASK)


async def login(request: Request, body: LoginRequest) -> Response:
    server = server_of(request)
    if server.settings.auth == "token" and not matches(body.token, server.token_digest):
        raise Unauthorized("This is not the server's token.")
    response = reply(request, LoginReply(COOKIE_SECONDS))
    is_secure = request.url.scheme == "https"
    response.set_cookie(
        COOKIE, login_cookie(server.token_digest), max_age=COOKIE_SECONDS, httponly=True, samesite="strict", secure=is_secure
    )
    return response


ROUTES = (
    Endpoint("GET", "/", root, "Name, version and links", replies={200: Root}),
    Endpoint("GET", "/health", health, "Whether the server can take tasks", replies={200: Health, 503: Health}, is_public=True),
    Endpoint("GET", "/status", status, "Everything about this instance", replies={200: Status}),
    Endpoint(
        "POST",
        "/login",
        login,
        "Exchange the token for a cookie, for a browser's EventSource",
        body=LoginRequest,
        replies={200: LoginReply},
        errors=(401,),
        is_public=True,
    ),
)
