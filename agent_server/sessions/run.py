"""One task at work: what the loop and its calls stand on."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec

from agent_server.calling.configs import ToolConfigs
from agent_server.calling.custom import Offered
from agent_server.calling.rules import Rules
from agent_server.calling.schema import Schema
from agent_server.calling.web import WebTools
from agent_server.commands.processes import Processes
from agent_server.events import Draft, Event
from agent_server.events.log import EventLog
from agent_server.gateway import Gateway, ModelOptions
from agent_server.gateway.windows import Windows
from agent_server.mcp.client import McpServers
from agent_server.messages import Message, ToolCall
from agent_server.pause import Pause
from agent_server.prompts import nested_instructions
from agent_server.redaction import Secrets
from agent_server.sessions.audience import Audience
from agent_server.sessions.conversation import Conversation
from agent_server.sessions.slots import Slot
from agent_server.sessions.tasks import Task, cost_beside
from agent_server.sessions.waits import Waits
from agent_server.workspace import Workspace
from tools import Assignment, Outcome, Tool


class Surroundings(msgspec.Struct, frozen=True):
    """What all tasks of a server share."""

    log: EventLog
    secrets: Secrets
    gateway: Gateway
    processes: Processes
    workspace: Workspace
    outputs: Path
    patch_notes: Path
    tools: Mapping[str, Tool]
    web: WebTools
    web_allowed: Sequence[str]
    mcp: McpServers
    configs: ToolConfigs
    pause: Pause
    windows: Windows
    audience: Audience


class Paused(Exception):
    """The server is stopping: the task stands at a safe point, and goes on at the next start."""


class Caller(Protocol):
    """On whose behalf calls run: a task at work, or whoever calls the tools over MCP."""

    around: Surroundings
    arguments: dict[str, str]

    @property
    def tools(self) -> Mapping[str, Offered]: ...

    @property
    def session_id(self) -> str: ...

    @property
    def task_id(self) -> str | None: ...

    @property
    def files(self) -> dict[str, str]:
        """The stamps of the files that were read or written, by their names in events: see `ToolContext.stamp_of`."""

    @property
    def late(self) -> Mapping[str, int]:
        """How often checkers were not done in time, by checker and project."""

    def draft(self, kind: str, data: Mapping[str, Any], *, sync: bool = False) -> Draft:
        """Makes an event of this caller."""

    async def append(self, *drafts: Draft) -> list[Event]:
        """Adds events and returns when they are durable. Errors: LogUnavailable."""

    def say(self, draft: Draft) -> None:
        """Adds an event that nobody waits for: the output of a call."""

    def nested_instructions(self, path: Path) -> Mapping[str, str]:
        """What ToolContext gives of it, once."""

    def read_until(self, process_id: str) -> int:
        """The byte of a process's output at which the conversation's last reading of it ended."""

    async def delegate(self, call: ToolCall, assignment: Assignment) -> Outcome:
        """Has a subagent do what a call asks for; see ToolContext. Errors: ToolError."""

    def nudge(self, call: ToolCall, ended: Mapping[str, Any]) -> str | None:
        """What the model is to be told with the result of a call that has ended so, because it repeats itself."""


class Delegating(Protocol):
    """Who has subagents at work for a task."""

    async def delegate(self, run: "Run", call: ToolCall, assignment: Assignment) -> Outcome:
        """Waits for the end of the one subagent of a call, which it begins unless it has begun. Errors: ToolError."""


class Run(msgspec.Struct):
    """A task while somebody works on it.

    `begun` holds the calls that had begun and not ended before this process, `requested` those that a client was asked to run;
    `arguments` the unmasked arguments of the calls made in this process, `parallel` how many read-only calls run side by side;
    `until` is when its deadline is, on the clock of `around.pause`. `renew` brings `tools` up to date before a model call, and tells
    whether they are others now.
    `is_waiting` is set while a model or a client is waited for, which can be broken off and done again; `is_closed` once the
    final answer is taken; `changed` when somebody else has added an event. `rules` are those of the task's start, `waits` what its
    client is asked.
    """

    task: Task
    conversation: Conversation
    around: Surroundings
    tools: Mapping[str, Offered]
    options: ModelOptions
    system: Message
    max_steps: int
    max_cost: float | None
    parallel: int
    is_draining: Callable[[], bool]
    slot: Slot
    subagents: Delegating
    until: float
    renew: Callable[[], Awaitable[bool]]
    output: Schema | None = None
    rules: Rules = ()
    is_plan: bool = False
    waits: Waits = msgspec.field(default_factory=Waits)
    is_waiting: bool = False
    is_closed: bool = False
    changed: asyncio.Event = msgspec.field(default_factory=asyncio.Event)
    begun: set[str] = msgspec.field(default_factory=set)
    requested: set[str] = msgspec.field(default_factory=set)
    arguments: dict[str, str] = msgspec.field(default_factory=dict)
    _posted: "list[asyncio.Future[None]]" = msgspec.field(default_factory=list)

    @property
    def session_id(self) -> str:
        return self.task.session_id

    @property
    def task_id(self) -> str:
        return self.task.task_id

    @property
    def files(self) -> dict[str, str]:
        return self.conversation.files

    @property
    def late(self) -> Mapping[str, int]:
        return self.conversation.late

    def draft(self, kind: str, data: Mapping[str, Any], *, sync: bool = False) -> Draft:
        return Draft(kind, data, self.task.session_id, self.task.task_id, sync)

    def post(self, *drafts: Draft) -> list[Event]:
        """Adds events without waiting. They are in the conversation at once; the next `append` answers for them."""
        return self.take(*drafts)[0]

    def take(self, *drafts: Draft) -> "tuple[list[Event], asyncio.Future[None]]":
        """Like `post`, for whoever must know whether these events themselves were written."""
        events, committed = self.around.log.post(*drafts)
        self._posted.append(committed)
        for event in events:
            self.conversation.apply(event)
            self.waits.apply(event)
        return events, committed

    async def append(self, *drafts: Draft) -> list[Event]:
        """Adds events and returns when they, and all posted before them, are durable.

        Errors: LogUnavailable when one of them is not; then the run must end, and begin again from what the log has.
        """
        events = self.post(*drafts)
        posted, self._posted = self._posted, []
        await self.around.log.append()
        for committed in posted:
            if committed.done():  # what is not is safe in the journal
                committed.result()
        return events

    def say(self, draft: Draft) -> None:
        self.around.log.say(draft)

    @property
    def remaining(self) -> float:
        """Seconds until its deadline."""
        return max(0.0, self.until - self.around.pause.clock.time())

    async def spent(self) -> float:
        """Gives the USD that count to `max_cost`: a task and its subagents have one limit together."""
        beside = await cost_beside(self.around.log, self.task) if self.max_cost is not None else 0.0
        return self.conversation.cost + beside

    async def delegate(self, call: ToolCall, assignment: Assignment) -> Outcome:
        return await self.subagents.delegate(self, call, assignment)

    def nudge(self, call: ToolCall, ended: Mapping[str, Any]) -> str | None:
        repetition = self.conversation.repetition
        if not repetition.has(call.name, call.arguments):
            return None
        # What it is compared with comes from the log, which has it masked.
        return repetition.nudge(call.name, call.arguments, {**ended, "output": self.around.secrets.mask(ended["output"])})

    def nested_instructions(self, path: Path) -> Mapping[str, str]:
        seen = self.conversation.instructions
        found = nested_instructions(self.around.workspace.root, path, seen)
        seen.update(found)  # calls side by side show them once
        return found

    def read_until(self, process_id: str) -> int:
        return self.conversation.read_until.get(process_id, 0)
