"""The database of the log: its tables, how it is opened, how rows and events become one another."""

import sqlite3
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import msgspec

from agent_server.events import CONTEXT, Event, Index, LogUnavailable
from agent_server.events.journal import Journal

SEQUENCE_BLOCK = 100_000
"""Sequence numbers reserved at a time. Reserved ones are never given again, also when power loss takes the events."""

EVENT_OVERHEAD = 400
"""Bytes an event takes in memory besides its data, about."""

CHECKPOINT_PAGES = 4_000
"""Pages of 4 KiB in the write-ahead log before they go into the database: hot pages are then written once for many commits."""

FORMAT = 1
"""The version of the tables below."""

SCHEMA = """
CREATE TABLE IF NOT EXISTS events (
    seq INTEGER PRIMARY KEY, time INTEGER NOT NULL, type TEXT NOT NULL, session_id TEXT, task_id TEXT, context INTEGER, data TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS events_task ON events (task_id, seq) WHERE task_id IS NOT NULL;
CREATE INDEX IF NOT EXISTS events_context ON events (session_id, seq) WHERE context = 1;
CREATE TABLE IF NOT EXISTS removed (task_id TEXT PRIMARY KEY, first INTEGER NOT NULL, last INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
"""

Row: TypeAlias = tuple[int, int, str, str | None, str | None, int | None, str]
INSERT = "INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?)"

COLUMNS = "seq, time, type, session_id, task_id, data"
"""What `event_of` takes."""


class Opened(msgspec.Struct, frozen=True):
    """A database that is ready: the writer's connection, and where the numbers stand."""

    db: sqlite3.Connection
    newest: int
    first_free: int
    reserved: int


def connect(path: Path) -> sqlite3.Connection:
    """Opens a connection, for any thread but for one at a time."""
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    db.execute("PRAGMA cache_size = -1024")
    db.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
    db.execute(f"PRAGMA journal_size_limit = {16 << 20}")
    return db


def open_store(path: Path, journal: Journal, indexes: Sequence[Index]) -> Opened:
    """Opens or creates the database, takes the journal in and brings the indexes up to date. Blocks for some ms.

    Errors: sqlite3.DatabaseError when it is no database, LogUnavailable when a later version wrote it.
    """
    db = connect(path)
    db.executescript(SCHEMA)
    meta = dict(db.execute("SELECT name, value FROM meta"))
    if int(meta.get("format", FORMAT)) > FORMAT:
        raise LogUnavailable("The event log was written by a later version of agent-server; start that version.")
    db.execute("BEGIN IMMEDIATE")
    for index in indexes:
        name = type(index).__name__
        if int(meta.get(f"index {name}", 0)) != index.version:
            _rebuild(db, index)
            db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (f"index {name}", index.version))
    _take_in(db, journal, indexes)
    (newest,) = db.execute("SELECT coalesce(max(seq), 0) FROM events").fetchone()
    first_free = max(int(meta.get("reserved", 0)), newest) + 1
    reserved = first_free + SEQUENCE_BLOCK
    db.execute("INSERT OR REPLACE INTO meta VALUES ('reserved', ?)", (reserved,))
    db.execute("INSERT OR IGNORE INTO meta VALUES ('format', ?)", (FORMAT,))
    db.execute("COMMIT")
    db.execute("PRAGMA synchronous = NORMAL")
    return Opened(db, newest, first_free, reserved)


def _rebuild(db: sqlite3.Connection, index: Index) -> None:
    for statement in (*(f"DROP TABLE IF EXISTS {name}" for name in index.tables), *index.schema):
        db.execute(statement)
    for row in db.execute(f"SELECT {COLUMNS} FROM events ORDER BY seq"):
        index.apply(db, [event_of(row)])


def _take_in(db: sqlite3.Connection, journal: Journal, indexes: Sequence[Index]) -> None:
    """Commits what was promised and not committed when the server before this one was killed."""
    statement = "SELECT max((SELECT coalesce(max(seq), 0) FROM events), (SELECT coalesce(max(last), 0) FROM removed))"
    (newest,) = db.execute(statement).fetchone()
    for entry in journal.entries():
        rows = msgspec.msgpack.decode(entry, type=list[Row])
        if rows[0][0] <= newest:
            continue  # committed before the end, or of an earlier round
        db.executemany(INSERT, rows)
        events = [event_of((seq, at, kind, session_id, task_id, data)) for seq, at, kind, session_id, task_id, _, data in rows]
        for index in indexes:
            index.apply(db, events)
        newest = rows[-1][0]


def row_of(event: Event, encoded: bytes) -> Row:
    """Gives the row of an event whose data is `encoded` as JSON."""
    # Of a call without a task no conversation is made.
    is_context = event.type in CONTEXT and (event.task_id is not None or event.type != "tool.finished")
    return (event.seq, event.time, event.type, event.session_id, event.task_id, 1 if is_context else None, encoded.decode())


def event_of(row: tuple[int, int, str, str | None, str | None, str]) -> Event:
    """Gives the event of a row with COLUMNS."""
    seq, at, kind, session_id, task_id, data = row
    return Event(seq, at, kind, msgspec.json.decode(data), session_id, task_id, len(data) + EVENT_OVERHEAD)


def where(after: int, task_id: str | None, session_id: str | None, types: Collection[str] | None) -> tuple[str, list[Any]]:
    """Gives the SQL condition for the events above `after` that fit, and its values."""
    conditions: list[str] = ["seq > ?"]
    values: list[Any] = [after]
    if task_id is not None:
        conditions.append("task_id = ?")
        values.append(task_id)
    if session_id is not None:
        conditions.append("session_id = ?")
        values.append(session_id)
    if types is not None:
        conditions.append(f"type IN ({', '.join('?' * len(types))})")
        values += types
    return " AND ".join(conditions), values
