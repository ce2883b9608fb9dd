"""What the loop sends a model, and what it does with what the model says."""

import json
import re
from itertools import pairwise

import pytest

from tests.emulators.openai import OpenAIEmulator
from tests.serving import ServerProcess
from tools import MAX_BYTES, MAX_LINES


def run(agent: ServerProcess, prompt: str = "go", **more: object) -> dict[str, object]:
    reply = agent.post("/run", {"prompt": prompt, **more})
    assert reply.status_code == 200, reply.text
    body: dict[str, object] = reply.json()
    return body


def test_each_request_begins_with_the_bytes_of_the_one_before(agent: ServerProcess, model: OpenAIEmulator) -> None:
    (agent.workspace / "AGENTS.md").write_text("Use tabs.")
    model.script({"script": "bash-true", "steps": 30}, {"text": "Again."})
    run(agent)
    (agent.workspace / "AGENTS.md").write_text("Use spaces.")  # what a session was told at its beginning stays
    run(agent, "and again")
    bodies = [request.body for request in model.requests()]
    assert len(bodies) == 32
    for before, after in pairwise(bodies):
        assert before.endswith("]}")
        assert after.startswith(before[:-2])


def test_the_system_prompt_has_instructions_and_the_tasks_own_addition_last(agent: ServerProcess, model: OpenAIEmulator) -> None:
    (agent.workspace / "CLAUDE.md").write_text("Second choice.")
    (agent.workspace / "AGENTS.md").write_text("Always be brief.")
    model.script({"text": "ok"})
    run(agent, system="Speak French.")
    system = model.requests()[0].json["messages"][0]
    assert system["role"] == "system"
    assert "Always be brief." in system["content"]
    assert "Second choice." not in system["content"]
    assert str(agent.workspace) in system["content"]
    assert system["content"].endswith("Speak French.")


def test_nested_instructions_come_with_the_first_file_read_beneath_them(agent: ServerProcess, model: OpenAIEmulator) -> None:
    nested = agent.workspace / "lib" / "core"
    nested.mkdir(parents=True)
    (agent.workspace / "lib" / "AGENTS.md").write_text("Lib rules.")
    (nested / "a.txt").write_text("a\n")
    (nested / "b.txt").write_text("b\n")
    read = [{"tool_calls": [{"name": "read", "arguments": {"filePath": f"lib/core/{name}.txt"}}]} for name in ("a", "b")]
    model.script(*read, {"text": "done"})
    run(agent)
    results = [message["content"] for message in model.requests()[-1].json["messages"] if message["role"] == "tool"]
    assert "Lib rules." in results[0]
    assert "Lib rules." not in results[1]


def test_invalid_calls_are_answered_to_the_model(agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script(
        {"tool_calls": [{"name": "read", "arguments": '{"filePath": '}]},
        {"tool_calls": [{"name": "read", "arguments": {"filePath": 7, "offset": "x"}}]},
        {"tool_calls": [{"name": "fly", "arguments": {}}]},
        {"text": "I see."},
    )
    task = run(agent)
    assert task["response"] == "I see."
    results = [message["content"] for message in model.requests()[-1].json["messages"] if message["role"] == "tool"]
    assert "not valid JSON" in results[0]
    assert "filePath" in results[1]
    assert "There is no tool 'fly'" in results[2]
    assert "bash" in results[2]


@pytest.mark.parametrize("permission", [{}, {"bash": "deny"}])
def test_arguments_that_are_nested_too_deep_end_no_task(permission: dict[str, str], agent: ServerProcess, model: OpenAIEmulator) -> None:
    (agent.workspace / "opencode.json").write_text(json.dumps({"permission": permission}))
    depths = [10, 99, 100, *range(900, 1_010, 5), 50_000]
    calls = [{"name": "list", "arguments": f'{{"no_such": {"[" * depth}{"]" * depth}}}'} for depth in depths]
    model.script({"tool_calls": calls}, {"text": "I see."})
    task = run(agent)
    assert task["response"] == "I see."
    results = [message["content"] for message in model.requests()[-1].json["messages"] if message["role"] == "tool"]
    assert len(results) == len(depths)
    assert (results[0], "not valid JSON" in results[-1]) == (results[1], True)
    told = [event["input"] for event in agent.task_events(str(task["taskId"])) if event["type"] == "tool.started"]
    assert [isinstance(given, str) for given in told] == [depth > 99 for depth in depths]


def test_independent_reads_run_side_by_side_and_effects_in_order(agent: ServerProcess, model: OpenAIEmulator) -> None:
    for name in "abc":
        (agent.workspace / name).write_text(name)
    calls = [{"name": "read", "arguments": {"filePath": name}} for name in "abc"]
    effects = [{"name": "bash", "arguments": {"command": f"sleep 0.1; echo {n} >> order"}} for n in range(3)]
    model.script({"tool_calls": [*calls, *effects]}, {"text": "done"})
    task = run(agent)
    assert (agent.workspace / "order").read_text() == "0\n1\n2\n"
    kinds = [
        event["type"] for event in agent.task_events(str(task["taskId"])) if event["type"].startswith("tool.") and event["tool"] == "read"
    ]
    assert kinds == ["tool.started"] * 3 + ["tool.finished"] * 3


def test_a_long_result_is_cut_and_the_rest_can_be_read(agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script(
        {"tool_calls": [{"name": "bash", "arguments": {"command": "seq 1 100000"}}]},
        {"text": "done"},
    )
    run(agent)
    result = next(m["content"] for m in model.requests()[-1].json["messages"] if m["role"] == "tool")
    assert len(result) < 60 * 1024
    path = next(word.strip(".,;:[]()") for word in result.split() if str(agent.data) in word)
    model.script(
        {"tool_calls": [{"name": "read", "arguments": {"filePath": path, "offset": 50_000, "limit": 1}}]},
        {"text": "done"},
    )
    run(agent)
    again = [m["content"] for m in model.requests()[-1].json["messages"] if m["role"] == "tool"][-1]
    assert "50000" in again


def test_a_page_of_a_file_reaches_the_model_with_its_offset_and_new_instructions(agent: ServerProcess, model: OpenAIEmulator) -> None:
    for folder in ("lines", "bytes", "plain"):
        (agent.workspace / folder).mkdir()
    (agent.workspace / "plain/a.txt").write_text("x\n" * 5_000)
    (agent.workspace / "lines/a.txt").write_text("x\n" * 5_000)
    (agent.workspace / "lines/AGENTS.md").write_text("rule\n" * 500 + "Last rule.")
    (agent.workspace / "bytes/a.txt").write_text(f"{'x' * 1_000}\n" * 5_000)
    (agent.workspace / "bytes/AGENTS.md").write_text("r" * 19_000 + "Last rule.")
    names = ("plain", "lines", "bytes")
    model.script(*({"tool_calls": [{"name": "read", "arguments": {"filePath": f"{name}/a.txt"}}]} for name in names), {"text": "done"})
    run(agent)
    results = [message["content"] for message in model.requests()[-1].json["messages"] if message["role"] == "tool"]
    assert results[0].endswith("\n2000: x\n\n(Lines 1 to 2000. There is more: go on with offset=2001.)")
    for result in results:
        assert (last := re.search(r"\n(\d+): x+\n\n\(Lines 1 to (\d+)\. There is more: go on with offset=(\d+)\.\)", result))
        assert int(last[1]) == int(last[2]) == int(last[3]) - 1
        assert len(result.encode()) <= MAX_BYTES
    assert all(result.endswith("Last rule.\n</instructions>") for result in results[1:])


def test_a_cut_result_is_no_longer_than_the_limits(agent: ServerProcess, model: OpenAIEmulator) -> None:
    tools = [{"name": "long", "description": "d", "parameters": {"type": "object"}}]
    for call, text in (("call_wide", "é" * 100_000), ("call_high", "\n" * 30_000)):
        model.script({"tool_calls": [{"name": "long", "arguments": {}, "id": call}]}, {"text": "done"})
        task_id = agent.submit(tools=tools)
        agent.wait_for(task_id, "tool.requested")
        assert agent.post(f"/tasks/{task_id}/tool-results", {"toolCallId": call, "output": text}).status_code == 200
        agent.finish(task_id)
        result = model.requests()[-1].json["messages"][-1]["content"]
        assert "[cut: the whole is in " in result
        assert len(result.encode()) <= MAX_BYTES
        assert result.count("\n") <= MAX_LINES


def test_a_step_limit_ends_the_task_with_its_reason(agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script({"script": "bash-true", "steps": 30})
    reply = agent.post("/run", {"prompt": "go", "maxSteps": 3})
    assert reply.status_code == 422
    error = reply.json()["error"]
    assert error["code"] == "RESOURCE_LIMIT_EXCEEDED"
    assert error["details"]["reason"] == "max_steps"
    assert agent.get(f"/tasks/{error['details']['taskId']}").json()["steps"] == 3


def test_a_cost_limit_ends_the_task_with_its_reason(agent: ServerProcess, model: OpenAIEmulator) -> None:
    call = {"name": "bash", "arguments": {"command": "true"}}
    turn = {"tool_calls": [call], "usage": {"prompt_tokens": 10, "completion_tokens": 1, "cost": 0.3}}
    model.script({"repeat": turn, "times": 10})
    error = agent.post("/run", {"prompt": "go", "maxCost": 0.5}).json()["error"]
    assert error["details"]["reason"] == "max_cost"
    assert len(model.requests()) == 2


def test_without_auto_tools_none_is_offered(agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script({"text": "ok"})
    run(agent, autoTools=False)
    assert "tools" not in model.requests()[0].json


def test_secrets_reach_neither_the_model_nor_the_log(agent: ServerProcess, model: OpenAIEmulator) -> None:
    secret = "sk-test-key-of-the-model"  # what the server itself was given
    half = len(secret) // 2
    command = f"printf %s {secret[:half]}; sleep 0.1; printf %s {secret[half:]}"
    model.script(
        {"text": f"The key is {secret}.", "pieces": 7, "tool_calls": [{"name": "bash", "arguments": {"command": command}}]},
        {"text": "done"},
    )
    task = run(agent)
    assert secret not in model.requests()[-1].body
    told = json.dumps(agent.task_events(str(task["taskId"])))
    assert secret not in told
    assert "***REDACTED***" in told
    agent.stop()
    for file in agent.data.rglob("*"):
        assert not file.is_file() or secret.encode() not in file.read_bytes(), file
