"""The sessions: what was said in them, and what can be done with them."""

from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from agent_server.errors import InvalidRequest
from agent_server.events import Draft
from agent_server.gateway import ModelOptions
from agent_server.http import Endpoint, reply
from agent_server.routes.tasks import ImagePart, TextPart, TokenUsage
from agent_server.server import server_of
from agent_server.sessions import conversation, session_index
from agent_server.sessions.compaction import compact as compact_session
from agent_server.sessions.entries import Entry, parts_to_wire
from agent_server.sessions.fork import fork as fork_session
from agent_server.sessions.todos import todos as newest_todos
from agent_server.wire import timestamp

PAGE_BYTES = 8 << 20
"""Bytes of messages, about, after which a page ends: images are large."""


class SessionReply(msgspec.Struct, frozen=True, rename="camel"):
    session_id: str
    title: Annotated[str, Meta(description="of its first task")] | None
    agent_type: str | None
    status: Literal["idle", "busy"]
    created_at: str
    updated_at: str
    forked_from: Annotated[str, Meta(description="a session")] | None
    parent_session_id: Annotated[str, Meta(description="where it is a subagent's: the session that it works for")] | None
    parent_task_id: Annotated[str, Meta(description="where it is a subagent's: the task that began it")] | None
    tool_call_id: Annotated[str, Meta(description="where it is a subagent's: the call that began it")] | None
    tasks: int
    tokens_used: int
    cost: Annotated[float, Meta(description="USD; null when no price is known")] | None


class SessionList(msgspec.Struct, frozen=True, rename="camel"):
    sessions: list[SessionReply]
    next_cursor: str | None


class SessionsQuery(msgspec.Struct, frozen=True):
    limit: Annotated[int, Meta(ge=1, le=200)] = 50
    cursor: Annotated[str, Meta(pattern=r"^[0-9]{1,18}$(?!\n)")] | None = None


class MessageCall(msgspec.Struct, frozen=True, rename="camel"):
    """A tool call with its result; `output` is null as long as it has none."""

    tool_call_id: str
    tool: str
    input: Annotated[Any, Meta(description="the arguments; a string where they are no valid JSON")]
    output: str | None
    is_error: bool


class MessageReply(msgspec.Struct, frozen=True, rename="camel"):
    message_id: str
    role: Literal["user", "assistant"]
    content: list[TextPart | ImagePart]
    tool_calls: list[MessageCall]
    task_id: str | None
    created_at: str
    is_summary: Annotated[bool, Meta(description="whether it stands for messages that were compacted")]


class MessageList(msgspec.Struct, frozen=True, rename="camel"):
    messages: list[MessageReply]
    next_cursor: str | None


class MessagesQuery(msgspec.Struct, frozen=True):
    limit: Annotated[int, Meta(ge=1, le=200)] = 50
    cursor: Annotated[str, Meta(min_length=1, max_length=64, description="nextCursor of the page before")] | None = None


class TodoReply(msgspec.Struct, frozen=True):
    content: str
    status: Literal["pending", "in_progress", "completed", "cancelled"]
    priority: Literal["high", "medium", "low"]


class TodoList(msgspec.Struct, frozen=True, rename="camel"):
    session_id: str
    todos: list[TodoReply]


class DeletedReply(msgspec.Struct, frozen=True, rename="camel"):
    session_id: str
    deleted: bool


class ForkRequest(msgspec.Struct, frozen=True, rename="camel"):
    at_message_id: Annotated[str, Meta(min_length=1, max_length=64, description="the last message that is taken along")] | None = None


class CompactRequest(msgspec.Struct, frozen=True):
    model: Annotated[str, Meta(min_length=1)] | None = None
    provider: Annotated[str, Meta(min_length=1)] | None = None


class Replaced(msgspec.Struct, frozen=True, rename="camel"):
    messages: int
    from_message_id: str
    until_message_id: str


class CompactReply(msgspec.Struct, frozen=True, rename="camel"):
    session_id: str
    compacted: bool
    reason: Annotated[str, Meta(description="why nothing was done")] | None = None
    message_id: str | None = None
    summary: str | None = None
    replaces: Replaced | None = None
    usage: TokenUsage | None = None


async def list_sessions(request: Request, query: SessionsQuery) -> Response:
    before = int(query.cursor) if query.cursor is not None else None
    found = await session_index.find_all(server_of(request).log, before=before, limit=query.limit + 1)
    page = found[: query.limit]
    cursor = str(page[-1].activity) if len(found) > query.limit else None
    return reply(request, {"sessions": [session.to_wire() for session in page], "nextCursor": cursor})


async def get_session(request: Request) -> Response:
    session = await session_index.find(server_of(request).log, request.path_params["session_id"])
    return reply(request, session.to_wire())


async def messages(request: Request, query: MessagesQuery) -> Response:
    log, session_id = server_of(request).log, request.path_params["session_id"]
    await session_index.find(log, session_id)
    turns = list(_turns((await conversation.load(log, session_id)).entries))
    begin = 0
    if query.cursor is not None:
        begin = next((at + 1 for at, turn in enumerate(turns) if turn[0].message_id == query.cursor), 0)
        if not begin:
            raise InvalidRequest("cursor: there is no such message in the session any more; begin without one.", path="cursor")
    page: list[dict[str, Any]] = []
    size = 0
    for turn in turns[begin : begin + query.limit]:
        page.append(_message(turn))
        size += sum(len(part.data) for part in turn[0].message.content if hasattr(part, "data")) + sum(len(e.message.text) for e in turn)
        if size > PAGE_BYTES:
            break
    cursor = page[-1]["messageId"] if page and begin + len(page) < len(turns) else None
    return reply(request, {"messages": page, "nextCursor": cursor})


async def todos(request: Request) -> Response:
    log, session_id = server_of(request).log, request.path_params["session_id"]
    await session_index.find(log, session_id)
    return reply(request, {"sessionId": session_id, "todos": await newest_todos(log, session_id)})


def _turns(entries: Sequence[Entry]) -> Iterator[list[Entry]]:
    """Gives each message with the results of its calls."""
    turn: list[Entry] = []
    for entry in entries:
        if entry.message.role != "tool" and turn:
            yield turn
            turn = []
        turn.append(entry)
    if turn:
        yield turn


def _message(turn: Sequence[Entry]) -> dict[str, Any]:
    first, *results = turn
    by_call = {entry.message.tool_call_id: entry for entry in results}
    return {
        "messageId": first.message_id,
        "role": first.message.role,
        "content": parts_to_wire(first.message.content),
        "toolCalls": [_call(call.id, call.name, call.arguments, by_call.get(call.id)) for call in first.message.tool_calls],
        "taskId": first.task_id,
        "createdAt": timestamp(first.created_at),
        "isSummary": first.is_summary,
    }


def _call(call_id: str, name: str, arguments: str, result: Entry | None) -> dict[str, Any]:
    try:
        given = msgspec.json.decode(arguments or "{}")
    except (msgspec.DecodeError, RecursionError):
        given = arguments
    ended = {"output": result.message.text, "isError": result.is_error} if result is not None else {"output": None, "isError": False}
    return {"toolCallId": call_id, "tool": name, "input": given, **ended}


async def delete(request: Request) -> Response:
    server, session_id = server_of(request), request.path_params["session_id"]
    async with AsyncExitStack() as held:
        await held.enter_async_context(server.sessions.held(session_id))
        children = await session_index.find_children(server.log, session_id)  # nobody else can go on with them
        for child_id in children:
            await held.enter_async_context(server.sessions.held(child_id))
        for each in (*children, session_id):
            await server.processes.end_left("the session was deleted", session_id=each)
        await server.log.append(*(Draft("session.deleted", {}, each, sync=True) for each in (*children, session_id)))
        await server.log.flush()  # who lists sessions next does not find it
    return reply(request, DeletedReply(session_id, True))


async def fork(request: Request, body: ForkRequest) -> Response:
    server = server_of(request)
    forked_id = await fork_session(server.log, request.path_params["session_id"], body.at_message_id)
    return reply(request, (await session_index.find(server.log, forked_id)).to_wire(), 201)


async def compact(request: Request, body: CompactRequest) -> Response:
    server, session_id = server_of(request), request.path_params["session_id"]
    settings = server.settings
    options = None
    if body.model is not None or body.provider is not None:
        options = ModelOptions(body.provider or settings.provider, body.model or settings.model)
    event = await compact_session(server.sessions, server.sessions.around, session_id, options)
    if event is None:
        return reply(request, CompactReply(session_id, False, "There is nothing to compact: the conversation is as short as it gets."))
    return reply(request, {"sessionId": session_id, "compacted": True, "reason": None, **event.data})


_BUSY = (404, 409, 503)

ROUTES = (
    Endpoint("GET", "/sessions", list_sessions, "List sessions, newest activity first", query=SessionsQuery, replies={200: SessionList}),
    Endpoint("GET", "/sessions/{session_id}", get_session, "Show a session", replies={200: SessionReply}, errors=(404,)),
    Endpoint(
        "GET",
        "/sessions/{session_id}/messages",
        messages,
        "Show a session's conversation as its next task is given it, oldest first",
        query=MessagesQuery,
        replies={200: MessageList},
        errors=(404,),
    ),
    Endpoint(
        "GET",
        "/sessions/{session_id}/todos",
        todos,
        "Show the todo list that a session's agent wrote last",
        replies={200: TodoList},
        errors=(404,),
    ),
    Endpoint("DELETE", "/sessions/{session_id}", delete, "Forget a session and its subagents'", replies={200: DeletedReply}, errors=_BUSY),
    Endpoint(
        "POST",
        "/sessions/{session_id}/fork",
        fork,
        "Begin a session with the conversation of another one, up to a message",
        body=ForkRequest,
        replies={201: SessionReply},
        errors=(404, 409),
    ),
    Endpoint(
        "POST",
        "/sessions/{session_id}/compact",
        compact,
        "Have a model summarise the conversation, and go on with the summary",
        body=CompactRequest,
        replies={200: CompactReply},
        errors=(*_BUSY, 502, 504),
    ),
)
