"""What an application behind the proxy is asked, and what of the headers passes."""

import socket
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_server.guard import COOKIE
from agent_server.proxy.headers import PORTS_COOKIE, location
from agent_server.proxy.target import Target
from tests.rawhttp import AUTHORIZED, exchange_raw
from tests.serving import TOKEN, ServerProcess
from tests.upstreams import OK, answering, first_line, headers_of, listening, read_exactly


def cookie_of(server: ServerProcess) -> str:
    response = httpx.post(server.url + "/login", json={"token": TOKEN})
    return f"{COOKIE}={response.cookies[COOKIE]}"


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
    response, _ = exchange_raw(server.url, f"GET /proxy/{echo.port}{target} HTTP/1.1\r\n{AUTHORIZED}\r\n")
    assert response.status == 200
    assert first_line(echo.heads[-1]) == f"GET {target.removesuffix('?') if target == '/?' else target} HTTP/1.1".encode()


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
        got, body = exchange_raw(server.url, f"GET /proxy/{upstream.port}/ HTTP/1.1\r\n{AUTHORIZED}{asked}\r\n")
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
        assert exchange_raw(server.url, request)[1] == b"ok"


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
        got, _ = exchange_raw(server.url, f"GET /proxy/{upstream.port}/from HTTP/1.1\r\n{AUTHORIZED.replace('localhost', host)}\r\n")
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
