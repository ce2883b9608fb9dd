"""Subagents: tasks that the calls of another task make, in contexts of their own."""

import json
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent_server.calling.calls import MAX_SUBAGENTS
from tests.emulators.openai import OpenAIEmulator
from tests.ended import assert_completed, of_type
from tests.scripts import bash, plan, prompts, task
from tests.serving import ServerProcess, events, is_alive, serving
from tests.test_mcp_client import SERVER
from tests.test_metrics import scrape, value

KEY = "sk-test-key-of-the-model"

GATED = "echo begun; until [ -e go ]; do sleep 0.02; done"
"""A command that ends when the test says so."""


@pytest.fixture
def agent(anew: ServerProcess) -> ServerProcess:
    return anew


def children(agent: ServerProcess, task_id: str) -> list[dict[str, Any]]:
    """The tasks of a task's subagents, oldest first."""
    listed = agent.get("/tasks?limit=200").json()["tasks"]
    return [one for one in reversed(listed) if one["parentTaskId"] == task_id]


def requests_for(model: OpenAIEmulator, prompt: str) -> list[dict[str, Any]]:
    """The requests of the agent whose last prompt this is."""
    bodies = [record.json for record in model.requests()]
    return [body for body in bodies if [m["content"] for m in body["messages"] if m["role"] == "user"][-1] == prompt]


def results(agent: ServerProcess, task_id: str) -> list[dict[str, Any]]:
    return [dict(event) for event in of_type(agent.task_events(task_id), "tool.finished")]


def reference(text: str) -> str:
    """The task_id that a model reads in a result."""
    found = re.search(r"^task_id: (\S+)", text, re.MULTILINE)
    assert found is not None, text
    return found[1]


def test_a_subagent_works_in_a_context_of_its_own_and_gives_its_last_words(agent: ServerProcess, model: OpenAIEmulator) -> None:
    child = plan([bash("echo made > made")], text="Found it.", saying="Looking.")
    model.script(prompts(go=plan([task("look")], text="All done."), look=child))
    task_id = agent.submit("go")
    told = agent.finish(task_id)
    assert told["response"] == "All done."
    (end,) = results(agent, task_id)
    (sub,) = children(agent, task_id)
    assert end["output"] == f"task_id: {sub['sessionId']}\n\nFound it."
    assert not end["isError"]
    assert end["details"] == {
        "sessionId": sub["sessionId"],
        "taskId": sub["taskId"],
        "agentType": "general",
        "status": "completed",
        "usage": sub["usage"],
    }
    assert (agent.workspace / "made").read_text() == "made\n"
    first, second = requests_for(model, "look")
    assert [message["role"] for message in first["messages"]] == ["system", "user"]
    assert second["messages"][: len(first["messages"])] == first["messages"]
    assert "Found it." not in str(requests_for(model, "go")[0])
    assert_completed(agent, sub["taskId"])


def test_it_is_a_task_and_a_session_that_name_what_they_work_for(agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script(prompts(go=plan([task("look", "explore")]), look={"text": "Nothing."}))
    task_id = agent.submit("go", sessionId="named")
    parent = agent.finish(task_id)
    (started,) = of_type(agent.task_events(task_id), "tool.started")
    (sub,) = children(agent, task_id)
    named = {"parentSessionId": "named", "parentTaskId": task_id, "toolCallId": started["toolCallId"]}
    assert named.items() <= sub.items()
    session = agent.get(f"/sessions/{sub['sessionId']}").json()
    assert named.items() <= session.items()
    assert (session["title"], session["agentType"], session["status"]) == ("Do look", "explore", "idle")
    (created, *_) = agent.task_events(sub["taskId"])
    assert named.items() <= created.items()
    assert [parent[name] for name in named] == [None] * 3
    assert sub["sessionId"] in [one["sessionId"] for one in agent.get("/sessions").json()["sessions"]]
    assert agent.get("/sessions/named").json()["parentSessionId"] is None


def test_the_parents_stream_has_its_own_events_and_all_events_have_both(agent: ServerProcess, model: OpenAIEmulator) -> None:
    begin = agent.newest()
    model.script(prompts(go=plan([task("look")]), look={"text": "Nothing."}))
    stream = agent.post("/run", {"prompt": "go"}, accept="text/event-stream").text
    tasks = {json.loads(line[6:])["taskId"] for line in stream.splitlines() if line.startswith("data: ")}
    (task_id,) = tasks
    (sub,) = children(agent, task_id)
    everything = until_end(agent, task_id, begin)
    assert {event["taskId"] for event in everything if event["type"] == "message.completed"} == {task_id, sub["taskId"]}
    assert {event["sessionId"] for event in everything if event["taskId"] == sub["taskId"]} == {sub["sessionId"]}


def until_end(agent: ServerProcess, task_id: str, after: int = 0) -> list[dict[str, Any]]:
    """All events above `after`, to the end of a task."""
    found = []
    with agent.client() as client, client.stream("GET", f"/events?after={after}") as response:
        for event in events(response):
            found.append(event)
            if event["taskId"] == task_id and event["type"] in ("task.completed", "task.failed"):
                break
    return found


@pytest.mark.parametrize(
    ("kind", "has", "has_not"),
    [
        ("explore", {"read", "glob", "grep", "list"}, {"bash", "edit", "write", "task", "todowrite", "question"}),
        ("general", {"read", "glob", "grep", "list", "bash", "edit", "write"}, {"task", "todowrite", "question"}),
    ],
)
def test_each_kind_has_its_tools_and_its_prompt(
    kind: str, has: set[str], has_not: set[str], agent: ServerProcess, model: OpenAIEmulator
) -> None:
    tries = [{"name": "write", "arguments": {"filePath": "x", "content": "x"}}, task("deeper")]
    (agent.workspace / "AGENTS.md").write_text("Mind the gap.")
    skill = agent.workspace / ".claude/skills/pdf/SKILL.md"
    skill.parent.mkdir(parents=True)
    skill.write_text("---\nname: pdf\ndescription: Of pages.\n---\n")
    model.script(prompts(go=plan([task("look", kind)]), look=plan(tries), deeper={"text": "Too deep."}))
    task_id = agent.submit("go", system="Be brief.")
    agent.finish(task_id)
    offered = {tool["function"]["name"] for tool in requests_for(model, "look")[0]["tools"]}
    assert has <= offered
    assert not has_not & offered
    system = requests_for(model, "look")[0]["messages"][0]["content"]
    assert "You are a subagent" in system
    assert "Mind the gap." in system
    assert ("- pdf: Of pages." in system) == ("skill" in offered)
    assert system.endswith("Be brief.")
    (sub,) = children(agent, task_id)
    written, delegated = results(agent, sub["taskId"])
    assert (agent.workspace / "x").exists() == (kind == "general") != written["isError"]
    assert "There is no tool 'task'" in delegated["output"]
    assert not children(agent, sub["taskId"])


def test_several_in_one_message_work_side_by_side(agent: ServerProcess, model: OpenAIEmulator) -> None:
    meet = "touch {mine}; until [ -e {other} ]; do sleep 0.02; done"
    one, two = meet.format(mine="one", other="two"), meet.format(mine="two", other="one")
    model.script(prompts(go=plan([task("a"), task("b")]), a=plan([bash(one)], text="A."), b=plan([bash(two)], text="B.")))
    task_id = agent.submit("go")
    assert (ended := agent.finish(task_id))["status"] == "completed", ended
    messages = requests_for(model, "go")[-1]["messages"]
    said = {message["tool_call_id"]: message["content"].rpartition("\n")[2] for message in messages if message["role"] == "tool"}
    assert [said[call["id"]] for call in messages[-3]["tool_calls"]] == ["A.", "B."]
    assert len({sub["sessionId"] for sub in children(agent, task_id)}) == 2


def test_more_than_may_work_side_by_side_all_come_to_their_turn(agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script(prompts(go=plan([task("look", "explore")] * (MAX_SUBAGENTS + 2)), look={"text": "Seen.", "delay": 0.01}))
    task_id = agent.submit("go")
    assert (ended := agent.finish(task_id))["status"] == "completed", ended
    assert len(children(agent, task_id)) == MAX_SUBAGENTS + 2
    at_work = most = 0
    for event in until_end(agent, task_id):
        if (event["taskId"] or "") in {sub["taskId"] for sub in children(agent, task_id)}:
            at_work += (event["type"] == "task.started") - (event["type"] == "task.completed")
            most = max(most, at_work)
    assert 1 < most <= MAX_SUBAGENTS


# Resumed


def test_a_subagent_that_is_resumed_knows_what_it_knew(agent: ServerProcess, model: OpenAIEmulator) -> None:
    first = [task("look", "explore")]
    model.script(prompts(go=plan(first), look={"text": "It is blue."}))
    begun = agent.submit("go")
    agent.finish(begun)
    known = reference(results(agent, begun)[0]["output"])
    model.script(prompts(on=plan([task("and then", "explore", task_id=known)]), and_then={"text": "Still blue."}))
    later = agent.submit("on")  # another task of the same session
    agent.finish(later)
    assert results(agent, later)[0]["output"] == f"task_id: {known}\n\nStill blue."
    (request,) = requests_for(model, "and then")
    assert [m["content"] for m in request["messages"][1:]] == ["look", "It is blue.", "and then"]
    (sub,) = children(agent, later)
    assert sub["sessionId"] == known
    assert agent.get(f"/sessions/{known}").json()["tasks"] == 2


def test_a_task_of_it_names_a_subagent_too_and_two_that_resume_one_take_turns(agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script(prompts(go=plan([task("look")]), look={"text": "First."}))
    begun = agent.submit("go")
    agent.finish(begun)
    (sub,) = children(agent, begun)
    again = [task("second", task_id=sub["taskId"]), task("third", task_id=sub["sessionId"])]
    model.script(prompts(on=plan(again), second={"text": "2", "delay": 0.05}, third={"text": "3"}))
    later = agent.submit("on")
    agent.finish(later)
    (request,) = requests_for(model, "third")
    assert [m["content"] for m in request["messages"][1:]] == ["look", "First.", "second", "2", "third"]


def test_only_the_session_that_began_a_subagent_can_resume_it(agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script(prompts(go=plan([task("look")]), look={"text": "Secret."}))
    begun = agent.submit("go", sessionId="theirs")
    agent.finish(begun)
    known = reference(results(agent, begun)[0]["output"])
    forked = agent.post("/sessions/theirs/fork").json()["sessionId"]
    model.script(prompts(on=plan([task("tell", task_id=known)]), tell={"text": "No."}))
    for session_id in ("sess_main", forked):
        later = agent.submit("on", sessionId=session_id)
        assert agent.finish(later)["status"] == "completed"
        (end,) = results(agent, later)
        assert end["isError"]
        assert "has no subagent" in end["output"]
        assert not children(agent, later)


@pytest.mark.parametrize("reference", ["sess_main", "sess_nothing", "../..", "'; DROP TABLE tasks", "x" * 10_000])
def test_what_is_no_subagent_cannot_be_resumed(reference: str, agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script(prompts(go=plan([task("tell", task_id=reference)])))
    task_id = agent.submit("go")
    assert (ended := agent.finish(task_id))["status"] == "completed", ended
    (end,) = results(agent, task_id)
    assert end["isError"]
    assert "has no subagent" in end["output"]
    assert len(end["output"]) < 500


def test_one_that_only_reads_is_not_resumed_as_one_that_writes(agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script(prompts(go=plan([task("look", "explore")]), look={"text": "Seen."}))
    begun = agent.submit("go")
    agent.finish(begun)
    known = reference(results(agent, begun)[0]["output"])
    model.script(prompts(on=plan([task("change", "general", task_id=known)])))
    later = agent.submit("on")
    agent.finish(later)
    assert "is a subagent of type explore" in results(agent, later)[0]["output"]


def test_a_client_that_goes_on_with_a_subagents_session_gets_that_subagent(agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script(prompts(go=plan([task("look", "explore")]), look={"text": "Seen."}, more={"text": "More."}))
    begun = agent.submit("go")
    agent.finish(begun)
    known = reference(results(agent, begun)[0]["output"])
    own = agent.finish(agent.submit("more", sessionId=known))
    assert (own["response"], own["parentTaskId"]) == ("More.", None)
    (request,) = requests_for(model, "more")
    assert "write" not in {tool["function"]["name"] for tool in request["tools"]}


@pytest.mark.parametrize(
    "arguments",
    [
        {"description": "d", "prompt": "p", "subagent_type": "root"},
        {"description": "d", "prompt": " ", "subagent_type": "general"},
        {"description": "d", "subagent_type": "general"},
        "{not json",
    ],
)
def test_wrong_arguments_make_no_subagent(arguments: Any, agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script({"tool_calls": [{"name": "task", "arguments": arguments}]}, {"text": "Oh."})
    task_id = agent.submit("go")
    assert agent.finish(task_id)["response"] == "Oh."
    assert results(agent, task_id)[0]["isError"]
    assert not children(agent, task_id)


# Limits, failures, the end


def test_what_a_subagent_costs_counts_to_its_parents_task(agent: ServerProcess, model: OpenAIEmulator) -> None:
    usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110, "cost": 0.25}
    look = plan([bash("true")], usage=usage)
    model.script(prompts(go=plan([task("look"), task("look")], usage={**usage, "cost": 1.0}), look=look))
    before = value(scrape(agent), "agent_server_cost_usd_total")
    task_id = agent.submit("go")
    parent = agent.finish(task_id)
    assert [sub["usage"]["cost"] for sub in children(agent, task_id)] == [0.5, 0.5]
    assert parent["usage"]["cost"] == 3.0
    assert parent["usage"]["prompt_tokens"] == 600
    assert parent["tokensUsed"] == 660
    assert agent.get("/sessions/sess_main").json()["cost"] == 3.0
    assert [end["details"]["usage"]["cost"] for end in results(agent, task_id)] == [0.5, 0.5]
    after = value(scrape(agent), "agent_server_cost_usd_total")
    assert after - before == 3.0  # each call once, whoever made it


def test_a_subagent_of_a_plan_only_plans(agent: ServerProcess, model: OpenAIEmulator) -> None:
    write = {"name": "write", "arguments": {"filePath": "by-child", "content": "x"}}
    model.script({"tool_calls": [task("do", "general")]}, {"tool_calls": [write]}, {"text": "A plan."}, {"text": "So be it."})
    task_id = agent.submit("go", mode="plan")
    assert (ended := agent.finish(task_id))["status"] == "completed", ended
    (sub,) = children(agent, task_id)
    (refused,) = results(agent, sub["taskId"])
    assert refused["isError"]
    assert "plan mode" in refused["output"]
    assert not (agent.workspace / "by-child").exists()


@pytest.mark.parametrize(("limit", "steps"), [(1.6, 2), (2.5, 4)])
def test_a_limit_of_costs_holds_over_a_task_and_its_subagents(
    limit: float, steps: int, agent: ServerProcess, model: OpenAIEmulator
) -> None:
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    look = plan(*[[bash("true")]] * 50, usage={**usage, "cost": 0.4})
    model.script(prompts(go=plan([task("look")], usage={**usage, "cost": 1.0}), look=look))
    task_id = agent.submit("go", maxCost=limit)
    parent = agent.finish(task_id)
    (sub,) = children(agent, task_id)
    for ended in (parent, sub):
        assert ended["status"] == "failed"
        assert ended["error"]["details"]["reason"] == "max_cost"
    assert sub["steps"] == steps
    assert results(agent, task_id)[0]["isError"]


def test_the_model_and_the_deadline_of_the_parent_are_the_subagents(agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script(prompts(go=plan([bash("sleep 0.3"), task("look")]), look={"text": "Seen."}))
    task_id = agent.submit("go", model="some/model", max_tokens=77, maxSteps=5, timeout=30_000)
    agent.finish(task_id)
    (request,) = requests_for(model, "look")
    assert (request["model"], request["max_tokens"]) == ("some/model", 77)
    (sub,) = children(agent, task_id)
    (created, *_) = agent.task_events(sub["taskId"])
    assert 0 < created["timeout_ms"] <= 29_700
    assert created["maxSteps"] == 5


def test_a_subagent_that_fails_is_an_error_that_says_why_and_can_be_resumed(agent: ServerProcess, model: OpenAIEmulator) -> None:
    broken = {"status": 400, "error": {"message": "The model is out of order."}}
    model.script(prompts(go=plan([task("look")], text="I see."), look=broken))
    task_id = agent.submit("go")
    assert agent.finish(task_id)["response"] == "I see."
    (end,) = results(agent, task_id)
    assert end["isError"]
    assert "The model is out of order." in end["output"]
    assert end["details"]["status"] == "failed"
    known = reference(end["output"])
    model.script(prompts(on=plan([task("again", task_id=known)]), again={"text": "Better."}))
    later = agent.submit("on")
    agent.finish(later)
    assert results(agent, later)[0]["output"] == f"task_id: {known}\n\nBetter."


def test_a_subagent_that_is_cancelled_alone_is_an_error_for_its_parent(agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script(prompts(go=plan([task("look")], text="Fine."), look=plan([bash(GATED)])))
    task_id = agent.submit("go")
    agent.wait_for(task_id, "tool.started")
    sub = begun_child(agent, task_id)
    agent.wait_for(sub, "tool.output")
    agent.post(f"/tasks/{sub}/cancel")
    assert agent.finish(task_id)["response"] == "Fine."
    assert "cancelled" in results(agent, task_id)[0]["output"]


def begun_child(agent: ServerProcess, task_id: str, number: int = 0) -> str:
    """Waits for a subagent of a task, and gives its id."""
    with agent.client() as client, client.stream("GET", "/events?after=0") as response:
        for event in events(response):
            if event["type"] == "task.created" and event.get("parentTaskId") == task_id:
                if not number:
                    return str(event["taskId"])
                number -= 1
    raise AssertionError("the stream ended")


def test_the_end_of_a_task_ends_its_subagents_and_their_commands(agent: ServerProcess, model: OpenAIEmulator) -> None:
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2, "cost": 0.5}
    stay = plan([bash("echo $$; setsid sleep 300")], usage=usage)
    model.script(prompts(go=plan([task("a"), task("b")], usage=usage), a=stay, b=stay))
    task_id = agent.submit("go")
    subs = [begun_child(agent, task_id, number) for number in (0, 1)]
    pids = [int(agent.wait_for(sub, "tool.output")["chunk"]) for sub in subs]
    ended = agent.post(f"/tasks/{task_id}/cancel").json()
    assert (ended["phase"], ended["usage"]["cost"]) == ("cancelled", 1.5)
    assert not any(map(is_alive, pids))
    assert [agent.get(f"/tasks/{sub}").json()["phase"] for sub in subs] == ["cancelled", "cancelled"]
    ends = results(agent, task_id)
    assert {end["details"]["taskId"] for end in ends} == set(subs)
    assert all(end["interrupted"] for end in ends)
    last = [event["seq"] for sub in subs for event in of_type(agent.task_events(sub), "task.failed")]
    assert max(last) < of_type(agent.task_events(task_id), "task.failed")[0]["seq"]
    assert agent.get("/activity").json()["active"] is False


@pytest.mark.parametrize("end", ["cancel", "deadline"])
def test_the_end_of_a_task_ends_what_a_subagent_left_in_the_background(end: str, agent: ServerProcess, model: OpenAIEmulator) -> None:
    leave = {"name": "bash", "arguments": {"command": "echo $$ > pid; exec sleep 300", "background": True}}
    begun = bash("until [ -s pid ]; do sleep 0.02; done; echo begun; sleep 300")
    model.script(prompts(go=plan([task("serve")], [begun]), serve=plan([leave])))
    task_id = agent.submit("go", **({"timeout": 4_000} if end == "deadline" else {}))
    agent.wait_for(task_id, "tool.output")
    pid = int((agent.workspace / "pid").read_text())
    assert [child["status"] for child in children(agent, task_id)] == ["completed"]
    assert is_alive(pid)
    if end == "cancel":
        agent.post(f"/tasks/{task_id}/cancel")
    assert agent.finish(task_id)["status"] == "failed"
    assert not is_alive(pid)


def test_the_deadline_of_a_task_ends_its_subagents(agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script(prompts(go=plan([task("look")]), look=plan([bash("echo $$; sleep 300")])))
    task_id = agent.submit("go", timeout=2_500)
    sub = begun_child(agent, task_id)
    pid = int(agent.wait_for(sub, "tool.output")["chunk"])
    assert agent.finish(task_id)["error"]["code"] == "TASK_TIMEOUT"
    assert agent.get(f"/tasks/{sub}").json()["status"] == "failed"
    assert not is_alive(pid)


def test_a_message_for_the_parent_lets_subagents_that_have_begun_end(agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script(prompts(go=plan([task("look")]), look=plan([bash(GATED)], text="Seen."), hurry={"text": "Yes."}))
    task_id = agent.submit("go")
    agent.wait_for(begun_child(agent, task_id), "tool.output")
    agent.post(f"/tasks/{task_id}/messages", {"prompt": "hurry"})
    (agent.workspace / "go").touch()
    assert agent.finish(task_id)["response"] == "Yes."
    assert results(agent, task_id)[0]["output"].endswith("Seen.")


def test_a_long_answer_is_cut_as_every_result_and_keeps_its_task_id(agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script(prompts(go=plan([task("look")]), look={"text": "x" * 200_000}))
    task_id = agent.submit("go")
    agent.finish(task_id)
    output = results(agent, task_id)[0]["output"]
    assert len(output) < 60_000
    assert "[cut: the whole is in" in output
    assert reference(output) == children(agent, task_id)[0]["sessionId"]


def test_the_clients_tools_are_the_general_subagents_but_for_those_the_client_runs(agent: ServerProcess, model: OpenAIEmulator) -> None:
    tools = [{"name": "by_url", "description": "d", "url": "http://127.0.0.1:9/x"}, {"name": "by_client", "description": "d"}]
    model.script(prompts(go=plan([task("a", "explore"), task("b")]), a={"text": "A."}, b={"text": "B."}))
    agent.finish(agent.submit("go", tools=tools))
    names = {prompt: {t["function"]["name"] for t in requests_for(model, prompt)[0]["tools"]} for prompt in ("a", "b")}
    assert "by_url" in names["b"]
    assert "by_client" not in names["b"]
    assert not {"by_url", "by_client"} & names["a"]


def test_the_clients_mcp_servers_are_the_general_subagents_with_what_they_need(
    agent: ServerProcess, model: OpenAIEmulator, tmp_path: Path
) -> None:
    (tmp_path / "server.py").write_text(SERVER)
    secret = {"MY_TOKEN": "tell-nobody-of-this"}
    mcp = {"name": "sums", "command": sys.executable, "args": [str(tmp_path / "server.py")], "env": secret}
    look = plan([{"name": "add", "arguments": {"a": 2, "b": 3}}, {"name": "secret", "arguments": {}}])
    model.script(prompts(go=plan([task("look")]), look=look))
    task_id = agent.submit("go", tools=[{"mcp": mcp}])
    assert (ended := agent.finish(task_id))["status"] == "completed", ended
    (sub,) = children(agent, task_id)
    told = agent.task_events(sub["taskId"])
    assert [event["output"] for event in of_type(told, "tool.finished")] == ["5", "***REDACTED***"]
    assert secret["MY_TOKEN"] not in str(told)
    assert not list((agent.data / "tools").glob("*"))


def test_auto_tools_false_offers_no_subagents(agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script({"text": "Alone."})
    tool = {"name": "by_url", "description": "d", "url": "http://127.0.0.1:9/x"}
    agent.finish(agent.submit("go", autoTools=False, tools=[tool]))
    assert [t["function"]["name"] for t in model.requests()[0].json["tools"]] == ["by_url"]


# One place


@pytest.fixture(scope="module")
def narrow(model: OpenAIEmulator) -> Iterator[ServerProcess]:
    """A server where one task works at a time."""
    with serving(AGENT_BASE_URL=model.url, AGENT_API_KEY=KEY, MAX_CONCURRENT_TASKS="1") as running:
        yield running


def test_one_place_is_enough_for_tasks_with_subagents(narrow: ServerProcess, model: OpenAIEmulator) -> None:
    model.script(prompts(go=plan([task("a"), task("b")], [task("a")]), a=plan([bash("true")], text="A."), b={"text": "B."}))
    tasks = [narrow.submit("go", sessionId=f"s{number}") for number in range(3)]
    for task_id in tasks:
        assert narrow.finish(task_id)["status"] == "completed"
        assert len(children(narrow, task_id)) == 3


def test_a_task_that_waits_for_a_place_behind_its_subagents_can_be_cancelled(narrow: ServerProcess, model: OpenAIEmulator) -> None:
    model.script(prompts(go=plan([task("look")]), look=plan([bash("sleep 300")]), next={"text": "Next."}))
    task_id = narrow.submit("go", sessionId="first")
    narrow.wait_for(begun_child(narrow, task_id), "tool.started")
    assert narrow.post(f"/tasks/{task_id}/cancel").json()["phase"] == "cancelled"
    assert narrow.finish(narrow.submit("next"))["response"] == "Next."


# Sessions


def delegated(agent: ServerProcess, session_id: str) -> tuple[str, dict[str, Any]]:
    """Has a task of this session go, and gives its id and its one subagent's task."""
    task_id = agent.submit("go", sessionId=session_id)
    assert (ended := agent.finish(task_id))["status"] == "completed", ended
    (sub,) = children(agent, task_id)
    return task_id, sub


def test_who_deletes_a_session_deletes_its_subagents_too(agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script(prompts(go=plan([task("look")]), look={"text": "Seen."}))
    _, sub = delegated(agent, "doomed")
    _, other = delegated(agent, "spared")
    with agent.client() as client:
        assert client.delete("/sessions/doomed").status_code == 200
    assert agent.get(f"/sessions/{sub['sessionId']}").status_code == 404
    assert agent.get(f"/sessions/{other['sessionId']}").status_code == 200
    model.script(prompts(on=plan([task("tell", task_id=sub["sessionId"])])))
    later = agent.submit("on", sessionId="doomed")
    agent.finish(later)
    assert "has no subagent" in results(agent, later)[0]["output"]


def test_a_session_whose_subagent_a_client_has_at_work_is_not_deleted(agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script(prompts(go=plan([task("look")]), look={"text": "Seen."}, stay=plan([bash(GATED)])))
    _, sub = delegated(agent, "busy-child")
    own = agent.submit("stay", sessionId=sub["sessionId"])
    with agent.client() as client:
        response = client.delete("/sessions/busy-child")
        assert (response.status_code, response.json()["error"]["details"]) == (409, {"sessionId": sub["sessionId"]})
        assert agent.get("/sessions/busy-child").status_code == 200
        (agent.workspace / "go").touch()
        agent.finish(own)
        assert client.delete("/sessions/busy-child").status_code == 200


def test_a_subagents_session_can_be_deleted_alone(agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script(prompts(go=plan([task("look")]), look={"text": "Seen."}))
    _, sub = delegated(agent, "keeps")
    with agent.client() as client:
        assert client.delete(f"/sessions/{sub['sessionId']}").status_code == 200
    model.script(prompts(on=plan([task("tell", task_id=sub["sessionId"])])))
    later = agent.submit("on", sessionId="keeps")
    agent.finish(later)
    assert "has no subagent" in results(agent, later)[0]["output"]


def test_a_fork_of_a_subagent_stays_one(agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script(prompts(go=plan([task("look", "explore")]), look={"text": "Seen."}, more={"text": "More."}))
    _, sub = delegated(agent, "forked")
    fork = agent.post(f"/sessions/{sub['sessionId']}/fork").json()
    assert (fork["agentType"], fork["parentSessionId"]) == ("explore", None)
    agent.finish(agent.submit("more", sessionId=fork["sessionId"]))
    assert "bash" not in {tool["function"]["name"] for tool in requests_for(model, "more")[0]["tools"]}


def test_a_revert_takes_back_what_subagents_did(agent: ServerProcess, model: OpenAIEmulator) -> None:
    write = {"name": "write", "arguments": {"filePath": "by-child", "content": "x"}}
    model.script(prompts(go=plan([task("look"), task("beside")]), look=plan([write]), beside=plan([bash("echo y > beside")])))
    task_id = agent.submit("go", sessionId="undone")
    assert {change["path"] for change in agent.finish(task_id)["changes"]} == {"by-child", "beside"}
    response = agent.post("/sessions/undone/revert", {"taskId": task_id})
    assert response.status_code == 200, response.text
    assert not (agent.workspace / "by-child").exists()
    assert not (agent.workspace / "beside").exists()
    assert [sub["reverted"] for sub in children(agent, task_id)] == [True, True]
    assert agent.post("/sessions/undone/unrevert").status_code == 200
    assert (agent.workspace / "by-child").read_text() == "x"
    assert [sub["reverted"] for sub in children(agent, task_id)] == [False, False]


def test_a_subagent_can_be_resumed_where_a_snapshot_is_restored(agent: ServerProcess, model: OpenAIEmulator, tmp_path: Path) -> None:
    model.script(prompts(go=plan([task("look", "explore")]), look={"text": "It is blue."}))
    _, sub = delegated(agent, "carried")
    assert agent.post("/snapshot", {"name": "with-subagent"}).status_code == 201
    archive = agent.get("/snapshots/with-subagent/archive").content
    with serving(tmp_path, AGENT_BASE_URL=model.url, AGENT_API_KEY=KEY) as other:
        with other.client() as client:
            assert client.put("/snapshots/with-subagent/archive", content=archive).status_code == 201
        assert other.post("/snapshots/with-subagent/restore").status_code == 200
        assert other.get(f"/sessions/{sub['sessionId']}").json()["parentSessionId"] == "carried"
        model.script(prompts(on=plan([task("and then", "explore", task_id=sub["sessionId"])]), and_then={"text": "Still."}))
        later = other.submit("on", sessionId="carried")
        other.finish(later)
        assert results(other, later)[0]["output"].endswith("Still.")
        (request,) = requests_for(model, "and then")
        assert [m["content"] for m in request["messages"][1:]] == ["look", "It is blue.", "and then"]
        assert "bash" not in {tool["function"]["name"] for tool in request["tools"]}


# The instance


def test_subagents_count_as_activity_and_stand_still_in_a_quiesce(agent: ServerProcess, model: OpenAIEmulator) -> None:
    steps = [[bash("echo {step} >> still; sleep 0.02")]] * 30
    model.script(prompts(go=plan([task("look")]), look=plan(*steps)))
    task_id = agent.submit("go")
    agent.wait_for(begun_child(agent, task_id), "step.finished")
    assert {"type": "task", "count": 2} in agent.get("/activity").json()["reasons"]
    assert agent.post("/lifecycle/quiesce").json()["still"]
    lines = (agent.workspace / "still").read_text()
    time.sleep(0.3)  # that nothing happens cannot be waited for
    assert (agent.workspace / "still").read_text() == lines
    agent.post("/lifecycle/resume")
    assert (ended := agent.finish(task_id))["status"] == "completed", ended
    assert (agent.workspace / "still").read_text().split() == [str(step) for step in range(30)]


def test_a_quiesce_while_subagents_begin_leaves_none_half_begun(agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script(prompts(go=plan([task("look")] * 4), look={"text": "Seen."}))
    for number in range(5):
        task_id = agent.submit("go", sessionId=f"quiesced{number}")
        agent.wait_for(task_id, "tool.started")
        assert agent.post("/lifecycle/quiesce").json()["still"]
        newest = agent.newest()
        time.sleep(0.1)  # that nothing happens cannot be waited for
        later = [event for event in agent.get("/logs?lines=100&level=DEBUG").json()["logs"] if event["seq"] > newest]
        assert [event["type"] for event in later if event["source"] != "port"] == []  # others open ports on this machine
        agent.post("/lifecycle/resume")
        assert (ended := agent.finish(task_id))["status"] == "completed", ended
        assert len(children(agent, task_id)) == 4


def test_two_subagents_together_keep_to_the_limit_of_costs(agent: ServerProcess, model: OpenAIEmulator) -> None:
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2, "cost": 0.25}
    look = plan(*[[bash("true")]] * 50, usage=usage)
    model.script(prompts(go=plan([task("look"), task("look")], usage=usage), look=look))
    task_id = agent.submit("go", maxCost=2.25)
    parent = agent.finish(task_id)
    assert parent["error"]["details"]["reason"] == "max_cost"
    assert 2.25 <= parent["usage"]["cost"] <= 2.5  # each of two may be in a step
    assert parent["usage"]["cost"] == 0.25 + sum(sub["usage"]["cost"] for sub in children(agent, task_id))
