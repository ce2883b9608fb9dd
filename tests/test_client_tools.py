"""Tools that a client brings: run by itself, or called by URL."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tests.emulators.openai import OpenAIEmulator
from tests.ended import assert_requests, of_type
from tests.scripts import bash
from tests.serving import ServerProcess, serving

SCHEMA = {"type": "object", "properties": {"city": {"type": "string", "pattern": "^[A-Z]"}}, "required": ["city"]}
WEATHER = {"name": "weather", "description": "Tells the weather.", "parameters": SCHEMA}


@pytest.fixture
def agent(anew: ServerProcess) -> ServerProcess:
    return anew


def ask(city: Any = "Rome", **more: Any) -> dict[str, Any]:
    return {"name": "weather", "arguments": {"city": city}, **more}


def give(agent: ServerProcess, task_id: str, call_id: str, **result: Any) -> tuple[int, str]:
    reply = agent.post(f"/tasks/{task_id}/tool-results", {"toolCallId": call_id, **result})
    return reply.status_code, reply.json().get("error", {}).get("code", "")


def results(model: OpenAIEmulator, number: int = -1) -> list[str]:
    return [message["content"] for message in model.requests()[number].json["messages"] if message["role"] == "tool"]


# Run by the client


def test_a_task_waits_for_its_client_to_run_a_call(agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script({"tool_calls": [ask(id="call_w")]}, {"text": "It is sunny."})
    task_id = agent.submit("weather?", tools=[WEATHER])
    asked = agent.wait_for(task_id, "tool.requested")
    assert (asked["toolCallId"], asked["tool"], asked["input"]) == ("call_w", "weather", {"city": "Rome"})
    task = agent.get(f"/tasks/{task_id}").json()
    assert (task["status"], task["phase"]) == ("processing", "waiting")
    assert give(agent, task_id, "call_w", output={"sky": "sunny"}) == (200, "")
    task = agent.finish(task_id)
    assert (task["response"], task["toolsUsed"]) == ("It is sunny.", [{"name": "weather", "count": 1}])
    assert results(model) == ['{"sky":"sunny"}']
    offered = [tool["function"] for tool in model.requests()[0].json["tools"]]
    assert offered[-1] == {"name": "weather", "description": "Tells the weather.", "parameters": SCHEMA}
    assert "bash" in [function["name"] for function in offered]
    told = agent.task_events(task_id)
    assert not of_type(told, "tool.started")
    assert len(of_type(told, "tool.finished")) == 1


def test_calls_for_the_client_are_asked_for_together_and_mixed_with_ours_in_order(agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script({"tool_calls": [ask("A", id="a"), ask("B", id="b"), bash("cat order")]}, {"text": "ok"})
    task_id = agent.submit("go", tools=[WEATHER])
    first = agent.wait_for(task_id, "tool.requested")
    agent.wait_for(task_id, "tool.requested", after=first["seq"])
    assert give(agent, task_id, "b", error="No such city.") == (200, "")
    assert agent.get(f"/tasks/{task_id}").json()["phase"] == "waiting"
    (agent.workspace / "order").write_text("later")
    assert give(agent, task_id, "a", output="fine") == (200, "")
    agent.finish(task_id)
    assert results(model) == ["fine", "Error: No such city.", "later"]
    assert_requests(model.requests())


def test_a_waiting_task_survives_kills_and_goes_on_waiting(agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script({"tool_calls": [ask(id="call_w"), bash("echo {step} >> once")]}, {"text": "At last."})
    task_id = agent.submit("weather?", tools=[WEATHER])
    agent.wait_for(task_id, "tool.requested")
    for number in range(4):  # more often than a task may be resumed
        if number:
            agent.kill()
        else:
            agent.stop()
        agent.start()
        agent.wait_for(task_id, "task.resumed")
    assert agent.get(f"/tasks/{task_id}").json()["phase"] == "waiting"
    assert give(agent, task_id, "call_w", output="rain") == (200, "")
    agent.kill()
    agent.start()
    assert agent.finish(task_id)["response"] == "At last."
    assert len(of_type(agent.task_events(task_id), "tool.requested")) == 1
    assert results(model)[0] == "rain"
    assert len((agent.workspace / "once").read_text().split()) <= 1


def test_the_same_result_twice_is_taken_once_and_another_is_refused(agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script({"tool_calls": [ask("A", id="a"), ask("B", id="b")]}, {"text": "ok"})
    task_id = agent.submit("go", tools=[WEATHER])
    agent.wait_for(task_id, "tool.requested")
    assert give(agent, task_id, "none", output="x") == (404, "NOT_FOUND")
    secret = "sk-test-key-of-the-model"
    assert give(agent, task_id, "a", output=secret) == (200, "")
    assert give(agent, task_id, "a", output=secret) == (200, "")
    assert give(agent, task_id, "a", output="***REDACTED***") == (409, "CONFLICT")
    assert give(agent, task_id, "a", error=secret) == (409, "CONFLICT")
    assert give(agent, task_id, "b", output="y") == (200, "")
    agent.finish(task_id)
    assert give(agent, task_id, "b", output="y") == (200, "")
    assert give(agent, task_id, "b", output="z") == (409, "CONFLICT")
    assert len(of_type(agent.task_events(task_id), "tool.finished")) == 2


@pytest.mark.parametrize("body", [{}, {"output": "a", "error": "b"}, {"error": ""}, {"error": 3}])
def test_a_result_is_either_output_or_error(body: dict[str, Any], agent: ServerProcess) -> None:
    assert give(agent, "task_none", "a", **body) == (400, "INVALID_REQUEST")


def test_null_is_an_output(agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script({"tool_calls": [ask(id="a")]}, {"text": "ok"})
    task_id = agent.submit("go", tools=[WEATHER])
    agent.wait_for(task_id, "tool.requested")
    assert give(agent, task_id, "a", output=None) == (200, "")
    agent.finish(task_id)
    assert results(model) == ["null"]


def test_a_call_of_ours_takes_no_result_of_a_client(agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script({"tool_calls": [{**bash("echo out; sleep 60"), "id": "ours"}]})
    task_id = agent.submit("go", tools=[WEATHER])
    agent.wait_for(task_id, "tool.output")
    assert give(agent, task_id, "ours", output="x") == (404, "NOT_FOUND")
    agent.post(f"/tasks/{task_id}/cancel")


def test_the_deadline_holds_while_a_client_is_waited_for(agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script({"tool_calls": [ask(id="a")]}, {"text": "Next."})
    reply = agent.post("/run", {"prompt": "go", "tools": [WEATHER], "timeout": 600})
    assert (reply.status_code, reply.json()["error"]["code"]) == (504, "TASK_TIMEOUT")
    task_id = reply.json()["error"]["details"]["taskId"]
    assert give(agent, task_id, "a", output="late") == (409, "CONFLICT")
    assert agent.post("/run", {"prompt": "next"}).status_code == 200
    assert_requests([model.requests()[1]])
    assert "ended while this call ran" in results(model)[0]


def test_a_cancelled_call_of_the_client_has_a_result(agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script({"tool_calls": [ask(id="a"), ask(id="b")]}, {"text": "Next."})
    task_id = agent.submit("go", tools=[WEATHER])
    agent.wait_for(task_id, "tool.requested")
    assert agent.post(f"/tasks/{task_id}/cancel").json()["phase"] == "cancelled"
    assert agent.post("/run", {"prompt": "next"}).status_code == 200
    assert_requests([model.requests()[1]])


def test_arguments_that_do_not_fit_are_the_models_to_mend(agent: ServerProcess, model: OpenAIEmulator) -> None:
    wrong = [ask("rome"), ask(7), {"name": "weather", "arguments": "[1]"}, {"name": "weather", "arguments": "{oops"}]
    model.script({"tool_calls": wrong}, {"text": "I give up."})
    task_id = agent.submit("go", tools=[WEATHER])
    assert agent.finish(task_id)["response"] == "I give up."
    assert [("city" in result, "JSON object" in result) for result in results(model)] == [(True, False)] * 2 + [(False, True)] * 2
    assert not of_type(agent.task_events(task_id), "tool.requested")


def test_steering_skips_calls_the_client_was_not_asked_for(agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script({"tool_calls": [ask("A", id="a"), bash("touch never"), ask("B", id="b")]}, {"text": "ok"})
    task_id = agent.submit("go", tools=[WEATHER])
    agent.wait_for(task_id, "tool.requested")
    assert agent.post(f"/tasks/{task_id}/messages", {"prompt": "Enough."}).status_code == 200
    assert give(agent, task_id, "b", output="x") == (404, "NOT_FOUND")
    assert give(agent, task_id, "a", output="fine") == (200, "")
    agent.finish(task_id)
    assert results(model)[0] == "fine"
    assert [("skipped" in result) for result in results(model)] == [False, True, True]
    assert not (agent.workspace / "never").exists()


def test_waiting_tasks_leave_their_places_to_others(model: OpenAIEmulator) -> None:
    model.script({"tool_calls": [ask(id="a")]}, {"text": "Quick."}, {"text": "Slow."})
    with serving(AGENT_BASE_URL=model.url, AGENT_API_KEY="sk-test-key-of-the-model", MAX_CONCURRENT_TASKS="1") as agent:
        task_id = agent.submit("go", tools=[WEATHER], sessionId="slow")
        agent.wait_for(task_id, "tool.requested")
        assert agent.post("/run", {"prompt": "quick"}).json()["response"] == "Quick."
        assert give(agent, task_id, "a", output="x") == (200, "")
        assert agent.finish(task_id)["response"] == "Slow."


def test_without_auto_tools_only_the_clients_are_offered(agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script({"tool_calls": [bash("touch never"), {"name": "read", "arguments": {"path": "a"}, "id": "r"}]}, {"text": "ok"})
    mine = {"name": "read", "parameters": {"type": "object"}}
    task_id = agent.submit("go", tools=[mine], autoTools=False)
    agent.wait_for(task_id, "tool.requested")
    give(agent, task_id, "r", output="mine")
    agent.finish(task_id)
    assert [tool["function"]["name"] for tool in model.requests()[0].json["tools"]] == ["read"]
    assert "There is no tool 'bash'" in results(model)[0]
    assert results(model)[1] == "mine"
    assert not (agent.workspace / "never").exists()


# Called by URL


class Target:
    """A server that a tool's URL leads to. `answer` is what it says; `calls` what came."""

    def __init__(self) -> None:
        self.answer: tuple[int, dict[str, str], bytes] = (200, {}, b"")
        self.calls: list[tuple[dict[str, str], Any]] = []
        self.gate = threading.Event()
        self.gate.set()
        target = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                target.calls.append(({name.lower(): value for name, value in self.headers.items()}, body))
                target.gate.wait(30)
                status, headers, content = target.answer
                self.send_response(status)
                for name, value in {"content-length": str(len(content)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook"


@pytest.fixture
def target() -> Iterator[Target]:
    found = Target()
    thread = threading.Thread(target=found.server.serve_forever)
    thread.start()
    try:
        yield found
    finally:
        found.gate.set()
        found.server.shutdown()
        found.server.server_close()
        thread.join()


def test_a_tool_with_a_url_is_called_there(agent: ServerProcess, model: OpenAIEmulator, target: Target) -> None:
    target.answer = (200, {"content-type": "application/json"}, b'{"sky": "sunny"}')
    model.script({"tool_calls": [ask(id="call_w")]}, {"text": "ok"})
    task_id = agent.submit("weather?", tools=[{**WEATHER, "url": target.url}], sessionId="web")
    task = agent.finish(task_id)
    assert task["toolsUsed"] == [{"name": "weather", "count": 1}]
    ((headers, body),) = target.calls
    ids = {"toolCallId": "call_w", "taskId": task_id, "sessionId": "web"}
    assert body == {"name": "weather", "arguments": {"city": "Rome"}, **ids}
    assert headers["idempotency-key"] == "call_w"
    assert results(model) == ['{"sky": "sunny"}']


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((200, {"content-type": "text/plain"}, b"plain"), "plain"),
        ((200, {"content-type": "application/json"}, b'"a text"'), "a text"),
        ((200, {"content-type": "application/json"}, b"{oops"), "{oops"),
        ((204, {}, b""), ""),
        ((500, {}, b"broken"), "Error: weather answered with status 500: broken"),
        ((404, {}, b""), "Error: weather answered with status 404"),
        ((302, {"location": "http://127.0.0.1:1/"}, b""), "Error: weather answered with a redirect, which is not followed"),
        ((307, {"location": "/other"}, b""), "Error: weather answered with a redirect, which is not followed"),
        ((200, {}, b"x" * (2 << 20)), "Error: The tool's reply is over 1048576 bytes; ask it for less."),
        ((200, {"content-length": "100"}, b"cut"), "Error: The tool could not be called"),
    ],
    ids=["text", "json-string", "no-json", "empty", "500", "404", "302", "307", "large", "cut"],
)
def test_what_a_url_answers_is_the_result(
    answer: tuple[int, dict[str, str], bytes], said: str, agent: ServerProcess, model: OpenAIEmulator, target: Target
) -> None:
    target.answer = answer
    model.script({"tool_calls": [ask()]}, {"text": "ok"})
    task_id = agent.submit("go", tools=[{**WEATHER, "url": target.url}])
    assert agent.finish(task_id)["status"] == "completed"
    assert results(model)[0].startswith(said)
    assert len(target.calls) == 1
    ends = of_type(agent.task_events(task_id), "tool.finished")
    assert [event["isError"] for event in ends] == [said.startswith("Error")]


def test_a_url_where_nobody_listens_is_an_error_result(agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script({"tool_calls": [ask()]}, {"text": "ok"})
    agent.finish(agent.submit("go", tools=[{**WEATHER, "url": "http://127.0.0.1:1/"}]))
    assert "could not be called" in results(model)[0]


def test_a_url_is_not_called_again_after_a_kill(agent: ServerProcess, model: OpenAIEmulator, target: Target) -> None:
    target.gate.clear()
    model.script({"tool_calls": [ask()]}, {"text": "ok"})
    task_id = agent.submit("go", tools=[{**WEATHER, "url": target.url}])
    agent.wait_for(task_id, "tool.started")
    while not target.calls:
        pass
    agent.kill()
    target.gate.set()
    agent.start()
    agent.finish(task_id)
    assert len(target.calls) == 1
    assert "may have run" in results(model)[0]


def test_what_a_url_holds_besides_its_place_is_in_no_event(agent: ServerProcess, model: OpenAIEmulator, target: Target) -> None:
    target.answer = (200, {}, b"I was called with letmein-please")
    url = target.url.replace("//", "//user:pass-word-1@") + "?token=letmein-please"
    model.script({"tool_calls": [ask(id="a"), ask(id="b")]}, {"text": "ok"}, {"text": "ok"})
    target.gate.clear()
    task_id = agent.submit("go", tools=[{**WEATHER, "url": url}])
    agent.wait_for(task_id, "tool.started")
    agent.kill()
    target.gate.set()
    agent.start()
    agent.finish(task_id)
    assert [headers["authorization"] for headers, _ in target.calls[-1:]] == ["Basic dXNlcjpwYXNzLXdvcmQtMQ=="]  # after the restart too
    assert results(model)[1] == "I was called with ***REDACTED***"
    assert not list((agent.data / "tools").iterdir())
    agent.stop()
    for file in agent.data.rglob("*"):
        if file.is_file():
            content = file.read_bytes()
            assert b"letmein-please" not in content, file
            assert b"pass-word-1" not in content, file


def test_a_tool_of_a_bad_pattern_does_not_hold_the_server(agent: ServerProcess, model: OpenAIEmulator) -> None:
    pattern = {"type": "object", "properties": {"city": {"type": "string", "pattern": r"^(([a-z])+.)+[A-Z](?=x)([a-z])+$"}}}
    model.script({"tool_calls": [ask("a" * 3_000)]}, {"text": "ok"})
    task_id = agent.submit("go", tools=[{**WEATHER, "parameters": pattern}])
    assert agent.finish(task_id, 10)["status"] == "completed"
    assert results(model)[0].startswith("Error: Invalid arguments")
