"""What subagents may do: by the rules of the task they work for, and in its mode."""

import json
from typing import Any

import pytest

from agent_server.calling.plan import PROMPT
from tests.emulators.openai import OpenAIEmulator
from tests.ended import of_type
from tests.scripts import bash, plan, prompts, task
from tests.serving import ServerProcess, events
from tests.test_subagents import children, results

PATCH = "*** Begin Patch\n*** Add File: made\n+x\n*** End Patch"


@pytest.fixture
def agent(anew: ServerProcess) -> ServerProcess:
    return anew


def rule(agent: ServerProcess, permission: Any) -> None:
    (agent.workspace / "opencode.json").write_text(json.dumps({"permission": permission}))


def allow(agent: ServerProcess, asked: dict[str, Any]) -> int:
    return agent.post(f"/sessions/{asked['sessionId']}/permissions/{asked['permissionId']}", {"response": "once"}).status_code


def heard(agent: ServerProcess, task_id: str) -> dict[str, Any]:
    """What somebody who follows only this task hears of its subagents' calls, with the session where it is answered."""
    told = agent.wait_for(task_id, "subagent.asked")
    return {**told, "sessionId": told["subagent"]["sessionId"]}


def test_a_subagent_goes_by_the_rules_that_its_task_began_with(agent: ServerProcess, model: OpenAIEmulator) -> None:
    rule(agent, {"bash": {"*": "allow", "touch *": "deny"}})
    loosened = bash("echo '{}' > opencode.json")
    model.script(prompts(go=plan([loosened], [task("look")]), look=plan([bash("touch made")])))
    task_id = agent.submit("go")
    agent.finish(task_id)
    (sub,) = children(agent, task_id)
    (end,) = results(agent, sub["taskId"])
    assert "A rule of this workspace forbids this call" in end["output"]
    assert not (agent.workspace / "made").exists()


@pytest.mark.parametrize(("kind", "is_made"), [("general", False), ("explore", True)])
def test_a_rule_may_forbid_one_kind_of_subagent(kind: str, is_made: bool, agent: ServerProcess, model: OpenAIEmulator) -> None:
    rule(agent, {"task": {"*": "allow", "general": "deny"}})
    model.script(prompts(go=plan([task("look", kind)]), look={"text": "Nothing."}))
    task_id = agent.submit("go")
    agent.finish(task_id)
    assert bool(children(agent, task_id)) == is_made


def test_a_kind_of_subagent_has_rules_of_its_own_besides_those_of_its_task(agent: ServerProcess, model: OpenAIEmulator) -> None:
    own = {"build": {"permission": {"bash": {"touch a*": "deny"}}}, "general": {"permission": {"bash": {"touch b*": "deny"}}}}
    (agent.workspace / "opencode.json").write_text(json.dumps({"agent": own}))
    model.script(prompts(go=plan([bash("touch b"), task("look")]), look=plan([bash("touch a"), bash("touch b2")])))
    task_id = agent.submit("go")
    agent.finish(task_id)
    (sub,) = children(agent, task_id)
    assert ["forbids" in end["output"] for end in results(agent, sub["taskId"])] == [True, True]
    assert sorted(path.name for path in agent.workspace.iterdir()) == ["b", "opencode.json"]


def test_whoever_follows_a_task_hears_what_its_subagent_asks_and_can_answer(agent: ServerProcess, model: OpenAIEmulator) -> None:
    rule(agent, {"bash": "ask"})
    model.script(prompts(go=plan([task("look")]), look=plan([bash("touch made")])))
    begin = agent.newest()
    task_id = agent.submit("go")
    told = heard(agent, task_id)
    (sub,) = children(agent, task_id)
    assert told["subagent"] == {"sessionId": sub["sessionId"], "taskId": sub["taskId"]}
    assert told["toolCallId"] == sub["toolCallId"]
    assert (told["tool"], told["patterns"], told["input"]) == ("bash", ["touch made"], {"command": "touch made"})
    (listed,) = agent.get("/permissions").json()["permissions"]
    assert (listed["permissionId"], listed["sessionId"]) == (told["permissionId"], sub["sessionId"])
    with agent.client() as client, client.stream("GET", f"/events?after={begin}") as response:
        asked = next(event for event in events(response) if event["type"] == "permission.requested")
    assert asked["permissionId"] == told["permissionId"]
    assert not (agent.workspace / "made").exists()
    assert allow(agent, told) == 200
    assert agent.finish(task_id)["status"] == "completed"
    assert (agent.workspace / "made").exists()
    assert agent.get("/permissions").json() == {"permissions": []}


def test_what_a_subagent_asks_outlives_a_kill_and_is_told_once(agent: ServerProcess, model: OpenAIEmulator) -> None:
    rule(agent, {"bash": "ask"})
    model.script(prompts(go=plan([task("look")]), look=plan([bash("echo x >> made")])))
    task_id = agent.submit("go")
    told = heard(agent, task_id)
    agent.kill()
    agent.start()
    assert allow(agent, told) == 200
    assert agent.finish(task_id)["status"] == "completed"
    assert (agent.workspace / "made").read_text() == "x\n"
    assert len(of_type(agent.task_events(task_id), "subagent.asked")) == 1


def test_a_deadline_tells_of_what_a_subagent_has_asked_in_vain(agent: ServerProcess, model: OpenAIEmulator) -> None:
    rule(agent, {"bash": "ask"})
    model.script(prompts(go=plan([task("look")]), look=plan([bash("touch made")])))
    error = agent.post("/run", {"prompt": "go", "timeout": 3000}).json()["error"]
    (asked,) = of_type(agent.task_events(error["details"]["taskId"]), "subagent.asked")
    assert (error["code"], error["details"]["awaited"]) == ("TASK_TIMEOUT", [asked["permissionId"]])
    assert asked["permissionId"] in error["message"]


@pytest.mark.parametrize("resumed", [False, True])
def test_a_subagent_of_a_plan_changes_nothing(resumed: bool, agent: ServerProcess, model: OpenAIEmulator) -> None:
    tries = [
        bash("touch made"),
        {"name": "write", "arguments": {"filePath": "made", "content": "x"}},
        {"name": "apply_patch", "arguments": {"patchText": PATCH}},
        {"name": "list", "arguments": {}},
    ]
    model.script(prompts(go=plan([task("begin")]), begin={"text": "Begun."}))
    more: dict[str, Any] = {}
    if resumed:  # one that was begun by a task that may change things
        begun = agent.submit("go")
        agent.finish(begun)
        more = {"task_id": children(agent, begun)[0]["sessionId"]}
    in_plan_mode = {"design": plan([task("look", **more)]), "look": plan(tries)}
    model.script(prompts(**{f"{prompt}\n\n{PROMPT}": turn for prompt, turn in in_plan_mode.items()}))
    planned = agent.submit("design", mode="plan")
    assert agent.finish(planned)["status"] == "completed"
    (sub,) = children(agent, planned)
    assert ["plan mode" in end["output"] for end in results(agent, sub["taskId"])] == [True, True, True, False]
    assert list(agent.workspace.iterdir()) == []
