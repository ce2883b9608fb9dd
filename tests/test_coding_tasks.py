"""The coding tasks of benchmarks/tasks, run through their recorded conversations: only the model's part is not real."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.tasks import CodingTask, Outcome, check, coding_tasks, prepare, run, table

TASKS = pytest.mark.parametrize("task", coding_tasks(), ids=lambda task: task.name)


def test_there_are_at_least_twelve() -> None:
    assert len(coding_tasks()) >= 12


@TASKS
def test_a_recorded_conversation_solves_it(task: CodingTask) -> None:
    assert json.loads(task.recording.read_text())["prompt"] == task.prompt
    outcome = run(task)
    assert outcome.is_solved, outcome.why
    assert outcome.steps >= 3


@TASKS
def test_it_is_not_solved_before(task: CodingTask, tmp_path: Path) -> None:
    prepare(task, tmp_path / "workspace")
    assert check(task, tmp_path / "workspace")


def test_a_conversation_that_does_not_solve_it_is_told_so() -> None:
    crlf = CodingTask("crlf")
    outcome = run(CodingTask("page-count"), {"provider": "replay", "model": str(crlf.recording)})
    assert not outcome.is_solved
    assert "AssertionError" in outcome.why


def test_a_task_that_fails_is_told_with_its_error() -> None:
    outcome = run(CodingTask("crlf"), {"provider": "openrouter", "model": "any/model"})
    assert not outcome.is_solved
    assert "OPENROUTER_API_KEY" in outcome.why


def test_the_table_has_a_line_for_each_and_the_sums() -> None:
    outcomes = [Outcome("one", True, 3, 1200, 0.01, 2.5), Outcome("two", False, 5, 800, None, 1.5, "it is wrong")]
    lines = [line.split() for line in table(outcomes)]
    assert lines == [
        ["solved", "steps", "tokens", "cost", "seconds"],
        ["one", "yes", "3", "1200", "0.0100", "2.5"],
        ["two", "no", "5", "800", "?", "1.5", "it", "is", "wrong"],
        ["all", "1/2", "8", "2000", "0.0100", "4.0"],
    ]


def test_the_command_prints_the_table() -> None:
    argv = [sys.executable, "-m", "benchmarks.tasks", "crlf"]
    ended = subprocess.run(argv, cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=60, check=True)
    assert "As recorded" in ended.stdout
    assert ended.stdout.splitlines()[-1].split()[:2] == ["all", "1/1"]


def test_the_documented_lines_for_a_harness_run_a_task(tmp_path: Path) -> None:
    """The block of docs/harnesses.md, as it stands there."""
    root = Path(__file__).parents[1]
    script = (root / "docs" / "harnesses.md").read_text().partition("```sh\n")[2].partition("```")[0]
    task = CodingTask("page-count")
    prepare(task, tmp_path / "workspace")
    environ = {
        **{name: value for name, value in os.environ.items() if name in ("LANG", "HOME")},
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "INSTRUCTION": task.prompt,
        "AGENT_PROVIDER": "replay",
        "AGENT_MODEL": str(task.recording),
        "PORT": str(_free_port()),
        "TMPDIR": str(tmp_path),
    }
    ended = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path / "workspace", env=environ, capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert check(task, tmp_path / "workspace") == ""


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
