"""The thread that commits events, in groups, with the indexes of each in the same transaction."""

import contextlib
import logging
import queue
import sqlite3
import threading
from asyncio import Future
from collections.abc import Callable, Sequence

import msgspec

from agent_server.events import Event, Index
from agent_server.events.retention import Retention
from agent_server.events.store import INSERT, SEQUENCE_BLOCK, Opened, Row

COMMIT_RETRY = 1.0
"""Seconds until what was promised and could not be committed is tried again."""

GROUP = 500
"""Additions after which a transaction is closed, so that a flood does not delay its first event much."""

logger = logging.getLogger(__name__)


class Batch(msgspec.Struct, frozen=True):
    """Events that were added together. What `is_safe` is in the journal, and promised; of the rest `committed` tells the end."""

    events: list[Event]
    rows: list[Row]
    sync: bool
    is_safe: bool
    committed: "Future[None]"


class Writer:
    """Commits what is put. `publish` and `refuse` are called in its thread, in the order of the batches."""

    def __init__(
        self,
        opened: Opened,
        indexes: Sequence[Index],
        retention: Retention,
        publish: Callable[[list[Batch]], None],
        refuse: Callable[[list[Batch], Exception], None],
    ) -> None:
        self._db, self._reserved = opened.db, opened.reserved
        self._indexes, self._retention = indexes, retention
        self._publish, self._refuse = publish, refuse
        self._queue: queue.SimpleQueue[list[Batch] | None] = queue.SimpleQueue()
        self._kept: list[Batch] = []  # promised, and refused by the database
        self._is_last_try = False
        self._is_synced = False
        self._thread = threading.Thread(target=self._run, name="log-writer", daemon=True)
        self._thread.start()

    def put(self, batches: list[Batch]) -> None:
        self._queue.put(batches)

    def end(self) -> None:
        """Commits what was put, and ends. Blocks until then."""
        self._queue.put(None)
        self._thread.join()
        self._db.close()

    def _run(self) -> None:
        while (batches := self._take()) is not None:
            self._write(batches)
            if self._kept:
                continue
            try:
                self._retention.trim(self._db)
            except sqlite3.Error as error:
                self._roll_back()
                logger.warning("old events could not be removed: %s", error)

    def _take(self) -> list[Batch] | None:
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

    def _write(self, batches: list[Batch]) -> None:
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
                    self._write([batch])
                    if self._kept:
                        self._kept += batches[at + 1 :]
                        return
                return
            self._refuse(batches, error)
        else:
            self._publish(batches)

    def _commit(self, batches: list[Batch]) -> None:
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
        self._db.executemany(INSERT, [row for batch in batches for row in batch.rows])
        for index in self._indexes:
            index.apply(self._db, events)
        self._db.execute("COMMIT")
        self._reserved = reserved

    def _roll_back(self) -> None:
        with contextlib.suppress(sqlite3.Error):  # a failing disk fails here too; the transaction is gone then
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
