"""What a task does when its model fails: it tries again, or ends with an error that says why; the session goes on."""

from typing import Any

import pytest

from tests.emulators.openai import OpenAIEmulator
from tests.ended import assert_completed, assert_requests, of_type
from tests.scripts import STALLED
from tests.serving import ServerProcess


@pytest.mark.parametrize(
    ("turn", "said"),
    [
        ({"status": 401, "error": {"message": "No such key."}}, "No such key"),
        ({"status": 400, "error": {"message": "Unknown parameter."}}, "Unknown parameter"),
        ({"status": 400, "error": {"message": "This model's maximum context length is 10.", "code": "context_length_exceeded"}}, "context"),
        ({"status": 402, "error": {"message": "Pay first."}}, "credit"),
    ],
    ids=["401", "400", "overflow", "402"],
)
def test_an_error_that_would_come_again_fails_the_task_at_once(
    turn: dict[str, Any], said: str, agent: ServerProcess, model: OpenAIEmulator
) -> None:
    model.script(turn, {"text": "Better."})
    reply = agent.post("/run", {"prompt": "one"})
    error = reply.json()["error"]
    assert (reply.status_code, error["code"]) == (502, "MODEL_ERROR")
    assert said in error["message"]
    task = agent.get(f"/tasks/{error['details']['taskId']}").json()
    assert (task["status"], task["phase"], task["steps"]) == ("failed", "done", 0)
    assert agent.post("/run", {"prompt": "two"}).json()["response"] == "Better."
    assert [message["content"] for message in model.requests()[-1].json["messages"][1:]] == ["two"]


@pytest.mark.parametrize(
    "turn",
    [
        {"drop": True},
        {"text": "Half of", "cut_after": 3},
        {"text": "Half of", "garbage": True, "delay": 0.01},
        {"text": ""},
        {"text": "Half of", "stream_error": {"message": "Overloaded", "code": 503}, "delay": 0.01},
        STALLED,
    ],
    ids=["dropped", "cut", "garbage", "empty", "error-in-stream", "stalled"],
)
def test_a_broken_answer_is_asked_for_again(turn: dict[str, Any], agent: ServerProcess, model: OpenAIEmulator) -> None:
    if turn is STALLED:
        agent.stop()
        agent.start(MODEL_IDLE_TIMEOUT_MS="300")
    model.script(turn, {"text": "Whole."})
    task_id = agent.submit()
    told = assert_completed(agent, task_id)
    assert told[-1]["response"] == "Whole."
    assert len(of_type(told, "task.retrying")) == 1
    begun = {event["messageId"] for event in of_type(told, "message.delta")}
    discarded = {event["messageId"] for event in of_type(told, "message.discarded")}
    assert discarded == begun - {event["messageId"] for event in of_type(told, "message.completed")}
    assert len(discarded) == ("text" in turn and turn["text"] != "")
    assert_requests(model.requests())


def test_a_wish_to_wait_is_granted_and_shown(agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script({"status": 429, "headers": {"Retry-After": "2"}}, {"text": "Now."})
    task_id = agent.submit()
    retrying = agent.wait_for(task_id, "task.retrying")
    assert agent.get(f"/tasks/{task_id}").json()["phase"] == "retrying"
    assert (retrying["attempt"], retrying["reason"]) == (1, "rate_limit")
    assert retrying["delay_ms"] >= 2000
    told = assert_completed(agent, task_id)
    first, second = model.requests()
    assert second.arrived_ns - first.arrived_ns >= 2e9
    assert told[-1]["response"] == "Now."


def test_a_model_that_goes_on_failing_fails_the_task(agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script({"repeat": {"status": 500, "error": {"message": "Out of order."}}, "times": 4}, {"text": "Better."})
    reply = agent.post("/run", {"prompt": "one"})
    error = reply.json()["error"]
    assert (reply.status_code, error["code"]) == (502, "MODEL_ERROR")
    assert "Out of order" in error["message"]
    assert len(model.requests()) == 4
    told = agent.task_events(error["details"]["taskId"])
    assert [event["attempt"] for event in of_type(told, "task.retrying")] == [1, 2, 3]
    assert agent.post("/run", {"prompt": "two"}).status_code == 200


def test_a_failure_in_a_later_step_keeps_what_was_done(agent: ServerProcess, model: OpenAIEmulator) -> None:
    call = {"name": "write", "arguments": {"filePath": "a.txt", "content": "a"}}
    model.script({"text": "I write.", "tool_calls": [call]}, {"status": 401}, {"text": "Better."})
    reply = agent.post("/run", {"prompt": "one"})
    task = agent.get(f"/tasks/{reply.json()['error']['details']['taskId']}").json()
    assert task["steps"] == 1
    assert [change["path"] for change in task["changes"]] == ["a.txt"]
    agent.post("/run", {"prompt": "two"})
    agent.kill()
    agent.start()
    model.script({"text": "Best."})
    agent.post("/run", {"prompt": "three"})
    roles = [message["role"] for message in model.requests()[-1].json["messages"]]
    assert roles == ["system", "user", "assistant", "tool", "user", "assistant", "user"]
    assert_requests(model.requests())


def test_a_missing_key_fails_the_task_at_once_and_is_named(server: ServerProcess) -> None:
    reply = server.post("/run", {"prompt": "go"})
    assert (reply.status_code, reply.json()["error"]["code"]) == (502, "MODEL_ERROR")
    assert "OPENROUTER_API_KEY" in reply.json()["error"]["message"]


@pytest.mark.parametrize("arguments", ["[" * 50_000, '{"a":' * 50_000 + "1" + "}" * 50_000, "null", '{"command": 1e999}', "\\ud800"])
def test_arguments_that_make_no_sense_are_answered_with_an_error(arguments: str, agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script({"tool_calls": [{"name": "bash", "arguments": arguments}]}, {"text": "I see."})
    task_id = agent.submit()
    told = assert_completed(agent, task_id)
    assert [event["isError"] for event in of_type(told, "tool.finished")] == [True]
    assert_requests(model.requests())
