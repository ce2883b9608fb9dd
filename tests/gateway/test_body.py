import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_server.gateway.body import BodyEncoder
from agent_server.gateway.providers import Endpoint
from agent_server.messages import Image, Message, Text, ToolCall, ToolSpec
from tests.emulators.history import complaint
from tests.gateway.conftest import BASH, user


def endpoint(provider: str = "openrouter", model: str = "m") -> Endpoint:
    return Endpoint("http://127.0.0.1/v1/chat/completions", None, {}, model, provider)


def encode(
    *messages: Message, tools: tuple[ToolSpec, ...] = (), max_tokens: int | None = None, to: Endpoint | None = None
) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(BodyEncoder().encode(to or endpoint(), messages, tools, max_tokens))
    return body


def assistant(*calls: ToolCall, text: str = "", reasoning: dict[str, Any] | None = None) -> Message:
    return Message("assistant", (Text(text),) if text else (), calls, reasoning=reasoning)


def result(call_id: str, *parts: Text | Image) -> Message:
    return Message("tool", parts or (Text("done"),), tool_call_id=call_id)


PICTURE = Image("image/png", "aGk=")
CALL = ToolCall("call_0", "bash", '{"command": "true"}')


def test_messages_take_the_form_of_chat_completions() -> None:
    body = encode(
        Message("system", (Text("Be brief."),)), user("Hi"), assistant(CALL), result("call_0"), assistant(text="Done."), user("Thanks")
    )
    assert body["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "call_0", "type": "function", "function": {"name": "bash", "arguments": '{"command": "true"}'}}],
        },
        {"role": "tool", "tool_call_id": "call_0", "content": "done"},
        {"role": "assistant", "content": "Done."},
        {"role": "user", "content": "Thanks"},
    ]


def test_messages_are_the_last_key() -> None:
    body = encode(user("Hi"), tools=(BASH,), max_tokens=5)
    assert list(body) == ["model", "tools", "stream", "stream_options", "usage", "max_tokens", "messages"]


USAGE = {"stream_options": {"include_usage": True}}


@pytest.mark.parametrize(
    ("provider", "options"),
    [
        ("openrouter", {**USAGE, "usage": {"include": True}, "max_tokens": 5}),
        ("openai", {**USAGE, "max_completion_tokens": 5}),
        ("openai-compatible", {**USAGE, "max_tokens": 5}),
        ("groq", {**USAGE, "max_tokens": 5}),
        ("cohere", {"max_tokens": 5}),
    ],
)
def test_each_provider_gets_the_options_it_knows(provider: str, options: dict[str, Any]) -> None:
    body = encode(user("Hi"), max_tokens=5, to=endpoint(provider))
    assert body == {"model": "m", "stream": True, **options, "messages": body["messages"]}


def test_tools_are_functions() -> None:
    assert encode(user("Hi"), tools=(BASH,))["tools"] == [
        {"type": "function", "function": {"name": "bash", "description": "Runs a command.", "parameters": BASH.parameters}}
    ]


def test_parameters_are_always_an_object_with_properties() -> None:
    spec = ToolSpec("now", "Tells the time.", {"type": "object"})
    assert encode(user("Hi"), tools=(spec,))["tools"][0]["function"]["parameters"] == {"type": "object", "properties": {}}


def test_images_are_data_urls() -> None:
    assert encode(Message("user", (Text("What is it?"), PICTURE)))["messages"][0]["content"] == [
        {"type": "text", "text": "What is it?"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}},
    ]


def test_images_of_tools_follow_all_results_as_a_users_message() -> None:
    other = ToolCall("call_1", "read", "{}")
    body = encode(
        user("Hi"),
        assistant(CALL, other),
        result("call_0", Text("a picture"), PICTURE),
        result("call_1"),
        assistant(text="A cat."),
        user("?"),
    )
    assert [message["role"] for message in body["messages"]] == ["user", "assistant", "tool", "tool", "user", "assistant", "user"]
    assert body["messages"][2]["content"] == "a picture"
    assert body["messages"][4]["content"][1]["image_url"]["url"] == "data:image/png;base64,aGk="
    assert complaint(body) is None


KINDS = st.lists(st.sampled_from(["user", "assistant", "call", "picture", "cut", "model", "claude"]), max_size=12)


@given(KINDS)
def test_what_is_remembered_of_the_last_request_changes_no_byte_of_the_next(kinds: list[str]) -> None:
    encoder, to = BodyEncoder(), endpoint()
    messages = [Message("system", (Text("You help."),)), user("Hi")]
    for kind in kinds:
        match kind:
            case "user":
                messages.append(user("more"))
            case "assistant":
                messages.append(assistant(text="So."))
            case "call" | "picture":
                messages += [assistant(CALL), result("call_0", Text("done"), *([PICTURE] if kind == "picture" else []))]
            case "cut":
                messages[1:-1] = [user("A summary.")]
            case "model":
                to = endpoint(model="another")
            case "claude":
                to = endpoint(model="anthropic/claude-sonnet-4.5")
        assert encoder.encode(to, [*messages], (), None) == BodyEncoder().encode(to, [*messages], (), None)


@pytest.mark.parametrize("arguments", ["", "{oops", "[]", '"text"', "null", '{"a": ' + "[" * 5000])
def test_malformed_arguments_are_sent_so_that_providers_take_them(arguments: str) -> None:
    body = encode(user("Hi"), assistant(ToolCall("call_0", "bash", arguments)), result("call_0"))
    assert json.loads(body["messages"][1]["tool_calls"][0]["function"]["arguments"]) == {"malformed": arguments}


@pytest.mark.parametrize(("name", "sent"), [("a b<|x|>", "a_b__x__"), ("", "_"), ("n" * 99, "n" * 64)])
def test_names_that_providers_refuse_are_made_acceptable(name: str, sent: str) -> None:
    body = encode(user("Hi"), assistant(ToolCall("call_0", name, "{}")), result("call_0"))
    assert body["messages"][1]["tool_calls"][0]["function"]["name"] == sent
    assert complaint(body) is None


DETAILS = {
    "text": "Hm",
    "details": [{"type": "reasoning.text", "text": "Hm"}],
    "field": "reasoning",
    "provider": "openrouter",
    "model": "m",
}
CONTENT = {"text": "Hm", "field": "reasoning_content", "provider": "deepseek", "model": "m"}


@pytest.mark.parametrize(
    ("reasoning", "calls", "provider", "model", "sent"),
    [
        (DETAILS, (), "openrouter", "m", {"reasoning_details": DETAILS["details"]}),
        (DETAILS, (CALL,), "openrouter", "m", {"reasoning_details": DETAILS["details"]}),
        (DETAILS, (CALL,), "openrouter", "other", {}),
        (DETAILS, (CALL,), "openai", "m", {}),
        (CONTENT, (CALL,), "deepseek", "m", {"reasoning_content": "Hm"}),
        (CONTENT, (), "deepseek", "m", {}),
        (CONTENT, (CALL,), "moonshot", "m", {}),
        ({**CONTENT, "field": "reasoning"}, (CALL,), "deepseek", "m", {}),
    ],
)
def test_reasoning_goes_back_only_to_where_it_came_from(
    reasoning: dict[str, Any], calls: tuple[ToolCall, ...], provider: str, model: str, sent: dict[str, Any]
) -> None:
    body = encode(assistant(*calls, text="Yes", reasoning=reasoning), to=endpoint(provider, model))
    assert {key: value for key, value in body["messages"][0].items() if key.startswith("reasoning")} == sent


def test_another_model_does_not_get_the_bytes_of_the_first() -> None:
    encoder, message = BodyEncoder(), assistant(text="Yes", reasoning=DETAILS)
    bodies = [encoder.encode(endpoint(model=model), [message], [], None) for model in ("m", "other", "m")]
    assert [b"reasoning_details" in body for body in bodies] == [True, False, True]


PARTS = st.one_of(st.builds(Text, st.text(max_size=8)), st.just(PICTURE))


@st.composite
def steps(draw: st.DrawFn) -> list[list[Message]]:
    """What each step of a task adds: an answer, and the results of its calls."""
    added = [[Message("system", (Text("s"),)), Message("user", tuple(draw(st.lists(PARTS, min_size=1))))]]
    for step in range(draw(st.integers(0, 5))):
        calls = [ToolCall(f"call_{step}_{number}", "bash", draw(st.text(max_size=8))) for number in range(draw(st.integers(1, 3)))]
        results = [result(call.id, *draw(st.lists(PARTS, min_size=1, max_size=2))) for call in calls]
        added.append([assistant(*calls, text=draw(st.text(max_size=8))), *results])
    return added


@settings(deadline=None)
@given(steps())
def test_each_request_repeats_the_one_before_it_byte_for_byte(added: list[list[Message]]) -> None:
    encoder = BodyEncoder()
    messages: list[Message] = []
    before = b"]}"
    for step in added:
        messages += step
        body = encoder.encode(endpoint(), messages, (BASH,), 5)
        assert body == BodyEncoder().encode(endpoint(), list(messages), (BASH,), 5)
        assert body.startswith(before[: -len(b"]}")])
        assert complaint(json.loads(body)) is None
        before = body
