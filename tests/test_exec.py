"""POST /exec on a real server: AgentHub's form of running a program."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.serving import ServerProcess, serving


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with serving() as running:
        yield running


def run(server: ServerProcess, argv: Any, query: str = "") -> httpx.Response:
    with server.client() as client:
        return client.post(f"/exec{query}", content=argv if isinstance(argv, bytes) else json.dumps(argv))


def test_the_output_is_the_body_and_the_exit_code_a_header(server: ServerProcess) -> None:
    response = run(server, ["sh", "-c", "echo out; echo wörld >&2; pwd; exit 3"])
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/plain; charset=utf-8"
    assert response.text == f"out\nwörld\n{server.workspace.resolve()}\n"
    assert response.headers["x-exit-code"] == "3"
    assert "x-signal" not in response.headers
    shown = server.get(f"/processes/{response.headers['x-process-id']}").json()
    assert (shown["exitCode"], shown["background"]) == (3, False)


def test_there_is_no_shell_unless_it_is_the_program(server: ServerProcess) -> None:
    assert run(server, ["echo", "$HOME", "*", "a b"]).text == "$HOME * a b\n"
    assert run(server, ["true"]).text == ""


@pytest.mark.parametrize(("name", "code"), [("KILL", "137"), ("TERM", "143"), ("34", "162")])
def test_a_signal_is_never_a_success(server: ServerProcess, name: str, code: str) -> None:
    response = run(server, ["bash", "-c", f"echo begun; kill -{name} $$; sleep 5"])
    assert (response.text, response.headers["x-exit-code"]) == ("begun\n", code)
    assert response.headers["x-signal"] == f"SIG{'RTMIN' if name == '34' else name}"


def test_a_timeout_ends_it_and_is_named(server: ServerProcess) -> None:
    response = run(server, ["sh", "-c", "echo begun; sleep 60"], "?timeout=100")
    assert (response.text, response.headers["x-reason"], response.headers["x-signal"]) == ("begun\n", "timeout", "SIGTERM")


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ([], "$"),
        ({}, "$"),
        (b"", "$"),
        ("ls", "$"),
        (None, "$"),
        ({"command": ["ls"]}, "$"),
        ([1], "[0]"),
        (["ls", None], "[1]"),
        (["ls", ["-la"]], "[1]"),
        (["echo", "a\0b"], "$"),
        (b'["ls"', "$"),
        (b'["\xff"]', "$"),
        (b"[" * 100_000, "$"),
        (["no-such-program"], "command"),
        ([""], "command"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_what_cannot_be_run_is_a_clear_400(server: ServerProcess, body: Any, path: str) -> None:
    response = run(server, body)
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["code"], error["details"]) == ("INVALID_REQUEST", {"path": path})
    assert len(error["message"]) < 500


@pytest.mark.parametrize("query", ["?timeout=0", "?timeout=x", "?timeout=-5", "?timeout=99999999999"])
def test_a_timeout_out_of_range_is_refused(server: ServerProcess, query: str) -> None:
    assert run(server, ["true"], query).json()["error"]["details"] == {"path": "timeout"}
