"""Sessions at work: one task at a time in each, sessions side by side, every task to its end.

`submit` is the one way in: it appends `task.created`, which is the enqueue. What was processing when the server ended
goes on from the log at the next start. How a task is worked on is `attempts.py`.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any
from weakref import WeakValueDictionary

import msgspec

from agent_server.agents import Agent
from agent_server.calling import custom
from agent_server.commands.processes import finish
from agent_server.errors import AgentServerError, Conflict, Draining, TooManyRequests, Unprocessable
from agent_server.events import Draft, Event, LogUnavailable
from agent_server.ids import new_id
from agent_server.sessions import delivery, session_index, tasks, waits
from agent_server.sessions.attempts import Active, Attempts, Checkpoints, built_in
from agent_server.sessions.conversation import Conversation, load
from agent_server.sessions.delegation import Subagents
from agent_server.sessions.endings import cancelled, failed, failure
from agent_server.sessions.lanes import Lanes
from agent_server.sessions.run import Surroundings
from agent_server.sessions.slots import Slot
from agent_server.sessions.submission import Submission, title
from agent_server.sessions.tasks import TERMINAL, Task

logger = logging.getLogger(__name__)

MAIN_SESSION = "sess_main"
"""The session of tasks that name none."""

MAX_QUEUED = 1_000
"""Tasks that wait in all sessions together; more are refused with TOO_MANY_REQUESTS."""

MAX_MESSAGES = 1_000
"""Messages that wait for one task's next model call; more are refused with TOO_MANY_REQUESTS."""

LOG_RETRY = 5.0
"""Seconds until a task goes on whose events could not be written."""


class Sessions:
    """The queues and workers. `run` must be running for anything to happen."""

    def __init__(self, around: Surroundings, agent: Agent, checkpoints: Checkpoints, *, max_concurrent: int) -> None:
        self.around = around
        self._log = around.log
        self.agent = agent
        self._attempts = Attempts(around, agent, checkpoints, Subagents(around, self), lambda: self.is_draining)
        self._lanes = Lanes(self._process, lambda: self.is_draining, max_concurrent)
        self._active: dict[str, Active] = {}
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()  # each lives as long as a request has it
        self._ready = asyncio.Event()
        self._stop = asyncio.Event()
        self.is_draining = False
        self.admit: Callable[[], None] = lambda: None  # raises where nothing is begun

    async def run(self) -> None:
        """Takes up what was unfinished, and works until `drain`. Ends when every worker has."""
        async with self._lanes.served():
            unfinished = await tasks.find_unfinished(self._log)
            await self.around.configs.sweep({task.task_id for task in unfinished})
            at_work = {task.task_id for task in unfinished}
            for task in unfinished:
                if task.parent_id is None or task.parent_id in at_work:
                    self._lanes.enqueue(task.session_id, task.task_id)
                else:  # its parent ended with the server, and what ends a task ends its subagents
                    await self._log.append(failed(task, cancelled(task.task_id), "cancelled"))
            self._ready.set()
            await self._stop.wait()

    # What clients ask for

    @property
    def is_ready(self) -> bool:
        return self._ready.is_set()

    async def ready(self) -> None:
        """Returns when the tasks of before the start are queued again; what a killed server left running is ended by then."""
        await self._ready.wait()

    async def submit(
        self,
        submission: Submission,
        session_id: str | None = None,
        *,
        key: str | None = None,
        request_hash: str | None = None,
        origin: Mapping[str, Any] | None = None,
    ) -> str:
        """Accepts a task and gives its id; it is durable, and will end, when this returns.

        With a `key`, the same key and hash give the same task, also at the same time and across restarts. `origin` is what
        `integration.received` says of it, which is in the log with the task or not at all.
        Errors: Draining; TooManyRequests; Unprocessable (IDEMPOTENCY_MISMATCH).
        """
        if key is None:
            return await self._create(submission, session_id or MAIN_SESSION, {})
        lock = self._locks.setdefault(f"key {key}", asyncio.Lock())  # one creation for each key at a time
        async with lock:
            known = await tasks.find_by_key(self._log, key)
            if known is None:
                more = {"idempotencyKey": key, "requestHash": request_hash}
                return await self._create(submission, session_id or MAIN_SESSION, more, origin)
            if known.request_hash != request_hash:
                raise Unprocessable(
                    "This Idempotency-Key was used with another body; use a new key for a new request.",
                    code="IDEMPOTENCY_MISMATCH",
                    details={"taskId": known.task_id},
                )
            return known.task_id

    async def _create(
        self, submission: Submission, session_id: str, more: Mapping[str, Any], origin: Mapping[str, Any] | None = None
    ) -> str:
        await self.ready()
        if self.is_draining:
            raise Draining("The server is stopping; send the request again in a few seconds.")
        self.admit()
        if self._lanes.queued >= MAX_QUEUED:
            raise TooManyRequests(f"{MAX_QUEUED} tasks are waiting; send the request again when some are done.")
        task_id = new_id("task")
        await self.accept(task_id, session_id, submission, {"title": title(submission.prompt), **more}, origin)
        return task_id

    async def accept(
        self, task_id: str, session_id: str, submission: Submission, more: Mapping[str, Any], origin: Mapping[str, Any] | None = None
    ) -> None:
        """Accepts a task under this id, whatever else goes on: what is not to be begun is refused before. Errors: LogUnavailable.

        Cancellation: nothing was accepted, or it is in the log and at work.
        """
        came = [Draft("integration.received", origin, session_id, task_id)] if origin is not None else []
        with self._lanes.arriving(session_id):
            public = await self._withheld(task_id, submission)
            data = {**msgspec.to_builtins(public), **more}
            await finish(self._record(session_id, task_id, [*came, Draft("task.created", data, session_id, task_id, sync=True)]))

    async def _record(self, session_id: str, task_id: str, drafts: Sequence[Draft]) -> None:
        """Writes a task's first events and enqueues it, the two as one: what is in the log is at work."""
        await self._log.append(*drafts)
        self._lanes.enqueue(session_id, task_id)

    async def _withheld(self, task_id: str, submission: Submission) -> Submission:
        """Gives the submission as events may have it; what they must not have is kept where the task finds it."""
        public = custom.shown(submission.tools)
        if public != list(submission.tools):
            self.around.secrets.add(custom.secrets_of(submission.tools), is_own=False)
            try:
                await self.around.configs.keep(task_id, submission.tools)
            except OSError as error:
                what = error.strerror or type(error).__name__
                raise AgentServerError(f"The tools' configuration cannot be kept: {what}. Free some disk space and try again.") from error
        return msgspec.structs.replace(submission, tools=public)

    async def wait(self, task_id: str) -> Task:
        """Waits for a task's end and gives it.

        Errors: NotFound; Draining when the server stops first: the task goes on at the next start.
        """
        task = await tasks.find(self._log, task_id)
        if task.ended is None:
            async for _ in self._log.follow(after=task.created, task_id=task_id, types=TERMINAL):
                return await tasks.find(self._log, task_id)
            raise Draining("The server is stopping; the task goes on after its restart, ask for it by its id.", details={"taskId": task_id})
        return task

    async def cancel(self, task_id: str) -> Task:
        """Ends a task; its processes are dead when this returns. A task that has ended stays as it is.

        Errors: NotFound.
        """
        await self.ready()
        task = await tasks.find(self._log, task_id)
        if task.ended is not None:
            return task
        active = self._active.get(task_id)
        if active is not None:
            active.is_cancelled = True
            active.stop()
            await active.ended.wait()
        elif self._lanes.is_queued(task.session_id, task_id):
            self._lanes.withdraw(task.session_id, task_id)
            await self._log.append(failed(task, cancelled(task_id), "cancelled"))
            await self._attempts.forget(task)
        return await tasks.find(self._log, task_id)

    async def steer(self, task_id: str, prompt: str | list[dict[str, Any]]) -> str:
        """Adds a message to a task that has not ended, and gives the message's id; it is durable when this returns.

        Errors: NotFound; Conflict when the task has ended, or has its final answer; TooManyRequests; Draining.
        """
        task = await self._unended(task_id)
        if await self._waiting(task_id) >= MAX_MESSAGES:
            raise TooManyRequests(f"{MAX_MESSAGES} messages wait for this task; send the message again when its model was told them.")
        message_id = new_id("msg")
        await self._tell(task, Draft("message.added", {"messageId": message_id, "prompt": prompt}, task.session_id, task_id, sync=True))
        return message_id

    async def _waiting(self, task_id: str) -> int:
        """Gives how many messages wait for a task's next model call; of one that is not at work, how many there are."""
        active = self._active.get(task_id)
        if active is not None and active.run is not None:
            return len(active.run.conversation.added)
        statement = "SELECT count(*) FROM events WHERE task_id = ? AND type = 'message.added'"
        count: int = await self._log.query(lambda db: db.execute(statement, (task_id,)).fetchone()[0])
        return count

    async def deliver(self, task_id: str, call_id: str, text: str, *, is_error: bool) -> Task:
        """Takes the result of a call that the client was asked to run, once; it is durable when this returns.

        Errors: NotFound; Conflict when another result was given, or none can be; Draining.
        """
        lock = self._locks.setdefault(f"results {task_id}", asyncio.Lock())  # of two at once the second sees what the first wrote
        async with lock:
            await self.ready()
            task = await tasks.find(self._log, task_id)
            if (data := await delivery.result(self.around, task, call_id, text, is_error=is_error)) is not None:
                task = await self._unended(task_id)
                ended = delivery.with_nudge(self.around, await self._conversation(task), data)
                await self._tell(task, Draft("tool.finished", ended, task.session_id, task_id, sync=True))
        return task

    async def reply(
        self, session_id: str, asking: str, answering: str, request_id: str, answer: Callable[[Event], Mapping[str, Any]]
    ) -> Event:
        """Takes the answer to a permission that was requested or a question that was asked, once, and gives what was asked; it is
        durable when this returns. `asking` and `answering` are the types of the two events; `answer` gives what the second says.

        Errors: those of `answer`; NotFound; Conflict when it is answered, or needs no answer any more; Draining.
        """
        asked = await waits.find(self._log, session_id, asking, request_id)
        task_id, call_id, given = asked.task_id or "", asked.data["toolCallId"], answer(asked)
        lock = self._locks.setdefault(f"results {task_id}", asyncio.Lock())  # of two at once the second sees what the first wrote
        async with lock:
            task = await self._unended(task_id)
            active = self._active.get(task_id)
            known = await waits.load(self._log, task_id)
            if active is not None and active.run is not None:
                known = active.run.waits  # nothing comes between this look and the answer
            if call_id not in known.open or known.open[call_id].seq != asked.seq:
                raise Conflict("This has an answer already, or needs none any more.", details={waits.ASKING[asking]: request_id})
            data = {waits.ASKING[asking]: request_id, "toolCallId": call_id, **given, "awaited": len(known.open) - 1}
            await self._tell(task, Draft(answering, data, session_id, task_id, sync=True))
        return asked

    async def _conversation(self, task: Task) -> Conversation:
        """Gives what a task's session holds: as its run has it, or, where it has none, from the log."""
        active = self._active.get(task.task_id)
        return active.run.conversation if active is not None and active.run is not None else await load(self._log, task.session_id)

    async def _unended(self, task_id: str) -> Task:
        await self.ready()
        task = await tasks.find(self._log, task_id)
        if task.ended is not None:
            raise _over(task_id)
        if self.is_draining:
            raise Draining("The server is stopping; send the request again in a few seconds.")
        return task

    async def _tell(self, task: Task, draft: Draft) -> None:
        """Adds an event to a task that has not ended, in such a way that its loop sees it."""
        active = self._active.get(task.task_id)
        if active is not None and active.is_open:
            if active.run is not None:
                _, committed = active.run.take(draft)
                active.run.changed.set()
            else:
                events, committed = self._log.post(draft)
                active.arrived += events
        elif active is None and self._lanes.is_queued(task.session_id, task.task_id):
            _, committed = self._log.post(draft)
        else:
            raise _over(task.task_id)
        await self._log.append()
        if committed.done():  # what is not is safe in the journal
            committed.result()

    @asynccontextmanager
    async def held(self, session_id: str) -> AsyncIterator[None]:
        """Holds an idle session while something of it is changed: its tasks wait meanwhile.

        Errors: NotFound (SESSION_NOT_FOUND); Conflict when a task of it is queued or at work, or somebody else holds it; Draining.
        """
        await self.ready()
        if self.is_draining:
            raise Draining("The server is stopping; send the request again in a few seconds.")
        session = await session_index.find(self._log, session_id)
        if not session.processing:
            await self._lanes.until_free(session_id)  # its last task has ended, and its worker is about to
        self.admit()
        with self._lanes.held(session_id):
            yield

    async def drain(self, grace: float) -> None:
        """Lets tasks come to a safe point, for `grace` seconds at the most; then they are broken off, and go on at the next start."""
        self.is_draining = True
        self.around.pause.release_all()  # whoever is held comes to an end too
        for active in self._active.values():
            if active.run is not None and active.run.is_waiting:
                active.stop()  # a model call is made again, and a client's result can come later: waiting saves nothing
        if self._active:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(grace):
                    await asyncio.gather(*(active.ended.wait() for active in self._active.values()))
        for active in self._active.values():
            active.stop()
        self._stop.set()

    async def stopping(self) -> None:
        """Returns when what goes on is broken off: the server stops, and its grace is over."""
        await self._stop.wait()

    @property
    def tool_names(self) -> Collection[str]:
        """The names of the agent's own tools, which a client's must not have."""
        return built_in(self.around, self.agent, {"autoTools": True})

    @property
    def is_idle(self) -> bool:
        """Whether no task is queued, arriving or at work, and nobody changes a session."""
        return not self._active and self._lanes.is_idle

    @property
    def processing(self) -> int:
        """How many tasks are queued or at work."""
        return len(self._active) + self._lanes.queued

    # The workers

    async def _process(self, task_id: str, slot: Slot) -> None:
        """Works on a task until it has ended in the log, or the server stops."""
        active = self._active[task_id] = Active(slot)
        try:
            while not await self._try(task_id, active):
                await asyncio.sleep(LOG_RETRY)
                if self.is_draining:
                    return
        finally:
            active.ended.set()
            del self._active[task_id]

    async def _try(self, task_id: str, active: Active) -> bool:
        """Works on a task, and tells whether the log could be written."""
        active.run, active.arrived = None, []
        try:
            active.work = asyncio.create_task(self._attempts.attempt(task_id, active), name=task_id)
            if active.is_cancelled:
                active.work.cancel()
            try:
                await self._attempts.settle(task_id, active, active.work)
            except LogUnavailable:
                raise
            except Exception as error:  # the border: one session's fault must not end the others
                logger.exception("%s could not be settled", task_id)
                task = await tasks.find(self._log, task_id)
                await self._log.append(failed(task, *failure(task, error)))
        except LogUnavailable as error:
            logger.error("%s cannot go on: %s", task_id, error)
            active.work = None
            return False
        return True


def _over(task_id: str) -> Conflict:
    return Conflict("The task has ended; send a new one to go on with its session.", details={"taskId": task_id})
