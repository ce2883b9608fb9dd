import asyncio
import itertools
import json
import subprocess
import sys
import time
from contextlib import aclosing
from typing import Any

import pytest

from agent_server.gateway import Fault, ModelError, ModelOptions, ReasoningDelta, TextDelta
from agent_server.gateway.chat import ChatGateway
from agent_server.gateway.providers import ProviderSettings
from agent_server.messages import Message, Text, ToolCall, Usage
from tests.emulators.openai import OpenAIEmulator
from tests.gateway.conftest import BASH, OPTIONS, collect, user

CALLS = [{"name": "bash", "arguments": {"command": "ls"}, "id": "a"}, {"name": "bash", "arguments": "", "id": "b"}]
CALLED = (ToolCall("a", "bash", '{"command": "ls"}'), ToolCall("b", "bash", "{}"))


async def failure(gateway: ChatGateway) -> ModelError:
    with pytest.raises(ModelError) as caught:
        await collect(gateway)
    return caught.value


async def test_text_reasoning_and_usage_are_streamed(emulator: OpenAIEmulator, gateway: ChatGateway) -> None:
    usage = {"prompt_tokens": 9, "completion_tokens": 4, "cost": 0.25, "prompt_tokens_details": {"cached_tokens": 8}}
    emulator.script({"text": "Grüße ☕", "reasoning": "Hm", "usage": usage})
    deltas, completion = await collect(gateway)
    assert "".join(delta.text for delta in deltas if isinstance(delta, TextDelta)) == "Grüße ☕" == completion.message.text
    assert "".join(delta.text for delta in deltas if isinstance(delta, ReasoningDelta)) == "Hm"
    assert (completion.usage, completion.finish_reason) == (Usage(9, 4, 8, 0, 0.25), "stop")


@pytest.mark.parametrize("shape", [{}, {"pieces": 20}, {"repeat_names": True}, {"without_index": True}, {"whole": True}, {"delay": 0.001}])
async def test_tool_calls_come_whole_whatever_the_server_does(
    emulator: OpenAIEmulator, gateway: ChatGateway, shape: dict[str, Any]
) -> None:
    emulator.script({"tool_calls": CALLS, **shape})
    _, completion = await collect(gateway, tools=[BASH])
    assert (completion.message.tool_calls, completion.finish_reason) == (CALLED, "tool_calls")


async def test_a_whole_answer_gives_the_same_deltas(emulator: OpenAIEmulator, gateway: ChatGateway) -> None:
    emulator.script({"text": "Hello", "reasoning": "Hm", "whole": True})
    deltas, completion = await collect(gateway)
    assert deltas == [ReasoningDelta("Hm"), TextDelta("Hello")]
    assert completion.message.text == "Hello"


FAULTS: list[tuple[dict[str, Any], Fault]] = [
    ({"status": 400}, Fault.BAD_REQUEST),
    ({"status": 400, "error": {"message": "This model's maximum context length is 8192 tokens."}}, Fault.CONTEXT_OVERFLOW),
    ({"status": 401}, Fault.AUTHENTICATION),
    ({"status": 429}, Fault.RATE_LIMIT),
    ({"status": 500}, Fault.OVERLOADED),
    ({"status": 529}, Fault.OVERLOADED),
    ({"status": 500, "headers": {"content-encoding": "gzip"}}, Fault.BAD_RESPONSE),
    ({"status": 302, "headers": {"location": "http://127.0.0.1/"}}, Fault.BAD_REQUEST),
    ({"drop": True}, Fault.NETWORK),
    ({"text": "Hello", "cut_after": 0}, Fault.STREAM_CUT),
    ({"text": "Hello", "cut_after": 2}, Fault.STREAM_CUT),
    ({"tool_calls": CALLS, "cut_after": 3}, Fault.STREAM_CUT),
    ({"text": "Hello", "stall": 30}, Fault.STREAM_IDLE),
    ({"text": "Hello", "stall": 30, "cut_after": 2}, Fault.STREAM_IDLE),
    ({"text": "Hello", "garbage": True}, Fault.BAD_RESPONSE),
    ({"raw": "<html>", "content_type": "text/html"}, Fault.BAD_RESPONSE),
    ({"raw": '{"choices": oops', "content_type": "application/json"}, Fault.BAD_RESPONSE),
    ({"raw": '{"error":{"code":429,"message":"Slow"}}', "content_type": "application/json"}, Fault.RATE_LIMIT),
    ({}, Fault.EMPTY),
    ({"reasoning": "Hm"}, Fault.EMPTY),
    ({"whole": True}, Fault.EMPTY),
    ({"finish_reason": "content_filter"}, Fault.BAD_REQUEST),
    ({"text": "Hello", "stream_error": {"code": 502, "message": "Upstream broke"}}, Fault.OVERLOADED),
]


@pytest.mark.parametrize(("turn", "fault"), FAULTS, ids=[json.dumps(turn) for turn, _ in FAULTS])
async def test_each_fault_has_its_name(emulator: OpenAIEmulator, gateway: ChatGateway, turn: dict[str, Any], fault: Fault) -> None:
    emulator.script(turn, {"text": "Again"})
    error = await failure(gateway)
    assert error.fault is fault, error
    assert error.details["reason"] == fault.value
    assert (await collect(gateway))[1].message.text == "Again"


async def test_the_wish_of_a_provider_to_wait_is_passed_on(emulator: OpenAIEmulator, gateway: ChatGateway) -> None:
    emulator.script({"status": 429, "headers": {"Retry-After": "7"}, "error": {"message": "Slow down"}})
    error = await failure(gateway)
    assert (error.retry_after, error.message, error.details["providerStatus"]) == (7.0, "openai-compatible 429: Slow down", 429)


async def test_a_long_error_is_cut_and_never_shows_the_key(emulator: OpenAIEmulator, gateway: ChatGateway) -> None:
    emulator.script({"status": 401, "error": {"message": "Incorrect API key provided: sk-secret-1. " + "x" * 100_000}})
    error = await failure(gateway)
    assert "Incorrect API key provided: [key]" in error.message
    assert "sk-secret-1" not in f"{error!r}{error.details}"
    assert len(error.message) <= 1000


async def test_an_answer_that_breaks_after_its_finish_reason_is_kept(emulator: OpenAIEmulator, gateway: ChatGateway) -> None:
    emulator.script({"text": "Hello", "pieces": 1, "cut_after": 3})
    _, completion = await collect(gateway)
    assert (completion.message.text, completion.usage) == ("Hello", Usage())


async def test_comments_do_not_hold_a_call_open_for_ever(emulator: OpenAIEmulator) -> None:
    gateway = ChatGateway(ProviderSettings(base_url=emulator.url), call_timeout=0.2)
    emulator.script({"text": "x" * 1000, "pieces": 1000, "delay": 0.01})
    error = await failure(gateway)
    assert (error.fault, error.message) == (Fault.STREAM_IDLE, "openai-compatible was still answering after 0.2 s.")
    await gateway.close()


async def test_requests_carry_the_key_and_the_conversation(emulator: OpenAIEmulator, gateway: ChatGateway) -> None:
    emulator.script({"text": "Hello"})
    await collect(gateway, [Message("system", (Text("Be brief."),)), user("Hi")], [BASH], ModelOptions("openrouter", "a/b", 5))
    request = emulator.requests()[0]
    assert (request.path, request.headers["authorization"]) == ("/v1/chat/completions", "Bearer sk-secret-1")
    assert [message["content"] for message in request.json["messages"]] == ["Be brief.", "Hi"]
    assert (request.json["model"], request.json["max_tokens"]) == ("a/b", 5)
    assert 0 < request.arrived_ns < request.answered_ns <= time.monotonic_ns()


async def test_a_task_repeats_its_prefix_in_every_request(emulator: OpenAIEmulator, gateway: ChatGateway) -> None:
    emulator.script({"script": "bash-true", "steps": 5, "reasoning": "Hm"})
    messages = [user("Go")]
    for _ in range(6):
        _, completion = await collect(gateway, messages, [BASH])
        messages.append(completion.message)
        messages += [Message("tool", (Text(""),), tool_call_id=call.id) for call in completion.message.tool_calls]
    assert completion.message.text == "Done after 5 steps."
    bodies = [request.body for request in emulator.requests()]
    assert len(bodies) == 6
    assert all(after.startswith(before.removesuffix("]}")) for before, after in itertools.pairwise(bodies))


async def test_ids_that_a_provider_gives_twice_are_made_distinct(emulator: OpenAIEmulator, gateway: ChatGateway) -> None:
    emulator.script({"repeat": {"tool_calls": [{"name": "bash", "id": "call_0"}]}, "times": 2}, {"text": "Done"})
    messages = [user("Go")]
    for _ in range(3):
        _, completion = await collect(gateway, messages, [BASH])
        messages.append(completion.message)
        messages += [Message("tool", (Text("done"),), tool_call_id=call.id) for call in completion.message.tool_calls]
    assert [call.id for message in messages for call in message.tool_calls] == ["call_0", "call_0_1"]


async def test_calls_that_come_first_together_share_a_client(emulator: OpenAIEmulator, gateway: ChatGateway) -> None:
    emulator.script({"repeat": {"text": "Hello"}, "times": 8})
    answers = await asyncio.gather(*(collect(gateway) for _ in range(8)))
    assert [completion.message.text for _, completion in answers] == ["Hello"] * 8


async def test_an_unpriced_answer_is_priced_from_the_table(emulator: OpenAIEmulator, gateway: ChatGateway) -> None:
    usage = {"prompt_tokens": 1_000_000, "completion_tokens": 0}
    emulator.script(*({"text": "Hello", "usage": usage} for _ in range(2)), {"text": "Hello", "usage": {}})
    models = ["gpt-4o", "no-such-model", "gpt-4o"]
    costs = [(await collect(gateway, options=ModelOptions("openai", model)))[1].usage.cost for model in models]
    assert costs == [pytest.approx(2.5), None, None]


@pytest.mark.parametrize("closing", ["cancel", "aclose"])
async def test_a_call_that_nobody_wants_closes_its_connection(closing: str) -> None:
    hung_up, streaming = asyncio.Event(), asyncio.Event()

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b'HTTP/1.1 200 OK\r\n\r\ndata: {"choices":[{"delta":{"content":"Hi"}}]}\n\n')
        while await reader.read(4096):
            pass
        writer.close()
        hung_up.set()

    async def listen(gateway: ChatGateway) -> None:
        async with aclosing(gateway.stream([user("Hi")], [], OPTIONS)) as deltas:
            async for _ in deltas:
                streaming.set()
                if closing == "aclose":
                    return

    async with await asyncio.start_server(converse, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        gateway = ChatGateway(ProviderSettings(base_url=f"http://127.0.0.1:{port}/v1"))
        listener = asyncio.create_task(listen(gateway))
        await streaming.wait()
        if closing == "cancel":
            listener.cancel()
        await asyncio.wait_for(hung_up.wait(), 5)
        await asyncio.wait([listener])
        assert listener.cancelled() is (closing == "cancel")
        await gateway.close()


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
