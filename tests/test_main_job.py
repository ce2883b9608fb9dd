"""The main job, end to end: a prompt in, work done in the workspace, every event out."""

import pytest

from tests.emulators.openai import OpenAIEmulator
from tests.serving import ServerProcess, events


def test_a_task_works_in_the_workspace_and_answers(agent: ServerProcess, model: OpenAIEmulator) -> None:
    usage = {"prompt_tokens": 100, "completion_tokens": 7, "total_tokens": 107, "cost": 0.002}
    hello = {"name": "write", "arguments": {"filePath": "hello.py", "content": "print('hi')\n"}}
    model.script(
        {"text": "I write it.", "tool_calls": [hello], "usage": usage},
        {"tool_calls": [{"name": "bash", "arguments": {"command": "python3 hello.py"}}], "usage": usage},
        {"text": "It prints hi.", "usage": usage},
    )
    reply = agent.post("/run", {"prompt": "write a program that prints hi"})
    assert reply.status_code == 200, reply.text
    task = reply.json()
    assert task["response"] == "It prints hi."
    assert task["status"] == "completed"
    assert task["phase"] == "done"
    assert task["steps"] == 3
    assert task["toolsUsed"] == [{"name": "bash", "count": 1}, {"name": "write", "count": 1}]
    assert [change["path"] for change in task["changes"]] == ["hello.py"]
    assert task["usage"]["cost"] == pytest.approx(0.006)
    assert task["tokensUsed"] == 321
    assert (agent.workspace / "hello.py").read_text() == "print('hi')\n"
    results = [message for message in model.requests()[-1].json["messages"] if message["role"] == "tool"]
    assert "hi" in results[1]["content"]
    changes = agent.get("/changes?diff=true").json()
    assert changes["files"] == ["hello.py"]
    assert changes["changes"][0]["taskIds"] == [task["taskId"]]
    assert "+print('hi')" in changes["changes"][0]["diff"]


def test_a_stream_tells_the_whole_task_in_order(agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script(
        {"text": "Looking.", "tool_calls": [{"name": "bash", "arguments": {"command": "echo one; echo two >&2"}}]},
        {"text": "All done here."},
    )
    with agent.client(Accept="text/event-stream") as client, client.stream("POST", "/run", json={"prompt": "go"}) as response:
        told = list(events(response))
    kinds = [event["type"] for event in told]
    assert kinds[0] == "task.created"
    assert told[0].keys() >= {"prompt", "model", "provider", "timeout_ms", "max_tokens", "maxSteps", "maxCost", "autoTools"}
    assert kinds[-1] == "task.completed"
    order = [
        "task.started",
        "step.started",
        "message.completed",
        "tool.started",
        "process.started",
        "process.exited",
        "tool.finished",
        "step.finished",
    ]
    assert [kind for kind in kinds if kind in order][: len(order)] == order
    assert "".join(event["delta"] for event in told if event["type"] == "message.delta") == "Looking.All done here."
    assert sorted(event["seq"] for event in told) == [event["seq"] for event in told]
    assert told[-1]["response"] == "All done here."


def test_the_conversation_is_kept_per_session(agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script({"text": "Noted."}, {"text": "Teal."}, {"text": "I do not know."})
    agent.post("/run", {"prompt": "my colour is teal"})
    agent.post("/run", {"prompt": "which colour?"})
    agent.post("/run", {"prompt": "which colour?", "sessionId": "sess_other"})
    said = [[message["content"] for message in request.json["messages"][1:]] for request in model.requests()]
    assert said == [["my colour is teal"], ["my colour is teal", "Noted.", "which colour?"], ["which colour?"]]
