"""The fold of events into messages: whatever happened, each tool call has exactly one result in what is sent."""

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent_server.calling.plan import OVER, PROMPT
from agent_server.events import CONTEXT, Event
from agent_server.gateway.body import BodyEncoder
from agent_server.gateway.providers import Endpoint
from agent_server.messages import Message
from agent_server.sessions.conversation import Conversation
from agent_server.sessions.entries import GO_ON, PRUNED, Entry, entry_from_wire, entry_to_wire, prompt_id
from agent_server.sessions.seen_files import MAX_FILES, remember
from tests.emulators.history import complaint

ENDPOINT = Endpoint("http://127.0.0.1/v1", None, {}, "m", "openai-compatible")


class History:
    """Makes events of a session, as they can come, from choices."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.tasks: list[str] = []
        self.calls: list[str] = []
        self.ids: list[str] = ["msg_unknown"]

    def add(self, kind: str, data: dict[str, Any], task_id: str | None = None) -> None:
        self.events.append(Event(len(self.events) + 1, 1_000 + len(self.events), kind, data, "sess_1", task_id))

    def new_id(self) -> str:
        self.ids.append(f"msg_{len(self.ids)}")
        return self.ids[-1]

    def play(self, choice: str, number: int) -> None:
        task_id = self.tasks[number % len(self.tasks)] if self.tasks else "task_none"
        match choice:
            case "create":
                self.tasks.append(f"task_{len(self.tasks)}")
                self.ids.append(prompt_id(self.tasks[-1]))
                schema = {"outputSchema": {"type": "object"}} if number % 3 == 0 else {}
                self.add("task.created", {"prompt": f"do {number}", **schema}, self.tasks[-1])
            case "start":
                self.add("task.started", {}, task_id)
            case "say":
                calls = [f"call_{len(self.calls) + n}" for n in range(number % 4)]
                self.calls += calls
                data = {"text": "" if calls and number % 2 else "Well.", "toolCalls": [call(c) for c in calls]}
                added = {"added": self.ids[-(number % 3) :]} if number % 3 else {}
                self.add("message.completed", {"messageId": self.new_id(), **data, **added, "usage": {"cost": 0.1}}, task_id)
            case "end" if self.calls:
                call_id = self.calls[-1 - number % min(len(self.calls), 6)]
                details = {"instructions": ["AGENTS.md"]} if number % 5 == 0 else {}
                self.add("tool.finished", {"toolCallId": call_id, "output": f"out {number}", "isError": False, "details": details}, task_id)
            case "steer":
                self.add("message.added", {"messageId": self.new_id(), "prompt": f"no, {number}"}, task_id)
            case "compact":
                until = self.ids[number % len(self.ids)]
                keeps = {"keeps": [prompt_id(task_id), *self.ids[-3:]]} if number % 2 else {}
                told = {"messageId": self.new_id(), "summary": "short", "replaces": {"untilMessageId": until}, **keeps}
                self.add("session.compacted", told, task_id if number % 3 else None)
            case "prune":
                self.add("session.pruned", {"toolCallIds": self.calls[: number % (len(self.calls) + 1)]}, task_id)
            case "repair":
                form = ("plain", "transcript", "prompt", "of_tomorrow")[number % 4]
                self.add("session.repaired", {"messageId": self.new_id(), "form": form, "added": self.ids[-(number % 3) :]}, task_id)
            case "fall short":
                self.add("compaction.failed", {"reason": "no_shorter", "error": "", "usage": {"cost": 0.5}}, task_id)
            case "copy":
                entry = Entry(self.new_id(), Message("user", ()), 1, None)
                self.add("message.copied", {**entry_to_wire(entry), "content": [{"type": "text", "text": "copied"}]})
            case "fail" | "complete":
                self.add("task.failed" if choice == "fail" else "task.completed", {}, task_id)
            case "delete":
                self.add("session.deleted", {})
            case "other":
                self.add("telepathy.received", {"toolCallId": 7})


def call(call_id: str) -> dict[str, str]:
    return {"id": call_id, "name": "bash", "arguments": '{"command": "true"}'}


LIKELY = ["create", "start", "say", "say", "say", "end", "end", "end", "steer", "compact", "prune", "repair", "fail", "complete"]
CHOICES = st.lists(st.tuples(st.sampled_from([*LIKELY, "copy", "delete", "fall short", "other"]), st.integers(0, 60)), max_size=60)


def encode(messages: Sequence[Message]) -> bytes:
    return BodyEncoder().encode(ENDPOINT, messages, (), None)


def assert_paired(messages: Sequence[Message]) -> None:
    """A provider would take these, and a prompt after them."""
    body = json.loads(encode(messages))
    body["messages"].append({"role": "user", "content": "next"})
    assert complaint(body) is None, body["messages"]


@given(CHOICES)
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_every_call_has_exactly_one_result_whatever_happened(choices: list[tuple[str, int]]) -> None:
    history, conversation = History(), Conversation("sess_1")
    for choice, number in choices:
        known = len(history.events)
        history.play(choice, number)
        for event in history.events[known:]:
            conversation.apply(event)
        assert_paired([entry.message for entry in conversation.closed()])
        assert_paired([entry.message for entry in conversation.settled])
        if not conversation.open_calls:
            assert_paired(conversation.messages)


@given(CHOICES)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_what_retention_keeps_gives_the_same_conversation(choices: list[tuple[str, int]]) -> None:
    history = History()
    for choice, number in choices:
        history.play(choice, number)
    deleted = max((event.seq for event in history.events if event.type == "session.deleted"), default=0)
    folds = [Conversation("sess_1"), Conversation("sess_1")]
    for event in history.events:
        folds[0].apply(event)
        if event.type in CONTEXT and event.seq > deleted:
            folds[1].apply(event)
    assert encode(folds[0].messages) == encode(folds[1].messages)
    assert [folds[0].added, folds[0].open_calls, folds[0].is_answered] == [folds[1].added, folds[1].open_calls, folds[1].is_answered]
    assert [folds[0].cost, folds[0].compactions, folds[0].measured] == [folds[1].cost, folds[1].compactions, folds[1].measured]


@given(CHOICES)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_copied_message_gives_the_same_bytes(choices: list[tuple[str, int]]) -> None:
    history, conversation = History(), Conversation("sess_1")
    for choice, number in choices:
        history.play(choice, number)
    for event in history.events:
        conversation.apply(event)
    entries = conversation.closed()
    copies = [entry_from_wire(json.loads(json.dumps(entry_to_wire(entry)))) for entry in entries]
    assert encode([entry.message for entry in copies]) == encode([entry.message for entry in entries])


def test_an_added_message_enters_before_the_answer_to_it_and_no_earlier() -> None:
    history, conversation = History(), Conversation("sess_1")
    for choice, number in (("create", 1), ("start", 0), ("steer", 1), ("say", 3), ("steer", 2)):
        history.play(choice, number)  # the first answer, with three calls, was asked for before the steering
    history.add("message.completed", {"messageId": "msg_z", "text": "I see.", "added": [history.ids[-1]], "usage": {}}, "task_0")
    for event in history.events:
        conversation.apply(event)
    texts = [(message.role, message.text) for message in conversation.messages]
    assert [role for role, _ in texts] == ["user", "assistant", "tool", "tool", "tool", "user", "assistant", "user"]
    assert (texts[5][1], texts[7][1]) == ("no, 2", "no, 1")
    assert not conversation.is_answered  # the first message is in no request yet


def test_of_what_a_failed_task_left_unanswered_the_users_words_stay_where_its_prompt_does() -> None:
    for is_answered in (True, False):
        history, conversation = History(), Conversation("sess_1")
        for choice, number in [("create", 1), ("start", 0), *([("say", 0)] if is_answered else []), ("steer", 1)]:
            history.play(choice, number)
        history.add("message.added", {"messageId": "msg_z", "prompt": "It does not fit.", "reason": "output"}, "task_0")
        history.play("fail", 0)
        for event in history.events:
            conversation.apply(event)
        assert [message.text for message in conversation.messages] == (["do 1", "Well.", "no, 1"] if is_answered else [])


def test_a_compaction_in_the_midst_of_a_turn_leaves_its_calls() -> None:
    history, conversation = History(), Conversation("sess_1")
    for choice, number in (("create", 1), ("start", 0), ("say", 2), ("end", 0)):
        history.play(choice, number)
    asked = history.ids[-1]
    history.add("session.compacted", {"messageId": "msg_s", "summary": "All that.", "replaces": {"untilMessageId": asked}})
    history.play("end", 1)
    for event in history.events:
        conversation.apply(event)
    assert [message.role for message in conversation.messages] == ["user", "assistant", "tool", "tool"]
    assert conversation.messages[0].text.endswith("All that.")


def test_a_compaction_lets_nested_instructions_be_shown_again() -> None:
    history, conversation = History(), Conversation("sess_1")
    for choice, number in (("create", 1), ("start", 0), ("say", 1), ("end", 5)):
        history.play(choice, number)
    for event in history.events:
        conversation.apply(event)
    assert conversation.instructions == {"AGENTS.md"}
    told = {"messageId": "msg_s", "summary": "s", "replaces": {"untilMessageId": history.ids[-1]}}
    conversation.apply(Event(99, 99, "session.compacted", told, "sess_1"))
    assert conversation.instructions == set()


def test_the_stamps_of_the_newest_files_are_kept() -> None:
    files: dict[str, str] = {}
    for n in range(MAX_FILES + 3):
        remember(files, {f"f{n}": "old"})
    remember(files, {"f3": "new", "f4": None, "gone": None})
    assert "f2" not in files
    assert "f4" not in files
    assert (len(files), list(files)[-1], files["f3"]) == (MAX_FILES - 1, "f3", "new")


def test_a_pruning_lets_nested_instructions_be_shown_again() -> None:
    history, conversation = History(), Conversation("sess_1")
    for choice, number in (("create", 1), ("start", 0), ("say", 1), ("end", 5)):
        history.play(choice, number)
    history.add("session.pruned", {"toolCallIds": [history.calls[0]]}, "task_0")
    for event in history.events:
        conversation.apply(event)
    assert conversation.messages[-1].text == PRUNED
    assert conversation.instructions == set()


def test_compactions_are_counted_until_the_next_answer() -> None:
    history, conversation = History(), Conversation("sess_1")
    for choice, number in (("create", 1), ("start", 0), ("say", 4), ("fall short", 0), ("compact", 1), ("compact", 3)):
        history.play(choice, number)
    for event in history.events:
        conversation.apply(event)
    assert conversation.compactions == 2  # the last one was a client's wish
    history.play("say", 0)
    conversation.apply(history.events[-1])
    assert conversation.compactions == 0


@pytest.mark.parametrize(("answered", "goes_on"), [(False, False), (True, True)])
def test_only_a_summary_in_the_midst_of_a_task_says_so(answered: bool, goes_on: bool) -> None:
    history, conversation = History(), Conversation("sess_1")
    for choice, number in (("create", 1), ("start", 0), ("say", 4), ("complete", 0), ("create", 1), ("start", 1)):
        history.play(choice, number)
    if answered:
        history.play("say", 1)
    told = {"messageId": "msg_s", "summary": "All that.", "replaces": {"untilMessageId": history.ids[3]}, "keeps": [prompt_id("task_1")]}
    history.add("session.compacted", told, "task_1")
    for event in history.events:
        conversation.apply(event)
    (summary,) = [entry.message.text for entry in conversation.entries if entry.is_summary]
    assert summary.endswith(GO_ON) is goes_on


@pytest.mark.parametrize("is_forked", [False, True])
def test_the_prompt_after_a_plan_says_that_it_is_over_in_a_fork_too(is_forked: bool) -> None:
    history, conversation = History(), Conversation("sess_1")
    history.add("task.created", {"prompt": "look", "mode": "plan"}, "task_0")
    history.add("task.started", {}, "task_0")
    history.add("message.completed", {"messageId": "msg_a", "text": "A plan."}, "task_0")
    history.add("task.completed", {}, "task_0")
    for event in history.events:
        conversation.apply(event)
    if is_forked:
        copies = [json.loads(json.dumps(entry_to_wire(entry))) for entry in conversation.closed()]
        history, conversation = History(), Conversation("sess_2")
        for data in copies:
            history.add("message.copied", data)
    known = len(history.events) if not is_forked else 0
    history.add("task.created", {"prompt": "do it"}, "task_1")
    history.add("task.started", {}, "task_1")
    for event in history.events[known:]:
        conversation.apply(event)
    assert PROMPT in conversation.messages[0].text
    assert conversation.messages[-1].text == f"do it\n\n{OVER}"
