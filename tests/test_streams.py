"""Event streams: no gap and no repeat, whatever becomes of the server or the reader in between."""

import asyncio
import contextlib
import itertools
import json
import re
import signal
import socket
import sqlite3
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.types import Message

from agent_server.events import Event
from agent_server.streams import TURN, stream
from tests.emulators.openai import OpenAIEmulator
from tests.ended import assert_completed
from tests.scripts import LINE, STALLED, bash, plan
from tests.serving import TOKEN, ServerProcess, events, serving

KEY = "sk-test-key-of-the-model"

FLOOD = "head -c 900000 /dev/zero | tr '\\0' x | fold -w 99"
"""Prints 900 KB, all of which become events."""

MEMORY = 16 << 20
"""Bytes by which a server may grow under the second flood: were that kept for each reader, it would be 10 times as much."""


class Reader(threading.Thread):
    """Follows a stream as EventSource does: when it breaks it connects again with Last-Event-ID, until `last` has come."""

    def __init__(self, server: ServerProcess, path: str, last: str) -> None:
        super().__init__(daemon=True)
        self._server, self._path, self._last = server, path, last
        self.seen: list[dict[str, Any]] = []
        self.connections = 0

    def run(self) -> None:
        while not self.seen or self.seen[-1]["type"] != self._last:
            headers = {"Last-Event-ID": str(self.seen[-1]["seq"])} if self.seen else {}
            try:
                with self._server.client(**headers) as client, client.stream("GET", self._path) as response:
                    self.connections += 1
                    for event in events(response):
                        self.seen.append(event)
                        if event["type"] == self._last:
                            return
            except httpx.TransportError:
                self._server.started.wait(30)


def numbers(told: list[dict[str, Any]]) -> list[int]:
    return [event["seq"] for event in told]


def resident(server: ServerProcess) -> int:
    assert server.process is not None
    return int(Path(f"/proc/{server.process.pid}/statm").read_text().split()[1]) * 4096


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGTERM])
def test_streams_go_on_over_restarts_without_gap_or_repeat(stop: signal.Signals, agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script(plan(*[[bash(f"{LINE}; echo out; sleep 0.1; echo more")]] * 5, delay=0.005))
    task_id = agent.submit("survivor")
    readers = [Reader(agent, "/events?after=0", "task.completed"), Reader(agent, f"/tasks/{task_id}/events", "task.completed")]
    for reader in readers:
        reader.start()
    for kind, number in (("message.delta", 2), ("tool.output", 4), ("step.finished", 4)):
        agent.kill_at(task_id, kind, number, stop=stop)
        agent.start()
    told = assert_completed(agent, task_id)
    for reader in readers:
        reader.join(30)
        assert not reader.is_alive()
        assert reader.connections >= 4
    agent.stop()
    everything, own = (numbers(reader.seen) for reader in readers)
    assert own == numbers(told) == agent.stored(f"task_id = '{task_id}'")
    assert everything == agent.stored(f"seq <= {own[-1]}")
    assert all(before < after for before, after in itertools.pairwise(everything))


def test_what_is_streamed_is_what_is_stored(agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script(plan([bash("echo out; sleep 0.1; echo err >&2")], reasoning="Hm."))
    with agent.client(Accept="text/event-stream") as client, client.stream("POST", "/run", json={"prompt": "go"}) as response:
        live = list(events(response))
    assert live == agent.task_events(live[0]["taskId"])
    agent.kill()
    agent.start()
    assert live == agent.task_events(live[0]["taskId"])


def test_an_event_is_one_line_for_readers_that_split_text_as_python_does(agent: ServerProcess, model: OpenAIEmulator) -> None:
    text = "".join(f"{number} {character}" for number, character in enumerate(map(chr, (*range(32), 0x85, 0x2028, 0x2029))))
    model.script({"text": text})
    with agent.client(Accept="text/event-stream") as client, client.stream("POST", "/run", json={"prompt": text}) as response:
        told = list(events(response))
    assert (told[0]["prompt"], told[-1]["response"]) == (text, text)


def test_a_stream_begins_after_the_event_that_is_named(agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script(plan([bash("true")]))
    task_id = agent.submit()
    told = assert_completed(agent, task_id)
    for at in range(len(told) - 1):
        assert agent.task_events(task_id, after=told[at]["seq"]) == told[at + 1 :]
    with agent.client(**{"Last-Event-ID": str(told[3]["seq"])}) as client:
        text = client.get(f"/tasks/{task_id}/events?after=0").text
    assert text.startswith("retry: 1000\n\n")
    assert [json.loads(line[6:])["seq"] for line in text.splitlines() if line.startswith("data: ")] == numbers(told[4:])


def test_a_stream_of_an_ended_task_past_its_end_is_204(agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script({"text": "Done."})
    task_id = agent.submit()
    end = assert_completed(agent, task_id)[-1]["seq"]
    for after in (end, end + 1, end + 10**9):
        assert agent.get(f"/tasks/{task_id}/events?after={after}").status_code == 204
        assert agent.get(f"/tasks/{task_id}/events", **{"Last-Event-ID": str(after)}).status_code == 204
    assert agent.get(f"/tasks/{task_id}/events?after={end - 1}").status_code == 200


@pytest.mark.parametrize("header", ["x", "-1", "1.5", "9" * 30, "٣"])
def test_a_last_event_id_that_is_none_is_refused(header: str, server: ServerProcess) -> None:
    with server.client() as client:
        reply = client.get("/events", headers={b"Last-Event-ID": header.encode()})
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "INVALID_REQUEST")


def test_numbers_are_never_given_again(server: ServerProcess) -> None:
    seen = []
    for end in (server.kill, server.stop, server.kill):
        server.execute("echo one")
        seen.append(server.newest())
        end()
        _lose_what_was_not_synced(server)
        server.start()
        server.execute("true")
        with server.client() as client, client.stream("GET", "/events?after=3") as response:
            assert next(events(response))["seq"] > seen[-1]
    assert seen == sorted(set(seen))


def _lose_what_was_not_synced(server: ServerProcess) -> None:
    """Does what a power loss may do to the events that nobody asked to have synced."""
    (server.data / "events.journal").unlink(missing_ok=True)
    with sqlite3.connect(server.data / "events.db") as db:
        db.execute("DELETE FROM events WHERE seq > 3")
    db.close()


def test_a_stop_ends_streams_after_their_last_event(server: ServerProcess) -> None:
    with server.client() as client, client.stream("GET", "/events?after=0") as response:
        stream = events(response)
        first = next(stream)
        assert server.stop() == 0
        rest = numbers(list(stream))  # a stream that is cut instead raises here
    assert [first["seq"], *rest] == server.stored()[: 1 + len(rest)]


async def test_many_readers_see_the_same(agent: ServerProcess, model: OpenAIEmulator) -> None:
    model.script(plan(*[[bash("for i in 1 2 3; do echo $i; sleep 0.06; done")]] * 3))
    task_id = agent.submit()
    limits = httpx.Limits(max_connections=None)

    async def read(client: httpx.AsyncClient) -> list[str]:
        async with client.stream("GET", f"/tasks/{task_id}/events") as response:
            return [line async for line in response.aiter_lines() if line.startswith("data: ")]

    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with httpx.AsyncClient(base_url=agent.url, headers=headers, timeout=60, limits=limits) as client:
        told = await asyncio.gather(*(read(client) for _ in range(60)))
    assert [json.loads(line[6:]) for line in told[0]] == agent.task_events(task_id)
    assert all(lines == told[0] for lines in told)


def _request(server: ServerProcess, path: str, buffer: int) -> socket.socket:
    """A reader that has asked, and reads no more than its socket's buffer."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    port = int(server.url.rpartition(":")[2])
    connection.connect(("127.0.0.1", port))
    connection.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode())
    return connection


def _whole_ids(data: bytes) -> list[int]:
    """The ids of the events that came whole."""
    return [int(seq) for seq in re.findall(rb"\bid: (\d+)\ndata: [^\n]*\n\n", data)]


def test_readers_that_do_not_read_cost_no_memory_and_slow_nobody(server: ServerProcess) -> None:
    with contextlib.ExitStack() as stack:
        stuck = [stack.enter_context(_request(server, "/events?after=0", 4096)) for _ in range(10)]
        fast = Reader(server, "/events?after=0", "last")
        fast.start()
        for _ in range(6):
            server.execute(FLOOD)
        before = resident(server)
        for _ in range(12):
            server.execute(FLOOD)
        newest = server.newest()
        assert resident(server) - before < MEMORY
        while not fast.seen or fast.seen[-1]["seq"] < newest:
            assert fast.is_alive()
            fast.join(0.05)
        data = b""
        stuck[0].settimeout(5)
        while len(data) < 200_000:
            data += stuck[0].recv(65536)
    first = _whole_ids(data)
    with server.client(**{"Last-Event-ID": str(first[-1])}) as client, client.stream("GET", "/events") as response:
        rest = list(itertools.takewhile(lambda seq: seq < newest, (event["seq"] for event in events(response))))
    server.stop()
    assert [*first, *rest, newest] == [seq for seq in numbers(fast.seen) if seq <= newest] == server.stored(f"seq <= {newest}")


@pytest.fixture
def small(tmp_path: Path, model: OpenAIEmulator) -> Iterator[ServerProcess]:
    """A server that keeps one MiB of events."""
    with serving(tmp_path, AGENT_BASE_URL=model.url, AGENT_API_KEY=KEY, MAX_LOG_BYTES=str(1 << 20)) as server:
        yield server


def test_what_retention_removed_is_told_once(small: ServerProcess, model: OpenAIEmulator) -> None:
    model.script(plan([bash("head -c 40000 /dev/zero | tr '\\0' x | fold -w 99")]), STALLED)
    task_id = small.submit()
    whole = assert_completed(small, task_id)
    for _ in range(6):
        small.execute(FLOOD)
    told = whole
    while "gap" not in [event["type"] for event in told]:
        small.execute("true")  # a chunk is removed after each commit
        told = small.task_events(task_id)
    gaps = [event for event in told if event["type"] == "gap"]
    kept = {event["seq"] for event in told if event["type"] != "gap"}
    assert len(gaps) == 1
    assert [event for event in told if event["type"] != "gap"] == [event for event in whole if event["seq"] in kept]
    removed = set(numbers(whole)) - kept
    assert gaps[0]["from"] <= min(removed) <= max(removed) <= gaps[0]["to"]
    assert {"task.created", "message.completed", "tool.finished", "task.completed"} <= {event["type"] for event in told}
    with small.client() as client, client.stream("GET", "/events?after=0") as response:
        stream = events(response)
        assert any(event["type"] == "gap" for event in itertools.islice(stream, 10))
    small.kill()
    small.start()
    assert [event["type"] for event in small.task_events(task_id)] == [event["type"] for event in told]


def test_retention_leaves_the_conversation_and_the_task_at_work_whole(small: ServerProcess, model: OpenAIEmulator) -> None:
    model.script(plan([bash("head -c 20000 /dev/zero | tr '\\0' x | fold -w 99")]))
    first = small.post("/run", {"prompt": "one"}).json()
    before = len(model.requests()[-1].json["messages"])
    for _ in range(6):
        small.execute(FLOOD)
    small.kill()
    small.start()
    assert small.get(f"/tasks/{first['taskId']}").json() == first
    small.post("/run", {"prompt": "two"})
    assert len(model.requests()[-2].json["messages"]) == before + 2


def test_tasks_are_the_same_when_the_indexes_are_built_from_what_retention_left(small: ServerProcess, model: OpenAIEmulator) -> None:
    model.script({"tool_calls": [bash("echo one")]}, {"text": "Done."}, {"tool_calls": [bash("echo two")]}, {"status": 401})
    for prompt in ("one", "two"):
        small.post("/run", {"prompt": prompt})
    before = small.get("/tasks").json()
    assert [(task["status"], task["steps"]) for task in before["tasks"]] == [("failed", 1), ("completed", 2)]
    while "step.finished" in [event["type"] for task in before["tasks"] for event in small.task_events(task["taskId"])]:
        small.execute(f": {'x' * 90_000}")  # events that are no output: those of ended tasks go only when these are too many
    small.stop()
    with sqlite3.connect(small.data / "events.db") as db:
        db.execute("DELETE FROM meta WHERE name LIKE 'index %'")
    db.close()
    small.start()
    assert small.get("/tasks").json() == before


async def test_streams_that_catch_up_leave_others_their_turn() -> None:
    told = [Event(seq, 0, "process.output", {"processId": "proc_1", "chunk": "x", "stream": "stdout"}) for seq in range(1, 201)]
    sent, turns = 0, [0]

    async def take_turns() -> None:
        while True:
            turns.append(sent)
            await asyncio.sleep(0)

    async def ready() -> AsyncIterator[Event]:
        for event in told:
            yield event

    async def send(message: Message) -> None:  # as into a socket with room in its buffer
        nonlocal sent
        sent += bool(message.get("body"))

    async def receive() -> Message:
        await asyncio.Event().wait()
        return {}

    other = asyncio.create_task(take_turns())
    async with asyncio.TaskGroup() as group:
        for _ in range(10):
            group.create_task(stream(ready())({"type": "http", "method": "GET", "path": "/", "headers": []}, receive, send))
    other.cancel()
    assert sent == 10 * (len(told) + 1)
    assert max(after - before for before, after in itertools.pairwise(turns)) <= 10 * (TURN + 1)
