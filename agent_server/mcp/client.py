"""The tools of MCP servers, as a task has them: of those that it brings, and of those that its workspace configures.

A task's own servers live as long as it does. The workspace's are shared by all tasks: started with the first that may use them, and
kept until nobody has used them for a while, their configuration changes, or the server ends. Sampling and roots are not offered, and
a server's question is answered only by its own defaults.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import msgspec

from agent_server.calling import custom
from agent_server.calling.custom import MAX_TOOLS, CustomTool, McpConfig, Offered, Owned
from agent_server.commands.execution import Owner
from agent_server.commands.processes import Processes, finish
from agent_server.mcp import configs
from agent_server.mcp.naming import labels, names
from agent_server.mcp.peer import RETRY_TIME, Listed, McpUnavailable, Peer
from agent_server.redaction import Secrets
from agent_server.workspace import Workspace
from tools import ToolResult

IDLE_TIME = 600.0
"""Seconds without a task after which a server of the workspace is let go: each takes memory, and the next task starts it again."""

SWEEP_TIME = 15.0
"""Seconds between looks for servers that are idle."""

Warn = Callable[[str], None]
"""Tells whoever follows the task what is missing."""


class McpServers:
    """The MCP servers of this server's tasks."""

    def __init__(
        self, processes: Processes, workspace: Workspace, secrets: Secrets, *, idle: float = IDLE_TIME, retry: float = RETRY_TIME
    ) -> None:
        self._processes = processes
        self._workspace = workspace
        self._secrets = secrets
        self._idle = idle
        self._retry = retry
        self._shared: dict[str, Peer] = {}
        self._retired: list[Peer] = []  # their configuration has changed, and tasks still have them

    @property
    def shared(self) -> Mapping[str, Peer]:
        """The workspace's servers that tasks have asked for, by name."""
        return self._shared

    def known(self, fixed: Mapping[str, Offered]) -> list[CustomTool]:
        """Gives the tools of the workspace's servers that run, as a task with these `fixed` ones would have them. Starts none."""
        toolset = Toolset(fixed, [peer for peer in self._shared.values() if peer.is_up], lambda text: None)
        toolset.recall()
        return toolset.found

    async def run(self) -> None:
        """Lets go of what is idle, for ever; at its cancellation of all that are left."""
        try:
            while True:
                await asyncio.sleep(min(SWEEP_TIME, self._idle))
                await self.sweep()
        finally:
            await finish(self._close([*self._shared.values(), *self._retired]))

    async def sweep(self) -> None:
        """Lets go of what no task has and has been idle."""
        before = time.monotonic() - self._idle
        await self._close([*self._idle_retired(), *(peer for peer in self._shared.values() if not peer.users and peer.used_at <= before)])

    async def _close(self, peers: Sequence[Peer]) -> None:
        await asyncio.gather(*(peer.close() for peer in peers))

    async def renew(self) -> None:
        """Lets go of connections over the network that no task uses, without waiting: behind a pause of the machine they may be dead."""
        for peer in self._shared.values():
            if peer.config.url is not None and not peer.users:
                peer.drop()

    @asynccontextmanager
    async def offered(
        self, own: Sequence[McpConfig], fixed: Mapping[str, Offered], owner: Owner, warn: Warn, *, has_workspace: bool
    ) -> "AsyncIterator[Toolset]":
        """Gives the tools of a task while the context lasts: the `fixed` ones, those of its `own` servers and, if it has them, of the
        workspace's. A server that does not come up is told by `warn`, and its tools are missing.

        Cancellation: the processes of its own servers are dead before it is raised.
        """
        brought = [Peer(config, owner, self._processes, self._workspace, self._secrets) for config in own]
        lent = await self._lend({config.name for config in own}, warn) if has_workspace else []
        try:
            toolset = Toolset(fixed, [*brought, *lent], warn)
            await toolset.start()
            yield toolset
        finally:
            for peer in lent:
                peer.users -= 1
                peer.used_at = time.monotonic()
            await finish(self._close([*brought, *self._idle_retired()]))

    def _idle_retired(self) -> list[Peer]:
        idle = [peer for peer in self._retired if not peer.users]
        self._retired = [peer for peer in self._retired if peer.users]
        return idle

    async def _lend(self, taken: set[str], warn: Warn) -> list[Peer]:
        """Gives the workspace's servers as they are configured now, but those whose names the task has taken for its own."""
        found = await asyncio.to_thread(configs.read, self._workspace.root, self._processes.environment)
        for complaint in found.complaints:
            warn(f"An MCP server of the workspace is left out: {complaint}")
        self._secrets.add(custom.secrets_of([{"mcp": msgspec.to_builtins(config)} for config in found.servers]), is_own=False)
        wanted = {config.name: config for config in found.servers}
        for name, peer in [*self._shared.items()]:
            if wanted.get(name) != peer.config:
                self._retired.append(self._shared.pop(name))
        await self._close(self._idle_retired())  # before others that may want the same port
        lent = []
        for name, config in wanted.items():
            if name not in self._shared:
                self._shared[name] = Peer(config, Owner(), self._processes, self._workspace, self._secrets, retry=self._retry)
            if name not in taken:
                lent.append(self._shared[name])
        for peer in lent:
            peer.users += 1
        return lent


class Toolset:
    """The tools of one task, by name: the fixed ones, then those of MCP servers, by server and name."""

    def __init__(self, fixed: Mapping[str, Offered], peers: Sequence[Peer], warn: Warn) -> None:
        self._fixed = fixed
        self._warn = warn
        order = sorted(peers, key=lambda peer: peer.config.name)
        self._peers = dict(zip(labels([peer.config.name for peer in order]), order, strict=True))
        self._listed: dict[str, tuple[Listed, ...]] = {}
        self.tools: dict[str, Offered] = dict(fixed)
        self.found: list[CustomTool] = []

    async def start(self) -> None:
        """Asks every server for its tools, all at once. Errors: none; those that do not come up are told."""
        await asyncio.gather(*(self._ask(label, peer) for label, peer in self._peers.items()))
        self._name()

    def recall(self) -> None:
        """Takes what the servers have listed before."""
        self._listed = {label: peer.known for label, peer in self._peers.items()}
        self._name()

    async def _ask(self, label: str, peer: Peer) -> None:
        try:
            self._listed[label] = await peer.tools()
        except McpUnavailable as error:
            self._warn(f"The MCP server {peer.config.name} did not come up, its tools are missing: {error}.")

    async def renew(self) -> bool:
        """Asks those servers again that say that their tools have changed, and tells whether the tools are others now."""
        before = dict(self._listed)
        for label in before:
            peer = self._peers[label]
            await peer.changed()
            self._listed[label] = peer.known
        if [*map(_shown, before.values())] == [*map(_shown, self._listed.values())]:
            return False
        self._name()
        return True

    def _name(self) -> None:
        by_server = {label: {tool.name: tool for tool in listed} for label, listed in self._listed.items()}
        named = names({label: [*tools] for label, tools in by_server.items()}, self._fixed)
        room = max(MAX_TOOLS - len(self._fixed), 0)
        if len(named) > room:
            self._warn(f"The MCP servers have more tools than a model takes: it is offered {room} of them.")
        self.found = [_offer(name, by_server[label][own], self._peers[label]) for (label, own), name in [*named.items()][:room]]
        self.tools.clear()
        self.tools.update(self._fixed)
        self.tools.update({tool.name: tool for tool in self.found})


def _shown(listed: Sequence[Listed]) -> list[tuple[Any, ...]]:
    return [(tool.name, tool.description, tool.parameters, tool.read_only) for tool in listed]


def _offer(name: str, tool: Listed, peer: Peer) -> CustomTool:
    server = peer.config.name
    call = partial(_run, peer, tool)
    return CustomTool(name, tool.description, tool.parameters, tool.schema, call, tool.read_only, f"mcp:{server}", server, tool.name)


async def _run(peer: Peer, tool: Listed, arguments: dict[str, Any], context: Owned) -> ToolResult:
    return await peer.call(tool, arguments)
