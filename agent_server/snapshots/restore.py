"""Restores a snapshot: in place, as a running server is asked to, and at an instance's first start.

What a restore does is invisible until it is all there: the files are made beside, the conversations' copies mean nothing yet.
Then the files are swapped (`swap.py`), and one transaction of the log begins the conversations anew and tells of it. A killed
server's restore is ended, one way or the other, at the next start, before anything else runs.
"""

import asyncio
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol
from urllib.parse import urlsplit

import msgspec

from agent_server import disk
from agent_server.datadir import DataDirectory, write_private
from agent_server.errors import AgentServerError, Conflict, SettingsError
from agent_server.events import Draft, LogUnavailable
from agent_server.events.log import EventLog
from agent_server.ids import new_id
from agent_server.lifecycle import Lifecycle
from agent_server.sessions import tasks
from agent_server.sessions.sessions import Sessions
from agent_server.settings import Settings
from agent_server.snapshots import Snapshots

if TYPE_CHECKING:
    from agent_server.snapshots.swap import Begun, Plan, Swap
    from agent_server.snapshots.unpack import Checked

logger = logging.getLogger(__name__)


class Restored(msgspec.Struct, frozen=True, rename="camel"):
    """What was restored: `entries` in the workspace, conversations of so many `sessions`, and the settings of the server that
    made it, which are for whoever reads them: this server's own are those of its environment."""

    snapshot_id: str
    name: str
    entries: int
    sessions: int
    configuration: Mapping[str, Any]


class Base(Protocol):
    """What records the workspace's state at the first start."""

    async def ready(self) -> None:
        """Returns when that is done, or could not be."""


class Restores:
    """The restores of one instance."""

    def __init__(
        self,
        data: DataDirectory,
        workspace: Path,
        log: EventLog,
        snapshots: Snapshots,
        lifecycle: Lifecycle,
        checkpoints: Base,
        sessions: Sessions,
    ) -> None:
        self._data = data
        self._workspace = workspace
        self._log = log
        self._snapshots = snapshots
        self._lifecycle = lifecycle
        self._checkpoints = checkpoints
        self._sessions = sessions
        self._journal = data.path / "restore.json"
        self._mark = _Mark(data.path / "first-snapshot.json")

    async def restore(self, reference: str) -> Restored:
        """Restores a snapshot in place: the workspace becomes what it was, and its conversations go on from where they were.

        Errors: NotFound; Conflict while a task is at work, or another snapshot; BadArchive, Unprocessable; OSError,
        LogUnavailable. With any of them, all is as before.
        """
        snapshot = await self._snapshots.find(reference)
        await self._sessions.ready()
        with self._snapshots.busy():
            self._lifecycle.is_restoring = True
            try:
                if not self._sessions.is_idle:
                    unfinished = await tasks.find_unfinished(self._log)
                    raise Conflict(
                        f"{len(unfinished)} tasks are processing; wait for their end or cancel them, then restore.",
                        details={"taskIds": [task.task_id for task in unfinished[:20]]},
                    )
                await self._checkpoints.ready()  # what changes are compared with is the state before
                return await self._restore(self._snapshots.archive(snapshot), snapshot.snapshot_id)
            finally:
                self._lifecycle.is_restoring = False

    async def recover(self) -> None:
        """Ends what a killed server left under way. To be called when the log is open, before anything else runs.

        Errors: LogUnavailable; SettingsError where the files are not as they were left.
        """
        if self._journal.exists():
            swap = self._swap()
            try:
                plan = swap.pending()
                is_there = plan is not None and await asyncio.to_thread(swap.recover, plan)
            except (OSError, msgspec.MsgspecError) as error:
                raise SettingsError(
                    f"A restore that was under way cannot be ended: {error}. Look at .agent-server-restore in the workspace, which holds "
                    f"what was there before (old) and after (new), then remove {self._journal} to start with the workspace as it is."
                ) from error
            if plan is not None and is_there:
                if not await self._is_told(plan):
                    await self._tell(plan)
                logger.warning("the restore of %s, which the server before this one had begun, is done", plan.name)
                self._mark.set("done", where="pending")
                swap.done()
            else:
                logger.warning("a restore that the server before this one had begun was undone")

    async def clean(self) -> None:
        """Removes what an ended restore has left in the workspace; nobody waits for it. Errors: none."""
        if (self._workspace / ".agent-server-restore").exists():
            try:
                with self._snapshots.busy():
                    await asyncio.to_thread(self._swap().clean)
            except (Conflict, OSError) as error:
                logger.warning("what a restore left in the workspace could not be removed: %s", error)

    # The first start

    def mark_first_start(self, settings: Settings) -> None:
        """Notes that an instance is to begin with a snapshot. To be called before the log is opened: an empty one is the sign."""
        if settings.snapshot_file is not None or settings.snapshot_url is not None:
            if self._data.is_fresh:
                self._mark.set("pending", where=None)
            elif self._mark.state is None:
                logger.warning("SNAPSHOT_FILE and SNAPSHOT_URL are for the first start alone; this instance has begun without")

    async def first_start(self, settings: Settings) -> None:
        """Restores the snapshot that an instance is to begin with, once.

        Errors: SettingsError: the instance must not go on without it, and tries again at the next start.
        """
        if self._mark.state != "pending" or (settings.snapshot_file is None and settings.snapshot_url is None):
            return
        name = "SNAPSHOT_FILE" if settings.snapshot_file is not None else "SNAPSHOT_URL"
        shown = str(settings.snapshot_file or urlsplit(settings.snapshot_url or "").hostname)  # a URL may hold a signature
        try:
            restored = await self._first(settings)
        except (AgentServerError, OSError) as error:
            what = error.message if isinstance(error, AgentServerError) else error.strerror
            raise SettingsError(
                f"{name} ({shown}) could not be restored: {what} Nothing was changed; the next start tries again."
            ) from error
        self._mark.set("done", where="pending")
        logger.info("this instance begins with the snapshot %s", restored.name)

    async def _first(self, settings: Settings) -> Restored:
        if settings.snapshot_file is not None:
            return await self._restore(settings.snapshot_file)
        assert settings.snapshot_url is not None  # noqa: S101  # as first_start made sure
        part = await self._snapshots.download(settings.snapshot_url)
        try:
            return await self._restore(part)
        finally:
            part.unlink(missing_ok=True)

    # A restore

    async def _restore(self, archive: Path, snapshot_id: str | None = None) -> Restored:
        # Imported here, where they are first needed: compression and its kin are not for every start.
        from agent_server.snapshots import conversations, unpack
        from agent_server.snapshots import swap as swapping  # as above
        from agent_server.snapshots.pack import Stopped  # as above

        swap, lines = self._swap(), self._data.path / "restore.jsonl"
        try:
            try:
                checked, sessions = await asyncio.to_thread(self._stage, swap, archive, lines)
            except Stopped:
                raise Conflict("The server stopped while the snapshot was restored; nothing was changed.") from None
            manifest: unpack.Manifest = checked.manifest
            plan = swapping.Plan(new_id("rest"), snapshot_id or manifest.snapshot_id, manifest.name, checked.entries, sessions)
            await conversations.copy(self._log, lines, plan.restore_id)
            await asyncio.to_thread(swap.run, plan)
            try:
                await self._tell(plan)
            except LogUnavailable:
                await asyncio.to_thread(swap.revert, plan)
                raise
            self._mark.set("done", where="pending")
            swap.done()
        finally:
            lines.unlink(missing_ok=True)
            if not self._journal.exists():
                await asyncio.to_thread(swap.clean)
        return Restored(plan.snapshot_id, plan.name, plan.entries, len(sessions), manifest.configuration)

    def _stage(self, swap: "Swap", archive: Path, lines: Path) -> "tuple[Checked, list[Begun]]":
        from agent_server.snapshots import conversations, unpack  # as in _restore

        with lines.open("wb") as out:
            check = conversations.Check(out)
            sink = unpack.Folder(swap.prepare())
            try:
                checked = unpack.unpack(archive, sink, check, self._snapshots.stop, room=self._snapshots.room())
            finally:
                sink.close()
        disk.sync([self._workspace, self._data.path])  # before the old files may go, the new ones are there
        return checked, check.sessions

    async def _tell(self, plan: "Plan") -> None:
        begun = {"restoreId": plan.restore_id, "snapshotId": plan.snapshot_id}
        told = {**begun, "name": plan.name, "entries": plan.entries, "sessions": len(plan.sessions)}
        drafts = [Draft("session.restored", {**begun, **_shown(one)}, one.session_id) for one in plan.sessions]
        await self._log.append(*drafts, Draft("snapshot.restored", told, sync=True))

    async def _is_told(self, plan: "Plan") -> bool:
        told = await self._log.query(lambda db: db.execute("SELECT data FROM events WHERE type = 'snapshot.restored'").fetchall())
        return any(msgspec.json.decode(data)["restoreId"] == plan.restore_id for (data,) in told)

    def _swap(self) -> "Swap":
        from agent_server.snapshots.swap import Swap  # as in _restore

        return Swap(self._workspace, self._journal)


def _shown(one: "Begun") -> dict[str, Any]:
    parent = {"parentSessionId": one.parent_session_id} if one.parent_session_id is not None else {}
    return {"title": one.title, "agent": one.agent, **parent}


class _Mark:
    """Whether the snapshot of the first start is still to be restored: a file, so that it is known before the log is."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def state(self) -> Literal["pending", "done"] | None:
        try:
            state: Literal["pending", "done"] = msgspec.json.decode(self._path.read_bytes())["state"]
        except FileNotFoundError:
            return None
        return state

    def set(self, state: Literal["pending", "done"], *, where: Literal["pending"] | None) -> None:
        """Changes it, where it is `where`."""
        if self.state == where:
            write_private(self._path, msgspec.json.encode({"state": state}))
