"""Snapshots: make, list, delete, restore, and carry to another machine."""

import re
from typing import Annotated, Any

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import FileResponse, Response

from agent_server.errors import AgentServerError
from agent_server.http import Endpoint, reply
from agent_server.server import server_of
from agent_server.snapshots import Snapshot
from agent_server.wire import timestamp

ARCHIVE = "application/gzip"


SnapshotName = Annotated[
    str,
    Meta(
        pattern=r"^(?!snap_)[^/\x00-\x1f\x7f]{1,128}$(?!\n)",
        description="unique, and not beginning with snap_; the id where none is given",
    ),
]


class SnapshotRequest(msgspec.Struct, frozen=True):
    name: SnapshotName | None = None


class SnapshotReply(msgspec.Struct, frozen=True):
    """Our own fields are in camel case; those in snake case are Hypeman's, whose clients ask for the same paths."""

    snapshot_id: str = msgspec.field(name="snapshotId")
    name: str
    size: Annotated[int, Meta(description="bytes of the archive")]
    created: str = msgspec.field(name="createdAt")
    id: str
    created_at: str
    kind: Annotated[str, Meta(description="Stopped: it holds files and conversations, no memory")]
    size_bytes: int
    source_instance_id: str
    source_instance_name: str


class RestoreReply(msgspec.Struct, frozen=True, rename="camel"):
    snapshot_id: str
    name: str
    entries: Annotated[int, Meta(description="files, folders and links in the workspace")]
    sessions: Annotated[int, Meta(description="conversations that go on from where they were")]
    configuration: Annotated[dict[str, Any], Meta(description="what the server that made it was told to be, without secrets; not applied")]


class NoSuchRange(AgentServerError):
    code = "INVALID_REQUEST"
    status = 416


async def create(request: Request, body: SnapshotRequest) -> Response:
    server = server_of(request)
    return reply(request, show_snapshot(await server.snapshots.create(body.name)), 201)


async def snapshots(request: Request) -> Response:
    server = server_of(request)
    return reply(request, [show_snapshot(snapshot) for snapshot in await server.snapshots.all()])


async def delete(request: Request) -> Response:
    server = server_of(request)
    return reply(request, show_snapshot(await server.snapshots.delete(request.path_params["snapshot"])))


async def restore(request: Request) -> Response:
    return reply(request, await server_of(request).restores.restore(request.path_params["snapshot"]))


async def download(request: Request) -> Response:
    kept = server_of(request).snapshots
    snapshot = await kept.find(request.path_params["snapshot"])
    _settle_range(request, snapshot.size)
    return FileResponse(kept.archive(snapshot), media_type=ARCHIVE, filename=f"{snapshot.snapshot_id}.tar.gz")


async def upload(request: Request) -> Response:
    snapshot = await server_of(request).snapshots.receive(request.path_params["snapshot"], request.stream())
    return reply(request, show_snapshot(snapshot), 201)


def show_snapshot(snapshot: Snapshot) -> SnapshotReply:
    """Gives a snapshot as clients see it."""
    created = timestamp(snapshot.created_at)
    return SnapshotReply(
        snapshot_id=snapshot.snapshot_id,
        name=snapshot.name,
        size=snapshot.size,
        created=created,
        id=snapshot.snapshot_id,
        created_at=created,
        kind="Stopped",
        size_bytes=snapshot.size,
        source_instance_id=snapshot.instance_id,
        source_instance_name=snapshot.instance_name or snapshot.instance_id,
    )


def _settle_range(request: Request, size: int) -> None:
    """Leaves a Range to Starlette only where it is one that can be given; others are ignored, as HTTP allows.

    Errors: NoSuchRange.
    """
    wanted = request.headers.get("range", "")
    found = re.fullmatch(r"bytes=([0-9]{0,18})-([0-9]{0,18})", wanted)
    first, last = found.groups() if found is not None else ("", "")
    is_backwards = bool(first and last) and int(first) > int(last)
    if not (first or last) or is_backwards:
        request.scope["headers"] = [(name, value) for name, value in request.scope["headers"] if name != b"range"]
    elif (first and int(first) >= size) or (not first and not int(last)):
        raise NoSuchRange(f"The archive has {size} bytes; ask for a range in it.", details={"size": size})


ROUTES = (
    Endpoint(
        "POST",
        "/snapshot",
        create,
        "Keep the workspace, the conversations and the configuration as they are",
        body=SnapshotRequest,
        replies={201: SnapshotReply},
        errors=(409, 422),
    ),
    Endpoint("GET", "/snapshots", snapshots, "List the snapshots, newest first", replies={200: list[SnapshotReply]}),
    Endpoint(
        "DELETE", "/snapshots/{snapshot}", delete, "Delete a snapshot, by its id or name", replies={200: SnapshotReply}, errors=(404, 409)
    ),
    Endpoint(
        "GET",
        "/snapshots/{snapshot}/archive",
        download,
        "Fetch a snapshot as a file",
        replies={200: ARCHIVE, 206: ARCHIVE},
        errors=(404, 416),
    ),
    Endpoint(
        "PUT",
        "/snapshots/{snapshot}/archive",
        upload,
        "Take a snapshot in from another machine, under its id or a new name",
        replies={201: SnapshotReply},
        errors=(409, 422),
        streamed=ARCHIVE,
    ),
    Endpoint(
        "POST",
        "/snapshots/{snapshot}/restore",
        restore,
        "Put workspace and conversations back to what they were",
        replies={200: RestoreReply},
        errors=(404, 409, 422),
    ),
)
