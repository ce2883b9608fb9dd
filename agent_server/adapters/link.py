"""One enabled integration at work: connected, received from, connected anew when it fails. It takes nothing else down."""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Literal

from agent_server.adapters.courier import Courier
from agent_server.events import Draft
from agent_server.events.log import EventLog
from integrations import Answer, Callback, Connection, Inbound, Integration, Rejected, Start, Unavailable

logger = logging.getLogger(__name__)

FIRST_DELAY, MOST_DELAY = 1.0, 60.0
"""Seconds until what failed is tried again, at first and at the most; each failure in a row doubles it."""

LONGEST_DELAY = 3600.0
"""Seconds at the most that a platform may make us wait."""

START_SECONDS = 60.0
"""Seconds that a start may take."""

SETTLED_SECONDS = 60.0
"""Seconds of work after which a failure counts as the first one again."""

STOP_SECONDS = 5.0
"""Seconds that messages on their way get to arrive at a stop."""

Submit = Callable[[Inbound], Awaitable[None]]


class Link:
    """One integration with one set of variables. `start` begins its work, `stop` ends it; `error` says what is wrong."""

    def __init__(self, integration: Integration, start: Start, environ: Mapping[str, str], log: EventLog, submit: Submit) -> None:
        self.integration = integration
        self.environ = environ
        self._start = start
        self._submit = submit
        self.status: Literal["connected", "disabled", "error"] = "disabled"
        self.error: str | None = "It is connecting."
        self.settled = asyncio.Event()  # it has connected, or failed to
        self._log = log
        self._connection: Connection | None = None
        self._courier = Courier(integration.name, log)
        self._courier.on_rejected = self._failed
        self._work: asyncio.Task[None] | None = None

    def start(self, group: asyncio.TaskGroup) -> None:
        self._work = group.create_task(self._keep(), name=f"integration {self.integration.name}")

    async def stop(self) -> None:
        """Ends it; messages on their way get STOP_SECONDS. Everything else is in the log, for the next start."""
        await self._courier.stop(STOP_SECONDS)
        if self._work is not None:
            self._work.cancel()
            await asyncio.wait([self._work])
        if self.status == "connected":
            self._say("integration.disconnected", reason="it was stopped")
        self.status = "disabled"

    async def submit(self, inbound: Inbound) -> None:
        """Takes a message, as `Context` has it."""
        await self._submit(inbound)

    async def callback(self, callback: Callback) -> Answer:
        """Hands over a request of the platform.

        Errors: those of `Connection.callback`; Unavailable when there is no connection.
        """
        if self._connection is None:
            raise Unavailable(f"{self.integration.name} is not connected: {self.error}")
        return await self._connection.callback(callback)

    async def _keep(self) -> None:
        while True:
            try:
                await self._run()
            except Exception:  # the border: whatever else fails here, the server and the other integrations go on
                logger.exception("%s ended", self.integration.name)
                self._failed(RuntimeError("It ended by a fault of the server's; the server's log has the details."))
                await asyncio.sleep(MOST_DELAY)

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._courier.run())
            failures = 0
            while True:
                began = time.monotonic()
                try:
                    await self._work_once()
                except Rejected as error:
                    self._failed(error)
                    await asyncio.Event().wait()  # until other credentials come, which make another link
                except Unavailable as error:
                    wait = error.retry_after
                    self._failed(error)
                except Exception as error:  # the border: an integration's fault ends only its connection
                    logger.exception("%s failed", self.integration.name)
                    wait = 0.0
                    self._failed(RuntimeError(f"It failed ({type(error).__name__}); the server's log has the details."))
                failures = 1 if time.monotonic() - began > SETTLED_SECONDS else failures + 1
                await _pause(failures, wait)

    async def _work_once(self) -> None:
        """Connects and receives until that fails."""
        async with asyncio.timeout(START_SECONDS):
            connection = await self._start(self)
        self._connection = connection
        self._courier.use(connection)
        try:
            self._connected()
            await self._receive(connection)
        finally:
            self._connection = None
            self._courier.use(None)
            await _close(connection)

    async def _receive(self, connection: Connection) -> None:
        failures = 0
        while True:
            try:
                await connection.receive()
            except Unavailable as error:
                failures += 1
                self._failed(error)
                await _pause(failures, error.retry_after)
            else:
                failures = 0
                self._connected()
                await asyncio.sleep(0)  # one that never waits must not stop the server

    def _connected(self) -> None:
        if self.status != "connected":
            account = self._connection.account if self._connection is not None else ""
            self.status, self.error = "connected", None
            self._say("integration.connected", account=account)
            self.settled.set()

    def _failed(self, error: Exception) -> None:
        text = str(error) or type(error).__name__
        if self.status == "connected":
            self._say("integration.disconnected", reason=text)
        if self.error != text:  # of the same, over and over, the first is enough
            self._say("integration.error", error=text)
        self.status, self.error = "error", text
        self.settled.set()

    def _say(self, kind: str, **data: Any) -> None:
        self._log.say(Draft(kind, {"integration": self.integration.name, **data}))


async def _close(connection: Connection) -> None:
    try:
        await connection.stop()
    except Exception as error:  # the border: what cannot be closed is left
        logger.warning("a connection was not closed: %s", error)


async def _pause(failures: int, at_least: float) -> None:
    delay: float = min(MOST_DELAY, FIRST_DELAY * 2 ** min(failures - 1, 10))
    jittered = delay * random.uniform(0.5, 1)  # noqa: S311 - spreads the load, keeps no secret
    await asyncio.sleep(max(jittered, min(at_least, LONGEST_DELAY)))
