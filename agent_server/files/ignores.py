"""Tells which paths the workspace's .gitignore files and info/exclude leave out, as git itself sees it.

git answers as a calculator over an empty repository of our own: it works where the workspace is no repository, and neither the
user's index nor configuration is read. So a file that is ignored and yet tracked counts as ignored.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from agent_server.changes.git import Git, Running, Spawn
from agent_server.changes.index import find_exclude
from agent_server.errors import Conflict

SECONDS = 60.0
"""How long git may take for one listing."""

ASKED_BYTES = 16 << 10
"""Bytes of paths that git is given before its answers are read: they fit into a pipe."""

Filter = Callable[[Sequence[bytes]], list[bytes]]
"""Gives those of some paths, relative to the workspace, that are not ignored."""


class Ignores:
    """The ignore rules of one workspace. `folder` is for the empty repository, and made when first needed."""

    def __init__(self, folder: Path, workspace: Path, spawn: Spawn) -> None:
        self._git = Git(folder, workspace, spawn=spawn, seconds=SECONDS)
        self._workspace = workspace

    @contextlib.contextmanager
    def filter(self) -> Iterator[Filter]:
        """Gives a filter that works inside the block. It blocks. Errors: those of `git.py`; the filter: Conflict."""
        self._git.create()
        exclude = find_exclude(self._workspace)
        settings = ("-c", f"core.excludesFile={exclude}") if exclude is not None else ()
        command = ("check-ignore", "-z", "--stdin", "--no-index", "--verbose", "--non-matching")
        # It refuses to take paths literally, which ours are otherwise; it expands nothing in them either.
        with self._git.start("--no-literal-pathspecs", *settings, *command) as running:
            yield _Asking(running)
            running.stop()


class _Asking:
    def __init__(self, running: Running) -> None:
        self._running = running
        self._answers = running.tokens()

    def __call__(self, paths: Sequence[bytes]) -> list[bytes]:
        kept: list[bytes] = []
        asked: list[bytes] = []
        size = 0
        for path in paths:
            if size + len(path) > ASKED_BYTES:
                kept += self._ask(asked)
                asked, size = [], 0
            asked.append(path)
            size += len(path) + len(b":(top)\0")
        return kept + self._ask(asked)

    def _ask(self, paths: Sequence[bytes]) -> list[bytes]:
        # A path that begins with a colon would be taken for something else.
        self._running.say(b"".join(b":(top)" + path + b"\0" for path in paths))
        return [path for path in paths if not self._is_ignored()]

    def _is_ignored(self) -> bool:
        answer = list(itertools.islice(self._answers, 4))
        if len(answer) < 4:
            raise Conflict("A folder changed while git told what is ignored in it; ask again, or with ignored=true.")
        source, _, pattern, _ = answer
        return bool(source) and not pattern.startswith(b"!")
