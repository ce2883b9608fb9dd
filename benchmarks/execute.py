"""`POST /execute` of `true`: what a command costs besides itself.

One after the other on one connection for latency and CPU, in short blocks by turns; 16 at once for the rate. Both servers stay up.
CPU is compared by the medians of its blocks: each is short enough for its least value to be luck.
"""

import asyncio
import time
from statistics import median

from benchmarks import Line, ratio
from benchmarks.apps import EXECUTE_TRUE, App, Connection, ask_many, bare, ours
from benchmarks.proc import cpu, settle

LATENCY = 0.8
CPU = 0.8
RATE = 1.3
"""Times the bare route's."""

BLOCKS = 12
REQUESTS = 100
WARM_UP = 20
"""In a block, after some that do not count: a machine that was idle, or busy with the other app, is slower at first."""

REST = 0.3
"""Seconds after a block in which what the server puts off, as writes to its log, is done and counted."""

ROUNDS = 9
AT_ONCE = 16
EACH = 20
"""Requests on each of 16 connections in a round."""


def measure() -> list[Line]:
    with ours() as mine, bare() as plain:
        for app in (mine, plain):
            _one_by_one(app)  # what is made at the first use is made
            _at_once(app)
        settle()
        blocks = [(_one_by_one(mine), _one_by_one(plain)) for _ in range(BLOCKS)]
        rates = [(_at_once(mine), _at_once(plain)) for _ in range(ROUNDS)]
    latency = [median(took for pair in blocks for took in pair[which][0]) for which in (0, 1)]
    used = [median(pair[which][1] for pair in blocks) for which in (0, 1)]
    rate = [median(pair[which] for pair in rates) for which in (0, 1)]
    return [
        ratio("execute: p50 of `true`", latency[0], latency[1], "ms", at_most=LATENCY),
        ratio("execute: server CPU of `true`", used[0], used[1], "ms", at_most=CPU),
        ratio(f"execute: rate at {AT_ONCE} at once", rate[0], rate[1], "/s", at_least=RATE),
    ]


def _one_by_one(app: App) -> tuple[list[float], float]:
    """Gives the latencies of a block and the CPU of a request, in milliseconds."""
    took = []
    with Connection(app.port) as connection:
        for _ in range(WARM_UP):
            connection.ask(EXECUTE_TRUE)
        before = cpu(app.pid)
        for _ in range(REQUESTS):
            begin = time.perf_counter()
            connection.ask(EXECUTE_TRUE)
            took.append((time.perf_counter() - begin) * 1000)
    time.sleep(REST)
    return took, (cpu(app.pid) - before) / REQUESTS * 1000


def _at_once(app: App) -> float:
    """Gives the requests a second."""
    begin = time.perf_counter()
    asyncio.run(ask_many(app.port, EXECUTE_TRUE, AT_ONCE, EACH))
    return AT_ONCE * EACH / (time.perf_counter() - begin)
