"""The client that the conformance suite drives: our own, in the way a task uses it. Its last argument is the server's URL.

It starts the parts that a task's MCP tools stand on, calls every tool with arguments that its schema asks for, and ends with 1
when a server does not come up or a call fails.
"""

import asyncio
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from agent_server.calling.custom import CustomTool, McpConfig
from agent_server.commands.execution import Owner
from agent_server.commands.processes import Processes
from agent_server.events.log import EventLog
from agent_server.mcp.client import McpServers
from agent_server.redaction import Secrets
from agent_server.workspace import Workspace

VALUES = {"integer": 2, "number": 2, "boolean": True, "array": [], "object": {}}


class _Call:
    owner = Owner()


async def main(url: str) -> int:
    warnings: list[str] = []
    failures: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        secrets = Secrets()
        log = EventLog(Path(folder, "events.db"), secrets, ())
        log.open()
        workspace = Workspace(Path(folder, "workspace"))
        servers = McpServers(Processes(log, secrets, os.environ, Path(folder), "conformance"), workspace, secrets)
        config = McpConfig("suite", url=url)
        async with servers.offered([config], {}, Owner(), warnings.append, has_workspace=False) as toolset:
            for name, tool in [*toolset.tools.items()]:
                assert isinstance(tool, CustomTool)
                assert tool.run is not None
                result = await tool.run(tool.parse(json.dumps(_arguments(tool.parameters))), _Call())
                print(name, result.content)
                if result.is_error:
                    failures.append(f"{name}: {result.content}")
        await log.close()
    print(*warnings, *failures, sep="\n", file=sys.stderr)
    return 1 if warnings or failures else 0


def _arguments(schema: Any) -> dict[str, Any]:
    fields = schema.get("properties", {})
    return {name: VALUES.get(fields[name].get("type"), "text") for name in schema.get("required", ())}


if __name__ == "__main__":
    sys.exit(asyncio.run(main(sys.argv[-1])))
