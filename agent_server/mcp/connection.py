"""One connection to an MCP server, from its opening to its end. Imported with the first server of a task, as the SDK is."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import httpx2
from mcp import Client, MCPError
from mcp_types import CONNECTION_CLOSED, METHOD_NOT_FOUND, PARSE_ERROR, CallToolResult, Tool
from pydantic import ValidationError

from agent_server.calling.custom import MAX_TOOLS
from agent_server.mcp.transports import Signs
from tools import ToolError

END_TIME = 8.0
"""Seconds in which a connection ends by itself, its process included; then it is broken off."""

PING_TIME = 5.0
"""Seconds in which a server of which a call was given up is to answer a ping: one that works on does so at once."""

MAX_PAGES = 20
"""Pages of a server's list of tools that are asked for."""

MORE = ("For more information", "For further information")
"""How lines begin that httpx and pydantic add."""

ABANDONED = "SSE stream "
"""How the SDK's words begin where the stream of an HTTP answer broke, and the connection itself goes on."""

UNSENT = (httpx2.ConnectError, httpx2.ConnectTimeout)
"""What ends a connection before a request has left."""

Opening = Callable[[Signs, AsyncExitStack], Awaitable[Client]]
"""Makes the SDK's client, connected; what it holds is on the stack."""


class Lost(Exception):
    """The connection ended under a call, or its session was over. `is_unsent` where the call has surely not run."""

    def __init__(self, reason: str, *, is_unsent: bool) -> None:
        super().__init__(reason)
        self.is_unsent = is_unsent


class Connection:
    """One connection. The SDK wants its client entered and left by one and the same asyncio task: this has one."""

    def __init__(self, opening: Opening) -> None:
        self.signs = Signs()
        self._calls = 0
        self.is_doubtful = False  # since a call was given up before it was answered
        self._fault: BaseException | None = None
        self._client: asyncio.Future[Client] = asyncio.get_running_loop().create_future()
        self._work = asyncio.create_task(self._live(opening), name="mcp server")

    async def _live(self, opening: Opening) -> None:
        try:
            async with AsyncExitStack() as stack:
                self._client.set_result(await opening(self.signs, stack))
                await self.signs.ended.wait()
        except Exception as error:  # the border to the SDK, whose transports raise what they like, and groups of it
            self._fault = _first(error)
        finally:
            self.signs.ended.set()
            self._client.cancel()

    @property
    def is_open(self) -> bool:
        return self._client.done() and not self._client.cancelled() and not self.signs.ended.is_set() and not self.signs.is_expired

    async def is_stuck(self) -> bool:
        """Whether it is doubtful, and answers no ping either, with no other call at work: many servers do one thing after another, and
        know nothing of cancelling."""
        if not self.is_doubtful or self._calls:
            return False
        try:
            async with asyncio.timeout(PING_TIME):
                await self._client.result().session.send_ping()
            self.is_doubtful = False
        except asyncio.CancelledError:
            if not self._client.cancelled():  # else it is not we who are cancelled: the connection has just ended
                raise
        except Exception as error:  # the border, as above
            self.is_doubtful = not isinstance(error, MCPError)  # which is an answer, such as that it knows no ping
        return self.is_doubtful or not self.is_open

    async def tools(self) -> list[Tool]:
        """Gives the server's own description of its tools, once it is up. Errors: MCPError and whatever the SDK raises."""
        either: list[asyncio.Future[Any]] = [self._client, self._work]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not self._client.done() or self._client.cancelled():
            raise self._fault or ConnectionError("it ended")
        self.signs.is_stale = False
        try:
            return await _listed(self._client.result())
        except MCPError as error:
            if error.code == METHOD_NOT_FOUND:  # some have only resources or prompts
                return []
            raise

    async def call(self, name: str, arguments: dict[str, Any], timeout: float) -> CallToolResult:
        """Calls a tool, once; what is told of its progress gives it its time anew. Cancelling it, or its timeout, is told to the server.

        Errors: Lost, ToolError.
        """
        loop = asyncio.get_running_loop()
        self._calls += 1
        try:
            async with asyncio.timeout(timeout) as limit:

                async def go_on(progress: float, total: float | None, message: str | None) -> None:
                    limit.reschedule(loop.time() + timeout)

                return await self._client.result().call_tool(name, arguments, progress_callback=go_on)
        except TimeoutError:
            self.is_doubtful = True
            raise ToolError(f"{name} did not answer within {timeout:g} s; it was cancelled, and may have run in part.") from None
        except asyncio.CancelledError:
            if not self._client.cancelled():  # else it is not we who are cancelled: the connection has just ended
                self.is_doubtful = True
                raise
            raise Lost("it ended", is_unsent=True) from None
        except Exception as error:  # the border, as above
            raise await self._told(name, error) from error
        finally:
            self._calls -= 1

    async def _told(self, name: str, error: Exception) -> Exception:
        if isinstance(error, ValidationError) or (isinstance(error, MCPError) and error.code == PARSE_ERROR):
            return ToolError(f"{name} has run, but what it gave is no result of a tool: {reason(error)}.")
        if isinstance(error, MCPError) and not self._is_of_the_sdk(error):
            if self.signs.is_expired:
                return Lost("its session was over", is_unsent=True)
            return ToolError(f"{name} failed: {reason(error)}.")
        if not isinstance(error, MCPError) and not self.signs.ended.is_set():
            return ToolError(f"{name} failed: {reason(error)}.")
        if self.signs.ended.is_set():
            await asyncio.wait([self._work], timeout=END_TIME)  # it knows why
        # With one call at work, that is the last message sent; with more, it is not known which of them has got through.
        is_unsent = self._calls == 1 and (isinstance(self._fault, UNSENT) or self.signs.is_expired or self.signs.said.is_unread)
        return Lost(self.reason(self._fault or error), is_unsent=is_unsent)

    def _is_of_the_sdk(self, error: MCPError) -> bool:
        """Whether it says that there is no answer. Servers give the same code, -32000, to errors of their own."""
        return error.code == CONNECTION_CLOSED and (self.signs.ended.is_set() or error.message.startswith(ABANDONED))

    def reason(self, error: BaseException) -> str:
        """Gives in words why it ended, or did not come about."""
        return self.signs.said.excess or reason(error)

    async def end(self) -> None:
        """Lets the server go, and ends its processes."""
        self.signs.ended.set()
        if not self._client.done():
            self._work.cancel()
        await asyncio.wait([self._work], timeout=END_TIME)
        if not self._work.done():
            self._work.cancel()
            await asyncio.wait([self._work], timeout=END_TIME)


async def _listed(client: Client) -> list[Tool]:
    found: list[Tool] = []
    cursor: str | None = None
    for _ in range(MAX_PAGES):
        page = await client.list_tools(cursor=cursor)
        found += page.tools
        cursor = page.next_cursor
        if cursor is None or len(found) > MAX_TOOLS:
            break
    return found[: MAX_TOOLS + 1]  # that there are more is told


def reason(error: BaseException) -> str:
    """Gives in words what went wrong, on one line: libraries add others that say where to read more."""
    error = _first(error)
    lines = [line.strip() for line in str(error).splitlines()]
    said = " ".join(line for line in lines if not line.startswith(MORE))
    return (said or type(error).__name__)[:300].rstrip(".")


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
