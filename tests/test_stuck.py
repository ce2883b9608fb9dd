"""A task whose calls repeat themselves: the model is told so in the result, and then the task ends; what makes progress goes on."""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_server.sessions.stuck import NUDGE_AT, STUCK_AT, Repetition, canonical, plain_output
from tests.emulators.openai import OpenAIEmulator
from tests.ended import assert_requests, of_type
from tests.scripts import bash
from tests.serving import ServerProcess

LOOK = {"name": "read", "arguments": {"filePath": "a.txt"}}
LIST = {"name": "list", "arguments": {"path": "."}}
MINE = {"name": "mine", "description": "Runs at the client.", "parameters": {"type": "object"}}

Call = tuple[str, str, dict[str, Any]]


def ended(output: str = "same", tool: str = "bash", arguments: str = '{"command":"x"}', **more: Any) -> Call:
    return tool, arguments, {"output": output, "isError": False, **more}


def failed(output: str, code: int = 1) -> Call:
    return ended(output, details={"exitCode": code})


def play(turns: Sequence[Sequence[Call]]) -> tuple[list[bool], int | None]:
    """Gives for each call whether the model is told something with it, and after which turn the task ends."""
    repetition = Repetition()
    nudged: list[bool] = []
    for number, turn in enumerate(turns, start=1):
        repetition.begin_turn()
        for tool, arguments, data in turn:
            nudge = repetition.nudge(tool, arguments, data) if repetition.has(tool, arguments) else None
            nudged.append(nudge is not None)
            more = {"output": f"{data['output']}\n\n{nudge}", "nudge": nudge} if nudge is not None else {}
            repetition.add(tool, arguments, {**data, **more})
        if repetition.stuck() is not None:
            return nudged, number
    return nudged, None


def alone(calls: Sequence[Call]) -> list[list[Call]]:
    return [[call] for call in calls]


A, B, C = ended("a", arguments='{"a":1}'), ended("b", arguments='{"b":1}'), ended("c", arguments='{"c":1}')


@pytest.mark.parametrize(
    ("turns", "first", "end"),
    [
        (alone([A] * 9), 3, 5),
        (alone([A, B] * 9), 6, 10),
        (alone([A, B, C] * 9), 9, 15),
        ([[A, B]] * 9, 5, 5),
        ([[A, A]] * 9, 3, 3),
        ([[A] * 8] * 3, 3, 2),
        ([[A] * 8], 3, None),
        (alone([B, C, A, A, A, A, A]), 5, 7),
        (alone([failed(f"gone wrong after {n}.{n}1 s at 0x7f{n}a, process {n}12345") for n in range(9)]), 3, 5),
        (alone([ended(f"Error: attempt {n} failed", isError=True) for n in range(9)]), 3, 5),
        (alone([ended(f"12 passed in 0.{n}2s") for n in range(9)]), 3, 5),
        (alone([ended(f"[cut: the whole is in /d/out_01k5w6m7n8p9q0r1s2t3v4w{n:03}.txt]") for n in range(9)]), 3, 5),
        (alone([ended(f"the whole is in /d/bash-0123456789a{n}.txt") for n in range(9)]), 3, 5),
        ([[A, ended(f"{n}", arguments=f'{{"n":{n}}}')] for n in range(9)], 5, None),
    ],
    ids=[
        *("same", "pairs", "threes", "pairs-at-once", "twice-at-once", "many-at-once-again", "many-at-once", "after-others"),
        *("commands-that-fail", "errors", "times-that-differ", "file-names", "file-names-of-bash", "beside-what-is-new"),
    ],
)
def test_what_repeats_itself_is_told_and_then_ended(turns: list[list[Call]], first: int, end: int | None) -> None:
    nudged, stuck = play(turns)
    assert nudged.index(True) + 1 == first
    assert stuck == end


@pytest.mark.parametrize(
    "turns",
    [
        alone([ended(f"{n} of 20 are done") for n in range(20)]),
        alone([failed(f"{n}/20 ready") for n in range(20)]),
        alone([ended(f"web-1 Pending {n}s") for n in range(20)]),
        alone([ended(f"(nothing new)\n(Running for {n} s. Next offset: 0.)", "bash_output") for n in range(20)]),
        alone([ended("same", arguments=f'{{"n":{n}}}') for n in range(20)]),
        alone([each for n in range(20) for each in (ended("edited", "edit", f'{{"n":{n}}}'), failed("1 failed"))]),
        alone([ended("x", interrupted=True), ended("x", skipped=True)] * 20),
        alone([A, A, B, B, C, C]),
        alone([A, A, failed("oh"), A, A]),
        alone([ended("fine", arguments=A[1]), ended("not fine", arguments=A[1])] * 2),
    ],
    ids=[
        "progress",
        "progress-in-failures",
        "clocks",
        "waiting",
        "other-arguments",
        "edit-and-test",
        "not-run",
        "in-twos",
        "broken",
        "both-ways",
    ],
)
def test_what_makes_progress_is_let_be(turns: list[list[Call]]) -> None:
    nudged, stuck = play(turns)
    assert not any(nudged)
    assert stuck is None


@given(st.lists(st.integers(0, 30), unique=True, max_size=40), st.integers(1, 12), st.integers(STUCK_AT, 7))
def test_every_cycle_ends_whatever_came_before(before: list[int], length: int, rounds: int) -> None:
    first = alone([ended(str(n), arguments=f'{{"before":{n}}}') for n in before])
    cycle = [ended(str(n), arguments=f'{{"n":{n}}}') for n in range(length)]
    nudged, stuck = play([*first, *alone(cycle * rounds)])
    assert stuck == len(before) + length * STUCK_AT
    assert nudged.index(True) + 1 == len(before) + length * NUDGE_AT


@given(st.lists(st.integers(0, 3), max_size=60))
def test_less_than_five_of_anything_never_ends(picked: list[int]) -> None:
    seen: dict[int, int] = {}
    calls = []
    for n in picked:
        seen[n] = seen.get(n, 0) + 1
        calls.append(ended(f"{n}", arguments=f'{{"n":{n},"since":{seen[n] // STUCK_AT}}}'))
    few = [call for call in calls if calls.count(call) < STUCK_AT]
    assert play(alone(few))[1] is None


def test_arguments_are_the_same_however_they_are_written() -> None:
    assert canonical('{"b": 1, "a": [1, 2]}') == canonical('{"a":[1,2],"b":1}')
    assert canonical("") == canonical("{}")
    assert canonical('{"a":1}') != canonical('{"a":2}')
    assert canonical("{oops ") == "{oops"
    assert canonical("[" * 5_000) == "[" * 5_000


def test_a_result_is_compared_without_what_was_added() -> None:
    assert plain_output({"output": "x\n\n(again)", "nudge": "(again)"}) == "x"
    assert plain_output({"output": "x"}) == "x"


# In a task


@pytest.fixture
def agent(anew: ServerProcess) -> ServerProcess:
    (anew.workspace / "a.txt").write_text("a\n")
    return anew


def results(model: OpenAIEmulator, number: int = -1) -> list[str]:
    return [message["content"] for message in model.requests()[number].json["messages"] if message["role"] == "tool"]


def assert_stuck(agent: ServerProcess, reply: Any, tools: list[str]) -> dict[str, Any]:
    error = reply.json()["error"]
    assert (reply.status_code, error["code"]) == (422, "RESOURCE_LIMIT_EXCEEDED")
    assert (error["details"]["reason"], error["details"]["reached"], error["details"]["tools"]) == ("stuck", 5, tools)
    task: dict[str, Any] = agent.get(f"/tasks/{error['details']['taskId']}").json()
    assert (task["status"], task["phase"], task["error"]["details"]["reason"]) == ("failed", "done", "stuck")
    assert task["response"] == error["details"]["response"]
    return task


@pytest.mark.parametrize(
    ("turns", "first", "steps", "tools"),
    [
        ([[LOOK]], 3, 5, ["read"]),
        ([[LOOK], [LIST]], 6, 10, ["list", "read"]),
        ([[LOOK, LIST]], 5, 5, ["list", "read"]),
        ([[{"name": "read", "arguments": {"filePath": "none.txt"}}]], 3, 5, ["read"]),
        ([[bash("echo oh $RANDOM ms, $(date +%s%N); exit 3")]], 3, 5, ["bash"]),
        ([[bash("seq 1 100000")]], 3, 5, ["bash"]),
        ([[{"name": "fly", "arguments": {}}]], 3, 5, ["fly"]),
        ([[{"name": "read", "arguments": "{oops"}]], 3, 5, ["read"]),
    ],
    ids=["same", "pairs", "parallel-pairs", "error", "failing-command", "spilled", "no-such-tool", "malformed"],
)
def test_a_task_that_repeats_itself_ends(
    turns: Any, first: int, steps: int, tools: list[str], agent: ServerProcess, model: OpenAIEmulator
) -> None:
    model.script(*[{"text": "I try.", "tool_calls": turns[n % len(turns)]} for n in range(20)])
    task = assert_stuck(agent, agent.post("/run", {"prompt": "go"}), tools)
    assert task["steps"] == len(model.requests()) == steps
    told = agent.task_events(task["taskId"])
    nudged = ["nudge" in event for event in of_type(told, "tool.finished")]
    assert nudged.index(True) + 1 == first
    assert [message["role"] for message in model.requests()[-1].json["messages"]].count("user") == 1
    assert "repeat yourself" in results(model)[-1]
    assert_requests(model.requests())
    model.script({"text": "Better."})
    assert agent.post("/run", {"prompt": "and now?"}).json()["response"] == "Better."


def test_the_count_goes_on_after_a_restart_with_the_same_bytes(agent: ServerProcess, model: OpenAIEmulator) -> None:
    turn = {"tool_calls": [LOOK], "delay": 0.03}
    model.script(*[turn] * 20)
    task_id = agent.submit("go")
    agent.kill_at(task_id, "tool.finished", 3)
    agent.start()
    task = agent.finish(task_id)
    assert (task["error"]["details"]["reason"], task["error"]["details"]["reached"]) == ("stuck", 5)
    ends = [e for e in of_type(agent.task_events(task_id), "tool.finished") if not e["interrupted"]]
    assert [("nudge" in event) for event in ends] == [False, False, True, True, True]
    assert_requests([request for request in model.requests() if complete(request)])


def complete(request: Any) -> bool:
    return bool(request.answered_ns)


def test_polling_something_that_changes_is_no_repetition(agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script(*[{"tool_calls": [bash("sleep 0.01; echo x >> log; wc -l < log")]}] * 12, {"text": "Done."})
    task = agent.post("/run", {"prompt": "wait"}).json()
    assert (task["response"], task["steps"]) == ("Done.", 13)
    assert not any("repeat yourself" in result for result in results(model))


def test_what_the_user_says_begins_the_count_anew(agent: ServerProcess, model: OpenAIEmulator) -> None:
    gate = bash("until [ -e go ]; do sleep 0.02; done; echo same")
    model.script(*[{"tool_calls": [gate]}] * 4, {"text": "Done."})
    task_id = agent.submit("go")
    begun = agent.wait_for(task_id, "tool.started")
    agent.post(f"/tasks/{task_id}/messages", {"prompt": "Go on."})
    (agent.workspace / "go").touch()
    assert agent.finish(task_id)["response"] == "Done."
    ends = of_type(agent.task_events(task_id, after=begun["seq"]), "tool.finished")
    assert ["nudge" in event for event in ends] == [False, False, False, True]


def test_results_of_a_client_are_counted_too(agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script(*[{"tool_calls": [{"name": "mine", "arguments": {"n": 1}}]}] * 20)
    task_id = agent.submit("go", tools=[MINE])
    seq = 0
    for _ in range(5):
        asked = agent.wait_for(task_id, "tool.requested", after=seq)
        seq = asked["seq"]
        agent.post(f"/tasks/{task_id}/tool-results", {"toolCallId": asked["toolCallId"], "output": "same"})
    assert agent.finish(task_id)["error"]["details"]["reason"] == "stuck"
    nudges = ["nudge" in event for event in of_type(agent.task_events(task_id), "tool.finished")]
    assert nudges == [False, False, True, True, True]
