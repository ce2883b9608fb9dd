"""Commands, run by the runner itself: how they end, what is left of them, what becomes of a cancel at any moment."""

import asyncio
import gc
import os
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from agent_server.commands import proctree
from agent_server.commands.execution import DRAIN, Command, Ended, Owner
from agent_server.commands.process import REPLAY
from agent_server.commands.process_index import ENDED_KEPT, ProcessIndex, find, find_all, unfinished
from agent_server.commands.processes import LEFTOVERS, Processes
from agent_server.commands.terminals import TerminalSize
from agent_server.errors import Draining, InvalidRequest, NotFound
from agent_server.events import Draft, Event
from agent_server.events.log import EventLog
from agent_server.ids import new_id
from agent_server.redaction import Secrets
from agent_server.sessions.tasks import TaskIndex

STRESS = int(os.environ.get("AGENT_SERVER_STRESS", "1"))


class Runner:
    """A runner with a log of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.outputs = folder / "outputs"
        self.outputs.mkdir(exist_ok=True)
        self.mark = new_id("srv")
        self.secrets = Secrets(["a-secret-of-ours"])
        self.log = EventLog(folder / "events.db", self.secrets, [TaskIndex(), ProcessIndex()])
        self.processes = self.again()

    def again(self) -> Processes:
        """A runner as after a restart."""
        return Processes(self.log, self.secrets, {"PATH": os.environ["PATH"]}, self.outputs, self.mark)

    async def run(self, argv: Any, **more: Any) -> Ended:
        return await self.processes.run(Command(argv, more.pop("cwd", self.folder), **more))

    def start(self, argv: Any, **more: Any) -> "asyncio.Task[Ended]":
        return asyncio.create_task(self.run(argv, **more))

    async def started(self, name: str = "ready") -> None:
        """Waits until a command has made this file."""
        while not (self.folder / name).exists():  # noqa: ASYNC110  # another process makes it
            await asyncio.sleep(0.005)

    async def events(self, kind: str) -> list[Event]:
        return await self.log.read(types=[kind])

    def found(self) -> set[int]:
        return proctree.find(f"{self.mark}/")


@pytest.fixture
async def runner(tmp_path: Path) -> AsyncIterator[Runner]:
    async with running(tmp_path) as one:
        yield one


@asynccontextmanager
async def running(folder: Path) -> AsyncIterator[Runner]:
    one = Runner(folder)
    one.log.open()
    try:
        yield one
    finally:
        await one.processes.kill_all(grace=0)
        await one.log.close()


def fds() -> Counter[str]:
    """What this process has open, by kind."""
    gc.collect()  # of the tests before
    found: Counter[str] = Counter()
    for name in os.listdir("/proc/self/fd"):
        try:
            found[os.readlink(f"/proc/self/fd/{name}").partition(":")[0]] += 1
        except OSError:
            continue
    return found


async def test_a_command_gets_its_own_session_and_group_lower_priority_and_goes_first_out_of_memory(runner: Runner) -> None:
    done = await runner.run("sleep 0.05; ps -o pid=,pgid=,sid=,ni= -p $$; cat /proc/self/oom_score_adj; echo $AGENT_SERVER_PROCESS")
    ids, oom, mark = done.stdout.splitlines()
    pid, group, session, nice = map(int, ids.split())
    assert pid == group == session != os.getsid(0)
    assert nice > os.getpriority(os.PRIO_PROCESS, 0)
    assert int(oom) == 500
    assert mark == f"{runner.mark}/{done.process_id}"


async def test_its_events_say_who_asked_and_how_it_ended(runner: Runner) -> None:
    owner = Owner("sess_1", "task_1", "call_1")
    done = await runner.processes.run(Command(["sh", "-c", "echo out; exit 3"], runner.folder), owner)
    found = await runner.log.read(task_id="task_1", session_id="sess_1")
    assert [event.type for event in found] == ["process.started", "process.output", "process.exited"]
    assert {event.data["processId"] for event in found} == {done.process_id}
    assert found[0].data["command"] == ["sh", "-c", "echo out; exit 3"]
    assert found[0].data["toolCallId"] == found[2].data["toolCallId"] == "call_1"
    assert found[2].data["exitCode"] == 3
    assert "reason" not in found[2].data


# Cancel


@pytest.mark.parametrize("pause", [0, 0.001, 0.003, 0.006, 0.02, 0.1])
async def test_a_cancel_leaves_nothing_alive_whenever_it_comes(runner: Runner, pause: float) -> None:
    works = [runner.start("setsid sleep 60 & sleep 60 & sleep 60") for _ in range(3)]
    await asyncio.sleep(pause)
    for work in works:
        work.cancel()
    await asyncio.wait(works)
    assert all(work.cancelled() for work in works)
    assert runner.found() == set()
    started, exited = await runner.events("process.started"), await runner.events("process.exited")
    assert sorted(event.data["processId"] for event in exited) == sorted(event.data["processId"] for event in started)
    assert {event.data["reason"] for event in exited} <= {"cancelled"}
    assert runner.processes.running == 0


async def test_a_cancel_that_comes_again_and_again_does_not_cut_the_first_short(runner: Runner) -> None:
    work = runner.start("trap '' TERM; touch ready; sleep 60 & sleep 60; sleep 60")
    await runner.started()
    began = time.monotonic()
    while not work.done():
        work.cancel()
        await asyncio.wait([work], timeout=0.1)
    assert work.cancelled()
    assert proctree.TERM_GRACE * 0.9 < time.monotonic() - began < proctree.TERM_GRACE + 3
    assert runner.found() == set()
    assert len(await runner.events("process.exited")) == 1


async def test_a_cancel_while_the_output_is_still_written_ends_with_the_output_whole(runner: Runner) -> None:
    size = 30 << 20
    work = runner.start(f"head -c {size} /dev/zero; touch ready", limit=1000)
    await runner.started()
    for _ in range(3):
        work.cancel()
        await asyncio.sleep(0)
    await asyncio.wait([work])
    (exited,) = await runner.events("process.exited")
    assert exited.data.get("reason") in (None, "cancelled")
    (file,) = runner.outputs.iterdir()
    assert file.stat().st_size <= size


async def test_a_timeout_in_a_scope_ends_the_tree(runner: Runner) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await runner.run("(setsid sleep 60 &); sleep 60")
    assert runner.found() == set()


async def test_a_timer_of_a_command_ends_with_it(runner: Runner) -> None:
    loop: Any = asyncio.get_running_loop()
    await asyncio.gather(*(runner.run("sleep 0.02; echo a", timeout=3600) for _ in range(5)))
    work = runner.start("touch ready; sleep 60", timeout=3600)
    await runner.started()
    work.cancel()
    await asyncio.wait([work])
    assert [timer for timer in loop._scheduled if not timer.cancelled() and timer.when() > loop.time() + 60] == []


# Leftovers


async def test_a_timeout_is_not_told_of_a_command_that_ended_in_time(runner: Runner) -> None:
    done = await runner.run("sleep 60 & echo ended; exit 4", timeout=0.5)
    assert (done.exit_code, done.timed_out, done.reason, done.output) == (4, False, None, "ended\n")
    assert len(runner.found()) == 1, "a child in the background lives on"


async def test_a_child_in_the_background_may_go_on_to_print(runner: Runner) -> None:
    script = "(for i in $(seq 300); do head -c 1000 /dev/zero || exit; sleep 0.01; done; touch ready) & echo started"
    began = time.monotonic()
    done = await runner.run(script)
    assert time.monotonic() - began < DRAIN + 1
    assert done.output.startswith("started\n")
    await asyncio.wait_for(runner.started(), 20)


async def test_a_child_in_the_background_that_prints_for_ever_costs_next_to_nothing(runner: Runner) -> None:
    await runner.run("yes & yes >&2 &")
    used = time.process_time()
    await asyncio.sleep(1)
    assert time.process_time() - used < 0.2
    assert len(runner.found()) == 2


async def test_pipes_of_children_in_the_background_are_bounded_and_of_others_are_closed(runner: Runner) -> None:
    await runner.run("true")
    before = fds()
    count = 400 * STRESS
    gate = asyncio.Semaphore(20)

    async def one(number: int) -> None:
        async with gate:
            script = ("true", "echo a; echo b >&2", "cat", "sleep 0.1 >/dev/null 2>&1 &", "no-such-command", "kill -9 $$")[number % 6]
            await runner.run(script, stdin=b"in" if number % 2 else None)

    await asyncio.gather(*map(one, range(count)))
    for _ in range(10):
        with pytest.raises(InvalidRequest):
            await runner.run(["/no/such/program"], stdin=b"x")
    assert fds() == before
    await asyncio.gather(*(runner.run("setsid sleep 60 & exit 0") for _ in range(LEFTOVERS)))
    assert fds()["pipe"] - before["pipe"] <= LEFTOVERS
    await runner.processes.kill_all(grace=0)
    await runner.run("true")
    assert fds() == before


async def test_stdin_that_nobody_reads_is_given_up_at_the_end(runner: Runner) -> None:
    before = fds()["pipe"]
    done = await runner.run("setsid sleep 60 <&0 >/dev/null 2>&1 & exit 0", stdin=b"x" * 1_000_000)
    assert done.exit_code == 0
    assert fds()["pipe"] == before


# Output


async def test_the_excerpt_and_the_file_of_a_long_output_agree(runner: Runner) -> None:
    done = await runner.run("seq 2000000", limit=100_000)
    assert done.truncated
    assert done.output_file is not None
    whole = done.output_file.read_bytes()
    assert whole == b"".join(b"%d\n" % n for n in range(1, 2_000_001))
    assert done.output == f"{whole[:50_000].decode()}\n[... {len(whole) - 100_000} bytes left out ...]\n{whole[-50_000:].decode()}"
    assert done.stdout == done.output
    assert done.stderr == ""


@pytest.mark.parametrize("size", [99_999, 100_000, 100_001])
async def test_an_output_of_the_limit_is_whole(runner: Runner, size: int) -> None:
    done = await runner.run(f"head -c {size} /dev/zero | tr '\\0' a", limit=100_000)
    assert done.truncated == (size > 100_000)
    assert (done.output == "a" * size) == (size <= 100_000)


async def test_an_output_that_cannot_be_spilled_is_cut_and_the_command_ends(runner: Runner) -> None:
    runner.outputs.rmdir()
    runner.outputs.write_text("in the way")
    done = await runner.run("seq 1000000; echo done >&2")
    assert done.exit_code == 0
    assert done.truncated
    assert done.output_file is None
    assert done.stderr == "done\n"
    assert done.output.startswith("1\n2\n")


async def test_a_command_that_ends_while_its_output_waits_for_the_disk_loses_none(runner: Runner) -> None:
    sizes = [(1 << 20) + n * 65_536 + n for n in range(12)]
    all_of = await asyncio.gather(*(runner.run(f"head -c {size} /dev/zero; head -c 7 /dev/zero >&2", limit=10) for size in sizes))
    for size, done in zip(sizes, all_of, strict=True):
        assert done.output_file is not None
        assert done.output_file.stat().st_size == size + 7


# Restart


async def test_a_command_that_is_asked_for_during_recovery_is_not_taken_for_a_left_one(runner: Runner) -> None:
    left = runner.start("touch ready; setsid sleep 60 & sleep 60")
    await runner.started()
    after = runner.again()
    _, done = await asyncio.gather(after.recover(), after.run(Command("sleep 0.3; echo new", runner.folder)))
    assert (done.output, done.exit_code, done.reason) == ("new\n", 0, None)
    exited = [event for event in await runner.events("process.exited") if event.data["processId"] == done.process_id]
    assert [event.data.get("reason") for event in exited] == [None]
    assert (await left).signal == "SIGTERM"
    assert runner.found() == set()


@pytest.mark.parametrize(
    "argv",
    [
        ["/no/such/program"],
        ["no-such-program"],
        [""],
        ["/"],
        ["/etc/hostname"],
        ["echo", "x" * 200_000],
        ["echo", "a\0b"],
        ["echo", "\ud800"],
    ],
)
async def test_a_command_that_cannot_be_started_says_why_and_its_end_is_told_once(runner: Runner, argv: list[str]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await runner.run(argv)
    assert len(caught.value.message) < 500
    assert caught.value.details == {"path": "command"}
    (exited,) = await runner.events("process.exited")
    assert exited.data["reason"].startswith("could not be started: ")
    assert "exitCode" not in exited.data
    assert await unfinished(runner.log) == []


async def test_a_folder_whose_name_is_no_unicode_can_be_run_in(runner: Runner) -> None:
    folder = runner.folder / os.fsdecode(b"\xff\xfe")
    folder.mkdir()
    done = await runner.run("pwd", cwd=folder)
    assert done.exit_code == 0
    (started,) = await runner.events("process.started")
    assert started.data["cwd"] == f"{runner.folder}/��"


async def test_a_script_too_long_for_an_argument_leaves_nothing_on_the_disk(runner: Runner) -> None:
    done = await runner.run(f"echo a-secret-of-ours; : {'x' * 300_000}; echo $#; cat; exit 6", stdin=b"in")
    assert (done.output, done.exit_code) == ("***REDACTED***\n0\nin", 6)
    assert list(runner.outputs.iterdir()) == []


async def test_a_signal_has_its_name_and_never_an_exit_code(runner: Runner) -> None:
    for name in ("SIGKILL", "SIGTERM", "SIGSEGV", "SIGUSR1"):
        done = await runner.run(f"kill -{name[3:]} $$")
        assert (done.exit_code, done.signal, done.reason) == (None, name, None)
    done = await runner.run(f"kill -{signal.SIGRTMIN + 3} $$")
    assert (done.exit_code, done.signal) == (None, f"SIG{signal.SIGRTMIN + 3}")


# In the background


def behind(runner: Runner, argv: Any, **more: Any) -> Command:
    return Command(argv, runner.folder, limit=2 * REPLAY, is_split=False, is_background=True, **more)


async def test_the_newest_that_reads_its_input_is_found(runner: Runner) -> None:
    assert runner.processes.newest_reading_stdin() is None
    first = await runner.processes.start(behind(runner, "cat"))
    second = await runner.processes.start(behind(runner, "cat", pty=TerminalSize()))
    third = await runner.processes.start(behind(runner, "exec <&-; touch ready; exec sleep 60"))
    await runner.started()
    assert runner.processes.list() == [first, second, third]
    assert runner.processes.newest_reading_stdin() is second
    await runner.processes.end(second.process_id)
    assert runner.processes.newest_reading_stdin() is first
    first.write(b"x", end=True)
    assert runner.processes.newest_reading_stdin() is None
    await first.wait()
    assert first.ended is not None
    assert (first.ended.output, first.ended.exit_code) == ("x", 0)


async def test_one_that_watches_gets_all_and_the_end(runner: Runner) -> None:
    process = await runner.processes.start(behind(runner, "for i in 1 2 3; do echo $i; sleep 0.05; done"))
    assert b"".join([data async for data in process.watch()]) == b"1\n2\n3\n"
    await process.wait()
    assert runner.processes.get(process.process_id) is None


async def test_after_the_close_all_have_ended_and_none_begins(runner: Runner) -> None:
    processes = [await runner.processes.start(behind(runner, "trap '' TERM; sleep 60 & sleep 60; sleep 60")) for _ in range(3)]
    before = fds()["pipe"]
    await runner.processes.close()
    assert runner.found() == set()
    assert len(await runner.events("process.exited")) == 3
    assert {process.ended.reason for process in processes if process.ended is not None} == {"the server was stopped"}
    assert fds()["pipe"] < before
    with pytest.raises(Draining):
        await runner.processes.start(behind(runner, "true"))


@pytest.mark.parametrize("group", [1, 50])
async def test_ended_processes_are_listed_up_to_a_number_and_running_ones_always(runner: Runner, group: int) -> None:
    await runner.log.append(Draft("process.started", {"processId": "proc_runs", "command": "x", "cwd": "/"}))
    drafts = []
    for number in range(3 * ENDED_KEPT):
        drafts.append(Draft("process.started", {"processId": f"proc_{number:04}", "command": "x", "cwd": "/"}))
        drafts.append(Draft("process.exited", {"processId": f"proc_{number:04}", "exitCode": 0}))
    for at in range(0, len(drafts), group):
        runner.log.say(*drafts[at : at + group])
        await runner.log.flush()
    listed = [record.process_id for record in await find_all(runner.log)]
    assert listed == [*(f"proc_{number:04}" for number in reversed(range(2 * ENDED_KEPT, 3 * ENDED_KEPT))), "proc_runs"]
    (count,) = await runner.log.query(lambda db: db.execute("SELECT count(*) FROM processes").fetchone())
    assert count <= 2 * ENDED_KEPT
    with pytest.raises(NotFound):
        await find(runner.log, "proc_0000")
