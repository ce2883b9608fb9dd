"""The workspace: which paths are in it."""

import os
from pathlib import Path

from agent_server.errors import Forbidden, InvalidRequest, SettingsError

NAME_MAX, PATH_MAX = 255, 4096
"""Bytes of a file's name and of a path; the kernel takes no more."""


class Workspace:
    """Resolves paths that clients and tools name. Nothing that leads out of the workspace is given, unless outside is allowed."""

    def __init__(self, root: Path, *, allow_outside: bool = False) -> None:
        """Makes the folder where there is none.

        Errors: SettingsError when that cannot be done, or it is no folder.
        """
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SettingsError(f"WORKSPACE_DIR {root} cannot be used: {error.strerror}. Name a folder that can be made.") from error
        self.root = root.resolve()
        self._allow_outside = allow_outside

    def resolve(self, path: str, *, also: Path | None = None, field: str = "path") -> Path:
        """Gives the absolute real path of `path` (relative to the workspace, or absolute); it need not exist.

        Errors: Forbidden when it leaves the workspace (by .., an absolute path elsewhere, through a symlink) and is not
        below `also`, or is in /proc; InvalidRequest for a path no file can have, which names `field`.
        """
        if path == ".":
            return self.root
        _check(path, field)
        try:
            real = (self.root / path).resolve()
        except (OSError, RuntimeError) as error:  # a loop of links
            raise InvalidRequest(f"{path} cannot be resolved: {error}.", path=field) from error
        if real.is_relative_to("/proc"):
            raise Forbidden("/proc shows other processes' memory and environment; it cannot be used.", details={"path": path})
        if real.is_relative_to(self.root) or self._allow_outside or (also is not None and real.is_relative_to(also)):
            return real
        raise Forbidden(f"{path} is outside the workspace {self.root}; name a path inside it.", details={"path": path})

    def place(self, path: str) -> Path:
        """Gives the same for what is to be removed or looked at itself: where its last part is a link, that is not followed."""
        head, name = os.path.split(path.rstrip("/"))
        if name in ("", ".", "..") or os.path.normpath(self.root / path) == str(self.root):
            return self.resolve(path)
        _check(path, "path")
        return self.resolve(head or ("/" if path.startswith("/") else ".")) / name

    def relative(self, path: Path) -> str:
        """Gives a path as clients see it: relative to the workspace where it is inside."""
        return str(path.relative_to(self.root)) if path.is_relative_to(self.root) else str(path)


def _check(path: str, field: str) -> None:
    if "\0" in path:
        raise InvalidRequest("A path cannot contain a NUL character.", path=field)
    if len(encoded := os.fsencode(path)) >= PATH_MAX or max(map(len, encoded.split(b"/"))) > NAME_MAX:
        raise InvalidRequest(f"{path[:40]}… is too long to be a path.", path=field)
