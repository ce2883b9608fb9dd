"""The sessions over HTTP: listed, shown, forked, compacted, deleted."""

import asyncio
import json
import sqlite3
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.emulators.history import complaint
from tests.emulators.openai import OpenAIEmulator
from tests.ended import assert_requests
from tests.scripts import STALLED, bash, plan
from tests.serving import ServerProcess, serving


@pytest.fixture(scope="module")
def agent(model: OpenAIEmulator) -> Iterator[ServerProcess]:
    """One server for many tests: each has sessions of its own."""
    with serving(AGENT_BASE_URL=model.url, AGENT_API_KEY="sk-test-key-of-the-model") as running:
        yield running


def run(agent: ServerProcess, session: str, prompt: Any = "go", **more: Any) -> dict[str, Any]:
    reply = agent.post("/run", {"prompt": prompt, "sessionId": session, **more})
    assert reply.status_code == 200, reply.text
    task: dict[str, Any] = reply.json()
    return task


def messages(agent: ServerProcess, session: str) -> list[dict[str, Any]]:
    reply = agent.get(f"/sessions/{session}/messages?limit=200")
    assert reply.status_code == 200, reply.text
    found: list[dict[str, Any]] = reply.json()["messages"]
    return found


def delete(agent: ServerProcess, session: str) -> tuple[int, dict[str, Any]]:
    with agent.client() as client:
        reply = client.delete(f"/sessions/{session}")
    return reply.status_code, reply.json()


def sent(model: OpenAIEmulator, number: int = -1) -> list[Any]:
    """What a request has for the model, save the system prompt."""
    return [message["content"] for message in model.requests()[number].json["messages"][1:]]


def wait_for_requests(model: OpenAIEmulator, count: int) -> None:
    while len(model.requests()) < count:
        time.sleep(0.01)


# List and show


def test_sessions_are_listed_by_newest_activity(agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script({"repeat": {"text": "ok"}, "times": 5})
    for name in ("list-a", "list-b", "list-c", "list-a"):
        run(agent, name, f"first of {name}")
    first = agent.get("/sessions?limit=2").json()
    assert [session["sessionId"] for session in first["sessions"]] == ["list-a", "list-c"]
    rest = agent.get(f"/sessions?limit=1&cursor={first['nextCursor']}").json()
    assert [session["sessionId"] for session in rest["sessions"]] == ["list-b"]
    shown = agent.get("/sessions/list-a").json()
    assert shown == first["sessions"][0]
    assert (shown["tasks"], shown["status"], shown["title"], shown["forkedFrom"]) == (2, "idle", "first of list-a", None)
    assert shown["tokensUsed"] > 0
    assert shown["createdAt"] < shown["updatedAt"]


def test_an_unknown_session_is_not_found(agent: ServerProcess) -> None:
    replies = [agent.get("/sessions/none"), agent.get("/sessions/none/messages"), agent.post("/sessions/none/fork")]
    replies.append(agent.post("/sessions/none/compact"))
    assert {(reply.status_code, reply.json()["error"]["code"]) for reply in replies} == {(404, "SESSION_NOT_FOUND")}
    assert delete(agent, "none")[1]["error"]["code"] == "SESSION_NOT_FOUND"


def test_messages_show_calls_with_their_results(agent: ServerProcess, model: OpenAIEmulator) -> None:
    calls = [bash("echo out"), {"name": "read", "arguments": {"filePath": "none"}}, {"name": "bash", "arguments": "{oops"}]
    model.script({"text": "I look.", "tool_calls": calls}, {"text": "Done."})
    image = {"type": "image", "mediaType": "image/png", "data": "aGk="}
    task = run(agent, "shown", [{"type": "text", "text": "look"}, image])
    found = messages(agent, "shown")
    assert [message["role"] for message in found] == ["user", "assistant", "assistant"]
    assert all(message["messageId"].startswith("msg_") for message in found)
    assert {message["taskId"] for message in found} == {task["taskId"]}
    assert found[0]["content"] == [{"type": "text", "text": "look"}, image]
    assert [(call["tool"], call["isError"]) for call in found[1]["toolCalls"]] == [("bash", False), ("read", True), ("bash", True)]
    assert found[1]["toolCalls"][0]["input"] == {"command": "echo out"}
    assert found[1]["toolCalls"][0]["output"] == "out"
    assert found[1]["toolCalls"][2]["input"] == "{oops"
    assert found[2]["messageId"] == task["messageId"]
    assert found[2]["content"] == [{"type": "text", "text": "Done."}]


def test_messages_come_in_pages(agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script({"repeat": {"text": "ok"}, "times": 4})
    for number in range(4):
        run(agent, "paged", f"say {number}")
    found: list[str] = []
    cursor: str | None = ""
    while cursor is not None:
        page = agent.get(f"/sessions/paged/messages?limit=3{cursor and '&cursor=' + cursor}").json()
        found += [message["messageId"] for message in page["messages"]]
        cursor = page["nextCursor"]
    assert found == [message["messageId"] for message in messages(agent, "paged")]
    assert len(set(found)) == 8
    assert agent.get("/sessions/paged/messages?cursor=msg_none").json()["error"]["details"]["path"] == "cursor"


def test_the_list_is_built_again_from_the_log(agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script({"repeat": {"text": "ok"}, "times": 3})
    for name in ("again", "again-gone"):
        run(agent, name)
    agent.post("/sessions/again/fork")
    delete(agent, "again-gone")
    before = agent.get("/sessions?limit=200").json()
    agent.stop()
    with sqlite3.connect(agent.data / "events.db") as db:
        db.execute("DROP TABLE sessions")
        db.execute("DELETE FROM meta WHERE name LIKE 'index %'")
    db.close()
    agent.start()
    assert agent.get("/sessions?limit=200").json() == before


# Delete


def test_a_deleted_session_begins_anew(agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script({"text": "I know."}, {"text": "Who are you?"}, {"text": "Again."})
    task = run(agent, "gone", "remember me")
    before = agent.newest()
    assert delete(agent, "gone") == (200, {"sessionId": "gone", "deleted": True})
    told = agent.get("/logs?lines=50").json()["logs"]
    assert [line["type"] for line in told if line["seq"] > before] == ["session.deleted"]
    assert agent.get("/sessions/gone").status_code == 404
    assert "gone" not in [session["sessionId"] for session in agent.get("/sessions?limit=200").json()["sessions"]]
    assert delete(agent, "gone")[0] == 404
    assert agent.get(f"/tasks/{task['taskId']}").json()["response"] == "I know."  # what has happened has happened
    run(agent, "gone", "hello")
    assert sent(model) == ["hello"]
    assert agent.get("/sessions/gone").json()["tasks"] == 1
    agent.kill()
    agent.start()
    run(agent, "gone", "and now?")
    assert sent(model) == ["hello", "Who are you?", "and now?"]


def test_a_busy_session_is_neither_deleted_nor_compacted(agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script(STALLED)
    task_id = agent.submit("work", sessionId="busy")
    agent.wait_for(task_id, "message.delta")
    assert agent.get("/sessions/busy").json()["status"] == "busy"
    status, body = delete(agent, "busy")
    assert (status, body["error"]["code"]) == (409, "CONFLICT")
    reply = agent.post("/sessions/busy/compact")
    assert (reply.status_code, reply.json()["error"]["code"]) == (409, "CONFLICT")
    agent.post(f"/tasks/{task_id}/cancel")
    assert delete(agent, "busy")[0] == 200


async def test_no_task_is_lost_to_a_deletion_at_the_same_time(agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script({"repeat": {"text": "ok"}, "times": 30})
    run(agent, "race")
    async with agent.async_client() as client:
        for number in range(8):
            prompt = {"prompt": f"task {number}", "sessionId": "race"}
            replies = await asyncio.gather(client.post("/run", json=prompt), client.delete("/sessions/race"))
            assert replies[0].status_code == 200
            assert replies[1].status_code in (200, 404, 409)
            assert sent(model)[-1] == f"task {number}"


def test_retention_no_longer_keeps_what_a_deleted_session_was_made_of(agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script({"text": "ok"}, {"text": "ok"})
    run(agent, "kept")
    run(agent, "unkept")
    delete(agent, "unkept")
    agent.stop()
    with sqlite3.connect(agent.data / "events.db") as db:
        statement = "SELECT count(*) FROM events WHERE context = 1 AND session_id = ?"
        counts = [db.execute(statement, (session,)).fetchone()[0] for session in ("kept", "unkept")]
    db.close()
    agent.start()
    assert counts[0] > 0
    assert counts[1] == 0


# Fork


def test_a_fork_goes_on_from_the_same_bytes(agent: ServerProcess, model: OpenAIEmulator) -> None:
    calls = [bash("printf 'a\\xff \\x1b[0m☃'"), {"name": "none", "arguments": "{}"}]
    model.script(plan(calls, reasoning="Hmm.", text="Fine: “ok”."))
    image = {"type": "image", "mediaType": "image/png", "data": "aGk="}
    run(agent, "origin", [{"type": "text", "text": "one"}, image])
    run(agent, "origin", "two")
    reply = agent.post("/sessions/origin/fork")
    assert reply.status_code == 201
    forked = reply.json()
    assert (forked["forkedFrom"], forked["tasks"], forked["status"]) == ("origin", 0, "idle")
    assert messages(agent, forked["sessionId"]) == messages(agent, "origin")
    model.script({"repeat": {"text": "Three."}, "times": 4})
    run(agent, "origin", "three")
    run(agent, forked["sessionId"], "three")
    agent.kill()
    agent.start()
    run(agent, "origin", "four")
    run(agent, forked["sessionId"], "four")
    bodies = [request.body for request in model.requests()]
    assert bodies[0] == bodies[1]
    assert bodies[2] == bodies[3]
    assert_requests(model.requests()[::2])


def test_a_fork_at_a_message_is_the_prefix_up_to_it(agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script(
        {"tool_calls": [bash("echo 1"), bash("echo 2")]}, {"text": "One."}, {"text": "Two."}, {"repeat": {"text": "ok"}, "times": 3}
    )
    run(agent, "parts", "one")
    run(agent, "parts", "two")
    origin = messages(agent, "parts")
    for at in (0, 1, 2):
        forked = agent.post("/sessions/parts/fork", {"atMessageId": origin[at]["messageId"]}).json()["sessionId"]
        assert [message["messageId"] for message in messages(agent, forked)] == [message["messageId"] for message in origin[: at + 1]]
        run(agent, forked, "else")
        begin, end = (model.requests()[number].body for number in (2, -1))
        assert complaint(json.loads(end)) is None
        shared = json.loads(begin)["messages"][: len(json.loads(end)["messages"]) - 1]
        assert json.loads(end)["messages"][:-1] == shared
    assert agent.post("/sessions/parts/fork", {"atMessageId": "msg_none"}).status_code == 404


def test_a_fork_of_a_session_at_work_has_a_result_for_every_call(agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script({"tool_calls": [bash("echo out; sleep 60"), bash("true")]}, {"text": "Forked."})
    task_id = agent.submit("work", sessionId="working")
    agent.wait_for(task_id, "tool.output")
    forked = agent.post("/sessions/working/fork").json()["sessionId"]
    run(agent, forked, "what?")
    assert ["forked" in content for content in sent(model) if "Not run" in str(content)] == [True, True]
    agent.post(f"/tasks/{task_id}/cancel")


def test_a_fork_lives_without_its_origin(agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script({"text": "Noted."}, {"text": "Blue."})
    run(agent, "mortal", "the colour is blue")
    forked = agent.post("/sessions/mortal/fork").json()["sessionId"]
    assert delete(agent, "mortal")[0] == 200
    agent.kill()
    agent.start()
    run(agent, forked, "which colour?")
    assert sent(model) == ["the colour is blue", "Noted.", "which colour?"]


# Compact


def test_a_compacted_session_goes_on_with_the_summary(agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script({"tool_calls": [bash("echo out")]}, {"text": "Done."}, {"text": "He wanted out."}, {"text": "Yes."}, {"text": "Again."})
    run(agent, "long", "say out")
    reply = agent.post("/sessions/long/compact")
    assert reply.status_code == 200, reply.text
    body = reply.json()
    assert (body["compacted"], body["summary"], body["replaces"]["messages"]) == (True, "He wanted out.", 4)
    assert body["usage"]["total_tokens"] > 0
    before, asked = (model.requests()[number].body for number in (1, 2))
    assert asked.startswith(before[:-2])  # the request for the summary is paid for by the cache
    run(agent, "long", "sure?")
    contents = sent(model)
    assert len(contents) == 2
    assert "He wanted out." in contents[0]
    assert contents[1] == "sure?"
    agent.kill()
    agent.start()
    run(agent, "long", "really?")
    assert_requests(model.requests()[3:])
    found = messages(agent, "long")
    assert [message["isSummary"] for message in found] == [True, False, False, False, False]
    assert found[0]["messageId"] == body["messageId"]


@pytest.mark.parametrize("turn", [{"status": 401}, {"tool_calls": [bash("true")]}], ids=["refused", "calls-instead"])
def test_a_failed_compaction_leaves_the_session_as_it_was(turn: dict[str, Any], agent: ServerProcess, model: OpenAIEmulator) -> None:
    name = f"stays-{len(turn)}{next(iter(turn))}"
    model.script({"text": "Good."}, turn, {"text": "Better."})
    run(agent, name, "one")
    reply = agent.post(f"/sessions/{name}/compact")
    assert (reply.status_code, reply.json()["error"]["code"]) == (502, "MODEL_ERROR")
    run(agent, name, "two")
    assert sent(model) == ["one", "Good.", "two"]


def test_a_conversation_too_long_to_be_summarised_is_shortened_for_it(agent: ServerProcess, model: OpenAIEmulator) -> None:
    overflow = {"status": 400, "error": {"message": "too long", "code": "context_length_exceeded"}}
    model.script({"tool_calls": [bash("seq 1 5000")]}, {"text": "Done."}, overflow, {"text": "Numbers."})
    run(agent, "too-long", "count")
    assert agent.post("/sessions/too-long/compact").json()["summary"] == "Numbers."
    sizes = [len(request.body) for request in model.requests()]
    assert sizes[3] < sizes[2] - 9_000


def test_there_may_be_nothing_to_compact(agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script({"text": "ok"}, {"text": "Short."})
    run(agent, "short")
    assert agent.post("/sessions/short/compact").json()["compacted"] is True
    body = agent.post("/sessions/short/compact").json()
    assert (body["compacted"], body["summary"]) == (False, None)
    assert "nothing to compact" in body["reason"]
    assert len(model.requests()) == 2


async def test_a_task_waits_while_its_session_is_compacted(agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script({"text": "ok"}, {"text": "In short.", "delay": 0.1}, {"text": "After."})
    run(agent, "meanwhile")
    async with agent.async_client() as client:
        compacting = asyncio.create_task(client.post("/sessions/meanwhile/compact", json={}))
        await asyncio.to_thread(wait_for_requests, model, 2)
        reply = await client.post("/run", json={"prompt": "now", "sessionId": "meanwhile"})
        assert (await compacting).json()["compacted"] is True
    assert reply.json()["response"] == "After."
    assert "In short." in sent(model)[0]


def test_a_kill_during_a_compaction_loses_nothing(agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script({"text": "ok"}, STALLED, {"text": "Here."})
    run(agent, "killed", "one")

    async def kill() -> None:
        async with agent.async_client() as client:
            compacting = asyncio.create_task(client.post("/sessions/killed/compact", json={}))
            await asyncio.to_thread(wait_for_requests, model, 2)
            agent.kill()
            await asyncio.gather(compacting, return_exceptions=True)

    asyncio.run(kill())
    agent.start()
    run(agent, "killed", "two")
    assert sent(model) == ["one", "ok", "two"]
