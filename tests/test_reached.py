"""A task that a limit ends has a final answer that says what was reached; the session goes on."""

from typing import Any

import pytest

from tests.emulators.openai import OpenAIEmulator
from tests.ended import assert_requests, of_type
from tests.scripts import STALLED, bash
from tests.serving import ServerProcess

USAGE = {"prompt_tokens": 10, "completion_tokens": 1, "cost": 0.25}
WRITE = {"name": "write", "arguments": {"filePath": "a.txt", "content": "a\n"}}


@pytest.fixture
def agent(anew: ServerProcess) -> ServerProcess:
    return anew


def turn(*calls: dict[str, Any], text: str = "") -> dict[str, Any]:
    return {"text": text, "tool_calls": list(calls), "usage": USAGE}


LIMITS = pytest.mark.parametrize(
    ("limit", "status", "details", "steps", "last"),
    [
        ({"maxSteps": 2}, 422, {"reason": "max_steps", "limit": 2, "reached": 2}, "2 steps", "bash"),
        ({"maxCost": 0.5}, 422, {"reason": "max_cost", "limit": 0.5, "reached": 0.5}, "2 steps", "bash"),
        ({"timeout": 2500}, 504, {"reason": "timeout", "limit": 2500, "reached": 2500}, "2 steps", "it had not ended"),
        ({}, 422, {"reason": "stuck", "limit": 5, "reached": 5, "tools": ["bash"]}, "6 steps", "bash"),
    ],
    ids=["max_steps", "max_cost", "timeout", "stuck"],
)


@LIMITS
def test_each_limit_gives_a_final_answer(
    limit: dict[str, Any], status: int, details: dict[str, Any], steps: str, last: str, agent: ServerProcess, model: OpenAIEmulator
) -> None:
    third = bash("sleep 60") if "timeout" in limit else bash("echo one; echo two")
    model.script(turn(WRITE, text="I make the file first."), turn(bash("echo one; echo two")), *[turn(third)] * 10)
    reply = agent.post("/run", {"prompt": "work", **limit})
    error = reply.json()["error"]
    assert (reply.status_code, set(reply.json())) == (status, {"error"})
    assert details.items() <= error["details"].items()
    answer = error["details"]["response"]
    task = agent.get(f"/tasks/{error['details']['taskId']}").json()
    ended = agent.task_events(task["taskId"])[-1]
    assert (task["status"], task["response"], ended["type"], ended["response"]) == ("failed", answer, "task.failed", answer)
    assert task["error"]["details"]["reason"] == details["reason"]
    lines = answer.split("\n")
    assert lines[0] == f"The task is not finished. {error['message']}"
    assert lines[1].startswith(f"Reached: {steps} in ")
    assert f"{task['usage']['cost']:.4f} USD" in lines[1]
    assert f"bash ({task['toolsUsed'][0]['count']}), write (1)" in lines[2]
    assert lines[3] == "Files changed: a.txt (added)."
    assert lines[4].startswith("Last call: bash {")
    assert last in lines[4]
    assert lines[5] == "Last said: I make the file first."
    assert len(model.requests()) == task["steps"] + ("timeout" in limit)


@LIMITS
def test_the_session_goes_on_after_each_limit(
    limit: dict[str, Any], status: int, details: dict[str, Any], steps: str, last: str, agent: ServerProcess, model: OpenAIEmulator
) -> None:
    limit = {"timeout": 700} if "timeout" in limit else limit
    third = bash("sleep 60") if "timeout" in limit else bash("echo one; echo two")
    model.script(turn(WRITE), turn(bash("echo one; echo two")), *[turn(third)] * 10)
    assert agent.post("/run", {"prompt": "work", **limit}).status_code == status
    made = len(model.requests())
    requests = model.requests()
    model.script({"text": "As you wish."})
    assert agent.post("/run", {"prompt": "go on"}).json()["response"] == "As you wish."
    assert made == len(requests)
    assert_requests([*requests, *model.requests()])


def test_a_limit_of_the_cost_that_cannot_hold_is_told(agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script({"tool_calls": [bash("true")]}, {"tool_calls": [WRITE]}, {"text": "Done."}, turn(bash("true")), {"text": "Done."})
    for name, warnings in (("unpriced", 1), ("priced", 0)):
        task_id = agent.submit("work", sessionId=name, maxCost=9)
        assert agent.finish(task_id)["status"] == "completed"
        told = [event["message"] for event in of_type(agent.task_events(task_id), "log")]
        assert told == ["maxCost does not hold: neither the provider nor the table of prices says what test-model costs."] * warnings


def test_a_limit_before_anything_was_said_says_so(agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script(STALLED)
    error = agent.post("/run", {"prompt": "work", "timeout": 600}).json()["error"]
    answer = error["details"]["response"]
    assert "Reached: 0 steps in 0." in answer
    assert "Tools used: none." in answer
    assert "Files changed: none." in answer
    assert answer.endswith("Nothing was said yet.")


def test_what_is_shown_of_the_end_is_bounded(agent: ServerProcess, model: OpenAIEmulator) -> None:
    files = " ".join(f"file{n:03}.txt" for n in range(50))
    model.script({"text": "w" * 50_000, "tool_calls": [bash(f"touch {files}; seq 1 9999")]})
    error = agent.post("/run", {"prompt": "work", "maxSteps": 1}).json()["error"]
    assert "file019.txt (added) and 30 more." in error["details"]["response"]
    assert "file020.txt (added)" not in error["details"]["response"]
    assert len(error["details"]["response"]) < 4_000


def test_other_failures_have_no_answer(agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script({"status": 401, "error": {"message": "No."}})
    error = agent.post("/run", {"prompt": "work"}).json()["error"]
    assert "response" not in error["details"]
    assert agent.get(f"/tasks/{error['details']['taskId']}").json()["response"] is None


def test_a_limit_counts_over_a_kill(agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script(*[{**turn(bash(f"echo {n}")), "delay": 0.02} for n in range(9)])
    task_id = agent.submit("work", maxSteps=4, maxCost=2)
    agent.kill_at(task_id, "tool.finished", 2)
    agent.start()
    task = agent.finish(task_id)
    assert (task["steps"], task["error"]["details"]["reason"]) == (4, "max_steps")
    assert "Reached: 4 steps" in task["response"]
    assert len(of_type(agent.task_events(task_id), "message.completed")) == 4


def test_a_task_that_ended_the_server_too_often_says_what_was_reached(agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script(turn(bash("echo one")), *[STALLED] * 9)
    task_id = agent.submit("work")
    for kind, number in (("message.delta", 1), ("task.resumed", 1), ("task.resumed", 2), ("task.resumed", 3)):
        agent.kill_at(task_id, kind, number)
        agent.start()
    task = agent.finish(task_id)
    assert (task["phase"], task["error"]["details"]["reason"]) == ("interrupted", "resumptions")
    assert "Reached: 1 step in" in task["response"]
