"""A real server on providers that only litellm speaks to: a whole task, and what is left of its process."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.emulators.aimock import Aimock
from tests.emulators.openai import OpenAIEmulator
from tests.serving import ServerProcess, is_alive, serving

KEY = "sk-ant-0123456789abcdef"

FIXTURES: list[dict[str, Any]] = [
    {
        "match": {"userMessage": "make", "turnIndex": 0},
        "response": {"toolCalls": [{"name": "bash", "arguments": {"command": "echo made > made.txt", "description": "Makes"}}]},
    },
    {"match": {"userMessage": "make", "turnIndex": 1}, "response": {"content": "It is made."}},
]


@pytest.fixture(scope="module")
def openai() -> Iterator[OpenAIEmulator]:
    with OpenAIEmulator() as emulator:
        yield emulator


@pytest.fixture(scope="module")
def claude(openai: OpenAIEmulator) -> Iterator[ServerProcess]:
    """A server whose Anthropic is aimock, and whose OpenAI is the emulator. All tests have one process of litellm's."""
    more = {"AGENT_GATEWAY": "litellm", "OPENAI_API_KEY": "sk-0123456789abcdef", "OPENAI_BASE_URL": openai.url}
    with Aimock(FIXTURES) as aimock, serving(None, **environ(aimock), **more) as server:
        yield server


def environ(aimock: Aimock) -> dict[str, str]:
    return {
        "AGENT_PROVIDER": "anthropic",
        "AGENT_MODEL": "claude-sonnet-4-5",
        "ANTHROPIC_API_KEY": KEY,
        "ANTHROPIC_BASE_URL": aimock.url,
        "NO_PROXY": "127.0.0.1",
    }


def pss(pid: int) -> int:
    """Bytes of memory that a process has, its share of what several have included."""
    (line,) = [line for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines() if line.startswith("Pss:")]
    return int(line.split()[1]) << 10


def children(server: ServerProcess) -> list[int]:
    """The processes of litellm that this server has."""
    assert server.process is not None
    pid = server.process.pid
    found = [int(text) for text in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return [child for child in found if b"litellm_child" in Path(f"/proc/{child}/cmdline").read_bytes()]


def test_a_task_with_a_tool_call_completes_while_the_server_answers(claude: ServerProcess) -> None:
    assert children(claude) == []
    task_id = claude.submit("make it")
    slowest = 0.0
    while claude.get(f"/tasks/{task_id}").json()["status"] == "processing":
        begun = time.monotonic()
        assert claude.get("/health").status_code == 200
        slowest = max(slowest, time.monotonic() - begun)
        time.sleep(0.02)
    task = claude.finish(task_id)
    assert (task["status"], task["response"]) == ("completed", "It is made."), claude.log()
    assert (claude.workspace / "made.txt").read_text() == "made\n"
    assert slowest < 1
    assert [event["type"] for event in claude.task_events(task_id)].count("task.retrying") == 0


def test_the_server_itself_stays_light_and_the_key_unseen(claude: ServerProcess) -> None:
    (child,) = children(claude)
    assert claude.process is not None
    assert not has_mapped(claude.process.pid)
    assert has_mapped(child)
    assert pss(claude.process.pid) < 80 << 20 < pss(child)
    for name in ("environ", "cmdline"):
        assert KEY.encode() not in Path(f"/proc/{child}/{name}").read_bytes()
    assert KEY not in claude.log()


def test_a_setting_sends_everything_through_litellm(claude: ServerProcess, openai: OpenAIEmulator) -> None:
    (child,) = children(claude)
    calls = [{"name": "bash", "arguments": {"command": "echo made > other.txt", "description": "Makes"}}]
    openai.script({"tool_calls": calls}, {"text": "It is made."})
    task = claude.finish(claude.submit("make it", provider="openai", model="gpt-4o"))
    assert (task["status"], task["response"]) == ("completed", "It is made."), claude.log()
    first = openai.requests()[0]
    assert "openai" in first.headers["user-agent"].lower()  # the client that litellm has for it
    assert children(claude) == [child]


def test_a_missing_key_is_named_at_once(claude: ServerProcess) -> None:
    response = claude.post("/run", {"prompt": "go", "provider": "gemini", "model": "gemini-2.5-pro"})
    assert "GEMINI_API_KEY" in response.text


def test_a_killed_server_leaves_no_process_behind(claude: ServerProcess) -> None:
    (child,) = children(claude)
    claude.kill()
    gone(child)


@pytest.mark.parametrize("ending", [ServerProcess.kill, ServerProcess.stop])
def test_a_server_that_ends_during_the_import_leaves_none_either(tmp_path: Path, ending: Callable[[ServerProcess], object]) -> None:
    with Aimock(FIXTURES) as aimock, serving(tmp_path, **environ(aimock)) as server:
        server.submit("make it")
        child = importing(server)
        ending(server)
        gone(child)


def importing(server: ServerProcess) -> int:
    """Waits until a process of litellm's is in the midst of its import."""
    until = time.monotonic() + 60
    while not (found := [child for child in children(server) if has_mapped(child)]):
        assert time.monotonic() < until
        time.sleep(0.005)
    return found[0]


def has_mapped(pid: int) -> bool:
    """Whether it has one of the libraries that litellm imports."""
    return "pydantic_core" in Path(f"/proc/{pid}/maps").read_text()


def gone(pid: int) -> None:
    until = time.monotonic() + 30
    while is_alive(pid):
        assert time.monotonic() < until
        time.sleep(0.01)
