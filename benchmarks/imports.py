"""Which modules are loaded when the server first answers /health: nothing heavy may be among them."""

import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from benchmarks import Line, figure
from benchmarks.apps import App, bare, ours

HEAVY = frozenset({"litellm", "openai", "mcp", "pydantic", "httpx"})
"""Packages that are imported where they are first needed."""


def measure() -> list[Line]:
    with ours():  # compiles what is not compiled yet
        pass
    mine, took = _loaded(ours)
    plain, plainly = _loaded(bare)
    heavy = sorted({name.partition(".")[0] for name in mine} & HEAVY)
    return [
        Line("imports: heavy packages loaded", len(heavy), "packages", ", ".join(heavy) or "none", "", 0),
        figure("imports: modules loaded", len(mine), "", bare=len(plain)),
        figure("imports: time under -X importtime", took, "ms", bare=plainly),
    ]


def _loaded(start: Callable[..., AbstractContextManager[App]]) -> tuple[set[str], float]:
    """Gives the modules that a server has loaded when it answers, and the milliseconds that loading them took."""
    with tempfile.NamedTemporaryFile() as log, start("-X", "importtime", stderr=log.fileno()):
        lines = Path(log.name).read_text().splitlines()
    rows = [line.removeprefix("import time:").split("|") for line in lines if line.startswith("import time:")]
    times = {name.strip(): int(own) for own, _, name in rows if own.strip().isdigit()}
    return set(times), sum(times.values()) / 1000
