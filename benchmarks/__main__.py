"""Runs the benchmarks, prints a table, and exits 1 when a budget is broken: `python -m benchmarks [NAME...] [--json FILE]`"""

import argparse
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from benchmarks import Line, changes, execute, idle, imports, loop, many, output, start, task

BENCHMARKS: dict[str, Callable[[], list[Line]]] = {
    "imports": imports.measure,
    "start": start.measure,
    "idle": idle.measure,
    "execute": execute.measure,
    "task": task.measure,
    "output": output.measure,
    "many": many.measure,
    "loop": loop.measure,
    "changes": changes.measure,
}

WIDTHS = (44, 12, 12, 14, 16)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measures the server against its budgets.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(BENCHMARKS)}; all without")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(BENCHMARKS):
        parser.error(f"there is no benchmark {', '.join(sorted(unknown))}; there are {', '.join(BENCHMARKS)}")
    about = _about()
    print("\n".join(f"{name}: {value}" for name, value in about.items()), flush=True)
    lines = _run(arguments.names or list(BENCHMARKS))
    if arguments.json is not None:
        rows = [{**msgspec.structs.asdict(line), "is_ok": line.is_ok} for line in lines]
        arguments.json.write_bytes(msgspec.json.format(msgspec.json.encode({**about, "lines": rows})) + b"\n")
    over = sum(not line.is_ok for line in lines)
    print(f"\n{over} over budget" if over else "\nall within budget")
    return 1 if over else 0


def _run(names: list[str]) -> list[Line]:
    _print("", "ours", "bare", "", "budget", "")
    lines: list[Line] = []
    for name in names:
        for line in BENCHMARKS[name]():
            verdict = "" if not line.budget else "ok" if line.is_ok else "OVER"
            _print(line.name, line.ours, line.bare, f"{line.value:.2f} x" if line.unit == "x" else "", line.budget, verdict)
            lines.append(line)
    return lines


def _print(name: str, *cells: str) -> None:
    columns = [name.ljust(WIDTHS[0]), *(cell.rjust(width) for cell, width in zip(cells, WIDTHS[1:], strict=False)), f"  {cells[-1]}"]
    print("".join(columns).rstrip(), flush=True)


def _about() -> dict[str, str]:
    return {
        "machine": f"{os.cpu_count()} cores, {_memory():.1f} GB, Linux {platform.release()}, Python {platform.python_version()}",
        "commit": _commit(),
        "time": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
    }


def _memory() -> float:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9


def _commit() -> str:
    argv = ["git", "describe", "--always", "--dirty", "--abbrev=10"]
    return subprocess.run(argv, cwd=Path(__file__).parent, capture_output=True, text=True, check=False).stdout.strip() or "unknown"


if __name__ == "__main__":
    sys.exit(main())
