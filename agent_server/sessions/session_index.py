"""Sessions as clients list them: the index that is folded from the log, and what is read from it.

What is said in a session is `conversation.py`; the queues and workers are `sessions.py`.
"""

import sqlite3
from collections.abc import Sequence
from typing import Any

import msgspec

from agent_server.errors import NotFound
from agent_server.events import Event
from agent_server.events.log import EventLog
from agent_server.wire import timestamp

_BEGINNING = frozenset({"session.created", "session.restored", "task.created"})
"""What makes a session."""

_ACTIVITY = frozenset({"session.compacted", "session.reverted", "session.unreverted", "task.completed", "task.failed", "message.added"})
"""What counts as activity besides: few types, as each costs a row's update."""


class SessionIndex:
    """The table `sessions`: those that can be continued. A deleted one leaves it, and its events lose the mark that keeps them."""

    version = 3
    tables: Sequence[str] = ("sessions",)
    schema: Sequence[str] = (
        """CREATE TABLE sessions (
            session_id TEXT PRIMARY KEY, created INTEGER NOT NULL, created_at INTEGER NOT NULL,
            activity INTEGER NOT NULL, activity_at INTEGER NOT NULL, title TEXT, agent TEXT, forked_from TEXT,
            parent_id TEXT, parent_task_id TEXT, tool_call_id TEXT)""",
        "CREATE INDEX sessions_parent ON sessions (parent_id) WHERE parent_id IS NOT NULL",
        "CREATE INDEX sessions_activity ON sessions (activity)",
    )

    def apply(self, db: sqlite3.Connection, events: Sequence[Event]) -> None:
        for event in events:
            if event.session_id is None:
                continue
            if event.type == "session.deleted":
                db.execute("DELETE FROM sessions WHERE session_id = ?", (event.session_id,))
                # Retention may have them, and who continues the session begins anew.
                statement = "UPDATE events SET context = NULL WHERE session_id = ? AND context = 1 AND seq < ?"
                db.execute(statement, (event.session_id, event.seq))
            elif event.type in _BEGINNING:
                if event.type == "session.restored":  # as if it had not been there before
                    db.execute("DELETE FROM sessions WHERE session_id = ?", (event.session_id,))
                db.execute(_UPSERT, _row(event))
            elif event.type in _ACTIVITY:
                statement = "UPDATE sessions SET activity = ?, activity_at = ? WHERE session_id = ?"
                db.execute(statement, (event.seq, event.time, event.session_id))


_UPSERT = """INSERT INTO sessions VALUES
    (:session, :seq, :time, :seq, :time, :title, :agent, :forked, :parent, :parent_task, :call) ON CONFLICT DO UPDATE SET
    activity = excluded.activity, activity_at = excluded.activity_at, title = coalesce(title, excluded.title),
    agent = coalesce(agent, excluded.agent), forked_from = coalesce(forked_from, excluded.forked_from)"""


def _row(event: Event) -> dict[str, Any]:
    data = event.data
    forked = data.get("forkedFrom") or {}
    return {
        "session": event.session_id,
        "seq": event.seq,
        "time": event.time,
        "title": data.get("title"),
        "agent": data.get("agent"),
        "forked": forked.get("sessionId"),
        "parent": data.get("parentSessionId"),
        "parent_task": data.get("parentTaskId"),
        "call": data.get("toolCallId"),
    }


class Session(msgspec.Struct, frozen=True):
    """Where a session stands. Times are Unix milliseconds; `created` and `activity` the numbers of its first and newest events;
    `parent_id` is the session that it is a subagent's of, and which call of it; the rest is of its tasks."""

    session_id: str
    created: int
    created_at: int
    activity: int
    activity_at: int
    title: str | None
    agent: str | None
    forked_from: str | None
    parent_id: str | None
    parent_task_id: str | None
    tool_call_id: str | None
    tasks: int
    processing: int
    total_tokens: int
    cost: float | None

    def to_wire(self) -> dict[str, Any]:
        """Gives the session as `GET /sessions/{id}` shows it."""
        return {
            "sessionId": self.session_id,
            "title": self.title,
            "agentType": self.agent,
            "status": "busy" if self.processing else "idle",
            "createdAt": timestamp(self.created_at),
            "updatedAt": timestamp(self.activity_at),
            "forkedFrom": self.forked_from,
            "parentSessionId": self.parent_id,
            "parentTaskId": self.parent_task_id,
            "toolCallId": self.tool_call_id,
            "tasks": self.tasks,
            "tokensUsed": self.total_tokens,
            "cost": self.cost,
        }


_SELECT = """SELECT s.*, count(t.task_id), coalesce(sum(t.status = 'processing'), 0),
    coalesce(sum(t.prompt_tokens + t.completion_tokens), 0), sum(t.cost)
    FROM (SELECT * FROM sessions WHERE {} ORDER BY activity DESC LIMIT :limit) s
    LEFT JOIN tasks t ON t.session_id = s.session_id AND t.created >= s.created GROUP BY s.session_id ORDER BY s.activity DESC"""


def _select(db: sqlite3.Connection, where: str, **values: Any) -> list[Session]:
    return [Session(*row) for row in db.execute(_SELECT.format(where), values).fetchall()]


async def find(log: EventLog, session_id: str) -> Session:
    """Gives one session.

    Errors: NotFound (SESSION_NOT_FOUND).
    """
    found = await log.query(lambda db: _select(db, "session_id = :id", id=session_id, limit=1))
    if not found:
        raise NotFound(
            f"There is no session {session_id[:128]}; GET /sessions lists those there are.",
            code="SESSION_NOT_FOUND",
            details={"sessionId": session_id},
        )
    return found[0]


async def find_all(log: EventLog, *, before: int | None = None, limit: int = 50) -> list[Session]:
    """Gives sessions, newest activity first; `before` is the `activity` of the last one of the page before."""
    where = "activity < :before" if before is not None else "1"
    return await log.query(lambda db: _select(db, where, before=before, limit=limit))


async def agent_of(log: EventLog, session_id: str) -> str | None:
    """Gives the name of a session's agent; None as long as it has none."""
    statement = "SELECT agent FROM sessions WHERE session_id = ?"
    row = await log.query(lambda db: db.execute(statement, (session_id,)).fetchone())
    return row[0] if row is not None else None


async def find_children(log: EventLog, session_id: str) -> list[str]:
    """Gives the sessions of a session's subagents, oldest first."""
    statement = "SELECT session_id FROM sessions WHERE parent_id = ? ORDER BY created"
    return [child for (child,) in await log.query(lambda db: db.execute(statement, (session_id,)).fetchall())]


async def find_subagent(log: EventLog, session_id: str, reference: str) -> Session | None:
    """Gives the session of a subagent of this one, by its own id or by one of its tasks."""
    where = "parent_id = :parent AND session_id IN (:reference, (SELECT session_id FROM tasks WHERE task_id = :reference))"
    found = await log.query(lambda db: _select(db, where, parent=session_id, reference=reference, limit=1))
    return found[0] if found else None
