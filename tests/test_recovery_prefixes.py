"""Recovery from every point a log can end at: a task is recorded once, its log is cut after each event, and goes on from there."""

import re
import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.emulators.openai import OpenAIEmulator, Record
from tests.ended import assert_completed, assert_effects, assert_requests, by_session, of_type
from tests.scripts import LINE
from tests.serving import ServerProcess, serving

ORIGINAL = "zebra000"
"""The prompt of the recorded task, and the name of its file. Each prefix has its own, of the same length."""

READ = {"name": "read", "arguments": {"filePath": "notes/one.md"}}
PLAN = [
    [{"name": "bash", "arguments": {"command": f"{LINE}; echo out; echo err >&2"}}],
    [
        READ,
        {"name": "grep", "arguments": {"pattern": "two", "path": "notes"}},
        {"name": "bash", "arguments": {"command": LINE}},
        READ,
        {"name": "write", "arguments": {"filePath": "{prompt}.md", "content": "{step}\n"}},
    ],
    [{"name": "bash", "arguments": {"command": f"{LINE}; exit 3"}}, {"name": "nothing"}, {"name": "read", "arguments": '{"oops": 1}'}],
]
TURN = {"script": "plan", "plan": PLAN, "saying": "On with it.", "reasoning": "Let me think.", "text": "That was all."}

Row = tuple[int, int, str, str | None, str | None, int | None, str]


class Recorded(msgspec.Struct):
    """A data folder that holds a task from its beginning to its end, and the requests that were made for it."""

    data: Path
    rows: list[Row]
    requests: list[Record]


@pytest.fixture(scope="module", params=["undisturbed", "killed"])
def recorded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, model: OpenAIEmulator) -> Iterator[Recorded]:
    """A recording of a run without incident, and of one whose server was killed in a call's middle."""
    model.script(TURN)
    with serving(tmp_path_factory.mktemp("recorded"), AGENT_BASE_URL=model.url, AGENT_API_KEY="sk-test-key-of-the-model") as server:
        _notes(server)
        task_id = server.submit(ORIGINAL)
        if request.param == "killed":
            server.kill_at(task_id, "tool.started", 3)
            server.start()
        assert_completed(server, task_id)
        server.stop()
        yield Recorded(server.data, _rows(server.data), model.requests())


def _notes(server: ServerProcess) -> None:
    folder = server.workspace / "notes"
    folder.mkdir()
    (folder / "one.md").write_text("one\ntwo\n")


def _rows(data: Path) -> list[Row]:
    with sqlite3.connect(data / "events.db") as db:
        rows = db.execute("SELECT * FROM events WHERE session_id IS NOT NULL ORDER BY seq").fetchall()
    db.close()
    return rows


def test_a_task_goes_on_from_after_each_of_its_events(recorded: Recorded, tmp_path: Path, model: OpenAIEmulator) -> None:
    model.script(TURN)
    server = ServerProcess(tmp_path, AGENT_BASE_URL=model.url, AGENT_API_KEY="sk-test-key-of-the-model")
    _notes(server)
    prefixes = {f"zebra{k:03}": _renamed(recorded.rows[:k], k) for k in range(1, len(recorded.rows) + 1)}
    _fill(server, recorded.data, prefixes)
    with serving(tmp_path, AGENT_BASE_URL=model.url, AGENT_API_KEY="sk-test-key-of-the-model") as server:
        for name, rows in prefixes.items():
            task_id = rows[0][4]
            assert task_id is not None
            told = assert_completed(server, task_id)
            assert_effects(told, server.workspace / f"{name}.txt")
            _assert_not_repeated(rows, told)
    requests = by_session(model.requests())
    for name, rows in prefixes.items():
        made = requests.pop(f'"{name}"', [])
        assert_requests(made)
        assert made or any(row[2] == "message.completed" and "That was all." in row[6] for row in rows)
        if made:
            begun = any(row[2] == "session.created" for row in rows)  # else its system prompt is made now, in another folder
            _assert_same_conversation(made[-1].json["messages"][not begun :], recorded.requests[-1].json["messages"][not begun :], name)
    assert not requests


def _renamed(rows: Sequence[Row], number: int) -> list[Row]:
    """The events as those of another task in another session."""
    end = f"{number:03}"

    def rename(text: str) -> str:
        text = text.replace(ORIGINAL, f"zebra{end}")
        return re.sub(r"\b((?:task|proc|msg)_[0-9a-z]{23})[0-9a-z]{3}\b", rf"\g<1>{end}", text)

    return [
        (seq, at, kind, f"sess_{end}", rename(task_id) if task_id is not None else None, context, rename(data))
        for seq, at, kind, _, task_id, context, data in rows
    ]


def _fill(server: ServerProcess, source: Path, prefixes: Mapping[str, Sequence[Row]]) -> None:
    """Makes a data folder whose log is all these prefixes, and a workspace with what their ended calls have left."""
    server.start()
    server.stop()
    db = sqlite3.connect(server.data / "events.db")
    with db:
        db.execute("DELETE FROM meta WHERE name LIKE 'index %'")
        rows = [row[1:] for prefix in prefixes.values() for row in prefix]
        db.executemany("INSERT INTO events (time, type, session_id, task_id, context, data) VALUES (?, ?, ?, ?, ?, ?)", rows)
    db.close()
    for name, prefix in prefixes.items():
        steps = 0
        for row in prefix:
            data = msgspec.json.decode(row[6])
            steps += row[2] == "message.completed"
            if row[2] == "tool.finished" and data["tool"] == "bash" and not data["interrupted"]:
                with (server.workspace / f"{name}.txt").open("a") as file:
                    file.write(f"{steps - 1}\n")


def _assert_not_repeated(rows: Sequence[Row], told: Sequence[Mapping[str, Any]]) -> None:
    """Calls with effects that had begun in the prefix and not ended are told as interrupted; no others are, and no effect came twice."""
    begun, ended = Counter[str](), set[str]()
    for row in rows:
        data = msgspec.json.decode(row[6])
        if row[2] == "tool.started":
            begun[data["toolCallId"]] += data["tool"] in ("bash", "write", "nothing")
        elif row[2] == "tool.finished":
            ended.add(data["toolCallId"])
    after = [event for event in of_type(told, "tool.finished") if event["toolCallId"] not in ended]
    for event in after:
        assert event["interrupted"] == bool(begun[event["toolCallId"]]), event


def _assert_same_conversation(messages: Sequence[Any], recorded: Sequence[Any], name: str) -> None:
    """Up to the first interruption, of this run or the recorded one, the model is sent what it was sent there."""
    expected = msgspec.json.decode(msgspec.json.encode(recorded).replace(ORIGINAL.encode(), name.encode()))
    for said, meant in zip(messages, expected, strict=True):
        if any("Interrupted" in str(message["content"]) for message in (said, meant)):
            return
        assert said == meant
