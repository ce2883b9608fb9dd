"""GET /metrics: valid, true, and of a size that nobody from outside can raise."""

import signal

import httpx
import pytest

from agent_server import __version__
from tests.emulators.openai import OpenAIEmulator
from tests.ended import assert_completed
from tests.exposition import Samples, parse
from tests.serving import ServerProcess


def scrape(server: ServerProcess) -> Samples:
    response = server.get("/metrics")
    assert (response.status_code, response.headers["content-type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    return parse(response.text)


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples[name, frozenset(labels.items())]


def test_a_server_that_did_nothing_says_so(server: ServerProcess) -> None:
    samples = scrape(server)
    assert value(samples, "agent_server_info", version=__version__, agent_type="opencode") == 1
    assert value(samples, "agent_server_uptime_seconds") > 0
    assert value(samples, "agent_server_tasks", phase="queued") == 0
    assert value(samples, "agent_server_steps_total") == 0
    assert value(samples, "agent_server_log_bytes") > 4096
    assert value(samples, "agent_server_open_streams") == 0
    assert value(samples, "agent_server_event_loop_lag_seconds") >= 0
    assert value(samples, "process_resident_memory_bytes") > 10e6
    assert value(samples, "process_cpu_seconds_total") > 0
    assert 5 < value(samples, "process_open_fds") < value(samples, "process_max_fds")


def test_tasks_calls_and_tokens_are_counted(agent: ServerProcess, model: OpenAIEmulator) -> None:
    calls = [
        {"name": "bash", "arguments": {"command": "true"}},
        {"name": "read", "arguments": {"filePath": "none"}},
        {"name": "invented", "arguments": {}},
    ]
    usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110, "cost": 0.25}
    model.script({"tool_calls": calls, "usage": usage}, {"text": "Done.", "usage": usage})
    assert_completed(agent, agent.submit())
    model.script({"status": 400, "error": {"message": "no"}})
    agent.finish(agent.submit())
    samples = scrape(agent)
    assert value(samples, "agent_server_tasks_ended_total", status="completed", phase="done") == 1
    assert value(samples, "agent_server_tasks_ended_total", status="failed", phase="done") == 1
    assert value(samples, "agent_server_steps_total") == 2
    assert value(samples, "agent_server_tokens_total", kind="prompt") == 200
    assert value(samples, "agent_server_tokens_total", kind="completion") == 20
    assert value(samples, "agent_server_cost_usd_total") == 0.5
    assert value(samples, "agent_server_tool_calls_total", tool="bash", outcome="ok") == 1
    assert value(samples, "agent_server_tool_calls_total", tool="read", outcome="error") == 1
    assert value(samples, "agent_server_tool_calls_total", tool="other", outcome="error") == 1
    assert not any("invented" in str(key) for key in samples)


def test_work_under_way_is_shown_and_survives_a_restart(agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script({"tool_calls": [{"name": "bash", "arguments": {"command": "mkfifo gate; read x < gate"}}]}, {"text": "Done."})
    first, second = agent.submit(sessionId="s"), agent.submit(sessionId="s")
    agent.wait_for(first, "process.started")
    samples = scrape(agent)
    assert value(samples, "agent_server_tasks", phase="running") == 1
    assert value(samples, "agent_server_tasks", phase="queued") == 1
    assert value(samples, "agent_server_processes_running") == 1
    agent.kill()
    model.script({"stall": 30}, {"text": "Done."})
    agent.start()
    agent.wait_for(first, "step.started", after=agent.wait_for(first, "task.resumed")["seq"])
    samples = scrape(agent)
    assert value(samples, "agent_server_tasks", phase="running") == 1
    assert value(samples, "agent_server_tasks", phase="queued") == 1
    for task_id in (first, second):
        agent.post(f"/tasks/{task_id}/cancel")
    samples = scrape(agent)
    assert value(samples, "agent_server_tasks", phase="running") == value(samples, "agent_server_tasks", phase="queued") == 0
    assert value(samples, "agent_server_tasks_ended_total", status="failed", phase="cancelled") == 2


def test_responses_and_open_streams_are_counted(server: ServerProcess) -> None:
    before = scrape(server)
    for path in ("/nothing", "/tasks/none", "/logs?lines=x"):
        server.get(path)
    httpx.get(f"{server.url}/status")
    with server.client() as client, client.stream("GET", "/events"), client.stream("GET", "/logs?follow=true"):
        during = scrape(server)
    assert (
        value(during, "agent_server_http_responses_total", status="4xx") - value(before, "agent_server_http_responses_total", status="4xx")
        == 4
    )
    assert (
        value(during, "agent_server_http_responses_total", status="2xx") - value(before, "agent_server_http_responses_total", status="2xx")
        == 3
    )
    assert value(during, "agent_server_open_streams") == 2
    while value(scrape(server), "agent_server_open_streams"):
        pass


def test_the_newest_event_is_that_of_the_log(server: ServerProcess) -> None:
    server.execute("true")
    newest = server.newest()
    assert value(scrape(server), "agent_server_events_newest_seq") == newest


def test_it_needs_the_token(server: ServerProcess) -> None:
    assert httpx.get(f"{server.url}/metrics").status_code == 401


def test_it_answers_while_the_server_is_stopping(agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script({"tool_calls": [{"name": "bash", "arguments": {"command": "mkfifo gate; read x < gate"}}]}, {"text": "Done."})
    agent.wait_for(agent.submit(), "process.started")
    assert agent.process is not None
    agent.process.send_signal(signal.SIGTERM)
    while agent.get("/health").status_code == 200:
        pass
    assert value(scrape(agent), "agent_server_draining") == 1
    (agent.workspace / "gate").write_text("on\n")
    assert agent.process.wait(20) == 0


FAMILY = "# HELP a_total x\n# TYPE a_total counter\n"


@pytest.mark.parametrize(
    "text", ["a_total 1\n", "# TYPE a gauge\na 1\n", *(FAMILY + line for line in ("a_total 1", "b 1\n", "a_total x\n", "a_total -1\n"))]
)
def test_the_reader_sees_what_is_wrong(text: str) -> None:
    assert parse(FAMILY + "a_total 1\n")
    with pytest.raises((AssertionError, ValueError)):
        parse(text)
