"""The shell that commands run in: bash, by its static build where the machine has one (Debian's package `bash-static`).

That starts in two thirds of the time, because nothing is linked, and is the same shell in all else: it is called by bash's own
name, so that `$0`, `$BASH` and its messages are too. What only a linked one can do is `enable -f` and to be preloaded into.
"""

import os
import shutil
from collections.abc import Mapping
from typing import NamedTuple

PRELOAD = "LD_PRELOAD"
"""The variable that changes programs as they are linked. Source: ld.so(8)."""


class Shell(NamedTuple):
    """`name` is the shell's path, as commands see it; `program` the file that is run in its place."""

    name: str
    program: str

    def program_with(self, env: Mapping[str, str]) -> str:
        """Gives the file to run for a command with these variables."""
        return self.name if PRELOAD in env else self.program


def find_shell() -> Shell:
    """Gives this machine's shell: bash, or sh where there is none. Looks at some files."""
    name = shutil.which("bash") or shutil.which("sh") or "/bin/sh"
    static = f"{name}-static"
    return Shell(name, static if name.endswith("bash") and os.access(static, os.X_OK) else name)
