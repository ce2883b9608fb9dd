"""What a task's answer must be, and what stops it before: outputSchema, images, limits."""

import json
from itertools import pairwise
from typing import Any

import pytest

from tests.emulators.openai import OpenAIEmulator
from tests.ended import assert_requests, of_type
from tests.scripts import bash
from tests.serving import ServerProcess

SCHEMA = {"type": "object", "properties": {"count": {"type": "integer"}}, "required": ["count"], "additionalProperties": False}


@pytest.fixture
def agent(anew: ServerProcess) -> ServerProcess:
    return anew


@pytest.mark.parametrize("text", ['{"count": 3}', '```json\n{"count": 3}\n```', ' \n{"count":3}\n'], ids=["plain", "fenced", "padded"])
def test_an_answer_that_fits_is_given_as_output(text: str, agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script({"text": "I look.", "tool_calls": [bash("true")]}, {"text": text})
    task = agent.post("/run", {"prompt": "count", "outputSchema": SCHEMA}).json()
    assert (task["output"], task["response"]) == ({"count": 3}, text)
    assert agent.get(f"/tasks/{task['taskId']}").json()["output"] == {"count": 3}
    prompt = model.requests()[0].json["messages"][1]["content"]
    assert prompt.startswith("count\n")
    assert '"additionalProperties":false' in prompt


def test_an_answer_that_does_not_fit_goes_back_with_what_is_wrong(agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script({"text": "Three."}, {"text": '{"count": "three"}'}, {"text": '{"count": 3}'}, {"text": "Bye."})
    task = agent.post("/run", {"prompt": "count", "outputSchema": SCHEMA}).json()
    assert (task["output"], task["steps"]) == ({"count": 3}, 3)
    sent = [message["content"] for message in model.requests()[2].json["messages"][2:]]
    assert "not one JSON value" in sent[1]
    assert "count" in sent[3]
    assert [event["reason"] for event in of_type(agent.task_events(task["taskId"]), "message.added")] == ["output", "output"]
    agent.kill()
    agent.start()
    assert agent.post("/run", {"prompt": "bye"}).json()["output"] is None
    assert_requests(model.requests())


def test_an_answer_that_never_fits_fails_the_task(agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script({"repeat": {"text": "No."}, "times": 9})
    reply = agent.post("/run", {"prompt": "count", "outputSchema": SCHEMA})
    error = reply.json()["error"]
    assert (reply.status_code, error["code"]) == (502, "MODEL_ERROR")
    assert (error["details"]["reason"], error["details"]["tries"]) == ("invalid_output", 3)
    assert len(model.requests()) == 3
    model.script({"text": "Fine."})
    assert agent.post("/run", {"prompt": "and now?"}).json()["response"] == "Fine."


def test_the_tries_are_counted_over_restarts(agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script({"repeat": {"text": "No.", "delay": 0.1}, "times": 9})
    task_id = agent.submit("count", outputSchema=SCHEMA)
    agent.kill_at(task_id, "message.added", 2)
    agent.start()
    assert agent.finish(task_id)["error"]["details"]["reason"] == "invalid_output"
    assert len(of_type(agent.task_events(task_id), "message.completed")) == 3


def test_any_json_fits_an_empty_schema(agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script({"text": "[1, null]"})
    assert agent.post("/run", {"prompt": "x", "outputSchema": {}}).json()["output"] == [1, None]


def test_images_are_sent_as_data_urls_and_kept(agent: ServerProcess, model: OpenAIEmulator) -> None:
    data = "iVBORw0KGgo" + "A" * 2_000_001
    prompt = [{"type": "text", "text": "what is it?"}, {"type": "image", "mediaType": "image/png", "data": data}]
    model.script({"text": "A cat."}, {"text": "Still."})
    task = agent.post("/run", {"prompt": prompt}).json()
    assert task["prompt"] == prompt
    agent.kill()
    agent.start()
    agent.post("/run", {"prompt": "and now?"})
    for request in model.requests():
        assert request.json["messages"][1]["content"] == [
            {"type": "text", "text": "what is it?"},
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}},
        ]
    for before, after in pairwise(model.requests()):
        assert after.body.startswith(before.body[:-2])


def test_a_model_that_takes_no_images_is_named_as_the_cause(agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script({"status": 400, "error": {"message": "Invalid content type."}}, {"text": "Fine."})
    reply = agent.post("/run", {"prompt": [{"type": "image", "mediaType": "image/png", "data": "aGk="}]})
    error = reply.json()["error"]
    assert (reply.status_code, error["code"], error["details"]["hasImages"]) == (502, "MODEL_ERROR", True)
    assert "use a model that takes them" in error["message"]
    assert agent.post("/run", {"prompt": "hello"}).json()["response"] == "Fine."


@pytest.mark.parametrize(
    ("limit", "details"),
    [({"maxSteps": 2}, {"reason": "max_steps", "limit": 2, "reached": 2}), ({"maxCost": 0.5}, {"reason": "max_cost", "limit": 0.5})],
)
def test_a_limit_says_what_was_reached(limit: Any, details: dict[str, Any], agent: ServerProcess, model: OpenAIEmulator) -> None:
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "cost": 0.3}
    model.script({"script": "bash-true", "steps": 9, "usage": usage})
    reply = agent.post("/run", {"prompt": "go", **limit})
    error = reply.json()["error"]
    assert (reply.status_code, error["code"]) == (422, "RESOURCE_LIMIT_EXCEEDED")
    assert details.items() <= error["details"].items()
    assert error["details"]["reached"] >= error["details"]["limit"]


def test_all_of_it_is_kept_in_the_log_as_it_was_asked_for(agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script({"text": "{}"})
    task_id = agent.submit("x", outputSchema={"type": "object"}, tools=[{"name": "mine"}], autoTools=False)
    agent.finish(task_id)
    created = agent.task_events(task_id)[0]
    assert created["outputSchema"] == {"type": "object"}
    assert json.dumps(created["tools"]) == '[{"name": "mine"}]'
