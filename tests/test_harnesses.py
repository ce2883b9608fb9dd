"""What docs/harnesses.md shows, as it stands there: with stand-ins for the harnesses, whose agents, tasks and containers are not here."""

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from benchmarks.tasks import CodingTask, check, prepare
from tests.emulators.openai import OpenAIEmulator

DOCUMENT = (Path(__file__).parents[1] / "docs" / "harnesses.md").read_text()
TASK = CodingTask("page-count")


def block(heading: str, language: str) -> str:
    """The first block of a language below a heading."""
    return DOCUMENT.partition(f"## {heading}\n")[2].partition(f"```{language}\n")[2].partition("```")[0]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


class Container:
    """Stands in for one: a folder in whose `app` commands run, and that stands before the absolute paths of the document."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.app = root / "app"
        prepare(TASK, self.app)
        (root / "logs" / "agent").mkdir(parents=True)
        (root / "opt").mkdir()
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self.environ = {"PATH": path, "HOME": str(root), "PORT": str(free_port()), "TMPDIR": str(root)}

    def inside(self, text: str) -> str:
        return text.replace("/opt/", f"{self.root}/opt/").replace("/logs/", f"{self.root}/logs/")

    def run(self, command: str, env: Mapping[str, str]) -> "subprocess.CompletedProcess[str]":
        if "pip install" in command:  # what is installed is this server
            (self.root / "opt" / "agent-server").symlink_to(sys.prefix)
            command = f"ls {command.split()[-1]}"
        environ = {**self.environ, **{name: self.inside(value) for name, value in env.items()}}
        return subprocess.run(
            ["bash", "-c", self.inside(command)], cwd=self.app, env=environ, capture_output=True, text=True, timeout=60, check=False
        )


@pytest.fixture
def container(tmp_path: Path) -> Container:
    return Container(tmp_path / "container")


RECORDED = {"INSTRUCTION": TASK.prompt, "AGENT_PROVIDER": "replay", "AGENT_MODEL": str(TASK.recording)}


def test_the_lines_for_a_container_run_a_task(container: Container) -> None:
    ended = container.run(block("In the container", "sh"), {**RECORDED, "LOGS": "/logs/agent"})
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["steps"] >= 3
    assert check(TASK, container.app) == ""
    events = (container.root / "logs" / "agent" / "events.txt").read_text()
    assert '"type":"task.completed"' in events.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"AGENT_MODEL": "no-such"}, '"status":"failed"'),
        ({"INSTRUCTION": ""}, "INVALID_REQUEST"),
        ({"AGENT_TYPE": "nobody"}, "AGENT_TYPE"),
    ],
    ids=["failed", "refused", "not started"],
)
def test_they_end_with_an_error_where_there_is_one(container: Container, environ: dict[str, str], said: str) -> None:
    ended = container.run(block("In the container", "sh"), {**RECORDED, **environ})
    assert ended.returncode != 0
    assert said in ended.stdout + ended.stderr


class BaseAgent:
    """Stands in for harbor.agents.base.BaseAgent, as of Harbor 0.25.0."""

    def __init__(self, logs_dir: Path, model_name: str | None = None) -> None:
        self.logs_dir = logs_dir
        self.model_name = model_name


class Environment:
    """Stands in for harbor.environments.base.BaseEnvironment, as of Harbor 0.25.0."""

    def __init__(self, container: Container) -> None:
        self.container = container

    async def upload_file(self, source_path: Path | str, target_path: str) -> None:
        shutil.copy(source_path, self.container.inside(target_path))

    async def exec(self, command: str, cwd: str | None = None, env: dict[str, str] | None = None) -> SimpleNamespace:
        ended = await asyncio.to_thread(self.container.run, command, env or {})
        return SimpleNamespace(stdout=ended.stdout, stderr=ended.stderr, return_code=ended.returncode)


@pytest.fixture
def harbor(container: Container, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The documented class for Harbor, in a folder with what it needs beside it."""
    return documented("Harbor", {"harbor.agents.base": {"BaseAgent": BaseAgent}}, tmp_path, monkeypatch)


def documented(heading: str, modules: Mapping[str, Mapping[str, Any]], folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The class AgentServer below a heading, which finds these modules, and beside it a wheel and the lines for a container."""
    for path, values in modules.items():
        parents = path.split(".")
        for end in range(1, len(parents)):
            monkeypatch.setitem(sys.modules, ".".join(parents[:end]), ModuleType(".".join(parents[:end])))
        module = ModuleType(path)
        vars(module).update(values)
        monkeypatch.setitem(sys.modules, path, module)
    (folder / "agent_server-0.1.0-py3-none-any.whl").touch()
    (folder / "run.sh").write_text(block("In the container", "sh"))
    names: dict[str, Any] = {"__file__": str(folder / "agent.py"), "__name__": "agent"}
    exec(block(heading, "python"), names)
    return names["AgentServer"]


async def test_the_class_for_harbor_runs_a_task(harbor: Any, container: Container, tmp_path: Path) -> None:
    agent, environment, context = harbor(tmp_path, f"replay/{TASK.recording}"), Environment(container), SimpleNamespace()
    assert harbor.name() == "agent-server"
    await agent.setup(environment)
    await agent.run(TASK.prompt, environment, context)
    assert check(TASK, container.app) == ""
    assert (container.root / "logs" / "agent" / "events.txt").exists()


USAGE = {"prompt_tokens": 100, "completion_tokens": 7, "total_tokens": 107, "cost": 0.002, "prompt_tokens_details": {"cached_tokens": 40}}


async def test_harbor_is_told_tokens_and_cost(harbor: Any, container: Container, tmp_path: Path, model: OpenAIEmulator) -> None:
    model.script({"text": "Done.", "usage": USAGE})
    agent, environment, context = harbor(tmp_path, "openrouter/any/model"), Environment(container), SimpleNamespace()
    container.environ |= {"AGENT_BASE_URL": model.url, "AGENT_API_KEY": "sk-test-key-of-the-model"}
    await agent.setup(environment)
    await agent.run(TASK.prompt, environment, context)
    assert vars(context) == {"n_input_tokens": 100, "n_cache_tokens": 40, "n_output_tokens": 7, "cost_usd": 0.002}


async def test_a_failed_task_is_no_error_of_the_agent_and_no_server_is_one(harbor: Any, container: Container, tmp_path: Path) -> None:
    environment, context = Environment(container), SimpleNamespace()
    agent = harbor(tmp_path, "replay/no-such")
    await agent.setup(environment)
    await agent.run(TASK.prompt, environment, context)
    assert context.n_output_tokens == 0
    container.environ["AGENT_TYPE"] = "nobody"
    with pytest.raises(RuntimeError, match="AGENT_TYPE"):
        await agent.run(TASK.prompt, environment, context)


class Session:
    """Stands in for terminal_bench.terminal.tmux_session.TmuxSession and its docker container, as of terminal-bench 0.2.18."""

    def __init__(self, container: Container) -> None:
        self._container = container
        self.container = self

    def copy_to_container(self, paths: list[Path], container_dir: str) -> None:
        for path in paths:
            shutil.copy(path, self._container.root / container_dir.strip("/"))

    def exec_run(self, cmd: list[str], environment: Mapping[str, str] | None = None, demux: bool = False) -> SimpleNamespace:
        assert cmd[:2] == ["bash", "-c"]
        ended = self._container.run(cmd[2], environment or {})
        output = (ended.stdout.encode(), ended.stderr.encode())
        return SimpleNamespace(exit_code=ended.returncode, output=output if demux else b"".join(output))


class TerminalBenchAgent:
    def __init__(self, **kwargs: Any) -> None:
        pass


def test_the_class_for_terminal_bench_runs_a_task(container: Container, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modules: dict[str, dict[str, Any]] = {
        "terminal_bench.agents.base_agent": {"BaseAgent": TerminalBenchAgent, "AgentResult": SimpleNamespace},
        "terminal_bench.agents.failure_mode": {"FailureMode": SimpleNamespace(UNKNOWN_AGENT_ERROR="unknown")},
    }
    agent = documented("Terminal-Bench 1", modules, tmp_path, monkeypatch)(model_name=f"replay/{TASK.recording}")
    assert agent.perform_task(TASK.prompt, Session(container)) == SimpleNamespace(total_input_tokens=0, total_output_tokens=0)
    assert check(TASK, container.app) == ""
    container.environ["AGENT_TYPE"] = "nobody"
    (container.root / "opt" / "agent-server").unlink()
    assert agent.perform_task(TASK.prompt, Session(container)) == SimpleNamespace(failure_mode="unknown")
