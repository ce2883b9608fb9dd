"""What is true of every task that has completed, however often the server died meanwhile; read off its events."""

import itertools
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.emulators.history import complaint
from tests.emulators.openai import Record
from tests.serving import ServerProcess

Told = Sequence[Mapping[str, Any]]


def of_type(told: Told, kind: str) -> list[Mapping[str, Any]]:
    return [event for event in told if event["type"] == kind]


def assert_completed(server: ServerProcess, task_id: str, *, seconds: float = 60) -> list[dict[str, Any]]:
    """Waits for a task's end without doing anything for it, and checks its events against each other and against the task."""
    task = server.finish(task_id, seconds)
    assert task["status"] == "completed", (task["error"], server.log())
    told = server.task_events(task_id)
    assert_consistent(told, task)
    return told


def assert_consistent(told: Told, task: Mapping[str, Any]) -> None:
    kinds = Counter(event["type"] for event in told)
    numbers = [event["seq"] for event in told]
    assert numbers == sorted(set(numbers))
    assert told[0]["type"] == "task.created"
    assert told[-1]["type"] == "task.completed"
    assert kinds["task.created"] == kinds["task.started"] == kinds["task.completed"] == 1
    _assert_steps(told, task)
    _assert_calls(told)
    _assert_messages(told)
    _assert_usage(told, task)
    started = Counter(event["processId"] for event in of_type(told, "process.started"))
    exited = Counter(event["processId"] for event in of_type(told, "process.exited"))
    assert set(started) <= set(exited)
    assert set(exited.values()) <= {1}


def _assert_steps(told: Told, task: Mapping[str, Any]) -> None:
    finished = [event["step"] for event in of_type(told, "step.finished")]
    assert finished == list(range(1, len(finished) + 1))
    assert task["steps"] == len(finished) == len(of_type(told, "message.completed"))
    started = [event["step"] for event in of_type(told, "step.started")]
    assert started == sorted(started)
    assert set(started) == set(finished)


def _assert_calls(told: Told) -> None:
    made = [call["id"] for event in of_type(told, "message.completed") for call in event["toolCalls"]]
    for kind in ("tool.started", "tool.finished"):
        assert sorted(event["toolCallId"] for event in of_type(told, kind)) == sorted(made), kind


def _assert_messages(told: Told) -> None:
    said: dict[str, str] = {}
    for event in of_type(told, "message.delta"):
        said[event["messageId"]] = said.get(event["messageId"], "") + event["delta"]
    completed = {event["messageId"]: event["text"] for event in of_type(told, "message.completed")}
    discarded = [event["messageId"] for event in of_type(told, "message.discarded")]
    assert len(discarded) == len(set(discarded))
    assert not set(discarded) & set(completed)
    for message_id, text in said.items():
        assert message_id in discarded or completed[message_id] == text


def _assert_usage(told: Told, task: Mapping[str, Any]) -> None:
    each = [event["usage"] for event in of_type(told, "message.completed")]
    summaries = [event["usage"] for kind in ("session.compacted", "compaction.failed") for event in of_type(told, kind) if "usage" in event]
    delegated = [event["details"]["usage"] for event in of_type(told, "tool.finished") if "usage" in event.get("details", {})]
    for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert task["usage"][name] == sum(usage[name] for usage in (*each, *summaries, *delegated))
    assert told[-1]["usage"] == task["usage"]
    assert [event["usage"] for event in of_type(told, "step.finished")] == each


def assert_effects(told: Told, file: Path) -> None:
    """Checks the lines that calls of `LINE` have left: of a call that ended one, of one that was interrupted one at the most."""
    lines = Counter(file.read_text().split()) if file.exists() else Counter()
    for number, event in enumerate(of_type(told, "message.completed")):
        for call in event["toolCalls"]:
            if call["name"] == "bash" and ">>" in call["arguments"]:
                end = next(e for e in of_type(told, "tool.finished") if e["toolCallId"] == call["id"])
                found = lines.pop(str(number), 0)
                assert found <= 1 if end["interrupted"] else found == 1, (number, found, end)
    assert not lines


def assert_requests(records: Sequence[Record]) -> None:
    """Checks requests of one session: each a conversation that providers take, and each a continuation of the one before it."""
    for record in records:
        assert complaint(record.json) is None
    for before, after in itertools.pairwise(records):
        assert after.body.startswith(before.body.removesuffix("]}")), (before.body[-500:], after.body[-500:])


def by_session(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Sorts requests by the first prompt of their conversation."""
    found: dict[str, list[Record]] = {}
    for record in records:
        first = next(message["content"] for message in record.json["messages"] if message["role"] == "user")
        found.setdefault(json.dumps(first), []).append(record)
    return found
