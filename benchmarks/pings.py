"""Asks servers for /health all the time, from a process of its own, so that no other work of a benchmark is in the latencies.

`python -m benchmarks.pings PORT...` asks them in turn until its standard input ends, and then prints the seconds each reply took.
"""

import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import TracebackType

from benchmarks.apps import HEALTH, Connection

INTERVAL = 0.002
"""Seconds between two rounds of questions."""


class Pings:
    """Asks while the context lasts; `of` gives the milliseconds afterwards."""

    def __init__(self, *ports: int) -> None:
        self._ports = ports
        self._seconds: dict[str, list[float]] = {}

    def of(self, port: int) -> list[float]:
        return [second * 1000 for second in self._seconds[str(port)]]

    def __enter__(self) -> "Pings":
        argv = [sys.executable, "-m", "benchmarks.pings", *map(str, self._ports)]
        self._process = subprocess.Popen(argv, cwd=Path(__file__).parents[1], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        self._process.stdout.readline()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            out, _ = self._process.communicate(timeout=30)
        finally:
            self._process.kill()
        if kind is None:
            self._seconds = json.loads(out)


def main() -> None:
    stop = threading.Event()
    connections = {port: Connection(int(port)) for port in sys.argv[1:]}
    seconds: dict[str, list[float]] = {port: [] for port in connections}
    for connection in connections.values():
        connection.ask(HEALTH)
    print("asking", flush=True)
    threading.Thread(target=_watch, args=(stop,), daemon=True).start()
    while not stop.wait(INTERVAL):
        for port, connection in connections.items():
            begin = time.perf_counter()
            connection.ask(HEALTH)
            seconds[port].append(time.perf_counter() - begin)
    print(json.dumps(seconds))


def _watch(stop: threading.Event) -> None:
    sys.stdin.read()
    stop.set()


if __name__ == "__main__":
    main()
