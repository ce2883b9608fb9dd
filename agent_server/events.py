"""The event log: the one truth. Tasks, sessions, messages, logs and streams are folds of it.

One SQLite database in WAL mode. One writer thread commits in groups, and updates the indexes (`Index`) in the same
transaction; a reader sees only what is committed. Followers pull: they read the newest events from a ring in memory,
older ones from disk, so that a slow reader holds nothing but its place and can never grow the server's memory.
Retention is `retention.py`; the form of events on the wire is `wire.py`.
"""

import asyncio
import contextlib
import logging
import queue
import sqlite3
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import takewhile
from pathlib import Path
from typing import Any, Protocol, TypeAlias, TypeVar

import msgspec

from agent_server.errors import AgentServerError
from agent_server.journal import Journal
from agent_server.redaction import Secrets
from agent_server.retention import Retention

SEQUENCE_BLOCK = 100_000
"""Sequence numbers reserved at a time. Reserved ones are never given again, also when power loss takes the events."""

GATHER = 0.01
GATHER_UNSEEN = 0.25
"""Seconds that events are gathered for one transaction, and for a longer one while nobody follows: a commit costs several
wake-ups, and what is in the journal is safe. Whoever reads has all committed first."""

COMMIT_RETRY = 1.0
"""Seconds until what was promised and could not be committed is tried again."""

GROUP = 500
"""Additions after which a transaction is closed, so that a flood does not delay its first event much."""

CHECKPOINT_PAGES = 4_000
"""Pages of 4 KiB in the write-ahead log before they go into the database: hot pages are then written once for many commits."""

RING_BYTES = 1 << 20
"""The newest events that are kept in memory for followers."""

EVENT_OVERHEAD = 400
"""Bytes an event takes in memory besides its data, about."""

PAGE_BYTES = 128 << 10
PAGE_EVENTS = 500
"""How much a follower reads from disk at a time."""

CONTEXT = frozenset(
    {
        "session.created",
        "task.created",
        "task.started",
        "message.completed",
        "message.added",
        "tool.finished",
        "session.compacted",
        "task.completed",
        "task.failed",
    }
)
"""Types of which a session's conversation is made: retention never removes them."""

TAIL_SCAN = 200_000
TAIL_BYTES = 16 << 20
"""How far back a look at the newest events goes, and how much it gives."""

T = TypeVar("T")


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
    """One entry. `time` is Unix milliseconds; `data` holds the fields of its type, secrets masked."""

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


class EventLog:
    """Append, read, follow. All methods but `open` are for the event loop's thread."""

    def __init__(self, path: Path, secrets: Secrets, indexes: Sequence[Index] = (), *, max_bytes: int = 1 << 30) -> None:
        self._path = path
        self._secrets = secrets
        self._indexes = indexes
        self._retention = Retention(max_bytes)
        self._queue: queue.SimpleQueue[list[_Batch] | None] = queue.SimpleQueue()
        self._gathered: list[_Batch] = []
        self._kept: list[_Batch] = []  # the writer's: promised, and refused by the database
        self._is_last_try = False
        self._is_synced = False
        self._following = 0
        self._waiting = 0  # additions that are not committed yet
        self._unsafe: asyncio.Future[None] | None = None  # the last of them that is not in the journal
        self._timer: asyncio.TimerHandle | None = None
        self._ring: deque[Event] = deque()
        self._ring_bytes = 0
        self._ring_floor = 0  # everything above it is in the ring
        self._next = 0
        self._reserved = 0
        self._committed = 0
        self._changed = asyncio.Event()
        self._closed = self._ending = False
        self._local = threading.local()
        self._readers = ThreadPoolExecutor(max_workers=2, thread_name_prefix="log-reader")

    def open(self) -> None:
        """Opens or creates the database, brings the indexes up to date and starts the writer. Blocks for some ms.

        Errors: LogUnavailable when the file is no database, or was written by a later version.
        """
        self._loop = asyncio.get_running_loop()
        try:
            self._journal = Journal(self._path.with_suffix(".journal"))
            self._db = _connect(self._path)
            self._prepare()
        except (sqlite3.DatabaseError, OSError) as error:
            raise LogUnavailable(f"The event log {self._path.name} cannot be opened: {error}.") from error
        self._thread = threading.Thread(target=self._write, name="log-writer", daemon=True)
        self._thread.start()

    def _prepare(self) -> None:
        db = self._db
        db.executescript(_SCHEMA)
        meta = dict(db.execute("SELECT name, value FROM meta"))
        if int(meta.get("format", 1)) > 1:
            raise LogUnavailable("The event log was written by a later version of agent-server; start that version.")
        db.execute("BEGIN IMMEDIATE")
        for index in self._indexes:
            name = type(index).__name__
            if int(meta.get(f"index {name}", 0)) != index.version:
                self._rebuild(index)
                db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (f"index {name}", index.version))
        self._take_journal()
        (newest,) = db.execute("SELECT coalesce(max(seq), 0) FROM events").fetchone()
        self._committed = self._ring_floor = newest
        self._next = max(int(meta.get("reserved", 0)), newest) + 1
        self._reserved = self._next + SEQUENCE_BLOCK
        db.execute("INSERT OR REPLACE INTO meta VALUES ('reserved', ?)", (self._reserved,))
        db.execute("INSERT OR IGNORE INTO meta VALUES ('format', 1)")
        db.execute("COMMIT")
        db.execute("PRAGMA synchronous = NORMAL")

    def _take_journal(self) -> None:
        """Takes in what was promised and not committed when the server before this one was killed."""
        statement = "SELECT max((SELECT coalesce(max(seq), 0) FROM events), (SELECT coalesce(max(last), 0) FROM removed))"
        (newest,) = self._db.execute(statement).fetchone()
        for entry in self._journal.entries():
            rows = msgspec.msgpack.decode(entry, type=list[_Row])
            if rows[0][0] <= newest:
                continue  # committed before the end, or of an earlier round
            self._db.executemany(_INSERT, rows)
            events = [_event((seq, at, kind, session_id, task_id, data)) for seq, at, kind, session_id, task_id, _, data in rows]
            for index in self._indexes:
                index.apply(self._db, events)
            newest = rows[-1][0]

    def _rebuild(self, index: Index) -> None:
        for statement in (*(f"DROP TABLE IF EXISTS {name}" for name in index.tables), *index.schema):
            self._db.execute(statement)
        for row in self._db.execute(f"SELECT {_COLUMNS} FROM events ORDER BY seq"):
            index.apply(self._db, [_event(row)])

    # Append

    async def append(self, *drafts: Draft) -> list[Event]:
        """Adds events in this order and returns when they, and all added before, survive our death; the machine's too, if one
        of them asks for `sync`.

        Errors: LogUnavailable; then none of them was added. Cancellation: they are added all the same.
        """
        events, committed = self.post(*drafts) if drafts else ([], None)
        if committed is not None and committed.done():
            await committed  # refused: the log is closed
        unsafe = self._unsafe
        if unsafe is not None and not unsafe.done():
            self._send()
            if unsafe is committed:
                await unsafe
            else:
                await asyncio.wait([unsafe])  # somebody else's: they are told how it ended
        return events

    def post(self, *drafts: Draft) -> "tuple[list[Event], asyncio.Future[None]]":
        """Like `append`, without waiting: gives the events, and the future of their commit, which somebody must await.

        They are committed within GATHER. What is added later is never committed before them.
        """
        added = self._add(drafts)
        if self._timer is None:
            self._timer = self._loop.call_later(GATHER if self._following else GATHER_UNSEEN, self._send)
        return added

    def _add(self, drafts: Sequence[Draft]) -> "tuple[list[Event], asyncio.Future[None]]":
        committed: asyncio.Future[None] = self._loop.create_future()
        if self._closed:
            committed.set_exception(LogUnavailable("The event log is closed: the server is stopping."))
            return [], committed
        now = time.time_ns() // 1_000_000
        events, rows = [], []
        for draft in drafts:
            encoded, data = self._secrets.encode(draft.data)
            event = Event(self._next, now, draft.type, data, draft.session_id, draft.task_id, len(encoded) + EVENT_OVERHEAD)
            self._next += 1
            events.append(event)
            rows.append(
                (event.seq, now, draft.type, draft.session_id, draft.task_id, 1 if draft.type in CONTEXT else None, encoded.decode())
            )
        sync = any(draft.sync for draft in drafts)
        is_safe = not sync and bool(rows) and self._journal.add(msgspec.msgpack.encode(rows))
        self._gathered.append(_Batch(events, rows, sync, is_safe, committed))
        self._waiting += 1
        if rows and not is_safe:
            self._unsafe = committed
        return events, committed

    def _send(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._gathered:
            gathered, self._gathered = self._gathered, []
            self._queue.put(gathered)

    def say(self, *drafts: Draft) -> None:
        """Like `post`, for events nobody waits for, such as output: a log that fails is found by those who wait."""
        _, committed = self.post(*drafts)
        committed.add_done_callback(lambda future: future.cancelled() or future.exception())

    def say_from_any_thread(self, draft: Draft) -> None:
        """Like `say`, from wherever it is called; nothing happens once the log is closed."""
        if not self._closed:
            self._loop.call_soon_threadsafe(self.say, draft)

    async def flush(self) -> None:
        """Returns when everything added so far is committed, so that it can be read, or was refused."""
        if self._waiting:
            _, committed = self._add(())
            self._send()
            await asyncio.wait([committed])
            committed.exception()

    def _write(self) -> None:
        while (batches := self._take()) is not None:
            self._write_group(batches)
            if self._kept:
                continue
            try:
                self._retention.trim(self._db)
            except sqlite3.Error as error:
                self._roll_back()
                logging.getLogger(__name__).warning("old events could not be removed: %s", error)

    def _write_group(self, batches: "list[_Batch]") -> None:
        try:
            self._commit(batches)
        except Exception as error:  # whatever is wrong with an event, the log and the other events must not suffer from it
            self._roll_back()
            # A constraint, a number too large, an index that fails: one of the events is at fault, not the disk.
            is_disk = isinstance(error, sqlite3.OperationalError) or type(error) is sqlite3.DatabaseError
            if is_disk:
                # What is in the journal was promised; it is tried again until it is in.
                self._kept = [batch for batch in batches if batch.is_safe]
                batches = [batch for batch in batches if not batch.is_safe]
            elif len(batches) > 1:
                for at, batch in enumerate(batches):
                    self._write_group([batch])
                    if self._kept:
                        self._kept += batches[at + 1 :]
                        return
                return
            self._loop.call_soon_threadsafe(self._refuse, batches, error)
        else:
            self._loop.call_soon_threadsafe(self._publish, batches)

    def _roll_back(self) -> None:
        with contextlib.suppress(sqlite3.Error):  # a failing disk fails here too; the transaction is gone then
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")

    def _take(self) -> "list[_Batch] | None":
        batches, self._kept = self._kept, []
        try:
            gathered = self._queue.get(timeout=COMMIT_RETRY if batches else None)
        except queue.Empty:
            return batches
        while gathered is not None:
            batches += gathered
            if len(batches) >= GROUP:
                return batches
            try:
                gathered = self._queue.get_nowait()
            except queue.Empty:
                return batches
        if batches and not self._is_last_try:
            self._is_last_try = True
            self._queue.put(None)  # what was taken before the end is committed first
            return batches
        return None

    def _commit(self, batches: "list[_Batch]") -> None:
        events = [event for batch in batches for event in batch.events]
        if not events:
            return
        reserved = self._reserved
        if events[-1].seq >= reserved:
            reserved = events[-1].seq + SEQUENCE_BLOCK
        # Synced with a new block too: power loss must not take a reservation whose numbers have been seen.
        sync = reserved != self._reserved or any(batch.sync for batch in batches)
        if sync != self._is_synced:
            self._db.execute(f"PRAGMA synchronous = {'FULL' if sync else 'NORMAL'}")
            self._is_synced = sync
        self._db.execute("BEGIN IMMEDIATE")
        if reserved != self._reserved:
            self._db.execute("UPDATE meta SET value = ? WHERE name = 'reserved'", (reserved,))
        self._db.executemany(_INSERT, [row for batch in batches for row in batch.rows])
        for index in self._indexes:
            index.apply(self._db, events)
        self._db.execute("COMMIT")
        self._reserved = reserved

    def _settle(self, batches: "list[_Batch]") -> None:
        self._waiting -= len(batches)
        if not self._waiting:
            self._journal.clear()

    def _publish(self, batches: "list[_Batch]") -> None:
        self._settle(batches)
        for batch in batches:
            for event in batch.events:
                self._ring.append(event)
                self._ring_bytes += event.size
                self._committed = event.seq
            if not batch.committed.done():
                batch.committed.set_result(None)
        while self._ring_bytes > RING_BYTES and len(self._ring) > 1:
            oldest = self._ring.popleft()
            self._ring_bytes -= oldest.size
            self._ring_floor = oldest.seq
        self._wake()

    def _refuse(self, batches: "list[_Batch]", error: Exception) -> None:
        self._settle(batches)
        for batch in batches:
            if not batch.committed.done():
                batch.committed.set_exception(
                    LogUnavailable(f"The event log cannot be written: {error}. Free some disk space and try again.")
                )

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    # Read

    @property
    def newest(self) -> int:
        """The sequence number of the last committed event."""
        return self._committed

    async def query(self, read: Callable[[sqlite3.Connection], T]) -> T:
        """Runs a read in a reader thread, on a connection that cannot write.

        Errors: LogUnavailable.
        """
        await self.flush()  # whoever was told of something finds it
        if self._closed:
            raise LogUnavailable("The event log is closed: the server is stopping.")
        return await self._loop.run_in_executor(self._readers, self._read, read)

    def _read(self, read: Callable[[sqlite3.Connection], T]) -> T:
        try:
            db = getattr(self._local, "db", None)
            if db is None:
                db = self._local.db = _connect(self._path)
                db.execute("PRAGMA query_only = 1")
            return read(db)
        except sqlite3.Error as error:
            raise LogUnavailable(f"The event log cannot be read: {error}.") from error

    async def read(
        self,
        *,
        after: int = 0,
        task_id: str | None = None,
        session_id: str | None = None,
        types: Collection[str] | None = None,
        context: bool = False,
    ) -> list[Event]:
        """Gives the committed events above `after` that fit, oldest first: all that there are, so ask for few."""
        where, values = _filter(after, task_id, session_id, types)
        if context:
            where += " AND context = 1"
        statement = f"SELECT {_COLUMNS} FROM events WHERE {where} ORDER BY seq"
        return await self.query(lambda db: [_event(row) for row in db.execute(statement, values)])

    async def follow(self, *, after: int, task_id: str | None = None, types: Collection[str] | None = None) -> AsyncIterator[Event]:
        """Gives every event above `after` that fits, without gap or repeat, and goes on with those to come.

        What retention has removed is told by one event of type `gap`, with `from` and `to`, at the reader's own place.
        Ends when the log is closed.
        """
        self._following += 1
        try:
            await self.flush()
            if after >= self._next:
                after = self._committed  # no id of this log: of another data directory, or from before a backup was put back
            async for event in self._follow(after, after, task_id, types):
                yield event
        finally:
            self._following -= 1

    async def _follow(self, after: int, told: int, task_id: str | None, types: Collection[str] | None) -> AsyncIterator[Event]:
        while True:
            changed, newest = self._changed, self._committed
            if after >= self._ring_floor:
                recent = list(takewhile(lambda e, after=after: e.seq > after, reversed(self._ring)))  # type: ignore[misc]  # as below
                page = [e for e in reversed(recent) if _fits(e, task_id, types)]
                end = newest
            else:
                if self._closed:
                    return
                gap, page, end = await self._page(after, newest, task_id, types)
                if gap is not None and gap[1] > told:
                    told = gap[1]
                    yield Event(after, time.time_ns() // 1_000_000, "gap", {"from": max(gap[0], after + 1), "to": gap[1]}, None, task_id)
            for event in page:
                yield event
            after = max(after, end)
            if after >= self._committed:
                if self._ending:
                    return
                await changed.wait()

    async def _page(
        self, after: int, newest: int, task_id: str | None, types: Collection[str] | None
    ) -> tuple[tuple[int, int] | None, list[Event], int]:
        where, values = _filter(after, task_id, None, types)
        statement = f"SELECT {_COLUMNS} FROM events WHERE {where} AND seq <= ? ORDER BY seq LIMIT ?"

        def read(db: sqlite3.Connection) -> tuple[tuple[int, int] | None, list[Event], int]:
            page: list[Event] = []
            size = 0
            rows = db.execute(statement, [*values, newest, PAGE_EVENTS])
            for row in rows:
                page.append(_event(row))
                size += page[-1].size
                if size > PAGE_BYTES:
                    break
            is_whole = len(page) < PAGE_EVENTS and size <= PAGE_BYTES
            rows.close()
            # After the page: what retention removes between the two is told, rather than missed.
            return self._retention.gap(db, after, task_id), page, newest if is_whole else page[-1].seq

        return await self.query(read)

    async def close(self) -> None:
        """Commits what was appended, lets the followers end, and closes. May be called twice."""
        if not self._closed:
            self._closed = self._ending = True
            self._send()
            self._queue.put(None)
            await asyncio.to_thread(self._thread.join)
            await asyncio.sleep(0)  # the last commit's callback
            self._wake()
            self._db.close()
            self._journal.close()
            self._readers.shutdown(wait=False)

    def end_follows(self) -> None:
        """Lets followers end once they have caught up, as for a stop; appending goes on."""
        self._ending = True
        self._wake()


async def tail(log: EventLog, wanted: Callable[[Event], bool], count: int) -> list[Event]:
    """Gives the newest `count` events that are wanted, oldest first. `wanted` is called in a reader thread."""

    def read(db: sqlite3.Connection) -> list[Event]:
        found: list[Event] = []
        size = 0
        rows = db.execute(f"SELECT {_COLUMNS} FROM events WHERE seq <= ? ORDER BY seq DESC LIMIT ?", (log.newest, TAIL_SCAN))
        while len(found) < count and size < TAIL_BYTES and (row := rows.fetchone()) is not None:
            event = _event(row)
            if wanted(event):
                found.append(event)
                size += event.size
        return found[::-1]

    return await log.query(read) if count else []


class _Batch(msgspec.Struct, frozen=True):
    events: list[Event]
    rows: list["_Row"]
    sync: bool
    is_safe: bool
    committed: "asyncio.Future[None]"


_SCHEMA = """
CREATE TABLE IF NOT EXISTS events (
    seq INTEGER PRIMARY KEY, time INTEGER NOT NULL, type TEXT NOT NULL, session_id TEXT, task_id TEXT, context INTEGER, data TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS events_task ON events (task_id, seq) WHERE task_id IS NOT NULL;
CREATE INDEX IF NOT EXISTS events_context ON events (session_id, seq) WHERE context = 1;
CREATE TABLE IF NOT EXISTS removed (task_id TEXT PRIMARY KEY, first INTEGER NOT NULL, last INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
"""

_INSERT = "INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?)"
_Row: TypeAlias = tuple[int, int, str, str | None, str | None, int | None, str]

_COLUMNS = "seq, time, type, session_id, task_id, data"


def _connect(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    db.execute("PRAGMA cache_size = -1024")
    db.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
    db.execute(f"PRAGMA journal_size_limit = {16 << 20}")
    return db


def _event(row: tuple[int, int, str, str | None, str | None, str]) -> Event:
    seq, at, kind, session_id, task_id, data = row
    return Event(seq, at, kind, msgspec.json.decode(data), session_id, task_id, len(data) + EVENT_OVERHEAD)


def _fits(event: Event, task_id: str | None, types: Collection[str] | None) -> bool:
    return (task_id is None or event.task_id == task_id) and (types is None or event.type in types)


def _filter(after: int, task_id: str | None, session_id: str | None, types: Collection[str] | None) -> tuple[str, list[Any]]:
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
