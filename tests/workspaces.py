"""Workspaces for the tests of recording: what git sees of them, taken by a plain walk, and a user's own git in them."""

import hashlib
import os
import stat
import subprocess
from pathlib import Path
from typing import Any

from agent_server.changes.changes import Change

# A file's permission to execute and its contents, or where a link leads.
State = dict[bytes, tuple[str, bytes]]


def look(workspace: Path) -> State:
    """Reads every file and link of the workspace, except what is called `.git`."""
    return dict(_walk(os.fsencode(workspace), b""))


def _walk(root: bytes, below: bytes) -> list[tuple[bytes, tuple[str, bytes]]]:
    found: list[tuple[bytes, tuple[str, bytes]]] = []
    for entry in os.scandir(os.path.join(root, below)):
        path = os.path.join(below, entry.name)
        if entry.name == b".git":
            continue
        if entry.is_symlink():
            found.append((path, ("link", os.readlink(entry.path))))
        elif entry.is_dir():
            found.extend(_walk(root, path))
        elif entry.is_file():
            kind = "program" if entry.stat().st_mode & stat.S_IXUSR else "file"
            found.append((path, (kind, Path(os.fsdecode(entry.path)).read_bytes())))
    return found


def compared(before: State, after: State) -> dict[bytes, str]:
    """Says what was added, deleted and modified between two states."""
    added = dict.fromkeys(after.keys() - before.keys(), "added")
    deleted = dict.fromkeys(before.keys() - after.keys(), "deleted")
    modified = {path: "modified" for path in before.keys() & after.keys() if before[path] != after[path]}
    return added | deleted | modified


def told(changes: list[Change]) -> dict[bytes, str]:
    """The same of reported changes, a rename being a file deleted and another added."""
    answer: dict[bytes, str] = {}
    for change in changes:
        answer[change.path] = "added" if change.status == "renamed" else change.status
        if change.old_path is not None:
            answer[change.old_path] = "deleted"
    return answer


def fingerprint(folder: Path) -> str:
    """Digests everything under the folder: names, types, modes, times and bytes."""
    digest = hashlib.sha256()
    for path in sorted([folder, *folder.rglob("*")]):
        info = path.lstat()
        digest.update(repr((path, info.st_mode, info.st_mtime_ns, info.st_size)).encode("utf-8", "surrogateescape"))
        if path.is_file() and not path.is_symlink():
            digest.update(path.read_bytes())
    return digest.hexdigest()


def git(folder: Path, *arguments: str) -> str:
    """Runs the user's git."""
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": "/nonexistent",
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_AUTHOR_NAME": "User",
        "GIT_AUTHOR_EMAIL": "user@example.com",
        "GIT_COMMITTER_NAME": "User",
        "GIT_COMMITTER_EMAIL": "user@example.com",
    }
    command = ["git", "-c", "protocol.file.allow=always", "-c", "init.defaultBranch=main", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True, text=True, errors="replace").stdout


def write(path: Path, contents: str | bytes = b"") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(contents.encode() if isinstance(contents, str) else contents)
    return path


class Recorder:
    """A Spawn that notes the commands it started."""

    def __init__(self) -> None:
        self.commands: list[str] = []

    def __call__(self, argv: list[str], **options: Any) -> "subprocess.Popen[bytes]":
        self.commands.append(argv[1])
        return subprocess.Popen(argv, **options)
