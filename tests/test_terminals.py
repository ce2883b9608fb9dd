"""Terminals on a real server: commands that have one, and sockets that attach to processes."""

import contextlib
import hashlib
import json
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import websockets.exceptions
from websockets.sync.client import ClientConnection, connect

from agent_server.commands.process import INPUT_MAX, REPLAY
from agent_server.commands.processes import TERMINALS
from agent_server.routes.terminals import TRY_AGAIN
from tests import rawhttp
from tests.serving import TOKEN, ServerProcess, is_alive, serving
from tests.test_background import end, follow, marked, printed, show, start, wait_for_output


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with serving() as running:
        yield running


def open_socket(server: ServerProcess, path: str, **options: Any) -> ClientConnection:
    headers = options.pop("headers", {"Authorization": f"Bearer {TOKEN}"})
    url = server.url.replace("http", "ws") + path
    connection: ClientConnection = connect(url, additional_headers=headers, compression=None, proxy=None, **options)
    return connection


def attach(server: ServerProcess, process_id: str, **options: Any) -> ClientConnection:
    return open_socket(server, f"/processes/{process_id}/attach", **options)


class Screen:
    """What a socket has sent: bytes, and control messages."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection
        self.seen = b""
        self.told: list[dict[str, Any]] = []

    def until(self, fits: Callable[["Screen"], bool]) -> "Screen":
        while not fits(self):
            message = self.connection.recv(20)
            if isinstance(message, bytes):
                self.seen += message
            else:
                self.told.append(json.loads(message))
        return self

    def until_text(self, text: bytes) -> "Screen":
        return self.until(lambda screen: text in screen.seen)

    def until_told(self, kind: str) -> dict[str, Any]:
        self.until(lambda screen: any(message["type"] == kind for message in screen.told))
        return next(message for message in self.told if message["type"] == kind)

    def until_closed(self) -> tuple[int, str]:
        with contextlib.suppress(websockets.exceptions.ConnectionClosed):
            self.until(lambda _: False)
        close = self.connection.protocol.close_rcvd
        return (close.code, close.reason) if close is not None else (1006, "")


def refused(server: ServerProcess, path: str, **options: Any) -> tuple[int, str]:
    with pytest.raises(websockets.exceptions.InvalidStatus) as caught:
        open_socket(server, path, **options).close()
    assert caught.value.response.body is not None
    return caught.value.response.status_code, json.loads(caught.value.response.body)["error"]["code"]


# Commands on a terminal


@pytest.mark.parametrize("cwd", [".", "folder with 'quotes'"])
def test_a_command_has_a_controlling_terminal_and_leads_its_session(server: ServerProcess, cwd: str) -> None:
    (server.workspace / cwd).mkdir(exist_ok=True)
    script = "test -t 0 && test -t 1 && test -t 2 && echo all; stty size; echo $TERM; pwd; ps -o pid=,sid=,tpgid= -p $$; echo $$ >/dev/tty"
    done = server.execute(script, pty={"cols": 101, "rows": 33}, cwd=cwd)
    assert (done["exitCode"], done["stderr"]) == (0, "")
    every, size, term, folder, ids, itself = done["stdout"].split("\r\n")[:-1]
    assert (every, size, term, folder) == ("all", "33 101", "xterm-256color", str((server.workspace / cwd).resolve()))
    assert set(ids.split()) == {itself}


def test_it_has_the_usual_size_unless_told(server: ServerProcess) -> None:
    assert server.execute(["stty", "size"], pty=True)["output"] == "24 80\r\n"
    assert server.execute("stty size; echo $TERM", pty={"cols": 10_000}, env={"TERM": "vt100"})["output"] == "24 10000\r\nvt100\r\n"


def test_in_the_foreground_its_input_ends(server: ServerProcess) -> None:
    assert server.execute("cat", pty=True)["exitCode"] == 0
    assert server.execute("stty -echo; while read x; do echo got $x; done; echo end", pty=True, stdin="a\nb\n")["output"].endswith(
        "end\r\n"
    )


def test_it_inherits_no_descriptor_and_ends_as_it_did(server: ServerProcess) -> None:
    listed = server.execute("ls /proc/self/fd", pty=True)["output"].split()
    assert listed == ["0", "1", "2", "3"]
    assert server.execute("kill -9 $$", pty=True)["signal"] == "SIGKILL"
    assert server.execute("sleep 60", pty=True, timeout=50)["reason"] == "timeout"


def test_a_long_script_runs_on_a_terminal(server: ServerProcess) -> None:
    assert server.execute(f"tty -s && echo yes # {'x' * 200_000}", pty=True)["output"] == "yes\r\n"


def test_children_that_outlive_it_do_not_hold_it_up(server: ServerProcess) -> None:
    done = server.execute("trap '' HUP; sleep 60 & echo $!", pty=True)
    assert done["exitCode"] == 0
    assert is_alive(int(done["output"]))
    end(server, done["processId"])
    assert not is_alive(int(done["output"]))


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({"command": ["no-such-program"]}, "command"),
        ({"command": [""]}, "command"),
        ({"command": ["/"]}, "command"),
        ({"command": ["./plain"]}, "command"),
        ({"command": ["echo", "x" * 200_000]}, "command"),
        ({"command": ["echo", "a\0b"]}, "command"),
        ({"command": "true", "cwd": "missing"}, "cwd"),
        ({"command": "true", "cwd": "plain"}, "cwd"),
        ({"command": "true", "pty": {"cols": 0}}, "pty.cols"),
        ({"command": "true", "pty": {"rows": 70_000}}, "pty.rows"),
        ({"command": "true", "pty": {"rows": -1}}, "pty.rows"),
        ({"command": "true", "pty": {"rows": "1"}}, "pty.rows"),
        ({"command": "true", "pty": "yes"}, "pty"),
    ],
)
def test_what_cannot_be_run_on_a_terminal_is_a_clear_400(server: ServerProcess, body: dict[str, Any], path: str) -> None:
    (server.workspace / "plain").write_text("no program")
    response = server.post("/execute", {"pty": True, **body})
    assert (response.status_code, response.json()["error"]["details"]) == (400, {"path": path})


def terminals_and_pipes(server: ServerProcess) -> int:
    """How many of them the server has open; what else it opens meanwhile is not asked for."""
    assert server.process is not None
    count = 0
    for entry in Path(f"/proc/{server.process.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            count += os.readlink(entry).startswith(("/dev/ptmx", "/dev/pts", "pipe:"))
    return count


def test_many_leave_nothing_open(server: ServerProcess) -> None:
    before = terminals_and_pipes(server)
    for _ in range(20):
        server.execute("true", pty=True)
        server.post("/execute", {"command": ["no-such-program"], "pty": True})
    assert terminals_and_pipes(server) <= before


def test_in_the_background_it_is_written_to_and_resized(server: ServerProcess) -> None:
    script = "trap 'stty size; got=1' WINCH; echo ready; until [ $got ]; do sleep 0.01; done; while read x; do echo got $x; done; echo over"
    process_id = start(server, script, pty=True)
    wait_for_output(server, process_id, "ready")
    resized = server.post(f"/processes/{process_id}/resize", {"cols": 120, "rows": 50})
    assert resized.json()["pty"] == {"cols": 120, "rows": 50} == show(server, process_id)["pty"]
    wait_for_output(server, process_id, "50 120")
    server.post(f"/processes/{process_id}/stdin", {"input": "hello\n"})
    wait_for_output(server, process_id, "got hello")
    server.post(f"/processes/{process_id}/stdin", {"eof": True})
    told = follow(server, process_id)
    assert printed(told).endswith("over\r\n")
    assert {event["stream"] for event in told[:-1]} == {"stdout"}


@pytest.mark.parametrize(
    "size", [{}, {"cols": 80}, {"cols": 0, "rows": 1}, {"cols": 10_001, "rows": 1}, {"cols": 2**70, "rows": 1}, {"cols": 1.5}]
)
def test_a_size_out_of_range_is_refused(server: ServerProcess, size: dict[str, Any]) -> None:
    process_id = start(server, "sleep 60", pty=True)
    assert server.post(f"/processes/{process_id}/resize", size).status_code == 400
    end(server, process_id)


# Attaching


def test_a_terminal_is_a_shell_that_lives_on(server: ServerProcess) -> None:
    with open_socket(server, "/terminal?cols=90&rows=20") as connection:
        screen = Screen(connection)
        process_id = screen.until_told("process")["processId"]
        assert screen.told[0]["type"] == "process"
        connection.send(b"stty size; name=kept\r")
        screen.until_text(b"20 90")
        connection.send(json.dumps({"type": "resize", "cols": 77, "rows": 11}))
        connection.send(b"stty size\r")
        screen.until_text(b"11 77")
    assert show(server, process_id)["command"][-1] == "-i"
    with attach(server, process_id) as connection:
        screen = Screen(connection).until_text(b"11 77")
        assert b"20 90" in screen.seen
        connection.send(b"echo still $name; exit 3\r")
        screen.until_text(b"still kept")
        assert screen.until_told("exit") == {"type": "exit", "exitCode": 3, "signal": None, "reason": None}
        assert screen.until_closed()[0] == 1000
    assert show(server, process_id)["exitCode"] == 3


def test_control_c_reaches_what_runs_in_the_shell(server: ServerProcess) -> None:
    with open_socket(server, "/terminal") as connection:
        screen = Screen(connection)
        connection.send(b"sh -c \"echo begi'n'; exec sleep 60\"\r")  # it has the terminal once it says so
        screen.until_text(b"begin")
        connection.send(b"\x03")
        connection.send(b"echo code $?\r")
        screen.until_text(b"code 130")
        connection.send(b"\x04")
        assert screen.until_closed()[0] == 1000


def test_a_terminal_of_a_command_ends_with_it(server: ServerProcess) -> None:
    (server.workspace / "below").mkdir(exist_ok=True)
    with open_socket(server, "/terminal?command=pwd%3B%20kill%20-9%20%24%24&cwd=below") as connection:
        screen = Screen(connection)
        assert screen.until_told("exit") == {"type": "exit", "exitCode": None, "signal": "SIGKILL", "reason": None}
        assert screen.seen == f"{server.workspace.resolve()}/below\r\n".encode()


def test_several_attach_and_see_the_same(server: ServerProcess) -> None:
    process_id = start(server, "echo ready; cat", pty=True)
    wait_for_output(server, process_id, "ready")
    with contextlib.ExitStack() as stack:
        screens = [Screen(stack.enter_context(attach(server, process_id))) for _ in range(5)]
        for number, screen in enumerate(screens):
            screen.until_text(b"ready")
            screen.connection.send(b"from %d\n" % number)
        for screen in screens:
            for number in range(5):
                screen.until(lambda screen, number=number: screen.seen.count(b"from %d\r\n" % number) == 2)  # type: ignore[misc]  # bound at once
        assert len({tuple(sorted(screen.seen.split())) for screen in screens}) == 1
        end(server, process_id)
        assert [screen.until_told("exit")["reason"] for screen in screens] == ["killed"] * 5


def test_a_process_without_a_terminal_can_be_attached_to(server: ServerProcess) -> None:
    process_id = start(server, "while read x; do echo got $x >&2; done; echo end; exit 1")
    with attach(server, process_id) as connection:
        screen = Screen(connection)
        connection.send(b"one\n")
        screen.until_text(b"got one\n")
        connection.send('{"type":"resize","cols":80,"rows":24}')
        assert "no terminal" in screen.until_told("error")["message"]
        connection.send('{"type":"eof"}')
        assert screen.until_told("exit")["exitCode"] == 1
        assert screen.seen == b"got one\nend\n"


def test_the_newest_output_is_replayed_whole(server: ServerProcess) -> None:
    process_id = start(server, "for i in $(seq 100000 199999); do echo $i; done; echo over; cat")
    wait_for_output(server, process_id, "over")
    with attach(server, process_id) as connection:
        screen = Screen(connection).until_text(b"over\n")
    whole = b"".join(b"%d\n" % number for number in range(100_000, 200_000)) + b"over\n"
    assert screen.seen == whole[-REPLAY:]
    end(server, process_id)


def test_bytes_that_are_no_text_come_as_they_are(server: ServerProcess) -> None:
    process_id = start(server, "stty raw -echo; echo ready; exec cat", pty=True)
    wait_for_output(server, process_id, "ready")
    every = bytes(range(256)) * 40
    with attach(server, process_id) as connection:
        connection.send(every)
        assert Screen(connection).until(lambda screen: len(screen.seen) >= 6 + len(every)).seen == b"ready\n" + every
    end(server, process_id)


def test_secrets_are_masked_also_where_they_come_in_two_parts(server: ServerProcess) -> None:
    script = 'echo "$MY_TOKEN"; printf %s "$MY_TOKEN" | (head -c 9; sleep 0.1; cat); echo; echo over; cat'
    process_id = start(server, script, pty=True, env={"MY_TOKEN": "a-very-secret-value"})
    with attach(server, process_id) as connection:
        screen = Screen(connection).until_text(b"over")
    assert screen.seen.startswith(b"***REDACTED***\r\n***REDACTED***\r\nover")
    end(server, process_id)


@pytest.mark.parametrize(
    "text",
    [
        *("", "x", "[]", "{}", "null", "\0", "[" * 4000, '{"type":"none"}', '{"type":5}', '{"type":"eof","x":"' + "x" * 5000 + '"}'),
        *('{"type":"resize"}', '{"type":"resize","cols":0,"rows":1}', '{"type":"resize","cols":1,"rows":99999999999999999999999}'),
    ],
)
def test_control_frames_that_are_none_are_told_and_passed_over(server: ServerProcess, text: str) -> None:
    process_id = start(server, "cat", pty=True)
    with attach(server, process_id) as connection:
        screen = Screen(connection)
        connection.send(text)
        assert len(screen.until_told("error")["message"]) < 500
        connection.send(b"goes on\n")
        screen.until_text(b"goes on\r\ngoes on\r\n")
    end(server, process_id)


# Handshakes


def test_handshakes_are_refused_as_requests_are(server: ServerProcess) -> None:
    ended = start(server, "true")
    follow(server, ended)
    assert refused(server, f"/processes/{ended}/attach") == (409, "CONFLICT")
    assert refused(server, "/processes/proc_none/attach") == (404, "PROCESS_NOT_FOUND")
    assert refused(server, "/terminal", headers={}) == (401, "UNAUTHORIZED")
    assert refused(server, "/terminal", origin="https://evil.example") == (403, "FORBIDDEN")
    assert refused(server, "/nothing") == (404, "NOT_FOUND")
    assert server.get("/terminal").status_code == 404


@pytest.mark.parametrize(
    ("query", "status"),
    [
        *(("cols=0", 400), ("rows=x", 400), ("cols=99999", 400), ("cwd=missing", 400), ("cwd=..", 403), ("cwd=%00", 400)),
        *(("command=", 400), ("command=a%00b", 400)),
    ],
)
def test_a_terminal_that_cannot_be_is_refused(server: ServerProcess, query: str, status: int) -> None:
    assert refused(server, f"/terminal?{query}")[0] == status


def test_terminals_are_bounded(server: ServerProcess) -> None:
    ids = [start(server, ["sleep", "60"], pty=True) for _ in range(TERMINALS)]
    assert refused(server, "/terminal") == (429, "TOO_MANY_REQUESTS")
    assert server.execute("echo still", pty=True)["output"] == "still\r\n"
    for process_id in ids:
        server.post(f"/processes/{process_id}/signal", {"signal": "KILL"})
    for process_id in ids:
        follow(server, process_id)
    with open_socket(server, "/terminal?command=true") as connection:
        assert Screen(connection).until_closed()[0] == 1000


# Peers that are slow, or gone


def upgraded(server: ServerProcess, path: str, buffer: int | None = None) -> socket.socket:
    """A socket after its handshake, whose frames are written and read byte by byte."""
    host, port = server.url.removeprefix("http://").split(":")
    connection = socket.socket()
    if buffer is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    connection.settimeout(20)
    connection.connect((host, int(port)))
    upgrade = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
    connection.sendall(f"GET {path} HTTP/1.1\r\n{rawhttp.AUTHORIZED}{upgrade}\r\n".encode())
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += connection.recv(1)
    assert head.startswith(b"HTTP/1.1 101")
    return connection


def resident(server: ServerProcess) -> int:
    assert server.process is not None
    return int(Path(f"/proc/{server.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize(
    "frame", [b"", b"\x82", b"\x82\xff", b"\x82\x85AAAA12", b"\x02\x81AAAA1", b"\xff\xff\xff\xff", b"\x81\x82AAAA\xff\xff"]
)
def test_a_peer_that_is_gone_in_the_middle_of_a_frame_harms_nothing(server: ServerProcess, frame: bytes) -> None:
    process_id = start(server, "cat", pty=True)
    connection = upgraded(server, f"/processes/{process_id}/attach")
    connection.sendall(frame)
    connection.close()
    with attach(server, process_id) as after:
        after.send(b"fine\n")
        Screen(after).until_text(b"fine\r\nfine\r\n")
    end(server, process_id)
    assert server.get("/health").status_code == 200
    assert "Exception in ASGI application" not in server.log()


def test_a_slow_peer_costs_no_memory_is_closed_and_may_attach_again(server: ServerProcess) -> None:
    process_id = start(server, "read go; head -c 60000000 /dev/zero | tr '\\0' x; echo; echo over; touch over; cat")
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(attach(server, process_id, max_queue=1)) for _ in range(8)]
        before = resident(server)
        server.post(f"/processes/{process_id}/stdin", {"input": "go\n"})
        while not (server.workspace / "over").exists():
            time.sleep(0.01)
        assert resident(server) - before < 24 << 20
        for connection in slow:
            screen = Screen(connection)
            assert screen.until_closed()[0] == TRY_AGAIN
            assert len(screen.seen) < 60_000_000
        with attach(server, process_id) as again:
            Screen(again).until_text(b"over\n")
    assert show(server, process_id)["status"] == "running"
    end(server, process_id)


def test_input_that_nobody_reads_closes_the_socket_and_is_bounded(server: ServerProcess) -> None:
    process_id = start(server, "sleep 60")
    before = resident(server)
    with attach(server, process_id) as connection:
        with contextlib.suppress(websockets.exceptions.ConnectionClosed):
            for _ in range(2 * INPUT_MAX // 10_000):
                connection.send(b"x" * 10_000)
        assert Screen(connection).until_closed()[0] == TRY_AGAIN
    assert resident(server) - before < 16 << 20
    end(server, process_id)


def test_a_large_input_comes_whole(server: ServerProcess) -> None:
    process_id = start(server, "stty raw -echo; echo ready; head -c 5000000 | md5sum", pty=True)
    wait_for_output(server, process_id, "ready")
    with attach(server, process_id) as connection:
        for at in range(0, 5_000_000, 500_000):
            connection.send(bytes((at + n) % 251 for n in range(500_000)))
        screen = Screen(connection)
        screen.until_told("exit")
    whole = b"".join(bytes((at + n) % 251 for n in range(500_000)) for at in range(0, 5_000_000, 500_000))
    assert re.findall(rb"[0-9a-f]{32}", screen.seen) == [hashlib.md5(whole).hexdigest().encode()]


def test_a_stop_closes_sockets_and_ends_their_terminals(tmp_path: Path) -> None:
    with serving(tmp_path) as server, contextlib.ExitStack() as stack:
        screens = [Screen(stack.enter_context(open_socket(server, "/terminal"))) for _ in range(3)]
        ids = [screen.until_told("process")["processId"] for screen in screens]
        stuck = upgraded(server, f"/processes/{ids[0]}/attach", buffer=4096)
        began = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - began < 8
        assert [screen.until_closed()[0] for screen in screens] == [1012] * 3
        stuck.close()
        assert marked(server) == set()
        server.start()
        # A shell heeds SIGTERM only when nobody sits in front of it.
        assert {(show(server, each)["signal"], show(server, each)["reason"]) for each in ids} == {("SIGKILL", "the server was stopped")}


def test_a_resume_ends_sockets_and_they_attach_again(server: ServerProcess) -> None:
    with open_socket(server, "/terminal") as socket:
        screen = Screen(socket).until(lambda seen: bool(seen.told))
        process_id = screen.told[0]["processId"]
        assert server.post("/lifecycle/resume").status_code == 200
        with pytest.raises(websockets.exceptions.ConnectionClosed) as caught:
            screen.until_text(b"nothing prints this")
        assert caught.value.rcvd is not None
        assert caught.value.rcvd.code == 1012
    with attach(server, process_id) as again:
        again.send(b"echo on-$((40 + 2))\n")
        Screen(again).until_text(b"on-42")
    end(server, process_id)
