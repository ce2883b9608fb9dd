"""`python -m benchmarks.tasks [NAME...]`: runs the coding tasks, on a real model or as recorded, and prints a table."""

import argparse
import os
import sys
from pathlib import Path

import msgspec

from benchmarks.tasks import Outcome, coding_tasks, run, table

PASSED_ON = ("_API_KEY", "_BASE_URL", "_REGION", "_API_BASE", "_API_VERSION")
"""Endings of the variables that a provider may need; those that begin with AGENT_ are passed on, too."""


def main() -> int:
    tasks = {task.name: task for task in coding_tasks()}
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tasks", description="Runs small coding tasks, and checks what came of them."
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(tasks)}; all without")
    parser.add_argument("--provider", help="as in POST /run; without it and --model, recorded conversations are played")
    parser.add_argument("--model", help="as in POST /run")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the outcomes there, too")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(tasks):
        parser.error(f"there is no task {', '.join(sorted(unknown))}; there are {', '.join(tasks)}")
    model = {name: value for name in ("provider", "model") if (value := getattr(arguments, name))}
    environ = {name: value for name, value in os.environ.items() if name.endswith(PASSED_ON) or name.startswith("AGENT_")}
    print("On " + " ".join(model.values()) if model else "As recorded: no model is asked. Tools, files and checks are real.", flush=True)
    outcomes: list[Outcome] = []
    for name in arguments.names or tasks:
        outcomes.append(run(tasks[name], model, environ))
        print(".", end="", flush=True)
    print("", *table(outcomes), sep="\n")
    if arguments.json is not None:
        arguments.json.write_bytes(msgspec.json.format(msgspec.json.encode(outcomes)) + b"\n")
    return 0 if all(one.is_solved for one in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
