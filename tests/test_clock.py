"""Running time: what a pause of the whole process does to deadlines, and what it does not."""

import asyncio
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent_server.clock import Clock
from tests.emulators.openai import OpenAIEmulator
from tests.scripts import bash, plan
from tests.serving import ServerProcess, serving

PAUSE = 5.0
TIMEOUT_MS = 4_500
"""Less than the pause. What counts of it is two seconds, which leaves two and a half for a busy machine."""


@pytest.fixture
def both(tmp_path: Path, model: OpenAIEmulator) -> Iterator[tuple[ServerProcess, ServerProcess]]:
    with (
        serving(tmp_path / "one", AGENT_BASE_URL=model.url, AGENT_API_KEY="sk-test-key-of-the-model") as one,
        serving(tmp_path / "two") as two,
    ):
        yield one, two


def test_a_pause_is_not_counted(both: tuple[ServerProcess, ServerProcess], model: OpenAIEmulator) -> None:
    server, quiesced = both
    model.script(plan([bash("touch begun; sleep 1")]))
    task_id = server.submit(timeout=TIMEOUT_MS)
    executed: list[dict[str, object]] = []
    command = threading.Thread(target=lambda: executed.append(server.execute("echo a; sleep 1; echo b", timeout=TIMEOUT_MS)))
    command.start()
    server.wait_for(task_id, "tool.started")
    assert quiesced.post("/lifecycle/quiesce", {"timeout": TIMEOUT_MS}).status_code == 200
    for each in both:
        assert each.process is not None
        each.process.send_signal(signal.SIGSTOP)
    time.sleep(PAUSE)  # the pause itself: there is nothing to wait for
    for each in both:
        assert each.process is not None
        each.process.send_signal(signal.SIGCONT)
    assert quiesced.get("/health").status_code == 503
    command.join()
    assert (executed[0]["timedOut"], executed[0]["output"]) == (False, "a\nb\n")
    assert server.finish(task_id)["status"] == "completed"
    with quiesced.client() as client, client.stream("GET", "/events?after=0") as response:
        assert any('"lifecycle.resumed"' in line for line in response.iter_lines())
    assert quiesced.get("/health").status_code == 200


async def test_timers_are_called_in_their_time_and_only_once() -> None:
    clock, called = Clock(), list[str]()
    last = asyncio.Event()
    taken_back = clock.call_later(0.01, lambda: called.append("never"))
    clock.call_later(0.05, lambda: called.append("second"))
    clock.call_later(0.02, lambda: called.append("first"))
    clock.call_later(0.08, last.set)
    taken_back.cancel()
    taken_back.cancel()
    await last.wait()
    assert called == ["first", "second"]


async def test_a_timer_may_take_back_another_that_is_due() -> None:
    clock, called, last = Clock(), list[str](), asyncio.Event()
    clock.call_later(0.01, lambda: other.cancel())
    other = clock.call_later(0.01, lambda: called.append("never"))
    clock.call_later(0.03, last.set)
    await last.wait()
    assert called == []


async def test_a_timeout_ends_what_takes_too_long() -> None:
    clock = Clock()
    with pytest.raises(TimeoutError):
        async with clock.timeout(0.01) as deadline:
            await asyncio.sleep(10)
    assert deadline.expired()
    async with clock.timeout(10):
        await asyncio.sleep(0)


async def test_a_held_clock_stands_still() -> None:
    clock, called = Clock(), asyncio.Event()
    clock.call_later(0.02, called.set)
    clock.hold()
    before = clock.time()
    await asyncio.sleep(0.1)
    assert clock.time() == before
    assert not called.is_set()
    clock.release()
    await asyncio.wait_for(called.wait(), 10)
