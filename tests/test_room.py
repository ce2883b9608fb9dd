"""What is chosen to go of a conversation, and how its tokens are estimated."""

import json
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent_server.events import Event
from agent_server.gateway import ModelOptions
from agent_server.messages import Image, Message, Text, ToolCall, ToolSpec
from agent_server.sessions.context import LEAST_GAIN, PROTECTED_TOKENS, PROTECTED_TURNS, Room, limit_of, prunable
from agent_server.sessions.conversation import Conversation
from agent_server.sessions.entries import PRUNED, Entry
from agent_server.sessions.run import Run
from agent_server.sessions.summary import LEFT_OUT, NEWEST, Summarised, choose, forms
from agent_server.sessions.tokens import IMAGE_TOKENS, message_tokens, specs_tokens, text_tokens
from tests.test_conversation import CHOICES, History, assert_paired, encode

SYSTEM = Message("system", (Text("You help."),))


def fold(events: Sequence[Event]) -> Conversation:
    conversation = Conversation("sess_1")
    for event in events:
        conversation.apply(event)
    return conversation


def reread(events: Sequence[Event]) -> Conversation:
    """What a restart folds: the events as JSON keeps them."""
    return fold([Event(e.seq, e.time, e.type, json.loads(json.dumps(e.data)), e.session_id, e.task_id) for e in events])


def result(call_id: str, tokens: int, message_id: str) -> Entry:
    return Entry(message_id, Message("tool", (Text("x" * 4 * tokens),), tool_call_id=call_id), 1)


def turn(number: int, *sizes: int, tool: str = "bash") -> list[Entry]:
    """A message with calls, and their results of these sizes."""
    calls = tuple(ToolCall(f"call_{number}_{at}", tool, "{}") for at in range(len(sizes)))
    message_id = f"msg_{number}"
    asked = Entry(message_id, Message("assistant", (Text("On."),), calls), 1)
    return [asked, *(result(call.id, size, message_id) for call, size in zip(calls, sizes, strict=True))]


@given(CHOICES, st.data())
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_whatever_goes_each_call_has_its_result_and_the_newest_turns_are_unchanged(
    choices: list[tuple[str, int]], data: st.DataObject
) -> None:
    history = History()
    for choice, number in choices:
        history.play(choice, number)
        if data.draw(st.integers(0, 9)):
            continue
        conversation = fold(history.events)
        prompts = [entry.message_id for entry in conversation.entries if entry.message.role == "user"]
        prompt = data.draw(st.sampled_from([*prompts, None]))
        chosen = choose(conversation.settled, keep=data.draw(st.integers(0, 80)), prompt_id=prompt)
        if chosen is None:
            continue
        last = conversation.entries[-1]
        kept = conversation.entries[len(chosen.entries) :]
        assert prompt is None or last.message.role != "user" or last.is_summary or kept  # what no model has answered stays
        done = Summarised(history.new_id(), "short", chosen, {"cost": 0.1})
        history.add("session.compacted", done.to_wire(), data.draw(st.sampled_from(["task_0", None])))
        after = fold(history.events)
        assert [entry.message_id for entry in after.entries] == [*chosen.keeps, done.message_id, *(entry.message_id for entry in kept)]
        assert encode([entry.message for entry in after.entries[len(chosen.keeps) + 1 :]]) == encode([entry.message for entry in kept])
        assert_paired([entry.message for entry in after.closed()])
    assert encode(reread(history.events).messages) == encode(fold(history.events).messages)


SIZES = st.lists(st.integers(0, 30_000), min_size=1, max_size=3)


@given(st.lists(st.tuples(SIZES, st.sampled_from(["bash", "bash", "skill"])), max_size=14))
@settings(max_examples=200, deadline=None)
def test_only_old_outputs_are_pruned(turns: list[tuple[list[int], str]]) -> None:
    entries = [entry for number, (sizes, tool) in enumerate(turns) for entry in turn(number, *sizes, tool=tool)]
    call_ids, gain = prunable(entries)
    outputs = [entry for entry in entries if entry.message.role == "tool"]
    skills = {call.id for entry in entries for call in entry.message.tool_calls if call.name == "skill"}
    assert not skills & set(call_ids)
    others = [entry for entry in outputs if entry.message.tool_call_id not in skills]
    recent = list(dict.fromkeys(entry.message_id for entry in reversed(others)))[:PROTECTED_TURNS]
    newer = 0
    for entry in reversed(others):
        if entry.message.tool_call_id in call_ids:
            assert newer >= PROTECTED_TOKENS
            assert entry.message_id not in recent
        newer += message_tokens(entry.message)
    by_id = {entry.message.tool_call_id: entry for entry in outputs}
    left = sum(message_tokens(by_id[call_id].message) - text_tokens(PRUNED) for call_id in call_ids)
    assert gain == left
    assert call_ids == [entry.message.tool_call_id for entry in outputs if entry.message.tool_call_id in call_ids]


def test_what_is_pruned_is_not_pruned_again() -> None:
    entries = [entry for number in range(12) for entry in turn(number, 10_000)]
    call_ids, gain = prunable(entries)
    assert (len(call_ids), gain > LEAST_GAIN) == (8, True)
    history = History()
    for entry in entries:
        if entry.message.role == "assistant":
            calls = [{"id": call.id, "name": call.name, "arguments": "{}"} for call in entry.message.tool_calls]
            history.add("message.completed", {"messageId": entry.message_id, "text": "On.", "toolCalls": calls}, "task_0")
        else:
            history.add("tool.finished", {"toolCallId": entry.message.tool_call_id, "output": entry.message.text}, "task_0")
    history.add("session.pruned", {"toolCallIds": call_ids}, "task_0")
    conversation = reread(history.events)
    assert [entry.message.text == PRUNED for entry in conversation.entries[1::2]] == [True] * 8 + [False] * 4
    assert prunable(conversation.entries) == ([], 0)


def test_an_image_counts_for_what_it_costs_and_not_for_its_bytes() -> None:
    picture = Message("user", (Text("What is it?"), Image("image/png", "A" * 1_000_000)))
    assert IMAGE_TOKENS < message_tokens(picture) < IMAGE_TOKENS + 20


@pytest.mark.parametrize(("text", "tokens"), [("", 0), ("a", 1), ("x" * 400, 100), ("é" * 100, 50), ("漢" * 100, 75), ("\ud800", 1)])
def test_texts_are_estimated_by_their_bytes(text: str, tokens: int) -> None:
    assert text_tokens(text) == tokens


def test_arguments_reasoning_and_tools_count() -> None:
    call = ToolCall("call_0", "write", "x" * 4_000)
    assert message_tokens(Message("assistant", (), (call,))) > 1_000
    details: Mapping[str, Any] = {"text": "", "details": [{"type": "reasoning.text", "text": "x" * 4_000}], "field": "reasoning"}
    assert message_tokens(Message("assistant", (Text("Hi"),), reasoning=details)) > 1_000
    unsent: Mapping[str, Any] = {"text": "x" * 4_000, "field": "reasoning"}
    assert message_tokens(Message("assistant", (Text("Hi"),), reasoning=unsent)) < 10
    assert specs_tokens([ToolSpec("t", "d" * 400, {"type": "object", "description": "x" * 400})]) > 200


@pytest.mark.parametrize(
    ("window", "max_tokens", "limit"),
    [(200_000, None, 180_000), (32_000, None, 24_000), (200_000, 64_000, 136_000), (32_000, 64_000, 16_000), (200_000, 500, 199_500)],
)
def test_room_is_left_for_the_answer(window: int, max_tokens: int | None, limit: int) -> None:
    assert limit_of(window, max_tokens) == limit


def room(conversation: Conversation) -> Room:
    run = SimpleNamespace(conversation=conversation, system=SYSTEM, options=ModelOptions("p", "m"))
    return Room(cast(Run, run), [], 200_000)


@given(CHOICES)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_an_estimate_kept_up_step_by_step_is_that_of_the_whole(choices: list[tuple[str, int]]) -> None:
    history, conversation = History(), Conversation("sess_1")
    kept = room(conversation)
    for choice, number in choices:
        if choice in ("delete", "fail"):
            continue  # neither is done to a task at work
        known = len(history.events)
        history.play(choice, number)
        for event in history.events[known:]:
            conversation.apply(event)
        assert kept.estimate() == room(conversation).estimate()
    own = message_tokens(SYSTEM) + sum(message_tokens(message) for message in conversation.messages)
    assert kept.estimate() == own


def answered(conversation: Conversation, number: int, **usage: int) -> None:
    data = {"messageId": f"msg_{number}", "text": "x" * 400, "usage": usage}
    conversation.apply(Event(number, number, "message.completed", data, "sess_1", "task_0"))


def test_the_last_count_of_the_provider_goes_over_the_estimate() -> None:
    conversation = Conversation("sess_1")
    estimated = room(conversation)
    answered(conversation, 1, prompt_tokens=50_000, completion_tokens=100)
    assert estimated.estimate() == 50_100
    answered(conversation, 2)  # one without a count
    assert estimated.estimate() > 50_100
    answered(conversation, 3, prompt_tokens=60_000, completion_tokens=100, reasoning_tokens=90)
    assert estimated.estimate() == 60_010  # reasoning that is not sent back takes no room


def test_the_tokens_of_a_provider_scale_what_came_since() -> None:
    conversation = Conversation("sess_1")
    estimated = room(conversation)
    own = estimated.estimate()
    answered(conversation, 1, prompt_tokens=2 * (own + 104) - 5, completion_tokens=5)
    before = estimated.estimate()
    assert before == 2 * (own + 104)
    conversation.apply(Event(2, 2, "message.added", {"messageId": "msg_b", "prompt": "x" * 400}, "sess_1", None))
    assert estimated.estimate() == before + 2 * 104


def test_a_conversation_is_summarised_in_shorter_and_shorter_forms() -> None:
    entries = [entry for number in range(60) for entry in turn(number, 3_000)]
    messages = [Message("user", (Text("y" * 9_000), Image("image/png", "aGk="))), *(entry.message for entry in entries)]
    found = list(forms(messages, None, is_refused=False))
    sizes = [sum(map(message_tokens, form)) for form in found]
    assert len(found) == 5
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < 6_000
    for form in found:
        assert_paired(form)
    assert found[0] == messages
    assert found[-1][0].text == LEFT_OUT
    assert len(found[-1]) <= NEWEST + 1
    assert len(list(forms(messages, None, is_refused=True))) == 4
    assert [sum(map(message_tokens, form)) for form in forms(messages, sizes[2], is_refused=False)] == sizes[2:]
    assert len(list(forms(messages, 0, is_refused=False))) == 1  # one is tried in any case
    short = [Message("user", (Text("Hi"),)), Message("assistant", (Text("Ho"),))]
    assert [len(list(forms(short, None, is_refused=is_refused))) for is_refused in (False, True)] == [1, 1]
