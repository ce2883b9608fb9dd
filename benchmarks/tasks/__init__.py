"""Small coding tasks: a repository, a prompt, and a check that the agent does not see. `python -m benchmarks.tasks` runs them.

Each folder here is one: `repository/` is copied into a fresh workspace, `prompt.md` is asked, and `check.py` is run in the workspace when
the task has ended: it comes to its end where the task is solved. `recording.json` is a conversation that solves it, for the `replay`
provider: it takes the model's part, and tools, files and check are real. Each folder in `wrong/` holds files of one that does not.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.apps import App, ours

FOLDER = Path(__file__).parent

TASK_SECONDS = 900
CHECK_SECONDS = 60
"""How long a task may take, and its check: no program that a task asks for needs so long."""

STEPS = 60
POLL = 0.05

WHY = 160
"""Characters of what is wrong that stand in a line of the table."""

CHECK = "import runpy, sys; runpy.run_path(sys.argv[1]); print('checked')"
"""Runs a check, and says so where it came to its end: code that is checked may end the process, with 0."""


class CodingTask(msgspec.Struct, frozen=True):
    name: str

    @property
    def folder(self) -> Path:
        return FOLDER / self.name

    @property
    def prompt(self) -> str:
        return (self.folder / "prompt.md").read_text().strip()

    @property
    def recording(self) -> Path:
        return self.folder / "recording.json"


class Outcome(msgspec.Struct, frozen=True):
    """How one went. `seconds` is wall time, `cost` USD where the provider says it; `why` says what is wrong with one that is not solved."""

    name: str
    is_solved: bool
    steps: int
    tokens: int
    cost: float | None
    seconds: float
    why: str = ""


def coding_tasks() -> list[CodingTask]:
    """Gives them all, by name."""
    return [CodingTask(path.parent.name) for path in sorted(FOLDER.glob("*/prompt.md"))]


def run(task: CodingTask, model: Mapping[str, str] | None = None, environ: Mapping[str, str] | None = None) -> Outcome:
    """Runs one on a server of its own: with `provider` and `model` as in POST /run, or as recorded. One that cannot run is not solved."""
    model = model or {"provider": "replay", "model": str(task.recording)}
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="task-") as folder:
        workspace = Path(folder, "workspace")
        prepare(task, workspace)
        try:
            with ours(WORKSPACE_DIR=str(workspace), **(environ or {})) as app:  # type: ignore[arg-type]  # none is named stderr
                began = time.monotonic()
                ended = _finish(app, {"prompt": task.prompt, "maxSteps": STEPS, "timeout": TASK_SECONDS * 1000, **model})
                seconds = time.monotonic() - began
        except (OSError, ValueError, SystemExit) as error:  # it does not start, refuses, or died
            return Outcome(task.name, False, 0, 0, None, time.monotonic() - began, _line(str(error)))
        why = _line(ended["error"]["message"]) if ended["error"] else check(task, workspace)
    usage = ended["usage"]
    return Outcome(task.name, not why, ended["steps"], usage["total_tokens"], usage["cost"], seconds, why)


def prepare(task: CodingTask, workspace: Path) -> None:
    """Makes the workspace of a task, as a git repository with one commit."""
    shutil.copytree(task.folder / "repository", workspace)
    identity = ("-c", "user.name=task", "-c", "user.email=task@localhost")
    for arguments in (("init", "-q"), ("add", "-A"), (*identity, "commit", "-q", "-m", "As it was")):
        subprocess.run(["git", *arguments], cwd=workspace, check=True)


def check(task: CodingTask, workspace: Path, seconds: float = CHECK_SECONDS) -> str:
    """Gives what is wrong in a workspace, in a line; "" where the task is solved. What it starts has no keys, and ends with it."""
    argv = [sys.executable, "-c", CHECK, str(task.folder / "check.py")]
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen(
            argv, cwd=workspace, env={"PATH": os.environ["PATH"]}, stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True
        )
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            return f"the check took over {seconds:g} s"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        out.seek(0)
        err.seek(0)
        if code == 0 and out.read().endswith("checked\n"):
            return ""
        return _line((err.read().strip().splitlines() or [f"the check ended with {code}, before its end"])[-1])


def _line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= WHY else f"{line[:WHY]}…"


def _finish(app: App, body: Mapping[str, Any]) -> Any:
    task_id = app.post("/run", {**body, "async": True})["taskId"]
    while (task := app.get(f"/tasks/{task_id}"))["status"] == "processing":
        time.sleep(POLL)
    return task


def table(outcomes: Iterable[Outcome]) -> Iterator[str]:
    """Gives the lines of a table, each as soon as it is known, with the sums last; `+?` stands after a cost that not all have told."""
    yield f"{'':20}{'solved':>8}{'steps':>8}{'tokens':>10}{'cost':>10}{'seconds':>10}"
    seen: list[Outcome] = []
    for one in outcomes:
        seen.append(one)
        cost = f"{one.cost:.4f}" if one.cost is not None else "?"
        solved = "yes" if one.is_solved else "no"
        yield f"{one.name:20}{solved:>8}{one.steps:>8}{one.tokens:>10}{cost:>10}{one.seconds:>10.1f}  {one.why}".rstrip()
    solved = f"{sum(one.is_solved for one in seen)}/{len(seen)}"
    tokens, steps = sum(one.tokens for one in seen), sum(one.steps for one in seen)
    costs = [one.cost for one in seen if one.cost is not None]
    cost = (f"{sum(costs):.4f}" if costs else "") + ("" if len(costs) == len(seen) else "+?" if costs else "?")
    yield f"{'all':20}{solved:>8}{steps:>8}{tokens:>10}{cost:>10}{sum(one.seconds for one in seen):>10.1f}"
