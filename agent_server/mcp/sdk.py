"""What is made of the MCP SDK. Nothing imports this at the start: the SDK takes seconds and 50 MB."""

import logging
from typing import Any

from mcp.server.lowlevel import Server
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.shared.exceptions import MCPError
from mcp_types import (
    INVALID_PARAMS,
    CallToolRequestParams,
    CallToolResult,
    ImageContent,
    ListToolsResult,
    PaginatedRequestParams,
    TextContent,
    ToolAnnotations,
)
from mcp_types import Tool as ToolDescription

from agent_server import __version__
from agent_server.errors import AgentServerError
from agent_server.mcp.calls import Calls, Outcome
from tools import Tool

MAX_SESSIONS = 64
"""Sessions that are open at the same time; another one is refused with 503 until one ends."""

SESSION_IDLE = 1800.0
"""Seconds without a request, or a stream, after which a session ends, and with it what it has running."""

INSTRUCTIONS = (
    "Tools that work in the workspace of one machine. Paths are relative to the workspace. "
    "Cancelling a call kills its commands. Ask for progress to see a command's output while it runs."
)


def sessions(calls: Calls, max_body: int) -> StreamableHTTPSessionManager:
    """Gives the SDK's application for these calls. Hosts, origins and tokens are not its business: they are checked before it."""
    logging.getLogger("mcp").setLevel(logging.WARNING)  # it tells every session

    async def list_tools(context: Any, params: PaginatedRequestParams | None) -> ListToolsResult:
        return ListToolsResult(tools=[_described(tool) for tool in calls.tools.values()])

    async def call_tool(context: Any, params: CallToolRequestParams) -> CallToolResult:
        if params.name not in calls.tools:
            raise MCPError(INVALID_PARAMS, f"Unknown tool {params.name[:100]!r}; tools/list names those there are.")

        async def progress(length: int, chunk: str) -> None:
            await context.session.report_progress(length, None, chunk)

        try:
            outcome = await calls.call(params.name, params.arguments or {}, progress)
        except AgentServerError as error:
            outcome = Outcome(f"Error: {error.message}", True)
        images = [ImageContent(data=image.data, mime_type=image.media_type) for image in outcome.images]
        return CallToolResult(content=[TextContent(text=outcome.text), *images], is_error=outcome.is_error)

    server: Server[Any] = Server(
        "agent-server",
        version=__version__,
        instructions=INSTRUCTIONS,
        on_list_tools=list_tools,
        on_call_tool=call_tool,
        get_tool_input_schema=lambda name: calls.tools[name].parameters if name in calls.tools else None,
    )
    server.middleware.clear()  # a span of OpenTelemetry for each message, which nobody collects
    return StreamableHTTPSessionManager(
        server, session_idle_timeout=SESSION_IDLE, max_sessions=MAX_SESSIONS, max_request_body_size=max_body
    )


def _described(tool: Tool) -> ToolDescription:
    return ToolDescription(
        name=tool.name,
        description=tool.description,
        input_schema=tool.parameters,
        annotations=ToolAnnotations(read_only_hint=tool.read_only),
    )
