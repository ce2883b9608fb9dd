"""Applications and clients that fail or leave: every exchange of the proxy ends."""

import contextlib
import socket
import threading
from pathlib import Path

import httpx
import pytest

from agent_server.proxy.proxy import MAX_OPEN
from tests.rawhttp import AUTHORIZED, connect
from tests.serving import ServerProcess, serving
from tests.upstreams import OK, answering, first_line, listening, read_exactly, read_head


def test_nobody_listening_is_an_upstream_error(server: ServerProcess) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        response = server.get(f"/proxy/{port}/")
    assert (response.status_code, response.json()["error"]["code"]) == (502, "UPSTREAM_ERROR")
    assert response.json()["error"]["details"] == {"port": port}


def test_a_port_that_opens_again_elsewhere_is_found(server: ServerProcess) -> None:
    with listening(answering(), "::1") as upstream:
        assert server.get(f"/proxy/{upstream.port}/").text == "ok"
    assert server.get(f"/proxy/{upstream.port}/").status_code == 502
    with listening(answering(OK.replace(b"ok", b"v4")), "127.0.0.1", upstream.port):
        assert server.get(f"/proxy/{upstream.port}/").text == "v4"


@pytest.mark.parametrize(
    "answered",
    [
        b"",
        b"HTTP/1.1 200",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        b"HTTP/1.1 999 Odd\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: a\x01b\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * 200_000 + b"\r\n\r\n",
    ],
    ids=lambda value: str(value[:30]),
)
def test_what_is_no_answer_is_an_upstream_error(server: ServerProcess, answered: bytes) -> None:
    with listening(answering(answered)) as upstream:
        response = server.get(f"/proxy/{upstream.port}/")
        assert (response.status_code, response.json()["error"]["code"]) == (502, "UPSTREAM_ERROR")


@pytest.mark.parametrize(
    "begun",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nzz\r\n",
    ],
    ids=["length", "chunked", "nonsense"],
)
def test_an_answer_that_breaks_off_is_cut_off(server: ServerProcess, begun: bytes) -> None:
    errors = server.log().count("ERROR")
    with listening(answering(begun)) as upstream, server.client() as client, client.stream("GET", f"/proxy/{upstream.port}/") as response:
        got = b""
        with pytest.raises(httpx.RemoteProtocolError):  # noqa: PT012  # what came before counts
            for chunk in response.iter_raw():
                got += chunk
        assert got == b"abc"
    assert server.log().count("ERROR") == errors


@pytest.mark.parametrize("is_begun", [True, False])
def test_a_client_that_leaves_ends_the_applications_connection(server: ServerProcess, is_begun: bool) -> None:
    begun, ended = threading.Event(), threading.Event()

    def converse(connection: socket.socket, head: bytes) -> None:
        if is_begun:
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n")
        begun.set()
        assert connection.recv(1) == b""
        ended.set()

    with listening(converse) as upstream:
        with connect(server.url) as connection:
            connection.sendall(f"GET /proxy/{upstream.port}/ HTTP/1.1\r\n{AUTHORIZED}\r\n".encode())
            assert begun.wait(10)
            if is_begun:
                assert first_line(read_head(connection)) == b"HTTP/1.1 200 OK"
        assert ended.wait(2)


def test_an_upload_that_its_client_gives_up_is_given_up(server: ServerProcess) -> None:
    begun, ended = threading.Event(), threading.Event()

    def converse(connection: socket.socket, head: bytes) -> None:
        assert read_exactly(connection, 3) == b"abc"
        begun.set()
        with contextlib.suppress(ConnectionResetError):
            assert connection.recv(1) == b""
        ended.set()

    with listening(converse) as upstream:
        with connect(server.url) as connection:
            connection.sendall(f"POST /proxy/{upstream.port}/ HTTP/1.1\r\n{AUTHORIZED}Content-Length: 10\r\n\r\nabc".encode())
            assert begun.wait(10)
        assert ended.wait(2)


def test_what_is_under_way_is_bounded(tmp_path: Path) -> None:
    release = threading.Event()
    begun = threading.Semaphore(0)

    def converse(connection: socket.socket, head: bytes) -> None:
        begun.release()
        assert release.wait(30)
        connection.sendall(OK)

    with serving(tmp_path) as server, listening(converse) as upstream:
        connections = [connect(server.url) for _ in range(MAX_OPEN)]
        try:
            for connection in connections:
                connection.sendall(f"GET /proxy/{upstream.port}/ HTTP/1.1\r\n{AUTHORIZED}\r\n".encode())
            for _ in connections:
                assert begun.acquire(timeout=20)
            refused = server.get(f"/proxy/{upstream.port}/")
            assert (refused.status_code, refused.json()["error"]["code"]) == (429, "TOO_MANY_REQUESTS")
            assert refused.headers["retry-after"]
            assert server.get("/health").json()["status"] == "healthy"
            release.set()
            for connection in connections:
                assert first_line(read_head(connection)) == b"HTTP/1.1 200 OK"
        finally:
            for connection in connections:
                connection.close()
        assert server.get(f"/proxy/{upstream.port}/").status_code == 200
