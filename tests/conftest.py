"""What the tests share: a real server process, and a fake provider in a process of its own."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.emulators.openai import OpenAIEmulator
from tests.serving import ServerProcess, serving


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    """A server on empty folders, with no provider."""
    with serving(tmp_path) as running:
        yield running


@pytest.fixture(scope="module")
def model() -> Iterator[OpenAIEmulator]:
    """A fake OpenAI-compatible provider, strict about histories. Script it in each test."""
    with OpenAIEmulator() as emulator:
        yield emulator


@pytest.fixture
def agent(tmp_path: Path, model: OpenAIEmulator) -> Iterator[ServerProcess]:
    """A server on empty folders whose provider is `model`."""
    with serving(tmp_path, AGENT_BASE_URL=model.url, AGENT_API_KEY="sk-test-key-of-the-model") as running:
        yield running


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB, to be filled."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture(scope="module")
def lasting(model: OpenAIEmulator) -> Iterator[ServerProcess]:
    """A server for many tests, whose provider is `model`."""
    with serving(AGENT_BASE_URL=model.url, AGENT_API_KEY="sk-test-key-of-the-model") as running:
        yield running


@pytest.fixture
def anew(lasting: ServerProcess) -> Iterator[ServerProcess]:
    """The lasting server, running, with nothing in its main session and its workspace: a tenth of a start."""
    if not lasting.is_running:
        lasting.start()
    yield lasting
    if not lasting.is_running:
        lasting.start()
    for task in lasting.get("/tasks?status=processing").json()["tasks"]:
        lasting.post(f"/tasks/{task['taskId']}/cancel")
    with lasting.client() as client:
        assert client.delete("/sessions/sess_main").status_code in (200, 404)
    subprocess.run(["find", lasting.workspace, "-mindepth", "1", "-delete"], check=True)
