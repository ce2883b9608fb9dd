"""What came through integrations and what is owed for it: an index of the log, so that replies survive every end.

integration.received   a message: makes a task, or holds its answer already
task.completed/failed  the reply is due
integration.sending    before each message of it leaves
integration.sent       after
integration.held       it did not leave, and is tried again
integration.error      of a reply: that message of it will not be known to have arrived; with `isFinal` nothing more is sent
"""

import sqlite3
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import msgspec

from agent_server.events import Event
from agent_server.events.log import EventLog

KEPT_MS = 7 * 24 * 3600 * 1000
"""Milliseconds that the key of a message that is done with is known; platforms repeat a delivery for a day at the most."""


class Delivery(msgspec.Struct, frozen=True):
    """A reply that is due since `due` (Unix milliseconds): the end of a task, or `answer`.

    `sent` of its messages are dealt with; `sending` one is on its way, 0 being the notice that one is doubtful, which
    `is_doubtful` says is owed.
    """

    key: str
    session_id: str
    task_id: str | None
    to: Mapping[str, Any]
    answer: str | None
    due: int
    sent: int
    sending: int | None
    is_doubtful: bool


class DeliveryIndex:
    """The table `deliveries`: every message that came, by its key."""

    version = 1
    tables: Sequence[str] = ("deliveries",)
    schema: Sequence[str] = (
        """CREATE TABLE deliveries (
            key TEXT PRIMARY KEY, integration TEXT NOT NULL, session_id TEXT NOT NULL, task_id TEXT, recipient TEXT NOT NULL,
            answer TEXT, received INTEGER NOT NULL, due INTEGER, sent INTEGER NOT NULL DEFAULT 0, parts INTEGER, sending INTEGER,
            is_doubtful INTEGER NOT NULL DEFAULT 0, is_done INTEGER NOT NULL DEFAULT 0)""",
        "CREATE INDEX deliveries_task ON deliveries (task_id) WHERE task_id IS NOT NULL",
        "CREATE INDEX deliveries_open ON deliveries (integration, due) WHERE is_done = 0",
        "CREATE INDEX deliveries_done ON deliveries (received) WHERE is_done = 1",
    )

    def apply(self, db: sqlite3.Connection, events: Sequence[Event]) -> None:
        for event in events:
            if (statements := _FOLDS.get(event.type)) is not None:
                values = _Values(event.data, time=event.time, session=event.session_id, task=event.task_id)
                if "to" in values:
                    values["to"] = msgspec.json.encode(values["to"]).decode()
                for statement in statements:
                    db.execute(statement, values)


class _Values(dict[str, Any]):
    """The fields of an event; what it does not have is None. Those that are not named in a statement may be anything."""

    def __missing__(self, name: str) -> None:
        return None


_ENDED = ("UPDATE deliveries SET due = :time WHERE task_id = :task AND due IS NULL AND is_done = 0",)

_FOLDS: Mapping[str, Sequence[str]] = {
    "integration.received": (
        "DELETE FROM deliveries WHERE is_done = 1 AND received < :time - " + str(KEPT_MS),
        "INSERT OR IGNORE INTO deliveries (key, integration, session_id, task_id, recipient, answer, received, due, is_done) VALUES "
        "(:key, :integration, :session, :task, :to, :answer, :time, CASE WHEN :answer IS NOT NULL THEN :time END, "
        ":answer IS NULL AND :task IS NULL)",
    ),
    "task.completed": _ENDED,
    "task.failed": _ENDED,
    "integration.sending": ("UPDATE deliveries SET sending = :part, parts = :parts WHERE key = :key",),
    "integration.sent": (
        "UPDATE deliveries SET sending = NULL, sent = max(sent, :part), is_doubtful = is_doubtful AND :part > 0, "
        "is_done = max(sent, :part) >= parts WHERE key = :key",
    ),
    "integration.held": ("UPDATE deliveries SET sending = NULL WHERE key = :key",),
    "integration.error": (
        "UPDATE deliveries SET sending = NULL, sent = max(sent, coalesce(:part, 0)), is_doubtful = coalesce(:part, 0) > 0, "
        "is_done = coalesce(:isFinal, 0) OR (coalesce(:part, -1) = 0 AND sent >= parts) WHERE key = :key",
    ),
}

_COLUMNS = "key, session_id, task_id, recipient, answer, due, sent, sending, is_doubtful"


async def is_known(log: EventLog, key: str) -> bool:
    """Tells whether a message with this key has come."""
    return await log.query(lambda db: db.execute("SELECT 1 FROM deliveries WHERE key = ?", (key,)).fetchone()) is not None


async def find_due(log: EventLog, integration: str, *, without: Collection[str], limit: int) -> list[Delivery]:
    """Gives the oldest reply that is due in each session, save those `without`."""
    where = f"integration = ? AND is_done = 0 AND due IS NOT NULL AND session_id NOT IN ({', '.join('?' * len(without))})"
    # SQLite takes the other columns from the row that has the minimum.
    columns = _COLUMNS.replace("due", "min(due)")
    statement = f"SELECT {columns} FROM deliveries WHERE {where} GROUP BY session_id ORDER BY 6 LIMIT ?"
    rows = await log.query(lambda db: db.execute(statement, (integration, *without, limit)).fetchall())
    return [Delivery(k, s, t, msgspec.json.decode(to), a, due, sent, sending, bool(d)) for k, s, t, to, a, due, sent, sending, d in rows]


async def find_awaited(log: EventLog, integration: str, *, limit: int) -> list[Mapping[str, Any]]:
    """Gives where the replies of tasks go that are under way, one for each session."""
    where = "integration = ? AND is_done = 0 AND due IS NULL"
    statement = f"SELECT min(received), recipient FROM deliveries WHERE {where} GROUP BY session_id LIMIT ?"
    rows = await log.query(lambda db: db.execute(statement, (integration, limit)).fetchall())
    return [msgspec.json.decode(recipient) for _, recipient in rows]
