"""Subagents: tasks that the calls of another task make, each in a session of its own that the `task` tool can go on with.

A subagent is a task like any other: in the log, run by the one loop, resumed by itself. Its ids are derived from the call that
made it, so that the call finds it again after a crash, and never makes a second one. What it may do is its `Agent` (`agents.py`);
it ends with the task it works for, within that one's deadline, and counts to its costs.
"""

import asyncio
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

import msgspec

from agent_server.commands.processes import finish
from agent_server.ids import derived_id
from agent_server.messages import ToolCall
from agent_server.sessions import session_index, tasks
from agent_server.sessions.run import Run, Surroundings
from agent_server.sessions.submission import Submission
from agent_server.sessions.tasks import Task
from tools import Assignment, Outcome, ToolError


class Tasks(Protocol):
    """What subagents need of the sessions."""

    async def accept(self, task_id: str, session_id: str, submission: Submission, more: Mapping[str, Any]) -> None:
        """Accepts a task under this id. Errors: LogUnavailable."""

    async def wait(self, task_id: str) -> Task:
        """Waits for a task's end. Errors: Draining."""

    async def cancel(self, task_id: str) -> Task:
        """Ends a task."""


class Subagents:
    """The subagents of one server."""

    def __init__(self, around: Surroundings, sessions: Tasks) -> None:
        self._around = around
        self._sessions = sessions
        self._turn = asyncio.Lock()  # they begin one after another: two that go on with one conversation in the order of their calls

    async def delegate(self, run: Run, call: ToolCall, assignment: Assignment) -> Outcome:
        """Waits for the end of the one subagent of a call, which it begins unless it has begun.

        Errors: ToolError when there is nothing to resume. Cancellation: it goes on; see `end`.
        """
        async with self._turn:
            # Told to whoever cancels the task before it looks for subagents: one that is half begun would be left over.
            beginning = asyncio.ensure_future(self._begin(run, call, assignment))
            try:
                task_id = await asyncio.shield(beginning)
            except asyncio.CancelledError:
                await finish(asyncio.gather(beginning, return_exceptions=True))
                raise
        async with self._around.pause.aside():
            ended = await self._sessions.wait(task_id)
        return _outcome(ended)

    async def _begin(self, run: Run, call: ToolCall, assignment: Assignment) -> str:
        # Providers may give an id again; a task's calls are kept as long as it is at work.
        made = await self._around.log.read(task_id=run.task_id, types=("tool.started",))
        number = str(sum(event.data["toolCallId"] == call.id for event in made))
        task_id = derived_id("task", run.task_id, call.id, number)
        if not await tasks.exists(self._around.log, task_id):
            session_id = derived_id("sess", run.task_id, call.id, number)
            if assignment.resume is not None:
                session_id = await self._earlier(run, assignment, assignment.resume)
            parent = {"parentSessionId": run.session_id, "parentTaskId": run.task_id, "toolCallId": call.id}
            more = {**parent, "agent": assignment.agent, "title": assignment.title}
            await self._sessions.accept(task_id, session_id, await self._submission(run, assignment), more)
        return task_id

    async def _earlier(self, run: Run, assignment: Assignment, reference: str) -> str:
        """Gives the session that a call wants to go on with: a subagent's of this very session."""
        session = await session_index.find_subagent(self._around.log, run.session_id, reference)
        if session is None:
            raise ToolError(f"This conversation has no subagent {reference[:128]}; leave task_id out to begin another one.")
        if session.agent != assignment.agent:
            raise ToolError(f"{reference} is a subagent of type {session.agent}; resume it as that.")
        return session.session_id

    async def _submission(self, run: Run, assignment: Assignment) -> Submission:
        """Gives the task of a subagent: what the parent's task says, but for what is the parent's alone."""
        given = msgspec.convert(run.task.given, Submission)
        return msgspec.structs.replace(
            given,
            prompt=assignment.prompt,
            timeout_ms=max(1, int(run.remaining * 1000)),
            tools=await self._tools(run.task) if assignment.agent == "general" else (),
            output_schema=None,
        )

    async def _tools(self, task: Task) -> Sequence[dict[str, Any]]:
        """Gives the client's tools, without those that it runs itself: it follows the parent, and would not see the request."""
        entries = await self._around.configs.take(task.task_id) or task.given.get("tools", ())
        return [entry for entry in entries if "url" in entry or "mcp" in entry]

    async def end(self, task_id: str) -> bool:
        """Ends what is at work for a task, and tells whether anything was; its processes are dead when this returns."""
        found = await tasks.find_children(self._around.log, task_id)
        await asyncio.gather(*(self._sessions.cancel(child.task_id) for child in found if child.ended is None))
        return bool(found)

    async def details(self, task_id: str, call_ids: Collection[str]) -> Mapping[str, Mapping[str, Any]]:
        """Gives what `tool.finished` says of the subagents of these calls."""
        if not call_ids:
            return {}
        found = await tasks.find_children(self._around.log, task_id)
        return {child.given["toolCallId"]: _details(child) for child in found if child.given["toolCallId"] in call_ids}


def _outcome(task: Task) -> Outcome:
    is_error = task.status == "failed"
    text = _failure(task) if is_error else task.outcome["response"]
    return Outcome(task.session_id, text, is_error, _details(task))


def _failure(task: Task) -> str:
    if task.phase == "timed_out":  # how much time there was is the clock's, which no model sees
        return "there was no time left."
    message: str = task.outcome["error"]["message"]
    return message


def _details(task: Task) -> dict[str, Any]:
    ids = {"sessionId": task.session_id, "taskId": task.task_id}
    return {**ids, "agentType": task.given["agent"], "status": task.status, "usage": task.usage}
