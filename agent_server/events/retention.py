"""Keeps the log within its size: outputs and deltas go first, oldest first; then what finished tasks no longer need.

What a session's context is made of, the task.* events, everything of an unfinished task, the start of a running process and
registered ports are never removed. What was removed is remembered as one range for each task and one for all, for the `gap` event.
"""

import sqlite3
from collections.abc import Iterator

CHUNK = 2_000
"""Events removed in one transaction (about 10 ms), so that appends do not wait long."""

CHECK_EVERY = 64
"""Commits between two looks at the size."""

TARGET = 0.8
"""Removal goes on until the log is under this part of its limit, so that it does not begin again at once."""

_EPHEMERAL = "type IN ('message.delta', 'reasoning.delta', 'tool.output', 'process.output')"
_REST = (
    "context IS NULL AND type NOT LIKE 'task.%' AND type != 'port.registered' "
    "AND (task_id IS NULL OR task_id NOT IN (SELECT task_id FROM tasks WHERE status = 'processing')) "
    "AND seq NOT IN (SELECT started FROM processes WHERE ended IS NULL)"
)

_REMEMBER = (
    "INSERT INTO removed VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET first = min(first, excluded.first), last = max(last, excluded.last)"
)


class Retention:
    """Called in the writer thread, after commits."""

    def __init__(self, max_bytes: int) -> None:
        self._max = max_bytes
        self._commits = 0
        self._trimming = False
        self._place = 0  # how far the present pass has come
        self._passes: Iterator[str] = iter(())
        self._where = ""

    def trim(self, db: sqlite3.Connection) -> None:
        """Removes at most one chunk, when the log is over its size or on the way down from it."""
        self._commits += 1
        if not self._trimming:
            if self._commits % CHECK_EVERY or _size(db) <= self._max:
                return
            self._trimming, self._passes = True, iter((_EPHEMERAL, _REST))
            self._where, self._place = next(self._passes), 0
        if _size(db) <= self._max * TARGET:
            self._trimming = False
            return
        if not self._remove(db):
            following = next(self._passes, None)
            if following is None:
                self._trimming = False  # what is left is needed
                return
            self._where, self._place = following, 0

    def _remove(self, db: sqlite3.Connection) -> bool:
        rows = db.execute(
            f"SELECT seq, task_id FROM events WHERE seq > ? AND {self._where} ORDER BY seq LIMIT ?", (self._place, CHUNK)
        ).fetchall()
        if not rows:
            return False
        ranges: dict[str, tuple[int, int]] = {}
        for seq, task_id in rows:
            for key in ("", task_id) if task_id else ("",):
                first, _ = ranges.get(key, (seq, seq))
                ranges[key] = (first, seq)
        db.execute("BEGIN IMMEDIATE")
        db.executemany("DELETE FROM events WHERE seq = ?", [(seq,) for seq, _ in rows])
        db.executemany(
            _REMEMBER,
            [(key, first, last) for key, (first, last) in ranges.items()],
        )
        db.execute("COMMIT")
        self._place = rows[-1][0]
        return True

    def gap(self, db: sqlite3.Connection, after: int, task_id: str | None) -> tuple[int, int] | None:
        """Gives the range (first, last) in which events above `after` were removed, of this task or of all."""
        row = db.execute("SELECT first, last FROM removed WHERE task_id = ?", (task_id or "",)).fetchone()
        return (row[0], row[1]) if row is not None and row[1] > after else None


def _size(db: sqlite3.Connection) -> int:
    pages, free, size = (db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size"))
    return int((pages - free) * size)
