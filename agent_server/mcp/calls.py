"""Calls that come over MCP: the same tools, runner, limits and masking as in a task, told in the log under the session `mcp`."""

import asyncio
import contextlib
import json
import logging
import sqlite3
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from agent_server.agents import Agent
from agent_server.calling.calls import interrupted, settle, started
from agent_server.commands.processes import finish
from agent_server.errors import Draining, TooManyRequests
from agent_server.events import Draft, Event, LogUnavailable
from agent_server.ids import new_id
from agent_server.messages import Image, ToolCall
from agent_server.sessions.entries import INTERRUPTED, parts
from agent_server.sessions.run import Surroundings
from tools import Assignment, Tool, ToolError
from tools import Outcome as Delegated

logger = logging.getLogger(__name__)

SESSION = "mcp"
"""The session id of the events of these calls. It is no conversation."""

MAX_CALLS = 64
"""Calls at work at the same time, over all connections: each may be a command with its output in memory."""

KEPT_CHUNKS = 16
"""Pieces of live output (at most 4 KB each) that wait for a slow reader; older ones are left out, the result has them."""

CANCELLED = "Cancelled: the client ended this call, or its connection. It may have run in part."

Progress = Callable[[int, str], Awaitable[None]]
"""Takes the characters of live output so far, and the newest piece of it."""


class Outcome(msgspec.Struct, frozen=True):
    """What a call gave, secrets masked."""

    text: str
    is_error: bool
    images: Sequence[Image] = ()


class CallIndex:
    """The table `open_mcp_calls`: calls over MCP whose end is not in the log."""

    version = 1
    tables: Sequence[str] = ("open_mcp_calls",)
    schema: Sequence[str] = ("CREATE TABLE open_mcp_calls (call_id TEXT PRIMARY KEY, tool TEXT) WITHOUT ROWID",)

    def apply(self, db: sqlite3.Connection, events: Sequence[Event]) -> None:
        for event in events:
            if event.session_id == SESSION and event.task_id is None:
                if event.type == "tool.started":
                    db.execute("INSERT OR IGNORE INTO open_mcp_calls VALUES (?, ?)", (event.data["toolCallId"], event.data["tool"]))
                elif event.type == "tool.finished":
                    db.execute("DELETE FROM open_mcp_calls WHERE call_id = ?", (event.data["toolCallId"],))


class Calls:
    """The calls at work. `run` must be running for them to work."""

    def __init__(self, around: Surroundings, agent: Agent) -> None:
        self._around = around
        self._agent = agent
        self._group: asyncio.TaskGroup | None = None
        self._working: set[asyncio.Task[Outcome]] = set()
        self._files: dict[str, str] = {}  # all that was read or written over MCP since the start: clients need not have sessions

    @property
    def tools(self) -> Mapping[str, Tool]:
        """The tools that this instance's agent has, by name, without those that need a task of its own, or a user to ask."""
        may_use = self._agent.may_use
        return {name: tool for name, tool in self._around.tools.items() if may_use(tool) and not tool.delegates and name != "question"}

    async def run(self, stop: asyncio.Event) -> None:
        """Ends in the log what a killed server left open, then holds the calls until `stop` is set."""
        rows = await self._around.log.query(lambda db: db.execute("SELECT call_id, tool FROM open_mcp_calls").fetchall())
        ends = [interrupted(ToolCall(call_id, tool, ""), INTERRUPTED) for call_id, tool in rows]
        await self._around.log.append(*(Draft("tool.finished", end, SESSION) for end in ends))
        async with asyncio.TaskGroup() as self._group:
            await stop.wait()
        self._group = None

    @property
    def working(self) -> int:
        """How many calls are at work."""
        return len(self._working)

    async def call(self, name: str, arguments: Mapping[str, Any], progress: Progress) -> Outcome:
        """Runs one call and tells its live output by `progress` meanwhile.

        Errors: TooManyRequests; Draining. Cancellation: it ends at once; the call's commands are killed, and its end is told, after it.
        """
        if self._group is None:
            raise Draining("The server is starting or stopping; call again in a few seconds.")
        if len(self._working) >= MAX_CALLS:
            raise TooManyRequests(f"{MAX_CALLS} calls are at work; call again when some are done.")
        call = ToolCall(new_id("call"), name, json.dumps(arguments))
        client = _Client(self._around, self.tools, self._files)
        # A task of its own: what waits for it may be cancelled over and over, while killing a command's tree takes its time.
        work = self._group.create_task(self._work(client, call), name=call.id)
        self._working.add(work)
        work.add_done_callback(self._working.discard)
        work.add_done_callback(client.wake)
        try:
            while not work.done():
                await client.tell(progress)
        finally:
            work.cancel()
        return work.result()

    async def drain(self, grace: float) -> None:
        """Gives the calls at work `grace` seconds to end, then cancels them. All have ended in the log when it returns."""
        if self._working:
            await asyncio.wait(self._working, timeout=grace)
        for work in self._working:
            work.cancel()
        if self._working:
            await asyncio.wait(self._working)

    async def _work(self, client: "_Client", call: ToolCall) -> Outcome:
        try:
            await client.append(started(client, call, sync=not client.tools[call.name].read_only))
            async with self._around.pause.working():
                event = await settle(client, call)
        except asyncio.CancelledError:
            with contextlib.suppress(LogUnavailable):
                await finish(client.append(client.draft("tool.finished", interrupted(call, CANCELLED))))
            raise
        except Exception as error:  # the border: a call's fault must not end the others
            if not isinstance(error, LogUnavailable):
                logger.exception("the call of %s failed", call.name)
            return Outcome(f"Error: {error if isinstance(error, LogUnavailable) else type(error).__name__}", True)
        images = tuple(part for part in parts(event.data.get("images", ())) if isinstance(part, Image))
        return Outcome(event.data["output"], event.data["isError"], images)


class _Client:
    """Who makes one call over MCP."""

    session_id = SESSION
    task_id = None

    def __init__(self, around: Surroundings, tools: Mapping[str, Tool], files: dict[str, str]) -> None:
        self.around = around
        self.tools = tools
        self.files = files
        self.late: Mapping[str, int] = {}
        self.arguments: dict[str, str] = {}
        self._chunks: deque[str] = deque(maxlen=KEPT_CHUNKS)
        self._length = 0
        self._changed = asyncio.Event()

    def draft(self, kind: str, data: Mapping[str, Any], *, sync: bool = False) -> Draft:
        return Draft(kind, data, SESSION, None, sync)

    async def append(self, *drafts: Draft) -> list[Event]:
        return await self.around.log.append(*drafts)

    def say(self, draft: Draft) -> None:
        self.around.log.say(draft)
        self._length += len(draft.data["chunk"])
        self._chunks.append(draft.data["chunk"])
        self._changed.set()

    def wake(self, _: object) -> None:
        self._changed.set()

    async def tell(self, progress: Progress) -> None:
        """Waits for output, or for the end, and tells what there is."""
        await self._changed.wait()
        self._changed.clear()
        with contextlib.suppress(LogUnavailable):  # the call itself says so
            await self.around.log.append()  # what is said is in the log
        while self._chunks:
            told = self._length - sum(map(len, self._chunks))
            chunk = self._chunks.popleft()
            await progress(told + len(chunk), chunk)

    async def delegate(self, call: ToolCall, assignment: Assignment) -> Delegated:
        raise ToolError("There is no task here that a subagent could work for.")

    def nudge(self, call: ToolCall, ended: Mapping[str, Any]) -> None:
        return None  # whoever calls over MCP has a loop of its own

    def nested_instructions(self, path: Path) -> Mapping[str, str]:
        return {}  # of whom they were shown to nothing is known here; they can be read as files

    def read_until(self, process_id: str) -> int:
        return 0  # likewise: who wants to go on names the offset
