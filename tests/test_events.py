"""The log: what was appended is there, in order, once, for every reader, whatever happens to the process, the machine or the disk."""

import asyncio
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent_server.commands.process_index import ProcessIndex
from agent_server.events import Draft, Event, LogUnavailable
from agent_server.events.log import PAGE_EVENTS, RING_BYTES, EventLog, tail
from agent_server.events.store import SEQUENCE_BLOCK
from agent_server.redaction import Secrets
from agent_server.sessions.tasks import TaskIndex

STRESS = int(os.environ.get("AGENT_SERVER_STRESS", "1"))
"""How much longer than by default the stress tests run."""


@asynccontextmanager
async def opened(folder: Path, *, secrets: Sequence[str] = (), indexes: Sequence[Any] = (), **more: Any) -> AsyncIterator[EventLog]:
    log = EventLog(folder / "events.db", Secrets(secrets), [TaskIndex(), ProcessIndex(), *indexes], **more)
    log.open()
    try:
        yield log
    finally:
        await log.close()


def note(number: int, *, task_id: str | None = None, sync: bool = False, size: int = 0) -> Draft:
    return Draft("log", {"text": f"{number}", **({"fill": "x" * size} if size else {})}, "sess_1", task_id, sync)


def numbers(events: Sequence[Event]) -> list[int]:
    return [int(event.data["text"]) for event in events if event.type == "log"]


async def take(log: EventLog, count: int, **how: Any) -> list[Event]:
    """The first `count` events that a follower is told."""
    found: list[Event] = []
    async for event in log.follow(**how):
        found.append(event)
        if len(found) == count:
            break
    return found


# Append


async def test_what_is_appended_said_and_posted_stands_in_that_order(tmp_path: Path) -> None:
    async with opened(tmp_path) as log:
        log.say(note(0), note(1))
        events, committed = log.post(note(2))
        await log.append(note(3), note(4, sync=True))
        assert committed.done()
        log.say(note(5))
        log.say_from_any_thread(note(6))
        await asyncio.sleep(0)
        found = await log.read()
        assert numbers(found) == [0, 1, 2, 3, 4, 5, 6]
        assert found[2] == events[0]
        assert [event.seq for event in found] == list(range(found[0].seq, found[0].seq + 7))


async def test_an_event_keeps_what_it_was_given(tmp_path: Path) -> None:
    data: dict[str, Any] = {
        "text": "é\0\n\ud83d\udd11".encode("utf-16", "surrogatepass").decode("utf-16"),
        "n": None,
        "list": [1, 2.5, True],
        "map": {"": {}},
    }
    async with opened(tmp_path, secrets=["0123456789"]) as log:
        (event,) = await log.append(Draft("log", {**data, "secret": "a0123456789b"}, "sess_1", "task_1"))
        (found,) = await log.read()
        assert msgspec.structs.replace(found, size=event.size) == event
        assert (found.type, found.session_id, found.task_id) == ("log", "sess_1", "task_1")
        assert found.data == {**data, "secret": "a***REDACTED***b"}
        assert abs(found.time - time.time() * 1000) < 5_000


async def test_lines_of_many_threads_all_get_in(tmp_path: Path) -> None:
    async with opened(tmp_path) as log:
        threads = [threading.Thread(target=lambda: deque(map(log.say_from_any_thread, map(note, range(200))), 0)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            await asyncio.to_thread(thread.join)
        await log.flush()
        assert sorted(numbers(await log.read())) == sorted([*range(200)] * 4)


async def test_an_append_whose_caller_gave_up_is_in_all_the_same(tmp_path: Path) -> None:
    async with opened(tmp_path) as log:
        work = asyncio.create_task(log.append(note(1, sync=True)))
        await asyncio.sleep(0)
        work.cancel()
        await asyncio.wait([work])
        await log.append(note(2))
        assert numbers(await log.read()) == [1, 2]


async def test_many_appends_share_a_transaction(tmp_path: Path) -> None:
    seen: list[int] = []

    class Groups:
        version = 1
        tables: Sequence[str] = ()
        schema: Sequence[str] = ()

        def apply(self, db: sqlite3.Connection, events: Sequence[Event]) -> None:
            seen.append(len(events))

    async with opened(tmp_path, indexes=[Groups()]) as log:
        await asyncio.gather(*(log.append(note(n, sync=True)) for n in range(400)))
    assert sum(seen) == 400
    assert len(seen) < 40


async def test_events_nobody_waits_for_are_committed_soon(tmp_path: Path) -> None:
    async with opened(tmp_path) as log:
        follower = asyncio.create_task(take(log, 1, after=0))
        await asyncio.sleep(0)
        log.say(note(1))
        (event,) = await asyncio.wait_for(follower, 2)
        assert numbers([event]) == [1]


async def test_nothing_can_be_appended_once_it_is_closed(tmp_path: Path) -> None:
    async with opened(tmp_path) as log:
        await log.append(note(1))
        log.say(note(2))
        await log.close()
        await log.close()
        with pytest.raises(LogUnavailable):
            await log.append(note(3))
        with pytest.raises(LogUnavailable):
            await log.read()
        log.say(note(4))
        log.say_from_any_thread(note(5))
        await asyncio.sleep(0)
    async with opened(tmp_path) as log:
        assert numbers(await log.read()) == [1, 2]


async def test_an_event_that_cannot_be_taken_in_harms_no_other(tmp_path: Path) -> None:
    class Odd:
        version = 1
        tables: Sequence[str] = ()
        schema: Sequence[str] = ()

        def apply(self, db: sqlite3.Connection, events: Sequence[Event]) -> None:
            if any(event.data["text"] == "13" for event in events):
                raise KeyError("an index that cannot take this")

    async with opened(tmp_path, indexes=[Odd()]) as log:
        results = await asyncio.gather(*(log.append(note(n, sync=True)) for n in range(20)), return_exceptions=True)
        assert [n for n, result in enumerate(results) if isinstance(result, LogUnavailable)] == [13]
        await log.append(note(20))
        assert numbers(await log.read()) == [n for n in range(21) if n != 13]


# Sequence numbers


async def test_a_number_is_never_given_twice_over_restarts(tmp_path: Path) -> None:
    seen: list[int] = []
    for _ in range(4):
        async with opened(tmp_path) as log:
            seen += [event.seq for event in await log.append(note(1), note(2))]
    assert seen == sorted(set(seen))
    assert seen[0] > 0


def copy(folder: Path, to: Path) -> Path:
    """What a machine that loses power now may have on its disk at the least."""
    to.mkdir()
    for path in folder.iterdir():
        shutil.copy(path, to)
    return to


async def test_a_number_is_never_given_twice_when_power_loss_takes_the_end(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    async with opened(tmp_path / "a") as log:
        await log.append(note(0, sync=True))
        disk = copy(tmp_path / "a", tmp_path / "b")
        lost = [event.seq for event in await log.append(*(note(n) for n in range(1, 500)))]
    async with opened(disk) as log:
        assert numbers(await log.read())[:1] == [0]
        (event,) = await log.append(note(500))
        assert event.seq > max(lost)


async def test_a_block_of_numbers_that_is_used_up_is_followed_by_another(tmp_path: Path) -> None:
    async with opened(tmp_path) as log:
        first = (await log.append(note(0, sync=True)))[0].seq
        for _ in range(SEQUENCE_BLOCK // 10_000 + 1):
            await log.append(*(note(1) for _ in range(10_000)))
        await log.flush()
        assert log.newest > first + SEQUENCE_BLOCK
        (reserved,) = await log.query(lambda db: db.execute("SELECT value FROM meta WHERE name = 'reserved'").fetchone())
        assert reserved >= log.newest
    async with opened(tmp_path) as log:
        assert (await log.append(note(2)))[0].seq > reserved


async def test_what_was_promised_outlives_a_kill(tmp_path: Path) -> None:
    script = """
import asyncio, os, signal, sys
from pathlib import Path
from agent_server.events import Draft
from agent_server.events.log import EventLog
from agent_server.redaction import Secrets

async def main():
    log = EventLog(Path(sys.argv[1]), Secrets())
    log.open()
    for number in range(300):
        await log.append(Draft("log", {"text": str(number)}, sync=number % 100 == 99))
        os.write(1, b"%d\\n" % number)
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""
    for round_ in range(3):
        done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "events.db")], stdout=subprocess.PIPE, timeout=30)
        assert done.returncode == -signal.SIGKILL
        promised = [int(line) for line in done.stdout.split()]
        assert promised == list(range(300))
        async with opened(tmp_path) as log:
            found = await log.read()
            assert numbers(found) == promised * (round_ + 1)
            assert len({event.seq for event in found}) == len(found)


# Follow


async def test_a_follower_is_told_what_was_and_what_comes(tmp_path: Path) -> None:
    async with opened(tmp_path) as log:
        await log.append(*(note(n) for n in range(5)))
        (third,) = (await log.read())[2:3]
        follower = asyncio.create_task(take(log, 4, after=third.seq))
        await asyncio.sleep(0.01)
        await log.append(note(5))
        await log.append(note(6))
        assert numbers(await follower) == [3, 4, 5, 6]


async def test_a_follower_is_told_only_what_it_asked_for(tmp_path: Path) -> None:
    async with opened(tmp_path) as log:
        for n in range(2 * PAGE_EVENTS):
            log.say(note(n, task_id=f"task_{n % 3}", size=1000), Draft("other", {}))
        await log.flush()
        found = await take(log, 200, after=0, task_id="task_1", types=["log"])
        assert numbers(found) == list(range(1, 600, 3))
        log.end_follows()
        assert {event.type async for event in log.follow(after=0, types={"other"})} == {"other"}
        assert [event async for event in log.follow(after=0, task_id="nobody")] == []


async def test_an_id_that_this_log_never_gave_follows_from_now(tmp_path: Path) -> None:
    async with opened(tmp_path) as log:
        await log.append(note(1))
        follower = asyncio.create_task(take(log, 1, after=2**62))
        await asyncio.sleep(0.01)
        await log.append(note(2))
        assert numbers(await asyncio.wait_for(follower, 5)) == [2]


async def test_followers_end_with_the_log_and_have_everything_before(tmp_path: Path) -> None:
    async with opened(tmp_path) as log:
        await log.append(note(0))

        async def all_of(log: EventLog) -> list[Event]:
            return [event async for event in log.follow(after=0)]

        followers = [asyncio.create_task(all_of(log)) for _ in range(3)]
        await asyncio.sleep(0.01)
        log.say(*(note(n) for n in range(1, 50)))
        await log.close()
        assert [numbers(await follower) for follower in followers] == [list(range(50))] * 3


async def test_a_follower_that_reads_old_events_when_the_log_is_closed_ends(tmp_path: Path) -> None:
    async with opened(tmp_path) as log:
        await log.append(*(note(n, size=1000) for n in range(4 * PAGE_EVENTS)))
        following = log.follow(after=0)
        await anext(following)
        await log.close()
        told = [event async for event in following]
        assert numbers(told) == list(range(1, len(told) + 1))


async def test_followers_at_any_place_and_pace_are_told_everything_once_while_events_pour_in(tmp_path: Path) -> None:
    count, rng = 6_000 * STRESS, random.Random(7)
    async with opened(tmp_path) as log:
        first = (await log.append(note(0, size=200)))[0].seq

        async def follow(after: int, pause: float) -> None:
            told: list[int] = []
            async for event in log.follow(after=after):
                assert event.type == "log"
                told.append(event.seq)
                if pause and len(told) % 500 == 0:
                    await asyncio.sleep(pause)
                if event.data["text"] == str(count - 1):
                    break
            assert told == list(range(after + 1, first + count)), (after, pause)

        async def append() -> None:
            n = 1
            while n < count:
                size = min(rng.randint(1, 40), count - n)
                drafts = [note(m, size=rng.randint(0, 1500), sync=rng.random() < 0.002) for m in range(n, n + size)]
                n += size
                if rng.random() < 0.3:
                    await log.append(*drafts)
                else:
                    log.say(*drafts)
                    if rng.random() < 0.3:
                        await asyncio.sleep(0)

        async with asyncio.timeout(60 * STRESS), asyncio.TaskGroup() as group:
            adding = group.create_task(append())
            group.create_task(follow(first - 1, 0))
            group.create_task(follow(first - 1, 0.02))
            while not adding.done():
                after = rng.randint(first - 1, max(first, log.newest))
                group.create_task(follow(after, rng.choice([0, 0, 0.005])))
                await asyncio.sleep(0.02)
        assert log.newest - first + 1 == count
        assert count * 1000 > 2 * RING_BYTES


async def test_a_reader_that_does_not_read_costs_nothing(tmp_path: Path) -> None:
    async with opened(tmp_path) as log:
        await log.append(note(0))
        readers = [log.follow(after=0) for _ in range(50)]
        for reader in readers:
            await anext(reader)
        await log.append(*(note(n, size=10_000) for n in range(1, 1000)))
        assert sum(event.size for event in log._ring) <= RING_BYTES + 20_000
        assert numbers([await anext(reader) for reader in readers]) == [1] * 50


async def test_the_tail_is_the_newest_that_is_wanted(tmp_path: Path) -> None:
    async with opened(tmp_path) as log:
        await log.append(*(note(n) for n in range(20)))
        assert numbers(await tail(log, lambda event: int(event.data["text"]) % 2 == 0, 3)) == [14, 16, 18]
        assert await tail(log, lambda event: True, 0) == []
        assert await tail(log, lambda event: False, 5) == []
        assert len(await tail(log, lambda event: True, 500)) == 20


# What is wrong with the file or the disk


async def test_a_file_that_is_no_database_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "events.db").write_bytes(b"this is no database at all, but long enough to be one" * 100)
    with pytest.raises(LogUnavailable, match="cannot be opened: file is not a database"):
        async with opened(tmp_path):
            pass


async def test_a_folder_in_its_place_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "events.db").mkdir()
    with pytest.raises(LogUnavailable, match="cannot be opened"):
        async with opened(tmp_path):
            pass


async def test_a_log_of_a_later_version_is_left_alone(tmp_path: Path) -> None:
    async with opened(tmp_path) as log:
        await log.append(note(1))
    with sqlite3.connect(tmp_path / "events.db") as db:
        db.execute("UPDATE meta SET value = 2 WHERE name = 'format'")
    db.close()
    with pytest.raises(LogUnavailable, match="later version"):
        async with opened(tmp_path):
            pass


async def refusal(log: EventLog, *drafts: Draft) -> LogUnavailable | None:
    try:
        await log.append(*drafts)
    except LogUnavailable as error:
        return error
    return None


async def test_a_full_disk_refuses_and_takes_again_once_there_is_room(small_disk: Path) -> None:
    async with opened(small_disk) as log:
        fill = small_disk / "fill"
        fill.write_bytes(b"x" * (2 << 20))
        taken = 0
        while (failure := await refusal(log, note(taken, size=100_000, sync=True), note(-1))) is None:
            taken += 1
        assert "Free some disk space" in str(failure)
        assert 0 < taken < 40
        with pytest.raises(LogUnavailable):
            await log.append(note(-2, size=1_000_000, sync=True))
        assert (await log.read())[-1].data["text"] == "-1"
        fill.unlink()
        await log.append(note(taken, size=1000, sync=True))
        found = numbers(await log.read())
        assert found == [m for n in range(taken) for m in (n, -1)] + [taken]
    async with opened(small_disk) as log:
        assert numbers(await log.read()) == found


async def test_what_was_promised_while_the_disk_was_full_is_in_later(small_disk: Path) -> None:
    async with opened(small_disk) as log:
        fill = small_disk / "fill"
        with pytest.raises(OSError, match="No space"):
            fill.write_bytes(b"x" * (4 << 20))
        count = 0
        while await refusal(log, note(count, size=500)) is None:
            count += 1
        assert count > 0
        fill.unlink()
        assert numbers(await take(log, count, after=0)) == list(range(count))
        await log.append(note(1_000_000, sync=True))
        assert numbers(await log.read()) == [*range(count), 1_000_000]


# Indexes


def events_of_a_life() -> list[Draft]:
    """Tasks and processes in every state, and types that no index knows."""
    drafts = []
    for number in range(12):
        ids: Any = ("sess_1", f"task_{number}")
        usage = {"prompt_tokens": 10 + number, "completion_tokens": 5, "cost": 0.5}
        drafts += [Draft("task.created", {"prompt": "go", "idempotencyKey": f"key {number % 10}", "requestHash": "h"}, *ids)]
        drafts += [Draft("from.the.future", {"deep": [1]}, *ids), Draft("task.unheard_of", {}, *ids)]
        if number > 1:
            drafts += [
                Draft("task.started", {}, *ids),
                Draft("step.started", {"step": 1}, *ids),
                Draft("message.delta", {"delta": "x"}, *ids),
            ]
        if number > 3:
            drafts += [Draft("message.completed", {"messageId": f"msg_{number}", "text": "x", "usage": usage}, *ids)]
            drafts += [Draft("tool.started", {"tool": "bash", "toolCallId": "1"}, *ids)]
            drafts += [Draft("process.started", {"processId": f"proc_{number}"}, *ids)]
        if number > 5:
            drafts += [Draft("process.exited", {"processId": f"proc_{number}", "exitCode": 0}, *ids)]
            drafts += [Draft("tool.finished", {"tool": "bash", "toolCallId": "1"}, *ids), Draft("step.finished", {"step": 1}, *ids)]
            drafts += [Draft("task.resumed", {"elapsed_ms": 5}, *ids)]
        if number > 7:
            end = Draft("task.failed", {"error": {"message": "no"}, "phase": "failed"}, *ids)
            drafts += [end if number % 2 else Draft("task.completed", {"response": "ok", "changes": [{"path": f"f{number}"}]}, *ids)]
    return drafts


async def tables(log: EventLog) -> dict[str, list[Any]]:
    names = [name for index in (TaskIndex(), ProcessIndex()) for name in index.tables]
    return await log.query(lambda db: {name: sorted(map(repr, db.execute(f"SELECT * FROM {name}"))) for name in names})


@pytest.mark.parametrize("group", [1, 3, 1000])
async def test_an_index_that_is_built_anew_is_the_same(tmp_path: Path, group: int) -> None:
    drafts = events_of_a_life()
    async with opened(tmp_path) as log:
        for at in range(0, len(drafts), group):
            await log.append(*drafts[at : at + group])
        before = await tables(log)
        assert all(before.values())
    with sqlite3.connect(tmp_path / "events.db") as db:
        for name in before:
            db.execute(f"DROP TABLE {name}")
        db.execute("UPDATE meta SET value = 0 WHERE name LIKE 'index %'")
    db.close()
    async with opened(tmp_path) as log:
        assert await tables(log) == before
