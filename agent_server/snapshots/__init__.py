"""Snapshots: the workspace, the conversations and what the server was told to be, as one file that another server can take.

What is kept is in a folder of the data directory: `<id>.tar.gz` and, written last, `<id>.json`, without which it does not count.
No secret is in them, but for what the workspace itself holds. Restoring is `restore.py`.
"""

import asyncio
import contextlib
import os
import re
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from io import BufferedWriter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from agent_server import __version__, disk
from agent_server.datadir import write_private
from agent_server.errors import Conflict, InvalidRequest, NotFound, Unprocessable
from agent_server.events import Draft
from agent_server.events.log import EventLog
from agent_server.ids import new_id
from agent_server.pause import Pause
from agent_server.redaction import Secrets

if TYPE_CHECKING:
    from agent_server.snapshots.unpack import Manifest

ID = re.compile(r"snap_[0-9a-z]{26}")
NAME = re.compile(r"(?!snap_)[^/\x00-\x1f\x7f]{1,128}")

EXPANSION = 4
"""How many times the quota the contents of a snapshot may have: bounds the time that hostile ones take."""

WRITE_BYTES = 1 << 20
"""Bytes of an upload that are gathered for one write."""

SETTLE = 10.0
"""Seconds that tool calls get to end before the workspace is read all the same."""


class Snapshot(msgspec.Struct, frozen=True, rename="camel"):
    """What is known of a snapshot. `size` in bytes, `created_at` in Unix milliseconds; the instance is the one that made it."""

    snapshot_id: str
    name: str
    size: int
    created_at: int
    instance_id: str = ""
    instance_name: str = ""


class Snapshots:
    """The snapshots of one instance. One is made, taken in or restored at a time.

    `configuration` gives what is written of the server's settings: no secrets.
    """

    def __init__(
        self,
        folder: Path,
        workspace: Path,
        log: EventLog,
        secrets: Secrets,
        pause: Pause,
        configuration: Callable[[], Mapping[str, Any]],
        *,
        most: int,
        quota: int,
    ) -> None:
        self.folder = folder
        self.stop = threading.Event()
        self._workspace = workspace
        self._log = log
        self._secrets = secrets
        self._pause = pause
        self._configuration = configuration
        self._most = most
        self._quota = quota
        self._is_busy = False

    def sweep(self) -> None:
        """Removes what a killed server has left unfinished. Blocks for a moment. Errors: none."""
        with contextlib.suppress(OSError):
            for path in self.folder.iterdir():
                if path.name.endswith(".part") or (path.name.endswith(".tar.gz") and not self._card(path.name[:-7]).exists()):
                    path.unlink()

    async def all(self) -> list[Snapshot]:
        """Gives them, newest first."""
        return await asyncio.to_thread(self._all)

    async def find(self, reference: str) -> Snapshot:
        """Gives the one with this id or name. Errors: NotFound (SNAPSHOT_NOT_FOUND)."""
        for snapshot in await self.all():
            if reference in (snapshot.snapshot_id, snapshot.name):
                return snapshot
        raise NotFound(
            f"There is no snapshot {reference[:128]!r}; GET /snapshots lists those there are.",
            code="SNAPSHOT_NOT_FOUND",
            details={"snapshotId": reference[:128]},
        )

    def archive(self, snapshot: Snapshot) -> Path:
        return self.folder / f"{snapshot.snapshot_id}.tar.gz"

    async def create(self, name: str | None) -> Snapshot:
        """Makes a snapshot. Tasks wait at a safe point meanwhile; commands that run are not waited for.

        Errors: Conflict for a name that is taken, or another one being made; Unprocessable where there is no room;
        LogUnavailable, OSError. Whatever happens, there is either a whole one or none.
        """
        snapshot_id = new_id("snap")
        with self.busy():
            await self._check_room(name)
            self._pause.hold("snapshot", breaks_calls=False)
            try:
                await self._come_to_rest()
                now = time.time_ns() // 1_000_000
                return await self._create(Snapshot(snapshot_id, name or snapshot_id, 0, now, *_made_by(self._configuration())))
            finally:
                self._pause.release("snapshot")

    async def receive(self, reference: str, chunks: AsyncIterator[bytes]) -> Snapshot:
        """Takes an archive in, under the id or the name in `reference`. It counts when all of it was checked.

        Errors: BadArchive, and those of `create`; InvalidRequest for what can be neither id nor name.
        """
        is_id = ID.fullmatch(reference) is not None
        if not is_id and not NAME.fullmatch(reference):
            raise InvalidRequest("A snapshot's name has 1 to 128 characters without '/', and does not begin with snap_.", path="id")
        with self.busy():
            await self._check_room(reference)
            snapshot_id = reference if is_id else new_id("snap")
            part = self._part(snapshot_id)
            try:
                await self._write(part, chunks)
                manifest = await asyncio.to_thread(self._check, part)
                name = await self._free_name(manifest.name, snapshot_id) if is_id else reference
                made_by = _made_by(manifest.configuration)
                snapshot = Snapshot(snapshot_id, name, part.stat().st_size, manifest.created_at, *made_by)
                await asyncio.to_thread(self._keep, part, snapshot)
            finally:
                part.unlink(missing_ok=True)
        await self._log.append(
            Draft("snapshot.created", {"snapshotId": snapshot.snapshot_id, "name": snapshot.name, "size": snapshot.size})
        )
        return snapshot

    async def download(self, url: str) -> Path:
        """Fetches an archive and gives the file it is in, which is the caller's to remove. It is not checked.

        Errors: DownloadFailed, Unprocessable, OSError.
        """
        download = await asyncio.to_thread(_import_download)
        self.folder.mkdir(mode=0o700, exist_ok=True)
        part = self._part("download")
        try:
            with _new(part) as file:

                def begin() -> Callable[[bytes], object]:
                    file.seek(0)
                    file.truncate()
                    bounded = _Bounded(file, part, self._left())

                    def write(chunk: bytes) -> None:
                        if self.stop.is_set():
                            raise Conflict("The server stopped while the snapshot was fetched.")
                        bounded.write(chunk)

                    return write

                await download(url, begin)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        return part

    async def delete(self, reference: str) -> Snapshot:
        """Deletes one. Errors: NotFound; Conflict while one is restored."""
        snapshot = await self.find(reference)
        with self.busy():
            self._card(snapshot.snapshot_id).unlink(missing_ok=True)
            self.archive(snapshot).unlink(missing_ok=True)
        await self._log.append(Draft("snapshot.deleted", {"snapshotId": snapshot.snapshot_id, "name": snapshot.name}))
        return snapshot

    @contextlib.contextmanager
    def busy(self) -> Iterator[None]:
        """Is around whatever makes, changes or reads a snapshot as a whole. Errors: Conflict while another one is at it."""
        if self._is_busy:
            raise Conflict("Another snapshot is being made or restored; send the request again when it is done.")
        self._is_busy = True
        try:
            yield
        finally:
            self._is_busy = False

    def room(self) -> int:
        """Gives how many bytes a snapshot's contents may have here."""
        return min(max(0, disk.free(self._workspace) - disk.RESERVE), EXPANSION * self._quota)

    def close(self) -> None:
        """Ends the work of threads. May be called twice."""
        self.stop.set()

    # Making one

    async def _create(self, snapshot: Snapshot) -> Snapshot:
        # Imported here, where they are first needed: compression and its kin are not for every start.
        from agent_server.snapshots import conversations

        part = self._part(snapshot.snapshot_id)
        lines = part.with_suffix(".jsonl.part")
        try:
            with _new(lines) as out:
                await conversations.save(self._log, self._secrets, out)
            await asyncio.to_thread(self._pack, part, lines, snapshot)
            snapshot = msgspec.structs.replace(snapshot, size=part.stat().st_size)
            await asyncio.to_thread(self._keep, part, snapshot)
        finally:
            part.unlink(missing_ok=True)
            lines.unlink(missing_ok=True)
        data = {"snapshotId": snapshot.snapshot_id, "name": snapshot.name, "size": snapshot.size}
        await self._log.append(Draft("snapshot.created", data))
        return snapshot

    def _pack(self, part: Path, lines: Path, snapshot: Snapshot) -> None:
        from agent_server.snapshots import pack, unpack  # as in _create

        manifest = unpack.Manifest(
            unpack.FORMAT,
            unpack.VERSION,
            snapshot.snapshot_id,
            snapshot.name,
            snapshot.created_at,
            __version__,
            dict(self._configuration()),
        )
        encoded, _ = self._secrets.encode(manifest)
        with _new(part) as file:
            out = _Bounded(file, part, self._left())
            try:
                pack.pack(out, encoded, lines, self._workspace, self.stop)  # type: ignore[arg-type]  # gzip only writes
            except pack.Stopped:
                raise Conflict("The server stopped while the snapshot was made; make it again.") from None
            file.flush()
            os.fsync(file.fileno())

    def _check(self, part: Path) -> "Manifest":
        from agent_server.snapshots import conversations, pack, unpack  # as in _create

        try:
            return unpack.unpack(part, unpack.Nothing(), conversations.Check(), self.stop, room=self.room()).manifest
        except pack.Stopped:
            raise Conflict("The server stopped while the snapshot was checked; send it again.") from None

    async def _write(self, part: Path, chunks: AsyncIterator[bytes]) -> None:
        with _new(part) as file:
            out = _Bounded(file, part, self._left())
            gathered = bytearray()
            async for chunk in chunks:
                gathered += chunk
                if len(gathered) >= WRITE_BYTES:
                    await asyncio.to_thread(out.write, bytes(gathered))
                    gathered.clear()
            await asyncio.to_thread(out.write, bytes(gathered))
            await asyncio.to_thread(os.fsync, file.fileno())

    async def _come_to_rest(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SETTLE):
                await self._pause.still()

    async def _check_room(self, name: str | None) -> None:
        self.folder.mkdir(mode=0o700, exist_ok=True)
        known = await self.all()
        if name is not None:
            await self._free_name(name, name)
        if len(known) >= self._most:
            raise Unprocessable(
                f"There are {self._most} snapshots, as many as are kept; delete one, or raise MAX_SNAPSHOTS.",
                details={"reason": "max_snapshots"},
            )
        if disk.free(self.folder) < disk.RESERVE:
            raise Unprocessable("The disk of DATA_DIR is nearly full; free some space first.", details={"reason": "disk"})

    async def _free_name(self, name: str, snapshot_id: str) -> str:
        if any(name == one.name or snapshot_id == one.snapshot_id for one in await self.all()):
            raise Conflict(f"There is a snapshot {name!r} already; delete it, or use another name.")
        return name

    def _left(self) -> int:
        return self._quota - sum(snapshot.size for snapshot in self._all())

    # The folder

    def _all(self) -> list[Snapshot]:
        found: list[Snapshot] = []
        with contextlib.suppress(FileNotFoundError):
            for path in self.folder.glob("snap_*.json"):
                with contextlib.suppress(OSError, msgspec.MsgspecError):  # deleted just now, or damaged: then it does not count
                    found.append(msgspec.json.decode(path.read_bytes(), type=Snapshot))
        return sorted(found, key=lambda snapshot: (snapshot.created_at, snapshot.snapshot_id), reverse=True)

    def _card(self, snapshot_id: str) -> Path:
        return self.folder / f"{snapshot_id}.json"

    def _part(self, snapshot_id: str) -> Path:
        return self.folder / f"{snapshot_id}.part"

    def _keep(self, part: Path, snapshot: Snapshot) -> None:
        part.replace(self.archive(snapshot))
        write_private(self._card(snapshot.snapshot_id), self._secrets.encode(snapshot)[0])


def _made_by(configuration: Mapping[str, Any]) -> tuple[str, str]:
    """Gives the id and the name of the instance that a configuration is of."""
    return str(configuration.get("instanceId") or ""), str(configuration.get("instanceName") or "")


class _Bounded:
    """Writes to a file as long as quota and disk have room. Errors: Unprocessable."""

    def __init__(self, file: BufferedWriter, path: Path, left: int) -> None:
        self._file = file
        self._path = path
        self._left = left
        self._unmeasured = 0

    def write(self, data: bytes) -> int:
        self._left -= len(data)
        self._unmeasured += len(data)
        if self._left < 0:
            raise Unprocessable(
                "The snapshots would have more than MAX_SNAPSHOT_BYTES together; delete one, or raise it.",
                details={"reason": "max_snapshot_bytes"},
            )
        if self._unmeasured >= disk.RESERVE // 4:
            self._unmeasured = 0
            if disk.free(self._path) < disk.RESERVE:
                raise Unprocessable("The disk of DATA_DIR is nearly full; free some space first.", details={"reason": "disk"})
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()


def _import_download() -> Callable[[str, Callable[[], Callable[[bytes], object]]], Awaitable[None]]:
    # In a thread: httpx takes 190 ms.
    from agent_server.snapshots.download import download

    return download


def _new(path: Path) -> BufferedWriter:
    """Opens a file that only its owner reads."""
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb")
