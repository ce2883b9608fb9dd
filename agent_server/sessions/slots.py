"""The places in which tasks work: MAX_CONCURRENT_TASKS of them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Slot:
    """One task's place, as long as it has one. A task that only waits, for its client or its subagents, leaves it to others."""

    def __init__(self, places: asyncio.Semaphore) -> None:
        self._places = places
        self._is_held = False
        self._leaving = 0
        self._taking = asyncio.Lock()  # of several that come back one takes it

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
        """Leaves the place while the context lasts, or several that overlap. Cancellation: it is not taken again then; after any
        other error it is."""
        self._leaving += 1
        self.leave()
        is_cancelled = False
        try:
            yield
        except asyncio.CancelledError:
            is_cancelled = True
            raise
        finally:
            self._leaving -= 1
            if not is_cancelled:
                await self._come_back()

    async def _come_back(self) -> None:
        async with self._taking:
            if self._is_needed:
                await self.take()
        if self._leaving:  # somebody else waits again
            self.leave()

    @property
    def _is_needed(self) -> bool:
        return not (self._leaving or self._is_held)
