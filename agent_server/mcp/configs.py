"""The MCP servers that a workspace configures: in `.mcp.json`, as Claude Code and others have it, and in `opencode.json`.

Variables in them come from the environment that commands get, never from the server's own. What cannot be used is left out, and said.
"""

import codecs
import os
import re
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from agent_server import workspace_config
from agent_server.calling.custom import McpConfig, OAuth, check_mcp
from agent_server.errors import InvalidRequest

FILE = ".mcp.json"
MAX_BYTES = 1 << 20
"""Bytes of the file that are read: a thousand times what people write."""

MAX_SERVERS = 32
"""Servers of a workspace: each may be a process."""

MAX_TIMEOUT_MS = 86_400_000
"""A day, in milliseconds: the longest timeout that a server may be given."""

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")
_ENV = re.compile(r"\{env:([A-Za-z_][A-Za-z0-9_]*)\}|\{file:[^}]*\}")


class Found(msgspec.Struct, frozen=True):
    """What a workspace configures, and in words what is left out of it."""

    servers: list[McpConfig]
    complaints: list[str]


class _Plain(msgspec.Struct, frozen=True):
    """An entry of `.mcp.json`."""

    type: Literal["stdio", "http", "streamable-http", "streamableHttp", "sse"] | None = None
    command: str | None = None
    args: list[str] = []
    env: dict[str, str] = {}
    cwd: str | None = None
    url: str | None = None
    headers: dict[str, str] = {}
    timeout: int | None = None
    oauth: OAuth | bool = True
    enabled: bool = True
    disabled: bool = False


class _Opencode(msgspec.Struct, frozen=True):
    """An entry of `mcp` in `opencode.json`."""

    type: Literal["local", "remote"] | None = None
    command: list[str] = []
    environment: dict[str, str] = {}
    cwd: str | None = None
    url: str | None = None
    headers: dict[str, str] = {}
    timeout: int | None = None
    oauth: OAuth | bool = True
    enabled: bool = True


class _Unusable(Exception):
    """An entry that cannot be used. Its message says why."""


def read(root: Path, environment: Mapping[str, str]) -> Found:
    """Gives the servers that a workspace configures; of two with one name that of `.mcp.json`. Blocks. Errors: none."""
    servers: dict[str, McpConfig] = {}
    complaints: list[str] = []
    for file, entries, make in ((FILE, _entries, _plain), ("opencode.json", _opencode_entries, _opencode)):
        try:
            found = entries(root)
        except _Unusable as error:
            complaints.append(str(error))
            continue
        for name, entry in found.items():
            if name in servers or _is_off(entry):
                continue
            try:
                servers[name] = _checked(make(name, entry, environment))
            except _Unusable as error:
                complaints.append(f"{name[:64]!r} in {file}: {error}.")
    if len(servers) > MAX_SERVERS:
        complaints.append(f"there are {len(servers)}, of which {MAX_SERVERS} are used.")
    return Found([servers[name] for name in sorted(servers)][:MAX_SERVERS], complaints)


def _is_off(entry: Any) -> bool:
    return isinstance(entry, dict) and (entry.get("enabled") is False or entry.get("disabled") is True)


def _entries(root: Path) -> dict[str, Any]:
    content = _content(root / FILE)
    if content is None:
        return {}
    try:
        value = msgspec.json.decode(content.removeprefix(codecs.BOM_UTF8), type=dict[str, Any])
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError, RecursionError) as error:
        raise _Unusable(f"{FILE} is no JSON object: {error}.") from error
    servers = value.get("mcpServers", {})
    if not isinstance(servers, dict):
        raise _Unusable(f"mcpServers in {FILE} must be an object with a server under each name.")
    return servers


def _content(path: Path) -> bytes | None:
    try:
        number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(number, "rb") as file:
            if not stat.S_ISREG(os.fstat(number).st_mode):
                raise _Unusable(f"{FILE} is no file.")
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _Unusable(f"{FILE} cannot be read: {error.strerror}.") from error
    if len(content) > MAX_BYTES:
        raise _Unusable(f"{FILE} is over {MAX_BYTES} bytes.")
    return content


def _opencode_entries(root: Path) -> dict[str, Any]:
    try:
        servers = workspace_config.read(root).get("mcp", {})
    except workspace_config.ConfigInvalid as error:
        raise _Unusable(str(error)) from error
    if not isinstance(servers, dict):
        raise _Unusable("mcp in opencode.json must be an object with a server under each name.")
    return servers


def _plain(name: str, entry: Any, environment: Mapping[str, str]) -> McpConfig:
    given = _convert(entry, _Plain)
    fill = _filling(_VARIABLE, environment)
    kind: Literal["stdio", "http", "sse"] | None = (
        "http" if given.type == "streamable-http" or given.type == "streamableHttp" else given.type
    )
    return McpConfig(
        name=name,
        command=None if given.command is None else fill(given.command),
        args=[fill(arg) for arg in given.args],
        env={key: fill(value) for key, value in given.env.items()},
        cwd=None if given.cwd is None else fill(given.cwd),
        url=None if given.url is None else fill(given.url),
        headers={key: fill(value) for key, value in given.headers.items()},
        type=kind,
        timeout=given.timeout,
        oauth=_filled(given.oauth, fill),
    )


def _opencode(name: str, entry: Any, environment: Mapping[str, str]) -> McpConfig:
    given = _convert(entry, _Opencode)
    if given.type is None:
        raise _Unusable("it needs a type, local or remote")
    fill = _filling(_ENV, environment)
    if given.type == "remote":
        headers = {key: fill(value) for key, value in given.headers.items()}
        return McpConfig(name, url=fill(given.url or ""), headers=headers, timeout=given.timeout, oauth=_filled(given.oauth, fill))
    if not given.command:
        raise _Unusable("a local server needs a command, as a list")
    command, *args = map(fill, given.command)
    env = {key: fill(value) for key, value in given.environment.items()}
    return McpConfig(name, command, args, env, None if given.cwd is None else fill(given.cwd), timeout=given.timeout)


def _filled(oauth: OAuth | bool, fill: Callable[[str], str]) -> OAuth | bool:
    if isinstance(oauth, bool):
        return oauth
    return msgspec.convert({name: fill(value) for name, value in msgspec.to_builtins(oauth).items()}, OAuth)


def _convert(entry: Any, kind: type[Any]) -> Any:
    try:
        return msgspec.convert(entry, kind)
    except msgspec.ValidationError as error:
        raise _Unusable(str(error)) from error


def _filling(pattern: re.Pattern[str], environment: Mapping[str, str]) -> Callable[[str], str]:
    def value(found: re.Match[str]) -> str:
        name, default = found[1], found[2] if found.re.groups > 1 else None
        if name is None:
            raise _Unusable("{file:…} is not read here; write {env:NAME}, and set it with PATCH /env")
        text = environment.get(name)
        if not text and default is not None:
            return default
        if text is None:
            raise _Unusable(f"it needs the variable {name}, which commands do not have; set it with PATCH /env")
        return text

    return lambda text: pattern.sub(value, text)


def _checked(config: McpConfig) -> McpConfig:
    if config.timeout is not None and not 1 <= config.timeout <= MAX_TIMEOUT_MS:
        raise _Unusable(f"its timeout must be from 1 to {MAX_TIMEOUT_MS} milliseconds")
    try:
        check_mcp(msgspec.to_builtins(config), "entry")
    except InvalidRequest as error:
        raise _Unusable(error.message.rstrip(".")) from error
    if config.command == "":
        raise _Unusable("its command is empty")
    return config
