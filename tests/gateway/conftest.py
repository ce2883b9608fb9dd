import os
from collections.abc import AsyncIterator, Iterator, Sequence

import pytest
import pytest_asyncio

from agent_server.gateway import Completion, Delta, Gateway, ModelOptions
from agent_server.gateway.chat import ChatGateway
from agent_server.gateway.litellm_processes import Processes
from agent_server.gateway.providers import ProviderSettings
from agent_server.messages import Message, Text, ToolSpec
from tests.emulators.openai import OpenAIEmulator
from tests.serving import is_alive

OPTIONS = ModelOptions("openai", "gpt-4o")
BASH = ToolSpec("bash", "Runs a command.", {"type": "object", "properties": {"command": {"type": "string"}}})


def user(text: str) -> Message:
    return Message("user", (Text(text),))


async def collect(
    gateway: Gateway, messages: Sequence[Message] = (), tools: Sequence[ToolSpec] = (), options: ModelOptions = OPTIONS
) -> tuple[list[Delta], Completion]:
    """All deltas of an attempt, and the Completion that must be the last of them."""
    deltas = [delta async for delta in gateway.stream(messages or [user("Hello")], tools, options)]
    completion = deltas.pop()
    assert isinstance(completion, Completion)
    return deltas, completion


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture(scope="session")
def emulator_process() -> Iterator[OpenAIEmulator]:
    with OpenAIEmulator() as emulator:
        yield emulator


@pytest.fixture
def emulator(emulator_process: OpenAIEmulator) -> OpenAIEmulator:
    emulator_process.script()
    return emulator_process


@pytest.fixture
async def gateway(emulator: OpenAIEmulator) -> AsyncIterator[ChatGateway]:
    """Waits no longer than tests should for a byte that never comes."""
    gateway = ChatGateway(ProviderSettings(base_url=emulator.url, api_key="sk-secret-1"), idle_timeout=0.5)
    yield gateway
    await gateway.close()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def processes() -> AsyncIterator[Processes]:
    """litellm's one process for all tests: it takes seconds to start."""
    processes = Processes({"PATH": os.environ["PATH"], "NO_PROXY": "127.0.0.1"})
    yield processes
    pid = processes.pid
    await processes.close()
    assert pid is None or not is_alive(pid)
