"""Quiesce, resume, stop and start, and whether anything is going on."""

import json
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.emulators.openai import OpenAIEmulator
from tests.ended import assert_completed, of_type
from tests.scripts import LINE, STALLED, bash, plan
from tests.serving import ServerProcess, events, serving

KEY = "sk-test-key-of-the-model"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, model: OpenAIEmulator) -> Iterator[ServerProcess]:
    with serving(tmp_path_factory.mktemp("lifecycle"), AGENT_BASE_URL=model.url, AGENT_API_KEY=KEY) as running:
        yield running


@pytest.fixture
def running(shared: ServerProcess) -> Iterator[ServerProcess]:
    """A server that many tests use: each leaves it resumed and started."""
    yield shared
    assert shared.post("/lifecycle/resume").status_code == 200
    assert shared.post("/lifecycle/start").status_code == 200


def quiesce(server: ServerProcess, timeout: int = 60_000) -> dict[str, Any]:
    response = server.post("/lifecycle/quiesce", {"timeout": timeout})
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


# Quiesce


def test_tasks_stand_still_until_the_resume(running: ServerProcess, model: OpenAIEmulator) -> None:
    model.script({"script": "bash-true", "steps": 40, "command": "echo {step} >> still.txt; sleep 0.02"})
    task_id = running.submit(sessionId="still")
    running.wait_for(task_id, "step.finished")
    assert quiesce(running)["tasks"] == 1
    lines = (running.workspace / "still.txt").read_text()
    requests = len(model.requests())
    time.sleep(0.5)  # that nothing happens cannot be waited for
    assert (running.workspace / "still.txt").read_text() == lines
    assert len(model.requests()) == requests
    assert running.get(f"/tasks/{task_id}").json()["status"] == "processing"
    assert running.post("/lifecycle/resume").json()["status"] == "running"
    assert_completed(running, task_id)
    assert (running.workspace / "still.txt").read_text().split() == [str(step) for step in range(40)]


def test_a_model_call_is_broken_off_and_made_again_under_another_id(running: ServerProcess, model: OpenAIEmulator) -> None:
    model.script(STALLED, {"text": "Again."})
    task_id = running.submit(sessionId="broken")
    first = running.wait_for(task_id, "message.delta")
    assert quiesce(running)["still"]
    discarded = running.wait_for(task_id, "message.discarded")
    assert discarded["messageId"] == first["messageId"]
    assert len(model.requests()) == 1
    running.post("/lifecycle/resume")
    told = assert_completed(running, task_id)
    assert told[-1]["response"] == "Again."
    assert len(of_type(told, "message.discarded")) == 1
    first_request, second_request = model.requests()
    assert first_request.body == second_request.body


def test_a_resume_breaks_off_the_calls_of_an_instance_that_was_paused_unasked(running: ServerProcess, model: OpenAIEmulator) -> None:
    model.script(STALLED, {"text": "Again."})
    task_id = running.submit(sessionId="unasked")
    running.wait_for(task_id, "message.delta")
    running.post("/lifecycle/resume")
    assert assert_completed(running, task_id)[-1]["response"] == "Again."


def test_many_quiesces_do_not_fail_a_task(running: ServerProcess, model: OpenAIEmulator) -> None:
    model.script(*[STALLED] * 6, {"text": "At last."})
    task_id = running.submit(sessionId="many")
    after = 0
    for _ in range(6):
        after = running.wait_for(task_id, "message.delta", after=after)["seq"]
        quiesce(running)
        after = running.wait_for(task_id, "message.discarded", after=after)["seq"]
        running.post("/lifecycle/resume")
    assert assert_completed(running, task_id)[-1]["response"] == "At last."


def test_a_command_is_not_waited_for_and_its_result_waits(running: ServerProcess, model: OpenAIEmulator) -> None:
    model.script(plan([bash("touch began.txt; until [ -e go.txt ]; do sleep 0.02; done; echo over")]))
    task_id = running.submit(sessionId="command")
    running.wait_for(task_id, "tool.started")
    while not (running.workspace / "began.txt").exists():
        time.sleep(0.01)
    before = time.monotonic()
    body = quiesce(running)
    assert time.monotonic() - before < 5
    assert (body["still"], body["processes"]) == (True, 1)
    (running.workspace / "go.txt").touch()
    running.wait_for(task_id, "process.exited")
    time.sleep(0.2)  # that nothing happens cannot be waited for
    told = running.stream_text("/logs?level=debug&lines=200", accept="text/event-stream")
    assert not [line for line in told.splitlines() if '"tool.finished"' in line and task_id in line]
    running.post("/lifecycle/resume")
    assert of_type(assert_completed(running, task_id), "tool.finished")[0]["output"].startswith("over")


def test_calls_side_by_side_are_held_too(running: ServerProcess, model: OpenAIEmulator) -> None:
    (running.workspace / "read.txt").write_text("text\n")
    reads = [{"name": "read", "arguments": {"filePath": "read.txt", "limit": n + 1}} for n in range(10)]
    search = {"name": "grep", "arguments": {"pattern": "text"}}
    model.script(*({"text": "", "tool_calls": [read, search] * 3} for read in reads), {"text": "Done."})
    task_id = running.submit(sessionId="beside")
    after = 0
    for _ in range(4):
        after = running.wait_for(task_id, "step.finished", after=after)["seq"]
        assert quiesce(running)["still"]
        running.post("/lifecycle/resume")
    assert_completed(running, task_id)


def test_new_tasks_are_refused_while_it_is_quiesced(running: ServerProcess, model: OpenAIEmulator) -> None:
    model.script({"text": "Hello."})
    with running.client(**{"Idempotency-Key": "known"}) as client:
        known = client.post("/run", json={"prompt": "go", "async": True}).json()["taskId"]
        running.finish(known)
        quiesce(running)
        assert client.post("/run", json={"prompt": "go", "async": True}).json()["taskId"] == known
    response = running.post("/run", {"prompt": "go"})
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "DRAINING"
    assert int(response.headers["Retry-After"]) > 0
    health = running.get("/health")
    assert (health.status_code, health.json()) == (503, {"status": "draining"})
    assert running.get("/status").json()["status"] == "draining"
    assert running.execute("echo yes")["output"] == "yes\n"


def test_a_compaction_is_made_again(running: ServerProcess, model: OpenAIEmulator) -> None:
    model.script({"text": "A long story."}, STALLED, {"text": "The summary."})
    running.finish(running.submit(sessionId="compacted"))
    replies: list[httpx.Response] = []
    client = threading.Thread(target=lambda: replies.append(running.post("/sessions/compacted/compact")))
    client.start()
    while len(model.requests()) < 2:
        time.sleep(0.01)
    assert quiesce(running)["still"]
    running.post("/lifecycle/resume")
    client.join(30)
    assert replies[0].status_code == 200
    assert len(model.requests()) == 3


def test_a_task_that_waits_for_its_client_is_still_and_takes_the_result(running: ServerProcess, model: OpenAIEmulator) -> None:
    model.script({"tool_calls": [{"name": "mine", "arguments": {}, "id": "call_mine"}]}, {"text": "Thanks."})
    tool = {"name": "mine", "description": "mine", "parameters": {"type": "object"}}
    task_id = running.submit(sessionId="client", tools=[tool])
    running.wait_for(task_id, "tool.requested")
    assert quiesce(running)["still"]
    reply = running.post(f"/tasks/{task_id}/tool-results", {"toolCallId": "call_mine", "output": "here"})
    assert reply.status_code == 200
    assert len(model.requests()) == 1
    running.post("/lifecycle/resume")
    assert running.finish(task_id)["response"] == "Thanks."


def test_it_resumes_by_itself(running: ServerProcess, model: OpenAIEmulator) -> None:
    model.script(plan([bash("sleep 0.1")]))
    task_id = running.submit(sessionId="itself")
    running.wait_for(task_id, "tool.started")
    quiesce(running, 300)
    assert_completed(running, task_id)
    assert running.get("/health").status_code == 200


def test_what_was_queued_begins_after_the_resume(running: ServerProcess, model: OpenAIEmulator) -> None:
    model.script(STALLED, {"text": "One."}, {"text": "Two."})
    first = running.submit(sessionId="queue")
    second = running.submit(sessionId="queue")
    running.wait_for(first, "message.delta")
    assert quiesce(running)["tasks"] == 2
    assert running.post(f"/tasks/{first}/cancel").json()["phase"] == "cancelled"
    time.sleep(0.2)  # that nothing happens cannot be waited for
    assert running.get(f"/tasks/{second}").json()["phase"] == "queued"
    running.post("/lifecycle/resume")
    assert_completed(running, second)


@pytest.mark.parametrize("body", [{"timeout": 0}, {"timeout": "soon"}, {"timeout": 10**12}])
def test_a_timeout_that_is_none_is_refused(body: dict[str, Any], running: ServerProcess) -> None:
    assert running.post("/lifecycle/quiesce", body).json()["error"]["code"] == "INVALID_REQUEST"
    assert running.get("/health").status_code == 200


# Resume


def test_streams_end_at_a_resume_and_go_on_by_id(running: ServerProcess) -> None:
    seen: list[int] = []
    connected = threading.Event()

    def follow(after: int) -> None:
        with running.client() as client, client.stream("GET", f"/events?after={after}") as response:
            connected.set()
            seen.extend(event["seq"] for event in events(response))

    start = running.newest()
    reader = threading.Thread(target=follow, args=[start])
    reader.start()
    assert connected.wait(30)
    running.execute("echo one")
    running.post("/lifecycle/resume")
    reader.join(30)
    assert not reader.is_alive()
    assert seen[-1] <= running.newest()
    running.execute("echo two")
    with running.client(**{"Last-Event-ID": str(seen[-1])}) as client, client.stream("GET", "/events") as response:
        again = next(events(response))
    assert again["seq"] > seen[-1]


def test_a_client_that_waits_for_its_task_keeps_waiting(running: ServerProcess, model: OpenAIEmulator) -> None:
    model.script(STALLED, {"text": "Here it is."})
    answers: list[httpx.Response] = []
    client = threading.Thread(target=lambda: answers.append(running.post("/run", {"prompt": "go", "sessionId": "waits"})))
    client.start()
    with running.client() as watching, watching.stream("GET", f"/events?after={running.newest() - 1}") as response:
        for event in events(response):
            if event["type"] == "message.delta":
                break
    quiesce(running)
    running.post("/lifecycle/resume")
    client.join(30)
    assert (answers[0].status_code, answers[0].json()["response"]) == (200, "Here it is.")


def test_connections_to_the_model_are_closed(running: ServerProcess, model: OpenAIEmulator) -> None:
    model.script({"text": "Hello."})
    running.finish(running.submit(sessionId="pool"))
    assert connections(model.port) == 1
    running.post("/lifecycle/resume")
    assert connections(model.port) == 0


def connections(port: int) -> int:
    """How many established connections to this local port there are. Source: proc(5), /proc/net/tcp."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(row[2].endswith(f":{port:04X}") and row[3] == "01" for row in rows)


def test_a_fork_has_its_own_identity_for_good(tmp_path: Path) -> None:
    with serving(tmp_path, INSTANCE_ID="inst_origin", INSTANCE_NAME="origin") as server:
        quiesce(server)
        resumed = server.post("/lifecycle/resume", {"instanceId": "inst_fork", "instance_name": "the fork"}).json()
        assert resumed == {"status": "running", "instanceId": "inst_fork", "instanceName": "the fork"}
        assert server.get("/health").json()["instanceId"] == "inst_fork"
        server.stop()
        status = server.start().get("/status").json()
        assert (status["instanceId"], status["instanceName"]) == ("inst_fork", "the fork")
        server.stop()
        status = server.start(INSTANCE_ID="inst_given").get("/status").json()
        assert (status["instanceId"], status["instanceName"]) == ("inst_given", "the fork")


@pytest.mark.parametrize("given", ["", "a\nb", "x" * 300, "ä", " a"])
def test_an_id_that_is_none_is_refused(given: str, running: ServerProcess) -> None:
    assert running.post("/lifecycle/resume", {"instanceId": given}).json()["error"]["code"] == "INVALID_REQUEST"


# Stop and start


@pytest.mark.parametrize("status", ["stopped", "standby"])
def test_a_stopped_instance_refuses_tasks_and_holds_those_it_has(status: str, running: ServerProcess, model: OpenAIEmulator) -> None:
    model.script({"script": "bash-true", "steps": 20, "command": f"echo {{step}} >> {status}.txt; sleep 0.02"})
    task_id = running.submit(sessionId=status)
    running.wait_for(task_id, "step.finished")
    assert running.post("/lifecycle/stop", {"status": status}).json() == {"status": status}
    while any(process["status"] == "running" for process in running.get("/processes").json()["processes"]):
        pass  # the command that runs goes on to its end
    lines = (running.workspace / f"{status}.txt").read_text()
    response = running.post("/run", {"prompt": "go"})
    assert response.status_code == 409
    error = response.json()["error"]
    assert (error["code"], error["current_status"]) == ("INSTANCE_NOT_RUNNING", status)
    assert running.get("/health").status_code == 200
    quiesce(running)
    running.post("/lifecycle/resume")
    time.sleep(0.2)  # that nothing happens cannot be waited for
    assert (running.workspace / f"{status}.txt").read_text() == lines
    assert running.post("/lifecycle/start").json() == {"status": "running"}
    assert_completed(running, task_id)


def test_other_errors_have_no_status_beside_the_code(running: ServerProcess) -> None:
    assert set(running.get("/tasks/none").json()["error"]) == {"code", "message", "details", "requestId"}


@pytest.mark.parametrize("path", ["/lifecycle/quiesce", "/lifecycle/stop"])
def test_a_signal_ends_a_server_whose_tasks_are_held(path: str, tmp_path: Path, model: OpenAIEmulator) -> None:
    with serving(tmp_path, AGENT_BASE_URL=model.url, AGENT_API_KEY=KEY) as server:
        model.script(plan([bash(LINE)], [bash(LINE)], [bash(LINE)]))
        task_id = server.submit("held")
        server.wait_for(task_id, "tool.started")
        assert server.post(path).status_code == 200
        before = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - before < 8
        server.start()
        assert_completed(server, task_id)
        assert (server.workspace / "held.txt").read_text() == "0\n1\n2\n"


# Activity


def test_an_idle_instance_says_since_when(running: ServerProcess) -> None:
    running.execute("true")
    first = running.get("/activity?within=60").json()
    assert (first["active"], first["reasons"]) == (False, [])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", first["idleSince"])
    time.sleep(0.05)
    second = running.get("/activity").json()
    assert second["idleSince"] == first["idleSince"]
    assert second["idle_ms"] >= first["idle_ms"] + 50


def test_tasks_and_commands_are_activity(running: ServerProcess, model: OpenAIEmulator) -> None:
    model.script(plan([bash("until [ -e end.txt ]; do sleep 0.02; done")]))
    idle = running.get("/activity").json()["idleSince"]
    task_id = running.submit(sessionId="active")
    running.wait_for(task_id, "process.started")
    body = running.get("/activity").json()
    assert body == {
        "active": True,
        "reasons": [{"type": "task", "count": 1}, {"type": "process", "count": 1}],
        "idleSince": None,
        "idle_ms": 0,
    }
    (running.workspace / "end.txt").touch()
    running.finish(task_id)
    assert running.get("/activity").json()["idleSince"] > idle


def test_terminals_and_background_processes_are_activity(running: ServerProcess) -> None:
    started = [
        running.post("/execute", {"command": "sleep 60", "background": True}).json()["processId"],
        running.post("/execute", {"command": "sleep 60", "background": True, "pty": True}).json()["processId"],
    ]
    assert running.get("/activity").json()["reasons"] == [{"type": "process", "count": 1}, {"type": "terminal", "count": 1}]
    with running.client() as client:
        for process_id in started:
            client.delete(f"/processes/{process_id}")
    assert running.get("/activity").json()["active"] is False


def test_a_resume_is_activity(running: ServerProcess) -> None:
    idle = running.get("/activity").json()["idleSince"]
    running.post("/lifecycle/resume")
    assert running.get("/activity").json()["idleSince"] > idle


def test_the_lifecycle_is_in_the_log(running: ServerProcess) -> None:
    after = running.newest()
    quiesce(running)
    running.post("/lifecycle/resume")
    running.post("/lifecycle/stop")
    running.post("/lifecycle/start")
    logs = json.loads(running.get("/logs?lines=1000").text)["logs"]
    kinds = [line["type"] for line in logs if line["seq"] > after and line["source"] == "lifecycle"]
    assert kinds == ["lifecycle.quiesced", "lifecycle.resumed", "lifecycle.stopped", "lifecycle.started"]
