"""What must not be left half done: a clean-up, and the acceptance of a task."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agent_server.commands.processes import finish
from agent_server.datadir import DataDirectory
from agent_server.redaction import Secrets
from agent_server.server import Server
from agent_server.sessions import tasks
from agent_server.sessions.submission import Submission
from agent_server.settings import load
from agent_server.wiring import wire


async def test_a_cancellation_is_raised_when_the_work_is_done() -> None:
    may_end, done = asyncio.Event(), []

    async def work() -> None:
        await may_end.wait()
        done.append("work")

    async def outer() -> None:
        await finish(work())
        done.append("went on")

    task = asyncio.create_task(outer())
    await asyncio.sleep(0)
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0)
    assert not task.done()
    may_end.set()
    await asyncio.wait([task])
    assert task.cancelled()
    assert done == ["work"]


async def test_an_error_of_the_work_goes_before_a_cancellation() -> None:
    may_end = asyncio.Event()

    async def work() -> None:
        await may_end.wait()
        raise OSError("no space")

    task = asyncio.create_task(finish(work()))
    await asyncio.sleep(0)
    task.cancel()
    may_end.set()
    await asyncio.wait([task])
    with pytest.raises(OSError, match="no space"):
        task.result()


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    """The parts of a server whose sessions work."""
    (tmp_path / "workspace").mkdir()
    variables = {"WORKSPACE_DIR": str(tmp_path / "workspace"), "DATA_DIR": str(tmp_path / "data"), "AGENT_PROVIDER": "replay"}
    settings = load(variables | {"AGENT_MODEL": "none", "PATH": "/usr/bin:/bin"})
    data = DataDirectory(settings)
    server = wire(settings, data, Secrets(), b"")
    server.log.open()
    working = asyncio.create_task(server.sessions.run())
    await server.sessions.ready()
    yield server
    await server.sessions.drain(0)
    await working
    await server.log.close()
    data.close()


async def test_a_task_whose_submission_is_cancelled_is_at_work_or_was_never_accepted(server: Server) -> None:
    for turns in range(12):
        submitting = asyncio.create_task(server.sessions.submit(submission(), f"sess_{turns}"))
        for _ in range(turns):
            await asyncio.sleep(0)
        submitting.cancel()
        await asyncio.wait([submitting])
    created = await server.log.read(types=["task.created"])
    assert created
    async with asyncio.timeout(30):
        for event in created:
            assert (await server.sessions.wait(event.task_id or "")).ended is not None


def submission() -> Submission:
    return Submission(prompt="go", model="none", provider="replay", timeout_ms=60_000, max_steps=5)


async def test_a_request_that_is_sent_again_after_a_cancelled_one_gets_a_task_that_ends(server: Server) -> None:
    submitting = asyncio.create_task(server.sessions.submit(submission(), key="again"))
    async for _ in server.log.follow(after=0, types={"task.created"}):
        break
    submitting.cancel()
    await asyncio.wait([submitting])
    task_id = await server.sessions.submit(submission(), key="again")
    async with asyncio.timeout(30):
        assert (await tasks.find(server.log, task_id)).task_id == task_id
        assert (await server.sessions.wait(task_id)).ended is not None
