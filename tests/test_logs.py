"""GET /logs and GET /events: what is shown, in which order, and what never is; and the lines on standard error."""

import json
import re
import socket
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from agent_server.wire import _MESSAGES, _QUIET
from tests.emulators.openai import OpenAIEmulator
from tests.rawhttp import AUTHORIZED, connect
from tests.serving import TOKEN, ServerProcess, events, serving

FIELDS = ["timestamp", "level", "type", "message", "source", "taskId", "seq"]
LEVELS = ["DEBUG", "INFO", "WARNING", "ERROR"]
MODEL_KEY = "sk-test-key-of-the-model"


@pytest.fixture(scope="module")
def server(model: OpenAIEmulator) -> Iterator[ServerProcess]:
    """A server with a task that completed, one that failed, and a command, in its log."""
    with serving(AGENT_BASE_URL=model.url, AGENT_API_KEY=MODEL_KEY) as running:
        model.script(
            {"text": "Looking.", "tool_calls": [{"name": "bash", "arguments": {"command": "echo from the task; false"}}]},
            {"text": "Done."},
            {"status": 401, "error": {"message": f"the key {MODEL_KEY} is not known"}},
        )
        assert running.post("/run", {"prompt": "go"}).status_code == 200
        assert running.post("/run", {"prompt": "fail"}).status_code == 502
        running.execute("echo from the command")
        yield running


def logs(server: ServerProcess, query: str = "") -> list[dict[str, Any]]:
    response = server.get(f"/logs?{query}")
    assert response.status_code == 200, response.text
    assert list(response.json()) == ["logs"]
    lines: list[dict[str, Any]] = response.json()["logs"]
    return lines


def test_a_line_has_its_fields_and_lines_are_in_order(server: ServerProcess) -> None:
    lines = logs(server, "level=debug&lines=1000")
    assert all(list(line) == FIELDS for line in lines)
    assert [line["seq"] for line in lines] == sorted({line["seq"] for line in lines})
    assert {line["level"] for line in lines} <= set(LEVELS)
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["timestamp"]) for line in lines)
    assert all(line["message"] and len(line["message"]) <= 300 for line in lines)
    assert lines[0]["message"].startswith("agent-server ")
    kinds = [line["type"] for line in lines]
    for kind in ("task.created", "task.completed", "task.failed", "tool.started", "process.exited", "message.completed", "log"):
        assert kind in kinds
    assert {line["taskId"] for line in lines if line["type"] == "task.created"} == {
        task["taskId"] for task in server.get("/tasks").json()["tasks"]
    }


@pytest.mark.parametrize("name", ["lines", "tail"])
def test_the_newest_lines_are_shown(server: ServerProcess, name: str) -> None:
    every = logs(server, "lines=1000")
    assert logs(server, f"{name}=3") == every[-3:]
    assert logs(server, f"{name}=0") == []
    assert logs(server, "lines=5&tail=2") == every[-2:]


@pytest.mark.parametrize("level", LEVELS)
def test_a_level_shows_itself_and_what_is_above(server: ServerProcess, level: str) -> None:
    every = logs(server, "level=debug&lines=1000")
    wanted = [line for line in every if LEVELS.index(line["level"]) >= LEVELS.index(level)]
    assert wanted
    for name in (level, level.lower()):  # other lines may come in between
        assert [line for line in logs(server, f"level={name}&lines=1000") if line["seq"] <= every[-1]["seq"]] == wanted


def test_the_default_level_is_info(server: ServerProcess) -> None:
    some = logs(server, "lines=1000")
    assert [line for line in logs(server, "level=info&lines=1000") if line["seq"] <= some[-1]["seq"]] == some


def test_a_source_shows_itself_alone(server: ServerProcess) -> None:
    every = logs(server, "level=debug&lines=1000")
    assert {"task", "tool", "process", "server"} <= {line["source"] for line in every}
    for source in ("task", "tool", "process", "server"):
        shown = [line for line in logs(server, f"source={source}&level=debug&lines=1000") if line["seq"] <= every[-1]["seq"]]
        assert shown == [line for line in every if line["source"] == source]
    assert logs(server, "source=nothing") == []


def test_since_leaves_out_what_was_before(server: ServerProcess) -> None:
    every = logs(server, "lines=1000")
    middle = every[len(every) // 2]["timestamp"]
    wanted = [line for line in every if line["timestamp"] >= middle]
    assert logs(server, f"lines=1000&since={middle}") == wanted
    assert logs(server, f"lines=1000&since={middle.rstrip('Z')}") == wanted, "a time without an offset is UTC"
    assert logs(server, f"lines=1000&since={middle.replace('Z', '%2B00:00')}") == wanted
    assert logs(server, "since=2100-01-01T00:00:00Z") == []
    assert logs(server, "lines=1000&since=2000-01-01") == every


def test_a_key_in_what_a_provider_says_is_masked(server: ServerProcess) -> None:
    failed = [task for task in server.get("/tasks").json()["tasks"] if task["status"] == "failed"]
    assert len(failed) == 1
    shown = server.get("/logs?level=debug&lines=1000").text + server.get("/tasks").text + server.get("/status").text + server.log()
    assert MODEL_KEY not in shown
    assert TOKEN not in shown


def test_a_secret_in_a_commands_output_is_masked_everywhere(server: ServerProcess) -> None:
    secret = "hunter2-hunter2"
    assert secret not in server.execute("echo $DB_PASSWORD; echo $DB_PASSWORD >&2", env={"DB_PASSWORD": secret})["output"]
    assert secret not in server.get("/logs?level=debug&lines=1000").text
    assert secret not in "".join(json.dumps(event) for event in read(server, "/logs?level=debug&lines=1000", 200))


# Streams


def read(server: ServerProcess, path: str, count: int, **headers: str) -> list[dict[str, Any]]:
    """Reads up to `count` events of a stream."""
    told: list[dict[str, Any]] = []
    headers = {"Accept": "text/event-stream", **{name.replace("_", "-"): value for name, value in headers.items()}}
    with server.client(**headers) as client, client.stream("GET", path) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["cache-control"] == "no-store"
        if count:
            for event in events(response):
                told.append(event)
                if len(told) == count:
                    break
    return told


def test_a_stream_begins_with_its_retry_time(server: ServerProcess) -> None:
    for path in ("/events", "/logs?follow=true", "/logs"):
        with server.client(Accept="text/event-stream") as client, client.stream("GET", path) as response:
            assert next(response.iter_lines()) == "retry: 1000"


def test_logs_as_a_stream_are_the_history_and_end(server: ServerProcess) -> None:
    told = read(server, "/logs?lines=5", 1000)
    assert [event["seq"] for event in told] == [line["seq"] for line in logs(server, "lines=5")]
    for event, line in zip(told, logs(server, "lines=5"), strict=True):
        assert {name: event[name] for name in FIELDS} == line
    assert read(server, "/logs?lines=0", 1000) == []


def test_following_logs_are_the_history_and_then_what_comes(server: ServerProcess) -> None:
    newest = logs(server, "lines=2")
    with server.client() as client, client.stream("GET", "/logs?follow=true&lines=2&source=process") as response:
        told = events(response)
        assert [next(told)["source"] for _ in range(2)] == ["process", "process"]
        server.execute("echo one more thing")
        live = [next(told) for _ in range(3)]
    assert [event["type"] for event in live] == ["process.started", "process.output", "process.exited"]
    assert live[0]["seq"] > newest[-1]["seq"]
    assert live[1]["chunk"] == "one more thing\n"


def test_events_follow_everything_from_now_on(server: ServerProcess) -> None:
    with server.client() as client, client.stream("GET", "/events") as response:
        server.execute("echo now")
        told = events(response)
        seen = [next(told) for _ in range(3)]
    assert [event["type"] for event in seen] == ["process.started", "process.output", "process.exited"]
    assert {event["level"] for event in seen} == {"INFO"}


def test_events_resume_after_an_id_by_header_or_query(server: ServerProcess) -> None:
    every = read(server, "/events?after=0", len(logs(server, "level=debug&lines=10000")))
    middle = every[len(every) // 2]["seq"]
    rest = [event for event in every if event["seq"] > middle]
    assert read(server, f"/events?after={middle}", len(rest)) == rest
    assert read(server, "/events", len(rest), Last_Event_ID=str(middle)) == rest
    assert read(server, "/events?after=0", len(rest), Last_Event_ID=str(middle)) == rest, "the header is the newer one"
    assert read(server, "/logs?follow=true&level=debug", len(rest), Last_Event_ID=str(middle)) == rest


@pytest.mark.parametrize("given", ["x", "-1", "1.5", "9" * 30, "1 2"])
@pytest.mark.parametrize("path", ["/events", "/logs?follow=true", "/tasks/{id}/events"])
def test_an_id_that_is_none_is_refused(server: ServerProcess, path: str, given: str) -> None:
    task_id = server.get("/tasks?limit=1").json()["tasks"][0]["taskId"]
    response = server.get(path.replace("{id}", task_id), **{"Last-Event-ID": given})
    assert response.status_code == 400
    assert response.json()["error"]["details"] == {"path": "Last-Event-ID"}


def test_a_tasks_stream_ends_and_resuming_at_its_end_has_no_content(server: ServerProcess) -> None:
    for task in server.get("/tasks").json()["tasks"]:
        path = f"/tasks/{task['taskId']}/events"
        told = read(server, path, 1000)
        assert told[0]["type"] == "task.created"
        assert told[-1]["type"] == f"task.{task['status']}"
        end = told[-1]["seq"]
        assert [event["type"] for event in read(server, f"{path}?after={end - 1}", 10)] == [told[-1]["type"]]
        for after in (end, end + 1, 10**15):
            assert server.get(f"{path}?after={after}").status_code == 204
            assert server.get(path, **{"Last-Event-ID": str(after)}).status_code == 204


def test_a_stream_that_is_silent_is_kept_alive_by_comments(server: ServerProcess) -> None:
    with connect(server.url) as connection:
        connection.sendall(f"GET /events HTTP/1.1\r\n{AUTHORIZED}\r\n".encode())
        received = b""
        while b": ping" not in received:
            received += connection.recv(4096)
    assert re.search(rb"retry: 1000\n\n.*: ping", received, re.S)


# Standard error


def test_console_lines_are_for_reading(server: ServerProcess) -> None:
    lines = server.log().splitlines()
    assert re.fullmatch(r"\d\d:\d\d:\d\d INFO    agent-server \S+ on http://127.0.0.1:\d+, agent opencode, workspace \S+", lines[0])


def test_json_lines_are_one_object_each(tmp_path: Path) -> None:
    with serving(tmp_path, LOG_FORMAT="json") as server:
        httpx.get(server.url + "/status")
        (server.data / "shadow" / "refs" / "checkpoints" / "broken").mkdir(parents=True)
        assert server.get("/changes?since=broken").status_code == 500
        lines = [json.loads(line) for line in server.log().splitlines()]
    assert [line["level"] for line in lines] == ["INFO", "WARNING", "ERROR"]
    assert all(list(line)[:4] == ["timestamp", "level", "logger", "message"] for line in lines)
    assert abs(datetime.fromisoformat(lines[0]["timestamp"]).timestamp() - datetime.now(UTC).timestamp()) < 60
    assert "Traceback" in lines[2]["error"]


def test_the_log_level_bounds_standard_error_but_not_the_event_log(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = ServerProcess(tmp_path, LOG_LEVEL="error", PORT=str(port))
    server.url = f"http://127.0.0.1:{port}"
    with subprocess.Popen(server.argv, env=server.environ, stderr=subprocess.PIPE) as process:
        try:
            wait_for(port)
            assert logs(server)[0]["level"] == "INFO"
            process.terminate()
            assert process.communicate(timeout=20)[1] == b""
        finally:
            process.kill()


def wait_for(port: int) -> None:
    until = time.monotonic() + 30
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
        except ConnectionRefusedError:
            assert time.monotonic() < until
            time.sleep(0.02)
        else:
            return


def test_every_type_of_event_is_documented() -> None:
    page = (Path(__file__).parent.parent / "docs" / "events.md").read_text()
    assert set(re.findall(r"`([a-z]+\.[a-z]+|gap|log)`", page)) - {"file.changed"} == {*_MESSAGES, *_QUIET}


def test_a_program_and_its_arguments_are_shown_as_a_shell_has_them(server: ServerProcess) -> None:
    assert server.post("/execute", {"command": ["printf", "%s", "it's one"]}).status_code == 200
    assert """printf %s 'it'"'"'s one'""" in [line["message"] for line in logs(server) if line["type"] == "process.started"]
