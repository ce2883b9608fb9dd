"""Bodies pass the proxy as they are, as they come, in flat memory."""

import hashlib
import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rawhttp import AUTHORIZED, answer, connect, exchange_raw
from tests.serving import TOKEN, ServerProcess
from tests.upstreams import OK, answering, first_line, headers_of, listening, read_exactly, read_head

CHUNK = 1 << 16


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        ("204 No Content", "Content-Length: 5\r\n"),
        ("304 Not Modified", 'Content-Length: 5000\r\nETag: "x"\r\n'),
        ("304 Not Modified", "Transfer-Encoding: chunked\r\n"),
        ("204 No Content", ""),
    ],
)
def test_an_answer_without_a_body_has_none_and_the_connection_goes_on(server: ServerProcess, status: str, headers: str) -> None:
    with listening(answering(f"HTTP/1.1 {status}\r\n{headers}\r\n".encode())) as upstream, connect(server.url) as connection:
        for _ in range(2):
            connection.sendall(f"GET /proxy/{upstream.port}/ HTTP/1.1\r\n{AUTHORIZED}\r\n".encode())
            response, body = answer(connection)
            assert (response.status, body) == (int(status[:3]), None)


def test_head_has_the_length_and_no_body(server: ServerProcess) -> None:
    with listening(answering(b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n")) as upstream, connect(server.url) as connection:
        for _ in range(2):
            connection.sendall(f"HEAD /proxy/{upstream.port}/ HTTP/1.1\r\n{AUTHORIZED}\r\n".encode())
            response, _ = answer(connection, "HEAD")
            assert (response.status, response.getheader("content-length")) == (200, "5000")


def test_early_hints_are_passed_over(server: ServerProcess) -> None:
    hints = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n"
    with listening(answering(hints + OK)) as upstream:
        assert server.get(f"/proxy/{upstream.port}/").text == "ok"


def test_a_range_is_answered_as_the_application_does(server: ServerProcess) -> None:
    response = b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 2-3/9\r\nContent-Length: 2\r\n\r\ncd"
    with listening(answering(response)) as upstream:
        got = server.get(f"/proxy/{upstream.port}/", Range="bytes=2-3")
        assert (got.status_code, got.text, got.headers["content-range"]) == (206, "cd", "bytes 2-3/9")
        assert headers_of(upstream.heads[0])["range"] == "bytes=2-3"


def test_bodies_are_passed_as_they_are_also_compressed_and_with_a_secret(server: ServerProcess) -> None:
    body = b"\x1f\x8b not really gzip \x00\xff " + TOKEN.encode()
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(body)
    with listening(answering(head + body)) as upstream:
        response, got = exchange_raw(server.url, f"GET /proxy/{upstream.port}/ HTTP/1.1\r\n{AUTHORIZED}Accept-Encoding: br\r\n\r\n")
        assert (got, response.getheader("content-encoding")) == (body, "gzip")
        assert headers_of(upstream.heads[0])["accept-encoding"] == "br"


@pytest.mark.parametrize("end", ["chunked", "closed"])
def test_an_answer_of_unknown_length_comes_as_it_is_made(server: ServerProcess, end: str) -> None:
    go = threading.Event()

    def converse(connection: socket.socket, head: bytes) -> None:
        framing = b"Transfer-Encoding: chunked\r\n" if end == "chunked" else b""
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n" + framing + b"\r\n")
        for number in range(3):
            data = b"data: %d\n\n" % number
            connection.sendall(b"%x\r\n%b\r\n" % (len(data), data) if framing else data)
            assert go.wait(10)  # the reader has it
            go.clear()
        connection.sendall(b"0\r\nX-Trailer: 1\r\n\r\n" if framing else b"")

    with listening(converse) as upstream, server.client() as client, client.stream("GET", f"/proxy/{upstream.port}/") as response:
        got = []
        for chunk in response.iter_raw():
            got.append(chunk)
            go.set()
        assert got == [b"data: 0\n\n", b"data: 1\n\n", b"data: 2\n\n"]


@pytest.mark.parametrize("is_chunked", [True, False])
def test_an_upload_arrives_while_it_is_made(server: ServerProcess, is_chunked: bool) -> None:
    arrived: list[bytes] = []
    seen = threading.Semaphore(0)

    def converse(connection: socket.socket, head: bytes) -> None:
        while sum(map(len, arrived)) < (24 if is_chunked else 9):
            arrived.append(connection.recv(100))
            seen.release()
        connection.sendall(OK)

    def body() -> Iterator[bytes]:
        for _ in range(3):
            yield b"abc"
            assert seen.acquire(timeout=10)

    with listening(converse) as upstream, server.client() as client:
        headers = {} if is_chunked else {"Content-Length": "9"}
        assert client.post(f"/proxy/{upstream.port}/", content=body(), headers=headers).text == "ok"
        assert b"".join(arrived).replace(b"3\r\n", b"").replace(b"\r\n", b"").removesuffix(b"0") == b"abcabcabc"
        framing = {"transfer-encoding": "chunked"} if is_chunked else {"content-length": "9"}
        assert framing.items() <= headers_of(upstream.heads[0]).items()


def peak(server: ServerProcess) -> int:
    """The most memory the server has had, in bytes."""
    assert server.process is not None
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{server.process.pid}/status").read_text())
    assert found is not None
    return int(found[1]) << 10


def test_hundreds_of_megabytes_go_up_and_down_at_once_in_flat_memory(server: ServerProcess) -> None:
    block = bytes(range(256)) * 4096  # 1 MiB
    count = 200

    def converse(connection: socket.socket, head: bytes) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (count << 20))
        while data := connection.recv(1 << 20):
            connection.sendall(data)  # sends back while it reads

    with listening(converse) as upstream, connect(server.url) as connection:
        before = peak(server)
        connection.sendall(f"PUT /proxy/{upstream.port}/ HTTP/1.1\r\n{AUTHORIZED}Content-Length: {count << 20}\r\n\r\n".encode())

        def upload() -> None:
            for _ in range(count):
                connection.sendall(block)

        thread = threading.Thread(target=upload)
        thread.start()
        assert first_line(read_head(connection)) == b"HTTP/1.1 200 OK"
        digest, received = hashlib.sha256(), 0
        while received < count << 20:
            data = connection.recv(1 << 20)
            assert data
            digest.update(data)
            received += len(data)
        thread.join()
        assert digest.digest() == hashlib.sha256(block * count).digest()
        assert peak(server) - before < 24 << 20


def test_a_slow_reader_holds_the_application_back(server: ServerProcess) -> None:
    sent = [0]
    blocked = threading.Event()

    def converse(connection: socket.socket, head: bytes) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
        connection.settimeout(1)
        try:
            while True:
                sent[0] += connection.send(b"x" * CHUNK)
        except TimeoutError:
            blocked.set()

    with listening(converse) as upstream, connect(server.url) as connection:
        before = peak(server)
        connection.sendall(f"GET /proxy/{upstream.port}/ HTTP/1.1\r\n{AUTHORIZED}\r\n".encode())
        assert blocked.wait(20)
        assert sent[0] < 50 << 20  # what the kernel's buffers take
        assert peak(server) - before < 8 << 20


def test_an_answer_before_the_end_of_the_upload_is_passed_on(server: ServerProcess) -> None:
    refusal = b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nbig"
    with listening(answering(refusal)) as upstream, connect(server.url) as connection:
        connection.sendall(f"POST /proxy/{upstream.port}/ HTTP/1.1\r\n{AUTHORIZED}Content-Length: 100000000\r\n\r\nabc".encode())
        assert first_line(read_head(connection)).split()[1] == b"413"


def test_who_expects_a_continue_gets_one(server: ServerProcess) -> None:
    def converse(connection: socket.socket, head: bytes) -> None:
        assert read_exactly(connection, 5) == b"hello"
        connection.sendall(OK)

    with listening(converse) as upstream, connect(server.url) as connection:
        connection.sendall(
            f"POST /proxy/{upstream.port}/ HTTP/1.1\r\n{AUTHORIZED}Expect: 100-continue\r\nContent-Length: 5\r\n\r\n".encode()
        )
        assert first_line(read_head(connection)) == b"HTTP/1.1 100 Continue"
        connection.sendall(b"hello")
        assert first_line(read_head(connection)) == b"HTTP/1.1 200 OK"
        assert "expect" not in headers_of(upstream.heads[0])
