"""Running time: a clock that stands still while this process does not run, for deadlines and timers.

A paused or suspended VM, or a stopped process, finds the kernel's clocks hours ahead when it goes on. So time is counted in
steps: while a timer is set, the clock is looked at twice a second, and of a longer step only so much counts as a busy machine may need.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

TICK = 0.5
"""Seconds between two looks while a timer is set."""

LONGEST_STEP = 2.0
"""Seconds that count between two looks at the most; the rest was a pause. More than TICK, for an event loop that is late."""

SHORTEST_WAIT = 0.001
"""Seconds. What the event loop's own timers can tell apart."""


class Timer:
    """A callback that is due at a time of its clock."""

    def __init__(self, clock: "Clock", at: float, callback: Callable[[], None]) -> None:
        self._clock = clock
        self.at = at
        self.callback = callback

    def cancel(self) -> None:
        """Takes it back. May be called twice, and after it was due."""
        self._clock.forget(self)


class Clock:
    """Counts seconds of running time. Its time is exact as long as a timer is set, and means nothing else."""

    def __init__(self) -> None:
        self._counted = 0.0
        self._seen = time.monotonic()
        self._timers: dict[Timer, None] = {}
        self._look: asyncio.TimerHandle | None = None
        self._look_at = 0.0
        self._is_held = False

    def time(self) -> float:
        """Gives the seconds counted so far."""
        now = time.monotonic()
        if not self._is_held:
            self._counted += min(now - self._seen, LONGEST_STEP)
        self._seen = now
        return self._counted

    def call_later(self, seconds: float, callback: Callable[[], None]) -> Timer:
        """Calls back after so many seconds of running time, in the event loop."""
        timer = Timer(self, self.time() + seconds, callback)
        self._timers[timer] = None
        if not self._is_held and (self._look is None or timer.at < self._look_at):
            self._plan()
        return timer

    @asynccontextmanager
    async def timeout(self, seconds: float) -> AsyncIterator[asyncio.Timeout]:
        """Is `asyncio.timeout` on this clock."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(None) as deadline:
            timer = self.call_later(seconds, lambda: deadline.reschedule(loop.time()))
            try:
                yield deadline
            finally:
                timer.cancel()

    def hold(self) -> None:
        """Lets the clock stand still."""
        self.time()
        self._is_held = True
        self._unplan()

    def release(self) -> None:
        """Lets it go on."""
        self.time()
        self._is_held = False
        self._plan()

    def forget(self, timer: Timer) -> None:
        self._timers.pop(timer, None)  # the look that is planned finds nothing to do

    def _plan(self) -> None:
        self._unplan()
        if self._timers:
            wait = min(TICK, max(min(timer.at for timer in self._timers) - self._counted, SHORTEST_WAIT))
            self._look = asyncio.get_running_loop().call_later(wait, self._run)
            self._look_at = self._counted + wait

    def _unplan(self) -> None:
        if self._look is not None:
            self._look.cancel()
            self._look = None

    def _run(self) -> None:
        now = self.time()
        for timer in [timer for timer in self._timers if timer.at <= now]:
            if timer in self._timers:  # not taken back by the one before
                del self._timers[timer]
                timer.callback()
        self._plan()
