"""One task at work: what the loop and its calls stand on."""

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import msgspec

from agent_server.calling.configs import ToolConfigs
from agent_server.calling.custom import Offered
from agent_server.calling.schema import Schema
from agent_server.calling.web import WebTools
from agent_server.commands.processes import Processes
from agent_server.events import Draft, Event
from agent_server.events.log import EventLog
from agent_server.gateway import Gateway, ModelOptions
from agent_server.mcp.client import McpServers
from agent_server.messages import Message, ToolCall
from agent_server.pause import Pause
from agent_server.prompts import nested_instructions
from agent_server.redaction import Secrets
from agent_server.sessions.conversation import Conversation
from agent_server.sessions.slots import Slot
from agent_server.sessions.tasks import Task
from agent_server.workspace import Workspace
from tools import Tool


class Surroundings(msgspec.Struct, frozen=True):
    """What all tasks of a server share."""

    log: EventLog
    secrets: Secrets
    gateway: Gateway
    processes: Processes
    workspace: Workspace
    outputs: Path
    tools: Mapping[str, Tool]
    web: WebTools
    mcp: McpServers
    configs: ToolConfigs
    pause: Pause


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

    def draft(self, kind: str, data: Mapping[str, Any], *, sync: bool = False) -> Draft:
        """Makes an event of this caller."""

    async def append(self, *drafts: Draft) -> list[Event]:
        """Adds events and returns when they are durable. Errors: LogUnavailable."""

    def say(self, draft: Draft) -> None:
        """Adds an event that nobody waits for: the output of a call."""

    def nested_instructions(self, path: Path) -> Mapping[str, str]:
        """What ToolContext gives of it, once."""

    def nudge(self, call: ToolCall, ended: Mapping[str, Any]) -> str | None:
        """What the model is to be told with the result of a call that has ended so, because it repeats itself."""


class Run(msgspec.Struct):
    """A task while somebody works on it.

    `begun` holds the calls that had begun and not ended before this process, `requested` those that a client was asked to run;
    `arguments` the unmasked arguments of the calls made in this process, `parallel` how many read-only calls run side by side.
    `is_waiting` is set while a model or a client is waited for, which can be broken off and done again; `is_closed` once the
    final answer is taken; `changed` when somebody else has added an event.
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
    output: Schema | None = None
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
