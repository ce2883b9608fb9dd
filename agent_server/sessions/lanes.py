"""The queues of sessions: one task at a time in each, sessions side by side, as many as there are places."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

import msgspec

from agent_server.errors import Conflict
from agent_server.sessions.slots import Slot


class Lane(msgspec.Struct):
    """One session's queue, and its worker. `arriving` counts the tasks whose acceptance is being written; while it `is_held`,
    somebody changes the session, and no task of it begins."""

    waiting: deque[str] = msgspec.field(default_factory=deque)
    worker: "asyncio.Task[None] | None" = None
    arriving: int = 0
    is_held: bool = False


class Lanes:
    """The lanes in which anything is. `work` works on one task to its end; nothing is begun once `is_stopping`."""

    def __init__(self, work: Callable[[str, Slot], Awaitable[None]], is_stopping: Callable[[], bool], places: int) -> None:
        self._work = work
        self._is_stopping = is_stopping
        self._places = asyncio.Semaphore(places)
        self._lanes: dict[str, Lane] = {}
        self._group: asyncio.TaskGroup | None = None

    @asynccontextmanager
    async def served(self) -> AsyncIterator[None]:
        """Has the queues worked off while the context lasts, and ends when every worker has."""
        async with asyncio.TaskGroup() as self._group:
            yield
        self._group = None

    @property
    def queued(self) -> int:
        """How many tasks wait."""
        return sum(len(lane.waiting) for lane in self._lanes.values())

    @property
    def is_idle(self) -> bool:
        """Whether no task waits or arrives, and nobody holds a session."""
        return not any(lane.waiting or lane.arriving or lane.is_held for lane in self._lanes.values())

    def enqueue(self, session_id: str, task_id: str) -> None:
        """Puts a task at the end of its session's queue."""
        if self._group is None or self._is_stopping():
            return  # it goes on at the next start
        lane = self._lane(session_id)
        lane.waiting.append(task_id)
        self._wake(session_id, lane)

    def is_queued(self, session_id: str, task_id: str) -> bool:
        """Whether a task waits."""
        lane = self._lanes.get(session_id)
        return lane is not None and task_id in lane.waiting

    def withdraw(self, session_id: str, task_id: str) -> None:
        """Takes a task that waits out of its queue."""
        self._lanes[session_id].waiting.remove(task_id)

    @contextmanager
    def arriving(self, session_id: str) -> Iterator[None]:
        """Is around the acceptance of a task: nobody can hold its session meanwhile."""
        lane = self._lane(session_id)
        lane.arriving += 1
        try:
            yield
        finally:
            lane.arriving -= 1
            self._tidy(session_id)

    async def until_free(self, session_id: str) -> None:
        """Waits for the end of a worker that has nothing more to do."""
        lane = self._lanes.get(session_id)
        if lane is not None and lane.worker is not None:
            await asyncio.wait([lane.worker])

    @contextmanager
    def held(self, session_id: str) -> Iterator[None]:
        """Holds an idle session: its tasks wait meanwhile. Errors: Conflict when it is not idle, or somebody else holds it."""
        lane = self._lane(session_id)
        if lane.is_held or lane.waiting or lane.arriving or lane.worker is not None:
            raise Conflict(
                "The session is busy; send the request again when its tasks have ended, or cancel them.", details={"sessionId": session_id}
            )
        lane.is_held = True
        try:
            yield
        finally:
            lane.is_held = False
            self._wake(session_id, lane)
            self._tidy(session_id)

    def _lane(self, session_id: str) -> Lane:
        return self._lanes.setdefault(session_id, Lane())

    def _tidy(self, session_id: str) -> None:
        """Forgets a lane in which nothing is."""
        lane = self._lanes.get(session_id)
        if lane is not None and not (lane.waiting or lane.arriving or lane.is_held or lane.worker):
            del self._lanes[session_id]

    def _wake(self, session_id: str, lane: Lane) -> None:
        if self._group is not None and lane.waiting and lane.worker is None and not (lane.is_held or self._is_stopping()):
            lane.worker = self._group.create_task(self._serve(session_id, lane), name=f"session {session_id}")

    async def _serve(self, session_id: str, lane: Lane) -> None:
        while lane.waiting and not self._is_stopping():
            slot = Slot(self._places)
            await slot.take()
            try:
                if lane.waiting and not self._is_stopping():
                    await self._work(lane.waiting.popleft(), slot)
            finally:
                slot.leave()
        lane.worker = None
        self._tidy(session_id)
