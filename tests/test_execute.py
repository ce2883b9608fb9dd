"""POST /execute on a real server: every kind of command ends in time, and the server does not notice."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from agent_server.commands import proctree
from tests.serving import TOKEN, ServerProcess, events, serving

STRESS = int(os.environ.get("AGENT_SERVER_STRESS", "1"))

SERVER_ENVIRONMENT = {
    "OPENROUTER_API_KEY": "sk-or-0123456789",
    "SLACK_BOT_TOKEN": "xoxb-0123456789",
    "PYTHONPATH": "/nonexistent",
    "VIRTUAL_ENV": "/nonexistent",
    "PYTHONSAFEPATH": "1",
    "LC_TIME": "C.UTF-8",
    "MY_SETTING": "passed on",
    "MY_OTHER": "not passed on",
    "COMMAND_ENV": "MY_SETTING",
}


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with serving(None, **SERVER_ENVIRONMENT) as running:
        yield running


def pid_of(server: ServerProcess) -> int:
    assert server.process is not None
    return server.process.pid


def resident(server: ServerProcess) -> int:
    return int(Path(f"/proc/{pid_of(server)}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def open_files(server: ServerProcess) -> int:
    return len(os.listdir(f"/proc/{pid_of(server)}/fd"))


def alive(server: ServerProcess) -> set[int]:
    """The processes of this server's commands."""
    mark = json.loads((server.data / "identity.json").read_bytes())["mark"]
    return proctree.find(f"{mark}/")


def end_all(server: ServerProcess) -> None:
    while left := alive(server):
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def wait_until(what: Any, seconds: float = 10) -> None:
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until
        time.sleep(0.01)


# How commands end: script, seconds it may take, and what is in the reply

NASTY: dict[str, tuple[str, float, dict[str, Any]]] = {
    "background": ("sleep 77.1 & echo a", 3, {"exitCode": 0, "output": "a\n"}),
    "background, own session": ("setsid sleep 77.1 & echo a", 3, {"exitCode": 0, "output": "a\n"}),
    "nohup": ("nohup sleep 77.1 >/dev/null 2>&1 & echo a", 1.5, {"exitCode": 0, "output": "a\n"}),
    "double fork": ("(setsid bash -c 'sleep 77.1 & exit' &); echo a", 3, {"exitCode": 0, "output": "a\n"}),
    "prints for ever in the background": ("yes & sleep 0.1; exit 3", 4, {"exitCode": 3, "truncated": True}),
    "stdout closed": ("exec 1>&-; echo a; echo b >&2; exit 5", 1.5, {"exitCode": 5, "stdout": ""}),
    "all closed": ("exec 0<&- 1>&- 2>&-; sleep 0.2; exit 6", 1.5, {"exitCode": 6, "output": ""}),
    "ignores TERM": ("trap '' TERM; echo a; sleep 77.1; sleep 77.1", 4.5, {"timedOut": True, "reason": "timeout", "output": "a\n"}),
    "ignores every signal": ("trap '' 1 2 3 13 14 15; while :; do sleep 0.1; done", 4.5, {"timedOut": True, "signal": "SIGKILL"}),
    "ends itself on TERM": (
        "trap 'echo bye; exit 9' TERM; while :; do sleep 0.05; done",
        2.5,
        {"timedOut": True, "exitCode": 9},
    ),
    "too slow": ("sleep 77.1", 2, {"timedOut": True, "exitCode": None, "signal": "SIGTERM", "reason": "timeout"}),
    "too slow tree": ("(setsid sleep 77.1 &); sleep 77.1 | cat | cat", 2.5, {"timedOut": True}),
    "stopped": ("kill -STOP $$", 2.5, {"timedOut": True, "reason": "timeout"}),
    "waits for input": ("read line; echo $?; cat; cat", 1.5, {"exitCode": 0, "output": "1\n"}),
    "waits on a terminal": ("read line </dev/tty", 1.5, {"exitCode": 1}),
    "kills itself": ("kill -9 $$", 1.5, {"exitCode": None, "signal": "SIGKILL", "reason": None}),
    "kills its group": ("kill -9 0", 1.5, {"exitCode": None, "signal": "SIGKILL"}),
    "binary": ("head -c 3000 /dev/urandom; exit 2", 1.5, {"exitCode": 2}),
    "no UTF-8": ("printf 'a\\xff\\xfeb\\xe2\\x82'", 1.5, {"output": "a��b�"}),
    "no newline": ("printf a", 1.5, {"output": "a"}),
    "NUL characters": ("printf 'a\\0b'", 1.5, {"output": "a\0b"}),
    "one long line": ("head -c 3000000 /dev/zero | tr '\\0' x", 3, {"exitCode": 0, "truncated": True}),
    "one byte at a time": ("for i in $(seq 2000); do printf x; done", 4, {"exitCode": 0, "output": "x" * 2000}),
    "coprocess": ("coproc cat; echo hi >&${COPROC[1]}; read -u ${COPROC[0]} a; echo got $a", 3, {"output": "got hi\n"}),
    "fork storm": ("for i in $(seq 200); do (sleep 0.01 &) ; done; wait; echo ok", 4, {"exitCode": 0, "output": "ok\n"}),
    "writes later": ("(sleep 0.5; echo late) & echo early", 2, {"exitCode": 0, "output": "early\nlate\n"}),
    "writes too late": ("(sleep 2.4; echo late) & echo early", 2.4, {"exitCode": 0, "output": "early\n"}),
    "no such program": ("no-such-program", 1.5, {"exitCode": 127}),
    "syntax": ("if", 1.5, {"exitCode": 2}),
    "only space": (" \n", 1.5, {"exitCode": 0, "output": ""}),
}


@pytest.mark.parametrize("name", NASTY)
def test_a_command_ends_in_time_and_as_it_did(server: ServerProcess, name: str) -> None:
    script, seconds, wanted = NASTY[name]
    began = time.monotonic()
    done = server.execute(script, timeout=1000 if wanted.get("timedOut") else 20_000)
    assert time.monotonic() - began < seconds
    assert {key: done[key] for key in wanted} == wanted
    assert (done["exitCode"] is None) != (done["signal"] is None)
    assert done["timedOut"] == (done["reason"] == "timeout")
    assert done["truncated"] == (done["outputFile"] is not None)
    if done["timedOut"]:
        assert alive(server) == set()
    end_all(server)


# Its input and environment


@pytest.mark.parametrize("stdin", ["", "a", "line\nline\n", "é\0\x7f", "x" * 3_000_000])
def test_input_is_given_whole_and_then_ends(server: ServerProcess, stdin: str) -> None:
    done = server.execute("cat | wc -c", stdin=stdin)
    assert int(done["output"]) == len(stdin.encode())


def test_input_that_is_not_read_holds_nobody_up(server: ServerProcess) -> None:
    began = time.monotonic()
    assert server.execute("exec <&-; echo a", stdin="x" * 3_000_000)["output"] == "a\n"
    assert server.execute("head -c 1", stdin="x" * 3_000_000)["output"] == "x"
    assert time.monotonic() - began < 3


def test_the_environment_is_clean(server: ServerProcess) -> None:
    done = server.execute(["env", "-0"], env={"GIVEN": "a=b\nc", "PATH": os.environ["PATH"]})
    found = dict(entry.split("=", 1) for entry in done["stdout"].split("\0") if entry)
    assert found.pop("AGENT_SERVER_PROCESS").endswith(f"/{done['processId']}")
    assert found["GIVEN"] == "a=b\nc"
    assert found["MY_SETTING"] == "passed on"
    assert found["HOME"] == server.environ["HOME"]
    assert set(found) <= {
        "PATH",
        "HOME",
        "LANG",
        "LC_ALL",
        "LC_CTYPE",
        "LC_TIME",
        "TERM",
        "USER",
        "LOGNAME",
        "SHELL",
        "PWD",
        "GIVEN",
        "MY_SETTING",
    }
    assert not any(value in done["stdout"] for value in (TOKEN, "sk-or-0123456789", "xoxb-0123456789"))


@pytest.mark.parametrize("cwd", [".", "below"])
def test_a_command_has_no_descriptor_but_the_three(server: ServerProcess, cwd: str) -> None:
    (server.workspace / "below").mkdir(exist_ok=True)
    listed = server.execute(["ls", "-l", "/proc/self/fd"], cwd=cwd)["output"]
    assert [line.split()[-3] for line in listed.splitlines() if "->" in line and "/proc/" not in line] == ["0", "1", "2"]
    done = server.execute("ls -l /proc/$$/fd; pwd", cwd=cwd)
    assert [line.split()[-3] for line in done["output"].splitlines() if "->" in line and "/proc/" not in line] == ["0", "1", "2"]
    assert done["output"].splitlines()[-1] == str((server.workspace / cwd).resolve())


def test_a_script_may_be_longer_than_an_argument(server: ServerProcess) -> None:
    script = "# " + "x" * 1_000_000 + "\ncat; echo é $0 >/dev/null; exit 4"
    done = server.execute(script, stdin="in")
    assert (done["exitCode"], done["output"]) == (4, "in")


@pytest.mark.skipif(not os.access("/bin/bash-static", os.X_OK), reason="needs bash-static")
@pytest.mark.parametrize("cwd", [".", "below"])
def test_the_static_shell_is_used_and_is_like_the_other(server: ServerProcess, cwd: str) -> None:
    (server.workspace / cwd).mkdir(exist_ok=True)
    command = "readlink /proc/$$/exe; echo $0 $BASH $SHELL ~root; x=é; echo ${#x}; nothing-of-this-name; true"
    static = server.execute(command, cwd=cwd)
    linked = server.execute(command, cwd=cwd, env={"LD_PRELOAD": ""})
    names = [ended["output"].splitlines() for ended in (static, linked)]
    assert [Path(lines[0]).name for lines in names] == ["bash-static", "bash"]
    assert names[0][1:] == names[1][1:]
    assert names[0][1].endswith("/bin/bash /root")
    assert "bash: line 1: nothing-of-this-name" in static["stderr"]


def test_a_list_is_run_without_a_shell(server: ServerProcess) -> None:
    assert server.execute(["printf", "%s|", "$HOME", "a b", "", "é", "-n"])["output"] == "$HOME|a b||é|-n|"


@pytest.mark.parametrize(
    ("body", "path", "says"),
    [
        ({"command": ["no-such-program-here"]}, "command", "No such file"),
        ({"command": ["/etc/hostname"]}, "command", "cannot be run"),
        ({"command": ["/"]}, "command", "Permission denied"),
        ({"command": [""]}, "command", ""),
        ({"command": "true", "cwd": "missing"}, "cwd", "does not exist"),
        ({"command": "true", "cwd": "file"}, "cwd", "is no folder"),
        ({"command": "true", "cwd": "file/below"}, "cwd", ""),
        ({"command": ["echo", "x" * 200_000]}, "command", "Argument list too long"),
        ({"command": "true", "env": {"A": "x" * 200_000}}, "command", "Argument list too long"),
        ({"command": "echo a\0b"}, "command", "NUL"),
        ({"command": ["echo", "a\0b"]}, "command", "NUL"),
        ({"command": "true", "cwd": "a\0b"}, "cwd", "NUL"),
        ({"command": "true", "env": {"A\0": "b"}}, "env", "NUL"),
        ({"command": "true", "env": {"A": "\0"}}, "env", "NUL"),
        ({"command": "true", "env": {"": "b"}}, "env", "name"),
        ({"command": "true", "env": {"A=B": "b"}}, "env", "name"),
        ({"command": ""}, "command", ""),
        ({"command": []}, "command", ""),
    ],
)
def test_what_cannot_be_run_is_a_clear_400(server: ServerProcess, body: dict[str, Any], path: str, says: str) -> None:
    (server.workspace / "file").write_text("a file")
    response = server.post("/execute", body)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["code"] == "INVALID_REQUEST"
    assert error["details"] == {"path": path}
    assert says in error["message"]
    assert len(error["message"]) < 600


@pytest.mark.parametrize("field", ["command", "stdin", "cwd"])
def test_half_a_character_is_refused(server: ServerProcess, field: str) -> None:
    with server.client() as client:
        response = client.post("/execute", content=json.dumps({"command": "true", field: "\ud800"}))
    assert response.status_code == 400


# The server meanwhile


async def pings(server: ServerProcess, until: asyncio.Event) -> list[float]:
    """Asks /health again and again, and gives how long each answer took."""
    taken = []
    async with server.async_client() as client:
        while not until.is_set():
            began = time.perf_counter()
            assert (await client.get("/health")).status_code == 200
            taken.append(time.perf_counter() - began)
            await asyncio.sleep(0.01)
    return sorted(taken)


@pytest.mark.parametrize("size", [10 << 20, 200 << 20 if STRESS > 1 else 60 << 20])
async def test_memory_stays_flat_and_health_answers_however_much_is_printed(server: ServerProcess, size: int) -> None:
    await asyncio.to_thread(server.execute, "seq 300000")
    before, ended = resident(server), asyncio.Event()
    async with server.async_client() as client, asyncio.TaskGroup() as group:
        asking = group.create_task(pings(server, ended))
        response = await client.post("/execute", json={"command": f"yes 0123456789abcde | head -c {size}"})
        grown = resident(server) - before
        ended.set()
    done = response.json()
    assert (done["exitCode"], done["truncated"]) == (0, True)
    assert Path(done["outputFile"]).stat().st_size == size
    assert len(done["output"]) < (1 << 20) + 100
    assert grown < 16 << 20
    taken = await asking
    assert taken[len(taken) // 2] < 0.02
    assert taken[-1] < 0.5
    Path(done["outputFile"]).unlink()


async def test_fifty_commands_run_side_by_side_and_health_answers(server: ServerProcess) -> None:
    ended = asyncio.Event()
    async with server.async_client() as client, asyncio.TaskGroup() as group:
        asking = group.create_task(pings(server, ended))
        began = time.monotonic()
        replies = await asyncio.gather(*(client.post("/execute", json={"command": f"sleep 1.5; echo {n}"}) for n in range(50)))
        took = time.monotonic() - began
        ended.set()
    assert [reply.json()["output"] for reply in replies] == [f"{n}\n" for n in range(50)]
    assert took < 4
    taken = await asking
    assert taken[len(taken) // 2] < 0.02
    assert taken[-1] < 0.5


async def test_exit_codes_are_right_while_orphans_end_all_the_time(server: ServerProcess) -> None:
    async with server.async_client() as client:

        async def one(code: int) -> None:
            script = f"(setsid sleep 0.{code % 4} >/dev/null 2>&1 &); exit {code}"
            reply = await client.post("/execute", json={"command": script})
            assert reply.json()["exitCode"] == code, reply.text

        for _ in range(3 * STRESS):
            await asyncio.gather(*(one(code) for code in range(0, 256, 9)))
    children = Path(f"/proc/{pid_of(server)}/task/{pid_of(server)}/children")
    began = time.monotonic()
    wait_until(lambda: not children.read_text().split())
    assert time.monotonic() - began < 4


def test_nothing_is_left_open_after_many_commands(server: ServerProcess) -> None:
    end_all(server)
    scripts = ["true", "echo a", "sleep 0.01 & exit 3", "no-such", "kill -9 $$", "cat"]
    with server.client() as client:
        for script in scripts:
            client.post("/execute", json={"command": script})
        before = open_files(server)
        for n in range(150 if STRESS == 1 else 2000):
            client.post("/execute", json={"command": scripts[n % 6], "stdin": "x"})
        client.post("/execute", json={"command": "true"})
        assert open_files(server) <= before + 2


def test_a_command_whose_client_went_away_goes_on_to_its_own_end_or_its_timeout(server: ServerProcess) -> None:
    before = server.get("/health").json()
    after = max(event["seq"] for event in server.get("/logs?level=debug").json()["logs"])
    left = "touch begun; while [ ! -e left ]; do sleep 0.05; done; rm begun; echo made > made"
    for script, timeout in ((left, 20_000), ("touch begun; sleep 66; touch never", 1_000)):
        body = json.dumps({"command": script, "timeout": timeout}).encode()
        address = httpx.URL(server.url)
        with socket.create_connection((address.host, address.port or 80)) as connection:
            head = f"POST /execute HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: {len(body)}\r\n\r\n"
            connection.sendall(head.encode() + body)
            wait_until((server.workspace / "begun").exists)
        (server.workspace / "left").touch()
        wait_until((server.workspace / "made").exists)
    with server.client() as client, client.stream("GET", f"/events?after={after}") as response:
        ends = []
        for event in events(response):
            if event["type"] == "process.exited":
                ends.append(event.get("reason"))
            if len(ends) == 2:
                break
    assert ends == [None, "timeout"]
    assert alive(server) == set()
    assert not (server.workspace / "never").exists()
    assert server.get("/health").json()["status"] == before["status"]


@pytest.fixture
def small_memory() -> Iterator[Path]:
    """A control group of 64 MiB, which this machine lets us make, or the test is skipped."""
    for root, limit in ((Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"), (Path("/sys/fs/cgroup"), "memory.max")):
        group = root / f"agent-server-test-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            (group / limit).write_text(str(64 << 20))
            yield group
        except OSError:
            continue
        finally:
            group.rmdir()
        return
    pytest.skip("needs a control group for memory, which only root can make on some machines")


@pytest.mark.parametrize(
    ("command", "end"),
    [
        ("exec {python} -c 'bytes(range(256)) * (1 << 20)'", {"exitCode": None, "signal": "SIGKILL"}),
        ("{python} -c 'bytes(range(256)) * (1 << 20)'; exit $?", {"exitCode": 137, "signal": None}),
    ],
)
def test_what_the_kernel_killed_for_want_of_memory_is_told_so(
    server: ServerProcess, small_memory: Path, command: str, end: dict[str, Any]
) -> None:
    enter = f"echo $$ > {small_memory}/cgroup.procs; ulimit -c 0; "
    ended = server.execute(enter + command.format(python=sys.executable))
    assert {name: ended[name] for name in end} == end
    assert ended["reason"] == "oom"
    assert server.get(f"/processes/{ended['processId']}").json()["reason"] == "oom"


def test_a_kill_by_somebody_else_is_not_told_as_one_for_want_of_memory(server: ServerProcess) -> None:
    ended = server.execute("sleep 0.1; kill -9 $$")
    assert (ended["signal"], ended["reason"]) == ("SIGKILL", None)


def test_events_tell_the_output_as_the_reply_does(server: ServerProcess) -> None:
    after = max(event["seq"] for event in server.get("/logs?level=debug").json()["logs"])
    done = server.execute("for i in $(seq 20); do echo out $i; echo err $i >&2; sleep 0.005; done")
    told = []
    with server.client() as client, client.stream("GET", f"/events?after={after}") as response:
        for event in events(response):
            told.append(event)
            if event["type"] == "process.exited":
                break
    output = [event for event in told if event["type"] == "process.output"]
    assert "".join(event["chunk"] for event in output) == done["output"]
    assert "".join(event["chunk"] for event in output if event["stream"] == "stderr") == done["stderr"]
    at = 0
    for event in output:
        assert event["offset"] == at
        at += len(event["chunk"])
    assert told[0]["type"] == "process.started"
    assert told[-1]["exitCode"] == 0


def test_what_a_killed_server_left_running_is_ended_at_the_next_start_and_told(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        server.execute("setsid sleep 60 >/dev/null 2>&1 & echo a")
        with socket.create_connection(("127.0.0.1", httpx.URL(server.url).port or 80)) as connection:
            body = b'{"command": "trap \'\' TERM; touch ready; sleep 60; sleep 60"}'
            head = f"POST /execute HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: {len(body)}\r\n\r\n"
            connection.sendall(head.encode() + body)
            wait_until((server.workspace / "ready").exists)
            time.sleep(0.4)  # the event that it started is in the log some moments later
            left = alive(server)
            server.kill()
        assert len(left) >= 3
        server.start()
        assert server.execute("sleep 0.2; echo new")["output"] == "new\n"
        assert not left & alive(server)
        exited = [line for line in server.get("/logs?lines=1000&level=debug").json()["logs"] if line["type"] == "process.exited"]
        assert sum("the server ended before it" in line["message"] for line in exited) == 1


def test_a_stop_ends_every_command(tmp_path: Path) -> None:
    with serving(tmp_path, SHUTDOWN_GRACE_MS="100") as server:
        server.execute("setsid sleep 60 >/dev/null 2>&1 & echo a")
        assert server.stop() == 0
        assert alive(server) == set()
