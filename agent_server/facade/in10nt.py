"""in10nt's shapes: the list of instances, restart, saved templates, which are snapshots here."""

from typing import Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from agent_server.facade import control_plane_only, server_named
from agent_server.facade.hypeman import State
from agent_server.facade.instance import Instance, describe
from agent_server.http import Endpoint, reply
from agent_server.routes import snapshots
from agent_server.routes.snapshots import SnapshotReply, show_snapshot
from agent_server.server import server_of


class InstancesQuery(msgspec.Struct, frozen=True):
    """Hypeman's filter; in10nt has none."""

    state: State | None = None


class Restarting(msgspec.Struct, frozen=True, rename="camel"):
    instance_id: str
    status: Literal["restarting"]


async def instances(request: Request, query: InstancesQuery) -> Response:
    instance = describe(request)
    return reply(request, [instance] if query.state in (None, instance.state) else [])


async def instance(request: Request) -> Response:
    server_named(request, request.path_params["id"])
    return reply(request, describe(request))


async def restart(request: Request) -> Response:
    server = server_named(request, request.path_params["id"])
    server.restart()
    return reply(request, Restarting(server.data.identity.instance_id, "restarting"), 202)


async def delete_saved_template(request: Request) -> Response:
    return reply(request, show_snapshot(await server_of(request).snapshots.delete(request.path_params["name"])))


ROUTES = (
    Endpoint("GET", "/saved-templates", snapshots.snapshots, "The snapshots, newest first", replies={200: list[SnapshotReply]}),
    Endpoint(
        "DELETE",
        "/saved-templates/{name}",
        delete_saved_template,
        "Delete a snapshot, by its name or id",
        replies={200: SnapshotReply},
        errors=(404, 409),
    ),
    Endpoint("GET", "/instances", instances, "The one instance, as a list", query=InstancesQuery, replies={200: list[Instance]}),
    Endpoint("POST", "/instances", control_plane_only, "Only a control plane makes instances", errors=(501,)),
    Endpoint("GET", "/instances/{id}", instance, "Show the instance", replies={200: Instance}, errors=(404,)),
    Endpoint("DELETE", "/instances/{id}", control_plane_only, "Only a control plane removes instances", errors=(404, 501)),
    Endpoint("POST", "/instances/{id}/restart", restart, "Drain, and start again", replies={202: Restarting}, errors=(404,)),
    Endpoint("GET", "/container-templates", control_plane_only, "Only a control plane has these", errors=(501,)),
    Endpoint("POST", "/container-templates", control_plane_only, "Only a control plane has these", errors=(501,)),
    Endpoint("GET", "/container-templates/{template}", control_plane_only, "Only a control plane has these", errors=(501,)),
    Endpoint("GET", "/container-templates/{template}/status", control_plane_only, "Only a control plane has these", errors=(501,)),
    Endpoint("DELETE", "/container-templates/{template}", control_plane_only, "Only a control plane has these", errors=(501,)),
)
