import asyncio
import itertools
import subprocess
import sys

import pytest

from agent_server.gateway import Fault, ModelError
from agent_server.gateway.chat import ChatGateway
from agent_server.gateway.providers import ProviderSettings
from agent_server.messages import Message, Text
from tests.emulators.openai import OpenAIEmulator
from tests.gateway.conftest import BASH, collect, user


async def failure(gateway: ChatGateway) -> ModelError:
    with pytest.raises(ModelError) as caught:
        await collect(gateway)
    return caught.value


async def test_comments_do_not_hold_a_call_open_for_ever(emulator: OpenAIEmulator) -> None:
    gateway = ChatGateway(ProviderSettings(base_url=emulator.url), call_timeout=0.2)
    emulator.script({"text": "x" * 1000, "pieces": 1000, "delay": 0.01})
    error = await failure(gateway)
    assert (error.fault, error.message) == (Fault.STREAM_IDLE, "openai-compatible was still answering after 0.2 s.")
    await gateway.close()


async def test_a_request_repeats_the_bytes_of_the_one_before(emulator: OpenAIEmulator, gateway: ChatGateway) -> None:
    emulator.script({"script": "bash-true", "steps": 2})
    messages = [user("Go")]
    for _ in range(3):
        _, completion = await collect(gateway, messages, [BASH])
        messages.append(completion.message)
        messages += [Message("tool", (Text(""),), tool_call_id=call.id) for call in completion.message.tool_calls]
    bodies = [request.body for request in emulator.requests()]
    assert all(after.startswith(before.removesuffix("]}")) for before, after in itertools.pairwise(bodies))


async def test_calls_that_come_first_together_share_a_client(emulator: OpenAIEmulator, gateway: ChatGateway) -> None:
    emulator.script({"repeat": {"text": "Hello"}, "times": 8})
    answers = await asyncio.gather(*(collect(gateway) for _ in range(8)))
    assert [completion.message.text for _, completion in answers] == ["Hello"] * 8


@pytest.mark.parametrize(
    ("base_url", "fault", "message"),
    [
        ("http://127.0.0.1:1/v1", Fault.NETWORK, "cannot be reached at 127.0.0.1"),
        ("https://user:hunter2@127.0.0.1:1/v1", Fault.NETWORK, "cannot be reached at 127.0.0.1"),
        ("127.0.0.1/v1", Fault.BAD_REQUEST, "must be like https://host/v1"),
        ("http://127.0.0.1:port/v1", Fault.BAD_REQUEST, "must be like https://host/v1"),
    ],
)
async def test_a_server_that_cannot_be_reached_is_named(base_url: str, fault: Fault, message: str) -> None:
    gateway = ChatGateway(ProviderSettings(base_url=base_url))
    error = await failure(gateway)
    assert error.fault is fault
    assert message in error.message
    assert "hunter2" not in error.message
    await gateway.close()


async def test_a_proxy_that_cannot_be_used_is_a_model_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "gopher://127.0.0.1:1")
    error = await failure(ChatGateway(ProviderSettings(base_url="http://127.0.0.1:1/v1")))
    assert "proxy" in error.message


async def test_close_may_be_called_twice() -> None:
    gateway = ChatGateway(ProviderSettings())
    await gateway.close()
    await gateway.close()


def test_importing_the_gateways_imports_no_http_client() -> None:
    modules = "agent_server.gateway.route, agent_server.gateway.chat, agent_server.gateway.retry, agent_server.gateway.replay"
    program = f"import sys, {modules}; sys.exit(bool({{'httpx', 'httpcore', 'litellm', 'openai'}} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", program], check=True)
