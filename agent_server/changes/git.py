"""Runs git processes that neither the user's configuration nor the workspace's can influence.

The shadow repository needs git as a calculator over a folder of our own: no configuration but ours, no hooks, filters, pagers or
prompts, bounded in time and output. The user's own repository is none of this module's business.

    GitMissing (AgentServerError, FileNotFoundError)    no git on this machine
    GitFailed (AgentServerError, RuntimeError)          git said no, in its own words
    GitTimedOut (AgentServerError, TimeoutError)        git was killed after its time
"""

import contextlib
import os
import re
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from agent_server.errors import AgentServerError

# Starts a process as `subprocess.Popen(argv, **options)` does; the server passes one that keeps its zombie reaper informed.
Spawn = Callable[..., "subprocess.Popen[bytes]"]

GIT_SECONDS = 300.0  # The first recording of a large workspace hashes every file of it.
ANSWER_BYTES = 64 * 1024  # What `run` reads: object ids. Long answers are streamed.
COMPLAINT_BYTES = 64 * 1024  # Standard error kept of one process.
CHUNK_BYTES = 64 * 1024
LOWEST_PRIORITY = 19
ORPHAN_WAIT = 0.25  # An execve takes less than a millisecond; a daemon without environment has none for ever.

CONFIG = """\
[core]
	repositoryFormatVersion = 0
	bare = false
	fileMode = true
	symlinks = true
	ignoreCase = false
	precomposeUnicode = false
	protectHFS = false
	protectNTFS = false
	autocrlf = false
	safecrlf = false
	quotePath = false
	logAllRefUpdates = false
	fsmonitor = false
	untrackedCache = false
	attributesFile = /dev/null
	excludesFile = /dev/null
	hooksPath = /dev/null
[gc]
	auto = 0
	packRefs = false
	writeCommitGraph = false
[maintenance]
	auto = false
[pack]
	threads = 1
	windowMemory = 32m
	deltaCacheSize = 16m
"""
# info/attributes beats every .gitattributes of the workspace: contents are recorded byte for byte, and what is text is seen in them.
ATTRIBUTES = "* -text -eol -crlf -ident -filter -working-tree-encoding !diff\n"


class GitMissing(AgentServerError, FileNotFoundError):
    pass


class GitFailed(AgentServerError, RuntimeError):
    @property
    def is_disk_full(self) -> bool:
        return "No space left on device" in self.message or "Disk quota exceeded" in self.message


class GitTimedOut(AgentServerError, TimeoutError):
    pass


class Running:
    """One git process: what it says, and how it ends."""

    def __init__(self, process: "subprocess.Popen[bytes]", complaints: IO[bytes], folder: Path) -> None:
        if process.stdin is None or process.stdout is None:
            raise ValueError("The process was started without the pipes it was asked for")
        self._process = process
        self._stdin = process.stdin
        self._stdout = process.stdout
        self._complaints = complaints
        self._folder = os.fsencode(folder)
        self._is_stopped = False
        self._is_late = False

    def tokens(self) -> Iterator[bytes]:
        """Yields the pieces of standard output that end in NUL; a piece cut off by the end is dropped."""
        rest = b""
        while chunk := os.read(self._stdout.fileno(), CHUNK_BYTES):
            *pieces, rest = (rest + chunk).split(b"\0")
            yield from pieces

    def lines(self, limit: int) -> Iterator[bytes]:
        """Yields the lines of standard output with their ends; a longer line comes in several pieces of at most `limit` bytes."""
        while line := self._stdout.readline(limit):
            yield line

    def feed(self, data: bytes) -> None:
        # A git that dies early closes the pipe; its exit code and words say why.
        with contextlib.suppress(BrokenPipeError):
            self._stdin.write(data)
        with contextlib.suppress(BrokenPipeError):
            self._stdin.close()

    def say(self, data: bytes) -> None:
        """Writes to a process that answers as it reads. No more than a pipe holds, or both would wait for each other."""
        with contextlib.suppress(BrokenPipeError):
            self._stdin.write(data)
            self._stdin.flush()

    def contents(self, object_id: bytes) -> bytes:
        """Gives an object, of `cat-file --batch`. Errors: GitFailed when it is not there."""
        self._stdin.write(object_id + b"\n")
        self._stdin.flush()
        header = self._stdout.readline(CHUNK_BYTES).split()
        if len(header) != 3:
            raise GitFailed(f"The recorded contents {object_id.decode()} are lost or damaged")
        return self._stdout.read(int(header[2]) + 1)[:-1]

    def answer(self) -> bytes:
        return self._stdout.read(ANSWER_BYTES)

    def complaints(self) -> bytes:
        """What it said of its troubles; without the repository's path, which is no client's business."""
        self._complaints.seek(0)
        return self._complaints.read(COMPLAINT_BYTES).replace(self._folder, b"the shadow repository")

    def lower_priority(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.setpriority(os.PRIO_PROCESS, self._process.pid, LOWEST_PRIORITY)

    def stop(self) -> None:
        """Ends the process before it has said everything; that is then no failure."""
        self._is_stopped = True
        self._kill()

    def give_up(self) -> None:
        self._is_late = True
        self._kill()

    def wait(self) -> None:
        self._process.wait()

    def close(self) -> None:
        self._kill()
        with self._process:
            pass

    def check(self) -> None:
        """Raises GitTimedOut or GitFailed unless the process ended well or was stopped."""
        command = f"git {self._command()}"
        if self._is_late:
            raise GitTimedOut(f"{command} was killed because it ran out of time; the workspace may be too large or its disk too slow")
        if self._process.returncode and not self._is_stopped:
            words = self.complaints().decode("utf-8", "replace").strip() or "without a word"
            raise GitFailed(f"{command} ended with {self._process.returncode}: {words[-1000:]}")

    def _command(self) -> str:
        arguments = self._process.args
        return str(arguments[1]) if isinstance(arguments, list) else str(arguments)

    def _kill(self) -> None:
        if self._process.poll() is None:
            # git gc works through children of its own.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)


class Git:
    """A repository in `folder` over the files of `work_tree`, made by hand: `git init` would copy templates and read settings."""

    def __init__(self, folder: Path, work_tree: Path, *, spawn: Spawn = subprocess.Popen, seconds: float = GIT_SECONDS) -> None:
        self.folder = folder
        self._spawn = spawn
        self._seconds = seconds
        self._environment = {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": str(folder),
            "LC_ALL": "C",
            "GIT_DIR": str(folder),
            "GIT_WORK_TREE": str(work_tree),
            "GIT_CONFIG_GLOBAL": "/dev/null",
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_ATTR_NOSYSTEM": "1",
            "GIT_LITERAL_PATHSPECS": "1",
        }

    def create(self) -> None:
        """Makes the repository, or puts back what a crash has cost it; keeps its objects, index and refs."""
        for part in ("objects", "refs", "info"):
            (self.folder / part).mkdir(mode=0o700, parents=True, exist_ok=True)
        (self.folder / "HEAD").write_text("ref: refs/heads/none\n")
        (self.folder / "config").write_text(CONFIG)
        (self.folder / "info" / "attributes").write_text(ATTRIBUTES)

    def objects(self) -> Iterator[tuple[str, os.stat_result]]:
        """Walks the files that hold the objects."""
        for parent, _, names in os.walk(self.folder / "objects"):
            for name in names:
                path = os.path.join(parent, name)
                yield path, os.lstat(path)

    @contextlib.contextmanager
    def start(self, *arguments: str, index: str = "index", objects: Path | None = None) -> Iterator[Running]:
        """Starts one git process and sees to its end: killed when the block raises, checked when it does not.

        It also reads objects from the folder `objects`, of another repository.
        """
        with tempfile.TemporaryFile(dir=self.folder) as complaints:
            running = Running(self._popen(arguments, index, objects, complaints), complaints, self.folder)
            watchdog = threading.Timer(self._seconds, running.give_up)
            watchdog.daemon = True
            watchdog.start()
            try:
                yield running
                running.wait()
            finally:
                watchdog.cancel()
                running.close()
            running.check()

    def run(self, *arguments: str, feed: bytes = b"", index: str = "index", is_urgent: bool = True) -> bytes:
        """Runs one git process to its end and returns its short answer."""
        with self.start(*arguments, index=index) as running:
            if not is_urgent:
                running.lower_priority()
            running.feed(feed)
            return running.answer()

    def _popen(self, arguments: tuple[str, ...], index: str, objects: Path | None, complaints: IO[bytes]) -> "subprocess.Popen[bytes]":
        # A list of folders is separated by colons unless it is quoted.
        quoted = re.sub(r'(["\\])', r"\\\1", str(objects))
        other = {"GIT_ALTERNATE_OBJECT_DIRECTORIES": f'"{quoted}"'} if objects is not None else {}
        try:
            return self._spawn(
                ["git", *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=complaints,
                env={**self._environment, **other, "GIT_INDEX_FILE": str(self.folder / index)},
                # Always there, so that a missing file can only mean git; git itself goes to the work tree.
                cwd="/",
                start_new_session=True,
            )
        except (FileNotFoundError, PermissionError) as error:
            raise GitMissing("git cannot be started, so changes are not recorded: install git 2.32 or later on the PATH") from error


def end_orphans(folder: Path) -> None:
    """Kills git processes that a killed server left at work in `folder`: they would write over the index of the one that follows.

    Blocks for up to ORPHAN_WAIT: a process in the middle of an execve has no environment to see, and is looked at again.
    """
    mark = os.fsencode(f"GIT_DIR={folder}")
    until = time.monotonic() + ORPHAN_WAIT
    left = [process for process in os.listdir("/proc") if process.isdigit()]
    while (left := [process for process in left if _is_bare(process, mark)]) and time.monotonic() < until:
        time.sleep(0.001)


def _is_bare(process: str, mark: bytes) -> bool:
    """Kills a process that has the mark; tells whether it is one without any environment."""
    # Processes end while we look, other users' are closed to us, and the kernel's own have no program.
    with contextlib.suppress(OSError):
        environ = Path("/proc", process, "environ").read_bytes()
        if mark in environ.split(b"\0"):
            os.kill(int(process), signal.SIGKILL)
        return not environ and bool(os.readlink(f"/proc/{process}/exe"))
    return False
