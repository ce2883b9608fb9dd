"""What tasks need of their own tools' configuration and their events must not hold: a private file for each such task.

It is written before the task is accepted, so that the task can go on after a restart, and is removed at its end.
"""

import asyncio
import contextlib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import msgspec

from agent_server.datadir import write_private


class ToolConfigs:
    """The files, each named after its task. `keep` and `drop` may raise OSError."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def keep(self, task_id: str, entries: Sequence[Any]) -> None:
        """Writes a task's entries; they survive the machine's end."""
        await asyncio.to_thread(self._write, task_id, msgspec.json.encode(entries))

    def _write(self, task_id: str, data: bytes) -> None:
        self._folder.mkdir(mode=0o700, exist_ok=True)
        write_private(self._path(task_id), data)

    async def take(self, task_id: str) -> list[dict[str, Any]] | None:
        """Gives a task's entries; None where it has no file."""
        try:
            data = await asyncio.to_thread(self._path(task_id).read_bytes)
            return msgspec.json.decode(data, type=list[dict[str, Any]])
        except (OSError, msgspec.MsgspecError):  # most tasks have none; one that is lost is told by what it was for
            return None

    async def drop(self, task_id: str) -> None:
        await asyncio.to_thread(self._path(task_id).unlink, missing_ok=True)

    async def sweep(self, needed: Collection[str]) -> None:
        """Removes the files of all tasks but these: of those whose end came with the server's."""
        await asyncio.to_thread(self._sweep, needed)

    def _sweep(self, needed: Collection[str]) -> None:
        for path in self._folder.glob("*.json") if self._folder.is_dir() else ():
            if path.stem not in needed:
                with contextlib.suppress(OSError):  # the next start tries again
                    path.unlink()

    def _path(self, task_id: str) -> Path:
        return self._folder / f"{task_id}.json"
