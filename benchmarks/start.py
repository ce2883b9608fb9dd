"""From the start of the process to its first /health: on a fresh data directory, from a warm disk cache."""

from benchmarks import Line, ratio
from benchmarks.apps import bare, ours
from benchmarks.proc import settle

CPU = 1.5
WALL = 1.5
"""Times the bare app's."""

ROUNDS = 7


def measure() -> list[Line]:
    cpu: dict[str, list[float]] = {"ours": [], "bare": []}
    wall: dict[str, list[float]] = {"ours": [], "bare": []}
    for number in range(ROUNDS + 1):
        settle()
        for name, start in (("ours", ours), ("bare", bare)):
            with start() as app:
                if number > 0:  # the first one warms the disk cache
                    cpu[name].append(app.cpu * 1000)
                    wall[name].append(app.wall * 1000)
    return [
        ratio("start: CPU to the first /health", min(cpu["ours"]), min(cpu["bare"]), "ms", at_most=CPU),
        ratio("start: wall to the first /health", min(wall["ours"]), min(wall["bare"]), "ms", at_most=WALL),
    ]
