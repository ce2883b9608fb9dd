"""Names for what is half-written in the workspace.

An upload is written beside its place, under a name that listings, watches and archives leave out, and put there at the end. Each name
is noted in the data directory before it is used, so that what a killed server left is removed at the next start.
"""

import contextlib
import logging
import os
import secrets
from pathlib import Path

from agent_server.files import folders
from tools._files import HIDDEN

logger = logging.getLogger(__name__)

PREFIX = HIDDEN
"""How all these names begin."""


class Staging:
    """The names in use; `folder` holds a note for each."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, exist_ok=True)
        self._folder = folder
        self._left = list(folder.iterdir())

    def name(self, folder: Path) -> str:
        """Gives a name to use in this folder, until `forget`."""
        name = PREFIX + secrets.token_hex(8)
        (self._folder / name).write_bytes(os.fsencode(folder))
        return name

    def forget(self, name: str) -> None:
        (self._folder / name).unlink(missing_ok=True)

    def clear(self) -> None:
        """Removes what a killed server left. It blocks. Errors: none; what cannot be removed is tried at the next start."""
        for note in self._left:
            try:
                with contextlib.suppress(FileNotFoundError, NotADirectoryError), folders.opened(Path(os.fsdecode(note.read_bytes()))) as fd:
                    folders.remove(note.name, fd)
                note.unlink(missing_ok=True)
            except OSError as error:
                logger.warning("what an unfinished upload left could not be removed: %s", error)
