"""Applications that serve under the proxy's prefix, and pages that know nothing of it."""

import socket
import threading

import pytest

from agent_server.proxy.headers import PORTS_COOKIE
from tests.rawhttp import AUTHORIZED, exchange_raw
from tests.serving import ServerProcess
from tests.upstreams import OK, answering, first_line, listening


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
    assert exchange_raw(server.url, request)[0].getheader("location") == "/proxy/5173//evil.example/x"


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
