"""Messages that come while a task works: they enter before its next model call, and none is lost."""

import asyncio
from typing import Any

import pytest

from agent_server.sessions.sessions import MAX_MESSAGES
from tests.emulators.openai import OpenAIEmulator
from tests.ended import assert_requests, of_type
from tests.scripts import STALLED, bash
from tests.serving import ServerProcess

GATED = "echo begun; until [ -e go ]; do sleep 0.02; done"
"""A command that ends when the test says so."""


@pytest.fixture
def agent(anew: ServerProcess) -> ServerProcess:
    return anew


def steer(agent: ServerProcess, task_id: str, prompt: Any) -> str:
    reply = agent.post(f"/tasks/{task_id}/messages", {"prompt": prompt})
    assert reply.status_code == 200, reply.text
    assert reply.json()["status"] == "processing"
    return str(reply.json()["messageId"])


def said(model: OpenAIEmulator, number: int = -1) -> list[tuple[str, Any]]:
    return [(message["role"], message["content"]) for message in model.requests()[number].json["messages"][1:]]


def test_a_message_lets_the_running_call_end_and_skips_the_others(agent: ServerProcess, model: OpenAIEmulator) -> None:
    calls = [bash(GATED), bash("touch never"), {"name": "read", "arguments": {"filePath": "a"}}]
    model.script({"tool_calls": calls}, {"text": "As you wish."})
    task_id = agent.submit("work")
    agent.wait_for(task_id, "tool.output")
    message_id = steer(agent, task_id, "Stop that.")
    (agent.workspace / "go").touch()
    task = agent.finish(task_id)
    assert task["response"] == "As you wish."
    assert not (agent.workspace / "never").exists()
    told = agent.task_events(task_id)
    assert [event["messageId"] for event in of_type(told, "message.added")] == [message_id]
    ends = of_type(told, "tool.finished")
    assert [event.get("skipped", False) for event in ends] == [False, True, True]
    assert [event["toolCallId"] for event in of_type(told, "tool.started")] == [ends[0]["toolCallId"]]
    assert task["toolsUsed"] == [{"name": "bash", "count": 1}]
    roles = said(model)
    assert [role for role, _ in roles] == ["user", "assistant", "tool", "tool", "tool", "user"]
    assert roles[2][1] == "begun"
    assert roles[3:5] == [("tool", "skipped due to a queued message")] * 2
    assert roles[-1] == ("user", "Stop that.")
    assert_requests(model.requests())
    shown = agent.get("/sessions/sess_main/messages").json()["messages"]
    assert [message["messageId"] for message in shown][2] == message_id


def test_a_message_while_the_model_answers_makes_another_call(agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script({"text": "All done and dusted.", "pieces": 10, "delay": 0.1}, {"text": "That too."})
    task_id = agent.submit("work")
    agent.wait_for(task_id, "message.delta")
    steer(agent, task_id, [{"type": "text", "text": "And that."}])
    assert agent.finish(task_id)["response"] == "That too."
    assert said(model) == [("user", "work"), ("assistant", "All done and dusted."), ("user", "And that.")]
    assert_requests(model.requests())


def test_calls_that_were_asked_for_before_the_message_are_skipped(agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script({"text": "On with it.", "pieces": 10, "delay": 0.1, "tool_calls": [bash("touch never")]}, {"text": "Fine."})
    task_id = agent.submit("work")
    agent.wait_for(task_id, "message.delta")
    steer(agent, task_id, "Don't.")
    agent.finish(task_id)
    assert not (agent.workspace / "never").exists()
    assert said(model)[-1] == ("user", "Don't.")


@pytest.mark.parametrize("moment", ["tool.output", "message.delta"])
def test_a_message_survives_a_kill(moment: str, agent: ServerProcess, model: OpenAIEmulator) -> None:
    first = STALLED if moment == "message.delta" else {"tool_calls": [bash(f"{GATED}; echo ended"), bash("touch never")]}
    model.script(first, {"text": "I hear you."})
    task_id = agent.submit("work")
    agent.wait_for(task_id, moment)
    steer(agent, task_id, "Hear me.")
    steer(agent, task_id, "And me.")
    agent.kill()
    (agent.workspace / "go").touch()
    agent.start()
    assert agent.finish(task_id)["response"] == "I hear you."
    assert said(model)[-2:] == [("user", "Hear me."), ("user", "And me.")]
    assert not (agent.workspace / "never").exists()
    assert agent.post("/run", {"prompt": "next"}).status_code == 502  # the script is over
    assert_requests([request for request in model.requests() if moment == "tool.output" or request is not model.requests()[0]][1:])


def test_a_message_for_a_queued_task_waits_for_it(agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script({"tool_calls": [bash(GATED)]}, {"text": "One."}, {"text": "Two."})
    first, second = agent.submit("first"), agent.submit("second")
    agent.wait_for(first, "tool.output")
    steer(agent, second, "For the second.")
    (agent.workspace / "go").touch()
    agent.finish(second)
    assert [content for role, content in said(model, 1) if role == "user"] == ["first"]
    assert [content for role, content in said(model) if role == "user"] == ["first", "second", "For the second."]


def test_an_ended_task_takes_no_message(agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script({"text": "Done."}, {"status": 401})
    for prompt in ("works", "fails"):
        task_id = agent.submit(prompt)
        agent.finish(task_id)
        reply = agent.post(f"/tasks/{task_id}/messages", {"prompt": "late"})
        assert (reply.status_code, reply.json()["error"]["code"]) == (409, "CONFLICT")
    unknown = agent.post("/tasks/task_none/messages", {"prompt": "late"})
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "TASK_NOT_FOUND")
    assert agent.post(f"/tasks/{task_id}/messages", {"prompt": " "}).status_code == 400


@pytest.mark.parametrize("end", ["steps", "timeout", "cancel", "failure"])
def test_a_message_that_a_task_ended_before_it_could_answer_is_known_to_the_next(
    end: str, agent: ServerProcess, model: OpenAIEmulator
) -> None:
    work = {"tool_calls": [bash(GATED), bash("touch never")]}
    model.script(work, {"status": 401} if end == "failure" else {"text": "I know."}, {"text": "I know."})
    task_id = agent.submit("work", **{"steps": {"maxSteps": 1}, "timeout": {"timeout": 3_000}}.get(end, {}))
    agent.wait_for(task_id, "tool.output")
    message_id = steer(agent, task_id, "Use port 8080.")
    if end == "cancel":
        agent.post(f"/tasks/{task_id}/cancel")
    elif end != "timeout":
        (agent.workspace / "go").touch()
    assert agent.finish(task_id)["status"] == "failed"
    shown = agent.get("/sessions/sess_main/messages").json()["messages"]
    assert [message["messageId"] for message in shown][-1] == message_id
    agent.kill()
    agent.start()
    assert agent.finish(agent.submit("go on"))["response"] == "I know."
    assert said(model)[-2:] == [("user", "Use port 8080."), ("user", "go on")]
    assert_requests(model.requests())


async def test_at_the_end_of_a_task_a_message_is_either_answered_or_refused(agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script({"repeat": {"text": "ok", "delay": 0.005}, "times": 100})
    taken = refused = 0
    async with agent.async_client() as client:
        for number in range(20):
            accepted = await client.post("/run", json={"prompt": "go", "async": True, "sessionId": f"end-{number}"})
            task_id = accepted.json()["taskId"]
            await asyncio.sleep(0.012 + number * 0.003)
            reply = await client.post(f"/tasks/{task_id}/messages", json={"prompt": "and this"})
            await client.get(f"/tasks/{task_id}/events")  # to its end
            shown = (await client.get(f"/sessions/end-{number}/messages")).json()["messages"]
            texts = [(message["role"], message["content"][0]["text"]) for message in shown]
            if reply.status_code == 200:
                taken += 1
                assert texts.index(("user", "and this")) < len(texts) - 1
            else:
                refused += 1
                assert reply.status_code == 409
                assert ("user", "and this") not in texts
            assert texts[-1] == ("assistant", "ok")
    assert taken + refused == 20


def test_a_message_while_a_failed_call_waits_is_in_the_next_try(agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script({"status": 429, "headers": {"Retry-After": "1"}}, {"text": "I hear you."})
    task_id = agent.submit("work")
    agent.wait_for(task_id, "task.retrying")
    steer(agent, task_id, "Hear me.")
    assert agent.finish(task_id)["response"] == "I hear you."
    assert said(model) == [("user", "work"), ("user", "Hear me.")]
    assert_requests(model.requests())


def test_a_message_for_a_queued_task_survives_a_kill(agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script({"tool_calls": [bash(GATED)]}, {"text": "One."}, {"text": "Two."})
    first, second = agent.submit("first"), agent.submit("second")
    agent.wait_for(first, "tool.output")
    steer(agent, second, "For the second.")
    agent.kill()
    agent.start()
    assert agent.finish(second)["response"] == "Two."
    assert [content for role, content in said(model) if role == "user"] == ["first", "second", "For the second."]
    assert [content for role, content in said(model, 1) if role == "user"] == ["first"]


async def test_a_bounded_number_of_messages_waits_for_a_task(agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script({"tool_calls": [bash(GATED)]}, {"text": "One."}, {"text": "Two."})
    at_work, queued = agent.submit("first"), agent.submit("second")
    agent.wait_for(at_work, "tool.output")
    async with agent.async_client() as client:

        async def send(task_id: str) -> int:
            return (await client.post(f"/tasks/{task_id}/messages", json={"prompt": "x"})).status_code

        for task_id in (at_work, queued):
            for _ in range(MAX_MESSAGES // 50):
                assert set(await asyncio.gather(*(send(task_id) for _ in range(50)))) == {200}
            assert await send(task_id) == 429
    (agent.workspace / "go").touch()
    assert agent.finish(queued)["response"] == "Two."
    assert [len([text for role, text in said(model, number) if text == "x"]) for number in (1, 2)] == [MAX_MESSAGES, 2 * MAX_MESSAGES]


@pytest.mark.parametrize("kind", ["message.added", "tool.finished"])
def test_a_kill_among_the_skipped_calls_runs_none_of_them(kind: str, agent: ServerProcess, model: OpenAIEmulator) -> None:
    others = [bash("touch never"), {"name": "read", "arguments": {"filePath": "a"}}, bash("touch never"), {"name": "mine", "arguments": {}}]
    model.script({"tool_calls": [bash(f"{GATED}; echo ended"), *others]}, {"text": "I hear you."})
    task_id = agent.submit("work", tools=[{"name": "mine", "parameters": {"type": "object"}}])
    agent.wait_for(task_id, "tool.output")
    steer(agent, task_id, "Stop that.")
    if kind == "tool.finished":
        (agent.workspace / "go").touch()
    agent.kill_at(task_id, kind)
    (agent.workspace / "go").touch()
    agent.start()
    assert agent.finish(task_id)["response"] == "I hear you."
    assert not (agent.workspace / "never").exists()
    results = [content for role, content in said(model) if role == "tool"]
    assert len(results) == 5
    assert results[1:] == ["skipped due to a queued message"] * 4
    told = agent.task_events(task_id)
    assert [len(of_type(told, kind)) for kind in ("tool.started", "tool.requested", "tool.finished")] == [1, 0, 5]
    assert said(model)[-1] == ("user", "Stop that.")
    assert_requests(model.requests())


def test_a_batch_of_reads_that_runs_ends_and_the_next_is_skipped(agent: ServerProcess, model: OpenAIEmulator) -> None:
    (agent.workspace / "a").write_text("a")
    reads = [{"name": "read", "arguments": {"filePath": "a", "limit": n + 1}} for n in range(20)]
    # The message may come so late that it is answered by itself.
    model.script({"text": "I read.", "pieces": 1, "tool_calls": reads}, {"repeat": {"text": "I hear you."}, "times": 2})
    task_id = agent.submit("work")
    agent.wait_for(task_id, "tool.started")
    reply = agent.post(f"/tasks/{task_id}/messages", {"prompt": "Stop that."})
    task = agent.finish(task_id)
    told = agent.task_events(task_id)
    ends = of_type(told, "tool.finished")
    assert len(ends) == 20
    skipped = {event["toolCallId"] for event in ends if event.get("skipped")}
    assert skipped == {event["toolCallId"] for event in ends} - {event["toolCallId"] for event in of_type(told, "tool.started")}
    if reply.status_code == 200:
        assert said(model)[-1] == ("user", "Stop that.")
    assert task["response"] == "I hear you."
    assert_requests(model.requests())
