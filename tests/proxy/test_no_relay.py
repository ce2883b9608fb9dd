"""The proxy leads to this machine's ports and to no other place."""

import json
from typing import Any

import httpx
import pytest

from agent_server.proxy.headers import PORTS_COOKIE
from tests.rawhttp import AUTHORIZED, exchange, exchange_raw
from tests.serving import TOKEN, ServerProcess
from tests.upstreams import answering, first_line, headers_of, listening


@pytest.mark.parametrize(
    "port",
    [
        *("0", "65536", "99999", "123456789012345678901234567890", "-1", "+80", "080", "0x50", "80.0", "1e3", "80;", "80\\", "x"),
        *("%38%30", "8%30", "80%20", "%2080", "٨٠", "８０", ".", "..", "%2e%2e"),
        *("80@evil.example", "80:80", "evil.example", "127.0.0.1:80", "localhost", "[::1]"),
    ],
)
def test_what_is_no_port_is_refused(server: ServerProcess, port: str) -> None:
    response, body = exchange_raw(server.url, f"GET /proxy/{port}/x HTTP/1.1\r\n{AUTHORIZED}\r\n")
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
        response, body = exchange_raw(server.url, f"GET /proxy/{shown}{rest} HTTP/1.1\r\n{AUTHORIZED}\r\n")
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
        response, body = exchange_raw(server.url, f"GET http://127.0.0.1:{other.port}/health HTTP/1.1\r\n{AUTHORIZED}\r\n")
        assert (response.status, json.loads(body)["status"]) == (200, "healthy")
        assert other.heads == []


def test_the_host_of_a_request_changes_nothing(server: ServerProcess, echo: Any) -> None:
    for target in (f"/proxy/{echo.port}/x", f"http://evil.example:1/proxy/{echo.port}/x"):
        response, body = exchange_raw(server.url, f"GET {target} HTTP/1.1\r\nHost: evil.example:2\r\nAuthorization: Bearer {TOKEN}\r\n\r\n")
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
