"""The workspace's own settings for its agent: `opencode.json`, with comments if it likes (`opencode.jsonc`), in the folder's root or in
`.opencode`.

This reads the files; what a part of them means is the business of whoever asks for it. Keys that nobody asks for are skipped.
"""

import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

NAMES = ("opencode.jsonc", "opencode.json", ".opencode/opencode.jsonc", ".opencode/opencode.json")
"""All of these that exist count, as in OpenCode: the later ones over the earlier ones, key by key."""

MAX_BYTES = 1 << 20
"""Bytes of the file that are read: a thousand times what people write."""

# What has no end is read to the end of the file, and never again from within it: that would take time by the square of its size.
_STRING = r'("(?:\\.|[^"\\])*+"?)'
_COMMENT = re.compile(rf"{_STRING}|//[^\n]*+|/\*(?>.*?\*/)|(/\*.*+)", re.DOTALL)
_LAST_COMMA = re.compile(rf"{_STRING}|,(?=\s*+[}}\]])")


class ConfigInvalid(ValueError):
    """The file is there and cannot be used. Its message says which and why."""


def read(root: Path) -> dict[str, Any]:
    """Gives the settings of a workspace; empty when it has none. Blocks. Errors: ConfigInvalid."""
    settings: dict[str, Any] = {}
    for name in NAMES:
        try:
            with open(root / name, "rb", opener=_open) as file:
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    raise ConfigInvalid(f"{name} is no regular file.")
                content = file.read(MAX_BYTES + 1)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise ConfigInvalid(f"{name} cannot be read: {error.strerror}.") from error
        above = parse(name, content)
        try:
            settings = _merged(settings, above) if settings else above
        except RecursionError as error:
            raise ConfigInvalid(f"{name} is too deep.") from error
    return settings


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    found = dict(below)
    for key, value in above.items():
        under = found.get(key)
        found[key] = _merged(under, value) if isinstance(under, dict) and isinstance(value, dict) else value
    return found


def _open(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # a pipe would wait for its writer


def parse(name: str, content: bytes) -> dict[str, Any]:
    """Gives the object that a file of this name holds: JSON with comments and commas at the ends. Errors: ConfigInvalid."""
    if len(content) > MAX_BYTES:
        raise ConfigInvalid(f"{name} is over {MAX_BYTES} bytes.")
    plain = _COMMENT.sub(lambda found: found[1] or found[2] or " ", content.decode("utf-8-sig", "replace"))
    plain = _LAST_COMMA.sub(lambda found: found[1] or "", plain)
    try:
        value: dict[str, Any] = msgspec.json.decode(plain, type=dict[str, Any])
    except (msgspec.DecodeError, msgspec.ValidationError, RecursionError) as error:
        raise ConfigInvalid(f"{name} is no JSON object: {error}.") from error
    return value
