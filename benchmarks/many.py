"""50 commands of 8 s at once: all of them run side by side, and /health stays quick. The bare app idles beside, for reference."""

import asyncio
import time
from statistics import median

from benchmarks import Line, figure, percentile
from benchmarks.apps import ask_many, bare, ours, request
from benchmarks.pings import Pings
from benchmarks.proc import settle

COMMANDS = 50
DONE = 10.0
"""Seconds until all have ended."""

HEALTH = 30.0
"""Milliseconds."""

ROUNDS = 3


def measure() -> list[Line]:
    sleep = request("POST", "/execute", {"command": "sleep 8"})
    seconds, rounds = [], []
    with ours() as app, bare() as plain:
        asyncio.run(ask_many(app.port, request("POST", "/execute", {"command": "true"}), 1, 1))
        for _ in range(ROUNDS):
            settle()
            with Pings(app.port, plain.port) as pings:
                begin = time.monotonic()
                asyncio.run(ask_many(app.port, sleep, COMMANDS, 1))
                seconds.append(time.monotonic() - begin)
            rounds.append((pings.of(app.port), pings.of(plain.port)))
    most = [median(max(taken[which]) for taken in rounds) for which in (0, 1)]
    p95 = [percentile([ping for taken in rounds for ping in taken[which]], 0.95) for which in (0, 1)]
    return [
        figure(f"many: {COMMANDS} x sleep 8 done after", max(seconds), "s", at_most=DONE),
        figure("many: /health max", most[0], "ms", at_most=HEALTH, bare=most[1]),
        figure("many: /health p95", p95[0], "ms", at_most=HEALTH, bare=p95[1]),
    ]
