"""Trees are found by their mark and ended whole; zombies are reaped, and nobody's exit code is stolen."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent_server.commands import proctree
from agent_server.commands.proctree import VARIABLE
from agent_server.ids import new_id

MARK = new_id("srv")


def spawn(script: str, mark: str) -> "subprocess.Popen[bytes]":
    """Starts a command with a mark, and returns when it has printed a line."""
    environ = {"PATH": os.environ["PATH"], VARIABLE: mark}
    process = subprocess.Popen(
        ["bash", "-c", script], env=environ, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    return process


@pytest.fixture
def mark() -> Iterator[str]:
    """A mark of its own; whatever a test leaves under it is killed."""
    own = f"{MARK}/{new_id('proc')}"
    yield own
    for pid in proctree.find(own):
        os.kill(pid, signal.SIGKILL)


TREES = {
    "alone": "echo ready; exec sleep 60",
    "children": "sleep 60 & sleep 60 & echo ready; wait",
    "setsid": "setsid sleep 60 & echo ready; wait",
    "orphan": "(setsid sleep 60 &) ; sleep 0.1; echo ready; sleep 60",
    "double fork": "(setsid bash -c 'sleep 60 & exit' &) ; sleep 0.2; echo ready; sleep 60",
    "nohup": "nohup sleep 60 >/dev/null 2>&1 & echo ready; wait",
    "ignores TERM": "trap '' TERM; (trap '' TERM; sleep 60) & echo ready; wait",
    "stopped": "sleep 60 & kill -STOP $!; echo ready; kill -STOP $$",
    "empty environment": "env -i sleep 60 & echo ready; wait",
    "respawns": "trap 'setsid sleep 60 & setsid sleep 60 &' TERM; echo ready; while true; do sleep 0.05; done",
}


@pytest.mark.parametrize("name", TREES)
async def test_a_tree_is_ended_whole(name: str, mark: str) -> None:
    process = spawn(TREES[name], mark)
    until = time.monotonic() + 5
    # It may be in an exec just now, and has no environment then.
    while process.pid not in proctree.find(mark) and time.monotonic() < until:  # noqa: ASYNC110  # /proc has no events
        await asyncio.sleep(0.01)
    assert process.pid in proctree.find(mark)
    began = time.monotonic()
    left = await proctree.kill(mark, grace=0.3)
    assert left == set()
    assert proctree.find(mark) == set()
    assert time.monotonic() - began < 3
    with process:
        process.wait(5)


async def test_a_command_that_ends_on_term_may_clean_up(mark: str, tmp_path: Path) -> None:
    process = spawn(f"trap 'sleep 0.2; echo done > {tmp_path}/cleaned; exit 7' TERM; echo ready; while true; do sleep 0.05; done", mark)
    await proctree.kill(mark)
    with process:
        assert process.wait(5) == 7
    assert (tmp_path / "cleaned").exists()


async def test_other_marks_are_left_alone(mark: str) -> None:
    ours, longer, theirs = (spawn(TREES["alone"], name) for name in (f"{mark}/a", f"{mark}/ab", f"{mark}x"))
    try:
        assert proctree.find(f"{mark}/a") == {ours.pid, longer.pid}
        await proctree.kill(f"{mark}/ab")
        assert longer.wait(5) == -signal.SIGTERM
        assert ours.poll() is None
        assert theirs.poll() is None
        assert os.getpid() not in proctree.find("")
    finally:
        for process in (ours, longer, theirs):
            with process:
                process.kill()


async def test_a_tree_that_forks_as_fast_as_it_can_is_ended(mark: str) -> None:
    storm = (
        "f() { for i in 1 2 3 4 5 6 7 8 9 10; do (setsid bash -c 'sleep 0.01; :' &); sleep 0.005; done; }; echo ready; while :; do f; done"
    )
    process = spawn(storm, mark)
    left = await proctree.kill(mark, grace=0.1)
    assert left == set()
    with process:
        process.wait(5)


# Reaping, in a process of its own: being a subreaper is for life.

REAPING = """
import os, subprocess, sys, time
from agent_server.commands.proctree import Reaper, protect_self

protect_self()
reaper = Reaper()
slow = reaper.popen(["sh", "-c", "exit 5"])
for _ in range(5):
    subprocess.run(["sh", "-c", "(setsid sleep 0.2 &) ; exit 0"], check=True)
until = time.monotonic() + 10
def children():
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        return file.read().split()
adopted = len(children())
while len(children()) > 1 and time.monotonic() < until:
    reaper.look()
    time.sleep(0.05)
print(adopted, len(children()), slow.wait())
reaper.look()
print(len(children()))
"""


def test_orphans_are_adopted_and_reaped_and_exit_codes_are_not_stolen() -> None:
    done = subprocess.run([sys.executable, "-c", REAPING], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout.split() == ["6", "1", "5", "0"]


INHERITING = """
import os, subprocess, sys
from agent_server.commands.proctree import protect_self
protect_self()
pid = os.posix_spawn("/bin/sh", ["sh", "-c", f"cat <&{sys.argv[1]}"], {})
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


def test_a_file_that_we_were_started_with_is_closed_to_commands(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("0123456789")
    with secret.open() as file:
        argv = [sys.executable, "-c", INHERITING, str(file.fileno())]
        done = subprocess.run(argv, pass_fds=[file.fileno()], capture_output=True, text=True, timeout=30)
    assert done.stdout.split() == ["2"], done
    assert "0123456789" not in done.stdout


READING = """
import os, subprocess
from agent_server.commands.proctree import protect_self
protect_self()
os.setuid(65534) if os.getuid() == 0 else None
protect_self()
command = "cat /proc/$PPID/environ /proc/$PPID/mem | head -c 100; ls /proc/$PPID/fd"
print(subprocess.run(["sh", "-c", command], capture_output=True).stdout)
"""


def test_a_command_of_the_same_user_cannot_read_what_is_protected() -> None:
    done = subprocess.run(
        [sys.executable, "-c", READING],
        capture_output=True,
        text=True,
        timeout=30,
        env={"SECRET": "0123456789", "PATH": os.environ["PATH"]},
    )
    if done.returncode:
        pytest.skip("the user cannot be changed here")
    assert done.stdout.startswith("b''") or "total 0" in done.stdout
    assert "0123456789" not in done.stdout
