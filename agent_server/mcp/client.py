"""The tools of an MCP server that a task brings: the server is started, or reached, when the task begins, and let go when it ends.

What a call gives is text for the model; images are named, not shown. Sampling, roots and elicitation are not offered.
"""

import asyncio
import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import msgspec

from agent_server.calling.custom import EMPTY, MAX_TOOLS, CustomTool, McpConfig, Owned
from agent_server.calling.schema import compile_schema
from agent_server.commands.execution import Owner
from agent_server.commands.processes import Processes, finish
from agent_server.workspace import Workspace
from tools import ToolError, ToolResult

if TYPE_CHECKING:
    from mcp import Client

START_TIME = 60.0
"""Seconds for a server to come up and list its tools: some are downloaded first."""

CALL_TIME = 300.0
"""Seconds for one call."""

END_TIME = 8.0
"""Seconds in which a connection ends by itself, the SDK's own patience with a process included; then it is broken off."""

MAX_PAGES = 20
"""Pages of a server's list of tools that are asked for."""

Opening = Callable[[AsyncExitStack], Awaitable["Client"]]
"""Makes the SDK's client, connected; what it holds is on the stack."""


class McpUnavailable(Exception):
    """A server that did not come up, or whose tools could not be listed."""


class McpServers:
    """Connects to MCP servers on behalf of tasks."""

    def __init__(self, processes: Processes, workspace: Workspace) -> None:
        self._processes = processes
        self._workspace = workspace

    @asynccontextmanager
    async def connected(self, config: McpConfig, taken: Collection[str], owner: Owner) -> AsyncIterator[list[CustomTool]]:
        """Gives a server's tools while the context lasts, under names that are not `taken`.

        Errors: McpUnavailable. Cancellation: its processes are dead before it is raised.
        """
        async with AsyncExitStack() as stack:
            connection = _Connection(await self._opening(config, owner, stack))
            try:
                yield await _offered(connection.call, await connection.tools(), taken, config.name)
            finally:
                await finish(connection.end())

    async def _opening(self, config: McpConfig, owner: Owner, stack: AsyncExitStack) -> Opening:
        await asyncio.to_thread(_load)
        if config.url is not None:
            return partial(_reach, config)
        folder = self._workspace.resolve(config.cwd or ".", field="cwd")
        environment = await stack.enter_async_context(self._processes.lent([config.command or "", *config.args], folder, owner))
        return partial(_start, config, environment, folder)


def _load() -> None:
    # Imported with the first server of a task, in a thread: the SDK takes 2 s and 58 MB.
    import mcp.client.client  # noqa: F401


async def _reach(config: McpConfig, stack: AsyncExitStack) -> "Client":
    from mcp import Client  # loaded by now
    from mcp.client.streamable_http import streamable_http_client  # so is this
    from mcp.shared._httpx_utils import create_mcp_http_client  # and this

    http = await stack.enter_async_context(create_mcp_http_client(headers=dict(config.headers)))
    return await stack.enter_async_context(Client(streamable_http_client(config.url or "", http_client=http)))


async def _start(config: McpConfig, environment: Mapping[str, str], folder: Path, stack: AsyncExitStack) -> "Client":
    from mcp import Client, StdioServerParameters  # loaded by now
    from mcp.client.stdio import stdio_client  # so is this

    nowhere = stack.enter_context(_nowhere())
    given = StdioServerParameters(command=config.command or "", args=config.args, env={**environment, **config.env}, cwd=folder)
    return await stack.enter_async_context(Client(stdio_client(given, errlog=nowhere)))


def _nowhere() -> TextIO:
    """Where a server's standard error goes: it is not ours to keep."""
    return open(os.devnull, "w", encoding="utf-8")


class _Connection:
    """One server. The SDK wants its client entered and left by one and the same asyncio task: this has one."""

    def __init__(self, opening: Opening) -> None:
        self._client: asyncio.Future[Client] = asyncio.get_running_loop().create_future()
        self._stop = asyncio.Event()
        self._work = asyncio.create_task(self._live(opening), name="mcp server")

    async def _live(self, opening: Opening) -> None:
        try:
            async with AsyncExitStack() as stack:
                self._client.set_result(await opening(stack))
                await self._stop.wait()
        except Exception as error:  # the border to the SDK, whose transports raise what they like, and groups of it
            if not self._client.done():
                self._client.set_exception(McpUnavailable(_reason(error)))
        finally:
            self._client.cancel()

    async def tools(self) -> list[Any]:
        """Gives the server's own description of its tools. Errors: McpUnavailable."""
        try:
            async with asyncio.timeout(START_TIME):
                return await _list(await asyncio.shield(self._client))
        except TimeoutError:
            raise McpUnavailable(f"it did not come up within {START_TIME:g} s") from None
        except McpUnavailable:
            raise
        except Exception as error:  # the border, as above
            raise McpUnavailable(_reason(error)) from error

    async def call(self, name: str, arguments: dict[str, Any]) -> ToolResult:
        """Calls a tool, once. Errors: ToolError."""
        try:
            async with asyncio.timeout(CALL_TIME):
                answer = await self._client.result().call_tool(name, arguments)
        except TimeoutError:
            raise ToolError(f"{name} did not answer within {CALL_TIME:g} s; it may have done what it was asked.") from None
        except Exception as error:  # the border, as above
            raise ToolError(f"{name} failed: {_reason(error)}.") from error
        return ToolResult("\n".join(map(_text, answer.content)) or _structured(answer), is_error=bool(answer.is_error))

    async def end(self) -> None:
        """Lets the server go. What it leaves running is for whoever has started it to kill."""
        self._stop.set()
        if not self._client.done():
            self._work.cancel()
        await asyncio.wait([self._work], timeout=END_TIME)
        if not self._work.done():
            self._work.cancel()
            await asyncio.wait([self._work], timeout=END_TIME)


async def _list(client: "Client") -> list[Any]:
    found: list[Any] = []
    cursor: str | None = None
    for _ in range(MAX_PAGES):
        page = await client.list_tools(cursor=cursor)
        found += page.tools
        cursor = page.next_cursor
        if cursor is None or len(found) >= MAX_TOOLS:
            break
    return found[:MAX_TOOLS]


async def _offered(
    call: Callable[[str, dict[str, Any]], Awaitable[ToolResult]], listed: list[Any], taken: Collection[str], server: str
) -> list[CustomTool]:
    offered: dict[str, CustomTool] = {}
    for tool in listed:
        name = free_name(tool.name, server, {*taken, *offered})
        parameters = tool.input_schema or EMPTY
        try:
            schema = await compile_schema(parameters)
        except ValueError:  # the server checks its arguments itself
            schema = await compile_schema(EMPTY)

        async def run(arguments: dict[str, Any], context: Owned, own: str = tool.name) -> ToolResult:
            return await call(own, arguments)

        offered[name] = CustomTool(name, tool.description or "", parameters, schema, run)
    return list(offered.values())


def free_name(name: str, server: str, taken: Collection[str]) -> str:
    """Gives a name that providers take and that is not taken: the tool's own, or with its server's name, and a number, before it."""
    plain = _plain(name)
    if plain not in taken:
        return plain
    number = 1
    while (prefixed := _plain(f"{server}{number if number > 1 else ''}_{name}")) in taken:
        number += 1
    return prefixed


def _plain(name: str) -> str:
    return re.sub("[^A-Za-z0-9_-]", "_", name)[:64] or "_"


def _text(block: Any) -> str:
    if block.type == "text":
        return str(block.text)
    if block.type == "resource" and hasattr(block.resource, "text"):
        return str(block.resource.text)
    return f"[{block.type}{' ' + str(block.uri) if block.type == 'resource_link' else ''}]"


def _structured(answer: Any) -> str:
    return "" if answer.structured_content is None else msgspec.json.encode(answer.structured_content).decode()


def _reason(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return (str(error) or type(error).__name__)[:300].rstrip(".")
