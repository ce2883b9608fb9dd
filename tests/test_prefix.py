"""Requests of a session share their beginning, byte for byte, whatever happens on the way: providers' caches depend on it."""

import itertools
import json
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from tests.emulators.history import complaint
from tests.emulators.openai import OpenAIEmulator, Record
from tests.ended import of_type
from tests.scripts import bash
from tests.serving import ServerProcess, events, serving

STEPS = 60
MARK = {"type": "ephemeral"}

READ = {"name": "read", "arguments": {"filePath": "a.txt"}}


def turn(number: int) -> dict[str, Any]:
    """What the model says at a step: of five kinds, and never the same calls twice, since a task that repeats itself is ended."""
    kinds: Sequence[dict[str, Any]] = (
        {"text": "I look.", "tool_calls": [bash(f"printf 'a\\xff \\x1b[0m☃ “x” {number}'"), bash(f"exit {number}")]},
        {"tool_calls": [READ, READ, {"name": "glob", "arguments": {"pattern": "*", "path": str(number)}}]},
        {
            "text": "Hm.",
            "reasoning": "Thinking…",
            "tool_calls": [{"name": "none", "arguments": "{}"}, {"name": "bash", "arguments": f"{{oops {number}"}],
        },
        {"tool_calls": [{"name": "write", "arguments": {"filePath": "a.txt", "content": f"x\ny {number}\n"}}, READ]},
        {"text": "On.", "tool_calls": [bash(f"true {number}")]},
    )
    return kinds[number % len(kinds)]


@pytest.fixture(params=["test-model", "anthropic/claude-sonnet-4.5"])
def agent(request: pytest.FixtureRequest, model: OpenAIEmulator) -> Iterator[ServerProcess]:
    with serving(AGENT_BASE_URL=model.url, AGENT_MODEL=request.param) as running:
        yield running


def unmarked(message: dict[str, Any]) -> dict[str, Any]:
    """The message without marks for a cache: a text that stands alone as a string."""
    if not isinstance(message["content"], list):
        return message
    parts = [{key: value for key, value in part.items() if key != "cache_control"} for part in message["content"]]
    if any(part["type"] != "text" for part in parts):
        return {**message, "content": parts}
    return {**message, "content": "".join(part["text"] for part in parts)}


def plain(record: Record) -> str:
    return json.dumps([unmarked(message) for message in record.json["messages"]])


def assert_shared_prefix(records: Sequence[Record]) -> None:
    for record in records:
        assert complaint(record.json) is None
    for before, after in itertools.pairwise(records):
        assert after.body.partition('"messages":[')[0] == before.body.partition('"messages":[')[0]
        assert plain(after).startswith(plain(before)[:-1]), (plain(before)[-300:], plain(after)[-300:])
        if "cache_control" not in before.body:
            assert after.body.startswith(before.body.removesuffix("]}"))


def assert_marks(records: Sequence[Record]) -> None:
    """The system prompt and the last two messages that have a text are marked, where the model is Anthropic's, and nothing else but
    the one before the results of a turn that both are of."""
    for record in records:
        messages = record.json["messages"]
        marked = [at for at, message in enumerate(messages) if "cache_control" in json.dumps(message["content"])]
        if "claude" not in record.json["model"]:
            assert not marked
            continue
        with_text = [at for at, message in enumerate(messages) if at and str(unmarked(message)["content"] or "").strip()]
        before = [at for at in with_text if any(message["role"] != "tool" for message in messages[at:])]
        assert marked == sorted({0, *before[-1:], *with_text[-2:]})
        for at in marked:
            assert [part.get("cache_control") for part in messages[at]["content"]] == [MARK]
        assert all(isinstance(message["content"], str | None) for at, message in enumerate(messages) if at not in marked)


def steer(agent: ServerProcess, task_id: str) -> threading.Thread:
    """Adds a message at some of the steps, as long as the server lives."""

    def follow() -> None:
        with agent.client() as client, client.stream("GET", f"/tasks/{task_id}/events") as response:
            for event in events(response):
                if event["type"] == "step.started" and event["step"] in (7, 13, 14):
                    agent.post(f"/tasks/{task_id}/messages", {"prompt": f"mind step {event['step']}"})
                if event["type"] == "step.finished" and event["step"] == STEPS // 2:
                    agent.kill()
                    return

    thread = threading.Thread(target=follow)
    thread.start()
    return thread


def test_the_requests_of_sixty_steps_share_their_beginning(agent: ServerProcess, model: OpenAIEmulator) -> None:
    turns = [turn(number) for number in range(STEPS + 1)]
    turns.insert(9, {"drop": True})
    turns.insert(21, {"text": "Half of", "cut_after": 3})
    model.script(*turns, {"repeat": {"text": "Done."}, "times": 3})
    task_id = agent.submit("Take many steps.", sessionId="sixty")
    killing = steer(agent, task_id)
    killing.join(60)
    assert not agent.is_running
    agent.start()
    assert agent.finish(task_id)["status"] == "completed"
    told = agent.task_events(task_id)
    assert len(of_type(told, "step.finished")) >= STEPS
    assert len(of_type(told, "message.added")) == 3
    assert agent.post("/run", {"prompt": "And more.", "sessionId": "sixty"}).status_code == 200
    records = model.requests()
    assert len(records) > STEPS + 2
    assert_shared_prefix(records)
    assert_marks(records)


def test_a_tasks_own_system_prompt_comes_after_the_mark(model: OpenAIEmulator) -> None:
    with serving(AGENT_BASE_URL=model.url, AGENT_MODEL="claude-opus-4") as agent:
        model.script({"repeat": {"text": "ok"}, "times": 2})
        agent.post("/run", {"prompt": "one", "system": "Be brief."})
        agent.post("/run", {"prompt": "two"})
    first, second = (record.json["messages"][0]["content"] for record in model.requests())
    assert [part.get("cache_control") for part in first] == [MARK, None]
    assert first[1]["text"] == "\n\nBe brief."
    assert second == first[:1]


def test_marks_can_be_left_out(model: OpenAIEmulator) -> None:
    with serving(AGENT_BASE_URL=model.url, AGENT_MODEL="claude-opus-4", AGENT_CACHE_MARKS="0") as agent:
        model.script({"text": "ok"})
        agent.post("/run", {"prompt": "one"})
    assert "cache_control" not in model.requests()[0].body
