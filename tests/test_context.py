"""The room in a model: what goes before a request would not fit, that it comes to an end, and that the task goes on."""

import json
import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest

from agent_server.messages import Message, Text, ToolSpec
from agent_server.sessions.context import ANSWER_SHARE, ANSWER_TOKENS, LEAST_GAIN, MAX_COMPACTIONS, PROTECTED_TOKENS, SHRINKS_BY
from agent_server.sessions.entries import PRUNED
from agent_server.sessions.tokens import message_tokens, specs_tokens, text_tokens
from tests.emulators.history import complaint
from tests.emulators.openai import OpenAIEmulator, Record
from tests.ended import assert_completed, assert_requests, of_type
from tests.scripts import STALLED, bash
from tests.serving import ServerProcess, serving

OVERFLOW = {"status": 400, "error": {"message": "This model's maximum context length is 9.", "code": "context_length_exceeded"}}
SMALL, LARGE = 22_500, 77_500
"""Tokens that the messages of a conversation may have together, besides the system prompt and the tools."""


@pytest.fixture(scope="module")
def base(model: OpenAIEmulator) -> int:
    """Tokens of the system prompt and the tools, which each request has."""
    model.script({"text": "Hello."})
    with serving(AGENT_BASE_URL=model.url) as running:
        assert running.post("/run", {"prompt": "Hi."}).status_code == 200
    (record,) = model.requests()
    functions = [tool["function"] for tool in record.json["tools"]]
    specs = [ToolSpec(function["name"], function["description"], function["parameters"]) for function in functions]
    return message_tokens(Message("system", (Text(record.json["messages"][0]["content"]),))) + specs_tokens(specs)


@pytest.fixture(scope="module")
def small(base: int, model: OpenAIEmulator) -> Iterator[ServerProcess]:
    """A server whose model reads little."""
    with serving(AGENT_BASE_URL=model.url, AGENT_CONTEXT_TOKENS=str(window_of(base))) as running:
        yield running


def window_of(base: int) -> int:
    """Tokens of prompt and answer that the small one reads."""
    return -(-(base + SMALL) * ANSWER_SHARE // (ANSWER_SHARE - 1))


@pytest.fixture(scope="module")
def large(base: int, model: OpenAIEmulator) -> Iterator[ServerProcess]:
    """A server whose model reads four times as much."""
    with serving(AGENT_BASE_URL=model.url, AGENT_CONTEXT_TOKENS=str(base + LARGE + ANSWER_TOKENS)) as running:
        yield running


def printing(size: int, mark: str = "line") -> dict[str, Any]:
    """A turn that calls a command of so many bytes of output, in lines that begin with the mark."""
    return {"text": "On.", "tool_calls": [bash(f"yes '{mark} {'.' * 50}' | head -c {size}")]}


def printings(count: int, size: int) -> list[dict[str, Any]]:
    """So many such turns, no two of which are the same: a task that repeats itself would be ended."""
    return [printing(size, f"turn{number}") for number in range(count)]


def bodies(model: OpenAIEmulator) -> list[Any]:
    found = [record.json for record in model.requests()]
    assert [complaint(body) for body in found] == [None] * len(found)
    return found


def is_summary_request(body: Any) -> bool:
    return "## Next steps" in str(body["messages"][-1]["content"])


def texts(body: Any) -> list[str]:
    return [str(message["content"]) for message in body["messages"][1:]]


def requests_of(records: list[Record]) -> list[Record]:
    return [record for record in records if not is_summary_request(record.json)]


# Compaction


def test_a_long_task_is_compacted_on_its_way_and_goes_on_by_itself(small: ServerProcess, model: OpenAIEmulator) -> None:
    steps = printings(8, 13_000)
    model.script(*steps[:7], {"text": "## Goal\nThe summary."}, steps[7], {"text": "Done."})
    task_id = small.submit("Count to eight.", sessionId="long")
    told = assert_completed(small, task_id)
    (compacted,) = of_type(told, "session.compacted")
    assert compacted["summary"] == "## Goal\nThe summary."
    assert not of_type(told, "session.pruned")  # nothing is older than the protected outputs
    found = bodies(model)
    at = next(number for number, body in enumerate(found) if is_summary_request(body))
    before, after = found[at - 1], found[at + 1]
    # The prompt stays word for word, then comes the summary, then the newest turn, whole and unchanged.
    assert texts(after)[0] == "Count to eight."
    assert "The summary." in texts(after)[1]
    kept = after["messages"][3:]
    assert 0 < len(kept) < len(before["messages"]) - 3
    assert kept[0]["role"] == "assistant"
    assert found[at]["messages"][0] == after["messages"][0]
    assert kept[-1]["role"] == "tool"
    assert "turn6" in kept[-1]["content"]
    # The request for it continues the last one, so that the cache pays for it.
    records = model.requests()
    asked_for = records[at].json["messages"]
    assert before["messages"] == asked_for[: len(before["messages"])]
    assert_requests(records[:at])
    assert_requests(records[at + 1 :])


def test_what_was_compacted_is_the_same_after_a_kill(small: ServerProcess, model: OpenAIEmulator) -> None:
    model.script(*printings(7, 14_000), {"text": "A summary."}, {"text": "Hm.", "tool_calls": [bash("sleep 60")]})
    task_id = small.submit(sessionId="same")
    started = small.wait_for(task_id, "session.compacted")
    while len(model.requests()) < 9:
        time.sleep(0.01)
    small.wait_for(task_id, "message.completed", after=started["seq"])
    small.kill()
    last = model.requests()[-1]
    model.script({"text": "Done."})
    small.start()
    assert_completed(small, task_id)
    assert_requests([last, *model.requests()])
    assert len(of_type(small.task_events(task_id), "session.compacted")) == 1


def test_a_kill_right_after_a_compaction_does_not_repeat_it(small: ServerProcess, model: OpenAIEmulator) -> None:
    model.script(*printings(7, 14_000), {"text": "A summary."}, {"repeat": {"text": "Done."}, "times": 2})
    task_id = small.submit("Go.", sessionId="right-after")
    small.kill_at(task_id, "session.compacted")
    small.start()
    told = assert_completed(small, task_id)
    assert len(of_type(told, "session.compacted")) == 1
    found = bodies(model)
    assert [is_summary_request(body) for body in found[7:9]] == [True, False]
    assert all(texts(body) == texts(found[8]) for body in found[8:])


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM], ids=["kill", "stop"])
def test_an_end_of_the_server_during_a_compaction_loses_nothing(how: int, small: ServerProcess, model: OpenAIEmulator) -> None:
    name = f"broken-{how}"
    model.script(*printings(7, 14_000), STALLED, {"text": "A summary."}, {"text": "Done."})
    task_id = small.submit("Go on and on.", sessionId=name)
    while len(model.requests()) < 8:
        time.sleep(0.01)
    assert small.post(f"/tasks/{task_id}/messages", {"prompt": "and be quick"}).status_code in (200, 202)
    assert small.process is not None
    os.kill(small.process.pid, how)
    small.process.wait(30)
    small.start()
    told = assert_completed(small, task_id)
    assert len(of_type(told, "session.compacted")) == 1
    assert not of_type(told, "compaction.failed")
    found = bodies(model)
    assert [is_summary_request(body) for body in found[7:]] == [True, True, False]
    assert texts(found[-1])[-1] == "and be quick"  # what came meanwhile is in no summary, and not lost
    assert found[7]["messages"][:-1] == found[8]["messages"][:-1]


def test_the_summary_counts_to_the_tasks_usage_and_cost(small: ServerProcess, model: OpenAIEmulator) -> None:
    usage = {"prompt_tokens": 5_000, "completion_tokens": 70, "total_tokens": 5_070, "cost": 0.25}
    model.script(*printings(7, 14_000), {"text": "A summary.", "usage": usage}, {"text": "Done."})
    task_id = small.submit(sessionId="cost")
    told = assert_completed(small, task_id)  # which sums it up
    (compacted,) = of_type(told, "session.compacted")
    assert compacted["usage"]["cost"] == 0.25
    assert small.get(f"/tasks/{task_id}").json()["usage"]["cost"] == 0.25


def test_the_cost_of_a_summary_ends_a_task_at_its_limit(small: ServerProcess, model: OpenAIEmulator) -> None:
    usage = {"prompt_tokens": 5_000, "completion_tokens": 70, "total_tokens": 5_070, "cost": 0.25}
    model.script(*printings(7, 14_000), {"text": "A summary.", "usage": usage}, {"text": "Not said."})
    task = small.finish(small.submit(sessionId="cost-limit", maxCost=0.2))
    assert (task["status"], task["error"]["details"]["reason"]) == ("failed", "max_cost")
    assert len(model.requests()) == 8


def test_the_count_of_the_provider_tells_when_it_is_full(base: int, small: ServerProcess, model: OpenAIEmulator) -> None:
    usage = {"prompt_tokens": base + SMALL - 1_000, "completion_tokens": 2_000, "total_tokens": base + SMALL + 1_000}
    model.script(printing(2_000), {**printing(2_000), "usage": usage}, {"text": "A summary."}, {"text": "Done."})
    told = assert_completed(small, small.submit(sessionId="counted"))
    assert len(of_type(told, "session.compacted")) == 1
    assert is_summary_request(bodies(model)[2])


def test_a_count_of_more_than_the_model_can_read_is_no_reason_to_compact(small: ServerProcess, model: OpenAIEmulator) -> None:
    usage = {"prompt_tokens": 1_000_000, "completion_tokens": 1_000_000, "total_tokens": 2_000_000, "cost": 1}
    model.script(*[{**turn, "usage": usage} for turn in printings(9, 2_000)])
    task = small.finish(small.submit(sessionId="beyond", maxCost=4.5))
    assert (task["status"], task["error"]["details"]["reason"], task["steps"]) == ("failed", "max_cost", 5)
    model.script({"text": "Fine."})
    assert small.post("/run", {"prompt": "Next.", "sessionId": "beyond"}).json()["response"] == "Fine."


def test_a_count_beyond_a_window_that_is_set_smaller_is_one_where_tokenizers_may_differ(
    base: int, small: ServerProcess, model: OpenAIEmulator
) -> None:
    prompt = window_of(base) + 500
    usage = {"prompt_tokens": prompt, "completion_tokens": 100, "total_tokens": prompt + 100}
    *before, last = printings(5, 13_000)
    model.script(*before, {**last, "usage": usage}, {"text": "A summary."}, {"text": "Done."})
    told = assert_completed(small, small.submit(sessionId="denser"))
    assert len(of_type(told, "session.compacted")) == 1
    assert is_summary_request(bodies(model)[5])


def test_a_provider_that_sums_up_all_calls_does_not_make_every_step_a_compaction(
    base: int, small: ServerProcess, model: OpenAIEmulator
) -> None:
    usage = {"prompt_tokens": base + SMALL + 2_000, "completion_tokens": 2_000, "total_tokens": base + SMALL + 4_000}
    model.script(
        printing(2_000),
        {**printing(2_000), "usage": usage},
        {"text": "A summary."},
        *[{**turn, "usage": usage} for turn in printings(5, 2_000)],
        {"text": "Done."},
    )
    told = assert_completed(small, small.submit(sessionId="sums"))
    assert len(of_type(told, "session.compacted")) == 1


def test_a_new_prompt_that_does_not_fit_beside_the_old_ones_is_kept_and_answered(small: ServerProcess, model: OpenAIEmulator) -> None:
    prompt = "word " * 10_000
    model.script({"text": "First."}, {"text": "Second."}, {"text": "A summary."}, {"text": "Third."})
    for said in (prompt, "short", prompt):
        assert small.post("/run", {"prompt": said, "sessionId": "prompts"}).status_code == 200
    last = bodies(model)[-1]
    assert len(texts(last)) == 2
    assert "A summary." in texts(last)[0]
    assert texts(last)[1] == prompt


def test_a_prompt_that_does_not_fit_beside_the_summary_is_sent_with_it_all_the_same(small: ServerProcess, model: OpenAIEmulator) -> None:
    prompt, summary = "word " * 17_500, f"A summary{'.' * 6_000}"
    model.script({"text": "First. " * 3_000}, {"text": "Second."}, {"text": summary}, {"text": "Third."})
    for said in ("short", "short", prompt):
        assert small.post("/run", {"prompt": said, "sessionId": "beside"}).status_code == 200
    first, last = texts(bodies(model)[-1])
    assert summary in first
    assert last == prompt


def test_a_prompt_with_a_schema_survives_the_compaction(small: ServerProcess, model: OpenAIEmulator) -> None:
    model.script(*printings(7, 14_000), {"text": "A summary."}, {"text": '{"n": 9}'})
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    reply = small.post("/run", {"prompt": "Count.", "sessionId": "schema", "outputSchema": schema})
    assert reply.json()["output"] == {"n": 9}
    assert "JSON Schema" in texts(bodies(model)[-1])[0]


def test_calls_of_the_kept_turns_keep_their_results_when_they_ran_side_by_side(small: ServerProcess, model: OpenAIEmulator) -> None:
    (small.workspace / "f.txt").write_text("text of a file\n" * 700)
    calls = [{"name": "read", "arguments": {"filePath": "f.txt", "offset": number}} for number in range(1, 4)]
    model.script(*[{"text": "On.", "tool_calls": calls} for _ in range(4)], {"text": "A summary."}, {"text": "Done."})
    told = assert_completed(small, small.submit(sessionId="side"))
    assert of_type(told, "session.compacted")
    bodies(model)  # each call has its result in all of them


def test_a_call_id_that_was_compacted_is_not_given_again(small: ServerProcess, model: OpenAIEmulator) -> None:
    def named(turn: dict[str, Any]) -> dict[str, Any]:
        return {**turn, "tool_calls": [{**turn["tool_calls"][0], "id": "call_a"}]}

    model.script(*map(named, printings(7, 14_000)), {"text": "A summary."}, named(printing(10)), {"text": "Done."})
    told = assert_completed(small, small.submit(sessionId="ids"))
    ids = [event["toolCallId"] for event in of_type(told, "tool.finished")]
    assert len(set(ids)) == len(ids) == 8


# Pruning


def test_old_outputs_go_first_and_the_newest_stay(large: ServerProcess, model: OpenAIEmulator) -> None:
    sizes = [45_000] * 8
    model.script(*[printing(size, f"step{number}") for number, size in enumerate(sizes)], {"text": "Done."})
    task_id = large.submit(sessionId="pruned")
    told = assert_completed(large, task_id)
    (pruned,) = of_type(told, "session.pruned")
    assert not of_type(told, "session.compacted")
    found = bodies(model)
    outputs = [message["content"] for message in found[-1]["messages"] if message["role"] == "tool"]
    gone = [output == PRUNED for output in outputs]
    assert gone == sorted(gone, reverse=True)
    assert sum(gone) == len(pruned["toolCallIds"])
    assert sum(text_tokens(output) for output in outputs if output != PRUNED) >= PROTECTED_TOKENS
    assert pruned["tokens"] >= LEAST_GAIN
    ids = [message["tool_call_id"] for message in found[-1]["messages"] if message["role"] == "tool"]
    assert pruned["toolCallIds"] == ids[: len(pruned["toolCallIds"])]
    # After a restart it is the same.
    large.kill()
    large.start()
    model.script({"text": "And on."})
    large.post("/run", {"prompt": "more", "sessionId": "pruned"})
    assert bodies(model)[0]["messages"][: len(found[-1]["messages"])] == found[-1]["messages"]


def test_pruning_and_then_compacting_when_it_is_not_enough(large: ServerProcess, model: OpenAIEmulator) -> None:
    prompt = "word " * 30_000  # 37,500 tokens
    calls = [bash(f"yes '{number} {'.' * 50}' | head -c 45000") for number in range(4)]
    steps = [{"text": "On.", "tool_calls": made} for made in (calls[:3], [bash("true")], calls)]
    model.script({"text": "I see."}, *steps, {"text": "A summary."}, {"text": "Done."})
    large.post("/run", {"prompt": prompt, "sessionId": "both"})
    told = assert_completed(large, large.submit("go", sessionId="both"))
    kinds = [event["type"] for event in told if event["type"] in ("session.pruned", "session.compacted")]
    assert kinds == ["session.pruned", "session.compacted"]
    bodies(model)


# What the provider refuses


def test_an_overflow_leads_to_a_compaction_and_a_new_try(small: ServerProcess, model: OpenAIEmulator) -> None:
    model.script(printing(6_000), OVERFLOW, {"text": "A summary."}, {"text": "Done."})
    task_id = small.submit("Work.", sessionId="overflow")
    told = assert_completed(small, task_id)
    assert len(of_type(told, "session.compacted")) == 1
    assert not of_type(told, "message.discarded")
    found = bodies(model)
    assert [is_summary_request(body) for body in found] == [False, False, True, False]
    assert len(str(found[2])) < len(str(found[1]))  # what was refused is not sent again
    assert texts(found[3])[0] == "Work."


def test_an_overflow_leads_to_a_pruning_first(large: ServerProcess, model: OpenAIEmulator) -> None:
    model.script(*printings(6, 45_000), OVERFLOW, {"text": "Done."})
    told = assert_completed(large, large.submit(sessionId="overflow-prune"))
    assert len(of_type(told, "session.pruned")) == 1
    assert not of_type(told, "session.compacted")


def test_an_endless_overflow_ends_the_task_with_a_reason_and_not_the_session(small: ServerProcess, model: OpenAIEmulator) -> None:
    model.script(
        *printings(6, 3_000),
        OVERFLOW,
        {"text": "A summary. " * 50},
        OVERFLOW,
        {"text": "Another summary."},
        OVERFLOW,
        {"text": "Fine again."},
    )
    task = small.finish(small.submit("Work.", sessionId="endless"))
    assert (task["status"], task["phase"], task["error"]["code"]) == ("failed", "done", "MODEL_ERROR")
    details = task["error"]["details"]
    assert (details["reason"], details["compactions"]) == ("context_overflow", MAX_COMPACTIONS)
    assert len(model.requests()) == 6 + 5
    reply = small.post("/run", {"prompt": "Next.", "sessionId": "endless"})
    assert reply.json()["response"] == "Fine again."
    bodies(model)


def test_an_overflow_of_everything_ends_the_task_after_a_few_calls(small: ServerProcess, model: OpenAIEmulator) -> None:
    model.script(printing(9_000), {"repeat": OVERFLOW, "times": 30})
    task = small.finish(small.submit("Work.", sessionId="everything"))
    assert (task["status"], task["error"]["details"]["reason"]) == ("failed", "context_overflow")
    assert len(model.requests()) <= 8
    model.script({"text": "Fine again."})
    assert small.post("/run", {"prompt": "Next.", "sessionId": "everything"}).json()["response"] == "Fine again."
    first = bodies(model)[0]["messages"]
    assert [message["role"] for message in first] == ["system", "user", "assistant", "tool", "user"]  # as it was


def too_long(length: int, *turns: dict[str, Any]) -> list[dict[str, Any]]:
    """The turns of a provider that finds too long what has more bytes, and every request for a summary."""
    return [{**turn, "refuses": [f"longer than {length}", "summaries"]} for turn in turns]


@pytest.mark.parametrize(("length", "form"), [(80_000, "recent"), (20_000, "prompt")])
def test_a_session_of_which_no_summary_can_be_had_goes_on_without_what_is_old(
    length: int, form: str, small: ServerProcess, model: OpenAIEmulator
) -> None:
    name = f"too-long-{form}"
    model.script(*printings(6, 14_000), {"text": "I have seen six."}, *too_long(length, printing(10, "new"), {"text": "Fine."}))
    assert small.post("/run", {"prompt": "Look.", "sessionId": name}).status_code == 200
    task_id = small.submit("Next.", sessionId=name)
    small.kill_at(task_id, "session.repaired")
    small.start()
    told = assert_completed(small, task_id)
    (repaired,) = of_type(told, "session.repaired")
    assert (repaired["form"], repaired["reason"]) == (form, "context_overflow")
    assert {event["reason"] for event in of_type(told, "compaction.failed")} == {"context_overflow"}
    assert not of_type(told, "session.compacted")
    found = bodies(model)[-1]
    said = str(texts(found))
    assert "is left out" in texts(found)[0]
    assert [text in said for text in ("turn0", "turn5", "I have seen six.", "Next.")] == [False, *[form == "recent"] * 2, True]
    # From here on the session is as short as that.
    model.script({"text": "And on."})
    assert small.post("/run", {"prompt": "More?", "sessionId": name}).json()["response"] == "And on."
    assert bodies(model)[0]["messages"][: len(found["messages"])] == found["messages"]


def test_a_task_of_which_no_summary_can_be_had_goes_on_too(small: ServerProcess, model: OpenAIEmulator) -> None:
    model.script(*printings(6, 14_000), *too_long(80_000, {"text": "Fine."}))
    told = assert_completed(small, small.submit("Look.", sessionId="too-long-within"))
    (repaired,) = of_type(told, "session.repaired")
    assert repaired["form"] == "recent"
    assert "Look." in texts(bodies(model)[-1])[0]


def test_a_provider_that_takes_nothing_at_all_changes_nothing(small: ServerProcess, model: OpenAIEmulator) -> None:
    name = "takes-nothing"
    model.script({"text": "Hello."}, printing(9_000), {"text": "Done."}, {"repeat": OVERFLOW, "times": 30})
    for prompt in ("Hi.", "Look."):
        small.post("/run", {"prompt": prompt, "sessionId": name})
    before = [request.json["messages"] for request in model.requests()][-1]
    task = small.finish(small.submit("Next.", sessionId=name))
    assert (task["status"], task["error"]["details"]["reason"]) == ("failed", "context_overflow")
    assert len(model.requests()) < 12
    model.script({"text": "Fine."})
    assert small.post("/run", {"prompt": "Now?", "sessionId": name}).json()["response"] == "Fine."
    (after,) = bodies(model)
    assert after["messages"][: len(before)] == before


def test_a_model_that_answers_nothing_for_a_summary_does_not_end_its_session(small: ServerProcess, model: OpenAIEmulator) -> None:
    refusal = {"text": "", "finish_reason": "refusal"}
    model.script(*printings(7, 14_000), {"repeat": {"text": " "}, "times": 4}, OVERFLOW, refusal, refusal, {"text": "Fine."})
    told = assert_completed(small, small.submit("Work.", sessionId="nothing"))
    assert [event["reason"] for event in of_type(told, "compaction.failed")] == ["empty", "bad_request"]
    assert [event["form"] for event in of_type(told, "session.repaired")] == ["recent"]


def test_a_model_that_never_makes_a_summary_does_not_end_its_session(small: ServerProcess, model: OpenAIEmulator) -> None:
    name = "never"
    calls = {"tool_calls": [bash("true")]}
    model.script(*printings(7, 14_000), *[calls] * 4, {"text": "On my own."}, {"text": "And on."})
    task = small.finish(small.submit("Work.", sessionId=name))
    assert (task["status"], task["error"]["details"]["reason"]) == ("failed", "context_overflow")
    told = assert_completed(small, small.submit("Next.", sessionId=name))
    assert len(of_type(told, "compaction.failed")) == MAX_COMPACTIONS
    assert [event["form"] for event in of_type(told, "session.repaired")] == ["recent"]
    assert small.post("/run", {"prompt": "More?", "sessionId": name}).json()["response"] == "And on."
    bodies(model)


def test_a_prompt_that_is_too_long_alone_fails_and_is_gone(small: ServerProcess, model: OpenAIEmulator) -> None:
    model.script(OVERFLOW, {"text": "Fine."})
    task = small.finish(small.submit("word " * 40_000, sessionId="alone"))
    assert (task["status"], task["error"]["details"]["reason"]) == ("failed", "context_overflow")
    assert small.post("/run", {"prompt": "Next.", "sessionId": "alone"}).json()["response"] == "Fine."
    assert texts(bodies(model)[-1]) == ["Next."]


def test_an_overflow_after_the_answer_began_is_no_reason_to_compact(small: ServerProcess, model: OpenAIEmulator) -> None:
    error = {"message": "maximum context length exceeded", "code": "context_length_exceeded"}
    model.script(printing(9_000), {"text": "Half of", "stream_error": error, "delay": 0.01}, {"text": "Not asked for."})
    task = small.finish(small.submit(sessionId="begun"))
    assert (task["status"], task["error"]["details"]["reason"]) == ("failed", "context_overflow")
    assert len(model.requests()) == 2


@pytest.mark.parametrize("tokens", [1, 2_000])
def test_a_window_too_small_for_anything_ends_in_a_reason(tokens: int, model: OpenAIEmulator) -> None:
    model.script({"repeat": {**printing(200), "text": "A summary?"}, "times": 200})
    with serving(AGENT_BASE_URL=model.url, AGENT_CONTEXT_TOKENS=str(tokens)) as running:
        task = running.finish(running.submit("Work.", maxSteps=50))
    assert (task["status"], task["error"]["details"]["reason"]) == ("failed", "context_overflow")
    assert len(model.requests()) < 20


# Compactions that fail


@pytest.mark.parametrize(
    ("turn", "reason"),
    [
        ({"text": "longer and longer " * 9_000}, "no_shorter"),
        ({"tool_calls": [bash("true")]}, "bad_response"),
    ],
    ids=["no-shorter", "calls-instead"],
)
def test_a_compaction_that_fails_twice_ends_the_task(
    turn: dict[str, Any], reason: str, small: ServerProcess, model: OpenAIEmulator
) -> None:
    model.script(*printings(7, 14_000), turn, turn, {"text": "A summary."}, {"text": "Fine again."})
    name = f"fails-{reason}"
    task = small.finish(small.submit("Work.", sessionId=name))
    assert (task["status"], task["error"]["details"]["reason"]) == ("failed", "context_overflow")
    told = small.task_events(task["taskId"])
    assert [event["reason"] for event in of_type(told, "compaction.failed")] == [reason] * MAX_COMPACTIONS
    assert not of_type(told, "session.compacted")
    assert task["usage"]["total_tokens"] == sum(
        event["usage"]["total_tokens"] for event in told if event["type"] in ("message.completed", "compaction.failed")
    )
    reply = small.post("/run", {"prompt": "Next.", "sessionId": name})
    assert reply.json()["response"] == "Fine again."
    last = bodies(model)[-1]
    assert "A summary." in texts(last)[0]
    assert texts(last)[-1] == "Next."


def test_a_compaction_may_fail_once(small: ServerProcess, model: OpenAIEmulator) -> None:
    model.script(*printings(7, 14_000), {"tool_calls": [bash("true")]}, {"text": "A summary."}, {"text": "Done."})
    told = assert_completed(small, small.submit(sessionId="once"))
    assert [event["type"] for event in told if "compact" in event["type"]] == ["compaction.failed", "session.compacted"]


def test_a_model_that_fails_at_the_summary_leaves_the_session_as_it_was(small: ServerProcess, model: OpenAIEmulator) -> None:
    name = "unauthorized"
    model.script(*printings(7, 14_000), {"status": 401}, {"text": "A summary."}, {"text": "Fine again."})
    task = small.finish(small.submit("Work.", sessionId=name))
    assert (task["status"], task["error"]["code"]) == ("failed", "MODEL_ERROR")
    count = len(small.get(f"/sessions/{name}/messages?limit=200").json()["messages"])
    assert count == 8  # the prompt and seven answers
    assert small.post("/run", {"prompt": "Next.", "sessionId": name}).json()["response"] == "Fine again."
    found = bodies(model)
    assert [is_summary_request(body) for body in found[-3:]] == [True, True, False]


def test_a_refused_request_for_a_summary_is_made_in_a_form_that_is_taken(small: ServerProcess, model: OpenAIEmulator) -> None:
    model.script(*printings(7, 14_000), {"text": "A summary.", "refuses": ["calls"]}, {"text": "Done."})
    told = assert_completed(small, small.submit(sessionId="refused"))
    (compacted,) = of_type(told, "session.compacted")
    assert compacted["summary"] == "A summary."
    found = bodies(model)
    (system, transcript) = found[8]["messages"]
    assert system == found[7]["messages"][0]
    assert is_summary_request(found[8])
    assert "[call " in str(transcript["content"])


def test_a_history_that_is_full_and_refused_in_every_form_leaves_the_session_usable(small: ServerProcess, model: OpenAIEmulator) -> None:
    model.script(*printings(7, 14_000), {"text": "On my own.", "refuses": ["word turn0"]}, {"text": "Fine again."})
    told = assert_completed(small, small.submit("Go.", sessionId="poisoned"))
    assert [event["reason"] for event in of_type(told, "compaction.failed")] == ["bad_request"]
    assert [event["form"] for event in of_type(told, "session.repaired")] == ["prompt"]
    assert small.post("/run", {"prompt": "Next.", "sessionId": "poisoned"}).json()["response"] == "Fine again."


def test_a_provider_that_cannot_make_a_summary_now_does_not_end_a_task_that_still_has_room(
    small: ServerProcess, model: OpenAIEmulator
) -> None:
    broken = {"repeat": {"status": 500}, "times": 4}
    model.script(*printings(7, 14_000), broken, printing(100, "more"), {"text": "Done."}, {"text": "A summary."}, {"text": "And on."})
    told = assert_completed(small, small.submit("Go.", sessionId="overloaded"))
    assert [event["reason"] for event in of_type(told, "compaction.failed")] == ["overloaded"]
    assert small.post("/run", {"prompt": "Next.", "sessionId": "overloaded"}).json()["response"] == "And on."
    assert "A summary." in str(texts(bodies(model)[-1]))


def test_a_summary_that_is_refused_is_not_asked_for_at_each_step(small: ServerProcess, model: OpenAIEmulator) -> None:
    turns = [*printings(7, 14_000), *[printing(100, f"more{number}") for number in range(5)], {"text": "Done."}]
    model.script(*[{**turn, "refuses": ["summaries"]} for turn in turns])
    told = assert_completed(small, small.submit("Go.", sessionId="refuses-summaries"))
    assert len(of_type(told, "compaction.failed")) == 1
    bodies(model)


def test_a_long_transcript_alone_is_summarised(small: ServerProcess, model: OpenAIEmulator) -> None:
    name = "transcript"
    model.script(*printings(6, 14_000), {"text": "I have seen six.", "refuses": ["calls"]})
    assert small.post("/run", {"prompt": "Look.", "sessionId": name}).status_code == 200
    forked = small.get(f"/sessions/{name}/messages").json()["messages"][0]["messageId"]
    reply = small.post(f"/sessions/{name}/fork", {"atMessageId": forked})
    model.script({"text": "A summary."}, {"text": "Fine."})
    told = small.post("/run", {"prompt": "word " * 7_000, "sessionId": reply.json()["sessionId"]})
    assert told.json()["response"] == "Fine."
    assert "A summary." in texts(bodies(model)[-1])[0]


def test_a_summary_that_is_cut_off_is_asked_for_shorter_and_counts_twice(small: ServerProcess, model: OpenAIEmulator) -> None:
    usage = {"prompt_tokens": 5_000, "completion_tokens": 70, "total_tokens": 5_070, "cost": 0.25}
    model.script(
        *printings(7, 14_000),
        {"text": "## Goal and", "finish_reason": "length", "usage": usage},
        {"text": "A summary.", "usage": usage},
        {"text": "Done."},
    )
    told = assert_completed(small, small.submit(sessionId="cut"))
    (compacted,) = of_type(told, "session.compacted")
    assert (compacted["summary"], compacted["usage"]["cost"], compacted["usage"]["total_tokens"]) == ("A summary.", 0.5, 10_140)
    found = bodies(model)
    assert found[8]["messages"][:-1] == found[7]["messages"][:-1]
    assert found[8]["messages"][-1]["content"].startswith(found[7]["messages"][-1]["content"])


def test_a_summary_that_is_always_cut_off_is_none(small: ServerProcess, model: OpenAIEmulator) -> None:
    cut = {"text": "## Goal and", "finish_reason": "length"}
    model.script(*printings(7, 14_000), {"repeat": cut, "times": 4}, {"text": "A summary."}, {"text": "Fine again."})
    task = small.finish(small.submit(sessionId="always-cut"))
    assert (task["status"], task["error"]["details"]["reason"]) == ("failed", "context_overflow")
    assert not of_type(small.task_events(task["taskId"]), "session.compacted")
    assert small.post("/run", {"prompt": "Next.", "sessionId": "always-cut"}).json()["response"] == "Fine again."


def test_a_summary_after_an_overflow_counts_to_the_limit_of_the_cost(small: ServerProcess, model: OpenAIEmulator) -> None:
    usage = {"prompt_tokens": 5_000, "completion_tokens": 70, "total_tokens": 5_070, "cost": 0.25}
    model.script(printing(6_000), OVERFLOW, {"text": "A summary.", "usage": usage}, {"text": "Not said."})
    task = small.finish(small.submit("Work.", sessionId="overflow-cost", maxCost=0.2))
    assert (task["status"], task["error"]["details"]["reason"]) == ("failed", "max_cost")
    assert len(model.requests()) == 3


def test_a_summary_that_breaks_off_is_asked_for_again_and_told(small: ServerProcess, model: OpenAIEmulator) -> None:
    model.script(*printings(7, 14_000), {"drop": True}, {"text": "A summary."}, {"text": "Done."})
    told = assert_completed(small, small.submit(sessionId="again"))
    assert len(of_type(told, "task.retrying")) == 1
    assert len(of_type(told, "session.compacted")) == 1


def test_a_task_can_be_cancelled_while_it_is_compacted(small: ServerProcess, model: OpenAIEmulator) -> None:
    model.script(*printings(7, 14_000), STALLED)
    task_id = small.submit(sessionId="cancelled")
    while len(model.requests()) < 8:
        time.sleep(0.01)
    assert small.post(f"/tasks/{task_id}/cancel").json()["phase"] == "cancelled"


def test_a_quiesce_during_a_compaction_breaks_it_off_and_it_is_made_again(small: ServerProcess, model: OpenAIEmulator) -> None:
    model.script(*printings(7, 14_000), STALLED, {"text": "A summary."}, {"text": "Done."})
    task_id = small.submit(sessionId="quiesced")
    while len(model.requests()) < 8:
        time.sleep(0.01)
    assert small.post("/lifecycle/quiesce").status_code == 200
    assert small.post("/lifecycle/resume").status_code == 200
    told = assert_completed(small, task_id)
    assert len(of_type(told, "session.compacted")) == 1


def test_what_is_told_of_a_compaction_says_how_much_it_took(small: ServerProcess, model: OpenAIEmulator) -> None:
    model.script(*printings(7, 14_000), {"text": "A summary."}, {"text": "Done."})
    told = assert_completed(small, small.submit("Go.", sessionId="told"))
    (compacted,) = of_type(told, "session.compacted")
    assert compacted["replaces"]["messages"] > 2
    assert text_tokens(compacted["summary"]) < 14_000 / 4 * (1 - SHRINKS_BY)
    found = small.get("/sessions/told/messages").json()["messages"]
    assert [message["isSummary"] for message in found[:3]] == [False, True, False]
    lines = [line["message"] for line in small.get("/logs?lines=200").json()["logs"] if line["type"] == "session.compacted"]
    assert lines[-1] == f"{compacted['replaces']['messages']} messages were summarised"
    assert json.dumps(compacted)
