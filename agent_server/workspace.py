"""The workspace: which paths are in it."""

from pathlib import Path

from agent_server.errors import Forbidden, InvalidRequest


class Workspace:
    """Resolves paths that clients and tools name. Nothing that leads out of the workspace is given, unless outside is allowed."""

    def __init__(self, root: Path, *, allow_outside: bool = False) -> None:
        root.mkdir(parents=True, exist_ok=True)
        self.root = root.resolve()
        self._allow_outside = allow_outside

    def resolve(self, path: str, *, also: Path | None = None) -> Path:
        """Gives the absolute real path of `path` (relative to the workspace, or absolute); it need not exist.

        Errors: Forbidden when it leaves the workspace (by .., an absolute path elsewhere, through a symlink) and is not
        below `also`, or is in /proc; InvalidRequest for a path no file can have.
        """
        if path == ".":
            return self.root
        if "\0" in path:
            raise InvalidRequest("A path cannot contain a NUL character.", path="path")
        try:
            real = (self.root / path).resolve()
        except (OSError, RuntimeError) as error:  # a loop of links
            raise InvalidRequest(f"{path} cannot be resolved: {error}.", path="path") from error
        if real.is_relative_to("/proc"):
            raise Forbidden("/proc shows other processes' memory and environment; it cannot be used.", details={"path": path})
        if real.is_relative_to(self.root) or self._allow_outside or (also is not None and real.is_relative_to(also)):
            return real
        raise Forbidden(f"{path} is outside the workspace {self.root}; name a path inside it.", details={"path": path})

    def relative(self, path: Path) -> str:
        """Gives a path as clients see it: relative to the workspace where it is inside."""
        return str(path.relative_to(self.root)) if path.is_relative_to(self.root) else str(path)
