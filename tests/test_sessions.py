"""Queues, cancelling, timeouts and idempotency: what becomes of tasks while the server lives."""

import asyncio
import time

import pytest

from tests.emulators.openai import OpenAIEmulator
from tests.ended import assert_completed, assert_requests, of_type
from tests.scripts import LINE, STALLED, bash, plan
from tests.serving import ServerProcess, is_alive

GATED = "echo {prompt}; until [ -e go-{prompt} ]; do sleep 0.02; done"
"""A command that ends when the test says so."""

TREE = (
    "setsid -f bash -c 'echo $$ >> pids; exec sleep 300'; echo $$ >> pids; until [ $(wc -l < pids) = 2 ]; do :; done; echo ready; sleep 300"
)
"""A command that never ends, with a child in a session of its own."""


def pids(server: ServerProcess) -> list[int]:
    found = [int(line) for line in (server.workspace / "pids").read_text().split()]
    assert len(found) == 2
    return found


def let_go(server: ServerProcess, name: str) -> None:
    (server.workspace / f"go-{name}").touch()


# Queues


def test_a_session_runs_one_task_at_a_time_and_sessions_run_side_by_side(agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script(plan([bash(GATED)]))
    first, second = agent.submit("first"), agent.submit("second")
    other = agent.submit("other", sessionId="sess_other")
    agent.wait_for(first, "tool.output")
    agent.wait_for(other, "tool.output")
    assert [agent.get(f"/tasks/{task}").json()["phase"] for task in (first, second, other)] == ["running", "queued", "running"]
    for name in ("second", "other", "first"):
        let_go(agent, name)
    told = [assert_completed(agent, task) for task in (first, second, other)]
    assert of_type(told[1], "task.started")[0]["seq"] > told[0][-1]["seq"]


def test_no_more_tasks_run_than_max_concurrent_tasks(agent: ServerProcess, model: OpenAIEmulator) -> None:
    agent.stop()
    agent.start(MAX_CONCURRENT_TASKS="2")
    model.script(plan([bash(GATED)]))
    names = ["one", "two", "three", "four"]
    submitted = [agent.submit(name, sessionId=f"sess_{name}") for name in names]
    for task_id in submitted[:2]:
        agent.wait_for(task_id, "tool.output")
    assert [agent.get(f"/tasks/{task}").json()["phase"] for task in submitted] == ["running", "running", "queued", "queued"]
    assert agent.get("/health").json()["tasks"] == {"processing": 4}
    let_go(agent, "two")
    agent.wait_for(submitted[2], "tool.output")
    assert agent.get(f"/tasks/{submitted[3]}").json()["phase"] == "queued"
    for name in names:
        let_go(agent, name)
    for task_id in submitted:
        assert_completed(agent, task_id)


def test_tasks_are_listed_by_session_and_status_newest_first(agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script({"text": "One."}, {"status": 401}, {"text": "Two."})
    done = [agent.finish(agent.submit(name, sessionId=session)) for name, session in (("a", "sess_a"), ("b", "sess_b"), ("c", "sess_a"))]
    ids = [task["taskId"] for task in done]

    def listed(query: str) -> list[str]:
        return [task["taskId"] for task in agent.get(f"/tasks?{query}").json()["tasks"]]

    assert listed("") == ids[::-1]
    assert listed("status=failed") == [ids[1]]
    assert listed("sessionId=sess_a") == [ids[2], ids[0]]
    page = agent.get("/tasks?limit=2").json()
    assert listed(f"limit=2&cursor={page['nextCursor']}") == [ids[0]]


# Cancel


def test_cancel_ends_a_running_command_with_its_tree_before_it_returns(agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script(plan([bash(TREE), bash("true")]))
    task_id = agent.submit("doomed")
    agent.wait_for(task_id, "tool.output")
    assert all(map(is_alive, pids(agent)))
    task = agent.post(f"/tasks/{task_id}/cancel").json()
    assert not any(map(is_alive, pids(agent)))
    assert (task["status"], task["phase"], task["error"]["code"]) == ("failed", "cancelled", "TASK_CANCELLED")
    told = agent.task_events(task_id)
    assert [event["interrupted"] for event in of_type(told, "tool.finished")] == [True]
    assert [event["reason"] for event in of_type(told, "process.exited")] == ["cancelled"]
    assert told[-1]["type"] == "task.failed"


def test_a_session_goes_on_after_a_cancelled_task(agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script(plan([bash(TREE), bash("true")]))
    task_id = agent.submit("doomed")
    agent.wait_for(task_id, "tool.output")
    agent.post(f"/tasks/{task_id}/cancel")
    model.script({"text": "I see."}, {"text": "Again."})
    agent.post("/run", {"prompt": "what happened?"})
    agent.kill()
    agent.start()
    agent.post("/run", {"prompt": "and now?"})
    assert_requests(model.requests())
    contents = [message["content"] for message in model.requests()[0].json["messages"] if message["role"] == "tool"]
    assert ["Cancelled" in contents[0], "Not run" in contents[1]] == [True, True]


def test_cancel_ends_a_task_that_waits_for_its_model_at_once(agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script(STALLED, {"text": "Hello."})
    task_id = agent.submit("doomed")
    agent.wait_for(task_id, "message.delta")
    began = time.monotonic()
    assert agent.post(f"/tasks/{task_id}/cancel").json()["phase"] == "cancelled"
    assert time.monotonic() - began < 2
    assert agent.post("/run", {"prompt": "hello"}).json()["response"] == "Hello."
    assert_requests(model.requests()[1:])


def test_cancel_takes_a_task_out_of_the_queue(agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script(plan([bash(GATED)]))
    first, second, third = (agent.submit(name) for name in ("first", "second", "third"))
    task = agent.post(f"/tasks/{second}/cancel").json()
    assert (task["status"], task["phase"], task["startedAt"]) == ("failed", "cancelled", None)
    for name in ("first", "third"):
        let_go(agent, name)
    assert_completed(agent, first)
    assert_completed(agent, third)
    asked = [message["content"] for message in model.requests()[-1].json["messages"] if message["role"] == "user"]
    assert asked == ["first", "third"]


def test_cancel_leaves_an_ended_task_as_it_is(agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script({"text": "Done."})
    task = agent.post("/run", {"prompt": "quick"}).json()
    assert agent.post(f"/tasks/{task['taskId']}/cancel").json() == task
    assert agent.post("/tasks/task_unknown/cancel").json()["error"]["code"] == "TASK_NOT_FOUND"


async def test_whoever_waits_for_a_cancelled_task_is_told(agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script(STALLED)
    async with agent.async_client() as client:
        waiting = asyncio.create_task(client.post("/run", json={"prompt": "doomed"}))
        tasks: list[dict[str, str]] = []
        while not tasks:
            tasks = (await client.get("/tasks")).json()["tasks"]
        await client.post(f"/tasks/{tasks[0]['taskId']}/cancel")
        reply = await waiting
    assert (reply.status_code, reply.json()["error"]["code"]) == (409, "TASK_CANCELLED")
    assert reply.json()["error"]["details"]["taskId"] == tasks[0]["taskId"]


# Limits


def test_a_timeout_ends_the_task_and_its_commands(agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script(plan([bash(LINE)], [bash(TREE)]))
    reply = agent.post("/run", {"prompt": "slow", "timeout": 1500})
    assert not any(map(is_alive, pids(agent)))
    assert (reply.status_code, reply.json()["error"]["code"]) == (504, "TASK_TIMEOUT")
    task = agent.get(f"/tasks/{reply.json()['error']['details']['taskId']}").json()
    assert (task["status"], task["phase"]) == ("failed", "timed_out")
    assert {change["path"] for change in task["changes"]} == {"pids", "slow.txt"}
    assert task["toolsUsed"] == [{"name": "bash", "count": 2}]
    model.script({"text": "I see."})
    assert agent.post("/run", {"prompt": "and now?"}).status_code == 200
    assert_requests(model.requests())


def test_a_timeout_ends_a_model_call(agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script(STALLED, {"text": "I see."})
    reply = agent.post("/run", {"prompt": "slow", "timeout": 3000})
    assert (reply.status_code, reply.json()["error"]["code"]) == (504, "TASK_TIMEOUT")
    assert agent.post("/run", {"prompt": "and now?"}).status_code == 200
    assert_requests(model.requests()[1:])


@pytest.mark.parametrize(("limit", "reason"), [({"maxSteps": 2}, "max_steps"), ({"maxCost": 0.5}, "max_cost")])
def test_a_limit_ends_a_task_with_a_reason(limit: dict[str, float], reason: str, agent: ServerProcess, model: OpenAIEmulator) -> None:
    usage = {"prompt_tokens": 10, "completion_tokens": 1, "cost": 0.3}
    model.script({"script": "bash-true", "steps": 9, "usage": usage})
    reply = agent.post("/run", {"prompt": "much", **limit})
    error = reply.json()["error"]
    assert (reply.status_code, error["code"], error["details"]["reason"]) == (422, "RESOURCE_LIMIT_EXCEEDED", reason)
    assert agent.get(f"/tasks/{error['details']['taskId']}").json()["steps"] == 2


# Idempotency


async def test_a_key_gives_one_task_to_many_requests_at_once(agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script({"text": "Once."})
    async with agent.async_client(**{"Idempotency-Key": "the-key"}) as client:
        replies = await asyncio.gather(*(client.post("/run", json={"prompt": "go"}) for _ in range(20)))
    assert {reply.status_code for reply in replies} == {200}
    assert len({reply.json()["taskId"] for reply in replies}) == 1
    assert len(model.requests()) == 1
    again = agent.post("/run", {"prompt": "go"}, **{"Idempotency-Key": "the-key"})
    assert again.json() == replies[0].json()


async def test_a_key_refuses_another_body_also_at_once(agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script({"text": "Once."})
    async with agent.async_client(**{"Idempotency-Key": "the-key"}) as client:
        replies = await asyncio.gather(*(client.post("/run", json={"prompt": f"go {number % 2}"}) for number in range(20)))
    assert sorted(reply.status_code for reply in replies) == [200] * 10 + [422] * 10
    assert len(model.requests()) == 1
    refused = next(reply for reply in replies if reply.status_code == 422)
    assert refused.json()["error"]["code"] == "IDEMPOTENCY_MISMATCH"
