"""Delivers replies from the log: each message of a reply is in the log before it leaves, and after.

A message that left and was not recorded, because the server was killed or the connection broke in between, is never sent
again: the reply may be there already, and twice is worse than a word on it. What is sent instead is NOTICE.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from agent_server.adapters import deliveries
from agent_server.adapters.deliveries import Delivery
from agent_server.events import Draft, LogUnavailable
from agent_server.events.log import EventLog
from agent_server.sessions import tasks
from agent_server.sessions.tasks import TERMINAL
from integrations import Connection, Doubtful, Rejected, Reply, Unavailable, Undeliverable

logger = logging.getLogger(__name__)

NOTICE = "I was interrupted while I sent an answer. If you cannot see it above, ask me to repeat it."
NOTHING_SAID = "I am done; there is nothing to say about it."
CUT = "[cut: the answer is longer; ask me for the rest]"

MOST_MESSAGES = 20
"""Messages of one reply: more are a flood, in which nobody reads."""

MOST_LANES = 100
"""Conversations that replies are sent to at the same time; the platform's own limits come first."""

DELIVERY_MS = 24 * 3600 * 1000
"""Milliseconds after which a reply that could not be sent is given up: later it would come out of the blue."""

FIRST_DELAY, MOST_DELAY = 1.0, 60.0
"""Seconds until a message that was not sent is tried again, at first and at the most."""

LONGEST_DELAY = 3600.0
"""Seconds at the most that a platform may make us wait."""

DELIVER_SECONDS = 120.0
"""Seconds that one try may take; after that it is doubtful."""

SHOW_EVERY = 4.5
"""Seconds between two signs that an answer is being made: Telegram shows one for 5 s."""

SHOW_SECONDS = 4.0
MOST_SHOWN = 20
"""Seconds that one sign may take, and conversations that get one."""

RETRY_LOG = 5.0
"""Seconds until an event is written again that the log refused."""


class Courier:
    """Delivers the replies of one integration, over whichever connection there is.

    One reply at a time in each conversation, in the order in which they were due.
    """

    def __init__(self, name: str, log: EventLog) -> None:
        self._name = name
        self._log = log
        self._connection: Connection | None = None
        self._connected = asyncio.Event()
        self._wake = asyncio.Event()
        self._received = asyncio.Event()
        self._lanes: dict[str, asyncio.Task[None]] = {}
        self._stopping = asyncio.Event()
        self.on_rejected: Callable[[Rejected], None] = lambda error: None

    def use(self, connection: Connection | None) -> None:
        """Sends over this connection from here on; with None waits for the next."""
        self._connection = connection
        if connection is None:
            self._connected.clear()
        else:
            self._connected.set()
            self._wake.set()

    async def run(self) -> None:
        """Delivers until it is cancelled: what was due before the start first."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._listen(self._log.newest))
            group.create_task(self._show())
            while True:
                self._wake.clear()
                await self._connected.wait()
                with _log_failures():
                    free = MOST_LANES - len(self._lanes)
                    for delivery in await deliveries.find_due(self._log, self._name, without=[*self._lanes], limit=free):
                        lane = group.create_task(self._serve(delivery))
                        self._lanes[delivery.session_id] = lane
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(MOST_DELAY):  # what the log refused to say is asked again
                        await self._wake.wait()

    async def stop(self, grace: float) -> None:
        """Begins no further message, and waits for those on their way, for `grace` seconds at the most."""
        self._stopping.set()
        self._connected.set()  # for those who wait for it
        if self._lanes:
            await asyncio.wait([*self._lanes.values()], timeout=grace)

    async def _listen(self, after: int) -> None:
        while True:
            try:
                async for event in self._log.follow(after=after, types={*TERMINAL, "integration.received"}):
                    after = event.seq
                    self._wake.set()
                    if event.type == "integration.received":
                        self._received.set()
            except LogUnavailable as error:
                logger.error("%s", error)
                await asyncio.sleep(RETRY_LOG)
            else:
                return  # the server is stopping

    async def _serve(self, delivery: Delivery) -> None:
        try:
            await self._deliver(delivery)
        except LogUnavailable as error:
            logger.error("a reply through %s must wait: %s", self._name, error)
            await asyncio.sleep(RETRY_LOG)
        except Exception as error:  # the border: one reply's fault must not hold up the others
            logger.exception("a reply through %s cannot be made", self._name)
            await self._give_up(delivery, delivery.sent, delivery.sent, f"it could not be made ({type(error).__name__})")
        finally:
            del self._lanes[delivery.session_id]
            self._wake.set()

    async def _deliver(self, delivery: Delivery) -> None:
        connection = await self._usable(delivery)
        if connection is None:
            return
        parts = _bounded(connection.split(await self._text(delivery)))
        sent, is_doubtful = delivery.sent, delivery.is_doubtful
        if delivery.sending is not None:
            await self._doubt(delivery, delivery.sending, len(parts), "the server ended while it was sent")
            sent, is_doubtful = max(sent, delivery.sending), delivery.sending > 0
        while (is_doubtful or sent < len(parts)) and not self._stopping.is_set():
            part = 0 if is_doubtful else sent + 1
            text = NOTICE if is_doubtful else parts[sent]
            outcome = await self._send(delivery, part, len(parts), text)
            if outcome is None:
                return
            is_doubtful = part > 0 and outcome == "doubtful"
            sent = max(sent, part)

    async def _send(self, delivery: Delivery, part: int, parts: int, text: str) -> str | None:
        """Sends one message until it is `sent` or `doubtful`; None when the reply is over, or must wait for the next start."""
        delay = FIRST_DELAY
        reply = Reply(f"{delivery.key}:{part}", delivery.to, text)
        while not self._stopping.is_set():
            if time.time() * 1000 > delivery.due + DELIVERY_MS:
                await self._give_up(delivery, part, parts, "it could not be sent for too long")
                return None
            connection = await self._usable(delivery)
            if connection is None:
                return None
            sending = {"part": part, "parts": parts}
            await self._record(self._draft("integration.sending", delivery, sending, sync=True))
            try:
                async with asyncio.timeout(DELIVER_SECONDS):
                    message_id = await connection.deliver(reply)
            except Unavailable as error:
                logger.info("a reply through %s waits: %s", self._name, error)
                wait = min(max(delay, error.retry_after), LONGEST_DELAY)
                delay = min(delay * 2, MOST_DELAY)
            except Rejected as error:
                self.on_rejected(error)
                wait = MOST_DELAY
            except Undeliverable as error:
                await self._give_up(delivery, part, parts, str(error))
                return None
            except Exception as error:  # the border: whatever went wrong, the message may have left
                if not isinstance(error, Doubtful):
                    logger.exception("%s failed to deliver a reply", self._name)
                await self._doubt(delivery, part, parts, str(error) or type(error).__name__)
                return "doubtful"
            else:
                await self._record(self._draft("integration.sent", delivery, {**sending, "messageId": message_id}))
                return "sent"
            await self._record(self._draft("integration.held", delivery, sending))
            await self._pause(wait)
        return None

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()

    async def _usable(self, delivery: Delivery) -> Connection | None:
        """Waits for a connection; None when we are stopping."""
        while self._connection is None and not self._stopping.is_set():
            await self._connected.wait()
        return None if self._stopping.is_set() else self._connection

    async def _text(self, delivery: Delivery) -> str:
        if delivery.task_id is None:
            return delivery.answer or NOTHING_SAID
        task = await tasks.find(self._log, delivery.task_id)
        if task.status == "failed":
            error = task.outcome["error"]
            if (reached := task.outcome.get("response")) is not None:
                return str(reached)
            return "Stopped." if error["code"] == "TASK_CANCELLED" else f"I could not finish this: {error['message']}"
        response: str = task.outcome["response"]
        return response

    async def _doubt(self, delivery: Delivery, part: int, parts: int, why: str) -> None:
        what = f"message {part} of {parts}" if part else "the notice"
        error = f"It is not known whether {what} of a reply arrived ({why}); it is not sent again."
        await self._record(self._draft("integration.error", delivery, {"part": part, "parts": parts, "error": error}))

    async def _give_up(self, delivery: Delivery, part: int, parts: int, why: str) -> None:
        data = {"part": part, "parts": parts, "error": f"A reply was not sent: {why}", "isFinal": True}
        await self._record(self._draft("integration.error", delivery, data))

    def _draft(self, kind: str, delivery: Delivery, data: Mapping[str, Any], *, sync: bool = False) -> Draft:
        return Draft(kind, {"integration": self._name, "key": delivery.key, **data}, delivery.session_id, delivery.task_id, sync)

    async def _record(self, draft: Draft) -> None:
        """Writes an event, however long the log refuses it: what was done must not be forgotten while we live."""
        while True:
            try:
                await self._log.append(draft)
                return
            except LogUnavailable:
                if self._stopping.is_set():
                    raise
                await asyncio.sleep(RETRY_LOG)

    async def _show(self) -> None:
        while True:
            self._received.clear()
            awaited: list[Mapping[str, Any]] = []
            pause = SHOW_EVERY
            with _log_failures():
                awaited = await deliveries.find_awaited(self._log, self._name, limit=MOST_SHOWN)
            if self._connection is not None:
                for to in awaited:
                    pause = max(pause, await _show_working(self._connection, to))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause if awaited else None):
                    await self._received.wait()


async def _show_working(connection: Connection, to: Mapping[str, Any]) -> float:
    """Shows it, and gives the seconds that the platform wants to be left alone."""
    try:
        async with asyncio.timeout(SHOW_SECONDS):
            await connection.show_working(to)
    except Unavailable as error:
        return min(error.retry_after, LONGEST_DELAY)
    except Exception as error:  # the border: it is only a sign
        logger.debug("no sign of work could be shown: %s", error)
    return 0.0


def _bounded(parts: list[str]) -> list[str]:
    if not parts:
        return [NOTHING_SAID]
    return parts if len(parts) <= MOST_MESSAGES else [*parts[: MOST_MESSAGES - 1], CUT]


@contextlib.contextmanager
def _log_failures() -> Iterator[None]:
    try:
        yield
    except LogUnavailable as error:
        logger.error("%s", error)
