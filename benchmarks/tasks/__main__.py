"""`python -m benchmarks.tasks [NAME...]`: runs the coding tasks, on a real model or as recorded, and prints a table."""

import argparse
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from agent_server.gateway.litellm_targets import BACKENDS
from benchmarks.tasks import CodingTask, Outcome, coding_tasks, run, table

NAMES = frozenset(name for backend in BACKENDS.values() for names in backend.needs for name in names)
BEGINNINGS = ("AGENT_", *(beginning for backend in BACKENDS.values() for beginning in backend.reads))
ENDINGS = ("_API_KEY", "_BASE_URL", "_API_BASE")
"""The variables that a provider may need, which are passed on to the server."""

OURS = frozenset({"AGENT_SERVER_TOKEN", "AGENT_SERVER_AUTH"})
"""Those that are not: the server of a task has a token of its own."""


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
    print("On " + " ".join(model.values()) if model else "As recorded: no model is asked. Tools, files and checks are real.", flush=True)
    outcomes: list[Outcome] = []
    for line in table(_each([tasks[name] for name in arguments.names or tasks], model, passed_on(os.environ), outcomes)):
        print(line, flush=True)
    if arguments.json is not None:
        arguments.json.write_bytes(msgspec.json.format(msgspec.json.encode(outcomes)) + b"\n")
    return 0 if all(one.is_solved for one in outcomes) else 1


def passed_on(environ: Mapping[str, str]) -> dict[str, str]:
    """Gives the variables that a task's server gets."""
    kept = environ.keys() - OURS
    return {name: environ[name] for name in kept if name in NAMES or name.startswith(BEGINNINGS) or name.endswith(ENDINGS)}


def _each(tasks: Sequence[CodingTask], model: Mapping[str, str], environ: Mapping[str, str], into: list[Outcome]) -> Iterator[Outcome]:
    for task in tasks:
        into.append(run(task, model, environ))
        yield into[-1]


if __name__ == "__main__":
    sys.exit(main())
