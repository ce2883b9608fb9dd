"""The error envelope: from every route, for whatever is wrong, and nothing internal in it."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from agent_server import errors
from agent_server.app import endpoints
from agent_server.http import Endpoint
from tests.rawhttp import AUTHORIZED, answer, connect, exchange
from tests.serving import TOKEN, ServerProcess, serving

MAX_BODY = 100_000

NO_OBJECTS = (
    *(b"{", b"[]", b"null", b'"text"', b"3", b"\xff\xfe", b'{"prompt": "\xff"}'),
    *(b"[" * 50_000, b'{"a":' * 10_000, b"{'a': 1}", b'{"a": NaN}'),
)


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with serving(MAX_BODY_BYTES=str(MAX_BODY), AGENT_SERVER_SECRET="a-secret-of-the-server") as running:
        yield running


def check(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """Checks the envelope and gives what is in it."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert list(response.json()) == ["error"]
    error: dict[str, Any] = response.json()["error"]
    assert list(error) == ["code", "message", "details", "requestId"]
    assert error["code"] == code
    assert error["message"].endswith((".", "…`."))
    assert error["requestId"] == response.headers["x-request-id"]
    return error


@pytest.mark.parametrize("path", ["/nothing", "/health/", "/run/x", "/tasks/a%2fb", "/%ff", "/tasks/"])
def test_an_unknown_path_is_not_found(server: ServerProcess, path: str) -> None:
    check(server.get(path), 404, "NOT_FOUND")


def test_a_doubled_slash_is_no_other_spelling_of_a_path(server: ServerProcess) -> None:
    assert exchange(server.url, f"GET //health HTTP/1.1\r\n{AUTHORIZED}\r\n")[0].status == 404


@pytest.mark.parametrize("path", ["/tasks/task_x", "/tasks/task_x/events", "/changes?taskId=task_x", "/tasks/%00"])
def test_an_unknown_task_has_its_own_code(server: ServerProcess, path: str) -> None:
    check(server.get(path), 404, "TASK_NOT_FOUND")


ENDPOINTS = [e for e in endpoints() if isinstance(e, Endpoint)]
WITH_OBJECTS = [e for e in ENDPOINTS if isinstance(e.body, type) and issubclass(e.body, msgspec.Struct)]


def required(endpoint: Endpoint) -> list[str]:
    assert isinstance(endpoint.body, type)
    assert issubclass(endpoint.body, msgspec.Struct)
    return [field.encode_name for field in msgspec.structs.fields(endpoint.body) if field.required]


@pytest.mark.parametrize("path", sorted({e.path for e in ENDPOINTS}))
def test_another_method_is_not_allowed_and_the_right_ones_are_named(server: ServerProcess, path: str) -> None:
    right = {e.method for e in ENDPOINTS if e.path == path}
    for method in {"PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND"} - right:
        with server.client() as client:
            response = client.request(method, path)
        check(response, 405, "METHOD_NOT_ALLOWED")
        assert right <= set(response.headers["allow"].split(", "))


@pytest.mark.parametrize("endpoint", WITH_OBJECTS, ids=lambda e: f"{e.method} {e.path}")
def test_what_is_no_json_object_is_refused_by_every_route(server: ServerProcess, endpoint: Endpoint) -> None:
    with server.client() as client:
        for body in NO_OBJECTS:
            error = check(client.request(endpoint.method, endpoint.path, content=body), 400, "INVALID_REQUEST")
            assert error["details"] == {"path": "$"}


@pytest.mark.parametrize("endpoint", [e for e in WITH_OBJECTS if required(e)], ids=lambda e: f"{e.method} {e.path}")
@pytest.mark.parametrize("body", [b"", b" \n", b"{}"])
def test_no_body_is_an_empty_object(server: ServerProcess, endpoint: Endpoint, body: bytes) -> None:
    with server.client() as client:
        error = check(client.request(endpoint.method, endpoint.path, content=body), 400, "INVALID_REQUEST")
    assert error["details"]["path"] in required(endpoint)
    assert error["message"] == f"{error['details']['path']} is required."


def test_a_body_whose_length_is_over_the_limit_is_refused_before_it_comes(server: ServerProcess) -> None:
    response, body = exchange(server.url, f"POST /run HTTP/1.1\r\n{AUTHORIZED}Content-Length: {MAX_BODY + 1}\r\n\r\n")
    assert (response.status, body["error"]["code"], body["error"]["details"]) == (413, "PAYLOAD_TOO_LARGE", {"limit": MAX_BODY})


def test_a_client_that_asks_first_is_not_told_to_go_on_with_too_much(server: ServerProcess) -> None:
    lines = f"POST /run HTTP/1.1\r\n{AUTHORIZED}Expect: 100-continue\r\nContent-Length: {10**18}\r\n\r\n"
    assert exchange(server.url, lines)[0].status == 413


def test_a_chunked_body_over_the_limit_is_refused_before_its_end(server: ServerProcess) -> None:
    with connect(server.url) as connection:
        connection.sendall(f"POST /run HTTP/1.1\r\n{AUTHORIZED}Transfer-Encoding: chunked\r\n\r\n".encode())
        connection.sendall(f"{MAX_BODY + 1:x}\r\n".encode() + b"a" * (MAX_BODY + 1))
        response, body = answer(connection)
    assert (response.status, body["error"]["code"]) == (413, "PAYLOAD_TOO_LARGE")


def test_a_body_of_the_limit_is_read(server: ServerProcess) -> None:
    with server.client() as client:
        response = client.post("/login", content=b'{"token": "x", "a": "' + b"a" * (MAX_BODY - 23) + b'"}')
    check(response, 401, "UNAUTHORIZED")


def test_a_request_after_a_refused_body_is_answered_on_the_same_connection(server: ServerProcess) -> None:
    body = b"a" * (MAX_BODY + 1)
    with connect(server.url) as connection:
        connection.sendall(f"POST /run HTTP/1.1\r\n{AUTHORIZED}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        assert answer(connection)[0].status == 413
        connection.sendall(f"GET /health HTTP/1.1\r\n{AUTHORIZED}\r\n".encode())
        assert answer(connection)[0].status == 200


@pytest.mark.parametrize(
    "request_",
    [
        "nonsense\r\n\r\n",
        "GET /health HTTP/1.1\r\n\r\n",
        f"POST /run HTTP/1.1\r\n{AUTHORIZED}Content-Length: -5\r\n\r\n",
        f"POST /run HTTP/1.1\r\n{AUTHORIZED}Content-Length: 1\r\nContent-Length: 2\r\n\r\n",
        f"GET /health HTTP/1.1\r\n{AUTHORIZED}Bad Name: 1\r\n\r\n",
        f"GET /health HTTP/1.1\r\n{AUTHORIZED}X: {'a' * 66_000}",
    ],
    ids=["no HTTP", "no Host", "negative length", "two lengths", "bad header", "endless header"],
)
def test_what_is_no_http_gets_the_envelope_too(server: ServerProcess, request_: str) -> None:
    before = server.log()
    response, body = exchange(server.url, request_)
    assert response.status == 400
    assert body["error"]["code"] == "INVALID_REQUEST"
    assert body["error"]["requestId"] == response.headers["X-Request-Id"]
    assert server.log() == before, "whoever reaches the port could fill the log"


@pytest.mark.parametrize("body", [b'{"command": "echo hi"}', b'{"command": "echo hi", "stdin": "\\r\\nupgrade: h2c\\r\\n"}'])
def test_an_offer_to_speak_http2_is_passed_over(server: ServerProcess, body: bytes) -> None:
    offer = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n"
    with connect(server.url) as connection:
        connection.sendall(f"POST /execute HTTP/1.1\r\n{AUTHORIZED}{offer}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        response, reply = answer(connection)
    assert (response.status, reply["stdout"]) == (200, "hi\n")


def test_a_body_that_looks_like_such_an_offer_comes_as_it_is(server: ServerProcess) -> None:
    text = "x\r\nUpgrade: h2c\r\n\r\ny"
    body = json.dumps({"command": "true", text: 1}).replace("\\r\\n", "\r\n").encode()
    with connect(server.url) as connection:
        connection.sendall(f"POST /execute HTTP/1.1\r\n{AUTHORIZED}Content-Length: {len(body)}\r\n\r\n".encode())
        connection.sendall(body)
        assert answer(connection)[0].status == 400  # line breaks in a JSON string; had it been changed, its length would not fit
        connection.sendall(f"GET /health HTTP/1.1\r\n{AUTHORIZED}\r\n".encode())
        assert answer(connection)[0].status == 200


def test_a_body_that_breaks_off_harms_nothing(server: ServerProcess) -> None:
    before = server.log()
    with connect(server.url) as connection:
        connection.sendall(f"POST /run HTTP/1.1\r\n{AUTHORIZED}Content-Length: 500\r\n\r\n{{".encode())
    with connect(server.url) as connection:
        connection.sendall(f"POST /run HTTP/1.1\r\n{AUTHORIZED}Transfer-Encoding: chunked\r\n\r\n5\r\nab".encode())
    assert server.get("/health").status_code == 200
    assert server.get("/tasks").json()["tasks"] == []
    assert server.log() == before


@pytest.mark.parametrize("given", ["abc", "A-b_c.1", "x" * 64])
def test_a_request_keeps_the_id_its_client_gave(server: ServerProcess, given: str) -> None:
    response = server.get("/nothing", **{"X-Request-Id": given})
    assert response.headers["x-request-id"] == given
    check(response, 404, "NOT_FOUND")


@pytest.mark.parametrize("given", ["", "a b", "x" * 65, "a;b", '"', "a\tb"])
def test_an_id_that_is_not_sane_is_replaced(server: ServerProcess, given: str) -> None:
    response = server.get("/nothing", **{"X-Request-Id": given})
    assert response.headers["x-request-id"].startswith("req_")
    check(response, 404, "NOT_FOUND")


@pytest.mark.parametrize(
    "path", ["/health", "/status", "/", "/tasks", "/logs", "/changes", "/events", "/openapi.json", "/logs?follow=true"]
)
def test_head_answers_like_get_without_a_body(server: ServerProcess, path: str) -> None:
    response, body = exchange(server.url, f"HEAD {path} HTTP/1.1\r\n{AUTHORIZED}Connection: close\r\n\r\n")
    assert response.status == 200
    assert body is None


def test_a_fault_of_the_server_says_nothing_of_its_cause(server: ServerProcess) -> None:
    assert server.get("/changes").status_code == 200
    (server.data / "shadow" / "refs" / "checkpoints" / "broken").mkdir()
    response = server.get("/changes?since=broken", **{"X-Request-Id": "find-me"})
    error = check(response, 500, "INTERNAL")
    assert error["details"] == {}
    assert str(server.data) not in response.text
    assert "directory" not in response.text
    assert "GET /changes failed, request find-me" in server.log()
    assert "IsADirectoryError" in server.log()
    told = [line for line in server.get("/logs?level=error").json()["logs"] if "find-me" in line["message"]]
    assert len(told) == 1


def test_what_git_says_names_no_file_of_the_server(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        assert server.get("/changes").status_code == 200
        shutil.rmtree(server.data / "shadow" / "objects")
        (server.data / "shadow" / "objects").write_text("")
        response = server.get("/changes")
        assert response.status_code == 500
        assert str(server.data) not in response.text
        assert str(server.data) not in server.get("/logs?level=debug").text


def test_a_secret_of_the_server_is_masked_in_errors(server: ServerProcess) -> None:
    response = server.get("/tasks/a-secret-of-the-server")
    assert "a-secret-of-the-server" not in response.text
    assert "***REDACTED***" in response.json()["error"]["message"]
    assert TOKEN not in server.get("/tasks/" + TOKEN).text


def test_every_error_class_has_the_code_and_status_of_the_contract() -> None:
    found = {(kind.status, kind.code) for kind in errors.AgentServerError.__subclasses__() if kind.__module__ == errors.__name__}
    assert found == {
        (400, "INVALID_REQUEST"),
        (401, "UNAUTHORIZED"),
        (403, "FORBIDDEN"),
        (404, "NOT_FOUND"),
        (409, "CONFLICT"),
        (413, "PAYLOAD_TOO_LARGE"),
        (422, "RESOURCE_LIMIT_EXCEEDED"),
        (429, "TOO_MANY_REQUESTS"),
        (501, "CONTROL_PLANE_ONLY"),
        (502, "UPSTREAM_ERROR"),
        (503, "DRAINING"),
        (504, "TASK_TIMEOUT"),
    }
