"""The coding tasks of benchmarks/tasks, run through their recorded conversations: only the model's part is not real."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.tasks import FOLDER, CodingTask, Outcome, check, coding_tasks, prepare, run, table
from benchmarks.tasks.__main__ import passed_on
from tests.serving import is_alive

WRONG = sorted(FOLDER.glob("*/wrong/*"))
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


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: f"{wrong.parents[1].name}-{wrong.name}")
def test_a_wrong_solution_is_found(wrong: Path, tmp_path: Path) -> None:
    task = CodingTask(wrong.parents[1].name)
    prepare(task, tmp_path / "workspace")
    shutil.copytree(wrong, tmp_path / "workspace", dirs_exist_ok=True)
    assert check(task, tmp_path / "workspace")


def test_every_task_has_a_wrong_solution() -> None:
    assert {wrong.parents[1].name for wrong in WRONG} == {task.name for task in coding_tasks()}


def test_a_check_that_does_not_end_is_ended_with_all_it_started(tmp_path: Path) -> None:
    task, workspace = CodingTask("failing-tests"), tmp_path / "workspace"
    prepare(task, workspace)
    (workspace / "money.py").write_text("import os, time\nopen('pid', 'w').write(str(os.getpid()))\nwhile True: time.sleep(0.01)\n")
    assert check(task, workspace, seconds=3) == "the check took over 3 s"
    while is_alive(int((workspace / "pid").read_text())):
        time.sleep(0.01)


def test_what_is_checked_has_no_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENROUTER_API_KEY", "sk-secret")
    task, workspace = CodingTask("page-count"), tmp_path / "workspace"
    prepare(task, workspace)
    (workspace / "pages.py").write_text("import os\nraise ValueError(sorted(os.environ))\n")
    why = check(task, workspace)
    assert "PATH" in why
    assert "KEY" not in why


def test_a_conversation_that_does_not_solve_it_is_told_so() -> None:
    crlf = CodingTask("crlf")
    outcome = run(CodingTask("page-count"), {"provider": "replay", "model": str(crlf.recording)})
    assert not outcome.is_solved
    assert "AssertionError" in outcome.why


def test_a_task_that_fails_is_told_with_its_error() -> None:
    outcome = run(CodingTask("crlf"), {"provider": "openrouter", "model": "any/model"})
    assert not outcome.is_solved
    assert "OPENROUTER_API_KEY" in outcome.why


@pytest.mark.parametrize(
    ("model", "environ", "why"),
    [
        ({"provider": "nobody", "model": "any"}, {}, 'Provider "nobody" is not one of'),
        ({"model": 5}, {}, "400"),
        (None, {"AGENT_TYPE": "nobody"}, "serve ended with 2"),
    ],
    ids=["provider", "body", "start"],
)
def test_a_task_that_cannot_be_run_is_told_so(model: dict[str, str] | None, environ: dict[str, str], why: str) -> None:
    outcome = run(CodingTask("crlf"), model, environ)
    assert not outcome.is_solved
    assert why in outcome.why


def test_a_server_of_a_task_gets_what_its_provider_needs_and_has_its_own_token() -> None:
    needed = {"OPENROUTER_API_KEY": "1", "AGENT_BASE_URL": "2", "AWS_SECRET_ACCESS_KEY": "3", "AWS_REGION": "4", "VERTEXAI_PROJECT": "5"}
    assert passed_on({**needed, "AGENT_SERVER_TOKEN": "x", "PORT": "1", "WORKSPACE_DIR": "/", "HOME": "/"}) == needed


def test_the_table_has_a_line_for_each_and_the_sums() -> None:
    outcomes = [Outcome("one", True, 3, 1200, 0.01, 2.5), Outcome("two", False, 5, 800, None, 1.5, "it is wrong")]
    lines = [line.split() for line in table(outcomes)]
    assert lines == [
        ["solved", "steps", "tokens", "cost", "seconds"],
        ["one", "yes", "3", "1200", "0.0100", "2.5"],
        ["two", "no", "5", "800", "?", "1.5", "it", "is", "wrong"],
        ["all", "1/2", "8", "2000", "0.0100+?", "4.0"],
    ]


def test_a_sum_of_costs_says_what_is_not_known() -> None:
    def total(*costs: float | None) -> str:
        return list(table([Outcome("one", True, 1, 1, cost, 1.0) for cost in costs]))[-1].split()[4]

    assert [total(0.01, 0.02), total(0.01, None), total(None, None), total(0.0)] == ["0.0300", "0.0100+?", "?", "0.0000"]


def test_a_line_is_there_as_soon_as_its_task_has_ended() -> None:
    lines = table(Outcome(name, True, 1, 1, 0.0, 1.0) if name == "one" else pytest.fail("asked for too early") for name in ("one", "two"))
    assert next(lines).split()[0] == "solved"
    assert next(lines).split()[0] == "one"


def test_the_command_prints_the_table() -> None:
    argv = [sys.executable, "-m", "benchmarks.tasks", "crlf"]
    ended = subprocess.run(argv, cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=60, check=True)
    assert "As recorded" in ended.stdout
    assert ended.stdout.splitlines()[-1].split()[:2] == ["all", "1/1"]
