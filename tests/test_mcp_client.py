"""MCP servers that a task brings: their tools, their failures, and their processes' end."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.emulators.openai import OpenAIEmulator
from tests.ended import assert_requests, of_type
from tests.serving import ServerProcess, is_alive

SERVER = """
import json, os, subprocess, sys, time

TOOLS = {
    "add": ("Adds two numbers.", {"a": {"type": "integer"}, "b": {"type": "integer"}}),
    "bash": ("Has the name of another tool.", {"command": {"type": "string"}}),
    "fails": ("Always fails.", {}),
    "environment": ("Names the variables it has.", {}),
    "secret": ("Says a secret.", {}),
    "forever": ("Never answers.", {}),
}

def call(name, given):
    if name == "add":
        return str(given["a"] + given["b"])
    if name == "bash":
        return f"mcp: {given['command']}"
    if name == "environment":
        return " ".join(sorted(os.environ))
    if name == "secret":
        return os.environ["MY_TOKEN"]
    if name == "forever":
        open("forever", "w").write("begun")
        time.sleep(600)
    raise ValueError("it broke")

def answer(method, params):
    if method == "initialize":
        return {"protocolVersion": "2025-06-18", "capabilities": {"tools": {}}, "serverInfo": {"name": "test", "version": "1"}}
    if method == "tools/list":
        def schema(properties):
            return {"type": "object", "properties": properties, "required": list(properties)}
        return {"tools": [{"name": n, "description": d, "inputSchema": schema(p)} for n, (d, p) in TOOLS.items()]}
    if method == "tools/call":
        try:
            return {"content": [{"type": "text", "text": call(params["name"], params.get("arguments") or {})}]}
        except ValueError as error:
            return {"content": [{"type": "text", "text": str(error)}], "isError": True}

child = subprocess.Popen(["sleep", "300"], start_new_session=True)
open("pids", "a").write(f"{os.getpid()} {child.pid}\\n")
for line in sys.stdin:
    request = json.loads(line)
    if "id" in request:
        result = answer(request["method"], request.get("params") or {})
        said = {"result": result} if result is not None else {"error": {"code": -32601, "message": "no such method"}}
        print(json.dumps({"jsonrpc": "2.0", "id": request["id"], **said}), flush=True)
"""
"""A server that speaks stdio, written out: it starts in a fraction of what the SDK takes. It leaves a child in a session of its own."""

WEB_SERVER = """
import os
from mcp.server.mcpserver import MCPServer

server = MCPServer("web")

@server.tool()
def add(a: int, b: int) -> int:
    return a + b

server.run(os.environ["TRANSPORT"], host="127.0.0.1", port=int(os.environ["PORT"]))
"""


@pytest.fixture
def agent(anew: ServerProcess) -> ServerProcess:
    return anew


@pytest.fixture
def stdio(tmp_path: Path) -> dict[str, Any]:
    """The configuration of a server that speaks stdio."""
    program = tmp_path / "server.py"
    program.write_text(SERVER)
    return {"mcp": {"name": "sums", "command": sys.executable, "args": [str(program)], "env": {"MY_TOKEN": "tell-nobody-of-this"}}}


def pids(agent: ServerProcess) -> list[int]:
    return [int(pid) for pid in (agent.workspace / "pids").read_text().split()]


def results(model: OpenAIEmulator) -> list[str]:
    return [message["content"] for message in model.requests()[-1].json["messages"] if message["role"] == "tool"]


def call(name: str, **arguments: Any) -> dict[str, Any]:
    return {"name": name, "arguments": arguments}


def test_the_tools_of_a_server_are_offered_and_called(agent: ServerProcess, model: OpenAIEmulator, stdio: dict[str, Any]) -> None:
    calls = [
        call("add", a=2, b=3),
        call("sums_bash", command="x"),
        call("fails"),
        call("add", a="two"),
        call("environment"),
        call("secret"),
    ]
    model.script({"tool_calls": calls}, {"text": "Five."})
    task_id = agent.submit("add", tools=[stdio])
    task = agent.finish(task_id)
    assert task["response"] == "Five.", agent.log()
    offered = {tool["function"]["name"]: tool["function"] for tool in model.requests()[0].json["tools"]}
    assert {"bash", "add", "sums_bash", "fails"} <= set(offered)
    assert offered["add"]["description"] == "Adds two numbers."
    assert set(offered["add"]["parameters"]["properties"]) == {"a", "b"}
    five, theirs, broken, invalid, environment, secret = results(model)
    assert (five, theirs) == ("5", "mcp: x")
    assert "it broke" in broken
    assert "Invalid arguments" in invalid
    assert {"MY_TOKEN", "PATH", "AGENT_SERVER_PROCESS"} <= set(environment.split())
    assert not {"AGENT_API_KEY", "AGENT_SERVER_TOKEN", "DATA_DIR"} & set(environment.split())
    assert secret == "***REDACTED***"
    assert not any(map(is_alive, pids(agent)))
    told = agent.task_events(task_id)
    assert told[0]["tools"][0]["mcp"]["env"] == {"MY_TOKEN": "***REDACTED***"}
    assert [event["isError"] for event in of_type(told, "tool.finished")] == [False, False, True, True, False, False]
    assert "tell-nobody-of-this" not in str(told)
    assert not list((agent.data / "tools").iterdir())


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"command": "no-such-program"}, "'no-such-program' cannot be run"),
        ({"command": "false"}, "closed"),
        ({"command": sys.executable, "args": ["-c", "print('hello'); raise SystemExit"]}, "closed"),
        ({"url": "http://127.0.0.1:1/mcp"}, "connection attempts failed"),
        ({"command": "true", "cwd": "/etc"}, "outside the workspace"),
    ],
    ids=["missing", "false", "no-mcp", "no-url", "outside"],
)
def test_a_server_that_does_not_come_up_costs_its_tools_and_a_warning(
    config: dict[str, Any], said: str, agent: ServerProcess, model: OpenAIEmulator
) -> None:
    model.script({"text": "Without it, then."})
    task_id = agent.submit("go", tools=[{"mcp": {"name": "lame", **config}}, {"name": "mine"}])
    assert agent.finish(task_id)["status"] == "completed"
    names = [tool["function"]["name"] for tool in model.requests()[0].json["tools"]]
    assert "bash" in names
    assert names[-1] == "mine"
    (warning,) = [event for event in agent.task_events(task_id) if event["type"] == "log"]
    assert (warning["level"], "lame" in warning["message"]) == ("WARNING", True)
    assert said in warning["message"]


def test_cancel_ends_a_servers_processes_before_it_returns(agent: ServerProcess, model: OpenAIEmulator, stdio: dict[str, Any]) -> None:
    model.script({"tool_calls": [call("forever")]}, {"text": "Next."})
    task_id = agent.submit("wait", tools=[stdio])
    agent.wait_for(task_id, "tool.started")
    while not (agent.workspace / "forever").exists():
        assert agent.get(f"/tasks/{task_id}").json()["status"] == "processing"
    assert all(map(is_alive, pids(agent)))
    assert agent.post(f"/tasks/{task_id}/cancel").json()["phase"] == "cancelled"
    assert not any(map(is_alive, pids(agent)))
    assert agent.post("/run", {"prompt": "next"}).status_code == 200
    assert_requests([model.requests()[1]])


def test_a_task_gets_its_server_again_after_a_kill(agent: ServerProcess, model: OpenAIEmulator, stdio: dict[str, Any]) -> None:
    model.script({"tool_calls": [call("forever")]}, {"tool_calls": [call("secret"), call("add", a=1, b=1)]}, {"text": "Two."})
    task_id = agent.submit("add", tools=[stdio])
    agent.wait_for(task_id, "tool.started")
    while not (agent.workspace / "forever").exists():
        assert agent.get(f"/tasks/{task_id}").json()["status"] == "processing"
    agent.kill()
    agent.start()
    assert agent.finish(task_id)["response"] == "Two."
    found = results(model)
    assert "may have run" in found[0]
    assert found[1:] == ["***REDACTED***", "2"]
    assert_requests(model.requests())
    assert not any(map(is_alive, pids(agent)))
    assert b"tell-nobody-of-this" not in b"".join(file.read_bytes() for file in agent.data.rglob("*") if file.is_file())


@pytest.fixture(params=["streamable-http", "sse"])
def url(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    """An MCP server of the SDK on HTTP, in its present and in its older form."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    program = tmp_path / "web.py"
    program.write_text(WEB_SERVER)
    process = subprocess.Popen(
        [sys.executable, str(program)], env={"PORT": str(port), "TRANSPORT": request.param}, stderr=subprocess.DEVNULL
    )
    try:
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert process.poll() is None
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}/{'sse' if request.param == 'sse' else 'mcp'}"
    finally:
        process.kill()
        process.wait()


def test_a_server_can_be_reached_by_url(agent: ServerProcess, model: OpenAIEmulator, url: str) -> None:
    model.script({"tool_calls": [call("add", a=20, b=22)]}, {"text": "ok"})
    task_id = agent.submit("go", tools=[{"mcp": {"name": "web", "url": url, "headers": {"Authorization": "Bearer a-long-secret-value"}}}])
    assert agent.finish(task_id)["status"] == "completed"
    assert results(model) == ["42"]
    assert agent.task_events(task_id)[0]["tools"][0]["mcp"]["headers"] == {"Authorization": "***REDACTED***"}
