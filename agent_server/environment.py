"""The variables that clients set for commands to come: kept across restarts, readable by the server alone."""

import asyncio
import re
from collections.abc import Mapping
from pathlib import Path

import msgspec

from agent_server.commands.processes import Processes
from agent_server.datadir import keep_private
from agent_server.errors import InvalidRequest, SettingsError, Unprocessable
from agent_server.redaction import Secrets
from agent_server.settings import is_credential

RESERVED = "AGENT_SERVER_"
"""The beginning of the names that are the server's: one of them marks its commands."""

LONGEST_NAME = 256
LONGEST_VALUE = 100_000
"""Bytes of a value: the kernel passes 128 KiB with its name."""

MOST_BYTES = 512 << 10
"""Bytes of all names and values: the kernel passes about 2 MiB, of which a command's arguments need some."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class Environment:
    """The variables, in a file of mode 0600; they go over the server's own, and under those of a request."""

    def __init__(self, path: Path, secrets: Secrets, processes: Processes) -> None:
        """Reads them.

        Errors: SettingsError when the file is damaged.
        """
        self._path = path
        self._secrets = secrets
        self._processes = processes
        self._changing = asyncio.Lock()  # what is on disk is what is in memory
        self.variables: Mapping[str, str] = {}
        try:
            self._take(msgspec.json.decode(path.read_bytes(), type=dict[str, str]))
        except FileNotFoundError:
            pass
        except msgspec.MsgspecError as error:
            raise SettingsError(f"{path} in DATA_DIR is damaged: {error}. Remove it; commands get no further variables then.") from error

    async def change(self, changes: Mapping[str, str | None]) -> None:
        """Sets variables, and removes those that are None; commands that start later have them. All, or with an error none.

        Errors: InvalidRequest; Unprocessable when they are too large together, or cannot be kept.
        """
        for name, value in changes.items():
            _check(name, value)
        async with self._changing:
            merged = {**self.variables, **changes}
            variables = {name: value for name, value in merged.items() if value is not None}
            size = sum(len(name.encode()) + len(value.encode()) for name, value in variables.items())
            if size > MOST_BYTES:
                raise Unprocessable(f"The variables have {size} bytes together; there may be {MOST_BYTES}: remove some, or use a file.")
            # Before they are on disk: nothing may be said of them unmasked.
            self._mask(variables)
            await keep_private(self._path, msgspec.json.encode(variables))
            self._take(variables)

    def _take(self, variables: dict[str, str]) -> None:
        self._mask(variables)
        self.variables = variables
        self._processes.set_variables(variables)

    def _mask(self, variables: Mapping[str, str]) -> None:
        self._secrets.add(value for name, value in variables.items() if is_credential(name))


def _check(name: str, value: str | None) -> None:
    shown = name[:64]
    path = f"env.{shown}"
    if len(name) > LONGEST_NAME or not _NAME.fullmatch(name):
        raise InvalidRequest(f"env: {shown!r} cannot be a variable's name; use letters, digits and underscores.", path="env")
    if name.upper().startswith(RESERVED):
        raise InvalidRequest(f"{path}: names that begin with {RESERVED} are the server's own; choose another.", path=path)
    if value is None:
        return
    if "\0" in value:
        raise InvalidRequest(f"{path}: no variable can hold a NUL character.", path=path)
    if len(value.encode("utf-8", "replace")) > LONGEST_VALUE:
        raise InvalidRequest(f"{path}: it is over {LONGEST_VALUE} bytes; use a file.", path=path)
