"""POST /run, and the tasks it makes."""

import binascii
import hashlib
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from agent_server.calling import custom
from agent_server.errors import InvalidRequest
from agent_server.events import Event
from agent_server.http import Endpoint, reply
from agent_server.server import Server, server_of
from agent_server.sessions import tasks
from agent_server.sessions.submission import Submission
from agent_server.sessions.tasks import TERMINAL, Task
from agent_server.streams import resume_from, stream

MAX_STEPS = 10_000

DAY_MS = 24 * 3600 * 1000

MAX_IMAGE = 5 << 20
"""Bytes of one image: what the strictest of the large providers takes."""


class TextPart(msgspec.Struct, frozen=True, tag="text"):
    text: str


class ImagePart(msgspec.Struct, frozen=True, tag="image", rename="camel"):
    data: Annotated[str, Meta(description="base64")]
    media_type: Literal["image/png", "image/jpeg", "image/gif", "image/webp"]


Prompt: TypeAlias = Annotated[str, Meta(min_length=1)] | Annotated[list[TextPart | ImagePart], Meta(min_length=1)]


class McpRequest(msgspec.Struct, frozen=True):
    """How an MCP server is reached: a command that speaks stdio, or the URL of an endpoint."""

    name: Annotated[str, Meta(pattern=custom.NAME)] = "mcp"
    command: Annotated[str, Meta(min_length=1)] | None = None
    args: list[str] = []
    env: Annotated[dict[str, str], Meta(description="for the command, besides a clean environment; never shown")] = {}
    cwd: Annotated[str, Meta(description="of the command: relative to the workspace, or absolute")] | None = None
    url: str | None = None
    headers: Annotated[dict[str, str], Meta(description="for the URL; never shown")] = {}
    type: (
        Annotated[
            Literal["stdio", "http", "sse"], Meta(description="http is streamable HTTP; without it, the older SSE is tried after that")
        ]
        | None
    ) = None
    timeout: (
        Annotated[int, Meta(ge=1, le=DAY_MS, description="milliseconds; for its start, 30000 without it, and for each call, 300000")] | None
    ) = None
    oauth: Annotated[custom.OAuth | bool, Meta(description="for the URL; false asks for no authorization")] = True


class ToolRequest(msgspec.Struct, frozen=True):
    """A tool of the client's own: called at `url`, or without one run by the client, or all those of an MCP server (`mcp` alone)."""

    name: Annotated[str, Meta(pattern=custom.NAME)] | None = None
    description: str | None = None
    parameters: Annotated[dict[str, Any], Meta(description="a JSON Schema object")] | None = None
    url: Annotated[str, Meta(description="the arguments are posted there, and the reply is the result")] | None = None
    mcp: McpRequest | None = None


class RunRequest(msgspec.Struct, frozen=True, rename="camel"):
    prompt: Prompt
    model: Annotated[str, Meta(min_length=1)] | None = None
    provider: Annotated[str, Meta(min_length=1)] | None = None
    timeout: Annotated[int, Meta(ge=1, le=7 * DAY_MS, description="milliseconds; the deadline of the whole task")] = 480_000
    max_tokens: Annotated[int, Meta(ge=1, description="of one model response")] | None = msgspec.field(name="max_tokens", default=None)
    system: Annotated[str, Meta(description="added to the system prompt")] | None = None
    tools: list[ToolRequest] = []
    auto_tools: Annotated[bool, Meta(description="false: only the tools in tools are offered")] = True
    is_async: bool = msgspec.field(name="async", default=False)
    background: bool = False
    session_id: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.:@-]{1,128}$(?!\n)")] | None = None
    output_schema: Annotated[dict[str, Any], Meta(description="a JSON Schema that the final answer must fit")] | None = None
    max_steps: Annotated[int, Meta(ge=1, le=MAX_STEPS)] | None = None
    max_cost: Annotated[float, Meta(gt=0, description="USD; holds where the price of the model is known")] | None = None
    mode: Annotated[Literal["build", "plan"], Meta(description="plan: the agent only reads, and answers with a plan")] = "build"
    interactive: (
        Annotated[bool, Meta(description="whether the client answers what is asked; else who follows the task's events counts")] | None
    ) = None


class Accepted(msgspec.Struct, frozen=True, rename="camel"):
    task_id: str
    session_id: str
    status: Literal["processing", "completed", "failed"]


class TokenUsage(msgspec.Struct, frozen=True):
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    reasoning_tokens: int
    total_tokens: int
    cost: Annotated[float, Meta(description="USD; null when no price is known")] | None


class ToolCount(msgspec.Struct, frozen=True):
    name: str
    count: int


class TaskError(msgspec.Struct, frozen=True):
    code: str
    message: str
    details: dict[str, Any]


class TaskReply(msgspec.Struct, frozen=True, rename="camel"):
    task_id: str
    session_id: str
    status: Literal["processing", "completed", "failed"]
    phase: Literal["queued", "running", "waiting", "retrying", "cancelled", "timed_out", "interrupted", "done"]
    prompt: str | list[TextPart | ImagePart]
    model: str
    provider: str
    created_at: str
    started_at: str | None
    completed_at: str | None
    response: str | None
    output: Annotated[Any, Meta(description="the final answer as JSON, where the task has an outputSchema")]
    usage: TokenUsage
    tokens_used: int
    duration_ms: int | None = msgspec.field(name="duration_ms")
    message_id: str | None
    tools_used: list[ToolCount]
    steps: int
    changes: list[dict[str, Any]]
    error: TaskError | None
    reverted: Annotated[bool, Meta(description="what it did was undone, and the conversation does not have it")]
    parent_session_id: Annotated[str, Meta(description="where it is a subagent: the session of the task it works for")] | None
    parent_task_id: Annotated[str, Meta(description="where it is a subagent: the task it works for, whose usage has its own in it")] | None
    tool_call_id: Annotated[str, Meta(description="where it is a subagent: the call of that task that began it")] | None


class TaskList(msgspec.Struct, frozen=True, rename="camel"):
    tasks: list[TaskReply]
    next_cursor: str | None


class ListQuery(msgspec.Struct, frozen=True, rename="camel"):
    status: Literal["processing", "completed", "failed"] | None = None
    session_id: str | None = None
    limit: Annotated[int, Meta(ge=1, le=200)] = 50
    cursor: Annotated[str, Meta(pattern=r"^[0-9]{1,18}$(?!\n)")] | None = None


class ResumeQuery(msgspec.Struct, frozen=True):
    after: Annotated[int, Meta(ge=0, le=2**62, description="the id of the last event that was seen")] | None = None


async def run(request: Request, body: RunRequest) -> Response:
    server = server_of(request)
    submission = await _submission(server, body)
    key = request.headers.get("idempotency-key") or None
    if key is not None and len(key) > 255:
        raise InvalidRequest("Idempotency-Key has at most 255 characters.", path="Idempotency-Key")
    request_hash = hashlib.sha256(msgspec.json.encode(body, order="deterministic")).hexdigest() if key is not None else None
    task_id = await server.sessions.submit(submission, body.session_id, key=key, request_hash=request_hash)
    if "text/event-stream" in request.headers.get("accept", ""):
        task = await tasks.find(server.log, task_id)
        return stream(_until_end(server, task, task.created - 1))
    if body.is_async or body.background:
        task = await tasks.find(server.log, task_id)
        return reply(request, {"taskId": task_id, "sessionId": task.session_id, "status": task.status}, 202)
    return _finished(request, await server.sessions.wait(task_id))


async def _submission(server: Server, body: RunRequest) -> Submission:
    check_prompt(body.prompt)
    tools = [_without_null(msgspec.to_builtins(entry)) for entry in body.tools]
    if tools:
        await custom.check(tools, server.sessions.tool_names if body.auto_tools else ())
    if body.output_schema is not None:
        await custom.check_schema(body.output_schema, "outputSchema")
    settings = server.settings
    return Submission(
        prompt=body.prompt if isinstance(body.prompt, str) else msgspec.to_builtins(body.prompt),
        model=body.model or settings.model,
        provider=body.provider or settings.provider,
        timeout_ms=body.timeout,
        max_steps=body.max_steps or server.sessions.agent.max_steps,
        max_tokens=body.max_tokens,
        max_cost=body.max_cost,
        system=body.system,
        auto_tools=body.auto_tools,
        tools=tools,
        output_schema=body.output_schema,
        mode=body.mode,
        interactive=body.interactive,
    )


def _without_null(entry: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in entry.items() if value is not None}


def check_prompt(prompt: str | list[TextPart | ImagePart]) -> None:
    """Refuses what every provider refuses, before a task is made of it: blank text, and images that are none."""
    if isinstance(prompt, str):
        prompt, only = [TextPart(prompt)], "prompt"
    else:
        only = None
    for number, part in enumerate(prompt):
        place = f"prompt[{number}]"
        if isinstance(part, TextPart) and not part.text.strip():
            path = only or f"{place}.text"
            raise InvalidRequest(f"{path}: it must not be blank.", path=path)
        if isinstance(part, ImagePart) and len(part.data) > MAX_IMAGE * 4 / 3 + 4:
            text = f"{place}.data: an image has at most {MAX_IMAGE} bytes; send a smaller one."
            raise InvalidRequest(text, path=f"{place}.data")
        if isinstance(part, ImagePart) and not _is_base64(part.data):
            raise InvalidRequest(f"{place}.data: it must be an image in base64, without a data: prefix.", path=f"{place}.data")


def _is_base64(text: str) -> bool:
    try:
        return len(binascii.a2b_base64(text, strict_mode=True)) > 0
    except ValueError:
        return False


def _finished(request: Request, task: Task) -> Response:
    wire = task.to_wire()
    if task.status == "failed":
        error = {**task.outcome["error"], "requestId": request.scope["request_id"]}
        if "response" in task.outcome:  # what it has reached, where a limit has ended it
            error["details"] = {**error["details"], "response": task.outcome["response"]}
        return reply(request, {"error": error}, task.outcome["status"])
    return reply(request, wire)


async def _until_end(server: Server, task: Task, after: int) -> AsyncIterator[Event]:
    with server.sessions.around.audience.joined(task.task_id):
        async for event in server.log.follow(after=after, task_id=task.task_id, for_client=True):
            yield event
            if event.type in TERMINAL:
                return


async def list_tasks(request: Request, query: ListQuery) -> Response:
    before = int(query.cursor) if query.cursor is not None else None
    log, more = server_of(request).log, query.limit + 1
    found = await tasks.find_all(log, status=query.status, session_id=query.session_id, before=before, limit=more)
    page = found[: query.limit]
    cursor = str(page[-1].created) if len(found) > query.limit else None
    return reply(request, {"tasks": [task.to_wire() for task in page], "nextCursor": cursor})


async def get_task(request: Request) -> Response:
    task = await tasks.find(server_of(request).log, request.path_params["task_id"])
    return reply(request, task.to_wire())


async def task_events(request: Request, query: ResumeQuery) -> Response:
    server = server_of(request)
    task = await tasks.find(server.log, request.path_params["task_id"])
    after = resume_from(request, query.after)
    if task.ended is not None and after is not None and after >= task.ended:
        return Response(status_code=204)
    return stream(_until_end(server, task, max(after or 0, task.created - 1)))


async def cancel(request: Request) -> Response:
    task = await server_of(request).sessions.cancel(request.path_params["task_id"])
    return reply(request, task.to_wire())


EVENTS = "text/event-stream"

ROUTES = (
    Endpoint(
        "POST",
        "/run",
        run,
        "Run a task: wait for its end, follow it as a stream, or have it accepted at once",
        body=RunRequest,
        replies={200: (TaskReply, EVENTS), 202: Accepted},
        errors=(409, 422, 429, 502, 503, 504),
    ),
    Endpoint("GET", "/tasks", list_tasks, "List tasks, newest first", query=ListQuery, replies={200: TaskList}),
    Endpoint("GET", "/tasks/{task_id}", get_task, "Show a task", replies={200: TaskReply}, errors=(404,)),
    Endpoint(
        "GET", "/tasks/{task_id}/events", task_events, "Follow a task", query=ResumeQuery, replies={200: EVENTS, 204: ""}, errors=(404,)
    ),
    Endpoint("POST", "/tasks/{task_id}/cancel", cancel, "End a task and its processes", replies={200: TaskReply}, errors=(404,)),
)
