"""The client that the conformance suite drives: our own, in the way a task uses it.

It serves at the socket that its argument names, so that the SDK is loaded once and not for each scenario; `ask.py` is the command that
the suite starts. For each it starts the parts that a task's MCP tools stand on and calls every tool with what its schema asks for.
"""

import asyncio
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from agent_server.calling.custom import CustomTool, McpConfig, OAuth
from agent_server.commands.execution import Owner
from agent_server.commands.processes import Processes
from agent_server.events.log import EventLog
from agent_server.mcp.client import McpServers
from agent_server.redaction import Secrets
from agent_server.workspace import Workspace

VALUES = {"integer": 2, "number": 2, "boolean": True, "array": [], "object": {}}


class _Call:
    owner = Owner()


async def drive(url: str, scenario: str, told: dict[str, Any]) -> list[str]:
    """Goes through a scenario as a client, and gives what went wrong."""
    wrong: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        secrets = Secrets()
        log = EventLog(Path(folder, "events.db"), secrets)
        log.open()
        processes = Processes(log, secrets, os.environ, Path(folder), "conformance")
        servers = McpServers(processes, Workspace(Path(folder, "workspace")), secrets)
        config = McpConfig("suite", url=url, oauth=_credentials(scenario, told))
        async with servers.offered([config], {}, Owner(), wrong.append, has_workspace=False) as toolset:
            for tool in toolset.found:
                wrong += await _call(tool)
        await log.close()
    return wrong


async def _call(tool: CustomTool) -> list[str]:
    fields = tool.parameters.get("properties", {})
    arguments = {name: VALUES.get(fields[name].get("type"), "text") for name in tool.parameters.get("required", ())}
    assert tool.run is not None
    result = await tool.run(tool.parse(json.dumps(arguments)), _Call())
    return [f"{tool.name}: {result.content}"] if result.is_error else []


def _credentials(scenario: str, told: dict[str, Any]) -> OAuth | bool:
    """What the suite tells a client to use: a secret of one that is registered, or the address that is its name."""
    if scenario == "auth/basic-cimd":
        return OAuth("https://conformance-test.local/client-metadata.json")
    if "private_key_pem" in told:
        key, algorithm = told["private_key_pem"], told["signing_algorithm"]
        return OAuth(told["client_id"], grant_type="client_credentials", private_key=key, algorithm=algorithm)
    if "idp_id_token" in told:
        known = ("client_id", "client_secret", "idp_client_id", "idp_token_endpoint")
        return OAuth(id_token=told["idp_id_token"], **{name: told[name] for name in known})
    if "client_secret" not in told:
        return True
    grant: Any = "client_credentials" if "client-credentials" in scenario else "authorization_code"
    return OAuth(told["client_id"], told["client_secret"], grant_type=grant)


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    asked = json.loads(await reader.readline())
    wrong = await drive(asked["url"], asked["scenario"], asked["context"])
    writer.write(json.dumps(wrong).encode() + b"\n")
    await writer.drain()
    writer.close()


async def _serve(path: str) -> None:
    async with await asyncio.start_unix_server(_answer, path) as server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1]))
