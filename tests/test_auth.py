"""Who may ask: the token in its forms, the cookie, and without authentication the Host and Origin of a request."""

import hashlib
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from agent_server.app import endpoints
from agent_server.guard import COOKIE, COOKIE_SECONDS, login_cookie
from tests.rawhttp import exchange
from tests.serving import TOKEN, ServerProcess, serving

BEARER = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with serving(ALLOWED_ORIGINS="https://console.example, http://localhost:5173") as running:
        yield running


def ask(server: ServerProcess, path: str = "/status", method: str = "GET", **headers: str) -> httpx.Response:
    """Asks with these headers alone."""
    return httpx.request(method, server.url + path, headers={name.replace("_", "-"): value for name, value in headers.items()}, timeout=20)


# The token


@pytest.mark.parametrize("endpoint", endpoints(), ids=lambda e: f"{e.method} {e.path}")
def test_every_route_needs_the_token_but_health_and_login(server: ServerProcess, endpoint: object) -> None:
    method, path = endpoint.method, endpoint.path  # type: ignore[attr-defined]  # pytest's parameters have no types
    response = ask(server, path, method)
    if (method, path) in (("GET", "/health"), ("POST", "/login")):
        assert response.status_code != 401
        return
    assert response.status_code == 401
    assert response.json()["error"]["code"] == "UNAUTHORIZED"
    assert response.headers["www-authenticate"] == "Bearer"
    assert "Bearer" in response.json()["error"]["message"]


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "OPTIONS"])
def test_what_is_not_there_needs_the_token_too(server: ServerProcess, method: str) -> None:
    assert ask(server, "/nothing", method).status_code == 401
    assert ask(server, "/health/", method).status_code == 401


def test_health_says_only_its_status_to_strangers(server: ServerProcess) -> None:
    assert ask(server, "/health").json() == {"status": "healthy"}
    assert ask(server, "/health", Authorization="Bearer wrong").json() == {"status": "healthy"}
    assert ask(server, "/health", "HEAD").status_code == 200
    assert set(ask(server, "/health", **BEARER).json()) == {"status", "version", "instanceId", "agentType", "uptime_ms", "tasks"}


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": f"Bearer {TOKEN}"},
        {"Authorization": f"bearer {TOKEN}"},
        {"Authorization": f"BEARER  {TOKEN}"},
        {"X_API_Key": TOKEN},
        {"Authorization": "Basic abc", "X_API_Key": TOKEN},
    ],
    ids=str,
)
def test_the_token_is_taken_in_either_header(server: ServerProcess, headers: dict[str, str]) -> None:
    assert ask(server, **headers).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": ""},
        {"Authorization": "Bearer"},
        {"Authorization": f"Bearer {TOKEN}x"},
        {"Authorization": f"Bearer {TOKEN[:-1]}"},
        {"Authorization": f"Bearer {TOKEN.upper()}"},
        {"Authorization": f"Basic {TOKEN}"},
        {"Authorization": TOKEN},
        {"Authorization": f"Bearer{TOKEN}"},
        {"X_API_Key": ""},
        {"X_API_Key": "wrong"},
        {"X_API_Key": f"Bearer {TOKEN}"},
        {"X_Auth_Token": TOKEN},
        {"Cookie": f"{COOKIE}={TOKEN}"},
    ],
    ids=str,
)
def test_anything_else_is_refused(server: ServerProcess, headers: dict[str, str]) -> None:
    assert ask(server, **headers).status_code == 401


@pytest.mark.parametrize("name", ["token", "access_token", "api_key", "key", "X-API-Key", "Authorization"])
def test_a_token_in_the_query_is_refused(server: ServerProcess, name: str) -> None:
    assert ask(server, f"/status?{name}={TOKEN}").status_code == 401


def test_bytes_that_are_no_text_are_a_wrong_token(server: ServerProcess) -> None:
    with httpx.Client() as client:
        assert client.get(server.url + "/status", headers=[(b"Authorization", b"Bearer \xff\xfe\xc3")]).status_code == 401


def test_refusals_leave_one_line_a_minute(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        for number in range(30):
            ask(server, f"/secret%0Aplace{number}", Authorization="Bearer guessed-by-somebody")
        lines = [line["message"] for line in server.get("/logs?level=warning").json()["logs"]]
        assert lines == ["refused without a valid token: GET '/secret\\nplace0' from 127.0.0.1 (1 since the last such line)"]
        assert "guessed-by-somebody" not in server.log()


# The cookie


def login(server: ServerProcess, token: str = TOKEN) -> httpx.Response:
    return httpx.post(server.url + "/login", json={"token": token})


def test_login_gives_a_cookie_that_scripts_and_other_sites_cannot_use(server: ServerProcess) -> None:
    response = login(server)
    assert (response.status_code, response.json()) == (200, {"expiresIn": COOKIE_SECONDS})
    attributes = response.headers["set-cookie"].lower().split("; ")
    assert {"httponly", "samesite=strict", "path=/", f"max-age={COOKIE_SECONDS}"} <= set(attributes)
    assert TOKEN not in response.headers["set-cookie"]
    assert ask(server, Cookie=f"other=1; {COOKIE}={response.cookies[COOKIE]}").status_code == 200


@pytest.mark.parametrize("token", ["", "wrong", TOKEN + "x"])
def test_login_refuses_a_wrong_token(server: ServerProcess, token: str) -> None:
    response = login(server, token)
    assert response.status_code == 401
    assert response.json()["error"]["code"] == "UNAUTHORIZED"
    assert "set-cookie" not in response.headers


def test_a_cookie_that_was_changed_or_made_up_is_refused(server: ServerProcess) -> None:
    expires, _, proof = login(server).cookies[COOKIE].partition(".")
    later = str(int(expires) + 1000)
    for value in (
        f"{later}.{proof}",
        f"{expires}.{proof[:-1]}",
        f"{expires}.",
        f".{proof}",
        f"{expires}",
        f"-{expires}.{proof}",
        "",
        "²." + proof,
    ):
        cookie = f"{COOKIE}={value}".encode()
        assert httpx.get(server.url + "/status", headers=[(b"Cookie", cookie)]).status_code == 401, value


def test_a_cookie_ends(server: ServerProcess) -> None:
    digest = hashlib.sha256(TOKEN.encode()).digest()
    now = time.time()
    assert ask(server, Cookie=f"{COOKIE}={login_cookie(digest, now)}").status_code == 200
    assert ask(server, Cookie=f"{COOKIE}={login_cookie(digest, now - COOKIE_SECONDS - 1)}").status_code == 401


def test_a_cookie_survives_a_restart_but_not_another_token(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        cookie = f"{COOKIE}={login(server).cookies[COOKIE]}"
        server.stop()
        server.start()
        assert ask(server, Cookie=cookie).status_code == 200
        server.stop()
        server.start(AGENT_SERVER_TOKEN="another-token-of-some-length")
        assert ask(server, Cookie=cookie).status_code == 401


# Other origins


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://localhost:1", "https://console.example.evil.example", "file://"]
)
def test_pages_of_other_origins_are_refused_even_with_the_token(server: ServerProcess, origin: str) -> None:
    response = ask(server, Origin=origin, **BEARER)
    assert response.status_code == 403
    assert "ALLOWED_ORIGINS" in response.json()["error"]["message"]
    assert "access-control-allow-origin" not in response.headers
    assert ask(server, "/run", "OPTIONS", Origin=origin, Access_Control_Request_Method="POST").status_code == 403


def test_pages_of_the_server_itself_are_served(server: ServerProcess) -> None:
    assert ask(server, Origin=server.url, **BEARER).status_code == 200


def test_no_host_is_nobodys_own_origin(server: ServerProcess) -> None:
    lines = f"GET /status HTTP/1.0\r\nAuthorization: Bearer {TOKEN}\r\nOrigin: null\r\n\r\n"
    assert exchange(server.url, lines)[0].status == 403


@pytest.mark.parametrize("origin", ["https://console.example", "http://localhost:5173"])
def test_pages_of_allowed_origins_may_ask_and_see(server: ServerProcess, origin: str) -> None:
    preflight = ask(
        server, "/run", "OPTIONS", Origin=origin, Access_Control_Request_Method="POST", Access_Control_Request_Headers="authorization"
    )
    assert preflight.status_code == 204
    assert preflight.headers["access-control-allow-origin"] == origin
    assert "Authorization" in preflight.headers["access-control-allow-headers"]
    for response in (ask(server, Origin=origin, **BEARER), ask(server, "/nothing", Origin=origin, **BEARER), ask(server, Origin=origin)):
        assert response.headers["access-control-allow-origin"] == origin
        assert "X-Request-Id" in response.headers["access-control-expose-headers"]
        assert response.headers["vary"] == "Origin"
    assert ask(server, Origin=origin).status_code == 401


# Without authentication


@pytest.fixture(scope="module")
def unguarded() -> Iterator[ServerProcess]:
    with serving(AGENT_SERVER_TOKEN="", AGENT_SERVER_AUTH="none", ALLOWED_HOSTS="Agent.Internal, other:81", HOST="::") as running:
        yield running


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST:3000",
        "x.localhost",
        "127.0.0.1",
        "127.9.9.9:1",
        "[::1]",
        "[::1]:3000",
        "agent.internal",
        "AGENT.internal:9",
        "other:81",
    ],
)
def test_without_authentication_its_own_names_are_served(unguarded: ServerProcess, host: str) -> None:
    assert ask(unguarded, Host=host).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "10.0.0.1",
        "[2001:db8::1]",
        "other",
        "other:82",
        "[",
        "a@localhost",
    ],
)
def test_without_authentication_other_names_are_refused(unguarded: ServerProcess, host: str) -> None:
    for path in ("/status", "/health", "/run"):
        response = ask(unguarded, path, Host=host)
        assert response.status_code == 403
        assert "ALLOWED_HOSTS" in response.json()["error"]["message"]


def test_without_authentication_a_host_is_needed(unguarded: ServerProcess) -> None:
    assert exchange(unguarded.url, "GET /status HTTP/1.0\r\n\r\n")[0].status == 403


def test_without_authentication_other_origins_are_still_refused(unguarded: ServerProcess) -> None:
    assert ask(unguarded, Origin="https://evil.example").status_code == 403
    assert ask(unguarded, "/execute", "POST", Origin="https://evil.example").status_code == 403


def test_without_authentication_the_log_warns_once_and_any_login_holds(unguarded: ServerProcess) -> None:
    assert unguarded.log().count("AGENT_SERVER_AUTH=none") == 1
    assert login(unguarded, "any").status_code == 200
    assert set(ask(unguarded, "/health").json()) > {"status", "version"}


def test_its_own_address_is_served_without_authentication(unguarded: ServerProcess) -> None:
    address = own_address()
    if address is None:
        pytest.skip("this machine has no address but loopback")
    port = unguarded.url.rpartition(":")[2]
    assert httpx.get(f"http://{address}:{port}/status").status_code == 200


def own_address() -> str | None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:  # nothing is sent
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return None
        return str(probe.getsockname()[0])


# The token that is made at the first start


def test_the_first_start_makes_a_token_shows_it_once_and_keeps_its_hash(tmp_path: Path) -> None:
    with serving(tmp_path, AGENT_SERVER_TOKEN="") as server:
        shown = re.search(
            r"\n    (\S{40,})\n.*\n    (curl -H 'Authorization: Bearer (\S+)' http://localhost:\d+/status)\n", server.log(), re.S
        )
        assert shown is not None
        token = shown[1]
        assert shown[3] == token
        assert str(server.url.rpartition(":")[2]) in shown[2]
        assert ask(server, Authorization=f"Bearer {token}").status_code == 200
        assert ask(server, Authorization="Bearer x").status_code == 401
        assert token not in ask(server, "/logs?level=debug&lines=1000", Authorization=f"Bearer {token}").text
        assert token not in ask(server, Authorization=f"Bearer {token}").text
        stored = server.data / "token.sha256"
        assert stored.stat().st_mode & 0o777 == 0o600
        assert server.data.stat().st_mode & 0o777 == 0o700
        assert [path for path in server.data.rglob("*") if path.is_file() and token.encode() in path.read_bytes()] == []
        server.stop()
        before = server.log()
        server.start()
        assert token not in server.log()[len(before) :]
        assert ask(server, Authorization=f"Bearer {token}").status_code == 200


def test_nobody_else_can_read_the_data_directory_even_when_it_is_open(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir(mode=0o755)
    with serving(tmp_path) as server:
        server.execute("echo hi")
        server.get("/changes")
        modes = {path.name: path.stat().st_mode & 0o077 for path in server.data.iterdir()}
        assert {name for name, mode in modes.items() if mode} == set()
        assert {"events.db", "events.db-wal", "lock", "identity.json", "outputs", "shadow"} <= set(modes)
