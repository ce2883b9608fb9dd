"""What the log tells of processes: those that run, and the newest that have ended."""

import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from agent_server.errors import NotFound
from agent_server.events import Event
from agent_server.events.log import EventLog

ENDED_KEPT = 256
"""Ended processes that are listed, as long as the log has their events."""


class ProcessIndex:
    """The table `processes`: where the log has the start and the end of each."""

    version = 2
    tables: Sequence[str] = ("processes",)
    schema: Sequence[str] = (
        """CREATE TABLE processes (
            process_id TEXT PRIMARY KEY, started INTEGER NOT NULL, ended INTEGER, session_id TEXT, task_id TEXT) WITHOUT ROWID""",
    )

    def apply(self, db: sqlite3.Connection, events: Sequence[Event]) -> None:
        # Most commands begin and end in one transaction: one row, written once.
        started = {event.data["processId"]: event for event in events if event.type == "process.started"}
        ended = {event.data["processId"]: event.seq for event in events if event.type == "process.exited"}
        if started:
            rows = [(key, event.seq, ended.pop(key, None), event.session_id, event.task_id) for key, event in started.items()]
            db.executemany("INSERT OR IGNORE INTO processes VALUES (?, ?, ?, ?, ?)", rows)
            _trim(db)
        if ended:
            db.executemany("UPDATE processes SET ended = ? WHERE process_id = ?", [(seq, key) for key, seq in ended.items()])


def _trim(db: sqlite3.Connection) -> None:
    (count,) = db.execute("SELECT count(*) FROM processes").fetchone()
    if count > 2 * ENDED_KEPT:  # not at each: it takes a look at them all
        db.execute(
            "DELETE FROM processes WHERE ended IS NOT NULL AND started <= "
            "(SELECT started FROM processes WHERE ended IS NOT NULL ORDER BY started DESC LIMIT 1 OFFSET ?)",
            (ENDED_KEPT,),
        )


class Record(msgspec.Struct, frozen=True):
    """What the log has of one process: the events of its start and, once it has ended, of its end."""

    process_id: str
    started: Event
    ended: Event | None

    @property
    def data(self) -> Mapping[str, Any]:
        return self.started.data

    @property
    def is_left(self) -> bool:
        """Whether a tool has left it in the background, for its session."""
        return bool(self.data.get("background")) and "toolCallId" in self.data


async def find(log: EventLog, process_id: str) -> Record:
    """Gives one process.

    Errors: NotFound for one that is not in the log, or no longer.
    """
    found = await log.query(lambda db: _records(db, "WHERE process_id = ?", (process_id,)))
    if not found:
        raise NotFound(f"There is no process {process_id[:64]!r}; GET /processes lists them.", code="PROCESS_NOT_FOUND")
    return found[0]


async def find_all(log: EventLog) -> list[Record]:
    """Gives all that run and the newest ENDED_KEPT that have ended, the newest first."""

    def read(db: sqlite3.Connection) -> list[Record]:
        ended = _records(db, "WHERE ended IS NOT NULL ORDER BY started DESC LIMIT ?", (ENDED_KEPT,))
        return sorted([*_records(db, "WHERE ended IS NULL", ()), *ended], key=lambda record: -record.started.seq)

    return await log.query(read)


async def unfinished(log: EventLog) -> list[tuple[str, str | None, str | None]]:
    """Gives the processes whose end is not in the log: each with its session and task."""
    return await log.query(lambda db: db.execute("SELECT process_id, session_id, task_id FROM processes WHERE ended IS NULL").fetchall())


def _records(db: sqlite3.Connection, where: str, values: Sequence[Any]) -> list[Record]:
    records = []
    for process_id, started, ended in db.execute(f"SELECT process_id, started, ended FROM processes {where}", values).fetchall():
        begin = _event(db, started)
        end = _event(db, ended) if ended is not None else None
        if begin is not None and (end is not None or ended is None):  # else retention has removed one of them
            records.append(Record(process_id, begin, end))
    return records


def _event(db: sqlite3.Connection, seq: int) -> Event | None:
    row = db.execute("SELECT time, type, data, session_id, task_id FROM events WHERE seq = ?", (seq,)).fetchone()
    if row is None:
        return None
    at, kind, data, session_id, task_id = row
    return Event(seq, at, kind, msgspec.json.decode(data), session_id, task_id)
