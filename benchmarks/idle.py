"""The memory of the whole process tree at rest: 3 s after the start, when the base checkpoint is made; and after a task.

Pages that several processes map count in proportion (PSS), so other Pythons at work lower both figures; the two run one after
the other for that reason.
"""

import time
from statistics import median

from benchmarks import Line, figure, ratio
from benchmarks.apps import App, bare, ours
from benchmarks.proc import tree_pss
from benchmarks.task import run_task
from tests.emulators.openai import OpenAIEmulator

PSS = 1.6
"""Times the bare app's."""

REST = 3.0
"""Seconds after the start, and after a task."""

ROUNDS = 3
STEPS = 5


def measure() -> list[Line]:
    fresh, plain, used = [], [], []
    with OpenAIEmulator(keeps_bodies=False) as emulator:
        for _ in range(ROUNDS):
            with bare() as app:
                plain.append(_at_rest(app))
            with ours(AGENT_BASE_URL=emulator.url) as app:
                fresh.append(_at_rest(app))
                run_task(app, emulator, STEPS)
                used.append(_at_rest(app))
    return [
        ratio("idle: PSS of the process tree", median(fresh), median(plain), "MB", at_most=PSS),
        figure("idle: PSS after a task", median(used), "MB"),
    ]


def _at_rest(app: App) -> float:
    time.sleep(REST)
    return tree_pss(app.pid)
