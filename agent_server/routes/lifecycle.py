"""What a host asks of an instance it is about to pause, fork, stop or copy; and GET /activity, whether it may."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from agent_server.http import Endpoint, reply
from agent_server.server import server_of
from agent_server.wire import timestamp

HOUR_MS = 3_600_000

Name = Annotated[str, Meta(min_length=1, max_length=256, pattern=r"^[!-~]([ -~]*[!-~])?$(?!\n)")]


class QuiesceRequest(msgspec.Struct, frozen=True):
    timeout: Annotated[int, Meta(ge=1, le=24 * HOUR_MS, description="milliseconds of running time until it resumes by itself")] = 60_000


class QuiesceReply(msgspec.Struct, frozen=True):
    status: Literal["quiesced"]
    still: Annotated[bool, Meta(description="false where a tool other than a command did not end in 10 s")]
    tasks: Annotated[int, Meta(description="queued, or held at a safe point")]
    processes: Annotated[int, Meta(description="commands that run on")]


class ResumeRequest(msgspec.Struct, frozen=True, rename="camel"):
    instance_id: Name | None = None
    instance_name: Name | None = None


class ResumeReply(msgspec.Struct, frozen=True, rename="camel"):
    status: Literal["running", "standby", "stopped"]
    instance_id: str
    instance_name: str | None


class StopRequest(msgspec.Struct, frozen=True):
    status: Literal["stopped", "standby"] = "stopped"


class LifecycleReply(msgspec.Struct, frozen=True):
    status: Literal["running", "standby", "stopped"]


class ActivityQuery(msgspec.Struct, frozen=True):
    within: Annotated[int, Meta(ge=0, le=7 * 24 * 3600, description="seconds in which a scheduled run is due")] = 0


class ReasonReply(msgspec.Struct, frozen=True):
    type: str
    count: int


class ActivityReply(msgspec.Struct, frozen=True, rename="camel"):
    active: bool
    reasons: list[ReasonReply]
    idle_since: str | None
    idle_ms: int = msgspec.field(name="idle_ms")


async def quiesce(request: Request, body: QuiesceRequest) -> Response:
    server = server_of(request)
    is_still = await server.lifecycle.quiesce(body.timeout / 1000)
    return reply(request, QuiesceReply("quiesced", is_still, server.sessions.processing, server.processes.running))


async def resume(request: Request, body: ResumeRequest) -> Response:
    server = server_of(request)
    await server.lifecycle.resume(body.instance_id, body.instance_name)
    identity = server.data.identity
    return reply(request, ResumeReply(server.lifecycle.status, identity.instance_id, identity.instance_name))


async def stop(request: Request, body: StopRequest) -> Response:
    lifecycle = server_of(request).lifecycle
    await lifecycle.stop(body.status)
    return reply(request, LifecycleReply(lifecycle.status))


async def start(request: Request) -> Response:
    lifecycle = server_of(request).lifecycle
    await lifecycle.start()
    return reply(request, LifecycleReply(lifecycle.status))


async def activity(request: Request, query: ActivityQuery) -> Response:
    activity = server_of(request).activity
    reasons = [ReasonReply(reason.type, reason.count) for reason in activity.reasons(query.within)]
    if reasons:
        return reply(request, ActivityReply(True, reasons, None, 0))
    since, idle = await activity.idle()
    return reply(request, ActivityReply(False, [], timestamp(since), idle))


ROUTES = (
    Endpoint(
        "POST",
        "/lifecycle/quiesce",
        quiesce,
        "Hold all tasks at safe points, with everything on disk",
        body=QuiesceRequest,
        replies={200: QuiesceReply},
        errors=(409,),
    ),
    Endpoint(
        "POST",
        "/lifecycle/resume",
        resume,
        "Go on after a pause, or as a fork with an identity of its own",
        body=ResumeRequest,
        replies={200: ResumeReply},
    ),
    Endpoint("POST", "/lifecycle/stop", stop, "Refuse tasks until the start", body=StopRequest, replies={200: LifecycleReply}),
    Endpoint("POST", "/lifecycle/start", start, "Take tasks again", replies={200: LifecycleReply}),
    Endpoint("GET", "/activity", activity, "Whether anything is going on", query=ActivityQuery, replies={200: ActivityReply}),
)
