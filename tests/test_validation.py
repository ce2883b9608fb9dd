"""Bodies and queries: what is accepted, what is refused, and whether the error names the field."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent_server.errors import InvalidRequest
from agent_server.routes.commands import ExecuteRequest
from agent_server.routes.tasks import ListQuery, RunRequest
from agent_server.validation import parse_body, parse_query
from tests.serving import ServerProcess, serving


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with serving(AGENT_PROVIDER="replay", AGENT_MODEL="demo") as running:
        yield running


RUN: list[tuple[dict[str, Any] | bytes, str]] = [
    ({"prompt": ""}, "prompt"),
    ({"prompt": " \n\t"}, "prompt"),
    ({"prompt": 3}, "prompt"),
    ({"prompt": None}, "prompt"),
    ({"prompt": []}, "prompt"),
    ({"prompt": [3]}, "prompt[0]"),
    ({"prompt": [{}]}, "prompt[0].type"),
    ({"prompt": [{"type": "sound"}]}, "prompt[0].type"),
    ({"prompt": [{"type": ["text"]}]}, "prompt[0].type"),
    ({"prompt": [{"type": "text"}]}, "prompt[0].text"),
    ({"prompt": [{"type": "text", "text": "a"}, {"type": "text", "text": 3}]}, "prompt[1].text"),
    ({"prompt": [{"type": "text", "text": " "}]}, "prompt[0].text"),
    ({"prompt": [{"type": "image", "data": "aGk="}]}, "prompt[0].mediaType"),
    ({"prompt": [{"type": "image", "data": "aGk=", "mediaType": "image/tiff"}]}, "prompt[0].mediaType"),
    ({"prompt": [{"type": "image", "data": "not base64!", "mediaType": "image/png"}]}, "prompt[0].data"),
    ({"prompt": [{"type": "image", "data": "data:image/png;base64,aGk=", "mediaType": "image/png"}]}, "prompt[0].data"),
    ({"prompt": [{"type": "image", "data": "", "mediaType": "image/png"}]}, "prompt[0].data"),
    ({"prompt": "x", "timeout": 0}, "timeout"),
    ({"prompt": "x", "timeout": -1}, "timeout"),
    ({"prompt": "x", "timeout": 1.5}, "timeout"),
    ({"prompt": "x", "timeout": "5"}, "timeout"),
    ({"prompt": "x", "timeout": 10**30}, "timeout"),
    ({"prompt": "x", "timeout": True}, "timeout"),
    ({"prompt": "x", "max_tokens": 0}, "max_tokens"),
    ({"prompt": "x", "maxTokens": "many"}, "max_tokens"),
    ({"prompt": "x", "maxSteps": 10_001}, "maxSteps"),
    ({"prompt": "x", "max_steps": 0}, "maxSteps"),
    ({"prompt": "x", "maxCost": 0}, "maxCost"),
    ({"prompt": "x", "maxCost": "1"}, "maxCost"),
    (b'{"prompt": "x", "maxCost": 1e999}', "$"),
    (b'{"prompt": "x", "maxCost": Infinity}', "$"),
    (b'{"prompt": "x", "prompt": 3}', "prompt"),
    ({"prompt": "x", "sessionId": "a b"}, "sessionId"),
    ({"prompt": "x", "session_id": "../x"}, "sessionId"),
    ({"prompt": "x", "sessionId": ""}, "sessionId"),
    ({"prompt": "x", "sessionId": "x" * 129}, "sessionId"),
    ({"prompt": "x", "sessionId": "x\n"}, "sessionId"),
    ({"prompt": "x", "model": ""}, "model"),
    ({"prompt": "x", "provider": 3}, "provider"),
    ({"prompt": "x", "system": ["a"]}, "system"),
    ({"prompt": "x", "autoTools": 1}, "autoTools"),
    ({"prompt": "x", "auto_tools": "no"}, "autoTools"),
    ({"prompt": "x", "async": "yes"}, "async"),
    ({"prompt": "x", "tools": {}}, "tools"),
    ({"prompt": "x", "tools": [3]}, "tools[0]"),
    ({"prompt": "x", "tools": [{}]}, "tools[0].name"),
    ({"prompt": "x", "tools": [{"name": "a b"}]}, "tools[0].name"),
    ({"prompt": "x", "tools": [{"name": "x" * 65}]}, "tools[0].name"),
    ({"prompt": "x", "tools": [{"name": "bash"}]}, "tools[0].name"),
    ({"prompt": "x", "tools": [{"name": "a"}, {"name": "a"}]}, "tools[1].name"),
    ({"prompt": "x", "tools": [{"name": "a"}] * 129}, "tools"),
    ({"prompt": "x", "tools": [{"name": "a", "url": "file:///etc/passwd"}]}, "tools[0].url"),
    ({"prompt": "x", "tools": [{"name": "a", "url": "http://"}]}, "tools[0].url"),
    ({"prompt": "x", "tools": [{"name": "a", "url": "http://a:b/"}]}, "tools[0].url"),
    ({"prompt": "x", "tools": [{"name": "a", "url": "http://a/\r\nX: 1"}]}, "tools[0].url"),
    ({"prompt": "x", "tools": [{"name": "a", "parameters": []}]}, "tools[0].parameters"),
    ({"prompt": "x", "tools": [{"name": "a", "parameters": {"type": "array"}}]}, "tools[0].parameters"),
    ({"prompt": "x", "tools": [{"name": "a", "parameters": {"properties": {"b": {"type": "text"}}}}]}, "tools[0].parameters"),
    ({"prompt": "x", "tools": [{"name": "a", "parameters": {"$ref": "http://127.0.0.1:1/x"}}]}, "tools[0].parameters"),
    ({"prompt": "x", "tools": [{"name": "a", "parameters": {"$ref": "file:///etc/passwd"}}]}, "tools[0].parameters"),
    ({"prompt": "x", "tools": [{"name": "a", "parameters": {"description": "x" * 70_000}}]}, "tools[0].parameters"),
    ({"prompt": "x", "tools": [{"mcp": {}}]}, "tools[0].mcp"),
    ({"prompt": "x", "tools": [{"mcp": {"command": "a", "url": "http://a"}}]}, "tools[0].mcp"),
    ({"prompt": "x", "tools": [{"mcp": {"command": "a", "name": "a b"}}]}, "tools[0].mcp.name"),
    ({"prompt": "x", "tools": [{"mcp": {"url": "ws://a"}}]}, "tools[0].mcp.url"),
    ({"prompt": "x", "tools": [{"mcp": {"url": "http://a", "type": "stdio"}}]}, "tools[0].mcp.type"),
    ({"prompt": "x", "tools": [{"mcp": {"command": "a", "type": "sse"}}]}, "tools[0].mcp.type"),
    ({"prompt": "x", "tools": [{"mcp": {"command": "a", "timeout": 0}}]}, "tools[0].mcp.timeout"),
    ({"prompt": "x", "tools": [{"mcp": {"url": "http://a", "headers": {"A": "b\nc"}}}]}, "tools[0].mcp.headers"),
    ({"prompt": "x", "tools": [{"mcp": {"command": "a", "env": {"A=B": "c"}}}]}, "tools[0].mcp"),
    ({"prompt": "x", "tools": [{"name": "a", "mcp": {"command": "a"}}]}, "tools[0]"),
    ({"prompt": "x", "outputSchema": 3}, "outputSchema"),
    ({"prompt": "x", "outputSchema": {"type": "nothing"}}, "outputSchema"),
    ({"prompt": "x", "output_schema": {"pattern": "("}}, "outputSchema"),
    ({"prompt": [{"type": "image", "data": "aGkh" * 1_800_000, "mediaType": "image/png"}]}, "prompt[0].data"),
]


@pytest.mark.parametrize(("body", "path"), RUN, ids=lambda value: str(value)[:60])
def test_a_wrong_run_is_refused_by_field(server: ServerProcess, body: dict[str, Any] | bytes, path: str) -> None:
    refused(server, "/run", body, path)
    assert server.get("/tasks?limit=1").json()["tasks"] == []


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({"command": ""}, "command"),
        ({"command": []}, "command"),
        ({"command": ["ls", 3]}, "command[1]"),
        ({"command": {"a": 1}}, "command"),
        ({"command": "a\0b"}, "command"),
        ({"command": ["a\0b"]}, "command"),
        ({"command": ["no-such-program"]}, "command"),
        ({"command": [""]}, "command"),
        ({"command": "true", "env": {"GOOD": "1", "BAD": 1}}, "env.BAD"),
        ({"command": "true", "env": {"A=B": "1"}}, "env"),
        ({"command": "true", "env": {"": "1"}}, "env"),
        ({"command": "true", "env": {"A": "a\0b"}}, "env"),
        ({"command": "true", "env": ["A=1"]}, "env"),
        ({"command": "true", "cwd": 3}, "cwd"),
        ({"command": "true", "cwd": "not-there"}, "cwd"),
        ({"command": "true", "cwd": "a\0b"}, "cwd"),
        ({"command": "true", "cwd": "x" * 5_000}, "cwd"),
        ({"command": "true", "stdin": 3}, "stdin"),
        ({"command": "true", "timeout": 24 * 3600 * 1000 + 1}, "timeout"),
        ({"command": "true", "timeout": 0}, "timeout"),
        ({"command": "true", "background": "yes"}, "background"),
        ({"command": "true", "pty": 1}, "pty"),
        ({"command": "true", "pty": {"cols": 0, "rows": 24}}, "pty.cols"),
        ({"command": "true", "pty": {"rows": 10_001}}, "pty.rows"),
        ({"command": "true", "pty": {"cols": 80, "rows": "x"}}, "pty.rows"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_a_wrong_command_is_refused_by_field(server: ServerProcess, body: dict[str, Any], path: str) -> None:
    refused(server, "/execute", body, path)


def refused(server: ServerProcess, route: str, body: dict[str, Any] | bytes, path: str) -> None:
    with server.client() as client:
        response = client.post(route, content=body if isinstance(body, bytes) else json.dumps(body))
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["details"]["path"]) == (400, "INVALID_REQUEST", path), response.text


@pytest.mark.parametrize(
    ("query", "path"),
    [
        ("/tasks?limit=0", "limit"),
        ("/tasks?limit=201", "limit"),
        ("/tasks?limit=x", "limit"),
        ("/tasks?limit=", "limit"),
        ("/tasks?limit=1&limit=x", "limit"),
        ("/tasks?status=done", "status"),
        ("/tasks?cursor=x", "cursor"),
        ("/tasks?cursor=-1", "cursor"),
        ("/events?after=-1", "after"),
        ("/events?after=x", "after"),
        (f"/events?after={10**30}", "after"),
        ("/logs?lines=-1", "lines"),
        ("/logs?lines=10001", "lines"),
        ("/logs?tail=x", "tail"),
        ("/logs?level=loud", "level"),
        ("/logs?since=yesterday", "since"),
        ("/logs?since=2026-01-01T00:00:00%2B99:00", "since"),
        ("/logs?follow=maybe", "follow"),
        ("/changes?diff=yes", "diff"),
        ("/changes?since=", "since"),
        ("/changes?since=..", "since"),
        ("/changes?since=../../identity.json", "since"),
        ("/changes?taskId=", "taskId"),
    ],
)
def test_a_wrong_query_is_refused_by_field(server: ServerProcess, query: str, path: str) -> None:
    response = server.get(query)
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["details"]["path"]) == (400, "INVALID_REQUEST", path), response.text


def test_an_enumeration_says_what_it_takes(server: ServerProcess) -> None:
    assert "completed, failed, processing" in server.get("/tasks?status=done").json()["error"]["message"]
    image = {"type": "image", "data": "aGk=", "mediaType": "image/tiff"}
    assert "image/png" in server.post("/run", {"prompt": [image]}).json()["error"]["message"]
    assert "one of text, image" in server.post("/run", {"prompt": [{"type": "x"}]}).json()["error"]["message"]


def test_a_pattern_is_said_as_it_is(server: ServerProcess) -> None:
    error = server.post("/run", {"prompt": "hi", "sessionId": "a b"}).json()["error"]
    assert error["message"] == "sessionId: it must match ^[A-Za-z0-9_.:@-]{1,128}$."


def test_a_long_wrong_value_is_not_repeated_whole(server: ServerProcess) -> None:
    message = server.post("/run", {"prompt": "hi", "mode": "x" * 100_000}).json()["error"]["message"]
    assert message.endswith("…; it must be one of build, plan.")
    assert len(message) < 300


@pytest.mark.parametrize("name", [b"bad", b"a\\r\\nX-Evil: 1", "é\u2028".encode(), b'q\\"', b"x" * 500])
def test_an_unknown_field_is_ignored_and_named_in_a_header(server: ServerProcess, name: bytes) -> None:
    with server.client() as client:
        response = client.post("/execute", content=b'{"command": "true", "%b": 1}' % name)
    assert response.status_code == 200
    assert len(response.headers["x-ignored-fields"]) <= 64
    assert response.headers["x-ignored-fields"].isascii()
    assert "x-evil" not in response.headers


def test_all_unknown_names_are_told_up_to_a_number(server: ServerProcess) -> None:
    response = server.post("/execute", {"command": "true", **{f"field{n}": 1 for n in range(500)}})
    assert response.headers["x-ignored-fields"].split(", ") == [f"field{n}" for n in range(20)]
    assert server.get("/health?a=1").status_code == 200
    assert server.get("/tasks?a=1&limit=1").headers["x-ignored-fields"] == "a"


def test_unknown_nested_fields_are_told_with_their_place() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b", "cache": True, "sessionId": "x"}]
    body, unknown = parse_body(json.dumps({"prompt": parts, "speed": 1}).encode(), RunRequest)
    assert len(body.prompt) == 2
    assert unknown == ["speed", "prompt[1].cache", "prompt[1].sessionId"]


@pytest.mark.parametrize(
    ("camel", "snake", "value"),
    [
        ("maxTokens", "max_tokens", 5),
        ("autoTools", "auto_tools", False),
        ("sessionId", "session_id", "s"),
        ("maxSteps", "max_steps", 3),
        ("maxCost", "max_cost", 1.5),
    ],
)
def test_both_spellings_mean_the_same(camel: str, snake: str, value: Any) -> None:
    first, second = (parse_body(json.dumps({"prompt": "x", name: value}).encode(), RunRequest) for name in (camel, snake))
    assert first == second
    assert first[1] == []
    assert getattr(first[0], snake) == value


def test_both_spellings_are_taken_in_nested_objects_and_queries() -> None:
    for name in ("mediaType", "media_type"):
        parsed, unknown = parse_body(json.dumps({"prompt": [{"type": "image", "data": "aGk=", name: "image/png"}]}).encode(), RunRequest)
        assert unknown == []
        assert parsed.prompt[0].media_type == "image/png"  # type: ignore[union-attr]  # it is a list
    assert parse_query({"session_id": "s"}, ListQuery) == parse_query({"sessionId": "s"}, ListQuery)


def test_where_both_spellings_come_the_documented_one_counts() -> None:
    assert parse_body(b'{"prompt": "x", "session_id": "b", "sessionId": "a"}', RunRequest)[0].session_id == "a"
    assert parse_body(b'{"prompt": "x", "maxTokens": 1, "max_tokens": 2}', RunRequest)[0].max_tokens == 2


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["type", "text", "data", "a", "[...]", "`"]), inner, max_size=3)
    ),
    max_leaves=8,
)
NAMES = st.sampled_from(["prompt", "command", "env", "cwd", "pty", "sessionId", "session_id", "tools", "maxCost", "timeout", "x"])


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(NAMES, ANY_JSON, max_size=5))
@pytest.mark.parametrize("kind", [RunRequest, ExecuteRequest])
def test_any_object_is_parsed_or_refused_with_a_place(kind: Any, body: dict[str, Any]) -> None:
    assert place_of_fault(json.dumps(body).encode(), kind) != ""


@given(st.binary(max_size=60))
def test_any_bytes_are_parsed_or_refused(data: bytes) -> None:
    assert place_of_fault(data, ExecuteRequest) != ""


def place_of_fault(data: bytes, kind: Any) -> str | None:
    try:
        parse_body(data, kind)
    except InvalidRequest as error:
        return str(error.details["path"])
    return None
