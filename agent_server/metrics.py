"""What is counted while the server runs, for GET /metrics. All of it is in memory, so that reading it waits for nothing."""

import asyncio
import sqlite3
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from agent_server.events import Event
from tools import Tool

LAG_SECONDS = 1.0
"""Seconds between two looks at how late the event loop is."""

LAGS_KEPT = 60
"""Looks whose worst is shown: a scrape each minute misses none."""

TOKEN_KINDS = ("prompt", "completion", "cached", "reasoning")


class Traffic:
    """Requests. `answers` counts them by the first digit of their status; `streams` are event streams and WebSockets that are open."""

    def __init__(self) -> None:
        self.answers = [0] * 6
        self.streams = 0


class Metrics:
    """Counts what is told in the log, as an Index without tables: in the writer thread, since this start."""

    version = 0  # nothing is kept that would have to be built from the log
    tables: Sequence[str] = ()
    schema: Sequence[str] = ()

    def __init__(self, tools: Mapping[str, Tool]) -> None:
        self.traffic = Traffic()
        self.steps = 0
        self.retries = 0
        self.cost = 0.0
        self.tokens: Counter[str] = Counter()
        self._calls: Counter[tuple[str, str]] = Counter()
        self._ended: Counter[tuple[str, str]] = Counter()
        self._phases: dict[str, str] = {}
        self._tools = tools
        self._newest = 0
        self._lags: deque[float] = deque(maxlen=LAGS_KEPT)

    @property
    def calls(self) -> Mapping[tuple[str, str], int]:
        """Tool calls by the tool's name (`other` for one that is not loaded) and their outcome."""
        return self._calls.copy()  # the writer thread adds to it

    @property
    def ended(self) -> Mapping[tuple[str, str], int]:
        """Tasks that ended, by status and phase."""
        return self._ended.copy()

    @property
    def phases(self) -> Counter[str]:
        """Tasks at work, by phase. Those that wait for their turn are not known here."""
        return Counter(self._phases.copy().values())

    @property
    def lag(self) -> float:
        """Seconds by which the event loop was late at the most, of late."""
        return max(self._lags, default=0.0)

    def apply(self, db: sqlite3.Connection, events: Sequence[Event]) -> None:
        for event in events:
            if event.seq > self._newest:  # a transaction that failed is tried again
                self._newest = event.seq
                if (fold := _FOLDS.get(event.type)) is not None:
                    fold(self, event)

    async def run(self) -> None:
        """Looks at the event loop for ever."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + LAG_SECONDS
            await asyncio.sleep(LAG_SECONDS)
            self._lags.append(max(loop.time() - due, 0.0))

    def _asked(self, event: Event) -> None:
        usage: Mapping[str, Any] = event.data.get("usage") or {}
        for kind in TOKEN_KINDS:
            self.tokens[kind] += usage.get(f"{kind}_tokens") or 0
        self.cost += usage.get("cost") or 0.0

    def _called(self, event: Event) -> None:
        name = event.data.get("tool", "")
        label = name if name in self._tools else "other"
        outcome = "interrupted" if event.data.get("interrupted") else "error" if event.data.get("isError") else "ok"
        self._calls[label, outcome] += 1

    def _stepped(self, event: Event) -> None:
        self.steps += 1

    def _retried(self, event: Event) -> None:
        self.retries += 1
        self._phases[event.task_id or ""] = "retrying"

    def _ran(self, event: Event) -> None:
        self._phases[event.task_id or ""] = "running"

    def _waited(self, event: Event) -> None:
        self._phases[event.task_id or ""] = "waiting"

    def _answered(self, event: Event) -> None:
        if event.data.get("awaited") == 0:
            self._ran(event)

    def _finished(self, event: Event) -> None:
        self._phases.pop(event.task_id or "", None)
        self._ended[event.type.removeprefix("task."), event.data.get("phase", "done")] += 1


_FOLDS: Mapping[str, Callable[[Metrics, Event], None]] = {
    "task.started": Metrics._ran,
    "task.resumed": Metrics._ran,
    "step.started": Metrics._ran,
    "task.retrying": Metrics._retried,
    "tool.requested": Metrics._waited,
    "permission.requested": Metrics._waited,
    "permission.replied": Metrics._answered,
    "question.asked": Metrics._waited,
    "question.answered": Metrics._answered,
    "message.completed": Metrics._asked,
    "session.compacted": Metrics._asked,
    "compaction.failed": Metrics._asked,
    "step.finished": Metrics._stepped,
    "tool.finished": Metrics._called,
    "task.completed": Metrics._finished,
    "task.failed": Metrics._finished,
}
