"""A session's todo list: the newest that its agent wrote, as the conversation stands; reverted tasks take theirs along."""

from collections.abc import Mapping, Sequence
from typing import Any

from agent_server.events.log import EventLog
from agent_server.events.store import COLUMNS, event_of
from agent_server.sessions.standing import standing

_PLACES = ("session.restored", "session.reverted", "session.unreverted", "task.started")
"""Types that say which lists stand. The lists themselves are in what mentions them, a small part of a conversation."""


async def todos(log: EventLog, session_id: str) -> Sequence[Mapping[str, Any]]:
    """Gives the list, of `content`, `status` and `priority` each; empty where none was written."""
    types = ", ".join("?" * len(_PLACES))
    condition = f"""session_id = ? AND context = 1 AND (type IN ({types})
        OR (type IN ('tool.finished', 'message.copied', 'context.restored') AND instr(data, '"todos"')))"""
    statement = f"SELECT {COLUMNS} FROM events WHERE {condition} ORDER BY seq"
    stored = await log.query(lambda db: [event_of(row) for row in db.execute(statement, (session_id, *_PLACES))])
    found: Sequence[Mapping[str, Any]] = ()
    for event in standing(stored):
        if event.type == "tool.finished":
            found = event.data.get("details", {}).get("todos", found)
        elif event.type == "message.copied" and event.data.get("todos") is not None:
            found = event.data["todos"]
    return found
