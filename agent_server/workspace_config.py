"""The workspace's own settings for its agent: `opencode.json`, in the folder's root, with comments if it likes (`opencode.jsonc`).

This reads the file; what a part of it means is the business of whoever asks for it. Keys that nobody asks for are skipped.
"""

import os
import re
import stat
from pathlib import Path
from typing import Any

import msgspec

NAMES = ("opencode.json", "opencode.jsonc")
"""The first of these that exists counts."""

MAX_BYTES = 1 << 20
"""Bytes of the file that are read: a thousand times what people write."""

_STRING = r'("(?:\\.|[^"\\])*")'
_COMMENT = re.compile(rf"{_STRING}|//[^\n]*|/\*.*?\*/", re.DOTALL)
_LAST_COMMA = re.compile(rf"{_STRING}|,(?=\s*[}}\]])")


class ConfigInvalid(ValueError):
    """The file is there and cannot be used. Its message says which and why."""


def read(root: Path) -> dict[str, Any]:
    """Gives the settings of a workspace; empty when it has none. Blocks. Errors: ConfigInvalid."""
    for name in NAMES:
        try:
            with open(root / name, "rb", opener=_open) as file:
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    raise ConfigInvalid(f"{name} is no regular file.")
                content = file.read(MAX_BYTES + 1)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise ConfigInvalid(f"{name} cannot be read: {error.strerror}.") from error
        return _parse(name, content)
    return {}


def _open(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # a pipe would wait for its writer


def _parse(name: str, content: bytes) -> dict[str, Any]:
    if len(content) > MAX_BYTES:
        raise ConfigInvalid(f"{name} is over {MAX_BYTES} bytes.")
    plain = _COMMENT.sub(lambda found: found[1] or " ", content.decode("utf-8-sig", "replace"))
    plain = _LAST_COMMA.sub(lambda found: found[1] or "", plain)
    try:
        value: dict[str, Any] = msgspec.json.decode(plain, type=dict[str, Any])
    except (msgspec.DecodeError, msgspec.ValidationError, RecursionError) as error:
        raise ConfigInvalid(f"{name} is no JSON object: {error}.") from error
    return value
