"""Questions of the agent: asked of a client that listens, and of nobody else."""

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx
import pytest

from tests.emulators.openai import OpenAIEmulator
from tests.ended import assert_requests, of_type
from tests.serving import ServerProcess, events, serving

COLOUR = {"question": "Which colour?", "header": "Colour", "options": [{"label": "red"}, {"label": "blue", "description": "dark"}]}
SIZES = {"question": "Which sizes?", "options": [{"label": "S"}, {"label": "L"}], "multiple": True}


def ask(*questions: Any, **more: Any) -> dict[str, Any]:
    return {"name": "question", "arguments": {"questions": list(questions)}, **more}


@pytest.fixture(scope="module")
def lasting(model: OpenAIEmulator) -> Iterator[ServerProcess]:
    with serving(AGENT_BASE_URL=model.url, AGENT_API_KEY="sk-test-key-of-the-model", QUESTION_WAIT_MS="1500") as running:
        yield running


@pytest.fixture
def agent(anew: ServerProcess) -> ServerProcess:
    return anew


@contextmanager
def listening(agent: ServerProcess, path: str) -> Iterator[Iterator[dict[str, Any]]]:
    with agent.client() as client, client.stream("GET", path) as response:
        yield events(response)


def until(told: Iterator[dict[str, Any]], kind: str) -> dict[str, Any]:
    return next(event for event in told if event["type"] == kind)


def answer(agent: ServerProcess, asked: dict[str, Any], **body: Any) -> httpx.Response:
    return agent.post(f"/sessions/{asked['sessionId']}/questions/{asked['questionId']}", body)


def results(model: OpenAIEmulator, number: int = -1) -> list[str]:
    return [message["content"] for message in model.requests()[number].json["messages"] if message["role"] == "tool"]


@pytest.mark.parametrize("path", ["/tasks/{}/events", "/events"])
def test_a_question_waits_for_the_client_that_listens(agent: ServerProcess, model: OpenAIEmulator, path: str) -> None:
    model.script({"tool_calls": [ask(COLOUR, SIZES, id="call_q")]}, {"text": "Done."})
    with ExitStack() as stack:
        if "{}" not in path:
            told = stack.enter_context(listening(agent, path))
        task_id = agent.submit()
        if "{}" in path:
            told = stack.enter_context(listening(agent, path.format(task_id)))
        asked = until(told, "question.asked")
        assert asked["toolCallId"] == "call_q"
        assert [question["question"] for question in asked["questions"]] == ["Which colour?", "Which sizes?"]
        assert asked["questions"][0]["options"][1] == {"label": "blue", "description": "dark"}
        assert agent.get(f"/tasks/{task_id}").json()["phase"] == "waiting"
        (listed,) = agent.get("/sessions/sess_main/questions").json()["questions"]
        assert listed["questionId"] == asked["questionId"]
        for wrong in ({}, {"answers": [["red"]]}, {"answers": [["red", "blue"], []]}, {"answers": [["red"], []], "rejected": True}):
            assert answer(agent, asked, **wrong).status_code == 400, wrong
        assert answer(agent, asked, answers=[["my own"], ["S", "L"]]).status_code == 200
        assert until(told, "question.answered")["answers"] == [["my own"], ["S", "L"]]
        assert agent.finish(task_id)["response"] == "Done."
    assert results(model) == ["The user answered:\n- Which colour?\n  my own\n- Which sizes?\n  S, L"]
    assert answer(agent, asked, answers=[[], []]).status_code == 409
    assert agent.get("/sessions/sess_main/questions").json() == {"questions": []}
    assert_requests(model.requests())


def test_a_streamed_run_listens_to_its_own_task(agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script({"tool_calls": [ask(COLOUR)]}, {"text": "Done."})
    with agent.client(Accept="text/event-stream") as client, client.stream("POST", "/run", json={"prompt": "go"}) as response:
        told = events(response)
        assert answer(agent, until(told, "question.asked"), rejected=True).status_code == 200
        assert until(told, "task.completed")["response"] == "Done."
    assert "does not want to answer" in results(model)[0]


@pytest.mark.parametrize("path", [None, "/logs?follow=true"])
def test_without_a_listener_a_question_refuses_itself(agent: ServerProcess, model: OpenAIEmulator, path: str | None) -> None:
    model.script({"tool_calls": [ask(COLOUR)]}, {"text": "I assume red."})
    with ExitStack() as stack:
        if path is not None:
            stack.enter_context(listening(agent, path))
        task = agent.post("/run", {"prompt": "go"}).json()
    assert task["response"] == "I assume red."
    assert "state your assumption" in results(model)[0]
    assert not of_type(agent.task_events(task["taskId"]), "question.asked")


def test_a_client_may_say_that_it_answers_or_does_not(agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script({"tool_calls": [ask(COLOUR)]}, {"text": "Red."}, {"tool_calls": [ask(COLOUR)]}, {"text": "Assumed."})
    task_id = agent.submit(interactive=True)
    while not (asked := agent.get("/sessions/sess_main/questions").json().get("questions")):
        pass
    assert answer(agent, asked[0], answers=[["red"]]).status_code == 200
    assert agent.finish(task_id)["response"] == "Red."
    with listening(agent, "/events"):
        assert agent.finish(agent.submit(interactive=False))["response"] == "Assumed."


def test_a_question_that_all_listeners_left_is_refused_in_the_end(agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script({"tool_calls": [ask(COLOUR)]}, {"text": "I assume red."})
    task_id = agent.submit()
    asked = agent.wait_for(task_id, "question.asked")  # and goes
    assert agent.finish(task_id)["response"] == "I assume red."
    (answered,) = of_type(agent.task_events(task_id), "question.answered")
    assert (answered["rejected"], answered["reason"]) == (True, "no_client")
    assert answer(agent, asked, answers=[["red"]]).status_code == 409


@contextmanager
def passing_by(agent: ServerProcess) -> Iterator[None]:
    """Streams of another task open and end all the time meanwhile."""
    over = threading.Event()

    def pass_by() -> None:
        with agent.client() as client:
            while not over.wait(0.1):
                client.get(f"/tasks/{other}/events")

    other = agent.submit("other", sessionId="other")
    agent.finish(other)
    thread = threading.Thread(target=pass_by)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_streams_of_other_tasks_do_not_hasten_a_refusal(agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script({"text": "Other."}, {"tool_calls": [ask(COLOUR)]}, {"text": "Red."})
    with passing_by(agent):
        task_id = agent.submit()
        while not agent.get(f"/tasks/{task_id}").json()["toolsUsed"]:
            time.sleep(0.02)
        time.sleep(0.5)  # of the 2 s that a question waits for its first listener
        with listening(agent, f"/tasks/{task_id}/events") as told:
            assert answer(agent, until(told, "question.asked"), answers=[["red"]]).status_code == 200
            assert until(told, "task.completed")["response"] == "Red."


def test_streams_of_other_tasks_do_not_put_a_refusal_off(agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script({"text": "Other."}, {"tool_calls": [ask(COLOUR)]}, {"text": "I assume red."})
    with passing_by(agent):
        task_id = agent.submit()
        agent.wait_for(task_id, "question.asked")  # and goes
        assert agent.finish(task_id, 10)["response"] == "I assume red."


def test_a_question_outlives_a_kill_and_is_not_asked_twice(agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script({"tool_calls": [ask(COLOUR)]}, {"text": "Done."})
    task_id = agent.submit()
    asked = agent.wait_for(task_id, "question.asked")
    agent.kill()
    agent.start()
    with listening(agent, f"/tasks/{task_id}/events?after={asked['seq']}") as told:
        until(told, "task.resumed")
        assert agent.get(f"/tasks/{task_id}").json()["phase"] == "waiting"
        assert answer(agent, asked, answers=[["blue"]]).status_code == 200
        until(told, "task.completed")
    assert "blue" in results(model)[0]
    assert len(of_type(agent.task_events(task_id), "question.asked")) == 1


def test_after_a_kill_a_question_that_nobody_comes_back_for_is_refused(agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script({"tool_calls": [ask(COLOUR)]}, {"text": "I assume red."})
    task_id = agent.submit()
    agent.wait_for(task_id, "question.asked")
    agent.stop()
    agent.start()
    assert agent.finish(task_id)["response"] == "I assume red."


def test_of_two_answers_at_once_one_is_taken(agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script({"tool_calls": [ask(COLOUR)]}, {"text": "Done."})
    codes: list[int] = []
    task_id = agent.submit()
    with listening(agent, f"/tasks/{task_id}/events") as told:
        asked = until(told, "question.asked")
        clients = [
            threading.Thread(target=lambda colour=colour: codes.append(answer(agent, asked, answers=[[colour]]).status_code))
            for colour in ["red", "blue"] * 2
        ]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
        until(told, "task.completed")
    assert sorted(codes) == [200, 409, 409, 409]


def test_two_questions_and_other_calls_go_side_by_side(model: OpenAIEmulator) -> None:
    calls = [ask(COLOUR, id="one"), {"name": "list", "arguments": {}}, ask(SIZES, id="two")]
    model.script({"tool_calls": calls}, {"text": "Quick."}, {"text": "Done."}, {"text": "After."})
    with serving(AGENT_BASE_URL=model.url, AGENT_API_KEY="sk-test-key-of-the-model", MAX_CONCURRENT_TASKS="1") as agent:
        task_id = agent.submit(sessionId="slow")
        with listening(agent, f"/tasks/{task_id}/events") as told:
            asked = [until(told, "question.asked") for _ in range(2)]
            assert agent.post("/run", {"prompt": "quick"}).json()["response"] == "Quick."
            assert answer(agent, asked[1], answers=[["red"]]).status_code == 200
            assert agent.get(f"/tasks/{task_id}").json()["phase"] == "waiting"
            assert answer(agent, asked[0], answers=[["S"]]).status_code == 200
            assert until(told, "task.completed")["response"] == "Done."
        assert agent.post("/run", {"prompt": "after"}).json()["response"] == "After."  # the one place is there


def test_a_message_takes_the_place_of_an_answer(agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script({"tool_calls": [ask(COLOUR)]}, {"text": "Done."})
    task_id = agent.submit()
    with listening(agent, f"/tasks/{task_id}/events") as told:
        until(told, "question.asked")
        assert agent.post(f"/tasks/{task_id}/messages", {"prompt": "Red, and be quick."}).status_code == 200
        until(told, "task.completed")
    assert "a message in place of an answer" in results(model)[0]
    assert_requests(model.requests())


def test_cancelling_and_the_deadline_end_the_wait(agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script({"tool_calls": [ask(COLOUR)]}, {"tool_calls": [ask(COLOUR)]}, {"text": "Next."})
    with listening(agent, "/events") as told:
        task_id = agent.submit()
        asked = until(told, "question.asked")
        assert agent.post(f"/tasks/{task_id}/cancel").json()["phase"] == "cancelled"
        assert answer(agent, asked, rejected=True).status_code == 409
        assert agent.post("/run", {"prompt": "go", "timeout": 700}).json()["error"]["code"] == "TASK_TIMEOUT"
    assert agent.post("/run", {"prompt": "go"}).json()["response"] == "Next."


def test_unknown_questions_are_not_found(agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script({"text": "Done."})
    agent.finish(agent.submit())
    assert agent.post("/sessions/sess_main/questions/ques_none", {"rejected": True}).status_code == 404
    assert agent.get("/sessions/none/questions").status_code == 404
