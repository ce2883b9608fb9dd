"""The wire formats of other makers, through litellm's process: against aimock, and against streams that break."""

import json
import os
from collections.abc import Iterator
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from agent_server.gateway import Completion, Delta, Fault, ModelError, ModelOptions, ReasoningDelta, TextDelta
from agent_server.gateway.litellm import LitellmGateway
from agent_server.gateway.litellm_processes import Processes
from agent_server.gateway.providers import ProviderSettings
from agent_server.messages import Image, Message, Text, ToolCall, ToolSpec, Usage
from tests.emulators.aimock import Aimock
from tests.emulators.openai import OpenAIEmulator
from tests.gateway.conftest import BASH, collect, user

pytestmark = pytest.mark.asyncio(loop_scope="session")

USAGE = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18, "input_tokens": 11, "output_tokens": 7}
LIST = {"name": "bash", "arguments": {"command": "ls"}}

FIXTURES: list[dict[str, Any]] = [
    {"match": {"userMessage": "hello"}, "response": {"content": "Hello there, friend: Grüße ☕.", "usage": USAGE}, "chunkSize": 4},
    {"match": {"userMessage": "picture"}, "response": {"content": "😀 👩‍👩‍👧 𝔘", "reasoning": "😀😀"}, "chunkSize": 1},
    {"match": {"userMessage": "think"}, "response": {"content": "Done.", "reasoning": "Let me see."}},
    {"match": {"userMessage": "list", "turnIndex": 0}, "response": {"toolCalls": [LIST, {"name": "bash", "arguments": {}}]}},
    {"match": {"turnIndex": 1}, "response": {"content": "All listed."}},
    {"match": {"userMessage": "limit"}, "response": {"error": {"message": "Slow down", "type": "rate_limit_error"}, "status": 429}},
    {"match": {"userMessage": "auth"}, "response": {"error": {"message": "Bad key", "type": "authentication_error"}, "status": 401}},
    {"match": {"userMessage": "bad"}, "response": {"error": {"message": "No such thing", "type": "invalid_request_error"}, "status": 400}},
    {
        "match": {"userMessage": "full"},
        "response": {"error": {"message": "prompt is too long: 2 > 1", "type": "invalid_request_error"}, "status": 400},
    },
    {"match": {"userMessage": "broken"}, "response": {"error": {"message": "Overloaded", "type": "overloaded_error"}, "status": 529}},
    {
        "match": {"userMessage": "cut"},
        "response": {"content": "An answer that is cut. " * 9},
        "chunkSize": 8,
        "truncateAfterChunks": 6,
        "latency": 5,
    },
]

MODELS = {
    "openai": "gpt-4o",
    "anthropic": "claude-sonnet-4.5",
    "gemini": "gemini-2.5-pro",
    "ollama": "llama3",
    "bedrock": "anthropic.claude-sonnet-4-5-20250929-v1:0",
    "azure": "gpt-4o",
}


@pytest.fixture(scope="module")
def aimock() -> Iterator[Aimock]:
    with Aimock(FIXTURES) as aimock:
        yield aimock


@pytest.fixture
def others(aimock: Aimock, processes: Processes) -> LitellmGateway:
    """A gateway whose providers are all aimock."""
    environ = {
        "ANTHROPIC_API_KEY": "sk-ant-1",
        "ANTHROPIC_BASE_URL": aimock.url,
        "GEMINI_API_KEY": "AIza-1",
        "GEMINI_API_BASE": f"{aimock.url}/v1beta",
        "OLLAMA_API_BASE": aimock.url,
        "AWS_ACCESS_KEY_ID": "AKIA-1",
        "AWS_SECRET_ACCESS_KEY": "secret-1",
        "AWS_REGION": "us-east-1",
        "AWS_BEDROCK_RUNTIME_ENDPOINT": aimock.url,
        "AZURE_API_KEY": "az-1",
        "AZURE_API_BASE": aimock.url,
    }
    return LitellmGateway(ProviderSettings(environ=environ), idle_timeout=3, processes=processes)


async def ask(
    others: LitellmGateway, aimock: Aimock, processes: Processes, provider: str, messages: list[Message]
) -> tuple[list[Delta], Completion]:
    if provider == "openai":
        others = LitellmGateway(ProviderSettings(f"{aimock.url}/v1", "sk-1"), idle_timeout=3, processes=processes)
    return await collect(others, messages, [BASH], ModelOptions(provider, MODELS[provider]))


@pytest.mark.parametrize("provider", MODELS)
async def test_text_and_usage_come_from_every_format(others: LitellmGateway, aimock: Aimock, processes: Processes, provider: str) -> None:
    deltas, completion = await ask(others, aimock, processes, provider, [Message("system", (Text("Be brief."),)), user("hello")])
    assert "".join(delta.text for delta in deltas if isinstance(delta, TextDelta)) == "Hello there, friend: Grüße ☕."
    assert (completion.message.text, completion.finish_reason) == ("Hello there, friend: Grüße ☕.", "stop")
    if provider != "ollama":  # its usage cannot be set there
        assert (completion.usage.prompt, completion.usage.completion) == (11, 7)
        assert completion.usage.cost is not None


@pytest.mark.parametrize("provider", MODELS)
async def test_characters_that_a_provider_cuts_come_whole(
    others: LitellmGateway, aimock: Aimock, processes: Processes, provider: str
) -> None:
    deltas, completion = await ask(others, aimock, processes, provider, [user("picture")])
    assert "".join(delta.text for delta in deltas if isinstance(delta, TextDelta)) == "😀 👩‍👩‍👧 𝔘" == completion.message.text
    assert "".join(delta.text for delta in deltas if isinstance(delta, ReasoningDelta)) == ("" if provider == "ollama" else "😀😀")


@pytest.mark.parametrize("provider", MODELS)
async def test_calls_and_their_results_go_through_every_format(
    others: LitellmGateway, aimock: Aimock, processes: Processes, provider: str
) -> None:
    messages = [user("list")]
    _, completion = await ask(others, aimock, processes, provider, messages)
    calls = completion.message.tool_calls
    assert [(call.name, json.loads(call.arguments)) for call in calls] == [("bash", {"command": "ls"}), ("bash", {})]
    assert completion.finish_reason == "tool_calls"
    assert len({call.id for call in calls}) == 2
    messages += [completion.message, *(Message("tool", (Text("a.txt"),), tool_call_id=call.id) for call in calls)]
    _, completion = await ask(others, aimock, processes, provider, messages)
    assert completion.message.text == "All listed."


@pytest.mark.parametrize("provider", [name for name in MODELS if name != "ollama"])
async def test_reasoning_comes_from_every_format(others: LitellmGateway, aimock: Aimock, processes: Processes, provider: str) -> None:
    deltas, completion = await ask(others, aimock, processes, provider, [user("think")])
    assert "".join(delta.text for delta in deltas if isinstance(delta, ReasoningDelta)) == "Let me see."
    assert completion.message.text == "Done."
    assert completion.message.reasoning is not None
    assert completion.message.reasoning["text"] == "Let me see."


@pytest.mark.parametrize(
    ("prompt", "fault"),
    [
        ("limit", Fault.RATE_LIMIT),
        ("auth", Fault.AUTHENTICATION),
        ("bad", Fault.BAD_REQUEST),
        ("full", Fault.CONTEXT_OVERFLOW),
        ("broken", Fault.OVERLOADED),
        ("cut", Fault.STREAM_CUT),
    ],
)
@pytest.mark.parametrize("provider", MODELS)
async def test_each_fault_has_its_name_in_every_format(
    others: LitellmGateway, aimock: Aimock, processes: Processes, provider: str, prompt: str, fault: Fault
) -> None:
    with pytest.raises(ModelError) as caught:
        await ask(others, aimock, processes, provider, [user(prompt)])
    assert caught.value.fault is fault, caught.value
    if prompt == "limit":
        assert (caught.value.retry_after, caught.value.details["providerStatus"]) == (1.0, 429)
    assert "litellm" not in caught.value.message


def anthropic(*events: dict[str, Any]) -> dict[str, Any]:
    """A turn of the emulator's with these events of Anthropic's."""
    return {"raw": "".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in events)}


def begin(**usage: int) -> dict[str, Any]:
    message: dict[str, Any] = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "content": [],
        "model": "m",
        "stop_reason": None,
        "usage": usage,
    }
    return {"type": "message_start", "message": message}


def block(index: int, content: dict[str, Any], *deltas: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"type": "content_block_start", "index": index, "content_block": content},
        *({"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas),
        {"type": "content_block_stop", "index": index},
    ]


def said(*texts: str) -> list[dict[str, Any]]:
    return block(0, {"type": "text", "text": ""}, *({"type": "text_delta", "text": text} for text in texts))


def thought(index: int, text: str, signature: str) -> list[dict[str, Any]]:
    deltas = ({"type": "thinking_delta", "thinking": text}, {"type": "signature_delta", "signature": signature})
    return block(index, {"type": "thinking", "thinking": "", "signature": ""}, *deltas)


def end(reason: str, **usage: int) -> list[dict[str, Any]]:
    return [{"type": "message_delta", "delta": {"stop_reason": reason}, "usage": usage}, {"type": "message_stop"}]


PING = {"type": "ping"}
CLAUDE = ModelOptions("anthropic", "claude-sonnet-4-5")


@pytest.fixture
def claude(emulator: OpenAIEmulator, processes: Processes) -> LitellmGateway:
    """A gateway whose Anthropic is the emulator."""
    environ = {"ANTHROPIC_API_KEY": "sk-ant-1", "ANTHROPIC_API_BASE": f"{emulator.url.removesuffix('/v1')}/raw"}
    return LitellmGateway(ProviderSettings(environ=environ), idle_timeout=0.5, processes=processes)


async def test_thoughts_are_kept_with_their_signatures_and_go_back(emulator: OpenAIEmulator, claude: LitellmGateway) -> None:
    hidden = block(1, {"type": "redacted_thinking", "data": "opaque"})
    call = block(3, {"type": "tool_use", "id": "toolu_1", "name": "bash", "input": {}}, {"type": "input_json_delta", "partial_json": "{}"})
    events = [*thought(0, "Hm", "sig-0"), *hidden, *thought(2, "Aha", "sig-2"), *call]
    emulator.script(anthropic(begin(input_tokens=5), *events, *end("tool_use")), anthropic(begin(), *said("Done"), *end("end_turn")))
    messages = [Message("system", (Text("Be brief."),)), user("Go")]
    deltas, completion = await collect(claude, messages, [BASH], CLAUDE)
    assert "".join(delta.text for delta in deltas if isinstance(delta, ReasoningDelta)) == "HmAha"
    messages += [completion.message, Message("tool", (Text("ok"),), tool_call_id="toolu_1")]
    await collect(claude, messages, [BASH], CLAUDE)
    body = emulator.requests()[1].json
    assert body["messages"][1]["content"] == [
        {"type": "thinking", "thinking": "Hm", "signature": "sig-0"},
        {"type": "redacted_thinking", "data": "opaque"},
        {"type": "thinking", "thinking": "Aha", "signature": "sig-2"},
        {"type": "tool_use", "id": "toolu_1", "name": "bash", "input": {}},
    ]


async def test_what_anthropic_needs_is_sent(emulator: OpenAIEmulator, claude: LitellmGateway) -> None:
    emulator.script(*[anthropic(begin(), *said("Hi"), *end("end_turn"))] * 2)
    picture = Message("user", (Text("What is it?"), Image("image/png", "aGk=")))
    await collect(claude, [Message("system", (Text("Be brief."),)), picture], [BASH], CLAUDE)
    await collect(claude, [user("Hi")], [], ModelOptions("anthropic", "anthropic/claude-sonnet-4.5", 77))
    first, second = emulator.requests()
    assert (first.path, first.headers["x-api-key"]) == ("/raw/v1/messages", "sk-ant-1")
    assert first.json["max_tokens"] >= 4096
    assert (second.json["model"], second.json["max_tokens"]) == ("claude-sonnet-4-5", 77)
    assert first.json["system"] == [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}]
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}}
    assert first.json["messages"][0]["content"] == [
        {"type": "text", "text": "What is it?"},
        image | {"cache_control": {"type": "ephemeral"}},
    ]
    assert first.json["tools"][0]["name"] == "bash"


async def test_a_token_in_the_place_of_a_key_is_a_bearers(emulator: OpenAIEmulator, processes: Processes) -> None:
    environ = {"ANTHROPIC_AUTH_TOKEN": "token-1", "ANTHROPIC_BASE_URL": f"{emulator.url.removesuffix('/v1')}/raw"}
    emulator.script(anthropic(begin(), *said("Hi"), *end("end_turn")))
    # A process of its own: the variables of the other tests are in theirs.
    own = Processes({"PATH": os.environ["PATH"], "NO_PROXY": "127.0.0.1"})
    gateway = LitellmGateway(ProviderSettings(environ=environ), processes=own)
    await collect(gateway, options=CLAUDE)
    await gateway.close()
    headers = emulator.requests()[0].headers
    assert (headers["authorization"], "x-api-key" in headers) == ("Bearer token-1", False)


EPHEMERAL = {"cache_control": {"type": "ephemeral"}}

TURNS = [
    Message("system", (Text("You help."), Text("Answer in French."))),
    user("Go"),
    Message("assistant", (Text("I look."),), (ToolCall("toolu_1", "bash", "{}"), ToolCall("toolu_2", "bash", "{}"))),
    Message("tool", (Text("one"),), tool_call_id="toolu_1"),
    Message("tool", (Text("two"),), tool_call_id="toolu_2"),
]
"""A conversation whose system prompt has a part of the task's own."""


async def test_the_cache_of_anthropic_is_marked_where_the_next_request_repeats_this_one(
    emulator: OpenAIEmulator, claude: LitellmGateway
) -> None:
    emulator.script(anthropic(begin(), *said("Hi"), *end("end_turn")))
    await collect(claude, TURNS, [BASH], CLAUDE)
    body = emulator.requests()[0].json
    assert body["system"] == [{"type": "text", "text": "You help.", **EPHEMERAL}, {"type": "text", "text": "Answer in French."}]
    first, second, third = body["messages"]
    look, *calls = second["content"]
    assert look == {"type": "text", "text": "I look.", **EPHEMERAL}  # before the results of the turn
    assert "cache_control" not in json.dumps([first, calls, body["tools"]])
    one, two = third["content"]
    assert one == {"type": "tool_result", "tool_use_id": "toolu_1", "content": "one", **EPHEMERAL}
    assert two == {"type": "tool_result", "tool_use_id": "toolu_2", "content": "two", **EPHEMERAL}


async def test_no_mark_is_sent_where_the_operator_wants_none(emulator: OpenAIEmulator, processes: Processes) -> None:
    environ = {"ANTHROPIC_API_KEY": "sk-ant-1", "ANTHROPIC_API_BASE": f"{emulator.url.removesuffix('/v1')}/raw"}
    gateway = LitellmGateway(ProviderSettings(environ=environ, cache_marks=False), idle_timeout=0.5, processes=processes)
    emulator.script(anthropic(begin(), *said("Hi"), *end("end_turn")))
    await collect(gateway, TURNS, [BASH], CLAUDE)
    assert b"cache_control" not in json.dumps(emulator.requests()[0].json).encode()


async def test_cached_tokens_are_told(emulator: OpenAIEmulator, claude: LitellmGateway) -> None:
    usage = {"input_tokens": 10, "cache_read_input_tokens": 90, "cache_creation_input_tokens": 0, "output_tokens": 1}
    emulator.script(anthropic(begin(**usage), PING, *said("Hi"), *end("end_turn", **(usage | {"output_tokens": 4}))))
    _, completion = await collect(claude, options=CLAUDE)
    cost = 10 * 3e-6 + 90 * 3e-7 + 4 * 15e-6
    assert completion.usage == Usage(100, 4, 90, 0, completion.usage.cost)
    assert completion.usage.cost == pytest.approx(cost)


async def test_tokens_that_are_written_into_the_cache_have_their_own_price(emulator: OpenAIEmulator, claude: LitellmGateway) -> None:
    usage = {"input_tokens": 10, "cache_read_input_tokens": 60, "cache_creation_input_tokens": 30, "output_tokens": 1}
    emulator.script(anthropic(begin(**usage), PING, *said("Hi"), *end("end_turn", **(usage | {"output_tokens": 4}))))
    _, completion = await collect(claude, options=CLAUDE)
    assert completion.usage == Usage(100, 4, 60, 0, completion.usage.cost, 30)
    assert completion.usage.cost == pytest.approx(10 * 3e-6 + 60 * 3e-7 + 30 * 3.75e-6 + 4 * 15e-6)


async def test_an_answer_at_its_limit_says_so(emulator: OpenAIEmulator, claude: LitellmGateway) -> None:
    emulator.script(anthropic(begin(), *said("Hi"), *end("max_tokens")))
    assert (await collect(claude, options=CLAUDE))[1].finish_reason == "length"


async def test_broken_arguments_come_as_they_are(emulator: OpenAIEmulator, claude: LitellmGateway) -> None:
    tool = {"type": "tool_use", "id": "toolu_1", "name": "bash", "input": {}}
    deltas = ({"type": "input_json_delta", "partial_json": text} for text in ('{"comm', 'and": oops'))
    emulator.script(anthropic(begin(), *block(0, tool, *deltas), *end("tool_use")))
    _, completion = await collect(claude, options=CLAUDE)
    assert completion.message.tool_calls == (ToolCall("toolu_1", "bash", '{"command": oops'),)


OVERLOADED = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}

BROKEN: list[tuple[str, dict[str, Any], Fault]] = [
    ("no end", anthropic(begin(), *said("Hello")), Fault.STREAM_CUT),
    ("nothing", {"raw": ""}, Fault.STREAM_CUT),
    ("cut", anthropic(begin(), *said("Hello")) | {"cut_after": 1}, Fault.STREAM_CUT),
    ("no answer", {"drop": True}, Fault.NETWORK),
    ("stall", anthropic(begin(), *said("Hello")) | {"cut_after": 1, "stall": 30}, Fault.STREAM_IDLE),
    ("stall at once", {"raw": "", "stall": 30}, Fault.STREAM_IDLE),
    ("garbage", {"raw": "event: message_start\ndata: {oops\n\n"}, Fault.STREAM_CUT),  # litellm leaves out what it cannot read
    ("an error in the stream", anthropic(begin(), *said("Hello"), OVERLOADED), Fault.OVERLOADED),
    ("empty", anthropic(begin(), *end("end_turn")), Fault.EMPTY),
    ("a web page", {"raw": "<html>", "content_type": "text/html"}, Fault.BAD_RESPONSE),
    ("redirect", {"status": 302, "headers": {"location": "http://127.0.0.1/"}}, Fault.BAD_REQUEST),
    ("500", {"status": 500}, Fault.OVERLOADED),
    ("compressed badly", {"status": 500, "headers": {"content-encoding": "gzip"}}, Fault.BAD_RESPONSE),
]


@pytest.mark.parametrize(("turn", "fault"), [case[1:] for case in BROKEN], ids=[case[0] for case in BROKEN])
async def test_a_broken_stream_has_its_name(emulator: OpenAIEmulator, claude: LitellmGateway, turn: dict[str, Any], fault: Fault) -> None:
    emulator.script(turn, anthropic(begin(), *said("Again"), *end("end_turn")))
    with pytest.raises(ModelError) as caught:
        await collect(claude, options=CLAUDE)
    assert caught.value.fault is fault, caught.value
    assert len(emulator.requests()) == 1
    assert (await collect(claude, options=CLAUDE))[1].message.text == "Again"


async def test_a_long_error_is_cut_and_never_shows_the_key(emulator: OpenAIEmulator, claude: LitellmGateway) -> None:
    emulator.script({"status": 401, "error": {"message": "Not sk-ant-1. " + "x" * 100_000}})
    with pytest.raises(ModelError) as caught:
        await collect(claude, options=CLAUDE)
    assert "Not [key]." in caught.value.message
    assert "sk-ant-1" not in f"{caught.value!r}{caught.value.details}"
    assert len(caught.value.message) <= 1000


@pytest.mark.parametrize(
    ("kind", "fault"),
    [
        ("rate_limit_error", Fault.RATE_LIMIT),
        ("authentication_error", Fault.AUTHENTICATION),
        ("permission_error", Fault.AUTHENTICATION),
        ("billing_error", Fault.AUTHENTICATION),
        ("request_too_large", Fault.CONTEXT_OVERFLOW),
        ("not_found_error", Fault.BAD_REQUEST),
        ("api_error", Fault.OVERLOADED),
        ("timeout_error", Fault.OVERLOADED),
    ],
)
@pytest.mark.parametrize("before", [[], [begin(), *said("Hel")]], ids=["at once", "later"])
async def test_an_error_in_a_stream_is_told_as_the_provider_says_it(
    emulator: OpenAIEmulator, claude: LitellmGateway, kind: str, fault: Fault, before: list[dict[str, Any]]
) -> None:
    emulator.script(anthropic(*before, {"type": "error", "error": {"type": kind, "message": "It says why."}}))
    with pytest.raises(ModelError, match=r"^anthropic \d+( \(out of credit\))?: It says why\.$") as caught:
        await collect(claude, options=CLAUDE)
    assert caught.value.fault is fault


def gemini(*chunks: dict[str, Any]) -> dict[str, Any]:
    """A turn of the emulator's with these chunks of Google's."""
    return {"raw": "".join(f"data: {json.dumps(chunk)}\r\n\r\n" for chunk in chunks)}


def parts(*given: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"candidates": [{"content": {"role": "model", "parts": list(given)}, "index": 0, **more}]}


@pytest.fixture
def google(emulator: OpenAIEmulator, processes: Processes) -> LitellmGateway:
    """A gateway whose Gemini is the emulator."""
    environ = {"GEMINI_API_KEY": "AIza-1", "GEMINI_API_BASE": f"{emulator.url.removesuffix('/v1')}/raw"}
    return LitellmGateway(ProviderSettings(environ=environ), idle_timeout=0.5, processes=processes)


GEMINI = ModelOptions("gemini", "gemini-2.5-pro")


async def test_signed_calls_of_gemini_go_back_signed(emulator: OpenAIEmulator, google: LitellmGateway) -> None:
    usage = {"promptTokenCount": 9, "candidatesTokenCount": 4, "thoughtsTokenCount": 6, "totalTokenCount": 19, "cachedContentTokenCount": 8}
    call = {"functionCall": {"name": "bash", "args": {"command": "ls"}}, "thoughtSignature": "c2lnbmVk"}
    last = parts(call, finishReason="STOP") | {"usageMetadata": usage}
    emulator.script(gemini(parts({"text": "Hm", "thought": True}), last), gemini(parts({"text": "Done"}, finishReason="STOP")))
    messages = [Message("system", (Text("Be brief."),)), user("Go")]
    _, completion = await collect(google, messages, [BASH], GEMINI)
    assert completion.usage.prompt == 9
    assert (completion.usage.completion, completion.usage.cached, completion.usage.reasoning) == (10, 8, 6)
    messages += [completion.message, Message("tool", (Text("ok"),), tool_call_id=completion.message.tool_calls[0].id)]
    await collect(google, messages, [BASH], GEMINI)
    body = emulator.requests()[1].json
    assert "Be brief." in json.dumps(body["system_instruction"])
    (returned,) = body["contents"][1]["parts"]
    assert returned["thoughtSignature"] == "c2lnbmVk"
    assert returned["function_call"]["args"] == {"command": "ls"}
    assert body["contents"][2]["parts"][0]["function_response"]["name"] == "bash"


SIGNED = {"functionCall": {"name": "bash", "args": {}}, "thoughtSignature": "c2lnbmVk" * 500}


async def test_a_signature_is_not_in_the_id_of_a_call_and_goes_to_no_other_model(
    emulator: OpenAIEmulator, google: LitellmGateway, claude: LitellmGateway
) -> None:
    emulator.script(gemini(parts(SIGNED, {"functionCall": {"name": "bash", "args": {}}}, finishReason="STOP")), {"repeat": {}, "times": 4})
    messages = [user("Go")]
    _, completion = await collect(google, messages, [BASH], GEMINI)
    calls = completion.message.tool_calls
    assert all(len(call.id) <= 40 for call in calls)
    messages += [completion.message, *(Message("tool", (Text("ok"),), tool_call_id=call.id) for call in calls)]
    for gateway, options in ((google, GEMINI), (google, ModelOptions("gemini", "gemini-2.5-flash")), (claude, CLAUDE)):
        with pytest.raises(ModelError):
            await collect(gateway, messages, [BASH], options)
    assert [request.body.count("c2lnbmVk" * 500) for request in emulator.requests()] == [0, 1, 0, 0]


async def test_the_signature_of_a_text_goes_back_with_it(emulator: OpenAIEmulator, google: LitellmGateway) -> None:
    said = gemini(parts({"text": "Hel"}), parts({"text": "lo", "thoughtSignature": "c2ln"}, finishReason="STOP"))
    emulator.script(said, gemini(parts({"text": "Yes"}, finishReason="STOP")))
    _, completion = await collect(google, options=GEMINI)
    await collect(google, [user("Hello"), completion.message, user("?")], options=GEMINI)
    assert emulator.requests()[1].json["contents"][1]["parts"] == [{"text": "Hello", "thoughtSignature": "c2ln"}]


NASTY = {
    "$schema": "http://json-schema.org/draft-07/schema#",
    "type": "object",
    "properties": {
        "strict": {"type": "boolean"},
        "any": True,
        "kind": {"const": "a"},
        "pair": {"type": "array", "items": [{"type": "string"}, {"type": "integer", "format": "int64"}]},
        "maybe": {"anyOf": [{"type": "object", "additionalProperties": False, "properties": {}}, {"type": "null"}]},
        "tree": {"$ref": "#/$defs/Tree"},
    },
    "required": ["strict"],
    "additionalProperties": False,
    "$defs": {"Tree": {"type": "object", "properties": {"left": {"$ref": "#/$defs/Tree"}}}},
}


async def test_the_schema_of_a_tool_is_one_that_google_takes(emulator: OpenAIEmulator, google: LitellmGateway) -> None:
    emulator.script(gemini(parts({"text": "Hi"}, finishReason="STOP")))
    await collect(google, tools=[ToolSpec("nasty", "", NASTY), ToolSpec("empty", "", {})], options=GEMINI)
    nasty, empty = (each["parameters"] for each in emulator.requests()[0].json["tools"][0]["function_declarations"])
    assert empty == {"type": "object"}
    assert nasty["required"] == ["strict"]
    found = nasty["properties"]
    assert found["strict"] == {"type": "boolean"}
    assert found["kind"] == {"type": "string", "enum": ["a"]}
    assert found["pair"] == {"type": "array", "items": {"anyOf": [{"type": "string"}, {"type": "integer"}]}}
    assert found["tree"] == {"type": "object", "properties": {"left": {"type": "object"}}}
    assert not any(word in json.dumps(nasty) for word in ("$", "additionalProperties", "const", "int64", "oneOf"))


@pytest.mark.parametrize(
    ("turn", "fault"),
    [
        ({"status": 400, "error": {"code": 400, "message": "API key not valid. Please pass a valid API key."}}, Fault.AUTHENTICATION),
        ({"status": 400, "error": {"code": 400, "message": "The input token count (2) exceeds the maximum (1)."}}, Fault.CONTEXT_OVERFLOW),
        ({"status": 503, "error": {"code": 503, "message": "The model is overloaded."}}, Fault.OVERLOADED),
        (gemini(parts({"text": "Hello"})), Fault.STREAM_CUT),
        (gemini(parts({"text": "Hello"})) | {"cut_after": 1}, Fault.STREAM_CUT),
        (gemini(parts({"text": "Hello"})) | {"cut_after": 1, "stall": 30}, Fault.STREAM_IDLE),
        ({"raw": "data: {oops\r\n\r\n"}, Fault.STREAM_CUT),  # litellm takes it for half an event
        (gemini({"error": {"code": 503, "message": "Overloaded", "status": "UNAVAILABLE"}}), Fault.OVERLOADED),
        (gemini(parts(finishReason="STOP")), Fault.EMPTY),
        (gemini({"promptFeedback": {"blockReason": "SAFETY"}}), Fault.BAD_REQUEST),
    ],
)
async def test_a_broken_stream_of_gemini_has_its_name(
    emulator: OpenAIEmulator, google: LitellmGateway, turn: dict[str, Any], fault: Fault
) -> None:
    emulator.script(turn)
    with pytest.raises(ModelError) as caught:
        await collect(google, options=GEMINI)
    assert caught.value.fault is fault, caught.value


def service_account(token_url: str) -> str:
    """Credentials as Google gives them out, with a key made here and now."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    account = {"type": "service_account", "project_id": "p", "private_key_id": "k", "private_key": pem.decode(), "token_uri": token_url}
    return json.dumps(account | {"client_email": "agent@p.iam.gserviceaccount.com", "client_id": "1"})


async def test_vertex_ai_is_called_with_a_token_of_its_service_account(emulator: OpenAIEmulator, processes: Processes) -> None:
    raw = f"{emulator.url.removesuffix('/v1')}/raw"
    environ = {"VERTEXAI_PROJECT": "p", "VERTEXAI_LOCATION": "us-central1", "VERTEXAI_CREDENTIALS": service_account(f"{raw}/token")}
    gateway = LitellmGateway(ProviderSettings(environ=environ | {"VERTEXAI_API_BASE": f"{raw}/model"}), idle_timeout=3, processes=processes)
    token = {"access_token": "ya29.token", "expires_in": 3600, "token_type": "Bearer"}
    emulator.script({"raw": json.dumps(token), "content_type": "application/json"}, gemini(parts({"text": "Hello"}, finishReason="STOP")))
    _, completion = await collect(gateway, options=ModelOptions("vertex_ai", "gemini-2.5-pro"))
    assert completion.message.text == "Hello"
    asked, called = emulator.requests()
    assert asked.path == "/raw/token"
    assert called.path.startswith("/raw/model:streamGenerateContent")
    assert called.headers["authorization"] == "Bearer ya29.token"
