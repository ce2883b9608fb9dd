"""The server's patience with clients that stop reading or sending, in full. It takes a minute, so `make test-slow` runs it."""

import contextlib
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.rawhttp import AUTHORIZED, connect
from tests.serving import ServerProcess, serving

pytestmark = [
    pytest.mark.skipif("AGENT_SERVER_SLOW" not in os.environ, reason="takes a minute; make test-slow runs it"),
    pytest.mark.timeout(300),
]

FLOOD = "for i in {1..12}; do head -c 900000 /dev/zero | tr '\\0' x | fold -w 99; sleep 0.3; done"
"""Prints more than the buffers of two sockets take."""


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with serving() as running:
        yield running


def unread(server: ServerProcess, path: str) -> socket.socket:
    """Asks for something and reads no more than the beginning of it."""
    connection = connect(server.url)
    connection.sendall(f"GET {path} HTTP/1.1\r\n{AUTHORIZED}\r\n".encode())
    assert connection.recv(12) == b"HTTP/1.1 200"
    return connection


def sockets(server: ServerProcess) -> int:
    assert server.process is not None
    count = 0
    for descriptor in Path(f"/proc/{server.process.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            count += str(descriptor.readlink()).startswith("socket:")
    return count


def _events(server: ServerProcess) -> str:
    return "/events?after=0"


def _file(server: ServerProcess) -> str:
    (server.workspace / "large").write_bytes(os.urandom(30 << 20))
    return "/files?path=large"


def _archive(server: ServerProcess) -> str:
    (server.workspace / "random").write_bytes(os.urandom(30 << 20))
    return "/files/archive?path=."


@pytest.mark.parametrize("path", [_events, _file, _archive])
def test_who_takes_nothing_for_half_a_minute_is_cut_off(server: ServerProcess, path: Callable[[ServerProcess], str]) -> None:
    before = sockets(server)
    with unread(server, path(server)) as connection:
        for _ in range(4):
            server.execute(FLOOD)
        connection.settimeout(60)
        while sockets(server) > before:
            server.execute("sleep 1")
        received = 0
        while data := _received(connection):
            received += len(data)
        assert received < 30_000_000


def _received(connection: socket.socket) -> bytes:
    try:
        return connection.recv(1 << 20)
    except ConnectionError:
        return b""


def test_an_upload_of_which_nothing_comes_for_a_minute_is_refused_and_leaves_nothing(server: ServerProcess) -> None:
    with connect(server.url) as connection:
        connection.sendall(f"PUT /files?path=half HTTP/1.1\r\n{AUTHORIZED}Content-Length: 100\r\n\r\nhalf".encode())
        connection.settimeout(90)
        assert connection.recv(12) == b"HTTP/1.1 400"
    assert not (server.workspace / "half").exists()
    assert [*(server.data / "staging").iterdir()] == []
