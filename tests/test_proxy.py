"""/proxy/{port}/…: HTTP passed on as it came, both ways, to this machine's loopback alone."""

import contextlib
import hashlib
import json
import re
import socket
import threading
from collections.abc import Iterator
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_server.guard import COOKIE
from agent_server.proxy.headers import PORTS_COOKIE, location
from agent_server.proxy.proxy import MAX_OPEN
from agent_server.proxy.target import Target
from tests.rawhttp import AUTHORIZED, answer, connect, exchange
from tests.serving import TOKEN, ServerProcess, serving
from tests.upstreams import OK, answering, first_line, headers_of, listening, read_exactly, read_head

CHUNK = 1 << 16


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with serving() as running:
        yield running


@pytest.fixture(scope="module")
def echo() -> Iterator[Any]:
    with listening(answering()) as upstream:
        yield upstream


def cookie_of(server: ServerProcess) -> str:
    response = httpx.post(server.url + "/login", json={"token": TOKEN})
    return f"{COOKIE}={response.cookies[COOKIE]}"


# What is asked


@pytest.mark.parametrize(
    "target",
    [
        "/",
        "/?",
        "/a/b/",
        "/a//b",
        "/a%2Fb%2fc",
        "/%E4%BD%A0?q=%20+a&&=&q=1%00",
        "/../../health",
        "/./a/../b/.",
        "/~user;v=1,2/@x:y!$&'()*+=-._",
        "/a?b?c=/d//e&http://x/",
        "/proxy/80/",
        '/"<>\\^`{|}',
        "//evil.example/x",
        "/http://evil.example/",
    ],
)
def test_path_and_query_arrive_byte_for_byte(server: ServerProcess, echo: Any, target: str) -> None:
    response, _ = exchange_raw(server, f"GET /proxy/{echo.port}{target} HTTP/1.1\r\n{AUTHORIZED}\r\n")
    assert response.status == 200
    assert first_line(echo.heads[-1]) == f"GET {target.removesuffix('?') if target == '/?' else target} HTTP/1.1".encode()


def exchange_raw(server: ServerProcess, request: str) -> tuple[HTTPResponse, bytes]:
    """Sends these lines and gives the response, and its body."""
    with connect(server.url) as connection:
        connection.sendall(request.encode())
        response = HTTPResponse(connection, method=request.partition(" ")[0])
        response.begin()
        return response, response.read()


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND", "REPORT"])
def test_any_method_is_passed_on(server: ServerProcess, echo: Any, method: str) -> None:
    with server.client() as client:
        response = client.request(method, f"/proxy/{echo.port}/x")
    assert (response.status_code, response.text) == (200, "" if method == "HEAD" else "ok")
    assert response.headers["content-length"] == "2"
    assert first_line(echo.heads[-1]) == f"{method} /x HTTP/1.1".encode()


def test_without_the_last_slash_it_leads_there(server: ServerProcess, echo: Any) -> None:
    with server.client() as client:
        response = client.get(f"/proxy/{echo.port}?a=%20b")
        assert (response.status_code, response.headers["location"]) == (307, f"{echo.port}/?a=%20b")
        assert client.get(f"/proxy/{echo.port}?a=%20b", follow_redirects=True).text == "ok"
    assert first_line(echo.heads[-1]) == b"GET /?a=%20b HTTP/1.1"


# Headers


def test_the_application_sees_itself_asked_on_localhost_and_by_whom(server: ServerProcess, echo: Any) -> None:
    server.get(f"/proxy/{echo.port}/")
    seen = headers_of(echo.heads[-1])
    assert seen["host"] == f"localhost:{echo.port}"
    assert seen["x-forwarded-for"] == "127.0.0.1"
    assert seen["x-forwarded-host"] == server.url.removeprefix("http://")
    assert seen["x-forwarded-proto"] == "http"
    assert seen["x-forwarded-prefix"] == f"/proxy/{echo.port}"


def test_what_a_proxy_in_front_says_is_kept_and_added_to(server: ServerProcess, echo: Any) -> None:
    front = {"X-Forwarded-For": "10.0.0.1, 10.0.0.2", "X-Forwarded-Host": "app.example", "X-Forwarded-Proto": "https"}
    response = server.get(f"/proxy/{echo.port}/", **front, **{"X-Forwarded-Prefix": "/instances/a/", "X-Request-Id": "mine"})
    seen = headers_of(echo.heads[-1])
    assert seen["x-forwarded-for"] == "10.0.0.1, 10.0.0.2, 127.0.0.1"
    assert (seen["x-forwarded-host"], seen["x-forwarded-proto"]) == ("app.example", "https")
    assert seen["x-forwarded-prefix"] == f"/instances/a/proxy/{echo.port}"
    assert seen["x-request-id"] == "mine" == response.headers["x-request-id"]


def test_the_servers_own_credentials_stay_here(server: ServerProcess, echo: Any) -> None:
    login = cookie_of(server)
    for headers in (
        {"Authorization": f"Bearer {TOKEN}"},
        {"Authorization": f"bearer  {TOKEN}"},
        {"X-API-Key": TOKEN},
        {"X-API-Key": TOKEN, "Authorization": f"Bearer {TOKEN}"},
        {"Cookie": login},
        {"Cookie": f"{login}; {PORTS_COOKIE}=5173"},
        {"Cookie": f"a=1 {login}"},
        {"Cookie": login.replace("=", " = ")},
    ):
        assert httpx.get(f"{server.url}/proxy/{echo.port}/", headers=headers).status_code == 200
        head = echo.heads[-1].decode()
        assert TOKEN not in head
        assert login not in head
        assert not {"authorization", "x-api-key", "cookie"} & headers_of(echo.heads[-1]).keys()


def test_the_applications_own_credentials_pass(server: ServerProcess, echo: Any) -> None:
    login = cookie_of(server)
    headers = {"Authorization": "Bearer of-the-app", "X-API-Key": "of-the-app", "Cookie": f'a="1"; {login};b=2=3 ; {COOKIE}x=y'}
    assert httpx.get(f"{server.url}/proxy/{echo.port}/", headers=headers).status_code == 200
    seen = headers_of(echo.heads[-1])
    assert (seen["authorization"], seen["x-api-key"]) == ("Bearer of-the-app", "of-the-app")
    assert seen["cookie"] == f'a="1";b=2=3 ; {COOKIE}x=y'
    server.get(f"/proxy/{echo.port}/", **{"X-API-Key": "of-the-app", "Cookie": "a=1; b=2"})
    assert (headers_of(echo.heads[-1])["x-api-key"], headers_of(echo.heads[-1])["cookie"]) == ("of-the-app", "a=1; b=2")


def test_headers_of_one_connection_are_dropped_both_ways(server: ServerProcess) -> None:
    response = (
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: X-Hop, close\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\nUpgrade: h2c\r\n"
        b"Proxy-Authenticate: Basic\r\nX-End: 1\r\n\r\nok"
    )
    with listening(answering(response)) as upstream:
        asked = (
            "Connection: keep-alive, X-Mine\r\nX-Mine: 1\r\nKeep-Alive: 5\r\nTE: trailers\r\nProxy-Authorization: Basic x\r\nX-Kept: 1\r\n"
        )
        got, body = exchange_raw(server, f"GET /proxy/{upstream.port}/ HTTP/1.1\r\n{AUTHORIZED}{asked}\r\n")
        seen = headers_of(upstream.heads[-1])
    assert (got.status, body) == (200, b"ok")
    assert not {"x-hop", "keep-alive", "upgrade", "proxy-authenticate", "connection"} & {name.lower() for name, _ in got.getheaders()}
    assert got.getheader("x-end") == "1"
    assert not {"x-mine", "keep-alive", "te", "proxy-authorization"} & seen.keys()
    assert (seen["connection"], seen["x-kept"]) == ("close", "1")


def test_a_length_that_connection_names_is_still_the_bodys(server: ServerProcess) -> None:
    def converse(connection: socket.socket, head: bytes) -> None:
        assert read_exactly(connection, 5) == b"hello"
        connection.sendall(OK)

    with listening(converse) as upstream:
        request = f"POST /proxy/{upstream.port}/ HTTP/1.1\r\n{AUTHORIZED}Connection: content-length\r\nContent-Length: 5\r\n\r\nhello"
        assert exchange_raw(server, request)[1] == b"ok"


def test_cookies_pass_but_none_under_our_names_and_nothing_for_the_whole_origin(server: ServerProcess) -> None:
    response = (
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nSet-Cookie: a=1; Path=/\r\nSet-Cookie: b=2\r\n"
        + f"Set-Cookie: {COOKIE}=stolen; Path=/\r\nset-cookie:  {PORTS_COOKIE} =1\r\n".encode()
        + b'Clear-Site-Data: "*"\r\nService-Worker-Allowed: /\r\nAlt-Svc: h3=":1"\r\nStrict-Transport-Security: max-age=9\r\n'
        + b"Date: then\r\nX-Request-Id: theirs\r\nServer: theirs\r\n\r\nok"
    )
    with listening(answering(response)) as upstream:
        got = server.get(f"/proxy/{upstream.port}/")
    assert got.headers.get_list("set-cookie") == ["a=1; Path=/", "b=2"]
    assert not {"clear-site-data", "service-worker-allowed", "alt-svc", "strict-transport-security"} & got.headers.keys()
    assert len(got.headers.get_list("date")) == len(got.headers.get_list("x-request-id")) == 1
    assert got.headers["server"] == "theirs"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("http://localhost:{port}/login?next=%2F", "/proxy/{port}/login?next=%2F"),
        ("http://127.0.0.1:{port}", "/proxy/{port}/"),
        ("http://[::1]:{port}/a", "/proxy/{port}/a"),
        ("//localhost:{port}/a", "/proxy/{port}/a"),
        ("/login", "/proxy/{port}/login"),
        ("/", "/proxy/{port}/"),
        ("/proxy/{port}/a", "/proxy/{port}/a"),
        ("/proxy/{port}", "/proxy/{port}"),
        ("/proxy/{port}0/a", "/proxy/{port}/proxy/{port}0/a"),
        ("http://{own}/login", "/proxy/{port}/login"),
        ("http://{own}/proxy/{port}/login", "/proxy/{port}/login"),
        ("next/page?x", "next/page?x"),
        ("?x", "?x"),
        ("../up", "../up"),
        ("https://example.com/a", "https://example.com/a"),
        ("http://localhost:1/a", "http://localhost:1/a"),
        ("https://localhost:{port}/a", "https://localhost:{port}/a"),
        ("//example.com/a", "//example.com/a"),
        ("http://localhost:{port}//example.com", "/proxy/{port}//example.com"),
        ("http://[broken/", "http://[broken/"),
        ("mailto:a@example.com", "mailto:a@example.com"),
    ],
)
def test_a_redirect_leads_where_the_client_gets_to(server: ServerProcess, given: str, expected: str) -> None:
    host = server.url.removeprefix("http://")

    def converse(connection: socket.socket, head: bytes) -> None:
        place = given.format(port=upstream.port, own=host)
        connection.sendall(f"HTTP/1.1 302 Found\r\nLocation: {place}\r\nContent-Length: 0\r\n\r\n".encode())

    with listening(converse) as upstream:
        got, _ = exchange_raw(server, f"GET /proxy/{upstream.port}/from HTTP/1.1\r\n{AUTHORIZED.replace('localhost', host)}\r\n")
        assert got.status == 302
        assert got.getheader("location") == expected.format(port=upstream.port)


@given(st.text(st.characters(min_codepoint=0x20, max_codepoint=0xFF), max_size=40), st.booleans())
@settings(deadline=None)
def test_no_place_makes_a_redirect_fail_or_changes_its_meaning_elsewhere(text: str, is_whole: bool) -> None:
    scope = {"headers": [(b"host", b"here:3000")]}
    target = Target(5173, b"/", b"")
    given = text.encode("latin-1")
    found = location(given, scope, target, is_whole=is_whole)
    assert found == given or found.startswith(b"/proxy/5173") or (is_whole and found.startswith(b"/") and not found.startswith(b"//"))


# Bodies


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
        response, got = exchange_raw(server, f"GET /proxy/{upstream.port}/ HTTP/1.1\r\n{AUTHORIZED}Accept-Encoding: br\r\n\r\n")
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


# Ends


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


# No other place


@pytest.mark.parametrize(
    "port",
    [
        *("0", "65536", "99999", "123456789012345678901234567890", "-1", "+80", "080", "0x50", "80.0", "1e3", "80;", "80\\", "x"),
        *("%38%30", "8%30", "80%20", "%2080", "٨٠", "８０", ".", "..", "%2e%2e"),
        *("80@evil.example", "80:80", "evil.example", "127.0.0.1:80", "localhost", "[::1]"),
    ],
)
def test_what_is_no_port_is_refused(server: ServerProcess, port: str) -> None:
    response, body = exchange_raw(server, f"GET /proxy/{port}/x HTTP/1.1\r\n{AUTHORIZED}\r\n")
    assert response.status == 400, body
    assert json.loads(body)["error"]["code"] == "INVALID_REQUEST"


@pytest.mark.parametrize(
    "form", ["{p}", "0{p}", "+{p}", "%3{first}{rest}", "{p}%20", " {p}", "{arabic}", "{wide}", "{p}.0", "{p}%2F", "{hex}"]
)
def test_the_own_port_is_never_proxied(server: ServerProcess, form: str) -> None:
    own = server.url.rpartition(":")[2]
    server.post("/open-ports", {"ports": [int(own)]})
    shown = form.format(
        p=own,
        first=own[0],
        rest=own[1:],
        arabic="".join("%D9%" + f"{0xA0 + int(digit):02X}" for digit in own),
        wide="".join("%EF%BC%" + f"{0x90 + int(digit):02X}" for digit in own),
        hex=hex(int(own)),
    )
    for rest in ("/", "/health", "", "//health"):
        response, body = exchange_raw(server, f"GET /proxy/{shown}{rest} HTTP/1.1\r\n{AUTHORIZED}\r\n")
        assert response.status in (400, 403, 404), body
        assert json.loads(body)["error"]["code"] in ("INVALID_REQUEST", "FORBIDDEN", "NOT_FOUND")
    assert form != "{p}" or response.status == 403


@pytest.mark.parametrize(
    "line",
    [
        "GET http://127.0.0.1:{other}/ports/x HTTP/1.1",
        "GET http://evil.example/proxy/%39/ HTTP/1.1",
        "GET //127.0.0.1:{other}/ HTTP/1.1",
        "GET /proxy//127.0.0.1:{other}/ HTTP/1.1",
        "GET /proxy/%2F%2F127.0.0.1/ HTTP/1.1",
        "GET /%70roxy/{other}/ HTTP/1.1",
        "GET /proxy%2F{other}/ HTTP/1.1",
        "GET /proxy/{other}%2Fx HTTP/1.1",
        "GET /x/../proxy/{other}/ HTTP/1.1",
        "GET /PROXY/{other}/ HTTP/1.1",
        "GET proxy/{other}/ HTTP/1.1",
        "CONNECT 127.0.0.1:{other} HTTP/1.1",
        "CONNECT /proxy/{other}/ HTTP/1.1",
    ],
)
def test_no_form_of_a_request_goes_anywhere_else(server: ServerProcess, line: str) -> None:
    with listening(answering()) as other:
        for host in (f"127.0.0.1:{other.port}", "evil.example"):
            request = f"{line.format(other=other.port)}\r\nHost: {host}\r\nAuthorization: Bearer {TOKEN}\r\n\r\n"
            response, _ = exchange(server.url, request)
            assert 400 <= response.status < 500
        assert other.heads == []


def test_of_an_absolute_form_only_the_path_counts(server: ServerProcess) -> None:
    with listening(answering()) as other:
        response, body = exchange_raw(server, f"GET http://127.0.0.1:{other.port}/health HTTP/1.1\r\n{AUTHORIZED}\r\n")
        assert (response.status, json.loads(body)["status"]) == (200, "healthy")
        assert other.heads == []


def test_the_host_of_a_request_changes_nothing(server: ServerProcess, echo: Any) -> None:
    for target in (f"/proxy/{echo.port}/x", f"http://evil.example:1/proxy/{echo.port}/x"):
        response, body = exchange_raw(server, f"GET {target} HTTP/1.1\r\nHost: evil.example:2\r\nAuthorization: Bearer {TOKEN}\r\n\r\n")
        assert (response.status, body) == (200, b"ok")
        assert (first_line(echo.heads[-1]), headers_of(echo.heads[-1])["host"]) == (b"GET /x HTTP/1.1", f"localhost:{echo.port}")


def test_without_credentials_nothing_is_asked(server: ServerProcess) -> None:
    with listening(answering()) as upstream:
        page = f"{server.url}/proxy/{upstream.port}/"
        for path, headers in (("/", {}), ("/", {"Referer": page}), ("/", {"Cookie": f"{PORTS_COOKIE}={upstream.port}"})):
            assert httpx.get(f"{server.url}/proxy/{upstream.port}{path}", headers=headers).status_code == 401
        assert httpx.get(f"{server.url}/src/main.js", headers={"Referer": page}).status_code == 401
        assert server.get(f"/proxy/{upstream.port}/", Origin="https://evil.example").status_code == 403
        assert upstream.heads == []


# Applications that serve under the prefix, and pages that know nothing of it


def under_prefix(connection: socket.socket, head: bytes) -> None:
    """As Vite with a base: what is not under it is not there, but for the root, which leads there."""
    path = first_line(head).split(b" ")[1]
    base = b"/proxy/%d/" % connection.getsockname()[1]
    if path.startswith(base):
        body = path.removeprefix(base) or b"page"
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
    elif path == b"/":
        connection.sendall(b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: %b\r\n\r\n" % base)
    else:
        connection.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\nnone")


@pytest.mark.parametrize("first", ["", "deep/er.js"])
def test_an_application_that_serves_under_the_prefix_is_asked_for_the_whole_path(server: ServerProcess, first: str) -> None:
    with listening(under_prefix) as upstream:
        server.get("/ports")  # who listens is known then, and what is learned of it is kept
        assert server.get(f"/proxy/{upstream.port}/{first}").text == first or "page"
        asked = len(upstream.heads)
        assert asked == 2
        assert server.get(f"/proxy/{upstream.port}/a/b.js").text == "a/b.js"
        assert server.post(f"/proxy/{upstream.port}/c").text == "c"
        assert len(upstream.heads) == asked + 2
    with listening(answering(), port=upstream.port) as other:
        server.get("/ports")
        assert server.get(f"/proxy/{upstream.port}/x").text == "ok"
        assert first_line(other.heads[0]) == b"GET /x HTTP/1.1"


def test_an_application_at_its_root_is_never_asked_twice_once_it_has_answered(server: ServerProcess) -> None:
    def converse(connection: socket.socket, head: bytes) -> None:
        is_there = first_line(head) == b"GET / HTTP/1.1"
        connection.sendall(OK if is_there else b"HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\nnone")

    with listening(converse) as upstream:
        server.get("/ports")
        missing = server.get(f"/proxy/{upstream.port}/missing")
        assert (missing.status_code, missing.text) == (404, "none")
        assert [first_line(head).split()[1] for head in upstream.heads] == [b"/missing", b"/proxy/%d/missing" % upstream.port]
        assert server.get(f"/proxy/{upstream.port}/").status_code == 200
        del upstream.heads[:]
        assert server.get(f"/proxy/{upstream.port}/missing").status_code == 404
        assert server.post(f"/proxy/{upstream.port}/missing").status_code == 404
        assert len(upstream.heads) == 2


def test_a_post_is_never_sent_twice(server: ServerProcess) -> None:
    with listening(under_prefix) as upstream:
        assert server.post(f"/proxy/{upstream.port}/missing", {"a": 1}).status_code == 404
        assert len(upstream.heads) == 1


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_what_a_page_asks_for_without_the_prefix_is_sent_back_under_it(server: ServerProcess, method: str) -> None:
    with server.client() as client:
        for referer in ("/proxy/5173/", "/proxy/5173/a/b?c"):
            response = client.request(method, "/src/m%2Fain.js?t=%20", headers={"Referer": server.url + referer})
            assert (response.status_code, response.headers["location"]) == (307, "/proxy/5173/src/m%2Fain.js?t=%20")


def test_a_stray_path_that_looks_like_a_host_stays_a_path(server: ServerProcess) -> None:
    request = f"GET //evil.example/x HTTP/1.1\r\n{AUTHORIZED}Referer: http://localhost/proxy/5173/\r\n\r\n"
    assert exchange_raw(server, request)[0].getheader("location") == "/proxy/5173//evil.example/x"


@pytest.mark.parametrize(
    "referer",
    ["", "{url}/", "{url}/proxy/", "{url}/proxy/0/", "{url}/proxy/99999/", "{url}/proxy/5173", "{url}/x/proxy/5173/", "http://evil.example/proxy/5173/",
     "{url}.evil.example/proxy/5173/", "{url}@evil.example/proxy/5173/", "javascript:/proxy/5173/"],
)  # fmt: skip
def test_nothing_else_is(server: ServerProcess, referer: str) -> None:
    assert server.get("/src/main.js", Referer=referer.format(url=server.url)).status_code == 404


def test_our_own_routes_stay_ours(server: ServerProcess) -> None:
    assert server.get("/health", Referer=f"{server.url}/proxy/5173/").json()["status"] == "healthy"
    assert server.get("/run", Referer=f"{server.url}/proxy/5173/").status_code == 405


def test_pages_are_remembered_by_the_browser_the_last_first(server: ServerProcess) -> None:
    page = b"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\nContent-Length: 2\r\n\r\nok"
    with listening(answering(page)) as upstream:
        asked = {"Accept": "text/html,*/*"}
        response = server.get(f"/proxy/{upstream.port}/", **asked)
        assert response.headers["set-cookie"] == f"{PORTS_COOKIE}={upstream.port}; Path=/; HttpOnly; SameSite=Strict"
        several = server.get(f"/proxy/{upstream.port}/", **asked, Cookie=f"{PORTS_COOKIE}=1.{upstream.port}.2.3.4")
        assert several.headers["set-cookie"].startswith(f"{PORTS_COOKIE}={upstream.port}.1.2.3;")
        for cookie in (f"{upstream.port}", f"{upstream.port}.1.2"):
            assert "set-cookie" not in server.get(f"/proxy/{upstream.port}/", **asked, Cookie=f"{PORTS_COOKIE}={cookie}").headers
        assert "set-cookie" not in server.get(f"/proxy/{upstream.port}/", Accept="application/json").headers


def test_many_at_a_time_are_not_mixed_up(server: ServerProcess) -> None:
    def converse(connection: socket.socket, head: bytes) -> None:
        body = first_line(head).split(b" ")[1] * 1000
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body))
        for at in range(0, len(body), 700):
            connection.sendall(body[at : at + 700])

    failed: list[str] = []

    def ask(number: int) -> None:
        with server.client() as client:
            for part in range(5):
                path = f"/{number}/{part}"
                if client.get(f"/proxy/{upstream.port}{path}").text != path * 1000:
                    failed.append(path)

    with listening(converse) as upstream:
        threads = [threading.Thread(target=ask, args=(number,)) for number in range(10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failed == []
