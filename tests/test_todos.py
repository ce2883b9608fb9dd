"""A session's todo list: the newest that its agent wrote, as a fold of the log."""

import itertools
from collections.abc import Iterator
from typing import Any

import pytest

from tests.emulators.openai import OpenAIEmulator
from tests.ended import of_type
from tests.serving import ServerProcess, serving

NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def server(model: OpenAIEmulator) -> Iterator[ServerProcess]:
    with serving(AGENT_BASE_URL=model.url, AGENT_API_KEY="sk-test-key-of-the-model") as running:
        yield running


@pytest.fixture
def session() -> str:
    return f"session-{next(NUMBERS)}"


def todos(*contents: str) -> list[dict[str, Any]]:
    return [{"content": content, "status": "pending", "priority": "low"} for content in contents]


def write(server: ServerProcess, model: OpenAIEmulator, session: str, *lists: Any) -> str:
    """Has a task write these lists, each in a call, and gives the task's id."""
    calls = [{"name": "todowrite", "arguments": {"todos": one}} for one in lists]
    model.script({"tool_calls": calls}, {"text": "ok"})
    reply = server.post("/run", {"prompt": "plan", "sessionId": session})
    assert reply.status_code == 200, reply.text
    return str(reply.json()["taskId"])


def shown(server: ServerProcess, session: str) -> Any:
    reply = server.get(f"/sessions/{session}/todos")
    assert reply.status_code == 200, reply.text
    assert reply.json()["sessionId"] == session
    return reply.json()["todos"]


def test_the_newest_list_is_shown_and_is_in_the_event(server: ServerProcess, model: OpenAIEmulator, session: str) -> None:
    task_id = write(server, model, session, todos("a", "b"), [{"content": "x", "status": "done"}], todos("b", "c"))
    ends = of_type(server.task_events(task_id), "tool.finished")
    assert [end["isError"] for end in ends] == [False, True, False]
    assert ends[-1]["details"] == {"todos": todos("b", "c")}
    assert ends[-1]["output"] == "2 todos: 2 pending."
    assert shown(server, session) == todos("b", "c")
    write(server, model, session, [])
    assert shown(server, session) == []


def test_a_session_without_one_has_an_empty_list_and_an_unknown_one_is_not_found(
    server: ServerProcess, model: OpenAIEmulator, session: str
) -> None:
    assert server.get(f"/sessions/{session}/todos").status_code == 404
    write(server, model, session)
    assert shown(server, session) == []


def test_it_is_the_same_after_a_kill(server: ServerProcess, model: OpenAIEmulator, session: str) -> None:
    write(server, model, session, todos("lasts"))
    server.kill()
    server.start()
    assert shown(server, session) == todos("lasts")


def test_a_revert_brings_the_list_before_back_and_an_unrevert_the_later_one(
    server: ServerProcess, model: OpenAIEmulator, session: str
) -> None:
    write(server, model, session, todos("first"))
    task_id = write(server, model, session, todos("second"))
    assert server.post(f"/sessions/{session}/revert", {"taskId": task_id}).status_code == 200
    assert shown(server, session) == todos("first")
    assert server.post(f"/sessions/{session}/unrevert").status_code == 200
    assert shown(server, session) == todos("second")


def test_a_fork_begins_with_the_list_it_was_made_at(server: ServerProcess, model: OpenAIEmulator, session: str) -> None:
    write(server, model, session, todos("first"))
    at = server.get(f"/sessions/{session}/messages").json()["messages"][-1]["messageId"]
    write(server, model, session, todos("second"))
    earlier = server.post(f"/sessions/{session}/fork", {"atMessageId": at}).json()["sessionId"]
    present = server.post(f"/sessions/{session}/fork").json()["sessionId"]
    assert shown(server, earlier) == todos("first")
    assert shown(server, present) == todos("second")
    again = server.post(f"/sessions/{present}/fork").json()["sessionId"]
    write(server, model, session, [])
    assert shown(server, again) == todos("second")


def test_a_deleted_session_begins_without(server: ServerProcess, model: OpenAIEmulator, session: str) -> None:
    write(server, model, session, todos("gone"))
    with server.client() as client:
        assert client.delete(f"/sessions/{session}").status_code == 200
    write(server, model, session)
    assert shown(server, session) == []


def test_a_snapshot_brings_it_back(server: ServerProcess, model: OpenAIEmulator, session: str) -> None:
    write(server, model, session, todos("kept"))
    snapshot = server.post("/snapshot", {"name": session})
    assert snapshot.status_code == 201, snapshot.text
    write(server, model, session, todos("later"))
    reply = server.post(f"/snapshots/{snapshot.json()['snapshotId']}/restore")
    assert reply.status_code == 200, reply.text
    assert shown(server, session) == todos("kept")
