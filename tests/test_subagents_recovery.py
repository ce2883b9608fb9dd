"""Subagents over the end of the server: one for each call, one result, and nothing done twice."""

import json
import random
import re
import signal
import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from agent_server.ids import derived_id
from tests.emulators.history import complaint
from tests.emulators.openai import OpenAIEmulator
from tests.ended import assert_completed, assert_effects, assert_requests, by_session, of_type
from tests.scripts import LINE, bash, plan, task
from tests.serving import ServerProcess, events, serving

KEY = "sk-test-key-of-the-model"

Row = tuple[int, str, str, str | None, int | None, str]
INSERT = "INSERT INTO events (time, type, session_id, task_id, context, data) VALUES (?, ?, ?, ?, ?, ?)"

BOUNDARIES = [
    *(("parent", "tool.started", 2), ("parent", "tool.finished", 2), ("child", "task.created", 1), ("child", "session.created", 1)),
    *(("child", kind, 1) for kind in ("message.delta", "tool.output", "step.finished", "task.completed")),
]
"""Where a kill is worth its while; the rest is in the recorded log."""


@pytest.fixture
def agent(anew: ServerProcess) -> ServerProcess:
    return anew


def kill_at(agent: ServerProcess, task_id: str, who: str, kind: str, number: int = 1, stop: int = signal.SIGKILL) -> None:
    """Ends the server at the `number`-th event of this type of a task, or of its subagents."""
    assert agent.process is not None
    names: set[str] = {task_id} if who == "parent" else set()
    with agent.client() as client, client.stream("GET", "/events?after=0") as response:
        for event in events(response):
            if who == "child" and event.get("parentTaskId") == task_id and event["type"] == "task.created":
                names |= {event["taskId"], event["sessionId"]}
            number -= event["type"] == kind and bool({event["taskId"], event["sessionId"] if who == "child" else None} & names)
            if not number:
                agent.started.clear()
                agent.process.send_signal(stop)
                agent.process.wait(30)
                return
    raise AssertionError("the stream ended")


def children(agent: ServerProcess, task_id: str) -> list[dict[str, Any]]:
    listed = agent.get("/tasks?limit=200").json()["tasks"]
    return [one for one in reversed(listed) if one["parentTaskId"] == task_id]


def assert_told_once(agent: ServerProcess, task_id: str, count: int) -> None:
    """Waits for a task's end, and checks that each of its calls had one subagent that worked once, and one result."""
    told = assert_completed(agent, task_id)
    subs = children(agent, task_id)
    assert len(subs) == count
    ends = {event["details"]["taskId"]: event for event in of_type(told, "tool.finished") if event["tool"] == "task"}
    assert set(ends) == {sub["taskId"] for sub in subs}
    for sub in subs:
        end = ends[sub["taskId"]]
        assert not end["interrupted"]
        assert not end["isError"]
        assert end["output"] == f"task_id: {sub['sessionId']}\n\nDone."
        own = assert_completed(agent, sub["taskId"])
        assert_effects(own, agent.workspace / f"{sub['prompt']}.txt")


def script(model: OpenAIEmulator, *subs: str, delay: float = 0.005) -> None:
    step = [bash(f"{LINE}; echo out; sleep 0.1")]
    parent = plan([bash(LINE)], [task(sub) for sub in subs], delay=delay)
    model.script({"script": "prompts", "by_prompt": {"go": parent, **{sub: plan(step, step, delay=delay) for sub in subs}}})


@pytest.mark.parametrize(("who", "kind", "number"), BOUNDARIES)
def test_a_subagent_survives_a_kill_at(who: str, kind: str, number: int, agent: ServerProcess, model: OpenAIEmulator) -> None:
    script(model, "sub")
    task_id = agent.submit("go")
    kill_at(agent, task_id, who, kind, number)
    agent.start()
    assert_told_once(agent, task_id, 1)
    assert (agent.workspace / "go.txt").read_text() == "0\n"
    for requests in by_session(model.requests()).values():
        assert_requests(requests)


def test_one_goes_on_from_after_each_event_of_a_log(tmp_path: Path, model: OpenAIEmulator) -> None:
    names = [f"zebra{number:03}" for number in range(200)]
    step = [bash(f"{LINE}; echo out")]
    parents = {name: plan(step, [task(f"{name}sub")]) for name in names}
    model.script({"script": "prompts", "by_prompt": {**parents, **{f"{name}sub": plan(step) for name in names}}})
    with serving(tmp_path / "recorded", AGENT_BASE_URL=model.url, AGENT_API_KEY=KEY) as server:
        task_id = server.submit(names[0])
        server.finish(task_id)
        (sub,) = children(server, task_id)
        server.stop()
        rows = recorded(server)
    assert len(names) > len(rows) > 30
    made = [renamed(rows[:cut], names[0], names[cut], task_id, sub) for cut in range(1, len(rows) + 1)]
    fill(ServerProcess(tmp_path / "filled", AGENT_BASE_URL=model.url, AGENT_API_KEY=KEY), made)
    with serving(tmp_path / "filled", AGENT_BASE_URL=model.url, AGENT_API_KEY=KEY) as server:
        for prefix in made:
            assert prefix[0][3] is not None
            assert_told_once(server, prefix[0][3], 1)
    for requests in by_session(model.requests()).values():
        for record in requests:
            assert complaint(record.json) is None


def recorded(server: ServerProcess) -> list[Row]:
    db = sqlite3.connect(server.data / "events.db")
    columns = "time, type, session_id, task_id, context, data"
    rows = db.execute(f"SELECT {columns} FROM events WHERE session_id IS NOT NULL ORDER BY seq").fetchall()
    db.close()
    return rows


def renamed(rows: Sequence[Row], old: str, name: str, task_id: str, sub: dict[str, Any]) -> list[Row]:
    """The events as those of another task in another session, whose subagent has the ids that follow from that."""
    other = f"{task_id[:-3]}{name[-3:]}"
    theirs = {kind: derived_id(kind, other, sub["toolCallId"], "1") for kind in ("task", "sess")}

    def rename(text: str) -> str:
        text = text.replace(sub["taskId"], "{task}").replace(sub["sessionId"], "{sess}").replace(old, name)
        text = re.sub(r"\b((?:task|proc|msg)_[0-9a-z]{23})[0-9a-z]{3}\b", rf"\g<1>{name[-3:]}", text).replace("sess_main", f"sess_{name}")
        return text.replace("{task}", theirs["task"]).replace("{sess}", theirs["sess"])

    return [
        (at, kind, rename(session_id), rename(task_id) if task_id else None, context, rename(data))
        for at, kind, session_id, task_id, context, data in rows
    ]


def fill(server: ServerProcess, prefixes: Sequence[Sequence[Row]]) -> None:
    """Makes a data folder whose log is all these prefixes, and a workspace with what their ended calls have left."""
    server.start()
    server.stop()
    db = sqlite3.connect(server.data / "events.db")
    with db:
        db.execute("DELETE FROM meta WHERE name LIKE 'index %'")
        db.executemany(INSERT, [row for prefix in prefixes for row in prefix])
    db.close()
    for prefix in prefixes:
        prompts = {row[3]: json.loads(row[5])["prompt"] for row in prefix if row[1] == "task.created"}
        for _, kind, _, task_id, _, data in prefix:
            if kind == "tool.finished" and json.loads(data)["tool"] == "bash":
                (server.workspace / f"{prompts[task_id]}.txt").write_text("0\n")


def test_a_subagent_whose_task_has_ended_does_not_go_on_alone(agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script({"script": "prompts", "by_prompt": {"go": plan([task("stay")]), "stay": {"text": "x", "stall": 60}}})
    task_id = agent.submit("go")
    kill_at(agent, task_id, "child", "step.started", stop=signal.SIGTERM)
    end = {"error": {"code": "TASK_CANCELLED", "message": "m", "details": {}}, "status": 409, "phase": "cancelled", "changes": []}
    db = sqlite3.connect(agent.data / "events.db")
    with db:  # as if the server had ended between the two ends
        db.execute("DELETE FROM meta WHERE name LIKE 'index %'")
        db.execute(INSERT, (time.time_ns() // 1_000_000, "task.failed", "sess_main", task_id, 1, json.dumps(end)))
    db.close()
    agent.start()
    (sub,) = children(agent, task_id)
    assert agent.finish(sub["taskId"])["phase"] == "cancelled"


@pytest.mark.parametrize(("who", "kind", "number"), [("child", "task.created", 2), ("parent", "tool.finished", 2)])
def test_several_survive_a_kill_at(who: str, kind: str, number: int, agent: ServerProcess, model: OpenAIEmulator) -> None:
    script(model, "one", "two", "three")
    task_id = agent.submit("go")
    kill_at(agent, task_id, who, kind, number)
    agent.start()
    assert_told_once(agent, task_id, 3)


def test_kills_while_subagents_work_do_not_make_the_task_be_given_up(tmp_path: Path, model: OpenAIEmulator) -> None:
    chance = random.Random(7)
    steps = plan(*[[bash(f"{LINE}; sleep 0.05")]] * 8, delay=0.005)
    model.script({"script": "prompts", "by_prompt": {"go": plan([task("one")]), "one": steps}})
    with serving(tmp_path, AGENT_BASE_URL=model.url, AGENT_API_KEY=KEY, MAX_CONCURRENT_TASKS="1") as server:
        task_id = server.submit("go")
        kill_at(server, task_id, "child", "tool.started")
        for _ in range(4):  # more often than a task may be resumed
            server.start()
            (sub,) = children(server, task_id)
            server.wait_for(sub["taskId"], "step.finished", after=server.newest())
            time.sleep(chance.uniform(0, 0.1))
            server.kill()
        server.start()
        assert_told_once(server, task_id, 1)


def test_a_stop_while_subagents_work_is_quick_and_all_goes_on(agent: ServerProcess, model: OpenAIEmulator) -> None:
    look = {"text": "Seen.", "stall": 60}
    by_prompt = {"go": plan([task("look")]), "look": look}
    model.script({"script": "prompts", "by_prompt": by_prompt})
    task_id = agent.submit("go")
    began = time.monotonic()
    kill_at(agent, task_id, "child", "step.started", stop=signal.SIGTERM)
    assert time.monotonic() - began < 5
    model.script({"script": "prompts", "by_prompt": {**by_prompt, "look": {"text": "Seen."}}})
    agent.start()
    told = assert_completed(agent, task_id)
    (sub,) = children(agent, task_id)
    assert sub["status"] == "completed"
    assert of_type(told, "tool.finished")[0]["output"].endswith("Seen.")


def test_the_subagents_of_a_task_that_was_cancelled_do_not_come_back(agent: ServerProcess, model: OpenAIEmulator) -> None:
    stay = plan([bash("sleep 300")])
    model.script({"script": "prompts", "by_prompt": {"go": plan([task("stay")]), "stay": stay}})
    task_id = agent.submit("go")
    kill_at(agent, task_id, "child", "tool.started")
    agent.start()
    assert agent.post(f"/tasks/{task_id}/cancel").json()["phase"] == "cancelled"
    agent.kill()
    agent.start()
    assert agent.get("/tasks?status=processing").json()["tasks"] == []
    (sub,) = children(agent, task_id)
    assert sub["phase"] == "cancelled"


def test_the_deadline_goes_on_where_it_was(agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script({"script": "prompts", "by_prompt": {"go": plan([task("stay")]), "stay": plan(*[[bash("sleep 0.4")]] * 20)}})
    task_id = agent.submit("go", timeout=4_000)
    kill_at(agent, task_id, "child", "step.finished", 3)
    agent.start()
    began = time.monotonic()
    agent.finish(task_id)  # it may have some ms more than its subagent, to say so
    assert time.monotonic() - began < 4
    (sub,) = children(agent, task_id)
    assert sub["status"] == "failed"
