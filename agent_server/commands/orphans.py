"""Ends the processes that a killed server leaves behind, also where no server is started after it.

A shell waits at a pipe that only the server holds: its end is the server's, however that came. PR_SET_PDEATHSIG would reach one
process, and not what `npx` or `uvx` start in their turn.
"""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from agent_server.commands.proctree import VARIABLE

_SCRIPT = f"""
read -r gone
sleep 1
for round in 1 2 3 4 5; do
    for place in $(grep -lsF "{VARIABLE}=${VARIABLE}" /proc/[0-9]*/environ); do
        pid=${{place#/proc/}}
        pid=${{pid%/environ}}
        [ "$pid" = "$$" ] || kill -9 "$pid"
    done
done
"""
"""What is asked to end by the end of its input has a second for that."""


@contextmanager
def watched(mark: str) -> Iterator[None]:
    """Has all that carries this mark killed if the server ends within the context. Errors: OSError."""
    # It carries the mark itself, so that the next server finds it too.
    environment = {VARIABLE: mark, "PATH": "/usr/bin:/bin"}
    quiet = subprocess.DEVNULL
    shell = subprocess.Popen(
        ["/bin/sh", "-c", _SCRIPT], stdin=subprocess.PIPE, stdout=quiet, stderr=quiet, env=environment, cwd="/", start_new_session=True
    )
    try:
        yield
    finally:
        shell.kill()
        shell.wait()
        assert shell.stdin is not None  # noqa: S101  # it is a pipe
        shell.stdin.close()
