"""A command that prints 10 MiB, as one line and as five million: what it costs in memory, and whether /health stays quick.

The memory is a fresh server's first time; the latencies are of later ones, so that reading /proc is not in them. The bare app
idles beside, and is asked in turn: its latencies are what the machine and the command's own load make of any server's.
"""

from statistics import median

from benchmarks import Line, figure, percentile
from benchmarks.apps import App, Connection, bare, ours, request
from benchmarks.pings import Pings
from benchmarks.proc import Memory, pss, settle

GROWTH = 16 * 2**20 / 1e6
"""MB: 16 MiB."""

HEALTH = 20.0
"""Milliseconds."""

COMMANDS = {"one line": r"head -c 10485760 /dev/zero | tr '\0' x", "lines": "yes | head -c 10485760"}
INTERVAL = 0.005
ROUNDS = 5


def measure() -> list[Line]:
    lines: list[Line] = []
    with bare() as plain:
        for name, command in COMMANDS.items():
            with ours() as app:
                _print(app, "true")
                lines.append(figure(f"output, {name}: memory growth", _growth(app, command), "MB", at_most=GROWTH))
                lines += _health(app, plain, name, command)
    return lines


def _growth(app: App, command: str) -> float:
    before = pss(app.pid)
    with Memory(app.pid, INTERVAL) as memory:
        _print(app, command)
    return memory.peak - before


def _health(app: App, plain: App, name: str, command: str) -> list[Line]:
    rounds = []
    for _ in range(ROUNDS):
        settle()
        with Pings(app.port, plain.port) as pings:
            _print(app, command)
        rounds.append((pings.of(app.port), pings.of(plain.port)))
    most = [median(max(taken[which]) for taken in rounds) for which in (0, 1)]
    p95 = [percentile([ping for taken in rounds for ping in taken[which]], 0.95) for which in (0, 1)]
    return [
        figure(f"output, {name}: /health max", most[0], "ms", at_most=HEALTH, bare=most[1]),
        figure(f"output, {name}: /health p95", p95[0], "ms", at_most=HEALTH, bare=p95[1]),
    ]


def _print(app: App, command: str) -> None:
    with Connection(app.port) as connection:
        connection.ask(request("POST", "/execute", {"command": command}))
