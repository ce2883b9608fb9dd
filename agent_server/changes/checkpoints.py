"""Checkpoints of the workspace: at the instance's first start, and before and after each task; and what changed since.

The shadow repository that holds them is made when first needed. Where it fails (no git, a full disk) tasks go on without
checkpoints, and the log says so. What they take of the disk is bounded: the oldest go first, the one of the first start never.
"""

import asyncio
import logging
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from agent_server.changes.changes import Changes
from agent_server.changes.git import GitFailed, Spawn
from agent_server.changes.index import Limits
from agent_server.changes.revisions import find as find_revision
from agent_server.changes.shadow import Shadow
from agent_server.errors import AgentServerError, NotFound
from agent_server.events import Draft
from agent_server.events.log import EventLog
from agent_server.sessions.tasks import Task, find, find_unfinished, tasks_that_changed

logger = logging.getLogger(__name__)

BASE = "base"
"""The name of the checkpoint that is made at the first start."""

KEPT_CHECKPOINTS = 10_000
"""Checkpoints above which the oldest go, however small they are: each is a file in one folder."""

COLLECT_TARGET = 0.8
"""The part of the quota that is used after a collection at the most, so that the next one is not due at once."""

COLLECT_PAUSE = 600.0
"""Seconds until the next collection after one that did not help: what is needed takes so much."""

KEPT_LEFT_OUT = 20
"""Names of files that a checkpoint does not hold, in its event."""

KEPT_CHANGES = 1_000
"""Changed files that a task's last event names; the rest are in `GET /changes`."""


class Checkpoints:
    """The checkpoints of one instance."""

    def __init__(self, folder: Path, workspace: Path, log: EventLog, spawn: Spawn = subprocess.Popen, *, limits: Limits) -> None:
        self._folder = folder
        self._workspace = workspace
        self._log = log
        self._spawn = spawn
        self._limits = limits
        self.in_use: set[str] = set()  # names that are not dropped, besides those of the first start and of tasks at work
        self._is_large = asyncio.Event()
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
        shadow = await asyncio.to_thread(Shadow, self._folder, self._workspace, self._spawn, limits=self._limits)
        if BASE not in shadow.names():
            await self._record(shadow, BASE)
        return shadow

    async def shadow(self) -> Shadow:
        await self.ready()
        assert self._opening is not None  # noqa: S101  # made by ready
        return await asyncio.shield(self._opening)

    async def _record(self, shadow: Shadow, name: str, task: Task | None = None) -> str:
        tree = await shadow.in_thread(shadow.checkpoint, name)
        ids = (task.session_id, task.task_id) if task is not None else (None, None)
        left_out = shadow.left_out.to_wire(KEPT_LEFT_OUT)
        await self._log.append(created(name, tree, *ids, left_out=left_out))
        if shadow.is_over_quota or len(shadow.names()) > KEPT_CHECKPOINTS:
            self._is_large.set()
        return tree

    async def run(self) -> None:
        """Keeps the recorded states within their quota, until it is cancelled."""
        while True:
            await self._is_large.wait()
            self._is_large.clear()
            try:
                has_room = await self._collect(await self.shadow())
            except (AgentServerError, OSError) as error:
                logger.warning("old checkpoints could not be removed: %s", error)
                has_room = False
            if not has_room:
                await asyncio.sleep(COLLECT_PAUSE)

    async def _collect(self, shadow: Shadow) -> bool:
        """Packs what there is, drops the older half of the checkpoints as long as that is too much, and tells whether it helped."""
        target = self._limits.quota_bytes * COLLECT_TARGET
        needed = {BASE, *self.in_use, *(f"{task.task_id}-start" for task in await find_unfinished(self._log))}
        left = sorted(set(shadow.names()) - needed, key=_age)
        kept = len(left)
        if shadow.used > target:
            await shadow.in_thread(shadow.free, ())
        while left and (shadow.used > target or len(left) > KEPT_CHECKPOINTS):
            half = -(-len(left) // 2)
            await shadow.in_thread(shadow.free, [name for name in left[:half] if name not in self.in_use])
            left = left[half:]
        logger.info("%d of %d checkpoints were dropped to save disk space", kept - len(left), kept)
        return shadow.used <= target

    async def begin(self, task: Task) -> None:
        """Records the state before a task, once. Errors: none; a failure is logged."""
        try:
            shadow = await self.shadow()
            if f"{task.task_id}-start" not in shadow.names():
                await self._record(shadow, f"{task.task_id}-start", task)
        except (AgentServerError, OSError) as error:
            logger.warning("no checkpoint before %s: %s", task.task_id, error)

    async def end(self, task: Task) -> Sequence[Mapping[str, Any]]:
        """Records the state after a task and gives what it changed, as `changes` has it. Errors: none; a failure is logged."""
        try:
            shadow = await self.shadow()
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
        """Gives the answer of `GET /changes`: against the first start, a checkpoint, the start of a task, a revision of the
        workspace's own git repository, or of one task alone.

        Errors: NotFound for a task, checkpoint or revision that is not there; those of `git.py`.
        """
        shadow = await self.shadow()
        if task_id is not None:
            task = await find(self._log, task_id)
            base = f"{task_id}-start"
            if task.ended is not None:
                changes = await shadow.in_thread(shadow.diff, shadow.tree(base), shadow.tree(f"{task_id}-end"), patch=patch)
                return {**await self._answer(changes, base), **await self._left_out(task_id)}
            changes = await shadow.in_thread(shadow.changes_since, shadow.tree(base), patch=patch)
        elif since is None or since.startswith("task_") or since in shadow.names():
            base = _name(since)
            changes = await shadow.in_thread(shadow.changes_since, _tree(shadow, base, since), patch=patch)
        else:
            base = since
            changes = await self._changes_since_revision(shadow, since, patch=patch)
        return await self._answer(changes, base)

    async def _changes_since_revision(self, shadow: Shadow, name: str, *, patch: bool) -> Changes:
        revision = await asyncio.to_thread(find_revision, self._workspace, name, self._spawn)
        try:
            return await shadow.in_thread(shadow.changes_since_other, revision.tree, revision.objects, patch=patch)
        except GitFailed as error:
            raise NotFound(f"Not all of the git revision {name!r} is in the workspace's repository: {error}") from error

    async def _left_out(self, task_id: str) -> dict[str, Any]:
        """Gives what the state after a task does not hold, as far as the log still has it."""
        events = await self._log.read(task_id=task_id, types=("checkpoint.created",))
        ends = [event.data for event in events if event.data["name"] == f"{task_id}-end" and "leftOut" in event.data]
        return {"leftOut": ends[-1]["leftOut"]} if ends else {}

    async def _answer(self, changes: Changes, base: str) -> dict[str, Any]:
        files = [change.to_wire() for change in changes.files]
        by_path = await tasks_that_changed(self._log, {path for file in files for path in _paths(file)})
        return {
            "changes": [{**file, "taskIds": sorted({task for path in _paths(file) for task in by_path.get(path, ())})} for file in files],
            "files": [file["path"] for file in files],
            "base": base,
            "truncated": changes.is_truncated,
            "leftOut": changes.left_out.to_wire(),
        }


def created(
    name: str, tree: str, session_id: str | None = None, task_id: str | None = None, *, left_out: Mapping[str, Any] | None = None
) -> Draft:
    """Gives the event that tells of a checkpoint."""
    told = {"leftOut": left_out} if left_out and left_out["count"] else {}
    return Draft("checkpoint.created", {"checkpointId": name, "name": name, "tree": tree, **told}, session_id, task_id)


def _age(name: str) -> str:
    """Sorts by when a checkpoint's task, or whatever it was made for, began: their ids say it."""
    return name.partition("_")[2]


def _paths(change: Mapping[str, Any]) -> Iterator[str]:
    yield change["path"]
    if "oldPath" in change:
        yield change["oldPath"]


def _name(since: str | None) -> str:
    if since is None:
        return BASE
    return f"{since}-start" if since.startswith("task_") else since


def _tree(shadow: Shadow, name: str, since: str | None) -> str:
    try:
        return shadow.tree(name)
    except NotFound as error:
        raise NotFound(f"There is no state {since!r} to compare with; name a task or a checkpoint.", details={"since": since}) from error
