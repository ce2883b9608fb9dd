"""GET /ports, POST /open-ports and their events: found without being told, and true again after a restart."""

import contextlib
import re
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent_server.events import Event
from agent_server.ports import PortIndex
from tests.serving import ServerProcess, events, serving

LISTEN = """
import socket, sys, time
family = socket.AF_INET6 if ':' in sys.argv[1] else socket.AF_INET
s = socket.create_server((sys.argv[1], int(sys.argv[2])), family=family)
print(s.getsockname()[1], flush=True)
time.sleep(60)
"""


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with serving() as running:
        yield running


class Listening:
    """A process that listens."""

    def __init__(self, host: str = "127.0.0.1", port: int = 0) -> None:
        self._process = subprocess.Popen([sys.executable, "-c", LISTEN, host, str(port)], stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())
        self.pid = self._process.pid

    def end(self) -> None:
        """May be called twice."""
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def __enter__(self) -> "Listening":
        return self

    def __exit__(self, *_: object) -> None:
        self.end()


def entry(server: ServerProcess, port: int) -> dict[str, Any] | None:
    return next((one for one in server.get("/ports").json()["ports"] if one["port"] == port), None)


class Following:
    """The events of one port, as they are pushed."""

    def __init__(self, server: ServerProcess, port: int) -> None:
        self._server, self._port = server, port
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Iterator[dict[str, Any]]:
        client = self._stack.enter_context(self._server.client())
        response = self._stack.enter_context(client.stream("GET", "/events"))
        return (event for event in events(response) if event["type"].startswith("port.") and event["port"] == self._port)

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def told(server: ServerProcess, port: int) -> list[str]:
    """The types of the events there are of a port."""
    lines = server.get("/logs?lines=10000&source=port").json()["logs"]
    return [line["type"] for line in lines if re.search(rf"\bport {port}\b", line["message"])]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as one:
        return int(one.getsockname()[1])


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::1", "::"])
def test_a_listener_is_listed_with_its_owner_until_it_ends(server: ServerProcess, host: str) -> None:
    with Listening(host) as one:
        name = Path(sys.executable).resolve().name
        listener = {"port": one.port, "protocol": "tcp", "address": host, "pid": one.pid, "process": name}
        assert entry(server, one.port) == {**listener, "state": "listening", "url": f"/proxy/{one.port}/"}
    assert entry(server, one.port) is None


def test_it_is_pushed_within_a_second_that_a_port_opened_and_closed(server: ServerProcess) -> None:
    port = free_port()
    with Following(server, port) as pushed:
        with Listening("127.0.0.1", port) as one:
            began = time.monotonic()
            opened = next(pushed)
            assert time.monotonic() - began < 1.5  # a second, and what a busy machine adds
            assert (opened["type"], opened["pid"], opened["state"], opened["url"]) == (
                "port.opened",
                one.pid,
                "listening",
                f"/proxy/{port}/",
            )
            assert {"protocol", "address", "process", "message", "seq"} <= set(opened)
            assert opened["source"] == "port"
        began = time.monotonic()
        closed = next(pushed)
        assert time.monotonic() - began < 1.5
        assert (closed["type"], closed["pid"]) == ("port.closed", one.pid)
    assert told(server, port) == ["port.opened", "port.closed"]


def test_a_port_that_somebody_else_takes_over_is_closed_and_opened(server: ServerProcess) -> None:
    with Listening() as one:
        entry(server, one.port)
        one.end()
        with Listening("127.0.0.1", one.port) as other:
            found = entry(server, one.port)
            assert found is not None
            assert found["pid"] == other.pid
    entry(server, one.port)
    assert told(server, one.port) == ["port.opened", "port.closed", "port.opened", "port.closed"]


def test_a_port_on_several_addresses_is_one_entry(server: ServerProcess) -> None:
    with Listening("127.0.0.1") as one, Listening("::1", one.port):
        found = [port for port in server.get("/ports").json()["ports"] if port["port"] == one.port]
        assert [(port["address"], port["pid"]) for port in found] == [("127.0.0.1", one.pid)]


def test_what_the_proxy_does_not_reach_is_not_listed(server: ServerProcess) -> None:
    with Listening("127.0.0.2") as one:
        assert entry(server, one.port) is None


def test_a_process_that_a_command_left_running_is_found(server: ServerProcess) -> None:
    port = free_port()
    code = f"import socket, time; s = socket.create_server(('127.0.0.1', {port})); time.sleep(60)"
    with Following(server, port) as pushed:
        assert server.execute(f'setsid {sys.executable} -c "{code}" >/dev/null 2>&1 & echo $!')["exitCode"] == 0
        opened = next(pushed)
        found = entry(server, port)
        assert found is not None
        assert found["pid"] == opened["pid"]
        server.execute(f"kill {found['pid']}")
        assert next(pushed)["type"] == "port.closed"


def test_the_own_port_is_never_listed_and_skipped(server: ServerProcess) -> None:
    own = int(server.url.rpartition(":")[2])
    assert entry(server, own) is None
    response = server.post("/open-ports", {"ports": [own, 5173, own, 5173]})
    assert response.status_code == 200
    nobody = {"protocol": "tcp", "address": None, "pid": None, "process": None}
    assert response.json() == {"ports": [{"port": 5173, **nobody, "state": "registered", "url": "/proxy/5173/"}], "skipped": [own]}
    assert entry(server, own) is None
    assert told(server, own) == []


def test_a_registered_port_stays_and_shows_who_listens(server: ServerProcess) -> None:
    port = free_port()
    assert server.post("/open-ports", {"ports": [port]}).json()["ports"][0]["state"] == "registered"
    with Listening("127.0.0.1", port) as one:
        found = entry(server, port)
        assert found is not None
        assert (found["state"], found["pid"]) == ("listening", one.pid)
        assert server.post("/open-ports", {"ports": [port]}).json()["ports"] == [found]
    assert entry(server, port) == {**found, "state": "registered", "address": None, "pid": None, "process": None}
    assert told(server, port) == ["port.registered", "port.opened", "port.closed"]


@pytest.mark.parametrize(
    ("ports", "path"),
    [
        ([0], "ports[0]"),
        ([1, 65_536], "ports[1]"),
        ([-1], "ports[0]"),
        (["5173"], "ports[0]"),
        ([5173.5], "ports[0]"),
        ([True], "ports[0]"),
        ([[5173]], "ports[0]"),
        ([10**30], "ports[0]"),
        ("5173", "ports"),
        (None, "ports"),
        (list(range(1, 1100)), "ports"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_what_is_no_list_of_ports_is_refused(server: ServerProcess, ports: Any, path: str) -> None:
    response = server.post("/open-ports", {"ports": ports})
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "INVALID_REQUEST"
    assert response.json()["error"]["details"]["path"].startswith(path.partition("[")[0])


def test_no_list_is_refused_and_an_empty_one_is_nothing(server: ServerProcess) -> None:
    assert server.post("/open-ports").json()["error"]["details"] == {"path": "ports"}
    assert server.post("/open-ports", {"ports": []}).json() == {"ports": [], "skipped": []}


def test_registered_ports_are_bounded(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        own = int(server.url.rpartition(":")[2])
        some = [port for port in range(2_000, 3_001) if port != own][:1_000]
        assert len(server.post("/open-ports", {"ports": some}).json()["ports"]) == 1_000
        refused = server.post("/open-ports", {"ports": [4_000]})
        assert (refused.status_code, refused.json()["error"]["code"]) == (422, "RESOURCE_LIMIT_EXCEEDED")
        assert server.post("/open-ports", {"ports": some[:1]}).status_code == 200


@pytest.mark.parametrize("is_killed", [True, False])
def test_after_a_restart_the_log_says_what_is_true(tmp_path: Path, is_killed: bool) -> None:
    with serving(tmp_path) as server, Listening() as staying, Listening() as closing, Listening() as changing:
        registered = free_port()
        server.post("/open-ports", {"ports": [registered]})
        assert {staying.port, closing.port, changing.port} <= {one["port"] for one in server.get("/ports").json()["ports"]}
        server.kill() if is_killed else server.stop()
        closing.end()
        changing.end()
        with Listening("127.0.0.1", changing.port) as changed, Listening() as opened:
            server.start()
            listed = {one["port"]: one for one in server.get("/ports").json()["ports"]}
            assert closing.port not in listed
            assert listed[changing.port]["pid"] == changed.pid
            assert listed[staying.port]["pid"] == staying.pid
            assert listed[registered]["state"] == "registered"
            assert told(server, staying.port) == ["port.opened"]
            assert told(server, closing.port) == ["port.opened", "port.closed"]
            assert told(server, changing.port) == ["port.opened", "port.closed", "port.opened"]
            assert told(server, opened.port) == ["port.opened"]
            assert told(server, registered) == ["port.registered"]


def test_requests_at_the_same_time_tell_each_port_once(server: ServerProcess) -> None:
    servers = [socket.create_server(("127.0.0.1", 0)) for _ in range(20)]
    try:
        threads = [threading.Thread(target=server.get, args=("/ports",)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for one in servers:
            assert told(server, one.getsockname()[1]) == ["port.opened"]
    finally:
        for one in servers:
            one.close()


def test_the_index_is_a_fold_of_the_events() -> None:
    index = PortIndex()
    db = sqlite3.connect(":memory:")
    for statement in index.schema:
        db.execute(statement)

    def event(seq: int, kind: str, port: int) -> Event:
        return Event(seq, 0, kind, {"port": port, "seq": seq})

    kinds = [("port.opened", 1), ("port.opened", 2), ("port.registered", 3), ("port.closed", 1), ("port.registered", 3), ("port.other", 4)]
    index.apply(db, [event(seq, *kind) for seq, kind in enumerate(kinds)])
    index.apply(db, [event(9, "port.opened", 2)])
    assert db.execute("SELECT * FROM open_ports").fetchall() == [(2, '{"port":2,"seq":9}')]
    assert db.execute("SELECT * FROM registered_ports").fetchall() == [(3,)]
