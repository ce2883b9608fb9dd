"""Small coding tasks: a repository, a prompt, and a check that the agent does not see. `python -m benchmarks.tasks` runs them.

Each folder here is one: `repository/` is copied into a fresh workspace, `prompt.md` is asked, and `check.py` is run in the workspace when
the task has ended: it ends with 0 where the task is solved. `recording.json` is a conversation that solves it, for the `replay`
provider: it takes the model's part, and tools, files and check are real.
"""

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
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
    """Runs one on a server of its own: with `provider` and `model` as in POST /run, or as recorded."""
    model = model or {"provider": "replay", "model": str(task.recording)}
    with tempfile.TemporaryDirectory(prefix="task-") as folder:
        workspace = Path(folder, "workspace")
        prepare(task, workspace)
        with ours(WORKSPACE_DIR=str(workspace), **(environ or {})) as app:  # type: ignore[arg-type]  # none is named stderr
            began = time.monotonic()
            ended = _finish(app, {"prompt": task.prompt, "maxSteps": STEPS, "timeout": TASK_SECONDS * 1000, **model})
            seconds = time.monotonic() - began
        why = ended["error"]["message"] if ended["error"] else check(task, workspace)
    usage = ended["usage"]
    return Outcome(task.name, not why, ended["steps"], usage["total_tokens"], usage["cost"], seconds, why)


def prepare(task: CodingTask, workspace: Path) -> None:
    """Makes the workspace of a task, as a git repository with one commit."""
    shutil.copytree(task.folder / "repository", workspace)
    identity = ("-c", "user.name=task", "-c", "user.email=task@localhost")
    for arguments in (("init", "-q"), ("add", "-A"), (*identity, "commit", "-q", "-m", "As it was")):
        subprocess.run(["git", *arguments], cwd=workspace, check=True)


def check(task: CodingTask, workspace: Path) -> str:
    """Gives what is wrong in a workspace; "" where the task is solved."""
    argv = [sys.executable, str(task.folder / "check.py")]
    try:
        ended = subprocess.run(argv, cwd=workspace, capture_output=True, text=True, timeout=CHECK_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return f"the check took over {CHECK_SECONDS} s"
    return "" if ended.returncode == 0 else (ended.stderr.strip().splitlines() or [f"the check ended with {ended.returncode}"])[-1]


def _finish(app: App, body: Mapping[str, Any]) -> Any:
    task_id = app.post("/run", {**body, "async": True})["taskId"]
    while (task := app.get(f"/tasks/{task_id}"))["status"] == "processing":
        time.sleep(POLL)
    return task


def table(outcomes: list[Outcome]) -> Iterator[str]:
    """Gives the lines of a table, with the sums last."""
    yield f"{'':20}{'solved':>8}{'steps':>8}{'tokens':>10}{'cost':>10}{'seconds':>10}"
    for one in outcomes:
        cost = f"{one.cost:.4f}" if one.cost is not None else "?"
        solved = "yes" if one.is_solved else "no"
        yield f"{one.name:20}{solved:>8}{one.steps:>8}{one.tokens:>10}{cost:>10}{one.seconds:>10.1f}  {one.why}".rstrip()
    solved = f"{sum(one.is_solved for one in outcomes)}/{len(outcomes)}"
    tokens, steps = sum(one.tokens for one in outcomes), sum(one.steps for one in outcomes)
    cost = f"{sum(one.cost or 0 for one in outcomes):.4f}"
    yield f"{'all':20}{solved:>8}{steps:>8}{tokens:>10}{cost:>10}{sum(one.seconds for one in outcomes):>10.1f}"
