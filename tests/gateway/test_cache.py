import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_server.gateway.body import BodyEncoder
from agent_server.gateway.cache import MARK, mark, takes_marks
from agent_server.gateway.providers import Endpoint
from agent_server.messages import Image, Message, Text, ToolCall
from tests.emulators.history import complaint
from tests.gateway.conftest import user

CLAUDE = Endpoint("http://127.0.0.1/v1/chat/completions", None, {}, "anthropic/claude-sonnet-4.5", "openrouter")
SYSTEM = Message("system", (Text("You help."),))
CALL = ToolCall("call_0", "bash", "{}")


def encode(*messages: Message, marks: bool = True) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(BodyEncoder(marks=marks).encode(CLAUDE, messages, (), None))["messages"]
    return found


def marked(*messages: Message) -> list[int]:
    return [at for at, message in enumerate(encode(*messages)) if "cache_control" in json.dumps(message["content"])]


@pytest.mark.parametrize(
    ("provider", "model", "takes"),
    [
        ("openrouter", "anthropic/claude-sonnet-4.5", True),
        ("openrouter", "~anthropic/claude-opus-latest", True),
        ("openrouter", "openai/gpt-5", False),
        ("openai-compatible", "claude-opus-4-1", True),
        ("openai-compatible", "bedrock/us.anthropic.Claude-3-5", True),
        ("openai-compatible", "llama", False),
        ("openai", "claude", False),
        ("groq", "anthropic/claude", False),
        ("anthropic", "opus-latest", True),
        ("bedrock", "us.anthropic.claude-sonnet-4-5-20250929-v1:0", True),
        ("bedrock", "us.amazon.nova-pro-v1:0", False),
        ("vertex_ai", "claude-sonnet-4-5", True),
        ("vertex_ai", "gemini-2.5-pro", False),
    ],
)
def test_only_models_of_anthropic_get_marks(provider: str, model: str, takes: bool) -> None:
    assert takes_marks(provider, model) is takes


def test_the_system_prompt_and_the_last_two_messages_are_marked() -> None:
    results = Message("tool", (Text("out"),), tool_call_id="call_0")
    body = encode(SYSTEM, user("Hi"), Message("assistant", (Text("I look."),), (CALL,)), results)
    assert body[0] == {"role": "system", "content": [{"type": "text", "text": "You help.", "cache_control": MARK}]}
    assert body[1]["content"] == "Hi"
    assert body[2]["content"] == [{"type": "text", "text": "I look.", "cache_control": MARK}]
    assert body[2]["tool_calls"][0]["id"] == "call_0"
    assert body[3] == {
        "role": "tool",
        "tool_call_id": "call_0",
        "content": [{"type": "text", "text": "out", "cache_control": MARK}],
    }


def test_messages_without_a_text_are_passed_over() -> None:
    silent = Message("assistant", (), (CALL,))
    empty = Message("tool", (Text(" \n"),), tool_call_id="call_0")  # which is sent as "(nothing)"
    assert marked(SYSTEM, user("Hi"), silent, empty) == [0, 1, 3]
    assert marked(SYSTEM, user("Hi"), user("you"), silent) == [0, 1, 2]
    assert marked(SYSTEM, user("Hi"), silent, user("more")) == [0, 1, 3]
    assert marked(Message("system", (Text(""),)), user("Hi")) == [1]
    assert marked(user("Hi")) == [0]


def test_a_mark_stands_before_the_results_of_a_turn_however_many() -> None:
    calls = tuple(ToolCall(f"call_{number}", "bash", "{}") for number in range(12))
    results = [Message("tool", (Text("out"),), tool_call_id=call.id) for call in calls]
    one, other = Message("assistant", (), calls), Message("assistant", (Text("I look."),), calls)
    assert marked(SYSTEM, user("Hi"), one, *results) == [0, 1, 13, 14]
    assert marked(SYSTEM, user("Hi"), other, *results) == [0, 2, 13, 14]
    assert marked(SYSTEM, user("Hi"), one, results[0]) == [0, 1, 3]
    assert marked(SYSTEM, user("Hi"), one, *results, user("more")) == [0, 14, 15]
    assert marked(SYSTEM, user("Hi"), one, *results[:2], one, *results[:2]) == [0, 4, 6, 7]


def test_an_image_can_be_marked() -> None:
    assert mark({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}) == {
        "role": "user",
        "content": [{"type": "image_url", "image_url": {"url": "data:"}, "cache_control": MARK}],
    }


TEXTS = st.text(max_size=6)
PARTS = st.one_of(st.builds(Text, TEXTS), st.just(Image("image/png", "aGk=")))
MESSAGES = st.one_of(
    st.builds(lambda parts: Message("user", tuple(parts)), st.lists(PARTS, min_size=1, max_size=3)),
    st.builds(lambda text: Message("assistant", (Text(text or "x"),)), TEXTS),
)


@settings(deadline=None)
@given(st.lists(MESSAGES, min_size=1, max_size=6), TEXTS)
def test_marks_change_nothing_else(messages: list[Message], system: str) -> None:
    conversation = [Message("system", (Text("S" + system), Text("\n\nmore"))), *messages, user("next")]
    with_marks, without = encode(*conversation), encode(*conversation, marks=False)
    assert json.dumps(with_marks).count("cache_control") <= 3
    assert complaint({"messages": with_marks}) is None
    for here, there in zip(with_marks, without, strict=True):
        if isinstance(here["content"], list):
            for part in here["content"]:
                part.pop("cache_control", None)
        if isinstance(there["content"], str) and isinstance(here["content"], list):
            here["content"] = "".join(part["text"] for part in here["content"])
        assert json.dumps(here) == json.dumps(there)
