"""Who follows a task's events at this moment: those who could answer a question of its model."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager


class Audience:
    """Counts the open event streams. `patience` is how many seconds a question waits for somebody to come back."""

    def __init__(self, patience: float = 60.0) -> None:
        self.patience = patience
        self._streams: Counter[str | None] = Counter()  # by task; None is those of everything
        self._watching: Counter[asyncio.Event] = Counter()

    @contextmanager
    def joined(self, task_id: str | None) -> Iterator[None]:
        """Is around an open stream of a task's events, or of all."""
        self._streams[task_id] += 1
        self._tell()
        try:
            yield
        finally:
            self._streams[task_id] -= 1
            self._streams += Counter()  # drops what is zero
            self._tell()

    @contextmanager
    def watched(self, changed: asyncio.Event) -> Iterator[None]:
        """Sets an event whenever a stream comes or goes, while the context lasts."""
        self._watching[changed] += 1
        try:
            yield
        finally:
            self._watching[changed] -= 1
            self._watching += Counter()

    def hears(self, task_id: str) -> bool:
        """Whether somebody follows this task's events."""
        return self._streams[task_id] > 0 or self._streams[None] > 0

    def _tell(self) -> None:
        for changed in self._watching:
            changed.set()
