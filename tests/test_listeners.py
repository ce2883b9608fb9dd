"""What the kernel tells of listening sockets, on both ways of asking it, and how little that costs."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from agent_server import listeners
from agent_server.listeners import Listener, Owner, listening, owners

LISTEN = "import socket, sys, time; s = socket.create_server(('127.0.0.1', 0)); print(s.fileno(), flush=True); time.sleep(60)"


def by_files() -> list[Listener]:
    return [*listeners._read("/proc/net/tcp"), *listeners._read("/proc/net/tcp6")]


@pytest.fixture(params=[listening, by_files], ids=["sock_diag", "proc"])
def look(request: pytest.FixtureRequest) -> Callable[[], list[Listener]]:
    look: Callable[[], list[Listener]] = request.param
    return look


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::1", "::", "::ffff:127.0.0.1"])
def test_a_listener_is_seen_with_its_address(look: Callable[[], list[Listener]], host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as one:
        one.bind((host, 0))
        one.listen()
        port = one.getsockname()[1]
        expected = Listener(port, host.removeprefix("::ffff:"), os.fstat(one.fileno()).st_ino)
        assert [found for found in look() if found.port == port] == [expected]
    assert [found for found in look() if found.port == port] == []


def test_connections_and_sockets_that_do_not_listen_are_not_seen(look: Callable[[], list[Listener]]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_connection(one.getsockname()) as client, one.accept()[0] as accepted:
        numbers = {os.fstat(s.fileno()).st_ino for s in (client, accepted)}
        assert numbers.isdisjoint(found.inode for found in look())


def test_both_ways_agree_about_many(look: Callable[[], list[Listener]]) -> None:
    servers = [socket.create_server(("127.0.0.1", 0)) for _ in range(300)]
    try:
        mine = {os.fstat(one.fileno()).st_ino: one.getsockname()[1] for one in servers}
        assert {found.inode: found.port for found in look() if found.inode in mine} == mine
    finally:
        for one in servers:
            one.close()


@pytest.fixture
def crowd() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Three hundred processes."""
    processes = [subprocess.Popen(["sleep", "60"]) for _ in range(300)]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()


def test_the_owner_is_found_among_three_hundred_processes_and_a_look_costs_next_to_nothing(crowd: list[subprocess.Popen[bytes]]) -> None:
    with subprocess.Popen([sys.executable, "-c", LISTEN], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            fd = int(process.stdout.readline())
            inode = os.stat(f"/proc/{process.pid}/fd/{fd}").st_ino
            assert inode in {one.inode for one in listening()}
            name = os.path.basename(os.path.realpath(sys.executable))
            begin = time.thread_time()
            assert owners([inode, 1]) == {inode: Owner(process.pid, name)}
            assert time.thread_time() - begin < 0.5  # 10 ms, as a rule
            begin = time.thread_time()
            for _ in range(20):
                listening()
            assert (time.thread_time() - begin) / 20 < 0.005  # 0.1 ms, as a rule
        finally:
            process.kill()


def test_a_process_that_closed_itself_to_others_has_no_owner() -> None:
    closed = "import ctypes; ctypes.CDLL(None).prctl(4, 0, 0, 0, 0);" + LISTEN
    argv = ["setpriv", "--reuid=65534", "--clear-groups", sys.executable, "-c", closed]
    reader = (
        "import sys; sys.path.insert(0, sys.argv[1]); from agent_server.listeners import listening, owners;"
        "print(sorted(owners([one.inode for one in listening()])))"
    )
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            if not process.stdout.readline():
                pytest.skip("no other user can be become here")
            root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
            ended = subprocess.run(["setpriv", "--reuid=65534", "--clear-groups", sys.executable, "-c", reader, root], capture_output=True)
            assert ended.stdout == b"[]\n", ended.stderr
        finally:
            process.kill()
