"""The places in which tasks work: MAX_CONCURRENT_TASKS of them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Slot:
    """One task's place, as long as it has one. A task that only waits, for its client or its subagents, leaves it to others."""

    def __init__(self, places: asyncio.Semaphore) -> None:
        self._places = places
        self._is_held = False

    async def take(self) -> None:
        await self._places.acquire()
        self._is_held = True

    def leave(self) -> None:
        """Gives the place back, if it is held."""
        if self._is_held:
            self._is_held = False
            self._places.release()

    @asynccontextmanager
    async def left(self) -> AsyncIterator[None]:
        """Leaves the place while the context lasts. Cancellation: it is not taken again then; after any other error it is."""
        self.leave()
        try:
            yield
        except Exception:
            await self.take()
            raise
        await self.take()
