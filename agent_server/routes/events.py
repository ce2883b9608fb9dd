"""GET /events and GET /logs: everything that happens, as a stream or as lines."""

from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from agent_server import wire
from agent_server.errors import InvalidRequest
from agent_server.events import Event
from agent_server.events.log import tail
from agent_server.http import Endpoint, reply
from agent_server.routes.tasks import EVENTS, ResumeQuery
from agent_server.server import Server, server_of
from agent_server.streams import RETRY, resume_from, stream

Level = Literal["DEBUG", "INFO", "WARNING", "ERROR"]


class LogQuery(msgspec.Struct, frozen=True):
    lines: Annotated[int, Meta(ge=0, le=10_000)] = 100
    tail: Annotated[int, Meta(ge=0, le=10_000)] | None = None
    since: Annotated[str, Meta(description="RFC 3339; UTC where it names no offset")] | None = None
    source: str | None = None
    level: Annotated[str, Meta(description="the lowest level shown: DEBUG, INFO, WARNING or ERROR")] = "INFO"
    follow: bool = False
    after: Annotated[int, Meta(ge=0, le=2**62)] | None = None


class LogLine(msgspec.Struct, frozen=True, rename="camel"):
    timestamp: str
    level: Level
    type: str
    message: str
    source: str
    task_id: str | None
    seq: int


class LogReply(msgspec.Struct, frozen=True):
    logs: list[LogLine]


async def events(request: Request, query: ResumeQuery) -> Response:
    server = server_of(request)
    after = resume_from(request, query.after)
    return stream(_everything(server, server.log.newest if after is None else after))


async def _everything(server: Server, after: int) -> AsyncIterator[Event]:
    with server.sessions.around.audience.joined(None):
        async for event in server.log.follow(after=after, for_client=True):
            yield event


async def logs(request: Request, query: LogQuery) -> Response:
    return await show_logs(request, query)


async def show_logs(request: Request, query: LogQuery, encode: Callable[[Event], bytes] = wire.sse, retry: bytes = RETRY) -> Response:
    """Answers with lines, or with a stream in which each event is as `encode` gives it."""
    log = server_of(request).log
    wanted = _Wanted(query)
    is_stream = query.follow or "text/event-stream" in request.headers.get("accept", "")
    after = resume_from(request, query.after)
    if is_stream and after is not None:
        return stream(wanted.only(log.follow(after=after, for_client=True)), encode, retry)
    await log.flush()
    end = log.newest
    history = await tail(log, lambda event: event.seq <= end and wanted(event), query.tail if query.tail is not None else query.lines)
    if is_stream:
        following = wanted.only(log.follow(after=end, for_client=True)) if query.follow else None
        return stream(_history(history, following), encode, retry)
    return reply(request, {"logs": [_line(event) for event in history]})


class _Wanted:
    """What a reader of logs asked for."""

    def __init__(self, query: LogQuery) -> None:
        name = query.level.upper()
        if name not in wire.LEVELS:
            raise InvalidRequest(f"level: expected DEBUG, INFO, WARNING or ERROR, got {query.level[:40]!r}.", path="level")
        self._level = wire.LEVELS[name]
        self._source = query.source
        self._since = _milliseconds(query.since) if query.since is not None else 0

    def __call__(self, event: Event) -> bool:
        if event.time < self._since or wire.LEVELS[wire.level(event)] < self._level:
            return False
        return self._source is None or wire.source(event) == self._source

    async def only(self, events: AsyncIterator[Event]) -> AsyncIterator[Event]:
        async for event in events:
            if self(event):
                yield event


def _milliseconds(text: str) -> int:
    try:
        at = datetime.fromisoformat(text)
        return round((at if at.tzinfo is not None else at.replace(tzinfo=UTC)).timestamp() * 1000)
    except (ValueError, OverflowError) as error:
        raise InvalidRequest(f"since: expected a time such as 2026-01-31T10:00:00Z, got {text[:40]!r}.", path="since") from error


async def _history(history: list[Event], following: AsyncIterator[Event] | None) -> AsyncIterator[Event]:
    for event in history:
        yield event
    if following is not None:
        async for event in following:
            yield event


def _line(event: Event) -> dict[str, Any]:
    shown = wire.fields(event)
    return {name: shown[name] for name in ("timestamp", "level", "type", "message", "source", "taskId", "seq")}


ROUTES = (
    Endpoint("GET", "/events", events, "Follow everything", query=ResumeQuery, replies={200: EVENTS}),
    Endpoint("GET", "/logs", logs, "Show the newest log lines, or follow them", query=LogQuery, replies={200: (LogReply, EVENTS)}),
)
