"""Hypeman's shapes: states, resource figures, logs as strings, snapshots of an instance."""

import asyncio
import re
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from agent_server import machine, wire
from agent_server.errors import ControlPlaneOnly, InvalidRequest
from agent_server.events import Event
from agent_server.facade import control_plane_only, server_named
from agent_server.facade.instance import STATES, Instance, describe
from agent_server.http import Endpoint, reply
from agent_server.routes.events import LogQuery, LogReply, show_logs
from agent_server.routes.snapshots import SnapshotName, SnapshotReply, show_snapshot
from agent_server.routes.tasks import EVENTS

SOURCES = frozenset({"app", "vmm", "hypeman"})

WAIT_LONGEST = 300.0
"""Seconds that `wait` waits for a state."""

WAIT_STEP = 0.1
"""Seconds between two looks at the state."""

State = Literal["Created", "Initializing", "Running", "Paused", "Shutdown", "Stopped", "Standby", "Unknown"]


class StatsReply(msgspec.Struct, frozen=True):
    """What the machine gives, and what is used of it; memory_vms_bytes is the server's own address space."""

    instance_id: str
    instance_name: str
    allocated_memory_bytes: int
    allocated_vcpus: int
    cpu_seconds: float
    memory_rss_bytes: int
    memory_vms_bytes: int
    network_rx_bytes: int
    network_tx_bytes: int
    memory_utilization_ratio: float | None


class HypemanUpdate(msgspec.Struct, frozen=True):
    env: dict[str, str] = {}


class HypemanStart(msgspec.Struct, frozen=True):
    cmd: list[str] = []
    entrypoint: list[str] = []


class HypemanSnapshot(msgspec.Struct, frozen=True):
    """`kind` and `tags` are the host's: what is kept here is files and conversations, whatever runs."""

    kind: Literal["Standby", "Stopped"] = "Stopped"
    name: SnapshotName | None = None


class HypemanRestore(msgspec.Struct, frozen=True):
    target_state: Literal["Running", "Standby", "Stopped"] | None = None


class WaitQuery(msgspec.Struct, frozen=True):
    state: State
    timeout: Annotated[str, Meta(description="such as 30s, 2m or 1m30s; 5 minutes at the most")] = "60s"


class WaitReply(msgspec.Struct, frozen=True):
    state: State
    timed_out: bool


async def stats(request: Request) -> Response:
    server = server_named(request, request.path_params["id"])
    total, used = machine.memory()
    received, sent = machine.network()
    return reply(
        request,
        StatsReply(
            instance_id=server.data.identity.instance_id,
            instance_name=server.data.identity.instance_name or server.data.identity.instance_id,
            allocated_memory_bytes=total,
            allocated_vcpus=machine.cpus(),
            cpu_seconds=machine.cpu_seconds(),
            memory_rss_bytes=used,
            memory_vms_bytes=machine.virtual(),
            network_rx_bytes=received,
            network_tx_bytes=sent,
            memory_utilization_ratio=round(used / total, 4) if total else None,
        ),
    )


async def logs(request: Request, query: LogQuery) -> Response:
    server_named(request, request.path_params["id"])
    if query.tail is None and query.source not in SOURCES:
        return await show_logs(request, query)
    # The operations' log is the server's own; of a VMM nothing is known inside the VM.
    source = {"hypeman": "server", "vmm": "vmm"}.get(query.source or "app")
    return await show_logs(request, msgspec.structs.replace(query, source=source), _string, retry=b"")


def _string(event: Event) -> bytes:
    # Without an id: Hypeman's clients take every block after one for an event, comments too, and parse its data.
    shown = wire.fields(event)
    line = f"{shown['timestamp']} {shown['level']} {shown['message']}"
    return wire.as_data(msgspec.json.encode(line))


async def stop(request: Request) -> Response:
    await server_named(request, request.path_params["id"]).lifecycle.stop("stopped")
    return reply(request, describe(request))


async def standby(request: Request) -> Response:
    await server_named(request, request.path_params["id"]).lifecycle.stop("standby")
    return reply(request, describe(request))


async def restore(request: Request) -> Response:
    await server_named(request, request.path_params["id"]).lifecycle.start()
    return reply(request, describe(request))


async def start(request: Request, body: HypemanStart) -> Response:
    if body.cmd or body.entrypoint:
        raise ControlPlaneOnly("cmd and entrypoint are those of the image, and the control plane's to change; start without them.")
    return await restore(request)


async def update(request: Request, body: HypemanUpdate) -> Response:
    server = server_named(request, request.path_params["id"])
    await server.environment.change(body.env)
    return reply(request, describe(request))


async def create_snapshot(request: Request, body: HypemanSnapshot) -> Response:
    server = server_named(request, request.path_params["id"])
    return reply(request, show_snapshot(await server.snapshots.create(body.name)), 201)


async def snapshots(request: Request) -> Response:
    server = server_named(request, request.path_params["id"])
    return reply(request, [show_snapshot(snapshot) for snapshot in await server.snapshots.all()])


async def restore_snapshot(request: Request, body: HypemanRestore) -> Response:
    server = server_named(request, request.path_params["id"])
    await server.restores.restore(request.path_params["snapshot"])
    if body.target_state in ("Standby", "Stopped"):
        await server.lifecycle.stop("standby" if body.target_state == "Standby" else "stopped")
    return reply(request, describe(request))


async def wait(request: Request, query: WaitQuery) -> Response:
    lifecycle = server_named(request, request.path_params["id"]).lifecycle
    seconds = min(_seconds(query.timeout), WAIT_LONGEST)
    until = asyncio.get_running_loop().time() + seconds
    while STATES[lifecycle.status] != query.state and asyncio.get_running_loop().time() < until:  # noqa: ASYNC110  # nobody tells of it
        await asyncio.sleep(WAIT_STEP)
    state = STATES[lifecycle.status]
    return reply(request, WaitReply(state, timed_out=state != query.state))


def _seconds(duration: str) -> float:
    """Reads a duration as Go writes them."""
    parts = re.findall(r"(\d+(?:\.\d+)?)(ms|h|m|s)", duration)
    if not parts or "".join(number + unit for number, unit in parts) != duration:
        raise InvalidRequest(f"timeout: expected a duration such as 30s or 1m30s, got {duration[:40]!r}.", path="timeout")
    return sum(float(number) * {"ms": 0.001, "s": 1, "m": 60, "h": 3600}[unit] for number, unit in parts)


def _change(path: str, handler: Any, summary: str, body: type[msgspec.Struct] | None = None) -> Endpoint:
    return Endpoint("POST", path, handler, summary, body=body, replies={200: Instance}, errors=(404, 409, 501))


ROUTES = (
    Endpoint("GET", "/instances/{id}/stats", stats, "What the machine has and uses", replies={200: StatsReply}, errors=(404,)),
    Endpoint(
        "GET",
        "/instances/{id}/logs",
        logs,
        "Log lines; as a stream of JSON strings where tail or a source of Hypeman's is asked for",
        query=LogQuery,
        replies={200: (LogReply, EVENTS)},
        errors=(404,),
    ),
    Endpoint("GET", "/instances/{id}/wait", wait, "Wait for a state", query=WaitQuery, replies={200: WaitReply}, errors=(404,)),
    Endpoint(
        "PATCH",
        "/instances/{id}",
        update,
        "Change the environment of commands to come",
        body=HypemanUpdate,
        replies={200: Instance},
        errors=(404, 422),
    ),
    _change("/instances/{id}/stop", stop, "Refuse tasks, and hold those there are, until start"),
    _change("/instances/{id}/standby", standby, "Refuse tasks, and hold those there are, until restore"),
    _change("/instances/{id}/start", start, "Take tasks again", HypemanStart),
    _change("/instances/{id}/restore", restore, "Take tasks again"),
    Endpoint(
        "POST",
        "/instances/{id}/snapshots",
        create_snapshot,
        "Keep the workspace, the conversations and the configuration as they are",
        body=HypemanSnapshot,
        replies={201: SnapshotReply},
        errors=(404, 409, 422),
    ),
    Endpoint(
        "GET", "/instances/{id}/snapshots", snapshots, "List the snapshots, newest first", replies={200: list[SnapshotReply]}, errors=(404,)
    ),
    Endpoint(
        "POST",
        "/instances/{id}/snapshots/{snapshot}/restore",
        restore_snapshot,
        "Put workspace and conversations back to what they were",
        body=HypemanRestore,
        replies={200: Instance},
        errors=(404, 409, 422),
    ),
    Endpoint("POST", "/instances/{id}/fork", control_plane_only, "Only a control plane makes instances", errors=(404, 501)),
    Endpoint("POST", "/instances/{id}/volumes/{volume}", control_plane_only, "Only a control plane has volumes", errors=(404, 501)),
    Endpoint("DELETE", "/instances/{id}/volumes/{volume}", control_plane_only, "Only a control plane has volumes", errors=(404, 501)),
)
