"""The contract of the event log: what an event is, and what an index of them must do.

`log.py` appends, reads and follows; `writer.py` commits; `store.py` is the database, `journal.py` what stands in for it for
some ms, `retention.py` what keeps it small. The form of events on the wire is `wire.py`.
"""

import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import msgspec

from agent_server.errors import AgentServerError

CONTEXT = frozenset(
    {
        "session.created",
        "session.restored",
        "context.restored",
        "task.created",
        "task.started",
        "message.completed",
        "message.added",
        "message.copied",
        "tool.finished",
        "permission.replied",
        "session.compacted",
        "session.pruned",
        "compaction.failed",
        "session.repaired",
        "session.reverted",
        "session.unreverted",
        "revert.started",
        "revert.failed",
        "task.completed",
        "task.failed",
    }
)
"""Types of which a session's conversation is made: retention never removes them."""


class LogUnavailable(AgentServerError, OSError):
    """The log cannot be written or read: a full disk, a broken database."""

    status = 500


class Draft(msgspec.Struct, frozen=True):
    """An event before it has its place. With `sync` it survives the machine's end, without only that of all processes."""

    type: str
    data: Mapping[str, Any]
    session_id: str | None = None
    task_id: str | None = None
    sync: bool = False


class Event(msgspec.Struct, frozen=True):
    """One entry. `time` is Unix milliseconds; `data` holds the fields of its type, secrets masked; `size` is what it takes in memory."""

    seq: int
    time: int
    type: str
    data: Mapping[str, Any]
    session_id: str | None = None
    task_id: str | None = None
    size: int = 0


class Index(Protocol):
    """A table derived from the log, kept up in the transaction that adds the events. Called in the writer thread."""

    version: int
    """Raised when what `apply` makes changes: the tables are dropped and built from the log at the next start."""

    tables: Sequence[str]
    schema: Sequence[str]
    """Its tables, and the statements that create them and their SQL indexes."""

    def apply(self, db: sqlite3.Connection, events: Sequence[Event]) -> None:
        """Takes the events of one transaction in, in their order. Must skip types it does not know."""
