"""The conversations of a snapshot: the events of which each session's is made, as lines of JSON, out of the log and into it again.

They go into the log as copies that mean nothing by themselves (`context.restored`); one `session.restored` for each session, all
in one transaction, then begins its conversation anew with them. So a restore that breaks off has changed none of them.
"""

import re
import sqlite3
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal

import msgspec

from agent_server.calls import interrupted
from agent_server.conversation import INTERRUPTED, Conversation, entry_to_wire, original
from agent_server.events import CONTEXT, Draft, Event
from agent_server.events.log import EventLog
from agent_server.events.store import COLUMNS, event_of
from agent_server.redaction import Secrets
from agent_server.snapshots.swap import Begun
from agent_server.snapshots.tar import BadArchive
from agent_server.snapshots.unpack import LINE_BYTES

PAGE_BYTES = 1 << 20
PAGE_EVENTS = 500
"""How much is read, and appended, at a time."""

MOST_SESSIONS = 100_000
"""Sessions in one snapshot: their names are in memory."""

_COPIED = CONTEXT - {"session.restored", "context.restored"}
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
        conversation = Conversation(session_id)
        last: Line | None = None
        async for page in _pages(log, session_id, newest):
            for line in page:
                conversation.apply(_event(line))
                last = line
            out.write(b"".join(_encoded(secrets, line) for line in page))
        if last is not None and conversation.open_calls:
            out.write(b"".join([_encoded(secrets, line) async for line in _interrupted(log, conversation, last)]))
    return len(sessions)


async def _interrupted(log: EventLog, conversation: Conversation, last: Line) -> AsyncIterator[Line]:
    started = await log.read(task_id=last.task_id, types=("tool.started",))
    begun = {event.data["toolCallId"] for event in started}
    for call in conversation.open_calls:
        if call.id in begun:
            yield Line(last.session_id, last.task_id, "tool.finished", last.time, interrupted(call, INTERRUPTED))


def _encoded(secrets: Secrets, line: Line) -> bytes:
    return secrets.encode(line)[0] + b"\n"


def _event(line: Line) -> Event:
    return Event(1, line.time, line.type, line.data, line.session_id, line.task_id)


def _sessions(db: sqlite3.Connection) -> list[str]:
    rows = db.execute(
        "SELECT DISTINCT session_id FROM events WHERE context = 1 AND session_id IS NOT NULL ORDER BY session_id LIMIT ?", [MOST_SESSIONS]
    )
    return [session_id for (session_id,) in rows]


async def _pages(log: EventLog, session_id: str, newest: int) -> AsyncIterator[list[Line]]:
    of_session = "session_id = ? AND context = 1"
    begin = f"SELECT {COLUMNS} FROM events WHERE {of_session} AND type = 'session.restored' AND seq <= ? ORDER BY seq DESC LIMIT 1"
    rows = await log.query(lambda db: db.execute(begin, (session_id, newest)).fetchall())
    restored = event_of(rows[0]) if rows else None
    at = 0
    while True:
        page, at = await log.query(lambda db, at=at: _page(db, session_id, at, newest))  # type: ignore[misc]  # mypy cannot infer a lambda's default
        if not page:
            return
        yield [_line(session_id, event) for event in page if _counts(event, restored)]


def _page(db: sqlite3.Connection, session_id: str, after: int, newest: int) -> tuple[list[Event], int]:
    statement = f"SELECT {COLUMNS} FROM events WHERE session_id = ? AND context = 1 AND seq > ? AND seq <= ? ORDER BY seq LIMIT ?"
    page: list[Event] = []
    size = 0
    rows = db.execute(statement, (session_id, after, newest, PAGE_EVENTS))
    while size < PAGE_BYTES and (row := rows.fetchone()) is not None:
        page.append(event_of(row))
        size += page[-1].size
    rows.close()
    return page, page[-1].seq if page else after


def _counts(event: Event, restored: Event | None) -> bool:
    """Whether an event is a part of the conversation as it stands, `restored` being the latest restore's."""
    if event.type == "context.restored":
        return restored is not None and event.data["restoreId"] == restored.data["restoreId"]
    return event.type != "session.restored" and (restored is None or event.seq > restored.seq)


def _line(session_id: str, event: Event) -> Line:
    at = event.data["time"] if event.type == "context.restored" else event.time
    event = original(event) if event.type == "context.restored" else event
    return Line(session_id, event.task_id, event.type, at, dict(event.data))


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
            self.sessions[-1] = Begun(known.session_id, known.title or told.title, known.agent or told.agent)
        if line.type == "session.created" and not isinstance(line.data.get("system"), str):
            raise BadArchive("a conversation has no system prompt")


class _Beginning(msgspec.Struct):
    title: str | None = None
    agent: str | None = None


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
