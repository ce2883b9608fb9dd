"""What happens to tasks and their commands when the server dies or is stopped. Longer runs: RECOVERY_KILLS=100."""

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.emulators.openai import OpenAIEmulator
from tests.ended import assert_completed, assert_effects, assert_requests, of_type
from tests.scripts import LINE, STALLED, bash, plan
from tests.serving import ServerProcess, is_alive, serving

KILLS = int(os.environ.get("RECOVERY_KILLS", "8"))
SEED = int(os.environ.get("RECOVERY_SEED", "20"))

KEY = "sk-test-key-of-the-model"

BOUNDARIES = [
    *("task.created", "task.started", "checkpoint.created", "step.started", "message.delta", "message.completed", "tool.started"),
    *("process.started", "tool.output", "process.exited", "tool.finished", "step.finished"),
]


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory, model: OpenAIEmulator) -> Iterator[ServerProcess]:
    """A server that many tests kill: each uses a session and a file of its own."""
    with serving(tmp_path_factory.mktemp("lasting"), AGENT_BASE_URL=model.url, AGENT_API_KEY=KEY) as server:
        yield server


@pytest.fixture
def mortal(lasting: ServerProcess) -> ServerProcess:
    if not lasting.is_running:
        lasting.start()
    return lasting


# Kill


def test_what_a_kill_left_of_a_patch_is_taken_back_before_the_server_answers(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "tests.tools.killed", "several", tmp_path], check=True, capture_output=True, text=True)
    workspaces = [tmp_path / str(number) / "workspace" for number in range(1, int(done.stdout))]
    torn = next(each for each in workspaces if (each / "a").read_text() == "new a\n" and (each / "gone").exists())
    shutil.copytree(torn.parent / "patches", tmp_path / "server/data/patches")
    with serving(tmp_path / "server", WORKSPACE_DIR=str(torn)):
        assert (torn / "a").read_text() == "old a\n"
        assert sorted(each.name for each in torn.iterdir()) == ["a", "d", "gone", "link", "same"]
        assert not list((tmp_path / "server/data/patches").iterdir())


@pytest.mark.parametrize(
    ("kind", "number"),
    [*((kind, 1) for kind in BOUNDARIES), ("message.delta", 3), ("tool.started", 2), ("tool.output", 3), ("step.finished", 3)],
)
def test_a_task_survives_a_kill_at(kind: str, number: int, mortal: ServerProcess, model: OpenAIEmulator) -> None:
    step = [bash(f"{LINE}; echo out; sleep 0.2; echo more")]
    model.script(plan(step, step, delay=0.005))
    name = f"{kind.replace('.', '-')}-{number}"
    task_id = mortal.submit(name, sessionId=name)
    mortal.kill_at(task_id, kind, number)
    mortal.start()
    told = assert_completed(mortal, task_id)
    assert_effects(told, mortal.workspace / f"{name}.txt")
    assert_requests(model.requests())
    interrupted = [event for event in of_type(told, "tool.finished") if event["interrupted"]]
    assert len(interrupted) <= 1
    if kind == "tool.output":
        assert "may have run" in interrupted[0]["output"]


def test_a_kill_between_the_last_step_and_the_end_of_the_task_loses_nothing(mortal: ServerProcess, model: OpenAIEmulator) -> None:
    model.script(plan([bash(LINE)]))
    task_id = mortal.submit("before-end", sessionId="before-end")
    mortal.kill_at(task_id, "checkpoint.created", 2)
    mortal.start()
    told = assert_completed(mortal, task_id)
    assert_effects(told, mortal.workspace / "before-end.txt")
    assert len(model.requests()) == 2
    assert [change["path"] for change in told[-1]["changes"]] == ["before-end.txt"]


def test_a_kill_after_the_end_of_a_task_changes_nothing(mortal: ServerProcess, model: OpenAIEmulator) -> None:
    model.script(plan([bash(LINE)]))
    task_id = mortal.submit("after-end", sessionId="after-end")
    end = mortal.kill_at(task_id, "task.completed")
    mortal.start()
    told = assert_completed(mortal, task_id)
    assert told[-1] == end
    assert len(model.requests()) == 2


def test_a_task_survives_kills_at_random_moments(tmp_path: Path, model: OpenAIEmulator) -> None:
    steps = max(20, KILLS * 2)
    model.script({"script": "bash-true", "steps": steps, "command": "echo {step} >> soak.txt; echo {step}; sleep 0.03", "delay": 0.002})
    chance = random.Random(SEED)
    with serving(tmp_path, AGENT_BASE_URL=model.url, AGENT_API_KEY=KEY) as server:
        task_id = server.submit("soak")
        for _ in range(KILLS):
            server.wait_for(task_id, "step.finished", after=server.newest())  # else it would be given up in the end
            time.sleep(chance.uniform(0, 0.15))
            server.kill()
            server.start()
        told = assert_completed(server, task_id, seconds=30 + steps)
    assert_effects(told, server.workspace / "soak.txt")
    assert len(of_type(told, "tool.finished")) == steps
    assert_requests(model.requests())
    resumed = [event["resumption"] for event in of_type(told, "task.resumed")]
    assert set(resumed) <= {1, 2}


def test_a_task_that_is_resumed_three_times_without_a_finished_step_fails(agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script({"repeat": STALLED, "times": 4}, {"text": "Hello again."})
    task_id = agent.submit("the end of servers")
    for number in range(1, 5):
        agent.kill_at(task_id, "message.delta", number)
        agent.start()
    task = agent.finish(task_id)
    assert (task["status"], task["phase"]) == ("failed", "interrupted")
    assert "3 times" in task["error"]["message"]
    assert agent.post("/run", {"prompt": "hello"}).json()["response"] == "Hello again."
    assert [message["content"] for message in model.requests()[-1].json["messages"][1:]] == ["hello"]


def test_a_finished_step_starts_the_count_of_resumptions_anew(agent: ServerProcess, model: OpenAIEmulator) -> None:
    stalled = {"repeat": STALLED, "times": 3}
    model.script(stalled, {"tool_calls": [bash("true")]}, stalled, {"text": "At last."})
    task_id = agent.submit()
    for number in range(1, 7):
        agent.kill_at(task_id, "message.delta", number)
        agent.start()
    assert_completed(agent, task_id)


# Stop


def test_a_stop_while_the_model_is_waited_for_is_quick(agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script(STALLED, {"text": "Here I am."})
    task_id = agent.submit()
    began = time.monotonic()
    agent.kill_at(task_id, "message.delta", stop=signal.SIGTERM)
    assert time.monotonic() - began < 5
    agent.start()
    told = assert_completed(agent, task_id)
    assert told[-1]["response"] == "Here I am."


def test_a_message_that_a_stop_cut_is_discarded_and_made_again(agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script({"text": "a b c d e f", "pieces": 11, "delay": 0.1}, {"text": "Whole."})
    task_id = agent.submit()
    agent.kill_at(task_id, "message.delta", stop=signal.SIGTERM)
    agent.start()
    told = assert_completed(agent, task_id)
    assert len(of_type(told, "message.discarded")) == 1
    assert told[-1]["response"] == "Whole."


def test_a_stop_lets_a_call_end_within_the_grace(agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script(plan([bash(f"sleep 0.5; {LINE}")], [bash(LINE)]))
    task_id = agent.submit("graceful")
    agent.kill_at(task_id, "process.started", stop=signal.SIGTERM)
    assert (agent.workspace / "graceful.txt").read_text() == "0\n"
    agent.start()
    told = assert_completed(agent, task_id)
    assert not any(event["interrupted"] for event in of_type(told, "tool.finished"))
    assert_effects(told, agent.workspace / "graceful.txt")
    assert_requests(model.requests())


def test_a_stop_ends_a_call_that_takes_longer_than_the_grace(agent: ServerProcess, model: OpenAIEmulator) -> None:
    agent.stop()
    agent.start(SHUTDOWN_GRACE_MS="100")
    model.script(plan([bash("setsid -f bash -c 'echo $$ > pid; exec sleep 300'; until [ -s pid ]; do :; done; echo ready; sleep 300")]))
    task_id = agent.submit()
    agent.kill_at(task_id, "tool.output", stop=signal.SIGTERM)
    assert not is_alive(int((agent.workspace / "pid").read_text()))
    agent.start()
    told = assert_completed(agent, task_id)
    assert [event["interrupted"] for event in of_type(told, "tool.finished")] == [True]
    assert_requests(model.requests())


# Orphans


def test_what_a_killed_server_left_running_is_ended_as_a_tree(agent: ServerProcess, model: OpenAIEmulator) -> None:
    sleeper = "echo $$ >> pids; exec sleep 300"
    command = (
        f"setsid -f bash -c '{sleeper}'; (setsid bash -c '{sleeper}' &); bash -c '(bash -c \"{sleeper.replace('$', chr(92) + '$')}\" &)'; "
        "until [ $(wc -l < pids) = 3 ]; do :; done; echo $$ >> pids; echo ready; sleep 300"
    )
    model.script(plan([bash(command)]))
    task_id = agent.submit()
    agent.kill_at(task_id, "tool.output")
    pids = [int(line) for line in (agent.workspace / "pids").read_text().split()]
    assert len(pids) == 4
    assert all(map(is_alive, pids))
    agent.start()
    told = assert_completed(agent, task_id)
    assert not any(map(is_alive, pids))
    assert "server ended" in of_type(told, "process.exited")[0]["reason"]


def test_a_command_of_the_next_start_is_no_orphan(agent: ServerProcess, model: OpenAIEmulator) -> None:
    stubborn = "trap '' TERM; echo ready; while :; do sleep 0.1; done"
    model.script(plan([bash(stubborn)]))
    task_id = agent.submit()
    agent.kill_at(task_id, "tool.output")
    agent.start()
    assert agent.execute("sleep 2.5; echo lived")["output"] == "lived\n"
    assert_completed(agent, task_id)


# The conversation


def test_a_session_goes_on_after_a_restart_with_the_same_bytes(agent: ServerProcess, model: OpenAIEmulator) -> None:
    (agent.workspace / "read.me").write_text("é ☃ \x1b[0m\n")
    calls = [
        {"name": "read", "arguments": {"filePath": "read.me"}},
        bash("printf 'a\\xff\\n'; exit 2"),
        {"name": "none", "arguments": "{}"},
    ]
    model.script(plan(calls, reasoning="Hmm.", text="Fine: “ok”."))
    agent.post("/run", {"prompt": "one"})
    agent.stop()
    agent.start()
    agent.post("/run", {"prompt": "two"})
    agent.kill()
    agent.start()
    agent.post("/run", {"prompt": [{"type": "text", "text": "three"}, {"type": "image", "mediaType": "image/png", "data": "AA=="}]})
    agent.kill()
    agent.start()
    agent.post("/run", {"prompt": "four"})
    requests = model.requests()
    assert len(requests) == 8
    assert_requests(requests)


def test_a_prompt_that_no_model_answered_is_left_out(agent: ServerProcess, model: OpenAIEmulator) -> None:
    refused = {"status": 400, "error": {"message": "I cannot read that."}}
    model.script({"text": "Good."}, {"repeat": refused, "times": 3}, {"text": "Better."}, {"text": "Best."})
    agent.post("/run", {"prompt": "one"})
    assert agent.post("/run", {"prompt": "unreadable"}).status_code == 502
    agent.post("/run", {"prompt": "two"})
    agent.kill()
    agent.start()
    agent.post("/run", {"prompt": "three"})
    said = [[message["content"] for message in request.json["messages"][1:]] for request in model.requests()]
    assert said[-2] == ["one", "Good.", "two"]
    assert said[-1] == ["one", "Good.", "two", "Better.", "three"]


def test_cancelling_a_queued_task_leaves_the_one_at_work_alone(agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script(plan([bash(f"{LINE}; echo out; sleep 300"), bash("true")]))
    task_id = agent.submit("first")
    queued = agent.submit("second")
    agent.wait_for(task_id, "tool.output")
    assert agent.post(f"/tasks/{queued}/cancel").json()["phase"] == "cancelled"
    agent.kill()
    agent.start()
    told = assert_completed(agent, task_id)
    assert_effects(told, agent.workspace / "first.txt")
    sent = model.requests()[-1].json["messages"]
    assert [message["content"] for message in sent if message["role"] == "user"] == ["first"]
    assert [("Interrupted" in message["content"]) for message in sent if message["role"] == "tool"] == [True, False]


# What is derived from the log


def test_the_indexes_are_built_again_from_the_log(agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script(plan([bash(LINE), bash("true")], [{"name": "read", "arguments": {"filePath": "one.txt"}}]))
    agent.post("/run", {"prompt": "one"}, **{"Idempotency-Key": "the-key"})
    agent.post("/run", {"prompt": "two", "sessionId": "sess_other", "maxSteps": 1})
    model.script({"status": 401}, STALLED)
    agent.post("/run", {"prompt": "three"})
    cancelled = agent.submit("four")
    agent.wait_for(cancelled, "message.delta")
    agent.post(f"/tasks/{cancelled}/cancel")
    before = agent.get("/tasks").json()
    assert [task["status"] for task in before["tasks"]] == ["failed", "failed", "failed", "completed"]
    agent.stop()
    with sqlite3.connect(agent.data / "events.db") as db:
        for table in ("tasks", "task_tools", "task_changes", "processes"):
            db.execute(f"DROP TABLE {table}")
        db.execute("DELETE FROM meta WHERE name LIKE 'index %'")
    db.close()
    agent.start()
    assert agent.get("/tasks").json() == before
    assert agent.get("/changes").json()["changes"][0]["taskIds"]
    again = agent.post("/run", {"prompt": "one"}, **{"Idempotency-Key": "the-key"})
    assert again.json()["taskId"] == before["tasks"][-1]["taskId"]


def test_events_of_unknown_types_are_skipped(agent: ServerProcess, model: OpenAIEmulator) -> None:
    agent.stop()
    agent.start(SHUTDOWN_GRACE_MS="100")
    model.script(plan([bash(f"{LINE}; sleep 0.5")]))
    first = agent.post("/run", {"prompt": "one"}).json()
    task_id = agent.submit("two")
    agent.kill_at(task_id, "tool.started", stop=signal.SIGTERM)
    with sqlite3.connect(agent.data / "events.db") as db:
        for task, context in ((task_id, 1), (task_id, None), (first["taskId"], 1)):
            event = (0, "telepathy.received", "sess_main", task, context, '{"from": "the future", "toolCallId": "call_1_0"}')
            db.execute("INSERT INTO events (time, type, session_id, task_id, context, data) VALUES (?, ?, ?, ?, ?, ?)", event)
        db.execute("DELETE FROM meta WHERE name LIKE 'index %'")
    db.close()
    agent.start()
    told = assert_completed(agent, task_id)
    assert "telepathy.received" in [event["type"] for event in told]
    assert "telepathy.received" in agent.stream_text("/logs?follow=false", Accept="text/event-stream")


# Queues


def test_queued_tasks_survive_a_kill_in_their_order(agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script(STALLED, {"repeat": {"text": "Yes."}, "times": 4})
    names = ["one", "two", "three", "four"]
    submitted = [agent.submit(name) for name in names]
    agent.kill_at(submitted[0], "message.delta")
    agent.start()
    for task_id in submitted:
        assert_completed(agent, task_id)
    asked = [message["content"] for message in model.requests()[-1].json["messages"] if message["role"] == "user"]
    assert asked == names


def test_a_key_gives_one_task_also_after_a_kill(agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script(STALLED, {"text": "Once."})
    headers = {"Idempotency-Key": "the-key"}
    first = agent.post("/run", {"prompt": "one", "async": True}, **headers).json()
    agent.kill_at(first["taskId"], "message.delta")
    agent.start()
    again = agent.post("/run", {"prompt": "one", "async": True}, **headers).json()
    assert again["taskId"] == first["taskId"]
    assert_completed(agent, first["taskId"])
    other = agent.post("/run", {"prompt": "two", "async": True}, **headers)
    assert (other.status_code, other.json()["error"]["code"]) == (422, "IDEMPOTENCY_MISMATCH")
    assert len(agent.get("/tasks").json()["tasks"]) == 1


def test_a_task_can_be_cancelled_as_soon_as_the_server_is_back(agent: ServerProcess, model: OpenAIEmulator) -> None:
    stubborn = "trap '' TERM; echo ready; while :; do sleep 0.1; done"  # it takes 2 s to end at the start, before tasks go on
    model.script(plan([bash(stubborn)]))
    task_id = agent.submit()
    agent.kill_at(task_id, "tool.output")
    agent.start()
    assert agent.post(f"/tasks/{task_id}/cancel").json()["phase"] == "cancelled"


def test_the_timeout_counts_what_a_task_ran_before_the_kill_but_not_the_pause(agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script(plan([bash("sleep 0.7; echo out; sleep 300")], [bash("sleep 300")]))
    task_id = agent.submit(timeout=5000)
    agent.kill_at(task_id, "tool.output")
    time.sleep(4)
    agent.start()
    task = agent.finish(task_id)
    assert (task["phase"], task["error"]["code"]) == ("timed_out", "TASK_TIMEOUT")
    told = agent.task_events(task_id)
    assert task["steps"] == 1  # it had time for more than to find itself too late
    resumed = of_type(told, "task.resumed")[0]
    assert 700 < resumed["elapsed_ms"] < 4000
    assert len(of_type(told, "process.started")) == 2
