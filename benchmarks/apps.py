"""Starts the two that are compared, ours and the bare app, in the same way, and speaks HTTP to them with next to no cost."""

import asyncio
import contextlib
import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.proc import cpu

TOKEN = "benchmark-token-0123456789"
START_SECONDS = 30.0
POLL = 0.002
"""Seconds between two looks whether it answers."""

REPLY_SECONDS = 60.0
"""How long any reply may take."""

PYTHON = Path(sys.executable)
PATH = f"{PYTHON.parent}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class App:
    """A server that has answered; `wall` and `cpu` are the seconds from its start to its first /health."""

    process: "subprocess.Popen[bytes]"
    port: int
    wall: float
    cpu: float

    @property
    def pid(self) -> int:
        return self.process.pid

    def post(self, path: str, body: Any) -> Any:
        with Connection(self.port) as connection:
            return json.loads(connection.ask(request("POST", path, body)))

    def get(self, path: str) -> Any:
        with Connection(self.port) as connection:
            return json.loads(connection.ask(request("GET", path)))


@contextlib.contextmanager
def ours(*flags: str, stderr: int | None = subprocess.DEVNULL, **environ: str) -> Iterator[App]:
    """Our server on folders of its own; `flags` are Python's."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        workspace = Path(folder, "workspace")
        workspace.mkdir()
        more = {"HOST": "127.0.0.1", "WORKSPACE_DIR": str(workspace), "DATA_DIR": f"{folder}/data", "AGENT_SERVER_TOKEN": TOKEN, **environ}
        with _started([*flags, str(PYTHON.parent / "agent-server"), "serve"], folder, more, stderr) as app:
            yield app


@contextlib.contextmanager
def bare(*flags: str, stderr: int | None = subprocess.DEVNULL) -> Iterator[App]:
    """The bare app, on a plain folder."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, _started([*flags, str(BARE)], folder, {}, stderr) as app:
        yield app


BARE = Path(__file__).with_name("bare.py")


@contextlib.contextmanager
def _started(arguments: list[str], folder: str, environ: Mapping[str, str], stderr: int | None) -> Iterator[App]:
    port = _free_port()
    argv = [str(PYTHON), *arguments] + ([str(port)] if arguments[-1] == str(BARE) else [])
    env = {"PATH": PATH, "HOME": folder, "PORT": str(port), **environ}
    begin = time.perf_counter()
    process = subprocess.Popen(argv, cwd=folder, env=env, stderr=stderr)
    try:
        _wait(process, port)
        wall = time.perf_counter() - begin
        yield App(process, port, wall, cpu(process.pid))
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(20)


def _wait(process: "subprocess.Popen[bytes]", port: int) -> None:
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until and process.poll() is None:
        try:
            with Connection(port) as connection:
                connection.ask(HEALTH)
                return
        except OSError:
            time.sleep(POLL)
    state = f"ended with {process.returncode}" if process.returncode is not None else f"did not answer within {START_SECONDS} s"
    raise SystemExit(f"benchmarks: {' '.join(map(str, process.args))} {state}.")  # type: ignore[arg-type]  # a list, as given


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def request(method: str, path: str, body: Any = None) -> bytes:
    """Gives the bytes of a request with the token."""
    content = json.dumps(body).encode() if body is not None else b""
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\nContent-Type: application/json\r\n"
    return head.encode() + f"Content-Length: {len(content)}\r\n\r\n".encode() + content


HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
EXECUTE_TRUE = request("POST", "/execute", {"command": "true"})


class Connection:
    """One keep-alive connection. Replies have a Content-Length, as all that are measured do."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), REPLY_SECONDS)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask(self, request: bytes) -> bytes:
        """Sends a request and gives the body of its reply. Errors: OSError; ValueError for a status other than 2xx."""
        self._socket.sendall(request)
        reply = bytearray()
        while (end := reply.find(b"\r\n\r\n")) < 0:
            reply += self._receive()
        size = _length(bytes(reply[:end]))
        while len(reply) < end + 4 + size:
            reply += self._receive()
        return bytes(reply[end + 4 :])

    def _receive(self) -> bytes:
        data = self._socket.recv(1 << 18)
        if not data:
            raise ConnectionResetError("The server has closed the connection.")
        return data

    def __enter__(self) -> "Connection":
        return self

    def __exit__(self, *ignored: object) -> None:
        self._socket.close()


async def ask_many(port: int, request: bytes, connections: int, each: int) -> None:
    """Sends a request `each` times one after the other, on so many connections at once."""
    async with asyncio.timeout(REPLY_SECONDS), asyncio.TaskGroup() as group:
        for _ in range(connections):
            group.create_task(_ask(port, request, each))


async def _ask(port: int, request: bytes, times: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for _ in range(times):
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(_length(head))
    finally:
        writer.close()


def _length(head: bytes) -> int:
    lines = head.lower().split(b"\r\n")
    if not lines[0].startswith(b"http/1.1 2"):
        raise ValueError(f"The server answered {lines[0].decode()!r}.")
    return next(int(line[15:]) for line in lines if line.startswith(b"content-length:"))
