"""A real server on providers that only litellm speaks to: a whole task, and what is left of its process."""

import os
import time
from collections.abc import Iterator
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
def claude() -> Iterator[ServerProcess]:
    """A server whose Anthropic is aimock."""
    with Aimock(FIXTURES) as aimock, serving(None, **environ(aimock)) as server:
        yield server


def environ(aimock: Aimock) -> dict[str, str]:
    return {
        "AGENT_PROVIDER": "anthropic",
        "AGENT_MODEL": "claude-sonnet-4-5",
        "ANTHROPIC_API_KEY": KEY,
        "ANTHROPIC_BASE_URL": aimock.url,
        "NO_PROXY": "127.0.0.1",
    }


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
    assert "pydantic_core" not in Path(f"/proc/{claude.process.pid}/maps").read_text()
    assert "pydantic_core" in Path(f"/proc/{child}/maps").read_text()
    for name in ("environ", "cmdline"):
        assert KEY.encode() not in Path(f"/proc/{child}/{name}").read_bytes()
    assert KEY not in claude.log()


def test_a_missing_key_is_named_at_once(claude: ServerProcess) -> None:
    response = claude.post("/run", {"prompt": "go", "provider": "gemini", "model": "gemini-2.5-pro"})
    assert "GEMINI_API_KEY" in response.text


def test_a_killed_server_leaves_no_process_behind(claude: ServerProcess) -> None:
    (child,) = children(claude)
    claude.kill()
    until = time.monotonic() + 5
    while is_alive(child):
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_server_that_is_killed_during_the_import_leaves_none_either(tmp_path: Path) -> None:
    with Aimock(FIXTURES) as aimock, serving(tmp_path, **environ(aimock)) as server:
        server.submit("make it")
        until = time.monotonic() + 20
        while not (found := children(server)):
            assert time.monotonic() < until
            time.sleep(0.005)
        time.sleep(0.5)  # into the import
        server.kill()
        until = time.monotonic() + 5
        while is_alive(found[0]):
            assert time.monotonic() < until
            time.sleep(0.01)


def test_a_setting_sends_everything_through_litellm(tmp_path: Path, model: OpenAIEmulator) -> None:
    calls = [{"name": "bash", "arguments": {"command": "echo made > made.txt", "description": "Makes"}}]
    model.script({"tool_calls": calls}, {"text": "It is made."})
    with serving(tmp_path, AGENT_GATEWAY="litellm", AGENT_BASE_URL=model.url, NO_PROXY="127.0.0.1") as server:
        task = server.finish(server.submit("make it"))
        assert (task["status"], task["response"]) == ("completed", "It is made."), server.log()
        (child,) = children(server)
        assert server.stop() == 0
        assert not is_alive(child)
    assert "custom_openai" not in model.requests()[0].body
    assert os.getpid() != child
