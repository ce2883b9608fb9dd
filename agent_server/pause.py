"""Safe points: where tasks wait while somebody holds them, so that nothing is half-done meanwhile.

A task waits before each model call and before each tool call. A command that runs is not waited for; its result waits. A model
call is broken off where a hold says so, and made again afterwards. The tasks' clock stands still all the while.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import TypeVar

from agent_server.clock import Clock

T = TypeVar("T")


class Broken(Exception):
    """A model call was broken off, or not begun, because its task is held; it is to be made again."""


class Pause:
    """Who holds the tasks, and how many of them are still moving. `clock` is for the tasks' deadlines."""

    def __init__(self) -> None:
        self.clock = Clock()
        self._holds: dict[str, bool] = {}
        self._open = asyncio.Event()
        self._open.set()
        self._moving = 0
        self._calls: set[asyncio.Timeout] = set()
        self._waiting: list[asyncio.Event] = []

    # For those who hold

    @property
    def is_held(self) -> bool:
        return bool(self._holds)

    @property
    def moving(self) -> int:
        """How many tasks and tool calls are between two safe points, those that wait for a command or a model apart."""
        return self._moving

    def hold(self, reason: str, *, breaks_calls: bool) -> None:
        """Holds the tasks, besides others who do; the same reason twice is one."""
        self._holds[reason] = breaks_calls
        self._open.clear()
        self.clock.hold()
        if breaks_calls:
            now = asyncio.get_running_loop().time()
            for scope in self._calls:
                if scope.when() is None:
                    scope.reschedule(now)

    def release(self, *reasons: str) -> None:
        """Lets the tasks go on, unless somebody else holds them."""
        for reason in reasons:
            self._holds.pop(reason, None)
        if not self._holds and not self._open.is_set():
            self.clock.release()
            self._open.set()

    def release_all(self) -> None:
        """Lets the tasks go on, whoever holds them: the server stops, and each has to come to its end."""
        self.release(*self._holds)

    async def still(self) -> None:
        """Returns when nothing moves. Whoever does not hold the tasks may wait for ever."""
        while not self._is_still:
            changed = asyncio.Event()
            self._waiting.append(changed)
            await changed.wait()

    @property
    def _is_still(self) -> bool:
        return not self._moving and not (self._calls and any(self._holds.values()))

    # For the tasks

    async def repeated(self, call: Callable[[], Awaitable[T]]) -> T:
        """Makes a model call that nothing is told of before its end, again whenever it was broken off."""
        async with self.working():
            while True:
                with suppress(Broken):
                    async with self.call():
                        return await call()
                await self.point()

    @asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        """Is around whatever belongs to a task; entered when nobody holds it."""
        await self._open.wait()
        self._move(1)
        try:
            yield
        finally:
            self._move(-1)

    async def point(self) -> None:
        """A safe point: returns when nobody holds the tasks."""
        if not self._open.is_set():
            self._move(-1)
            try:
                await self._open.wait()
            finally:
                self._move(1)

    @asynccontextmanager
    async def aside(self) -> AsyncIterator[None]:
        """Is around what is not waited for, such as a command. What follows it waits until nobody holds the tasks."""
        self._move(-1)
        try:
            yield
            await self._open.wait()
        finally:
            self._move(1)

    @asynccontextmanager
    async def call(self) -> AsyncIterator[None]:
        """Is around a model call. Errors: Broken."""
        if any(self._holds.values()):
            raise Broken
        self._move(-1)
        scope = asyncio.timeout(None)
        try:
            async with scope:
                self._calls.add(scope)
                yield
        except TimeoutError:
            if not scope.expired():
                raise
            raise Broken from None
        finally:
            self._calls.discard(scope)
            self._move(1)

    def _move(self, count: int) -> None:
        self._moving += count
        waiting, self._waiting = self._waiting, []
        for changed in waiting:
            changed.set()
