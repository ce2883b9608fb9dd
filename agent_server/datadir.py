"""The data directory: who holds it, and the few things in it that are no events.

events.db        the event log
snapshots/       the snapshots
restore.json     what is left to do of a restore; first-snapshot.json whether that of the first start is done
lock             held by the server that runs; names it
token.sha256     hash of the token we made ourselves
identity.json    the instance's id, the mark of its commands, how often it started
integrations.json, environment.json
                 what clients have set of integrations, and for commands
outputs/         outputs too long for a reply
patches/         what edits and patches at work have left half-written
shadow/          the shadow repository
tools/           of unfinished tasks, the configuration of their own tools that no event may hold
ignores/         an empty repository, in which git tells what is ignored
staging/         names of what is half-written in the workspace
"""

import asyncio
import fcntl
import hashlib
import hmac
import os
import re
import time
from pathlib import Path
from typing import IO

import msgspec

from agent_server.errors import SettingsError, Unprocessable
from agent_server.ids import new_id
from agent_server.settings import Settings, new_token


class Identity(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """Who this instance is. `mark` is in the environment of its commands; `starts` counts this start too.

    An id or a name that a fork was given stands against the one in its environment, which is that of its origin, `replaced_id`
    and `replaced_name`, until that changes.
    """

    instance_id: str
    mark: str
    starts: int
    instance_name: str | None = None
    replaced_id: str | None = None
    replaced_name: str | None = None


class DataDirectory:
    """An open, locked data directory. The lock is the kernel's: it goes with the process, however that ends."""

    def __init__(self, settings: Settings) -> None:
        """Opens it.

        Errors: SettingsError when it cannot be made or written, or another server holds it.
        """
        self.path = settings.data
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            for folder in (self.outputs, self.patch_notes, self.path / "shadow"):
                folder.mkdir(mode=0o700, exist_ok=True)
            # The folder itself may be a mounted one that others can enter. SQLite gives its other files the mode of this one.
            (self.path / "events.db").touch(mode=0o600)
            self.is_fresh = (self.path / "events.db").stat().st_size == 0
            self._lock = self._claim(settings)
            try:
                self.identity = self._identify(settings)
            except BaseException:
                self._lock.close()
                raise
        except OSError as error:
            raise SettingsError(f"DATA_DIR {self.path} cannot be used: {error.strerror}. Name a folder that can be written.") from error

    @property
    def outputs(self) -> Path:
        return self.path / "outputs"

    @property
    def patch_notes(self) -> Path:
        return self.path / "patches"

    def _claim(self, settings: Settings) -> IO[bytes]:
        (self.path / "lock").touch(mode=0o600)
        lock = (self.path / "lock").open("ab+", buffering=0)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            lock.truncate(0)
            since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            lock.write(f"agent-server process {os.getpid()} on port {settings.port}, since {since}\n".encode())
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read().decode(errors="replace").strip() or "another server"
            lock.close()
            raise SettingsError(f"DATA_DIR {self.path} is held by {holder}. Stop it, or name another DATA_DIR.") from None
        except BaseException:
            lock.close()
            raise
        return lock

    def _identify(self, settings: Settings) -> Identity:
        path = self.path / "identity.json"
        try:
            known = msgspec.json.decode(path.read_bytes(), type=Identity)
        except FileNotFoundError:
            known = Identity(new_id("inst"), new_id("srv"), 0)
        except msgspec.MsgspecError as error:
            raise SettingsError(f"{path} in DATA_DIR is damaged: {error}. Remove it; the instance gets a new id then.") from error
        known = msgspec.structs.replace(known, starts=known.starts + 1)
        write_private(path, msgspec.json.encode(known))
        self._kept, self._settings = known, settings
        return self._effective()

    def _effective(self) -> Identity:
        kept, settings = self._kept, self._settings
        given_id = settings.instance_id if settings.instance_id != kept.replaced_id else None
        given_name = settings.instance_name if settings.instance_name != kept.replaced_name else None
        return msgspec.structs.replace(kept, instance_id=given_id or kept.instance_id, instance_name=given_name or kept.instance_name)

    def adopt(self, instance_id: str | None, instance_name: str | None) -> None:
        """Gives a fork its own id and name, where one is given, for good. Blocks. Errors: OSError."""
        kept = self._kept
        if instance_id is not None:
            kept = msgspec.structs.replace(kept, instance_id=instance_id, replaced_id=self._settings.instance_id)
        if instance_name is not None:
            kept = msgspec.structs.replace(kept, instance_name=instance_name, replaced_name=self._settings.instance_name)
        write_private(self.path / "identity.json", msgspec.json.encode(kept))
        self._kept = kept
        self.identity = self._effective()

    def token(self, settings: Settings) -> tuple[bytes, str | None]:
        """Gives the SHA-256 of the token that requests must have, and the token itself if it was made just now."""
        if settings.token is not None:
            return hashlib.sha256(settings.token.encode()).digest(), None
        path = self.path / "token.sha256"
        if path.exists():
            stored = path.read_text(errors="replace").strip()
            if not re.fullmatch("[0-9a-f]{64}", stored):
                raise SettingsError(f"{path} in DATA_DIR is damaged: it holds no SHA-256. Remove it; a token is made anew then.")
            return bytes.fromhex(stored), None
        token = new_token()
        digest = hashlib.sha256(token.encode()).digest()
        write_private(path, digest.hex().encode())
        return digest, token

    def close(self) -> None:
        self._lock.close()


def write_private(path: Path, data: bytes) -> None:
    """Replaces a file whole, readable by its owner alone, and has it on disk before it returns."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


async def keep_private(path: Path, data: bytes) -> None:
    """Does `write_private` in a thread. Errors: Unprocessable, and what was there before stays."""
    try:
        await asyncio.to_thread(write_private, path, data)
    except OSError as error:
        told = (
            f"This cannot be kept on the disk of DATA_DIR ({error.strerror}), and nothing is changed; free some space, and send it again."
        )
        raise Unprocessable(told, details={"reason": "disk"}) from error


def matches(token: str, digest: bytes) -> bool:
    """Compares a token with the hash of the right one, in constant time."""
    return hmac.compare_digest(hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest(), digest)
