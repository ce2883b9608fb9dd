"""One attempt at a task, from its first event or from where the log says it stands, to its end in the log.

Which task is attempted, and when, is `sessions.py`.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from typing import Any, Protocol

import msgspec

from agent_server.agents import SUBAGENTS, Agent
from agent_server.calling import custom
from agent_server.calling.calls import interrupted
from agent_server.calling.custom import CustomTool, McpConfig, Offered
from agent_server.calling.rules import read_rules, rules_of
from agent_server.calling.schema import compile_schema
from agent_server.commands.execution import Owner
from agent_server.commands.processes import finish
from agent_server.errors import TaskTimeout
from agent_server.events import Draft, Event, LogUnavailable
from agent_server.gateway import ModelOptions
from agent_server.mcp.client import Toolset
from agent_server.messages import Message, Text
from agent_server.prompts import system_prompt
from agent_server.sessions import conversation, session_index, tasks, waits
from agent_server.sessions.delegation import Subagents
from agent_server.sessions.endings import GivenUp, failed, failure
from agent_server.sessions.loop import work
from agent_server.sessions.reached import is_limit, reached
from agent_server.sessions.run import Paused, Run, Surroundings
from agent_server.sessions.slots import Slot
from agent_server.sessions.tasks import Task

logger = logging.getLogger(__name__)

MAX_RESUMPTIONS = 3
"""Resumptions without a finished step in between after which a task fails: it may be what ends the server."""

CANCELLED = "Cancelled: the task was ended while this call ran. It may have run in part."


class Checkpoints(Protocol):
    """What records the workspace before and after a task."""

    async def begin(self, task: Task) -> None:
        """Records the state before the task, once. Errors: none; a failure is logged."""

    async def end(self, task: Task) -> Sequence[Mapping[str, Any]]:
        """Records the state after it and gives what changed, as `changes` has it. Errors: none."""


class Active(msgspec.Struct):
    """A task that is being worked on. `ended` is set when the worker has let go of it; `arrived` holds events that others
    have added for it before there was a run to take them; `rules` are its permissions, as its start has them."""

    slot: Slot
    work: "asyncio.Task[None] | None" = None
    run: Run | None = None
    is_cancelled: bool = False
    arrived: list[Event] = msgspec.field(default_factory=list)
    rules: Mapping[str, Any] = msgspec.field(default_factory=dict)
    ended: asyncio.Event = msgspec.field(default_factory=asyncio.Event)

    def stop(self) -> None:
        if self.work is not None:
            self.work.cancel()

    @property
    def is_open(self) -> bool:
        """Whether what comes for the task still reaches its loop."""
        has_stopped = self.is_cancelled or (self.work is not None and self.work.done())
        return not has_stopped and not (self.run is not None and self.run.is_closed)


class Attempts:
    """Attempts at tasks of one server."""

    def __init__(
        self, around: Surroundings, agent: Agent, checkpoints: Checkpoints, subagents: Subagents, is_draining: Callable[[], bool]
    ) -> None:
        self._around = around
        self._log = around.log
        self._agent = agent
        self._checkpoints = checkpoints
        self._subagents = subagents
        self._is_draining = is_draining

    async def attempt(self, task_id: str, active: Active) -> None:
        """Works on a task until it has completed, or something breaks off: see `work`. Errors: TaskTimeout and GivenUp besides."""
        async with self._around.pause.working():
            if not self._is_draining():
                await self._attempt(task_id, active)

    async def _attempt(self, task_id: str, active: Active) -> None:
        task = await tasks.find(self._log, task_id)
        if task.ended is not None:
            return  # all but the news of its end was written when the log broke off
        agent = agent_named(await session_index.agent_of(self._log, task.session_id), self._agent)
        if task.started is None:
            active.rules = await self._rules(task)
            await self._log.append(*await self._first(task, agent), Draft("task.started", active.rules, task.session_id, task_id))
            remaining = task.given["timeout_ms"] / 1000
        else:
            active.rules = await self._recorded_rules(task_id)
            remaining = task.given["timeout_ms"] / 1000 - await self._resume(task)
        try:
            async with self._around.pause.clock.timeout(max(remaining, 0)) as deadline:
                await self._checkpoints.begin(task)
                until = self._around.pause.clock.time() + max(remaining, 0)
                async with self._offered(task, agent) as toolset:
                    active.run = run = await self._prepare(task, agent, toolset, active, until)
                    answer = await work(run)
        except TimeoutError:
            if not deadline.expired():
                raise
            raise await self._late(task, active.run) from None
        await finish(self._complete(run, answer))

    async def _late(self, task: Task, run: Run | None) -> TaskTimeout:
        """Gives what is told of a task whose deadline has come: also whose answer it, or a subagent that it waits for, has not got."""
        limit = task.given["timeout_ms"]
        asked = list(run.waits.open.values()) if run is not None else []
        open_ids = {call.id for call in run.conversation.open_calls} if run is not None else set()
        for child in await tasks.find_children(self._log, task.task_id):
            if child.given["toolCallId"] in open_ids:
                asked += (await waits.load(self._log, child.task_id)).open.values()
        awaited = [event.data[waits.ASKING[event.type]] for event in asked]
        details = {"reason": "timeout", "limit": limit, "reached": limit, **({"awaited": awaited} if awaited else {})}
        why = f" It waited for an answer to what it had asked ({', '.join(awaited)})." if awaited else ""
        return TaskTimeout(f"The task did not end within its timeout of {limit} ms.{why}", details=details)

    async def _rules(self, task: Task) -> Mapping[str, Any]:
        """Gives the rules of a task that begins, for as long as it lasts: what the agent makes of the file meanwhile changes nothing.

        A subagent has those of the task that it works for. Errors: InvalidRequest.
        """
        if (parent_id := task.given.get("parentTaskId")) is not None:
            return await self._recorded_rules(parent_id)
        found = await asyncio.to_thread(read_rules, self._around.workspace.root)
        for complaint in found.complaints:
            self._warn(task, complaint, source="permissions")
        return found.given

    async def _recorded_rules(self, task_id: str) -> Mapping[str, Any]:
        (began,) = await self._log.read(task_id=task_id, types=("task.started",))
        return began.data

    async def settle(self, task_id: str, active: Active, work: "asyncio.Task[None]") -> None:
        """Waits for an attempt and writes down how it failed, if it did. Errors: LogUnavailable."""
        await asyncio.wait([work])
        await self._log.flush()  # what the work has posted is to be read below
        error = asyncio.CancelledError() if work.cancelled() else work.exception()
        if error is None or isinstance(error, Paused):
            return
        if isinstance(error, LogUnavailable):
            raise error
        if self._is_draining() and isinstance(error, asyncio.CancelledError) and not active.is_cancelled:
            return
        task = await tasks.find(self._log, task_id)
        if task.ended is not None:
            return
        if await self._subagents.end(task_id):
            task = await tasks.find(self._log, task_id)  # with what they have cost
        if active.is_cancelled or isinstance(error, TaskTimeout):
            await self._end_left(task)
        told, phase = failure(task, error)
        state = await conversation.load(self._log, task.session_id)
        begun = set().union(*await self._unfinished(task))
        details = await self._subagents.details(task_id, begun)
        ends = [interrupted(call, CANCELLED, details.get(call.id)) for call in state.open_calls if call.id in begun]
        changes = await self._checkpoints.end(task) if task.started is not None else []
        drafts = [Draft("tool.finished", end, task.session_id, task_id) for end in ends]
        answer = reached(task, told, state, changes, time.time_ns() // 1_000_000) if is_limit(told) else None
        await self._log.append(*drafts, failed(task, told, phase, changes, answer))
        await self.forget(task)

    async def _end_left(self, task: Task) -> None:
        """Ends what a task and its subagents have left in the background."""
        for each in (task, *await tasks.find_children(self._log, task.task_id)):
            await self._around.processes.end_left("cancelled", session_id=each.session_id, task_id=each.task_id)

    async def forget(self, task: Task) -> None:
        """Removes what was kept of a task that has ended."""
        if task.given.get("tools"):
            try:
                await self._around.configs.drop(task.task_id)
            except OSError as error:  # the next start tries again
                logger.warning("the tools' configuration of %s could not be removed: %s", task.task_id, error)

    async def _first(self, task: Task, agent: Agent) -> list[Draft]:
        """The event that begins a session, when this is its first task."""
        if await self._log.read(session_id=task.session_id, types=("session.created", "session.restored"), context=True):
            return []
        day = datetime.now(UTC).date()
        system = await asyncio.to_thread(system_prompt, agent, self._around.workspace.root, day)
        return [Draft("session.created", {"date": day.isoformat(), "agent": agent.name, "system": system}, task.session_id)]

    async def _resume(self, task: Task) -> float:
        """Notes that a task goes on, and gives the seconds it has run before."""
        # A client may take as long as it likes: what only waits for it, or for a subagent, is not what ends the server.
        is_waiting = task.phase == "waiting"
        is_idle = is_waiting or any(child.ended is None for child in await tasks.find_children(self._log, task.task_id))
        if task.resumptions >= MAX_RESUMPTIONS and not is_idle:
            raise GivenUp(
                f"The task was resumed {MAX_RESUMPTIONS} times without finishing a step; it may be what ends the server.",
                details={"reason": "resumptions", "limit": MAX_RESUMPTIONS, "reached": task.resumptions},
            )
        # The ends of commands are told by this start too, where the one before did not: they say nothing of how long it worked.
        # What its subagents did is its own time too.
        own = "(task_id = ? OR task_id IN (SELECT task_id FROM tasks WHERE parent_id = ?))"
        statement, ids = f"SELECT max(time) FROM events WHERE {own} AND type != 'process.exited'", (task.task_id, task.task_id)
        last = await self._log.query(lambda db: db.execute(statement, ids).fetchone()[0])
        elapsed: int = task.elapsed + max(0, last - (task.run_at or last))
        resumption = task.resumptions + (not is_idle)
        data = {"elapsed_ms": elapsed, "resumption": resumption, "phase": "waiting" if is_waiting else "running"}
        drafts = [Draft("task.resumed", data, task.session_id, task.task_id)]
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

    async def _unfinished(self, task: Task) -> tuple[set[str], set[str]]:
        """Gives the calls that have begun here, and those that a client was asked for, without the ended ones."""
        begun: set[str] = set()
        requested: set[str] = set()
        for event in await self._log.read(task_id=task.task_id, types=("tool.started", "tool.requested", "tool.finished")):
            call_id = event.data["toolCallId"]
            begun.discard(call_id)
            requested.discard(call_id)
            if event.type != "tool.finished":
                (begun if event.type == "tool.started" else requested).add(call_id)
        return begun, requested

    @asynccontextmanager
    async def _offered(self, task: Task, agent: Agent) -> AsyncIterator[Toolset]:
        """Gives the tools of a task; the MCP servers that it brings live as long as the context."""
        entries = await self._around.configs.take(task.task_id) or task.given.get("tools", ())
        self._around.secrets.add(custom.secrets_of(entries), is_own=False)
        fixed = await fixed_tools(self._around, agent, task.given, entries)
        own = [msgspec.convert(entry["mcp"], McpConfig) for entry in entries if "mcp" in entry]
        owner, has_workspace = Owner(task.session_id, task.task_id), has_workspace_tools(agent, task.given)
        async with self._around.mcp.offered(own, fixed, owner, partial(self._warn, task), has_workspace=has_workspace) as toolset:
            yield toolset

    def _warn(self, task: Task, text: str, source: str = "mcp") -> None:
        self._log.say(Draft("log", {"level": "WARNING", "source": source, "text": text}, task.session_id, task.task_id))

    async def _prepare(self, task: Task, agent: Agent, toolset: Toolset, active: Active, until: float) -> Run:
        given = task.given
        mode = given.get("mode", "build")
        schema = given.get("outputSchema")
        output = await compile_schema(schema) if schema is not None else None
        begun, requested = await self._unfinished(task) if task.started is not None else (set(), set())
        state = await conversation.load(self._log, task.session_id)
        asked = await waits.load(self._log, task.task_id) if task.started is not None else waits.Waits()
        for event in active.arrived:
            state.apply(event)
            asked.apply(event)
        return Run(
            task=task,
            conversation=state,
            around=self._around,
            tools=toolset.tools,
            renew=toolset.renew,
            options=ModelOptions(given["provider"], given["model"], given["max_tokens"]),
            system=system_message(state, given),
            max_steps=given["maxSteps"],
            max_cost=given["maxCost"],
            parallel=agent.parallel,
            is_draining=self._is_draining,
            slot=active.slot,
            subagents=self._subagents,
            until=until,
            output=output,
            rules=rules_of(active.rules, (mode, given.get("agent", ""))),
            is_plan=mode == "plan",
            waits=asked,
            begun=begun,
            requested=requested,
        )

    async def _complete(self, run: Run, answer: Mapping[str, Any]) -> None:
        changes = await self._checkpoints.end(run.task)
        await run.append()
        task = await tasks.find(self._log, run.task.task_id)
        data = {
            **answer,
            "usage": task.usage,
            "tokensUsed": task.usage["total_tokens"],
            "messageId": task.message_id,
            "steps": task.steps,
            "toolsUsed": task.tools_used,
            "changes": changes,
        }
        await run.append(run.draft("task.completed", data, sync=True))
        await self.forget(task)


def system_message(state: conversation.Conversation, given: Mapping[str, Any]) -> Message:
    """Gives the system prompt of a session, with a task's own addition last."""
    stable = Text((state.began or {}).get("system", ""))
    return Message("system", (stable, Text(f"\n\n{given['system']}")) if given.get("system") else (stable,))


def built_in(around: Surroundings, agent: Agent, given: Mapping[str, Any]) -> dict[str, Offered]:
    """Gives the agent's own tools, as a task has them."""
    return {name: tool for name, tool in around.tools.items() if given["autoTools"] and agent.may_use(tool)}


async def fixed_tools(around: Surroundings, agent: Agent, given: Mapping[str, Any], entries: Sequence[Any]) -> dict[str, Offered]:
    """Gives the agent's own tools and those of a task's `entries` that need no MCP server."""
    tools = built_in(around, agent, given)
    for entry in entries:
        if "mcp" not in entry:
            tools[entry["name"]] = await own_tool(around, entry)
    return tools


def has_workspace_tools(agent: Agent, given: Mapping[str, Any]) -> bool:
    """Whether a task has the tools of the MCP servers that the workspace configures."""
    return bool(given["autoTools"]) and not agent.is_read_only


def agent_named(name: str | None, main: Agent) -> Agent:
    """Gives the agent of a session: a subagent's stays one, also when a client goes on with it, or with a fork of it."""
    return SUBAGENTS.get(name or "", main)


async def own_tool(around: Surroundings, entry: Mapping[str, Any]) -> CustomTool:
    """Gives a tool that a client brought: called by URL, or run by the client."""
    parameters = entry.get("parameters") or custom.EMPTY
    schema = await compile_schema(parameters)
    url = entry.get("url")
    run = partial(around.web.call, entry["name"], url) if url is not None else None
    return CustomTool(entry["name"], entry.get("description") or "", parameters, schema, run)
