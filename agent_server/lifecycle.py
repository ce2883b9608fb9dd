"""Whether this instance works: quiesced for a host that is about to pause, fork or copy it, stopped, or running.

Leaves out the stop at a signal, which is `serve.py`. None of this outlives the process: a server that starts runs.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Literal

from agent_server import disk
from agent_server.clock import Clock, Timer
from agent_server.datadir import DataDirectory
from agent_server.errors import AgentServerError, Conflict, Draining, InstanceNotRunning
from agent_server.events import Draft, LogUnavailable
from agent_server.events.log import EventLog
from agent_server.gateway import Gateway
from agent_server.pause import Pause

logger = logging.getLogger(__name__)

Status = Literal["running", "standby", "stopped"]
Hook = Callable[[], Awaitable[None]]

SETTLE = 10.0
"""Seconds that tools other than commands get to end before a quiesce returns without them."""

BREAK_OFF = 2.0
"""Seconds that model calls get to be broken off at a resume."""

SYNC = 5.0
"""Seconds that a quiesce waits for the disks; what the log says is on them before."""


class Lifecycle:
    """The state of this instance.

    `on_quiesce` and `on_resume` are awaited then, one after another; what they raise is logged. `on_drop` is called to end what streams
    to clients besides the log's followers.
    """

    def __init__(self, log: EventLog, data: DataDirectory, pause: Pause, gateway: Gateway, disks: Sequence[Path]) -> None:
        self._log = log
        self._data = data
        self._pause = pause
        self._gateway = gateway
        self._disks = disks
        self._clock = Clock()
        self._timer: Timer | None = None
        self._is_due = asyncio.Event()
        self.on_quiesce: list[Hook] = []
        self.on_resume: list[Hook] = []
        self.on_drop: list[Callable[[], None]] = []
        self.status: Status = "running"
        self.is_quiesced = False
        self.is_restoring = False

    async def run(self) -> None:
        """Ends a quiesce that nobody ends in its time, for ever."""
        while True:
            await self._is_due.wait()
            self._is_due.clear()
            logger.warning("nobody resumed this instance in time; it goes on by itself")
            try:
                await self._let_go("timeout")
            except LogUnavailable as error:
                logger.error("the end of the quiesce could not be written: %s", error)

    def admit(self) -> None:
        """Lets a new task in.

        Errors: Draining while quiesced, or a snapshot is restored; InstanceNotRunning while stopped.
        """
        if self.is_quiesced:
            raise Draining("The instance is quiesced; send the request again when it was resumed.")
        if self.is_restoring:
            raise Draining("A snapshot is being restored; send the request again in a few seconds.")
        if self.status != "running":
            raise InstanceNotRunning(f"The instance is {self.status}; start it with POST /lifecycle/start.", self.status)

    async def quiesce(self, timeout: float) -> bool:
        """Holds all tasks at safe points, with everything so far on disk; after `timeout` seconds of running time they go on.

        Gives whether nothing moves: a tool that is no command may take longer than SETTLE. Errors: LogUnavailable, and then
        nothing is held; Conflict when it was resumed meanwhile.
        """
        self.is_quiesced = True
        self._set_timer(timeout)
        self._pause.hold("quiesce", breaks_calls=True)
        await _call(self.on_quiesce)  # each bounds itself
        is_still = await self._come_to_rest(SETTLE)
        try:
            await self._log.append(Draft("lifecycle.quiesced", {"timeout_ms": round(timeout * 1000)}, sync=True))
        except LogUnavailable:
            self._end_quiesce()
            raise
        try:
            async with asyncio.timeout(SYNC):
                await asyncio.to_thread(disk.sync, self._disks)
        except (TimeoutError, OSError) as error:
            logger.warning("the disks could not be synced: %r", error)
        if not self.is_quiesced:
            raise Conflict("The instance was resumed while it was being quiesced; quiesce it again.")
        return is_still

    async def resume(self, instance_id: str | None = None, instance_name: str | None = None) -> None:
        """Goes on, as who it was or as a fork: old connections end, and model calls that were under way are made again.

        Errors: LogUnavailable, OSError: what is new of the identity was not kept.
        """
        if instance_id is not None or instance_name is not None:
            await asyncio.to_thread(self._data.adopt, instance_id, instance_name)
        # Also those of an instance that was paused without a quiesce: what they wait for may never come.
        self._pause.hold("resume", breaks_calls=True)
        try:
            await self._come_to_rest(BREAK_OFF)
            await self._gateway.close()
            await self._let_go("request")
            self._log.drop_clients()
            for drop in self.on_drop:
                drop()
        finally:
            self._pause.release("resume")

    async def stop(self, status: Literal["standby", "stopped"]) -> None:
        """Refuses tasks, and holds those there are, until `start`."""
        self.status = status
        self._pause.hold("stop", breaks_calls=True)
        await self._come_to_rest(SETTLE)
        await self._log.append(Draft("lifecycle.stopped", {"status": status}, sync=True))

    async def start(self) -> None:
        """Takes tasks again, and lets those there are go on."""
        if self.status != "running":
            self.status = "running"
            self._pause.release("stop")
            await self._log.append(Draft("lifecycle.started", {}, sync=True))

    async def _come_to_rest(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await self._pause.still()
        except TimeoutError:
            logger.warning("%d tool calls did not come to rest in %d s", self._pause.moving, seconds)
            return False
        return True

    async def _let_go(self, reason: Literal["request", "timeout"]) -> None:
        self._end_quiesce()
        await _call(self.on_resume)
        identity = self._data.identity
        data = {"reason": reason, "instanceId": identity.instance_id, "instanceName": identity.instance_name}
        await self._log.append(Draft("lifecycle.resumed", data, sync=True))

    def _end_quiesce(self) -> None:
        self._set_timer(None)
        self.is_quiesced = False
        self._pause.release("quiesce")

    def _set_timer(self, seconds: float | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._clock.call_later(seconds, self._is_due.set) if seconds is not None else None
        self._is_due.clear()


async def _call(hooks: Sequence[Hook]) -> None:
    for hook in hooks:
        try:
            await hook()
        except (AgentServerError, OSError, TimeoutError) as error:
            logger.warning("a part could not be paused or resumed: %s", error)
