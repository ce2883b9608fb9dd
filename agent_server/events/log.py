"""The event log: the one truth. Tasks, sessions, messages, logs and streams are folds of it.

One SQLite database in WAL mode. One writer thread commits in groups, and updates the indexes in the same transaction; a
reader sees only what is committed. Followers pull: they read the newest events from a ring in memory, older ones from
disk, so that a slow reader holds nothing but its place and can never grow the server's memory.
"""

import asyncio
import logging
import sqlite3
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import takewhile
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from agent_server.events import Draft, Event, Index, LogUnavailable
from agent_server.events.journal import Journal
from agent_server.events.retention import Retention
from agent_server.events.store import COLUMNS, EVENT_OVERHEAD, connect, event_of, open_store, row_of, where
from agent_server.events.writer import Batch, Writer
from agent_server.redaction import Secrets

GATHER = 0.01
GATHER_UNSEEN = 0.25
"""Seconds that events are gathered for one transaction, and for a longer one while nobody follows: a commit costs several
wake-ups, and what is in the journal is safe. Whoever reads has all committed first."""

RING_BYTES = 1 << 20
"""The newest events that are kept in memory for followers."""

PAGE_BYTES = 128 << 10
PAGE_EVENTS = 500
"""How much a follower reads from disk at a time."""

TAIL_SCAN = 200_000
TAIL_BYTES = 16 << 20
"""How far back a look at the newest events goes, and how much it gives."""

T = TypeVar("T")

logger = logging.getLogger(__name__)


class EventLog:
    """Append, read, follow. All methods but `open` are for the event loop's thread."""

    def __init__(self, path: Path, secrets: Secrets, indexes: Sequence[Index] = (), *, max_bytes: int = 1 << 30) -> None:
        self._path = path
        self._secrets = secrets
        self._indexes = indexes
        self._retention = Retention(max_bytes)
        self._gathered: list[Batch] = []
        self._following = self._drops = 0
        self._waiting = 0  # additions that are not committed yet
        self._unsafe: asyncio.Future[None] | None = None  # the last of them that is not in the journal
        self._timer: asyncio.TimerHandle | None = None
        self._ring: deque[Event] = deque()
        self._ring_bytes = 0
        self._ring_floor = 0  # everything above it is in the ring
        self._next = 0
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
        self._promised = self._loop.create_future()  # of everything that is safe in the journal
        self._promised.set_result(None)
        try:
            self._journal = Journal(self._path.with_suffix(".journal"))
            opened = open_store(self._path, self._journal, self._indexes)
        except (sqlite3.DatabaseError, OSError) as error:
            raise LogUnavailable(f"The event log {self._path.name} cannot be opened: {error}.") from error
        self._committed = self._ring_floor = opened.newest
        self._next = opened.first_free
        self._writer = Writer(
            opened,
            self._indexes,
            self._retention,
            lambda batches: self._tell(self._publish, batches),
            lambda batches, error: self._tell(self._refuse, batches, error),
        )

    def _tell(self, call: Callable[..., None], *arguments: Any) -> None:
        self._loop.call_soon_threadsafe(call, *arguments)

    # Append

    async def append(self, *drafts: Draft) -> list[Event]:
        """Adds events in this order and returns when they, and all added before, survive our death; the machine's too, if one
        of them asks for `sync`.

        Errors: LogUnavailable; then none of them was added. Cancellation: they are added all the same.
        """
        events, safe = self.post(*drafts) if drafts else ([], self._promised)
        unsafe = self._unsafe
        if unsafe is not None and not unsafe.done():
            self._send()
            if unsafe is not safe:
                await asyncio.wait([unsafe])  # somebody else's: they are told how it ended
        if safe is not self._promised:
            await safe
        return events

    def post(self, *drafts: Draft) -> tuple[list[Event], "asyncio.Future[None]"]:
        """Like `append`, without waiting: gives the events, and the future of when they are safe, which somebody must await.

        They are committed within GATHER. What is added later is never committed before them.
        """
        batch = self._add(drafts)
        if self._timer is None:
            self._timer = self._loop.call_later(GATHER if self._following else GATHER_UNSEEN, self._send)
        return batch.events, batch.committed

    def _add(self, drafts: Sequence[Draft]) -> Batch:
        if self._closed:
            refused: asyncio.Future[None] = self._loop.create_future()
            refused.set_exception(LogUnavailable("The event log is closed: the server is stopping."))
            return Batch([], [], False, False, refused)
        now = time.time_ns() // 1_000_000
        events, rows, sync = [], [], False
        for draft in drafts:
            encoded, data = self._secrets.encode(draft.data)
            event = Event(self._next, now, draft.type, data, draft.session_id, draft.task_id, len(encoded) + EVENT_OVERHEAD)
            self._next += 1
            events.append(event)
            rows.append(row_of(event, encoded))
            sync = sync or draft.sync
        is_safe = not sync and bool(rows) and self._journal.add(msgspec.msgpack.encode(rows))
        batch = Batch(events, rows, sync, is_safe, self._promised if is_safe else self._loop.create_future())
        self._gathered.append(batch)
        self._waiting += 1
        if rows and not is_safe:
            self._unsafe = batch.committed
        return batch

    def _send(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._gathered:
            gathered, self._gathered = self._gathered, []
            self._writer.put(gathered)

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
            batch = self._add(())
            self._send()
            await asyncio.wait([batch.committed])
            batch.committed.exception()

    def _settle(self, batches: list[Batch]) -> None:
        self._waiting -= len(batches)
        if not self._waiting:
            self._journal.clear()

    def _publish(self, batches: list[Batch]) -> None:
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

    def _refuse(self, batches: list[Batch], error: Exception) -> None:
        self._settle(batches)
        for batch in batches:
            if batch.is_safe:  # it was promised, and something is wrong with it itself
                first = batch.events[0]
                logger.error("%d events from %d (%s) on could not be stored: %r", len(batch.events), first.seq, first.type, error)
            elif not batch.committed.done():
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
                db = self._local.db = connect(self._path)
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
        condition, values = where(after, task_id, session_id, types)
        if context:
            condition += " AND context = 1"
        statement = f"SELECT {COLUMNS} FROM events WHERE {condition} ORDER BY seq"
        return await self.query(lambda db: [event_of(row) for row in db.execute(statement, values)])

    async def follow(
        self, *, after: int, task_id: str | None = None, types: Collection[str] | None = None, for_client: bool = False
    ) -> AsyncIterator[Event]:
        """Gives every event above `after` that fits, without gap or repeat, and goes on with those to come.

        What retention has removed is told by one event of type `gap`, with `from` and `to`, at the reader's own place.
        Ends when the log is closed; one that is for a client also at `drop_clients`.
        """
        self._following += 1
        drops = self._drops if for_client else None
        try:
            await self.flush()
            if after >= self._next:
                after = self._committed  # no id of this log: of another data directory, or from before a backup was put back
            async for event in self._follow(after, after, task_id, types, drops):
                yield event
        finally:
            self._following -= 1

    async def _follow(
        self, after: int, told: int, task_id: str | None, types: Collection[str] | None, drops: int | None
    ) -> AsyncIterator[Event]:
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
                if self._ending or drops not in (None, self._drops):
                    return
                await changed.wait()

    async def _page(
        self, after: int, newest: int, task_id: str | None, types: Collection[str] | None
    ) -> tuple[tuple[int, int] | None, list[Event], int]:
        condition, values = where(after, task_id, None, types)
        statement = f"SELECT {COLUMNS} FROM events WHERE {condition} AND seq <= ? ORDER BY seq LIMIT ?"

        def read(db: sqlite3.Connection) -> tuple[tuple[int, int] | None, list[Event], int]:
            page: list[Event] = []
            size = 0
            rows = db.execute(statement, [*values, newest, PAGE_EVENTS])
            for row in rows:
                page.append(event_of(row))
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
            await asyncio.to_thread(self._writer.end)
            await asyncio.sleep(0)  # the last commit's callback
            self._wake()
            self._journal.close()
            self._readers.shutdown(wait=False)

    def end_follows(self) -> None:
        """Lets followers end once they have caught up, as for a stop; appending goes on."""
        self._ending = True
        self._wake()

    def drop_clients(self) -> None:
        """Lets those who follow for a client now end once they have caught up: the client may be gone without a word, and resumes by id."""
        self._drops += 1
        self._wake()


async def tail(log: EventLog, wanted: Callable[[Event], bool], count: int) -> list[Event]:
    """Gives the newest `count` events that are wanted, oldest first. `wanted` is called in a reader thread."""

    def read(db: sqlite3.Connection) -> list[Event]:
        found: list[Event] = []
        size = 0
        rows = db.execute(f"SELECT {COLUMNS} FROM events WHERE seq <= ? ORDER BY seq DESC LIMIT ?", (log.newest, TAIL_SCAN))
        while len(found) < count and size < TAIL_BYTES and (row := rows.fetchone()) is not None:
            event = event_of(row)
            if wanted(event):
                found.append(event)
                size += event.size
        return found[::-1]

    return await log.query(read) if count else []


def _fits(event: Event, task_id: str | None, types: Collection[str] | None) -> bool:
    return (task_id is None or event.task_id == task_id) and (types is None or event.type in types)
