"""Finds lines of the workspace's files with ripgrep, bounded in time, number and length."""

import os
import re
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec

from agent_server.changes.changes import shown
from agent_server.changes.git import Spawn
from agent_server.errors import AgentServerError, InvalidRequest
from tools import ToolError
from tools._ripgrep import find_ripgrep

SECONDS = 10.0
"""How long one search may take; what was found by then is given."""

OUTPUT_BYTES = 8 << 20
"""Matches taken of one search."""

LINE_BYTES = 500
"""What is shown of a line."""

COMPLAINT_BYTES = 2_000
"""What is told of a pattern that cannot be used."""

_OPTIONS = (
    *("--no-config", "--no-messages", "--color=never", "--hidden", "--no-require-git", "--sort=path"),
    *("--null", "--line-number", "--column", "--with-filename", "--no-heading", "--crlf"),
    *(f"--max-columns={LINE_BYTES}", "--max-columns-preview"),
)

_BINARY = re.compile(rb"\A\./[^\0]*?: (?:WARNING: stopped searching binary file after match|binary file matches) \(found [^\n]*\)\n")
"""What ripgrep prints after the matches of a binary file, before the next path."""


class Match(msgspec.Struct, frozen=True):
    """One line; of several matches in it, `column` is where the first begins, counted in bytes from 1."""

    path: str
    line: int
    column: int
    text: str


class Query(msgspec.Struct, frozen=True):
    text: str
    is_regex: bool
    glob: str | None
    limit: int


def search(folder: Path, query: Query, spawn: Spawn) -> tuple[list[Match], bool]:
    """Gives the matches, with paths relative to the folder, and whether there may be more. It blocks.

    Hidden files are searched; .git, ignored and binary files are not. Errors: InvalidRequest for a pattern that is none.
    """
    globs = [f"--glob={query.glob}"] if query.glob is not None else []
    kind = [] if query.is_regex else ["--fixed-strings"]
    command = [_ripgrep(), *_OPTIONS, *globs, "--glob=!.git", *kind, f"--regexp={query.text}", "--", "./"]
    with tempfile.TemporaryFile() as complaints:
        output, code, is_late = _run(command, folder, complaints.fileno(), spawn)
        found = list(_matches(output))
        if code == 2 and not found:
            complaints.seek(0)
            if said := complaints.read(COMPLAINT_BYTES).decode("utf-8", "replace").strip():
                raise InvalidRequest(f"query: ripgrep cannot use this pattern or glob: {said}", path="query")
    is_cut = is_late or len(output) >= OUTPUT_BYTES or len(found) > query.limit
    return found[: query.limit], is_cut


def _run(command: list[str], folder: Path, complaints: int, spawn: Spawn) -> tuple[bytes, int, bool]:
    environment = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8"}
    with spawn(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=complaints,
        cwd=folder,
        env=environment,
        start_new_session=True,
    ) as process:
        late = threading.Event()

        def give_up() -> None:
            late.set()
            process.kill()

        watchdog = threading.Timer(SECONDS, give_up)
        watchdog.daemon = True
        watchdog.start()
        try:
            assert process.stdout is not None  # noqa: S101  # it was asked for
            output = process.stdout.read(OUTPUT_BYTES)
            if len(output) == OUTPUT_BYTES:
                process.kill()
            return output, process.wait(), late.is_set()
        finally:
            watchdog.cancel()


def _ripgrep() -> str:
    try:
        return find_ripgrep()
    except ToolError as error:
        raise AgentServerError(str(error)) from error


def _matches(output: bytes) -> Iterator[Match]:
    path, *rest = output.split(b"\0")
    for piece in rest:
        # A line that was cut off by the end has no line feed: it is left out.
        line, end, next_path = piece.partition(b"\n")
        number, _, tail = line.partition(b":")
        column, _, text = tail.partition(b":")
        if end and number.isdigit() and column.isdigit():
            name = _BINARY.sub(b"", path).removeprefix(b"./")
            yield Match(shown(name), int(number), int(column), text.removesuffix(b"\r").decode("utf-8", "replace"))
        path = next_path
