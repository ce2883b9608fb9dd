"""Checkpoints of the workspace: at the instance's first start, and before and after each task; and what changed since.

The shadow repository that holds them is made when first needed. Where it fails (no git, a full disk) tasks go on without
checkpoints, and the log says so.
"""

import asyncio
import logging
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agent_server.changes import Changes, shown
from agent_server.errors import AgentServerError, NotFound
from agent_server.events import Draft
from agent_server.events.log import EventLog
from agent_server.git import Spawn
from agent_server.shadow import Shadow
from agent_server.tasks import Task, find, tasks_that_changed

logger = logging.getLogger(__name__)

BASE = "base"
"""The name of the checkpoint that is made at the first start."""

KEPT_CHANGES = 1_000
"""Changed files that a task's last event names; the rest are in `GET /changes`."""


class Checkpoints:
    """The checkpoints of one instance."""

    def __init__(self, folder: Path, workspace: Path, log: EventLog, spawn: Spawn = subprocess.Popen) -> None:
        self._folder = folder
        self._workspace = workspace
        self._log = log
        self._spawn = spawn
        self._opening: asyncio.Task[Shadow] | None = None

    @property
    def is_ready(self) -> bool:
        opening = self._opening
        return opening is not None and opening.done() and not opening.cancelled() and opening.exception() is None

    async def ready(self) -> None:
        """Returns when the state at the first start is recorded: nothing of ours may change the workspace before. Errors: none."""
        if self.is_ready:
            return
        if self._opening is None or (self._opening.done() and self._opening.exception() is not None):
            self._opening = asyncio.create_task(self._open())
        try:
            await asyncio.shield(self._opening)
        except (AgentServerError, OSError) as error:
            logger.warning("the workspace's state could not be recorded: %s", error)

    async def _open(self) -> Shadow:
        shadow = await asyncio.to_thread(Shadow, self._folder, self._workspace, self._spawn)
        if BASE not in shadow.names():
            await self._record(shadow, BASE)
        return shadow

    async def _shadow(self) -> Shadow:
        await self.ready()
        assert self._opening is not None  # noqa: S101  # made by ready
        return await asyncio.shield(self._opening)

    async def _record(self, shadow: Shadow, name: str, task: Task | None = None) -> str:
        tree = await shadow.in_thread(shadow.checkpoint, name)
        ids = (task.session_id, task.task_id) if task is not None else (None, None)
        await self._log.append(Draft("checkpoint.created", {"checkpointId": name, "name": name, "tree": tree}, *ids))
        return tree

    async def begin(self, task: Task) -> None:
        """Records the state before a task, once. Errors: none; a failure is logged."""
        try:
            shadow = await self._shadow()
            if f"{task.task_id}-start" not in shadow.names():
                await self._record(shadow, f"{task.task_id}-start", task)
        except (AgentServerError, OSError) as error:
            logger.warning("no checkpoint before %s: %s", task.task_id, error)

    async def end(self, task: Task) -> Sequence[Mapping[str, Any]]:
        """Records the state after a task and gives what it changed, as `changes` has it. Errors: none; a failure is logged."""
        try:
            shadow = await self._shadow()
            start = shadow.tree(f"{task.task_id}-start")
            end = await self._record(shadow, f"{task.task_id}-end", task)
            if start == end:
                return []
            changes = await shadow.in_thread(shadow.diff, start, end)
        except (AgentServerError, OSError) as error:
            logger.warning("no checkpoint after %s: %s", task.task_id, error)
            return []
        return [{**change.to_wire(), "taskIds": [task.task_id]} for change in changes.files[:KEPT_CHANGES]]

    async def changes(self, *, since: str | None, task_id: str | None, patch: bool) -> dict[str, Any]:
        """Gives the answer of `GET /changes`: against the first start, a checkpoint, the start of a task, or of one task alone.

        Errors: NotFound for a task or checkpoint that is not there; those of `git.py`.
        """
        shadow = await self._shadow()
        if task_id is not None:
            task = await find(self._log, task_id)
            base = f"{task_id}-start"
            if task.ended is None:
                changes = await shadow.in_thread(shadow.changes_since, shadow.tree(base), patch=patch)
            else:
                changes = await shadow.in_thread(shadow.diff, shadow.tree(base), shadow.tree(f"{task_id}-end"), patch=patch)
        else:
            base = _name(since)
            changes = await shadow.in_thread(shadow.changes_since, _tree(shadow, base, since), patch=patch)
        return await self._answer(changes, base)

    async def _answer(self, changes: Changes, base: str) -> dict[str, Any]:
        paths = [shown(change.path) for change in changes.files]
        by_path = await tasks_that_changed(self._log, paths)
        left_out = changes.left_out
        return {
            "changes": [{**change.to_wire(), "taskIds": by_path.get(path, [])} for change, path in zip(changes.files, paths, strict=True)],
            "files": paths,
            "base": base,
            "truncated": changes.is_truncated,
            "leftOut": {"count": left_out.count, "files": [{"path": shown(path), "reason": reason} for path, reason in left_out.names]},
        }


def _name(since: str | None) -> str:
    if since is None:
        return BASE
    return f"{since}-start" if since.startswith("task_") else since


def _tree(shadow: Shadow, name: str, since: str | None) -> str:
    try:
        return shadow.tree(name)
    except NotFound as error:
        raise NotFound(f"There is no state {since!r} to compare with; name a task or a checkpoint.", details={"since": since}) from error
