"""One configured MCP server: started when its tools are first asked for, listed once, and reached again when it was lost."""

import asyncio
import contextlib
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import msgspec

from agent_server.calling.custom import EMPTY, McpConfig
from agent_server.calling.schema import Schema, compile_schema
from agent_server.commands.execution import Owner
from agent_server.commands.processes import Processes, finish
from agent_server.errors import AgentServerError
from agent_server.mcp.results import result_of
from agent_server.redaction import Secrets
from agent_server.workspace import Workspace
from tools import ToolError, ToolResult

if TYPE_CHECKING:
    from mcp import Client

    from agent_server.mcp.connection import Connection
    from agent_server.mcp.transports import Signs

START_TIME = 30.0
"""Seconds for a server to come up and list its tools, unless it is configured otherwise: some are downloaded first."""

CALL_TIME = 300.0
"""Seconds for one call without a sign of progress, unless the server is configured otherwise."""

RETRY_TIME = 60.0
"""Seconds after which a server that did not answer is tried again. Nobody waits for it: it is had by the tasks that begin when it has
come up. One that failed at once is tried by each task."""

MAX_DESCRIPTION = 8_000
"""Characters of a tool's description: it is in every request to the model."""


class McpUnavailable(Exception):
    """A server that did not come up, or whose tools could not be listed; `is_silent` where it was waited for."""

    def __init__(self, why: str, *, is_silent: bool = False) -> None:
        super().__init__(why)
        self.is_silent = is_silent


class Listed(msgspec.Struct, frozen=True):
    """A tool as its server describes it. `is_repeatable` where it says that a second call does no more than the first, `read_only`
    where it says that it changes nothing: a hint, and believed, as whoever configures a server lets it run here."""

    name: str
    description: str
    parameters: Mapping[str, Any]
    schema: Schema
    is_repeatable: bool
    read_only: bool


class Peer:
    """One configured server. `users` says how many tasks have it."""

    def __init__(
        self, config: McpConfig, owner: Owner, processes: Processes, workspace: Workspace, secrets: Secrets, *, retry: float = RETRY_TIME
    ) -> None:
        self.config = config
        self.users = 0
        self.used_at = time.monotonic()
        self.known: tuple[Listed, ...] = ()
        self.failure: str | None = None
        self._retry = retry
        self._retry_at: float | None = None  # once it was waited for in vain
        self._retrying: asyncio.Task[None] | None = None
        self._owner = owner
        self._processes = processes
        self._workspace = workspace
        self._secrets = secrets
        self._connection: Connection | None = None
        self._auth: Any = None
        self._has_auth = False
        self._opening = asyncio.Lock()  # one opens it, and others wait for that

    @property
    def is_up(self) -> bool:
        return self._connection is not None and self._connection.is_open

    async def tools(self) -> tuple[Listed, ...]:
        """Gives its tools; starts it where it does not run. Errors: McpUnavailable, at once where it was waited for in vain before."""
        await self._open()
        return await self.changed() or self.known

    async def changed(self) -> tuple[Listed, ...] | None:
        """Gives its tools again when it has said that they changed; None when it has not, or cannot be asked."""
        if (connection := self._connection) is None or not connection.is_open or not connection.signs.is_stale:
            return None
        async with self._opening:
            if connection.signs.is_stale:
                try:
                    self.known = await self._list(connection)
                except McpUnavailable:
                    return None
        return self.known

    async def call(self, tool: Listed, arguments: dict[str, Any]) -> ToolResult:
        """Calls a tool. A server that was lost is reached again once; the call is repeated only where that can do no harm.

        Errors: ToolError. Cancellation: is told to the server.
        """
        from agent_server.mcp.connection import Lost  # loaded by now, with the SDK

        timeout = self.config.timeout / 1000 if self.config.timeout is not None else CALL_TIME
        is_repeated = False
        while True:
            try:
                connection = await self._open()
            except McpUnavailable as error:
                raise ToolError(f"The MCP server {self.config.name} has gone, and does not come up again: {error}.") from error
            try:
                return result_of(await connection.call(tool.name, arguments, timeout))
            except Lost as lost:
                if is_repeated or not (lost.is_unsent or tool.is_repeatable):
                    raise ToolError(_interrupted(tool.name, self.config.name, lost)) from lost
                is_repeated = True

    async def _open(self) -> "Connection":
        if self._connection is not None and self._connection.is_open and not self._connection.is_doubtful:
            return self._connection
        self._refuse_silent()
        async with self._opening:
            if self._connection is None or not self._connection.is_open or await self._connection.is_stuck():
                self._refuse_silent()  # as others have found meanwhile
                await self._reopen()
            assert self._connection is not None  # noqa: S101  # it was opened
            return self._connection

    def _refuse_silent(self) -> None:
        """Errors: McpUnavailable where it was waited for in vain; at times it is tried again then, behind this."""
        if self._retry_at is None or self.failure is None:
            return
        if time.monotonic() >= self._retry_at and (self._retrying is None or self._retrying.done()):
            self._retrying = asyncio.create_task(self._try_again(), name="mcp server retry")
        raise McpUnavailable(self.failure)

    async def _try_again(self) -> None:
        async with self._opening:
            with contextlib.suppress(McpUnavailable):  # it is told to whoever asks next
                await self._reopen()

    async def _reopen(self) -> None:
        await asyncio.to_thread(_load)
        from agent_server.mcp.connection import Connection  # loaded in a thread: see there

        await finish(self._let_go())
        self._connection = connection = Connection(self._connect)
        try:
            self.known = await self._list(connection)
        except BaseException as error:
            if isinstance(error, McpUnavailable):
                self.failure = str(error)
                self._retry_at = time.monotonic() + self._retry if error.is_silent else None
            await finish(self._let_go())
            raise
        self.failure = self._retry_at = None

    async def _connect(self, signs: "Signs", stack: AsyncExitStack) -> "Client":
        from agent_server.mcp.authorization import authorization  # loaded in a thread: see there
        from agent_server.mcp.transports import connect  # so is this

        config = self.config
        if config.url is not None:
            if not self._has_auth:
                self._auth, self._has_auth = authorization(config, self._secrets), True
            return await connect(config, self._workspace.root, None, signs, stack, self._auth)
        folder = self._workspace.resolve(config.cwd or ".", field="cwd")
        environment = await stack.enter_async_context(self._processes.lent([config.command or "", *config.args], folder, self._owner))
        return await connect(config, folder, environment, signs, stack)

    async def _list(self, connection: "Connection") -> tuple[Listed, ...]:
        seconds = self.config.timeout / 1000 if self.config.timeout is not None else START_TIME
        try:
            async with asyncio.timeout(seconds):
                found = await connection.tools()
        except TimeoutError:
            raise McpUnavailable(f"it did not list its tools within {seconds:g} s", is_silent=True) from None
        except AgentServerError as error:
            raise McpUnavailable(error.message.rstrip(".")) from error
        except Exception as error:  # the border to the SDK, whose transports raise what they like
            said = str(connection.signs.said)
            status = f" (HTTP {connection.signs.refused})" if connection.signs.refused is not None else ""
            raise McpUnavailable(f"{connection.reason(error)}{status}" + (f"; it said: {said[-300:]}" if said else "")) from error
        return tuple([await _listed(tool) for tool in sorted(found, key=lambda tool: str(tool.name))])

    def drop(self) -> None:
        """Begins to let the server go, for whoever cannot wait for that."""
        if self._connection is not None:
            self._connection.signs.ended.set()

    async def close(self) -> None:
        """Lets the server go; its processes are dead when this returns. The next use starts it again."""
        if self._retrying is not None:
            self._retrying.cancel()
            await asyncio.wait([self._retrying])
        await self._let_go()

    async def _let_go(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.end()


def _load() -> None:
    # Imported with the first server of a task, in a thread: the SDK takes 2 s and 58 MB.
    import agent_server.mcp.authorization  # as is this
    import agent_server.mcp.connection  # noqa: F401  # and this


async def _listed(tool: Any) -> Listed:
    parameters: Mapping[str, Any] = tool.input_schema
    try:
        schema = await compile_schema(parameters)
    except ValueError:  # a provider would refuse every request with it; the server checks its arguments itself
        parameters = EMPTY
        schema = await compile_schema(parameters)
    hints = tool.annotations
    read_only = hints is not None and bool(hints.read_only_hint)
    is_repeatable = read_only or (hints is not None and bool(hints.idempotent_hint))
    return Listed(tool.name, (tool.description or "")[:MAX_DESCRIPTION], parameters, schema, is_repeatable, read_only)


def _interrupted(name: str, server: str, lost: Exception) -> str:
    why = f"{name} was interrupted, as the MCP server {server} was lost ({lost}); it may have run."
    return f"{why} The server is reached anew with the next call."
