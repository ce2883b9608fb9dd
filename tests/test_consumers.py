"""The clients that people use follow the streams: npm's eventsource, and a browser's own. The server dies twice meanwhile."""

import contextlib
import json
import queue
import signal
import subprocess
import threading
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pytest

from tests.emulators.openai import OpenAIEmulator
from tests.ended import assert_completed
from tests.nodejs import CHROMIUM, CHROMIUM_FLAGS, FOLDER, NODE
from tests.scripts import LINE, bash, plan
from tests.serving import TOKEN, ServerProcess

SECONDS = 30
"""How long a consumer may say nothing."""


class Consumer:
    """A process that follows streams of a server; `seen` has the ids that each path gave, in their order."""

    def __init__(self, kind: str, server: ServerProcess, *paths: str) -> None:
        command = [NODE, str(FOLDER / "follow.mjs"), kind, server.url, TOKEN, CHROMIUM, json.dumps(CHROMIUM_FLAGS), *paths]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self._lines: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self.seen: dict[str, list[int]] = defaultdict(list)
        self.closed: set[str] = set()
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(json.loads(line))

    def until(self, path: str, kind: str) -> None:
        """Reads on until this path has given an event of a type, or its end (`closed`)."""
        while True:
            try:
                told = self._lines.get(timeout=SECONDS)
            except queue.Empty:
                self._process.kill()
                assert self._process.stderr is not None
                raise AssertionError(f"no {kind} came from {path}: {self._process.stderr.read()}") from None
            if "closed" in told:
                self.closed.add(told["path"])
            else:
                assert told["path"] not in self.closed
                self.seen[told["path"]].append(int(told["id"]))
            if told["path"] == path and (told.get("type") == kind or ("closed" in told and kind == "closed")):
                return

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(10)
        self._process.kill()
        self._process.wait(10)
        self._thread.join(10)
        for pipe in (self._process.stdout, self._process.stderr):
            assert pipe is not None
            pipe.close()


@contextlib.contextmanager
def consuming(kind: str, server: ServerProcess, *paths: str) -> Iterator[Consumer]:
    consumer = Consumer(kind, server, *paths)
    try:
        yield consumer
    finally:
        consumer.close()


@pytest.mark.parametrize("kind", ["node", "browser"])
def test_every_event_comes_once_and_in_order_over_restarts(kind: str, agent: ServerProcess, model: OpenAIEmulator) -> None:
    agent.environ["PORT"] = agent.url.rpartition(":")[2]  # the same after each start
    gate = bash("mkfifo -m 666 gate; read x < gate")
    model.script(plan([gate], *[[bash(f"{LINE}; echo out; sleep 0.1; echo more")]] * 4, delay=0.005))
    task_id = agent.submit("survivor")
    own = f"/tasks/{task_id}/events"
    with consuming(kind, agent, own, "/events?after=0") as consumer:
        consumer.until(own, "process.started")
        (agent.workspace / "gate").write_text("go\n")
        for event, number, stop in (("message.delta", 3, signal.SIGKILL), ("step.finished", 3, signal.SIGTERM)):
            agent.kill_at(task_id, event, number, stop=stop)
            agent.start()
        told = assert_completed(agent, task_id)
        consumer.until(own, "closed")  # the 204 that a resumption past the end gets
        while consumer.seen["/events?after=0"][-1] < told[-1]["seq"]:
            consumer.until("/events?after=0", "task.completed")
    agent.stop()
    assert consumer.seen[own] == [event["seq"] for event in told]
    everything = consumer.seen["/events?after=0"]
    assert everything == agent.stored(f"seq <= {everything[-1]}")
    assert consumer.closed == {own}
