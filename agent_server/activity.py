"""Whether anything is going on, for a host that stops idle machines."""

import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence

import msgspec

from agent_server.events.log import EventLog

LOOK_BACK = 1_000
"""Events that are looked through for the last sign of work."""

_WORK = ("task.%", "step.%", "message.%", "tool.%", "process.%", "lifecycle.resumed")


class Reason(msgspec.Struct, frozen=True):
    """Why the server is active: what, and how many of them."""

    type: str
    count: int


class Activity:
    """Asks `running` for what is going on, by its name, and `due` for what will begin within so many seconds."""

    def __init__(
        self, log: EventLog, running: Mapping[str, Callable[[], int]], due: Mapping[str, Callable[[float], int]] | None = None
    ) -> None:
        self._log = log
        self._running = running
        self._due = due or {}
        self._seen = _now()

    def reasons(self, within: float) -> Sequence[Reason]:
        """Gives what is going on, and what will be within so many seconds."""
        counts = {name: count() for name, count in self._running.items()}
        counts |= {name: counts.get(name, 0) + count(within) for name, count in self._due.items()}
        found = [Reason(name, count) for name, count in counts.items() if count]
        if found:
            self._seen = _now()
        return found

    async def idle(self) -> tuple[int, int]:
        """Gives since when nothing has been going on, in Unix milliseconds, and for how many; not before the start, nor a resume."""
        last = await self._log.query(_last_work)
        self._seen = max(self._seen, last)
        return self._seen, max(0, _now() - self._seen)


def _last_work(db: sqlite3.Connection) -> int:
    newest = f"SELECT type, time FROM events ORDER BY seq DESC LIMIT {LOOK_BACK}"
    where = " OR ".join("type LIKE ?" for _ in _WORK)
    (at,) = db.execute(f"SELECT coalesce(max(time), 0) FROM ({newest}) WHERE {where}", _WORK).fetchone()
    return int(at)


def _now() -> int:
    return time.time_ns() // 1_000_000
