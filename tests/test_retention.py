"""What is given up when the log is over its size, what never is, and what readers are told of it."""

import sqlite3
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from agent_server.commands.process_index import ProcessIndex
from agent_server.events import CONTEXT, Draft, Event
from agent_server.events.log import EventLog
from agent_server.events.retention import CHECK_EVERY
from agent_server.redaction import Secrets
from agent_server.sessions.tasks import TaskIndex
from tests.test_events import opened, tables

LIMIT = 2 << 20
FILL = "x" * 2_000


def used(log: EventLog) -> int:
    db = sqlite3.connect(log._path)
    try:
        pages, free, size = (db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size"))
    finally:
        db.close()
    return int((pages - free) * size)


def output(task_id: str | None = None) -> Draft:
    return Draft("process.output", {"processId": "proc_1", "chunk": FILL}, "sess_1", task_id)


def log_line(task_id: str | None = None) -> Draft:
    return Draft("log", {"text": FILL}, "sess_1", task_id)


async def flood(log: EventLog, draft: Draft, count: int) -> None:
    """Adds events one commit at a time, as the size is looked at every so many commits."""
    for _ in range(count):
        log.say(draft)
        await log.flush()


async def settle(log: EventLog) -> None:
    """Goes on until a look at the size has been had, and what it removes is removed."""
    await flood(log, Draft("log", {"text": ""}), 3 * CHECK_EVERY)


async def test_the_log_stays_about_within_its_limit_under_a_flood(tmp_path: Path) -> None:
    async with opened(tmp_path, max_bytes=LIMIT) as log:
        for _ in range(12):
            await flood(log, output(), 250)
            assert used(log) < LIMIT * 1.3
        assert (tmp_path / "events.db").stat().st_size < LIMIT * 2
        assert (await log.read())[-1].type == "process.output"


async def test_output_goes_first_oldest_first(tmp_path: Path) -> None:
    async with opened(tmp_path, max_bytes=LIMIT) as log:
        await flood(log, log_line(), 200)
        await flood(log, output(), 1000)
        await settle(log)
        found = [event for event in await log.read() if event.data.get("text") != ""]
        assert Counter(event.type for event in found)["log"] == 200
        kept = [event.seq for event in found if event.type == "process.output"]
        assert kept == list(range(kept[0], kept[0] + len(kept)))


async def test_what_ended_tasks_do_not_need_goes_next(tmp_path: Path) -> None:
    async with opened(tmp_path, max_bytes=LIMIT) as log:
        await log.append(Draft("task.created", {"prompt": "go"}, "sess_1", "task_ended"), Draft("task.started", {}, "sess_1", "task_ended"))
        await flood(log, log_line("task_ended"), 100)
        await log.append(Draft("task.completed", {"response": "ok"}, "sess_1", "task_ended"))
        await log.append(Draft("task.created", {"prompt": "go"}, "sess_1", "task_open"))
        await flood(log, log_line("task_open"), 300)
        await flood(log, log_line(), 1500)
        await settle(log)
        kinds = Counter((event.task_id, event.type) for event in await log.read())
        assert kinds["task_open", "log"] == 300
        assert kinds["task_ended", "log"] == 0
        assert all(kinds["task_ended", kind] == 1 for kind in ("task.created", "task.started", "task.completed"))
        assert used(log) < LIMIT * 1.3


async def test_what_conversations_are_made_of_is_never_removed(tmp_path: Path) -> None:
    async with opened(tmp_path, max_bytes=LIMIT) as log:
        usage = {"usage": {}, "messageId": "msg_1", "prompt": "go", "phase": "failed", "error": {"message": "no"}}
        kept = [Draft(kind, {**usage, "fill": FILL}, "sess_1", f"task_{n}") for n in range(100) for kind in sorted(CONTEXT)]
        await log.append(*kept)
        await flood(log, output(), 300)
        await settle(log)
        assert Counter(event.type for event in await log.read() if event.type in CONTEXT) == dict.fromkeys(CONTEXT, 100)
        assert used(log) > LIMIT, "the test is to be over the limit for good"
        await flood(log, output(), CHECK_EVERY * 4)


async def test_the_results_of_calls_without_a_task_go_as_all_else_does(tmp_path: Path) -> None:
    async with opened(tmp_path, max_bytes=LIMIT) as log:
        await flood(log, Draft("tool.finished", {"toolCallId": "call_1", "tool": "read", "output": FILL}, "mcp"), 2000)
        await settle(log)
        assert used(log) < LIMIT * 1.3


async def everything(log: EventLog, **how: Any) -> list[Event]:
    log.end_follows()
    return [event async for event in log.follow(**how)]


@pytest.mark.parametrize("task_id", [None, "task_1"])
async def test_a_reader_is_told_once_of_what_was_removed(tmp_path: Path, task_id: str | None) -> None:
    async with opened(tmp_path, max_bytes=LIMIT) as log:
        await log.append(Draft("task.created", {"prompt": "go"}, "sess_1", "task_1"), Draft("task.completed", {}, "sess_1", "task_1"))
        (last,) = await log.append(log_line("task_1"))
        await flood(log, output("task_1"), 1000)
        await flood(log, output("task_2"), 1000)
        await settle(log)
        everyone = await log.read()
        given = set(range(1, log.newest + 1))
        removed = given - {event.seq for event in everyone}
        assert removed
        told = await everything(log, after=0, task_id=task_id)
        gaps = [event for event in told if event.type == "gap"]
        assert len(gaps) == 1
        assert gaps[0] == told[0]
        assert gaps[0].seq == 0
        if task_id is None:
            assert (gaps[0].data["from"], gaps[0].data["to"]) == (min(removed), max(removed))
        else:
            assert last.seq < gaps[0].data["from"] <= gaps[0].data["to"] <= max(removed)
        assert [event.seq for event in told[1:]] == [event.seq for event in everyone if task_id in (None, event.task_id)]


async def test_a_reader_in_the_middle_of_what_was_removed_is_told_from_its_own_place(tmp_path: Path) -> None:
    async with opened(tmp_path, max_bytes=LIMIT) as log:
        await flood(log, output(), 2000)
        await settle(log)
        (_, last) = await log.query(lambda db: db.execute("SELECT first, last FROM removed WHERE task_id = ''").fetchone())
        told = await everything(log, after=last - 5)
        assert (told[0].type, told[0].seq, dict(told[0].data)) == ("gap", last - 5, {"from": last - 4, "to": last})
        assert all(event.type != "gap" for event in await everything(log, after=last))


async def test_nothing_is_missed_in_silence_while_old_events_are_removed(tmp_path: Path) -> None:
    async with opened(tmp_path, max_bytes=LIMIT) as log:
        await flood(log, output(), 450)
        following = log.follow(after=0)
        seen: set[int] = set()
        covered: set[int] = set()
        while len(seen) < 300:
            event = await anext(following)
            seen.add(event.seq) if event.type != "gap" else covered.update(range(event.data["from"], event.data["to"] + 1))
        await flood(log, output(), 1500)
        await settle(log)
        log.end_follows()
        order = []
        async for event in following:
            if event.type == "gap":
                covered.update(range(event.data["from"], event.data["to"] + 1))
            else:
                order.append(event.seq)
        assert order == sorted(set(order) - seen)
        assert set(range(1, log.newest + 1)) == seen | set(order) | covered


async def test_an_index_that_is_built_anew_after_removal_knows_the_open_tasks_and_processes(tmp_path: Path) -> None:
    async with opened(tmp_path, max_bytes=LIMIT) as log:
        await log.append(Draft("task.created", {"prompt": "go"}, "sess_1", "task_open"), Draft("task.started", {}, "sess_1", "task_open"))
        await log.append(Draft("process.started", {"processId": "proc_open"}, "sess_1", "task_open"))
        await flood(log, log_line(), 1500)
        await settle(log)
        before = await tables(log)
        assert before["processes"]
    with sqlite3.connect(tmp_path / "events.db") as db:
        db.execute("UPDATE meta SET value = 0 WHERE name LIKE 'index %'")
    db.close()
    async with opened(tmp_path, max_bytes=LIMIT) as log:
        assert await tables(log) == before


async def test_a_log_that_cannot_remove_anything_goes_on(tmp_path: Path) -> None:
    class Refusing:
        """Makes removal fail, as a failing disk does."""

        version = 1
        tables: Sequence[str] = ()
        schema: Sequence[str] = ("CREATE TRIGGER refuse BEFORE DELETE ON events BEGIN SELECT RAISE(FAIL, 'the disk is failing'); END",)

        def apply(self, db: sqlite3.Connection, events: Sequence[Event]) -> None: ...

    log = EventLog(tmp_path / "events.db", Secrets(), [TaskIndex(), ProcessIndex(), Refusing()], max_bytes=1 << 20)
    log.open()
    try:
        await flood(log, output(), 1000)
        assert len(await log.read()) == 1000
    finally:
        await log.close()
