"""Both ways to a model, held to the same: the same deltas, errors and usage, whatever a chat completions server does."""

import asyncio
import itertools
import json
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import pytest
import pytest_asyncio

from agent_server.gateway import Fault, Gateway, ModelError, ModelOptions, ReasoningDelta, TextDelta
from agent_server.gateway.chat import CALL_TIME, ChatGateway
from agent_server.gateway.litellm import LitellmGateway
from agent_server.gateway.litellm_processes import Processes
from agent_server.gateway.providers import ProviderSettings
from agent_server.messages import Image, Message, Text, ToolCall, Usage
from tests.emulators.openai import OpenAIEmulator
from tests.gateway.conftest import BASH, OPTIONS, collect, user

pytestmark = pytest.mark.asyncio(loop_scope="session")

CALLS = [{"name": "bash", "arguments": {"command": "ls"}, "id": "a"}, {"name": "bash", "arguments": "", "id": "b"}]
CALLED = (ToolCall("a", "bash", '{"command": "ls"}'), ToolCall("b", "bash", "{}"))
WAYS = ("chat", "litellm")


def by(way: str, settings: ProviderSettings, processes: Processes, *, call_timeout: float = CALL_TIME) -> Gateway:
    """A gateway that waits no longer than tests should for a byte that never comes."""
    if way == "chat":
        return ChatGateway(settings, idle_timeout=0.5, call_timeout=call_timeout)
    return LitellmGateway(settings, idle_timeout=0.5, call_timeout=call_timeout, processes=processes)


@pytest_asyncio.fixture(loop_scope="session", params=WAYS)
async def gateway(request: pytest.FixtureRequest, emulator: OpenAIEmulator, processes: Processes) -> AsyncIterator[Gateway]:
    gateway = by(request.param, ProviderSettings(emulator.url, "sk-secret-1"), processes)
    yield gateway
    if isinstance(gateway, ChatGateway):
        await gateway.close()


async def failure(gateway: Gateway, options: ModelOptions = OPTIONS) -> ModelError:
    with pytest.raises(ModelError) as caught:
        await collect(gateway, options=options)
    return caught.value


async def test_text_reasoning_and_usage_are_streamed(emulator: OpenAIEmulator, gateway: Gateway) -> None:
    usage = {"prompt_tokens": 9, "completion_tokens": 4, "cost": 0.25, "prompt_tokens_details": {"cached_tokens": 8}}
    emulator.script({"text": "Grüße ☕", "reasoning": "Hm", "usage": usage})
    deltas, completion = await collect(gateway)
    assert "".join(delta.text for delta in deltas if isinstance(delta, TextDelta)) == "Grüße ☕" == completion.message.text
    assert "".join(delta.text for delta in deltas if isinstance(delta, ReasoningDelta)) == "Hm"
    assert (completion.usage, completion.finish_reason) == (Usage(9, 4, 8, 0, 0.25), "stop")


@pytest.mark.parametrize("shape", [{}, {"pieces": 20}, {"repeat_names": True}, {"without_index": True}, {"whole": True}, {"delay": 0.001}])
async def test_tool_calls_come_whole_whatever_the_server_does(emulator: OpenAIEmulator, gateway: Gateway, shape: dict[str, Any]) -> None:
    emulator.script({"tool_calls": CALLS, **shape})
    _, completion = await collect(gateway, tools=[BASH])
    assert (completion.message.tool_calls, completion.finish_reason) == (CALLED, "tool_calls")


async def test_a_whole_answer_gives_the_same_deltas(emulator: OpenAIEmulator, gateway: Gateway) -> None:
    emulator.script({"text": "Hello", "reasoning": "Hm", "whole": True})
    deltas, completion = await collect(gateway)
    assert deltas == [ReasoningDelta("Hm"), TextDelta("Hello")]
    assert completion.message.text == "Hello"


@pytest.mark.parametrize("content_type", ["text/event-stream", "text/html; charset=utf-8", "application/json", "text/plain"])
@pytest.mark.parametrize(
    "raw",
    [
        '\n \n{"choices": [{"message": {"content": "Hello"}, "finish_reason": "stop"}]}',
        '\ufeffdata: {"choices": [{"delta": {"content": "Hello"}, "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n',
    ],
    ids=["whole", "stream"],
)
async def test_an_answer_is_read_whatever_its_content_type(emulator: OpenAIEmulator, gateway: Gateway, raw: str, content_type: str) -> None:
    emulator.script({"raw": raw, "content_type": content_type})
    deltas, completion = await collect(gateway)
    assert (deltas, completion.finish_reason) == ([TextDelta("Hello")], "stop")


FAULTS: list[tuple[dict[str, Any], Fault]] = [
    ({"status": 400}, Fault.BAD_REQUEST),
    ({"status": 400, "error": {"message": "This model's maximum context length is 8192 tokens."}}, Fault.CONTEXT_OVERFLOW),
    ({"status": 401}, Fault.AUTHENTICATION),
    ({"status": 429}, Fault.RATE_LIMIT),
    ({"status": 500}, Fault.OVERLOADED),
    ({"status": 529}, Fault.OVERLOADED),
    ({"status": 500, "headers": {"content-encoding": "gzip"}}, Fault.BAD_RESPONSE),
    ({"status": 302, "headers": {"location": "http://127.0.0.1/"}}, Fault.BAD_REQUEST),
    ({"status": 202}, Fault.OVERLOADED),
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
async def test_each_fault_has_its_name(emulator: OpenAIEmulator, gateway: Gateway, turn: dict[str, Any], fault: Fault) -> None:
    emulator.script(turn, {"text": "Again"})
    error = await failure(gateway)
    assert error.fault is fault, error
    assert error.details["reason"] == fault.value
    assert (await collect(gateway))[1].message.text == "Again"


async def test_the_wish_of_a_provider_to_wait_is_passed_on(emulator: OpenAIEmulator, gateway: Gateway) -> None:
    emulator.script({"status": 429, "headers": {"Retry-After": "7"}, "error": {"message": "Slow down"}})
    error = await failure(gateway)
    assert (error.retry_after, error.message, error.details["providerStatus"]) == (7.0, "openai-compatible 429: Slow down", 429)


async def test_a_long_error_is_cut_and_never_shows_the_key(emulator: OpenAIEmulator, gateway: Gateway) -> None:
    emulator.script({"status": 401, "error": {"message": "Incorrect API key provided: sk-secret-1. " + "x" * 100_000}})
    error = await failure(gateway)
    assert "Incorrect API key provided: [key]" in error.message
    assert "sk-secret-1" not in f"{error!r}{error.details}"
    assert len(error.message) <= 1000


@pytest.mark.parametrize("way", WAYS)
async def test_an_error_that_trickles_in_is_not_waited_for(processes: Processes, way: str) -> None:
    async def trickle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 401 Unauthorized\r\ncontent-length: 1000\r\n\r\nNo such key. ")
        while not writer.is_closing() and not reader.at_eof():
            writer.write(b".")
            await asyncio.sleep(0.2)
        writer.close()

    async with await asyncio.start_server(trickle, "127.0.0.1", 0) as server:
        gateway = by(way, ProviderSettings(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", "sk-1"), processes)
        error = await failure(gateway)
        assert error.fault is Fault.AUTHENTICATION
        assert error.message.startswith("openai-compatible 401: No such key. .")
        if isinstance(gateway, ChatGateway):
            await gateway.close()


@pytest.mark.parametrize("way", WAYS)
async def test_a_call_may_take_so_long_and_no_longer(emulator: OpenAIEmulator, processes: Processes, way: str) -> None:
    gateway = by(way, ProviderSettings(emulator.url, "sk-1"), processes, call_timeout=0.3)
    emulator.script({"text": "x" * 1000, "pieces": 1000, "delay": 0.01})
    error = await failure(gateway)
    assert (error.fault, error.message) == (Fault.STREAM_IDLE, "openai-compatible was still answering after 0.3 s.")
    if isinstance(gateway, ChatGateway):
        await gateway.close()


async def test_an_answer_that_breaks_after_its_finish_reason_is_kept(emulator: OpenAIEmulator, gateway: Gateway) -> None:
    emulator.script({"text": "Hello", "pieces": 1, "cut_after": 3})
    _, completion = await collect(gateway)
    assert (completion.message.text, completion.usage) == ("Hello", Usage())


async def test_requests_carry_the_key_and_the_conversation(emulator: OpenAIEmulator, gateway: Gateway) -> None:
    emulator.script({"text": "Hello"})
    await collect(gateway, [Message("system", (Text("Be brief."),)), user("Hi")], [BASH], ModelOptions("openrouter", "a/b", 5))
    request = emulator.requests()[0]
    assert (request.path, request.headers["authorization"]) == ("/v1/chat/completions", "Bearer sk-secret-1")
    assert [message["content"] for message in request.json["messages"]] == ["Be brief.", "Hi"]
    assert (request.json["model"], request.json["max_tokens"]) == ("a/b", 5)
    assert 0 < request.arrived_ns < request.answered_ns <= time.monotonic_ns()


async def test_a_task_repeats_its_prefix_in_every_request(emulator: OpenAIEmulator, gateway: Gateway) -> None:
    emulator.script({"script": "bash-true", "steps": 5, "reasoning": "Hm"})
    messages = [user("Go")]
    for _ in range(6):
        _, completion = await collect(gateway, messages, [BASH])
        messages.append(completion.message)
        messages += [Message("tool", (Text(""),), tool_call_id=call.id) for call in completion.message.tool_calls]
    assert completion.message.text == "Done after 5 steps."
    bodies = [request.json for request in emulator.requests()]
    sent = [json.dumps(body.pop("messages")) for body in bodies]
    assert len(sent) == 6
    assert all(after.startswith(before.removesuffix("]")) for before, after in itertools.pairwise(sent))
    assert all(body == bodies[0] for body in bodies)


async def test_the_cache_marks_for_models_of_anthropic_reach_what_passes_them_on(emulator: OpenAIEmulator, gateway: Gateway) -> None:
    emulator.script({"text": "Hello"})
    messages = [Message("system", (Text("Be brief."),)), user("Hi"), Message("assistant", (Text("Yes?"),)), user("Go")]
    await collect(gateway, messages, [BASH], ModelOptions("openrouter", "anthropic/claude-sonnet-4.5"))
    sent = emulator.requests()[0].json["messages"]
    assert ["cache_control" in json.dumps(message) for message in sent] == [True, False, True, True]


async def test_ids_that_a_provider_gives_twice_are_made_distinct(emulator: OpenAIEmulator, gateway: Gateway) -> None:
    emulator.script({"repeat": {"tool_calls": [{"name": "bash", "id": "call_0"}]}, "times": 2}, {"text": "Done"})
    messages = [user("Go")]
    for _ in range(3):
        _, completion = await collect(gateway, messages, [BASH])
        messages.append(completion.message)
        messages += [Message("tool", (Text("done"),), tool_call_id=call.id) for call in completion.message.tool_calls]
    assert [call.id for message in messages for call in message.tool_calls] == ["call_0", "call_0_1"]


async def test_an_unpriced_answer_is_priced_from_the_table(emulator: OpenAIEmulator, gateway: Gateway) -> None:
    usage = {"prompt_tokens": 1_000_000, "completion_tokens": 0}
    emulator.script(*({"text": "Hello", "usage": usage} for _ in range(2)), {"text": "Hello", "usage": {}})
    models = ["gpt-4o", "no-such-model", "gpt-4o"]
    costs = [(await collect(gateway, options=ModelOptions("openai", model)))[1].usage.cost for model in models]
    assert costs == [pytest.approx(2.5), None, None]


@pytest.mark.parametrize(
    "told",
    [
        {"prompt_tokens_details": {"cached_tokens": 600_000, "cache_write_tokens": 200_000}},
        {"prompt_tokens_details": {"cached_tokens": 600_000, "cache_creation_tokens": 200_000}, "cache_creation_input_tokens": 200_000},
    ],
    ids=["openrouter", "litellm"],
)
async def test_what_is_written_into_a_cache_has_its_own_price(told: dict[str, Any], emulator: OpenAIEmulator, gateway: Gateway) -> None:
    emulator.script({"text": "Hello", "usage": {"prompt_tokens": 1_000_000, "completion_tokens": 0, **told}})
    _, completion = await collect(gateway, options=ModelOptions("openrouter", "anthropic/claude-sonnet-4.5"))
    assert completion.usage.cost == pytest.approx(0.2 * 3 + 0.6 * 0.3 + 0.2 * 3.75)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("closing", ["cancel", "aclose"])
async def test_a_call_that_nobody_wants_closes_its_connection(closing: str, way: str, processes: Processes) -> None:
    hung_up, streaming = asyncio.Event(), asyncio.Event()

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b'HTTP/1.1 200 OK\r\n\r\ndata: {"choices":[{"delta":{"content":"Hi"}}]}\n\n')
        while await reader.read(4096):
            pass
        writer.close()
        hung_up.set()

    async def listen(gateway: Gateway) -> None:
        async with aclosing(gateway.stream([user("Hi")], [], OPTIONS)) as deltas:
            async for _ in deltas:
                streaming.set()
                if closing == "aclose":
                    return

    async with await asyncio.start_server(converse, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        gateway = by(way, ProviderSettings(base_url=f"http://127.0.0.1:{port}/v1"), processes)
        listener = asyncio.create_task(listen(gateway))
        await streaming.wait()
        if closing == "cancel":
            listener.cancel()
        await asyncio.wait_for(hung_up.wait(), 5)
        await asyncio.wait([listener])
        assert listener.cancelled() is (closing == "cancel")
        if isinstance(gateway, ChatGateway):
            await gateway.close()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("key", [None, "sk-own"])
async def test_a_key_is_sent_only_where_there_is_one(emulator: OpenAIEmulator, processes: Processes, way: str, key: str | None) -> None:
    emulator.script({"text": "Hello"})
    gateway = by(way, ProviderSettings(emulator.url, key, {"OPENAI_API_KEY": "sk-openai"}), processes)
    await collect(gateway)
    assert emulator.requests()[0].headers.get("authorization") == (f"Bearer {key}" if key else None)
    if isinstance(gateway, ChatGateway):
        await gateway.close()


async def test_images_reach_the_model(emulator: OpenAIEmulator, gateway: Gateway) -> None:
    emulator.script({"text": "A dot."})
    await collect(gateway, [Message("user", (Text("What is it?"), Image("image/png", "aGk=")))])
    content = emulator.requests()[0].json["messages"][0]["content"]
    assert content == [{"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}}]


async def test_reasoning_goes_back_to_the_model_it_came_from(emulator: OpenAIEmulator, gateway: Gateway) -> None:
    call = {"tool_calls": CALLS[:1]}
    emulator.script({"reasoning": "Hm", "reasoning_field": "reasoning_content", **call}, {"text": "Done"})
    messages = [user("Go")]
    _, completion = await collect(gateway, messages, [BASH])
    await collect(gateway, [*messages, completion.message, Message("tool", (Text("a"),), tool_call_id="a")], [BASH])
    assert emulator.requests()[1].json["messages"][1]["reasoning_content"] == "Hm"


async def test_arguments_that_are_no_json_come_as_they_are(emulator: OpenAIEmulator, gateway: Gateway) -> None:
    emulator.script({"tool_calls": [{"name": "bash", "arguments": '{"command": oops', "id": "a"}]})
    _, completion = await collect(gateway, tools=[BASH])
    assert completion.message.tool_calls == (ToolCall("a", "bash", '{"command": oops'),)


async def test_the_same_text_over_and_over_is_no_error(emulator: OpenAIEmulator, gateway: Gateway) -> None:
    emulator.script({"text": "=" * 500, "pieces": 500})
    assert (await collect(gateway))[1].message.text == "=" * 500


async def test_a_large_answer_comes_whole(emulator: OpenAIEmulator, gateway: Gateway) -> None:
    text = "0123456789abcdef" * 2**17
    emulator.script({"text": text, "pieces": 64}, {"text": text, "whole": True})
    for _ in range(2):
        assert (await collect(gateway))[1].message.text == text
