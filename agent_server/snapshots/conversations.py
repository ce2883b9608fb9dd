"""The conversations of a snapshot: the events of which each session's is made, as lines of JSON, out of the log and into it again.

They go into the log as copies that mean nothing by themselves (`context.restored`); one `session.restored` for each session, all
in one transaction, then begins its conversation anew with them. So a restore that breaks off has changed none of them.
"""

import asyncio
import re
import sqlite3
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal

import msgspec

from agent_server.calling.calls import interrupted
from agent_server.events import CONTEXT, Draft, Event
from agent_server.events.log import EventLog
from agent_server.redaction import Secrets
from agent_server.sessions.conversation import Conversation
from agent_server.sessions.entries import INTERRUPTED, entry_to_wire
from agent_server.sessions.standing import standing
from agent_server.snapshots.swap import Begun
from agent_server.snapshots.tar import BadArchive
from agent_server.snapshots.unpack import LINE_BYTES

PAGE_BYTES = 1 << 20
PAGE_EVENTS = 500
"""How much is read, and appended, at a time."""

MOST_SESSIONS = 100_000
"""Sessions in one snapshot: their names are in memory."""

_COPIED = CONTEXT - {"session.restored", "context.restored", "session.reverted", "session.unreverted", "revert.started", "revert.failed"}
"""What is left of a conversation's events when restores and reverts have been applied."""

_SESSION = re.compile(r"[^\x00-\x1f\x7f]{1,256}")


class Line(msgspec.Struct, frozen=True, rename="camel"):
    """One event of a conversation. `time` is Unix milliseconds."""

    session_id: str
    task_id: str | None
    type: str
    time: int
    data: dict[str, Any]


async def save(log: EventLog, secrets: Secrets, out: BinaryIO) -> int:
    """Writes all conversations as they stand, session by session, and gives how many there are.

    A call that has begun and not ended is told as interrupted: what it does is in the workspace, or not. Errors: LogUnavailable, OSError.
    """
    sessions = await log.query(_sessions)
    newest = log.newest
    for session_id in sessions:
        stored = await log.read(session_id=session_id, context=True)
        events = standing(event for event in stored if event.seq <= newest)
        lines = [_line(session_id, event) for event in events if event.type in _COPIED]
        lines += [line async for line in _interrupted(log, session_id, lines)]
        await asyncio.to_thread(_write, out, secrets, lines)
    return len(sessions)


def _write(out: BinaryIO, secrets: Secrets, lines: Sequence[Line]) -> None:
    for line in lines:
        out.write(secrets.encode(line)[0] + b"\n")


async def _interrupted(log: EventLog, session_id: str, lines: Sequence[Line]) -> AsyncIterator[Line]:
    conversation = Conversation(session_id)
    for line in lines:
        conversation.apply(_event(line))
    if conversation.open_calls:
        last = lines[-1]
        begun = {event.data["toolCallId"] for event in await log.read(task_id=last.task_id, types=("tool.started",))}
        for call in conversation.open_calls:
            if call.id in begun:
                yield Line(session_id, last.task_id, "tool.finished", last.time, interrupted(call, INTERRUPTED))


def _line(session_id: str, event: Event) -> Line:
    return Line(session_id, event.task_id, event.type, event.time, dict(event.data))


def _event(line: Line) -> Event:
    return Event(1, line.time, line.type, line.data, line.session_id, line.task_id)


def _sessions(db: sqlite3.Connection) -> list[str]:
    statement = "SELECT DISTINCT session_id FROM events WHERE context = 1 AND session_id IS NOT NULL ORDER BY session_id LIMIT ?"
    return [session_id for (session_id,) in db.execute(statement, [MOST_SESSIONS])]


class Check:
    """Takes the lines of a snapshot one by one, and makes sure that every conversation can be gone on with.

    With `out`, it writes them there; `sessions` names them all in the end.
    """

    def __init__(self, out: BinaryIO | None = None) -> None:
        self.sessions: list[Begun] = []
        self._out = out
        self._known: set[str] = set()
        self._conversation = Conversation("")

    def __call__(self, text: bytes) -> None:
        """Errors: BadArchive, OSError."""
        try:
            line = msgspec.json.decode(text, type=Line)
            self._enter(line)
            # The same fold that a task begins with: what it cannot take must not get into the log.
            self._conversation.apply(_event(line))
            for entry in self._conversation.entries[-1:]:
                msgspec.convert(entry_to_wire(entry), _Said)
            self._describe(line)
        except (msgspec.MsgspecError, RecursionError, LookupError, TypeError, AttributeError, ValueError, StopIteration) as error:
            if isinstance(error, BadArchive):
                raise
            raise BadArchive("an event of a conversation is damaged") from error
        if self._out is not None:
            self._out.write(text + b"\n")

    def _enter(self, line: Line) -> None:
        if line.type not in _COPIED:
            raise BadArchive(f"{line.type[:40]!r} is no event of a conversation")
        if line.session_id == self._conversation.session_id:
            return
        if not _SESSION.fullmatch(line.session_id) or line.session_id in self._known or len(self._known) >= MOST_SESSIONS:
            raise BadArchive("its conversations are not in their order")
        self._known.add(line.session_id)
        self.sessions.append(Begun(line.session_id))
        self._conversation = Conversation(line.session_id)

    def _describe(self, line: Line) -> None:
        if line.type in ("session.created", "task.created"):
            told = msgspec.convert(line.data, _Beginning)
            known = self.sessions[-1]
            parent = known.parent_session_id or told.parent_session_id
            self.sessions[-1] = Begun(known.session_id, known.title or told.title, known.agent or told.agent, parent)
        if line.type == "session.created" and not isinstance(line.data.get("system"), str):
            raise BadArchive("a conversation has no system prompt")


class _Beginning(msgspec.Struct, rename="camel"):
    title: str | None = None
    agent: str | None = None
    parent_session_id: str | None = None


class _Said(msgspec.Struct, rename="camel"):
    """What every message of a conversation is."""

    role: Literal["user", "assistant", "tool"]
    content: list[dict[str, str]]
    tool_calls: list[dict[str, str]]
    tool_call_id: str | None
    reasoning: dict[str, Any] | None


async def copy(log: EventLog, lines: Path, restore_id: str) -> None:
    """Puts the copies into the log, where they mean nothing yet. Errors: LogUnavailable, OSError."""
    with lines.open("rb") as file:
        while page := list(_read_page(file)):
            await log.append(*(_copy(line, restore_id) for line in page))


def _read_page(file: BinaryIO) -> Iterator[Line]:
    size = count = 0
    while size < PAGE_BYTES and count < PAGE_EVENTS and (text := file.readline(LINE_BYTES + 2)):
        size, count = size + len(text), count + 1
        yield msgspec.json.decode(text, type=Line)


def _copy(line: Line, restore_id: str) -> Draft:
    data = {"restoreId": restore_id, "type": line.type, "taskId": line.task_id, "time": line.time, "data": line.data}
    return Draft("context.restored", data, line.session_id)
