"""AgentHub's shapes: lists by organization, the deployment's status, changes of name and environment, stdin."""

import asyncio
import contextlib
import time
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from agent_server import machine
from agent_server.commands.process import Process
from agent_server.errors import Conflict, ControlPlaneOnly, InstanceNotRunning
from agent_server.facade import server_named
from agent_server.facade.instance import Instance, describe
from agent_server.http import Endpoint, reply
from agent_server.ids import time_of
from agent_server.wire import timestamp

QUIET = 0.3
"""Seconds without output after which the answer to an input is taken as whole."""

LONGEST_ANSWER = 5.0
"""Seconds that the answer to an input is waited for at the most."""


class OrganizationQuery(msgspec.Struct, frozen=True):
    limit: Annotated[int, Meta(ge=1, le=100)] = 50
    cursor: str | None = None
    status: Literal["running", "standby", "stopped", "error", "all"] = "all"
    agent_id: str | None = None
    user_id: str | None = None


class Pagination(msgspec.Struct, frozen=True):
    limit: int
    has_more: bool
    next_cursor: str | None


class InstancePage(msgspec.Struct, frozen=True):
    data: list[Instance]
    pagination: Pagination


class HealthChecks(msgspec.Struct, frozen=True):
    last_check: str
    status: Literal["healthy", "draining"]
    response_time_ms: int


class ResourceUsage(msgspec.Struct, frozen=True):
    cpu_percent: float
    memory_mb: float
    network_rx_bytes: int
    network_tx_bytes: int


class DeploymentStatus(msgspec.Struct, frozen=True):
    status: Literal["RUNNING", "READY_TO_COLD_START"]
    created_at: Annotated[int, Meta(description="Unix seconds")]
    replicas: int
    restart_count: int
    health_checks: HealthChecks
    resource_usage: ResourceUsage


class AgentHubUpdate(msgspec.Struct, frozen=True):
    name: Annotated[str, Meta(min_length=1, max_length=200)] | None = None
    env_vars: dict[str, str] = {}
    config: dict[str, Any] = {}
    resources: dict[str, Any] = {}


class AgentHubInput(msgspec.Struct, frozen=True):
    input: str


async def by_organization(request: Request, query: OrganizationQuery) -> Response:
    instance = describe(request)
    is_asked = query.status in ("all", instance.status) and query.agent_id is None and query.user_id is None and not query.cursor
    return reply(request, InstancePage([instance] if is_asked else [], Pagination(query.limit, has_more=False, next_cursor=None)))


async def status(request: Request) -> Response:
    began = time.monotonic()
    server = server_named(request, request.path_params["id"])
    received, sent = machine.network()
    is_draining = server.sessions.is_draining
    return reply(
        request,
        DeploymentStatus(
            status="RUNNING" if server.lifecycle.status == "running" else "READY_TO_COLD_START",
            created_at=time_of(server.data.identity.mark) // 1000,
            replicas=1,
            restart_count=server.data.identity.starts - 1,
            health_checks=HealthChecks(
                timestamp(round(time.time() * 1000)), "draining" if is_draining else "healthy", round((time.monotonic() - began) * 1000)
            ),
            resource_usage=ResourceUsage(server.cpu_percent, round(machine.resident() / 1e6, 1), received, sent),
        ),
    )


async def update(request: Request, body: AgentHubUpdate) -> Response:
    server = server_named(request, request.path_params["id"])
    if body.config or body.resources:
        raise ControlPlaneOnly("config and resources are the control plane's; here only name and env_vars can be changed.")
    await server.environment.change(body.env_vars)
    if body.name is not None:
        await asyncio.to_thread(server.data.adopt, None, body.name)
    return reply(request, describe(request))


async def stdin(request: Request, body: AgentHubInput) -> Response:
    server = server_named(request, request.path_params["id"])
    if server.lifecycle.status != "running":
        raise InstanceNotRunning(f"The instance is {server.lifecycle.status}; start it.", server.lifecycle.status)
    process = server.processes.newest_reading_stdin()
    if process is None:
        raise Conflict("No process reads input now; start one with POST /execute and `background`.")
    place = process.execution.total
    process.write(body.input.encode())
    await _answer(process)
    kept = process.execution.since(max(place, process.execution.floor))
    return Response(kept.decode("utf-8", "replace"), media_type="text/plain")


async def _answer(process: Process) -> None:
    """Waits for what a process prints, until it is quiet for QUIET or has ended, LONGEST_ANSWER at the most."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LONGEST_ANSWER):
            await process.execution.more()
            while not process.execution.is_done:
                async with asyncio.timeout(QUIET):
                    await process.execution.more()


ROUTES = (
    Endpoint(
        "GET",
        "/instances/by_org_id/{org}",
        by_organization,
        "The one instance, as a page of a list",
        query=OrganizationQuery,
        replies={200: InstancePage},
        errors=(404,),
    ),
    Endpoint(
        "GET",
        "/instances/status/{org}/{id}",
        status,
        "How the instance is deployed and does",
        replies={200: DeploymentStatus},
        errors=(404,),
    ),
    Endpoint(
        "PUT",
        "/instances/{id}",
        update,
        "Change the instance's name and the environment of commands to come",
        body=AgentHubUpdate,
        replies={200: Instance},
        errors=(404, 422, 501),
    ),
    Endpoint(
        "POST",
        "/instances/{org}/{id}/stdin",
        stdin,
        "Send input to the newest process that reads it, and give what it answers",
        body=AgentHubInput,
        replies={200: "text/plain"},
        errors=(404, 409, 429),
    ),
)
