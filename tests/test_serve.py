"""The process from outside: its socket, what it loads, and that it takes no code from the workspace."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from agent_server import __version__
from tests.rawhttp import AUTHORIZED, answer, connect
from tests.serving import ServerProcess, events, serving

HEAVY = (
    "tarfile",
    "litellm",
    "mcp",
    "pydantic",
    "git",
    "openai",
    "websockets",
    "h11",
    "hypothesis",
    "jsonschema",
    "pytest",
    "numpy",
    "aiohttp",
)
SCRIPT = Path(sys.executable).with_name("agent-server")


def test_it_answers_over_ipv4_and_ipv6() -> None:
    with serving(HOST="::") as server:
        port = server.url.rpartition(":")[2]
        for host in ("127.0.0.1", "[::1]", "localhost"):
            assert httpx.get(f"http://{host}:{port}/health").json() == {"status": "healthy"}
        assert f"http://[::]:{port}" in server.log()


def test_an_ipv4_address_is_that_alone() -> None:
    with serving(HOST="127.0.0.1") as server, pytest.raises(OSError, match="refused"):
        connect(server.url, "::1").close()


def test_a_connection_is_kept_for_many_requests(server: ServerProcess) -> None:
    with connect(server.url) as connection:
        for path, status in (("/health", 200), ("/nothing", 404), ("/run", 405), ("/status", 200), ("/tasks?limit=x", 400)):
            connection.sendall(f"GET {path} HTTP/1.1\r\n{AUTHORIZED}\r\n".encode())
            response, body = answer(connection)
            assert response.status == status
            assert body is not None
        connection.sendall(f"GET /health HTTP/1.1\r\n{AUTHORIZED}Connection: close\r\n\r\n".encode())
        assert answer(connection)[0].status == 200
        assert connection.recv(1) == b""


def test_health_is_answered_while_a_command_and_a_stream_run(server: ServerProcess) -> None:
    with server.client() as client, client.stream("GET", "/events") as stream, connect(server.url) as busy:
        assert stream.status_code == 200
        body = json.dumps({"command": "read line < pipe", "timeout": 60_000}).encode()
        server.execute("mkfifo pipe")
        busy.sendall(f"POST /execute HTTP/1.1\r\n{AUTHORIZED}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        for line in stream.iter_lines():
            if "read line" in line:
                break
        assert server.get("/health").json()["status"] == "healthy"
        server.execute("echo go > pipe")
        assert answer(busy)[1]["exitCode"] == 0


def test_nothing_heavy_is_loaded_before_health_answers(tmp_path: Path) -> None:
    server = ServerProcess(tmp_path)
    server.argv[1:1] = ["-X", "importtime"]
    server.start()
    try:
        loaded = set(re.findall(r"^import time: +\d+ \| +\d+ \| +(\S+)$", server.log(), re.M))
    finally:
        server.kill()
    assert {"agent_server", "starlette.applications", "uvicorn", "msgspec"} <= loaded
    assert sorted(name for name in loaded if name.partition(".")[0] in HEAVY) == []


def test_versions_and_help() -> None:
    def run(*arguments: str) -> tuple[int, str, str]:
        ended = subprocess.run([sys.executable, "-P", "-m", "agent_server", *arguments], capture_output=True, text=True, timeout=30)
        return ended.returncode, ended.stdout, ended.stderr

    assert run("--version") == run("version") == (0, __version__ + "\n", "")
    assert run("help") == run("--help")
    assert run("--help")[0] == 0
    assert "serve" in run("--help")[1]
    assert run("nothing")[0] == 2
    assert "serve" in run("nothing")[2]


# The workspace's code


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A folder whose modules, imported by the server, would end it."""
    folder = tmp_path / "hostile"
    folder.mkdir()
    trap = "raise SystemExit('the code of the workspace was imported')\n"
    for package in ("tools", "integrations", "starlette", "msgspec"):
        (folder / package).mkdir()
        (folder / package / "__init__.py").write_text(trap)
    for module in ("json.py", "asyncio.py", "logging.py", "sqlite3.py", "uvicorn.py", "tools/read.py"):
        (folder / module).write_text(trap)
    return folder


def serve_in(workspace: Path, tmp_path: Path, argv: list[str], **environ: str) -> None:
    """Starts a server in a workspace and has it run a command there."""
    server = ServerProcess(tmp_path, **environ)
    shutil.copytree(workspace, server.workspace, dirs_exist_ok=True)
    server.argv = argv
    server.start()
    try:
        assert server.execute("echo fine")["stdout"] == "fine\n"
        assert server.get("/changes").status_code == 200
    finally:
        server.kill()


AS_MODULE = [sys.executable, "-P", "-m", "agent_server", "serve"]


@pytest.mark.parametrize("argv", [AS_MODULE, [str(SCRIPT), "serve"]], ids=["module", "script"])
def test_the_workspace_cannot_replace_the_servers_modules(tmp_path: Path, hostile: Path, argv: list[str]) -> None:
    (hostile / "agent_server").mkdir()
    (hostile / "agent_server" / "__init__.py").write_text("raise SystemExit('imported')\n")
    serve_in(hostile, tmp_path, argv)


@pytest.mark.parametrize("argv", [AS_MODULE, [str(SCRIPT), "serve"]], ids=["module", "script"])
def test_nor_can_it_through_the_import_path(tmp_path: Path, hostile: Path, argv: list[str]) -> None:
    # Not its `asyncio` and the like for the script, which imports `re` itself; nor `agent_server`: see docs/configuration.md.
    serve_in(hostile, tmp_path, argv, PYTHONPATH=os.pathsep.join([str(hostile), str(tmp_path / "workspace"), ""]))


def test_isolated_python_takes_nothing_at_all_from_it(tmp_path: Path, hostile: Path) -> None:
    for name in ("agent_server", "sitecustomize"):
        (hostile / name).mkdir()
        (hostile / name / "__init__.py").write_text("raise SystemExit('imported')\n")
    serve_in(hostile, tmp_path, [sys.executable, "-I", "-m", "agent_server", "serve"], PYTHONPATH=str(hostile))


def test_a_plain_start_in_the_workspace_takes_none_of_its_packages(tmp_path: Path, hostile: Path) -> None:
    for name in ("json.py", "asyncio.py", "logging.py", "sqlite3.py"):  # Python's own start may need these before our first line
        (hostile / name).unlink()
    serve_in(hostile, tmp_path, [sys.executable, "-m", "agent_server", "serve"])


def test_commands_see_their_own_python_and_none_of_the_servers_variables(tmp_path: Path) -> None:
    with serving(
        tmp_path,
        PYTHONPATH="/nowhere",
        PYTHONDONTWRITEBYTECODE="1",
        OPENROUTER_API_KEY="sk-or-secret-of-ours",
        COMMAND_ENV="MINE",
        MINE="yes",
    ) as server:
        (server.workspace / "json.py").write_text("print('the json of the workspace')\n")
        assert server.execute("python3 -c 'import json'")["stdout"] == "the json of the workspace\n"
        seen = dict(line.split("=", 1) for line in server.execute("env")["stdout"].splitlines() if "=" in line)
        assert seen["MINE"] == "yes"
        assert not {
            name for name in seen if name.startswith(("PYTHON", "OPENROUTER", "DATA_DIR", "WORKSPACE_DIR", "AGENT_SERVER_TOKEN", "PORT"))
        }
        given = server.execute("env", env={"PYTHONPATH": "/theirs"})["stdout"]
        assert "PYTHONPATH=/theirs" in given


# The end


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly_and_its_streams_with_it(server: ServerProcess, number: signal.Signals) -> None:
    assert server.process is not None
    with connect(server.url) as idle, server.client() as client, client.stream("GET", "/events") as stream:
        idle.sendall(f"GET /health HTTP/1.1\r\n{AUTHORIZED}\r\n".encode())
        assert answer(idle)[0].status == 200
        server.process.send_signal(number)
        told = [event for event in events(stream) if not event["type"].startswith("port.")]  # of other programs here
        assert [event["message"] for event in told] == ["stopping: tasks come to a safe point, and go on at the next start"]
        assert idle.recv(1) == b""
    assert server.process.wait(20) == 0
    assert "ERROR" not in server.log()
    assert "Traceback" not in server.log()
