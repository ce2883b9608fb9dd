"""Sessions at work: one task at a time in each, sessions side by side, every task to its end.

`submit` is the one way in: it appends `task.created`, which is the enqueue. What was processing when the server ended
goes on from the log at the next start.
"""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Protocol
from weakref import WeakValueDictionary

import msgspec

from agent_server import conversation, tasks
from agent_server.agents import Agent
from agent_server.calls import interrupted
from agent_server.errors import AgentServerError, Conflict, Draining, TaskTimeout, TooManyRequests, Unprocessable
from agent_server.events import Draft, LogUnavailable
from agent_server.gateway import ModelOptions
from agent_server.ids import new_id
from agent_server.loop import Paused, work
from agent_server.messages import Message, Text
from agent_server.processes import finish
from agent_server.prompts import system_prompt
from agent_server.run import Run, Surroundings
from agent_server.tasks import TERMINAL, Task

logger = logging.getLogger(__name__)

MAIN_SESSION = "sess_main"
"""The session of tasks that name none."""

MAX_QUEUED = 1_000
"""Tasks that wait in all sessions together; more are refused with TOO_MANY_REQUESTS."""

MAX_RESUMPTIONS = 3
"""Resumptions without a finished step in between after which a task fails: it may be what ends the server."""

LOG_RETRY = 5.0
"""Seconds until a task goes on whose events could not be written."""

CANCELLED = "Cancelled: the task was ended while this call ran. It may have run in part."


class Checkpoints(Protocol):
    """What records the workspace before and after a task."""

    async def begin(self, task: Task) -> None:
        """Records the state before the task, once. Errors: none; a failure is logged."""

    async def end(self, task: Task) -> Sequence[Mapping[str, Any]]:
        """Records the state after it and gives what changed, as `changes` has it. Errors: none."""


class Submission(
    msgspec.Struct, frozen=True, kw_only=True, rename={"max_steps": "maxSteps", "max_cost": "maxCost", "auto_tools": "autoTools"}
):
    """A task as it is created: what `task.created` says."""

    prompt: str | list[dict[str, Any]]
    model: str
    provider: str
    timeout_ms: int
    max_steps: int
    max_tokens: int | None = None
    max_cost: float | None = None
    system: str | None = None
    auto_tools: bool = True


class _Lane(msgspec.Struct):
    """One session's queue, and its worker."""

    waiting: deque[str] = msgspec.field(default_factory=deque)
    worker: "asyncio.Task[None] | None" = None


class _Active(msgspec.Struct):
    """A task that is being worked on. `ended` is set when the worker has let go of it."""

    work: "asyncio.Task[None] | None" = None
    run: Run | None = None
    is_cancelled: bool = False
    ended: asyncio.Event = msgspec.field(default_factory=asyncio.Event)

    def stop(self) -> None:
        if self.work is not None:
            self.work.cancel()


class Sessions:
    """The queues and workers. `run` must be running for anything to happen."""

    def __init__(self, around: Surroundings, agent: Agent, checkpoints: Checkpoints, *, max_concurrent: int) -> None:
        self._around = around
        self._log = around.log
        self.agent = agent
        self._checkpoints = checkpoints
        self._slots = asyncio.Semaphore(max_concurrent)
        self._lanes: dict[str, _Lane] = {}
        self._active: dict[str, _Active] = {}
        self._keys: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()  # each lives as long as a request has it
        self._group: asyncio.TaskGroup | None = None
        self._ready = asyncio.Event()
        self._stop = asyncio.Event()
        self.is_draining = False

    async def run(self) -> None:
        """Takes up what was unfinished, and works until `drain`. Ends when every worker has."""
        async with asyncio.TaskGroup() as self._group:
            for task in await tasks.find_unfinished(self._log):
                self._enqueue(task.session_id, task.task_id)
            self._ready.set()
            await self._stop.wait()
        self._group = None

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
        lock = self._keys.setdefault(key, asyncio.Lock())  # one creation for each key at a time
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
        if sum(len(lane.waiting) for lane in self._lanes.values()) >= MAX_QUEUED:
            raise TooManyRequests(f"{MAX_QUEUED} tasks are waiting; send the request again when some are done.")
        task_id = new_id("task")
        data = {**msgspec.to_builtins(submission), **more, "title": _title(submission.prompt)}
        came = [Draft("integration.received", origin, session_id, task_id)] if origin is not None else []
        await self._log.append(*came, Draft("task.created", data, session_id, task_id, sync=True))
        self._enqueue(session_id, task_id)
        return task_id

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
        lane = self._lanes.get(task.session_id)
        active = self._active.get(task_id)
        if active is not None:
            active.is_cancelled = True
            active.stop()
            await active.ended.wait()
        elif lane is not None and task_id in lane.waiting:
            lane.waiting.remove(task_id)
            await self._log.append(_failed(task, _cancelled(task_id), "cancelled"))
        return await tasks.find(self._log, task_id)

    async def drain(self, grace: float) -> None:
        """Lets tasks come to a safe point, for `grace` seconds at the most; then they are broken off, and go on at the next start."""
        self.is_draining = True
        for active in self._active.values():
            if active.run is not None and active.run.is_asking:
                active.stop()  # a model call is made again; waiting for it saves nothing
        if self._active:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(grace):
                    await asyncio.gather(*(active.ended.wait() for active in self._active.values()))
        for active in self._active.values():
            active.stop()
        self._stop.set()

    @property
    def processing(self) -> int:
        """How many tasks are queued or at work."""
        return len(self._active) + sum(len(lane.waiting) for lane in self._lanes.values())

    # The workers

    def _enqueue(self, session_id: str, task_id: str) -> None:
        if self._group is None or self.is_draining:
            return  # it goes on at the next start
        lane = self._lanes.setdefault(session_id, _Lane())
        lane.waiting.append(task_id)
        if lane.worker is None:
            lane.worker = self._group.create_task(self._serve(session_id, lane), name=f"session {session_id}")

    async def _serve(self, session_id: str, lane: _Lane) -> None:
        while lane.waiting and not self.is_draining:
            async with self._slots:
                if lane.waiting and not self.is_draining:
                    await self._process(lane.waiting.popleft())
        lane.worker = None
        if not lane.waiting:
            self._lanes.pop(session_id, None)

    async def _process(self, task_id: str) -> None:
        """Works on a task until it has ended in the log, or the server stops."""
        active = self._active[task_id] = _Active()
        try:
            while not await self._try(task_id, active):
                await asyncio.sleep(LOG_RETRY)
                if self.is_draining:
                    return
        finally:
            active.ended.set()
            del self._active[task_id]

    async def _try(self, task_id: str, active: _Active) -> bool:
        """Works on a task, and tells whether the log could be written."""
        try:
            active.work = asyncio.create_task(self._attempt(task_id, active), name=task_id)
            if active.is_cancelled:
                active.work.cancel()
            try:
                await self._settle(task_id, active, active.work)
            except LogUnavailable:
                raise
            except Exception as error:  # the border: one session's fault must not end the others
                logger.exception("%s could not be settled", task_id)
                task = await tasks.find(self._log, task_id)
                await self._log.append(_failed(task, *_failure(task, error)))
        except LogUnavailable as error:
            logger.error("%s cannot go on: %s", task_id, error)
            return False
        return True

    async def _settle(self, task_id: str, active: _Active, work: "asyncio.Task[None]") -> None:
        """Waits for the work on a task and writes down how it failed, if it did."""
        await asyncio.wait([work])
        await self._log.flush()  # what the work has posted is to be read below
        error = asyncio.CancelledError() if work.cancelled() else work.exception()
        if error is None or isinstance(error, Paused):
            return
        if isinstance(error, LogUnavailable):
            raise error
        if self.is_draining and isinstance(error, asyncio.CancelledError) and not active.is_cancelled:
            return
        task = await tasks.find(self._log, task_id)
        if task.ended is not None:
            return
        failure, phase = _failure(task, error)
        state = await conversation.load(self._log, task.session_id)
        begun = await self._begun(task)
        ends = [interrupted(call, CANCELLED) for call in state.open_calls if call.id in begun]
        changes = await self._checkpoints.end(task) if task.started is not None else []
        drafts = [Draft("tool.finished", end, task.session_id, task_id) for end in ends]
        await self._log.append(*drafts, _failed(task, failure, phase, changes))

    async def _attempt(self, task_id: str, active: _Active) -> None:
        task = await tasks.find(self._log, task_id)
        if task.ended is not None:
            return  # all but the news of its end was written when the log broke off
        if task.started is None:
            await self._log.append(*await self._first(task), Draft("task.started", {}, task.session_id, task_id))
            remaining = task.given["timeout_ms"] / 1000
        else:
            remaining = task.given["timeout_ms"] / 1000 - await self._resume(task)
        try:
            async with asyncio.timeout(max(remaining, 0)) as deadline:
                await self._checkpoints.begin(task)
                run = self._prepare(task, await conversation.load(self._log, task.session_id))
                run.begun = await self._begun(task) if task.started is not None else set()
                active.run = run
                response = await work(run)
        except TimeoutError:
            if not deadline.expired():
                raise
            raise TaskTimeout(f"The task did not end within its timeout of {task.given['timeout_ms']} ms.") from None
        await finish(self._complete(run, response))

    async def _first(self, task: Task) -> list[Draft]:
        """The event that begins a session, when this is its first task."""
        if await self._log.read(session_id=task.session_id, types=("session.created",), context=True):
            return []
        day = datetime.now(UTC).date()
        system = await asyncio.to_thread(system_prompt, self.agent, self._around.workspace.root, day)
        return [Draft("session.created", {"date": day.isoformat(), "agent": self.agent.name, "system": system}, task.session_id)]

    async def _resume(self, task: Task) -> float:
        """Notes that a task goes on, and gives the seconds it has run before."""
        if task.resumptions >= MAX_RESUMPTIONS:
            raise _GivenUp(f"The task was resumed {MAX_RESUMPTIONS} times without finishing a step; it may be what ends the server.")
        # The ends of commands are told by this start too, where the one before did not: they say nothing of how long it worked.
        statement = "SELECT max(time) FROM events WHERE task_id = ? AND type != 'process.exited'"
        last = await self._log.query(lambda db: db.execute(statement, (task.task_id,)).fetchone()[0])
        elapsed: int = task.elapsed + max(0, last - (task.run_at or last))
        drafts = [Draft("task.resumed", {"elapsed_ms": elapsed, "resumption": task.resumptions + 1}, task.session_id, task.task_id)]
        if (message_id := await self._broken_message(task)) is not None:
            drafts.insert(0, Draft("message.discarded", {"messageId": message_id}, task.session_id, task.task_id))
        await self._log.append(*drafts)
        return elapsed / 1000

    async def _broken_message(self, task: Task) -> str | None:
        types = ("message.delta", "reasoning.delta", "message.completed", "message.discarded")
        where = f"task_id = ? AND type IN ({', '.join('?' * len(types))}) ORDER BY seq DESC LIMIT 1"
        statement, values = f"SELECT type, data FROM events WHERE {where}", (task.task_id, *types)
        row = await self._log.query(lambda db: db.execute(statement, values).fetchone())
        return msgspec.json.decode(row[1])["messageId"] if row is not None and row[0].endswith(".delta") else None

    async def _begun(self, task: Task) -> set[str]:
        started = await self._log.read(task_id=task.task_id, types=("tool.started",))
        return {event.data["toolCallId"] for event in started}

    def _prepare(self, task: Task, state: conversation.Conversation) -> Run:
        given = task.given
        system = (state.began or {}).get("system", "")
        if given.get("system"):
            system = f"{system}\n\n{given['system']}"
        allowed = self.agent.tools
        offered = (
            {name: tool for name, tool in self._around.tools.items() if allowed is None or name in allowed} if given["autoTools"] else {}
        )
        return Run(
            task=task,
            conversation=state,
            around=self._around,
            tools=offered,
            options=ModelOptions(given["provider"], given["model"], given["max_tokens"]),
            system=Message("system", (Text(system),)),
            max_steps=given["maxSteps"],
            max_cost=given["maxCost"],
            parallel=self.agent.parallel,
            is_draining=lambda: self.is_draining,
        )

    async def _complete(self, run: Run, response: str) -> None:
        changes = await self._checkpoints.end(run.task)
        await run.append()
        task = await tasks.find(self._log, run.task.task_id)
        data = {
            "response": response,
            "usage": task.usage,
            "tokensUsed": task.usage["total_tokens"],
            "messageId": task.message_id,
            "steps": task.steps,
            "toolsUsed": task.tools_used,
            "changes": changes,
        }
        await run.append(run.draft("task.completed", data, sync=True))


class _GivenUp(AgentServerError):
    pass


def _failure(task: Task, error: BaseException) -> tuple[AgentServerError, str]:
    """Gives what a client is told of a task's end, and its phase."""
    if isinstance(error, asyncio.CancelledError):
        return _cancelled(task.task_id), "cancelled"
    if isinstance(error, TaskTimeout):
        return error, "timed_out"
    if isinstance(error, _GivenUp):
        return error, "interrupted"
    if isinstance(error, AgentServerError):
        return error, "done"
    logger.error("%s failed", task.task_id, exc_info=error)
    return AgentServerError(f"The server failed on this task ({type(error).__name__}); its log has the details."), "done"


def _cancelled(task_id: str) -> AgentServerError:
    return Conflict("The task was cancelled.", code="TASK_CANCELLED", details={"taskId": task_id})


def _failed(task: Task, error: AgentServerError, phase: str, changes: Sequence[Mapping[str, Any]] = ()) -> Draft:
    described = {"code": error.code, "message": error.message, "details": {**error.details, "taskId": task.task_id}}
    done = {"usage": task.usage, "steps": task.steps, "toolsUsed": task.tools_used, "changes": list(changes)}
    data = {"error": described, "status": error.status, "phase": phase, **done}
    return Draft("task.failed", data, task.session_id, task.task_id, sync=True)


def _title(prompt: str | list[dict[str, Any]]) -> str:
    text = prompt if isinstance(prompt, str) else " ".join(part.get("text", "") for part in prompt)
    line = " ".join(text.split())
    return line if len(line) <= 100 else line[:99] + "…"
