"""Event streams: Server-Sent Events that resume by id."""

import asyncio
from collections.abc import AsyncIterator, Callable

from starlette.requests import Request
from starlette.responses import Response

from agent_server import wire
from agent_server.errors import InvalidRequest
from agent_server.events import Event

RETRY = b"retry: 1000\n\n"
"""Milliseconds until a client that lost its stream connects again."""

PING_SECONDS = 15
SEND_TIMEOUT = 30.0
"""Seconds a reader may take for one write (the socket's own buffer is full by then); then it is closed and resumes by id."""

TURN = 4
"""Events that a stream sends before others have their turn, some 50 µs each: many that catch up at once must not hold up everybody else."""


def resume_from(request: Request, after: int | None) -> int | None:
    """Gives the id a client has seen last, from Last-Event-ID or `?after=`.

    Errors: InvalidRequest for what is no id.
    """
    header = request.headers.get("last-event-id", "")
    if not header:
        return after
    if not header.isascii() or not header.isdigit() or len(header) > 18:
        raise InvalidRequest(f"Last-Event-ID is {header[:40]!r}; it must be the id of an event.", path="Last-Event-ID")
    return int(header)


def stream(events: AsyncIterator[Event], encode: Callable[[Event], bytes] = wire.sse, retry: bytes = RETRY) -> Response:
    """Gives a response that sends the events as they come, each as `encode` gives it. The iterator ends it."""
    return event_source(_encode(events, encode, retry))


def event_source(blocks: AsyncIterator[bytes]) -> Response:
    """Gives a response that sends these blocks as they come, and comments while none come."""
    # Imported at the first stream: a start has no use for it, and it takes 3 ms.
    from sse_starlette.sse import EventSourceResponse

    own_the_drain()
    return EventSourceResponse(blocks, ping=PING_SECONDS, sep="\n", send_timeout=SEND_TIMEOUT)


def own_the_drain() -> None:
    """Lets streams end when what they follow does, with its last events sent, rather than when a signal comes."""
    from sse_starlette.sse import AppStatus  # as above

    AppStatus.enable_automatic_graceful_drain = False


async def _encode(events: AsyncIterator[Event], encode: Callable[[Event], bytes], retry: bytes) -> AsyncIterator[bytes]:
    if retry:
        yield retry
    sent = 0
    async for event in events:
        yield encode(event)
        sent += 1
        if sent % TURN == 0:  # a write that finds room in the socket's buffer waits for nothing
            await asyncio.sleep(0)
