"""Permissions: rules that let calls run, refuse them, or have a client asked."""

import json
import os
import threading
from typing import Any

import pytest

from tests.emulators.openai import OpenAIEmulator
from tests.ended import assert_requests, of_type
from tests.scripts import bash
from tests.serving import ServerProcess, serving


@pytest.fixture
def agent(anew: ServerProcess) -> ServerProcess:
    return anew


def rule(agent: ServerProcess, permission: Any) -> None:
    (agent.workspace / "opencode.json").write_text(json.dumps({"permission": permission}))


def write(path: str, **more: Any) -> dict[str, Any]:
    return {"name": "write", "arguments": {"filePath": path, "content": "x\n"}, **more}


def results(model: OpenAIEmulator, number: int = -1) -> list[str]:
    return [message["content"] for message in model.requests()[number].json["messages"] if message["role"] == "tool"]


def say(agent: ServerProcess, asked: dict[str, Any], response: str, **more: Any) -> tuple[int, str]:
    path = f"/sessions/{asked['sessionId']}/permissions/{asked['permissionId']}"
    reply = agent.post(path, {"response": response, **more})
    return reply.status_code, reply.json().get("error", {}).get("code", "")


def phase(agent: ServerProcess, task_id: str) -> str:
    return str(agent.get(f"/tasks/{task_id}").json()["phase"])


def test_without_rules_everything_is_allowed(agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script({"tool_calls": [bash("touch a"), write("b")]}, {"text": "Done."})
    agent.finish(agent.submit())
    assert (agent.workspace / "a").exists()
    assert (agent.workspace / "b").exists()


def test_a_denied_call_does_not_run_and_the_model_goes_on(agent: ServerProcess, model: OpenAIEmulator) -> None:
    rule(agent, {"bash": {"*": "allow", "rm *": "deny"}, "edit": "deny"})
    (agent.workspace / "kept").touch()
    model.script({"tool_calls": [bash("git status; rm -f kept"), write("b"), bash("touch c")]}, {"text": "Done."})
    task_id = agent.submit()
    assert agent.finish(task_id)["response"] == "Done."
    assert ["A rule of this workspace forbids this call" in result for result in results(model)] == [True, True, False]
    assert "rm -f kept" in results(model)[0]
    told = agent.task_events(task_id)
    assert [event["tool"] for event in of_type(told, "tool.started")] == ["bash"]
    assert [event["isError"] for event in of_type(told, "tool.finished")] == [True, True, False]
    assert sorted(path.name for path in agent.workspace.iterdir()) == ["c", "kept", "opencode.json"]
    assert_requests(model.requests())


def test_one_word_is_for_every_tool(agent: ServerProcess, model: OpenAIEmulator) -> None:
    rule(agent, "deny")
    model.script({"tool_calls": [bash("touch a"), {"name": "read", "arguments": {"filePath": "opencode.json"}}]}, {"text": "Done."})
    agent.finish(agent.submit())
    assert all("forbids" in result for result in results(model))
    assert not (agent.workspace / "a").exists()


def test_a_call_that_is_asked_about_waits_and_runs_once_allowed(agent: ServerProcess, model: OpenAIEmulator) -> None:
    rule(agent, {"bash": {"*": "ask", "ls*": "allow"}})
    model.script({"tool_calls": [{**bash("ls && touch a"), "id": "call_a"}]}, {"text": "Done."})
    task_id = agent.submit()
    asked = agent.wait_for(task_id, "permission.requested")
    shown = {name: asked[name] for name in ("toolCallId", "tool", "permission", "patterns", "always", "input")}
    assert shown == {
        "toolCallId": "call_a",
        "tool": "bash",
        "permission": "bash",
        "patterns": ["touch a"],
        "always": [{"permission": "bash", "pattern": "touch *"}],
        "input": {"command": "ls && touch a"},
    }
    task = agent.get(f"/tasks/{task_id}").json()
    assert (task["status"], task["phase"]) == ("processing", "waiting")
    (listed,) = agent.get("/sessions/sess_main/permissions").json()["permissions"]
    assert {name: listed[name] for name in (*shown, "permissionId")} == {**shown, "permissionId": asked["permissionId"]}
    assert listed["taskId"] == task_id
    assert agent.get("/permissions").json()["permissions"] == [listed]
    assert not (agent.workspace / "a").exists()
    assert say(agent, asked, "once") == (200, "")
    assert agent.finish(task_id)["response"] == "Done."
    assert (agent.workspace / "a").exists()
    kinds = [event["type"] for event in agent.task_events(task_id)]
    order = ["permission.requested", "permission.replied", "tool.started", "tool.finished"]
    assert [kind for kind in kinds if kind in order] == order
    assert agent.get("/sessions/sess_main/permissions").json() == {"permissions": []}
    assert say(agent, asked, "once") == (409, "CONFLICT")


def test_a_rejected_call_does_not_run_and_its_reason_reaches_the_model(agent: ServerProcess, model: OpenAIEmulator) -> None:
    rule(agent, {"edit": "ask"})
    model.script({"tool_calls": [write("a")]}, {"text": "Done."})
    task_id = agent.submit()
    asked = agent.wait_for(task_id, "permission.requested")
    assert say(agent, asked, "reject", message="Use b.") == (200, "")
    assert agent.finish(task_id)["status"] == "completed"
    assert results(model) == ["Error: The user does not allow this call. They say: Use b."]
    assert not (agent.workspace / "a").exists()
    assert not of_type(agent.task_events(task_id), "tool.started")


def test_always_lasts_for_the_session_and_the_pattern(agent: ServerProcess, model: OpenAIEmulator) -> None:
    rule(agent, {"bash": "ask"})
    model.script({"tool_calls": [bash("touch a")]}, {"tool_calls": [bash("touch b")]}, {"text": "One."})
    task_id = agent.submit()
    assert say(agent, agent.wait_for(task_id, "permission.requested"), "always") == (200, "")
    assert agent.finish(task_id)["response"] == "One."
    assert len(of_type(agent.task_events(task_id), "permission.requested")) == 1
    agent.kill()
    agent.start()
    model.script({"tool_calls": [bash("touch c"), bash("rm a")]}, {"text": "Two."})
    task_id = agent.submit()
    asked = agent.wait_for(task_id, "permission.requested")
    assert asked["patterns"] == ["rm a"]
    assert say(agent, asked, "reject") == (200, "")
    agent.finish(task_id)
    assert {path.name for path in agent.workspace.iterdir()} == {"opencode.json", "a", "b", "c"}
    model.script({"tool_calls": [bash("touch d")]}, {"text": "Three."})
    task_id = agent.submit(sessionId="another")
    agent.wait_for(task_id, "permission.requested")
    agent.post(f"/tasks/{task_id}/cancel")


def test_always_answers_what_else_it_allows(agent: ServerProcess, model: OpenAIEmulator) -> None:
    rule(agent, {"read": "ask"})
    for name in "ab":
        (agent.workspace / name).write_text(f"in {name}\n")
    model.script({"tool_calls": [{"name": "read", "arguments": {"filePath": name}} for name in "ab"]}, {"text": "Done."})
    task_id = agent.submit()
    first = agent.wait_for(task_id, "permission.requested")
    agent.wait_for(task_id, "permission.requested", after=first["seq"])
    assert len(agent.get("/sessions/sess_main/permissions").json()["permissions"]) == 2
    assert say(agent, first, "always") == (200, "")
    agent.finish(task_id)
    assert ["in a" in results(model)[0], "in b" in results(model)[1]] == [True, True]


def test_calls_side_by_side_are_asked_about_together(agent: ServerProcess, model: OpenAIEmulator) -> None:
    rule(agent, {"read": {"*": "ask", "c": "deny"}})
    for name in "abc":
        (agent.workspace / name).write_text(f"in {name}\n")
    reads = [{"name": "read", "arguments": {"filePath": name}, "id": f"call_{name}"} for name in "abc"]
    model.script({"tool_calls": reads}, {"text": "Done."})
    task_id = agent.submit()
    first = agent.wait_for(task_id, "permission.requested")
    second = agent.wait_for(task_id, "permission.requested", after=first["seq"])
    assert say(agent, second, "once") == (200, "")
    assert phase(agent, task_id) == "waiting"
    assert say(agent, first, "reject") == (200, "")
    agent.finish(task_id)
    by_call = {m["tool_call_id"]: m["content"] for m in model.requests()[-1].json["messages"] if m["role"] == "tool"}
    assert "does not allow" in by_call["call_a"]
    assert "in b" in by_call["call_b"]
    assert "forbids" in by_call["call_c"]


def test_a_waiting_permission_survives_kills_and_is_honoured_once(agent: ServerProcess, model: OpenAIEmulator) -> None:
    rule(agent, {"bash": "ask"})
    model.script({"tool_calls": [bash("echo ran >> once")]}, {"text": "Done."})
    task_id = agent.submit()
    asked = agent.wait_for(task_id, "permission.requested")
    for number in range(4):
        agent.stop() if number == 1 else agent.kill()
        (agent.workspace / "opencode.json").write_text('{"permission": "deny"}')  # the rules are those of the start
        agent.start()
        agent.wait_for(task_id, "task.resumed")
    assert phase(agent, task_id) == "waiting"
    assert [one["permissionId"] for one in agent.get("/sessions/sess_main/permissions").json()["permissions"]] == [asked["permissionId"]]
    assert say(agent, asked, "once") == (200, "")
    agent.kill()
    agent.start()
    agent.finish(task_id)
    told = agent.task_events(task_id)
    assert len(of_type(told, "permission.requested")) == len(of_type(told, "permission.replied")) == 1
    ended = of_type(told, "tool.finished")
    lines = (agent.workspace / "once").read_text().count("ran") if (agent.workspace / "once").exists() else 0
    assert lines <= 1 if ended[0]["interrupted"] else lines == 1


def test_an_answer_before_the_task_is_taken_up_again_counts(model: OpenAIEmulator) -> None:
    model.script({"tool_calls": [bash("touch a")]}, {"text": "Quick."}, {"text": "Done."})
    with serving(AGENT_BASE_URL=model.url, AGENT_API_KEY="sk-test-key-of-the-model", MAX_CONCURRENT_TASKS="1") as agent:
        rule(agent, {"bash": "ask"})
        task_id = agent.submit(sessionId="slow")
        asked = agent.wait_for(task_id, "permission.requested")
        assert agent.post("/run", {"prompt": "quick"}).json()["response"] == "Quick."  # the place is free meanwhile
        agent.kill()
        agent.start()
        assert say(agent, asked, "once") == (200, "")
        assert agent.finish(task_id)["response"] == "Done."
        assert (agent.workspace / "a").exists()


def test_of_two_clients_that_answer_at_once_one_is_heard(agent: ServerProcess, model: OpenAIEmulator) -> None:
    rule(agent, {"bash": "ask"})
    model.script({"tool_calls": [bash("touch a")]}, {"text": "Done."})
    task_id = agent.submit()
    asked = agent.wait_for(task_id, "permission.requested")
    codes: list[int] = []
    clients = [
        threading.Thread(target=lambda response=response: codes.append(say(agent, asked, response)[0]))
        for response in ["once", "reject"] * 3
    ]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    assert sorted(codes) == [200, *[409] * 5]
    agent.finish(task_id)
    (replied,) = of_type(agent.task_events(task_id), "permission.replied")
    assert (agent.workspace / "a").exists() == (replied["response"] == "once")


def test_unknown_permissions_and_answers_are_refused(agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script({"text": "Done."})
    agent.finish(agent.submit())
    path = "/sessions/sess_main/permissions/perm_none"
    assert agent.post(path, {"response": "once"}).status_code == 404
    assert agent.post("/sessions/none/permissions/perm_none", {"response": "once"}).status_code == 404
    assert agent.get("/sessions/none/permissions").status_code == 404
    for body in ({}, {"response": "yes"}, {"response": "once", "message": "x" * 10_001}):
        assert agent.post(path, body).json()["error"]["code"] == "INVALID_REQUEST"


def test_cancelling_and_the_deadline_end_the_wait(agent: ServerProcess, model: OpenAIEmulator) -> None:
    rule(agent, {"bash": "ask"})
    model.script({"tool_calls": [bash("touch a")]}, {"tool_calls": [bash("touch a")]}, {"text": "Next."})
    task_id = agent.submit()
    asked = agent.wait_for(task_id, "permission.requested")
    assert agent.post(f"/tasks/{task_id}/cancel").json()["phase"] == "cancelled"
    assert say(agent, asked, "once") == (409, "CONFLICT")
    assert agent.get("/sessions/sess_main/permissions").json() == {"permissions": []}
    error = agent.post("/run", {"prompt": "go", "timeout": 700}).json()["error"]
    (late,) = of_type(agent.task_events(error["details"]["taskId"]), "permission.requested")
    assert error["code"] == "TASK_TIMEOUT"
    assert error["details"]["awaited"] == [late["permissionId"]]
    assert "waited for an answer" in error["message"]
    rule(agent, "allow")
    assert agent.post("/run", {"prompt": "go"}).json()["response"] == "Next."
    assert not (agent.workspace / "a").exists()


def test_a_client_that_answers_nothing_is_not_waited_for(agent: ServerProcess, model: OpenAIEmulator) -> None:
    rule(agent, {"bash": {"*": "ask", "ls*": "allow"}})
    model.script({"tool_calls": [bash("touch a"), bash("ls")]}, {"text": "Done."})
    done = agent.post("/run", {"prompt": "go", "interactive": False}).json()
    assert done["response"] == "Done."
    assert ["nobody is there to allow it" in result for result in results(model)] == [True, False]
    assert "touch a" in results(model)[0]
    told = agent.task_events(done["taskId"])
    assert not of_type(told, "permission.requested")
    assert of_type(told, "tool.finished")[0]["details"] == {"reason": "unasked"}
    assert not (agent.workspace / "a").exists()


def test_a_message_takes_the_place_of_an_answer(agent: ServerProcess, model: OpenAIEmulator) -> None:
    rule(agent, {"bash": "ask"})
    model.script({"tool_calls": [bash("touch a"), bash("touch b")]}, {"text": "As you like."})
    task_id = agent.submit()
    asked = agent.wait_for(task_id, "permission.requested")
    assert agent.post(f"/tasks/{task_id}/messages", {"prompt": "Leave it."}).status_code == 200
    assert agent.finish(task_id)["response"] == "As you like."
    assert ["skipped" in result for result in results(model)] == [True, True]
    assert say(agent, asked, "once") == (409, "CONFLICT")
    assert_requests(model.requests())


def test_the_agent_cannot_loosen_the_rules_of_its_own_task(agent: ServerProcess, model: OpenAIEmulator) -> None:
    rule(agent, {"bash": {"*": "allow", "rm *": "deny"}})
    (agent.workspace / "kept").touch()
    model.script({"tool_calls": [bash("echo '{}' > opencode.json")]}, {"tool_calls": [bash("rm kept")]}, {"text": "Done."})
    agent.finish(agent.submit())
    assert "forbids" in results(model)[-1]
    assert (agent.workspace / "kept").exists()


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ('{"permission": {"bash": "maybe"}}', "permission.bash"),
        ('{"permission": {"bash": {"rm *": 1}}}', "permission.bash.rm *"),
        ('{"permission": ["deny"]}', "permission"),
        ('{"permission": {"bash": "deny"', "permission"),
    ],
)
def test_rules_that_cannot_be_understood_fail_the_task(agent: ServerProcess, model: OpenAIEmulator, content: str, named: str) -> None:
    (agent.workspace / "opencode.json").write_text(content)
    model.script({"text": "never"}, {"text": "Mended."})
    reply = agent.post("/run", {"prompt": "go"})
    assert reply.status_code == 400
    error = reply.json()["error"]
    assert (error["code"], error["details"]["path"]) == ("INVALID_REQUEST", named)
    assert "opencode.json" in error["message"]
    assert not model.requests()
    rule(agent, "allow")
    assert agent.post("/run", {"prompt": "go"}).status_code == 200


def test_a_pipe_in_place_of_the_file_holds_nothing(agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script({"text": "never"})
    os.mkfifo(agent.workspace / "opencode.json")
    reply = agent.post("/run", {"prompt": "go"})
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "INVALID_REQUEST")
    assert not model.requests()


def test_tools_of_the_client_go_by_the_rules_too(agent: ServerProcess, model: OpenAIEmulator) -> None:
    rule(agent, {"deploy_*": "deny", "weather": "ask"})
    tools = [{"name": "deploy_it", "parameters": {"type": "object"}}, {"name": "weather", "parameters": {"type": "object"}}]
    model.script(
        {"tool_calls": [{"name": "deploy_it", "arguments": {}}, {"name": "weather", "arguments": {}, "id": "w"}]}, {"text": "Done."}
    )
    task_id = agent.submit(tools=tools)
    asked = agent.wait_for(task_id, "permission.requested")
    assert agent.post(f"/tasks/{task_id}/tool-results", {"toolCallId": "w", "output": "x"}).status_code == 404
    assert say(agent, asked, "once") == (200, "")
    agent.wait_for(task_id, "tool.requested")
    assert agent.post(f"/tasks/{task_id}/tool-results", {"toolCallId": "w", "output": "sunny"}).status_code == 200
    agent.finish(task_id)
    assert ["forbids" in results(model)[0], results(model)[1]] == [True, "sunny"]


def test_agents_have_rules_of_their_own_and_what_has_no_effect_is_said(agent: ServerProcess, model: OpenAIEmulator) -> None:
    denied = {"permission": {"list": "deny"}}
    given = {"tools": {"write": False}, "agent": {"build": {"permission": {"bash": "deny"}}, "plan": denied, "review": denied}}
    (agent.workspace / "opencode.json").write_text(json.dumps(given))
    calls = [bash("touch a"), write("b"), {"name": "list", "arguments": {}}]
    model.script({"tool_calls": calls}, {"text": "Built."}, {"tool_calls": calls}, {"text": "Planned."})
    task_id = agent.submit()
    agent.finish(task_id)
    assert ["forbids" in result for result in results(model)] == [True, True, False]
    (said,) = [event for event in of_type(agent.task_events(task_id), "log") if event["level"] == "WARNING"]
    assert said["source"] == "permissions"
    assert "agent.review has rules" in said["message"]
    agent.finish(agent.submit(mode="plan", sessionId="plan"))
    assert ["forbids" in result for result in results(model)] == [False, False, True]
    assert [path.name for path in agent.workspace.iterdir()] == ["opencode.json"]


# Plan mode


def test_a_plan_changes_nothing_and_shares_the_beginning_with_what_follows(agent: ServerProcess, model: OpenAIEmulator) -> None:
    (agent.workspace / "a").write_text("alpha\n")
    looks = [{"name": "read", "arguments": {"filePath": "a"}}, bash("touch b"), write("c"), {"name": "mine", "arguments": {}}]
    model.script({"tool_calls": looks}, {"text": "The plan."}, {"tool_calls": [write("c")]}, {"text": "Done."}, {"text": "More."})
    tools = [{"name": "mine", "parameters": {"type": "object"}}]
    planned = agent.post("/run", {"prompt": "change it", "mode": "plan", "tools": tools}).json()
    assert planned["response"] == "The plan."
    assert ["plan mode" in result for result in results(model, 1)] == [False, True, True, True]
    assert "alpha" in results(model, 1)[0]
    assert agent.get(f"/changes?taskId={planned['taskId']}").json()["changes"] == []
    assert [path.name for path in agent.workspace.iterdir()] == ["a"]
    assert agent.post("/run", {"prompt": "do it", "tools": tools}).json()["response"] == "Done."
    assert agent.post("/run", {"prompt": "more", "tools": tools}).json()["response"] == "More."
    assert (agent.workspace / "c").exists()
    assert_requests(model.requests())
    prompts = [message["content"] for message in model.requests()[-1].json["messages"] if message["role"] == "user"]
    assert ["in plan mode" in prompts[0], "Plan mode is over" in prompts[1], prompts[2]] == [True, True, "more"]


def test_an_unknown_mode_is_refused(agent: ServerProcess) -> None:
    assert agent.post("/run", {"prompt": "go", "mode": "yolo"}).json()["error"]["details"]["path"] == "mode"
