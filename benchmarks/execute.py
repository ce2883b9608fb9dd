"""`POST /execute` of `true`: what a command costs besides itself.

One after the other on one connection for latency and CPU; 16 at once for the rate. Both servers stay up, and take turns.
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

ROUNDS = 9
REQUESTS = 50
AT_ONCE = 16
EACH = 20
"""Requests on each of 16 connections in a round."""


def measure() -> list[Line]:
    latency: dict[str, list[float]] = {"ours": [], "bare": []}
    used: dict[str, list[float]] = {"ours": [], "bare": []}
    rate: dict[str, list[float]] = {"ours": [], "bare": []}
    with ours() as mine, bare() as plain:
        for app in (mine, plain):
            _one_by_one(app)  # what is made at the first use is made
            _at_once(app)
        for _ in range(ROUNDS):
            settle()
            for name, app in (("ours", mine), ("bare", plain)):
                before = cpu(app.pid)
                latency[name].append(_one_by_one(app))
                used[name].append((cpu(app.pid) - before) / REQUESTS * 1000)
            for name, app in (("ours", mine), ("bare", plain)):
                rate[name].append(_at_once(app))
    return [
        ratio("execute: p50 of `true`", median(latency["ours"]), median(latency["bare"]), "ms", at_most=LATENCY),
        ratio("execute: server CPU of `true`", min(used["ours"]), min(used["bare"]), "ms", at_most=CPU),
        ratio(f"execute: rate at {AT_ONCE} at once", median(rate["ours"]), median(rate["bare"]), "/s", at_least=RATE),
    ]


def _one_by_one(app: App) -> float:
    """Gives the median latency in milliseconds."""
    seconds = []
    with Connection(app.port) as connection:
        for _ in range(REQUESTS):
            begin = time.perf_counter()
            connection.ask(EXECUTE_TRUE)
            seconds.append(time.perf_counter() - begin)
    return median(seconds) * 1000


def _at_once(app: App) -> float:
    """Gives the requests a second."""
    begin = time.perf_counter()
    asyncio.run(ask_many(app.port, EXECUTE_TRUE, AT_ONCE, EACH))
    return AT_ONCE * EACH / (time.perf_counter() - begin)
